SELECT inbox.dlq_published($1::bigint[])
