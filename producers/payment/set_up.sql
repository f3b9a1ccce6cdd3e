SELECT payment.set_up($1::boolean, $2::boolean, $3::bigint * interval '1 microsecond', $4::bigint * interval '1 microsecond')
