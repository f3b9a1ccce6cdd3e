-- Definitions that were registered, with how many instances are alive on each version.
SELECT d.name, d.version, d.style, pg_catalog.encode(d.hash, 'hex') AS hash, d.registered_at, coalesce(a.n, 0) AS alive
FROM saga.definition AS d LEFT JOIN (
	SELECT i.name, i.version, pg_catalog.count(*) AS n FROM saga.instance AS i WHERE i.slot = 0 GROUP BY i.name, i.version
) AS a ON a.name = d.name AND a.version = d.version
ORDER BY d.name, d.version
