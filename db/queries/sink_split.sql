WITH first AS (
	UPDATE sink.cut SET next_offset = $5, records = $6, bytes = $7
	WHERE group_name = $1 AND topic = $2 AND partition = $3 AND first_offset = $4 RETURNING *)
INSERT INTO sink.cut (group_name, topic, partition, first_offset, next_offset, target, state, epoch, records, bytes,
	min_time, max_time, watermark)
SELECT group_name, topic, partition, $5, $8, target, 'recorded', epoch, $9, $10, min_time, max_time, watermark FROM first
