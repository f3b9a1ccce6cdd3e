UPDATE sink.cut AS c SET state = 'published', published_at = clock_timestamp(), answer = nullif(u.a, '')
FROM unnest($2::text[], $3::int[], $4::bigint[], $5::text[]) AS u (t, p, f, a)
WHERE c.group_name = $1 AND c.topic = u.t AND c.partition = u.p AND c.first_offset = u.f
