-- Makes one row of a partition's published cuts that touch and were published longer ago than $4 microseconds; those of
-- files when their files are forgotten ($6). Never the newest cut, nor one behind the position. Returns how many rows that
-- was less, at most $5.
WITH old AS MATERIALIZED (
	SELECT c.*, coalesce(c.first_offset = lag(c.next_offset) OVER (ORDER BY c.first_offset), false) AS goes_on FROM sink.cut AS c
	WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3::int AND c.state = 'published'
		AND c.published_at < clock_timestamp() - $4::bigint * interval '1 microsecond'
		AND c.next_offset <= (SELECT min(p.next_offset) FROM inbox.position AS p
			WHERE p."group" = $1 AND p.topic = $2 AND p.partition = $3::int)
		AND c.first_offset < (SELECT max(n.first_offset) FROM sink.cut AS n WHERE n.group_name = $1 AND n.topic = $2
			AND n.partition = $3::int AND n.state = 'published')
		AND (c.folded_at IS NOT NULL OR NOT $6::boolean)
), runs AS MATERIALIZED (
	SELECT o.*, count(*) FILTER (WHERE NOT o.goes_on) OVER w AS run, count(*) FILTER (WHERE o.goes_on) OVER w AS n
	FROM old AS o WINDOW w AS (ORDER BY o.first_offset)
), one AS MATERIALIZED (
	SELECT min(r.first_offset) AS first_offset, max(r.next_offset) AS next_offset, sum(r.records) AS records,
		sum(r.bytes) AS bytes, min(r.min_time) AS min_time, max(r.max_time) AS max_time, max(r.watermark) AS watermark,
		max(r.ceiling) AS ceiling, max(r.epoch) AS epoch, max(r.published_at) AS published_at
	FROM runs AS r WHERE r.n <= $5::bigint GROUP BY r.run HAVING count(*) > 1
), gone AS (
	DELETE FROM sink.cut AS c USING one AS o
	WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3::int AND c.first_offset > o.first_offset
		AND c.first_offset < o.next_offset
	RETURNING c.first_offset
), kept AS (
	UPDATE sink.cut AS c SET next_offset = o.next_offset, records = o.records, bytes = o.bytes, min_time = o.min_time,
		max_time = o.max_time, watermark = o.watermark, epoch = o.epoch, published_at = o.published_at,
		folded_at = clock_timestamp(), answer = NULL, letters = NULL, ceiling = o.ceiling
	FROM one AS o WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3::int AND c.first_offset = o.first_offset)
SELECT count(*) FROM gone
