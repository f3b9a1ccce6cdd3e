SELECT inbox.look($1, $2, $3)
