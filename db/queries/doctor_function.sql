-- Whether a consumer's SQL handler is there and may be called. $1: "schema.name", $2: the login as SQL takes it.
SELECT CASE WHEN n.found = 0 OR n.callable = 0 THEN 'fail' ELSE 'ok' END,
	CASE WHEN n.found = 0 THEN format('there is no function %s(inbox.message) or %s(inbox.message[])', $1::text, $1::text)
		WHEN n.callable = 0 THEN format('%s may not call %s', $2::text, n.name) ELSE format('%s is there', n.name) END,
	CASE WHEN n.found = 0 THEN 'create it, or correct handler.function'
		WHEN n.callable = 0 THEN format('GRANT EXECUTE ON FUNCTION %s TO %s; GRANT USAGE ON SCHEMA %s TO %s;', n.name, $2::text, n.schema, $2::text) END
FROM (SELECT count(*) AS found, count(*) FILTER (WHERE has_schema_privilege(p.pronamespace, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')) AS callable,
		min(p.oid::regprocedure::text) AS name, min(s.nspname) AS schema
	FROM pg_proc AS p JOIN pg_namespace AS s ON s.oid = p.pronamespace
	WHERE s.nspname || '.' || p.proname = replace($1::text, '"', '')
		AND (p.proargtypes::oid[])[0:0] <@ ARRAY['inbox.message'::regtype::oid, 'inbox.message[]'::regtype::oid] AND p.pronargs = 1) AS n
WHERE $2::text IS NOT NULL
