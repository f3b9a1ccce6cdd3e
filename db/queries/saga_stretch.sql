-- Where the next stretch of sagas ends, to be looked through for something that no index knows: the id of its last one, none
-- when fewer are left. $1 states that are all indexed (COMPENSATING, STUCK), NULL: any; $2 only those alive; $3 after this id,
-- NULL: from the start; $4 how many to step over. Reads an index alone.
SELECT i.id FROM saga.instance AS i
WHERE ($1::text[] IS NULL OR i.state = ANY ($1::text[])) AND (NOT $2::boolean OR i.slot = 0) AND ($3::uuid IS NULL OR i.id < $3)
ORDER BY i.id DESC OFFSET $4::bigint LIMIT 1
