SELECT user_id, password_hash FROM "user".login_begin($1, $2::integer, $3::bigint * interval '1 microsecond')
