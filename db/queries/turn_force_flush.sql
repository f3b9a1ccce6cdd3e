-- Makes everything before it durable at once: an empty transaction would commit asynchronously and flush
-- nothing. Needs synchronous_commit = local or on in the session.
SELECT pg_catalog.pg_logical_emit_message(true, 'postrider', '')
