UPDATE inbox.position AS o SET next_offset = greatest(o.next_offset, u.n)
FROM unnest($2::text[], $3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[]) AS u (t, p, l, e, x, n)
WHERE o."group" = $1 AND o.topic = u.t AND o.partition = u.p AND o.lane = u.l
