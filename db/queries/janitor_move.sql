-- Moves due events into outbox.event.
SELECT outbox.move_due(1000)
