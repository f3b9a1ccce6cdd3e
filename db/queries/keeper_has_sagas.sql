-- One row when saga.rotate is here, ours, and allowed to us: a schema of that name may be another framework's.
SELECT p.oid
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = 'saga' AND p.proname = 'rotate'
	AND pg_catalog.pg_get_function_identity_arguments(p.oid) = 'keep interval, who text'
	AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
