-- Hours that have published files which no manifest lists, of all the group.
SELECT DISTINCT f.topic, (extract(epoch FROM f.hour) * 1000000)::bigint
FROM sink.file AS f JOIN sink.cut AS c ON c.group_name = f.group_name AND c.topic = f.topic AND c.partition = f.partition
	AND c.first_offset = f.cut_first
WHERE f.group_name = $1 AND NOT f.listed AND c.state = 'published'
ORDER BY 2, 1 LIMIT 100
