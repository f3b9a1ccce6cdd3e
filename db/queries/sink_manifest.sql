-- The files of an hour; $4: the manifest as it is, when the ledger has not all of them any more.
SELECT f.path, f.partition, f.first_offset, f.last_offset, f.records, f.bytes, encode(f.sha256, 'hex'),
	coalesce((extract(epoch FROM f.min_time) * 1000000)::bigint, -1),
	coalesce((extract(epoch FROM f.max_time) * 1000000)::bigint, -1)
FROM sink.file AS f JOIN sink.cut AS c ON c.group_name = f.group_name AND c.topic = f.topic AND c.partition = f.partition
	AND c.first_offset = f.cut_first
WHERE f.group_name = $1 AND f.topic = $2 AND f.hour = 'epoch'::timestamptz + $3::bigint * interval '1 microsecond'
	AND c.state = 'published'
UNION ALL
SELECT m.path, m.partition, m.first_offset, m.last_offset, m.records, m.bytes, m.sha256,
	coalesce((extract(epoch FROM m.min_time) * 1000000)::bigint, -1),
	coalesce((extract(epoch FROM m.max_time) * 1000000)::bigint, -1)
FROM jsonb_to_recordset(coalesce($4::jsonb -> 'files', '[]')) AS m (path text, partition int, first_offset bigint,
	last_offset bigint, records bigint, bytes bigint, sha256 text, min_time timestamptz, max_time timestamptz)
WHERE NOT EXISTS (SELECT FROM sink.file AS f WHERE f.group_name = $1 AND f.path = m.path)
ORDER BY 2, 3, 1
