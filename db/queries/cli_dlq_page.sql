-- Dead letters in the order of their entries, a page at a time. $1-$5: group, topic, type, class, code (a
-- trailing * matches any end), $6-$7: buried since and until (microseconds since 1970), $8: state; NULL: any.
-- $9-$10: entries in (after, through], $11: most.
SELECT d.entry, d."group", d.topic, d.partition, d.message_offset,
	coalesce(d.key, 'base64:' || translate(encode(d.key_bytes, 'base64'), E'\n', '')), d.id, d.type, d.class, d.code,
	d.reason, d.attempts, to_char(d.buried_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), d.state, d.note
FROM inbox.dead_letter AS d
WHERE ($1::text IS NULL OR d."group" = $1) AND ($2::text IS NULL OR d.topic = $2) AND ($3::text IS NULL OR d.type = $3)
  AND ($4::text IS NULL OR d.class = $4)
  AND ($5::text IS NULL OR d.code = $5 OR right($5, 1) = '*' AND starts_with(d.code, left($5, -1)))
  AND ($6::text IS NULL OR d.buried_at >= to_timestamp($6::float8 / 1e6))
  AND ($7::text IS NULL OR d.buried_at < to_timestamp($7::float8 / 1e6))
  AND ($8::text IS NULL OR d.state = $8)
  AND d.entry > $9::bigint AND d.entry <= $10::bigint
ORDER BY d.entry LIMIT $11::bigint
