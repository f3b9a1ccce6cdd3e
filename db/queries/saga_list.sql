-- Sagas, the youngest ids first. $1 states, NULL: any; $2 name, NULL: any; $3 step that is under way or stuck, NULL: any; $4 at
-- least so long in their state, in microseconds, NULL: any; $5 after this id (of the page before), NULL: from the start; $6 at
-- most; $7 down to this id (of saga_stretch), NULL: to the end; $8 only those alive. The text of the steps, as lib/saga_text.c
-- writes it, is looked at before it is parsed: a twentieth of the time.
SELECT i.id, i.name, i.version, i.state, i.failed_step, i.why, i.started_at, i.since_at, i.finished_at, i.due_at,
	(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - i.since_at) * 1000000)::bigint AS age_us,
	(SELECT pg_catalog.string_agg(s.step, ' ' ORDER BY s.place) FROM saga.step AS s
		WHERE s.saga_id = i.id AND s.state IN ('DOING', 'UNDOING', 'STUCK')) AS at_step,
	NOT i.granted AS waits_for_lock
FROM saga.instance AS i
WHERE ($1::text[] IS NULL OR i.state = ANY ($1::text[]))
  AND (NOT $8::boolean OR i.slot = 0)
  AND ($2::text IS NULL OR i.name = $2)
  AND ($4::bigint IS NULL OR i.since_at <= pg_catalog.clock_timestamp() - $4::bigint * interval '1 microsecond')
  AND ($5::uuid IS NULL OR i.id < $5)
  AND ($7::uuid IS NULL OR i.id >= $7)
  AND ($3::text IS NULL OR left(split_part(i.steps::text, '"' || $3 || '", "state": "', 2), 3) IN ('DOI', 'UND', 'STU')
	AND EXISTS (SELECT FROM saga.step AS s
		WHERE s.saga_id = i.id AND s.step = $3 AND s.state IN ('DOING', 'UNDOING', 'STUCK')))
ORDER BY i.id DESC LIMIT $6::bigint
