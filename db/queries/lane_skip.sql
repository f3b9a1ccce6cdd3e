SELECT inbox.skip($1)
