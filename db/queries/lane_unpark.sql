SELECT inbox.unpark($1::bigint[])
