-- Published files of an hour that no manifest has listed yet are by the one that is written now; how many.
WITH fresh AS (
	UPDATE sink.file AS f SET listed = true FROM sink.cut AS c
	WHERE f.group_name = $1 AND f.topic = $2 AND f.hour = 'epoch'::timestamptz + $3::bigint * interval '1 microsecond'
		AND NOT f.listed AND c.group_name = f.group_name AND c.topic = f.topic AND c.partition = f.partition
		AND c.first_offset = f.cut_first AND c.state = 'published'
	RETURNING f.path)
SELECT count(*) FROM fresh
