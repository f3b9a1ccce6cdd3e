-- Starts a saga, in the transaction of the caller.
SELECT saga.start($1, $2::jsonb, $3::uuid)
