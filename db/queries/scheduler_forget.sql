SELECT scheduler.forget($1::bigint * interval '1 microsecond', $2)
