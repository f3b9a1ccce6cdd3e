-- Counts for people: parked events and keys, since when the oldest is parked (microseconds), retrying and dead
-- letters, running replays.
SELECT parked_events, parked_keys, (extract(epoch FROM parked_oldest) * 1000000)::bigint, retrying, dead_letters, replays
FROM inbox.stats($1)
