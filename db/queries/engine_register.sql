-- A definition: new, same, or other than what is there under its version. $6: [{"step", "sla"}]
SELECT saga.register($1, $2::integer, $3, $4, $5::bytea, $6::jsonb)
