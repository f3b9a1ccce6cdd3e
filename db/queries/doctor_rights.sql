-- What a role of ours must be able to do. $1: the role whose rights the login needs (outbox_relay, inbox_consumer, ...), $2: the
-- login's name as SQL takes it.
WITH login AS (
	SELECT $1::text AS role, $2::text AS name, r.rolsuper AS super FROM pg_roles AS r WHERE r.rolname = current_user
), named AS (
	SELECT w.role FROM unnest(ARRAY['outbox_writer', 'outbox_relay', 'outbox_operator', 'inbox_consumer', 'inbox_operator',
		'saga_engine', 'saga_participant', 'saga_operator']) AS w (role)
), object AS (
	-- What the migrations grant to outbox_relay and outbox_writer: a role of ours, the right, on what.
	SELECT * FROM (VALUES
		('outbox_relay', 'table', 'outbox.event', 'SELECT'), ('outbox_relay', 'table', 'outbox.scheduled', 'SELECT'),
		('outbox_relay', 'table', 'outbox.lag', 'SELECT'), ('outbox_relay', 'table', 'outbox.partitions', 'SELECT'),
		('outbox_relay', 'table', 'outbox.relay', 'SELECT, INSERT, UPDATE, DELETE'),
		('outbox_relay', 'table', 'outbox.parked', 'SELECT, INSERT, UPDATE, DELETE'),
		('outbox_relay', 'table', 'outbox.skipped', 'SELECT, INSERT, UPDATE, DELETE'),
		('outbox_relay', 'table', 'outbox.waiting', 'SELECT, INSERT, UPDATE, DELETE'),
		('outbox_relay', 'function', 'outbox.move_due(integer)', 'EXECUTE'),
		('outbox_relay', 'function', 'outbox.make_partitions(bigint,integer)', 'EXECUTE'),
		('outbox_relay', 'function', 'outbox.drop_partition(text,pg_snapshot,bigint,interval)', 'EXECUTE'),
		('outbox_writer', 'function', 'outbox.publish(text,text,text,jsonb,jsonb,text,uuid)', 'EXECUTE'),
		('outbox_writer', 'function', 'outbox.publish_bytes(text,text,text,bytea,jsonb,text,uuid)', 'EXECUTE'),
		('outbox_writer', 'function', 'outbox.publish_many(jsonb)', 'EXECUTE'),
		('outbox_writer', 'function', 'outbox.accept(text,text,text,jsonb,bytea,jsonb,text,integer,text)', 'EXECUTE'),
		('inbox_consumer', 'table', 'inbox.position', 'SELECT'), ('inbox_consumer', 'table', 'inbox.parked', 'SELECT'),
		('inbox_consumer', 'function', 'inbox.claim(text,text[],integer[],integer)', 'EXECUTE'),
		('inbox_consumer', 'function', 'inbox.advance(text,text[],integer[],integer[],bigint[],bigint[],bigint[])', 'EXECUTE'),
		('inbox_consumer', 'function', 'inbox.sort_out(text,uuid[],bigint[])', 'EXECUTE')
	) AS o (role, kind, name, rights) WHERE o.role IN ($1, 'outbox_writer') AND EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = o.role)
), named_object AS (
	-- By the catalogs: a name would be refused to one who may not use its schema.
	SELECT o.*, c.oid FROM object AS o JOIN (SELECT 'table' AS kind, s.nspname || '.' || t.relname AS name, t.oid
			FROM pg_class AS t JOIN pg_namespace AS s ON s.oid = t.relnamespace WHERE s.nspname IN ('outbox', 'inbox')
		UNION ALL SELECT 'function', p.oid::regprocedure::text, p.oid
			FROM pg_proc AS p JOIN pg_namespace AS s ON s.oid = p.pronamespace WHERE s.nspname IN ('outbox', 'inbox')) AS c
		ON c.kind = o.kind AND c.name = o.name
), held AS (
	-- All of the rights, one by one: "SELECT, INSERT" in one question asks for any.
	SELECT o.*, (SELECT bool_and(CASE o.kind WHEN 'table' THEN has_table_privilege(w.who, o.oid, x.one)
			ELSE has_function_privilege(w.who, o.oid, x.one) END)
		FROM regexp_split_to_table(o.rights, ', ') AS x (one)) AS yes, w.who
	FROM named_object AS o CROSS JOIN LATERAL (SELECT o.role::name UNION SELECT current_user FROM login AS l WHERE l.role = o.role) AS w (who)
)
SELECT 'fail', format('the role %s is missing', n.role), format('CREATE ROLE %s NOLOGIN; and its grants, from postrider init --print', n.role)
FROM named AS n WHERE NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = n.role)
UNION ALL
SELECT 'fail', format('%s may not use schema %s', l.name, s.nspname), format('GRANT %s TO %s;', l.role, l.name)
FROM login AS l JOIN pg_namespace AS s ON s.nspname IN ('outbox', split_part(l.role, '_', 1)) WHERE NOT has_schema_privilege(s.oid, 'USAGE')
UNION ALL
SELECT 'fail', format('%s lacks %s on %s', CASE WHEN h.who = h.role THEN 'the role ' || h.role ELSE (SELECT l.name FROM login AS l) END, h.rights, h.name),
	CASE WHEN h.who = h.role THEN format('GRANT %s ON %s %s TO %s;', h.rights, upper(h.kind), h.name, h.role)
		ELSE format('GRANT %s TO %s;', h.role, (SELECT l.name FROM login AS l)) END
FROM held AS h WHERE NOT h.yes
UNION ALL
SELECT 'warn', format('%s is a superuser: it may do more than the work needs', l.name),
	format('CREATE ROLE ... LOGIN; GRANT %s TO ...; and name it in the conninfo', l.role)
FROM login AS l WHERE l.super
UNION ALL
SELECT 'fail', format('the role outbox_writer may not INSERT into outbox.event.%s', c.name), format('GRANT INSERT (%I) ON outbox.event TO outbox_writer;', c.name)
FROM unnest(ARRAY['id', 'aggregatetype', 'aggregateid', 'type', 'payload', 'payload_bytes', 'headers', 'topic', 'partition', 'aggregateversion',
	'tracingspancontext', 'created_at']) AS c (name)
WHERE EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = 'outbox_writer')
	AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = 'outbox.event'::regclass AND a.attname = c.name AND NOT a.attisdropped)
	AND NOT has_column_privilege('outbox_writer', 'outbox.event', c.name, 'INSERT')
UNION ALL
SELECT 'warn', format('the role outbox_writer may %s outbox.event: events could be written with a false xid, or changed', x.one),
	format('REVOKE %s ON outbox.event FROM outbox_writer;', x.one)
FROM unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS x (one)
WHERE EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = 'outbox_writer' AND NOT r.rolsuper)
	AND has_table_privilege('outbox_writer', 'outbox.event', x.one)
