-- First of a turn: the sequence's last value. Never SELECT last_value FROM the sequence: it reads ahead
-- of nextval by up to 32 and says 1 when unused. Must be read before the snapshot.
SELECT coalesce(pg_catalog.pg_sequence_last_value('outbox.event_seq'), 0)
