SELECT inbox.remember($1, $2, $3)
