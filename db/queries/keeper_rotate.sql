SELECT inbox.rotate($1::bigint * interval '1 microsecond')
