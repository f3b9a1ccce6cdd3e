INSERT INTO sink.cut AS c (group_name, topic, partition, first_offset, next_offset, target, state, epoch, records, bytes,
	min_time, max_time, watermark, ceiling, letters)
SELECT $1, u.t, u.p, u.f, u.n, $2, 'recorded', u.e, u.r, u.b, 'epoch'::timestamptz + u.lo * interval '1 microsecond',
	'epoch'::timestamptz + u.hi * interval '1 microsecond', 'epoch'::timestamptz + u.w * interval '1 microsecond',
	'epoch'::timestamptz + u.c * interval '1 microsecond', u.s
FROM unnest($3::text[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[]) AS v (t, p, f, n, e, r, b)
JOIN unnest($3::text[], $4::int[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::text[])
	AS x (t, p, l, h, y, c, s) USING (t, p)
CROSS JOIN LATERAL (SELECT v.t, v.p, v.f, v.n, v.e, v.r, v.b, nullif(x.l, -1) AS lo, nullif(x.h, -1) AS hi, nullif(x.y, -1) AS w,
	nullif(x.c, -1) AS c, nullif(x.s, '')::bigint[] AS s) AS u
ON CONFLICT (group_name, topic, partition, first_offset) DO UPDATE SET next_offset = EXCLUDED.next_offset,
	target = EXCLUDED.target, state = 'recorded', epoch = EXCLUDED.epoch, records = EXCLUDED.records, bytes = EXCLUDED.bytes,
	min_time = EXCLUDED.min_time, max_time = EXCLUDED.max_time, watermark = EXCLUDED.watermark,
	ceiling = EXCLUDED.ceiling, letters = CASE WHEN c.published_at IS NULL THEN EXCLUDED.letters ELSE c.letters END,
	code = NULL, answer = NULL, recorded_at = clock_timestamp(), folded_at = NULL
