-- How far the outbox of this database is behind, if anybody uses it. One row or none.
SELECT (SELECT r.name FROM outbox.relay AS r) AS name, round(l.lag_seconds::numeric, 3) AS lag_seconds, l.pending_events, l.parked_events + l.waiting_events AS held
FROM outbox.lag AS l WHERE EXISTS (SELECT FROM outbox.relay) OR l.pending_events > 0
