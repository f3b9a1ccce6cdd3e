-- Forgets the files of a partition's cuts that were published longer ago than $4 microseconds, and whose hours all are as
-- old, listed in their manifests and complete by them ($6 microseconds after their end; -1: no manifests are kept). Never
-- of the newest cut, nor behind the position. Returns how many cuts, at most $5.
WITH old AS MATERIALIZED (
	SELECT c.first_offset FROM sink.cut AS c
	WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3::int AND c.state = 'published'
		AND c.published_at < clock_timestamp() - $4::bigint * interval '1 microsecond'
		AND c.next_offset <= (SELECT min(p.next_offset) FROM inbox.position AS p
			WHERE p."group" = $1 AND p.topic = $2 AND p.partition = $3::int)
		AND c.first_offset < (SELECT max(n.first_offset) FROM sink.cut AS n WHERE n.group_name = $1 AND n.topic = $2
			AND n.partition = $3::int AND n.state = 'published')
		AND c.folded_at IS NULL AND NOT EXISTS (SELECT FROM sink.file AS f
			WHERE f.group_name = $1 AND f.topic = $2 AND f.partition = $3::int AND f.cut_first = c.first_offset
			AND (f.hour >= clock_timestamp() - interval '1 hour' - $4::bigint * interval '1 microsecond'
				OR $6::bigint >= 0 AND (NOT f.listed OR f.hour + interval '1 hour' + $6::bigint * interval '1 microsecond'
					> coalesce((SELECT w.watermark FROM sink.watermark AS w
						WHERE w.group_name = $1 AND w.topic = $2 AND w.partition = -1), '-infinity'))))
	ORDER BY c.first_offset LIMIT $5::bigint
), gone AS (
	DELETE FROM sink.file AS f USING old AS o
	WHERE f.group_name = $1 AND f.topic = $2 AND f.partition = $3::int AND f.cut_first = o.first_offset
	RETURNING f.hour, f.records, f.bytes
), noted AS (
	INSERT INTO sink.pruned AS p (group_name, topic, hour, files, records, bytes)
	SELECT $1, $2, g.hour, count(*), sum(g.records), sum(g.bytes) FROM gone AS g GROUP BY g.hour ORDER BY g.hour
	ON CONFLICT (group_name, topic, hour) DO UPDATE SET files = p.files + EXCLUDED.files,
		records = p.records + EXCLUDED.records, bytes = p.bytes + EXCLUDED.bytes
), marked AS (
	UPDATE sink.cut AS c SET folded_at = clock_timestamp(), answer = NULL, letters = NULL FROM old AS o
	WHERE c.group_name = $1 AND c.topic = $2 AND c.partition = $3::int AND c.first_offset = o.first_offset
	RETURNING c.first_offset)
SELECT count(*) FROM marked
