SELECT service.forget($1::bigint * interval '1 microsecond')
