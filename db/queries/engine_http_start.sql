-- POST /sagas/{name}. $3: the id that its Idempotency-Key makes; NULL when another body was sent with that key
SELECT CASE WHEN $3::uuid IS NULL THEN saga.start($1, $2::jsonb) ELSE saga.start_once($1, $2::jsonb, $3::uuid) END
