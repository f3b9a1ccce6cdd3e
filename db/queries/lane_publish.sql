SELECT outbox.publish($1, $2, $3, $4::jsonb, $5::text::jsonb)
