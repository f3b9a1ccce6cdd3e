SELECT inbox.unpark($1)
