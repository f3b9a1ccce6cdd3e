SELECT inbox.retried($1)
