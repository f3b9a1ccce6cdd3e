-- What the operator wants: paused, and whether there is a request to look at.
SELECT paused_at IS NOT NULL, coalesce(paused_by, ''), request FROM outbox.relay
