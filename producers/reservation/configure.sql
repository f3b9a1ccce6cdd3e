SELECT reservation.configure($1::bigint * interval '1 microsecond')
