SELECT inbox.parked_unbegun($1)
