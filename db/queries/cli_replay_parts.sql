-- How far each partition of a replay job is. $1: job.
SELECT p.topic, p.partition, p.from_offset, p.to_offset, p.next_offset, p.handled, p.duplicates
FROM inbox.replay_part AS p WHERE p.job = $1::bigint ORDER BY p.topic, p.partition
