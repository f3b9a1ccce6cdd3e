-- Where a group stands: one row a partition. $1: the group.
SELECT p.topic, p.partition, max(p.lane_count), min(p.next_offset) FROM inbox.position AS p WHERE p."group" = $1 GROUP BY p.topic, p.partition
