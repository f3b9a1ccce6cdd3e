SELECT inbox.attempt_ended($1, $2, $3, $4, $5, $6, $7)
