-- Where a group stands in each partition, and each lane of it. $1: group.
SELECT o.topic, o.partition, max(o.epoch), max(o.lane_count), min(o.next_offset),
	to_json(array_agg(o.next_offset ORDER BY o.lane)),
	greatest(0, extract(epoch FROM clock_timestamp() - max(o.updated_at)))::numeric(20, 3)
FROM inbox.position AS o WHERE o."group" = $1 GROUP BY o.topic, o.partition ORDER BY o.topic, o.partition
