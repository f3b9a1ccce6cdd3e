-- Records that a position exists. $1 name, $2 system id, $3 timeline.
INSERT INTO outbox.relay (name, system_id, timeline) VALUES ($1, $2, $3::int)
ON CONFLICT (only_row) DO UPDATE SET name = excluded.name, system_id = excluded.system_id,
	timeline = excluded.timeline
WHERE relay.name IS NULL OR relay.system_id IS DISTINCT FROM excluded.system_id
	OR relay.timeline IS DISTINCT FROM excluded.timeline
