-- Consumer groups of this database. $1: group (NULL: all).
SELECT v."group", v.partitions, v.paused, to_char(c.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
	CASE WHEN v.paused THEN c.paused_by END, c.lanes, v.parked_events, v.parked_keys,
	extract(epoch FROM clock_timestamp() - v.parked_oldest)::bigint, v.retrying, v.dead_letters,
	extract(epoch FROM clock_timestamp() - v.dead_oldest)::bigint, v.replays,
	greatest(0, extract(epoch FROM clock_timestamp() - v.moved_at))::numeric(20, 3)
FROM inbox.overview AS v JOIN inbox.consumer AS c ON c."group" = v."group"
WHERE $1::text IS NULL OR v."group" = $1 ORDER BY v."group"
