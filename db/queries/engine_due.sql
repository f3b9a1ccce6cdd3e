-- What to look at without a reply. $1 parts, $2 how far each is handled (microseconds since 1970), $3 at most, $4 the topic of
-- starts and replies, $5 how far all of the other members are handled (NULL: there is none). What came by that topic hears its
-- answers by the same part; what came by another may be answered on any, of whichever member: its time is over when all of
-- them are handled up to it.
SELECT DISTINCT saga_id FROM saga.due($1, ARRAY(
	SELECT timestamptz 'epoch' + interval '1 microsecond' * CASE WHEN b.part LIKE $4 || '-%' THEN b.until
		ELSE LEAST(pg_catalog.min(b.until) OVER (), $5::bigint) END
	FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::bigint[])) WITH ORDINALITY AS b (part, until, n)
	ORDER BY b.n), $3)
