INSERT INTO sink.file (group_name, topic, partition, cut_first, path, temp, hour, records, bytes, sha256, first_offset,
	last_offset, min_time, max_time, late)
SELECT $1, u.t, u.p, u.c, u.path, u.temp, 'epoch'::timestamptz + u.hour * interval '1 microsecond', u.r, u.b,
	decode(u.sum, 'hex'), u.f, u.l, 'epoch'::timestamptz + nullif(u.lo, -1) * interval '1 microsecond',
	'epoch'::timestamptz + nullif(u.hi, -1) * interval '1 microsecond', u.late = 1
FROM unnest($2::text[], $3::int[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[],
	$10::text[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::int[])
	AS u (t, p, c, path, temp, hour, r, b, sum, f, l, lo, hi, late)
ON CONFLICT (group_name, path) DO UPDATE SET topic = EXCLUDED.topic, partition = EXCLUDED.partition,
	cut_first = EXCLUDED.cut_first, temp = EXCLUDED.temp, hour = EXCLUDED.hour, records = EXCLUDED.records,
	bytes = EXCLUDED.bytes, sha256 = EXCLUDED.sha256, first_offset = EXCLUDED.first_offset,
	last_offset = EXCLUDED.last_offset, min_time = EXCLUDED.min_time, max_time = EXCLUDED.max_time, late = EXCLUDED.late, listed = false
