SELECT key_id, secret, signs FROM service.keys($1, pg_catalog.decode($2, 'hex'),
	$3::bigint * interval '1 microsecond', $4::bigint * interval '1 microsecond', $5::bigint * interval '1 microsecond')
