-- Rows whose transaction this server has not had yet: restored, replicated or written by hand. The relay does not see them until
-- the server's transactions get there. The oldest and the newest 100,000 rows are looked at.
SELECT 'fail', format('%s event%s, from number %s on, carr%s a transaction id that this server has not assigned: they are not published',
		n.rows, CASE n.rows WHEN 1 THEN '' ELSE 's' END, n.first, CASE n.rows WHEN 1 THEN 'ies' ELSE 'y' END),
	'after a restore: postrider position adopt ' || $1 || ' --from-seq ' || n.first
FROM (SELECT count(*) AS rows, min(e.seq) AS first
	FROM ((SELECT o.xid, o.seq FROM outbox.event AS o ORDER BY o.seq LIMIT 100000)
		UNION (SELECT o.xid, o.seq FROM outbox.event AS o ORDER BY o.seq DESC LIMIT 100000)) AS e
	WHERE e.xid >= pg_snapshot_xmax(pg_current_snapshot())) AS n
WHERE n.rows > 0
