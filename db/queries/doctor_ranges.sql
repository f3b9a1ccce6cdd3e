-- Ranges ready for events to come. $1: how commands name the target, $2: how many the config wants.
SELECT CASE WHEN n.here = 0 THEN 'fail' WHEN n.ahead < $2::integer / 2 OR n.ahead = 0 THEN 'warn' ELSE 'ok' END,
	CASE WHEN n.here = 0 THEN 'no range for the next event: every INSERT into the outbox fails'
		ELSE format('%s empty range%s ahead of the one in use, %s wanted', n.ahead, CASE n.ahead WHEN 1 THEN '' ELSE 's' END, $2) END,
	CASE WHEN n.here = 0 OR n.ahead < $2::integer / 2 OR n.ahead = 0 THEN 'postrider init ' || $1 END
FROM (SELECT count(*) FILTER (WHERE p.from_seq > l.next) AS ahead, count(*) FILTER (WHERE p.from_seq <= l.next AND p.to_seq > l.next) AS here
	FROM outbox.partitions AS p
	RIGHT JOIN (SELECT coalesce(pg_sequence_last_value('outbox.event_seq'), 0) + 1 AS next) AS l ON true) AS n
