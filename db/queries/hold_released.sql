-- Parked events that are on their topic now.
DELETE FROM outbox.parked WHERE seq = ANY ($1::bigint[])
