SELECT inbox.sort_out($1, $2, $3)
