-- How far each partition of the group is handled, whoever has it, and what time it is (microseconds since 1970). $1 the group
SELECT topic, partition, pg_catalog.min(next_offset), (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint
FROM inbox.position WHERE "group" = $1 GROUP BY topic, partition
