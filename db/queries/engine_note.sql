-- Log rows; see saga.note
SELECT saga.note($1, $2, $3, $4, $5, $6, $7, $8)
