-- Where a group stands in each partition of a topic (before its first record: -1), and since when it remembers ids
-- (microseconds since 1970; NULL: since ever). $1: group, $2: topic.
SELECT o.partition, min(o.next_offset), (
	SELECT (extract(epoch FROM nullif(s.remembered_since, '-infinity')) * 1e6)::bigint FROM inbox.stats($1) AS s)
FROM inbox.position AS o WHERE o."group" = $1 AND o.topic = $2 GROUP BY o.partition ORDER BY o.partition
