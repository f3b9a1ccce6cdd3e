-- Partitions that a sink's group has a position of; none while the schema is not there.
SELECT p.topic, p.partition FROM inbox.position AS p
WHERE p."group" = $1 AND p.lane = 0 AND to_regclass('sink.pruned') IS NOT NULL ORDER BY 1, 2
