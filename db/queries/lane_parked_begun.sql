SELECT inbox.parked_begun($1, $2, $3::interval)
