SELECT saga.forget_copies($1::bigint * interval '1 microsecond')
