-- Replay jobs, newest first. $1: job, $2: group, $3: state (NULL: any), $4: most.
SELECT r.job, r."group", (SELECT string_agg(DISTINCT p.topic, ', ') FROM inbox.replay_part AS p WHERE p.job = r.job),
	r.state, s.records, s.done, s.handled, s.duplicates,
	to_char(r.made_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), r.made_by,
	to_char(r.changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), r.changed_by, r.note
FROM inbox.replay AS r
CROSS JOIN LATERAL (
	SELECT coalesce(sum(p.to_offset - p.from_offset), 0) AS records, coalesce(sum(p.next_offset - p.from_offset), 0) AS done,
		coalesce(sum(p.handled), 0) AS handled, coalesce(sum(p.duplicates), 0) AS duplicates
	FROM inbox.replay_part AS p WHERE p.job = r.job) AS s
WHERE ($1::bigint IS NULL OR r.job = $1) AND ($2::text IS NULL OR r."group" = $2) AND ($3::text IS NULL OR r.state = $3)
ORDER BY r.job DESC LIMIT $4::bigint
