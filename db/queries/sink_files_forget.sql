DELETE FROM sink.file AS f USING unnest($2::text[], $3::int[], $4::bigint[]) AS u (t, p, f)
WHERE f.group_name = $1 AND f.topic = u.t AND f.partition = u.p AND f.cut_first = u.f
