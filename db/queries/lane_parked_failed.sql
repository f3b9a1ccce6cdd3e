SELECT inbox.parked_failed($1, $2, $3, $4, $5, $6::interval)
