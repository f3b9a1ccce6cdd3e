SELECT payment.settle_work($1::uuid, $2::integer, $3, $4, $5::bigint * interval '1 microsecond')
