-- The text of a definition
SELECT text FROM saga.definition WHERE name = $1 AND version = $2::integer
