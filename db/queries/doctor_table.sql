-- Whether outbox.event is as the migrations made it: columns and what fills them, the sequence, the triggers of the table and
-- of each range. $1: how commands name the target.
WITH wanted AS (
	SELECT * FROM (VALUES ('xid', 'xid8', 'pg_current_xact_id'), ('seq', 'bigint', 'nextval'), ('id', 'uuid', 'uuid7'), ('aggregatetype', 'text', ''),
		('aggregateid', 'text', ''), ('type', 'text', ''), ('payload', 'jsonb', ''), ('payload_bytes', 'bytea', ''), ('headers', 'jsonb', ''),
		('topic', 'text', ''), ('partition', 'integer', ''), ('aggregateversion', 'bigint', ''), ('tracingspancontext', 'text', ''),
		('created_at', 'timestamp with time zone', 'clock_timestamp')) AS w (name, type, filler)
), found AS (
	SELECT w.*, format_type(a.atttypid, a.atttypmod) AS was, coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS filled
	FROM wanted AS w
	LEFT JOIN pg_attribute AS a ON a.attrelid = 'outbox.event'::regclass AND a.attname = w.name AND NOT a.attisdropped
	LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
), tables AS (
	SELECT c.oid, c.relname, c.relkind FROM pg_class AS c
	WHERE c.oid = 'outbox.event'::regclass OR c.oid IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'outbox.event'::regclass)
), named AS (
	SELECT t.oid, t.relname, n.name, n.timing, g.tgenabled FROM tables AS t
	CROSS JOIN (VALUES ('accepted', 'BEFORE INSERT ON outbox.event FOR EACH ROW EXECUTE FUNCTION outbox.accept_event()'),
		('append_only', 'BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.%I FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change()')) AS n (name, timing)
	LEFT JOIN pg_trigger AS g ON g.tgrelid = t.oid AND g.tgname = n.name
)
SELECT 'fail', CASE WHEN i.was IS NULL THEN format('outbox.event has no column %s', i.name)
		WHEN i.was <> i.type THEN format('column %s of outbox.event is %s, not %s', i.name, i.was, i.type)
		ELSE format('column %s of outbox.event is not filled by %s: the relay''s order stands on it', i.name, i.filler) END,
	'compare the table with postrider init --print, and mend by hand what differs'
FROM found AS i WHERE i.was IS DISTINCT FROM i.type OR position(i.filler IN i.filled) = 0
UNION ALL
SELECT 'fail', 'the sequence outbox.event_seq is cached or turns round: events would be read in a wrong order',
	'ALTER SEQUENCE outbox.event_seq CACHE 1 NO CYCLE;'
FROM pg_sequence AS s WHERE s.seqrelid = 'outbox.event_seq'::regclass AND (s.seqcache <> 1 OR s.seqcycle OR s.seqincrement < 1)
UNION ALL
SELECT 'fail', CASE n.name WHEN 'accepted' THEN format('the trigger accepted of outbox.%s %s: rows that no record can be made of get in',
			n.relname, CASE WHEN n.tgenabled IS NULL THEN 'is missing' ELSE 'is off' END)
		ELSE format('the trigger append_only of outbox.%s %s: events could be changed, or deleted in the transaction that wrote them (as for Debezium), '
			'and would be lost', n.relname, CASE WHEN n.tgenabled IS NULL THEN 'is missing' ELSE 'is off' END) END,
	CASE WHEN n.tgenabled IS NULL THEN format('CREATE TRIGGER %s ' || n.timing || ';', n.name, n.relname)
		ELSE format('ALTER TABLE outbox.%I ENABLE TRIGGER %I;', n.relname, n.name) END
FROM named AS n WHERE (n.tgenabled IS NULL OR n.tgenabled NOT IN ('O', 'A'))
	AND NOT (n.name = 'accepted' AND n.tgenabled IS NULL AND n.relname <> 'event')
UNION ALL
SELECT 'warn', format('the trigger %s of outbox.%s is not ours: what it does to events nobody here knows', g.tgname, t.relname),
	format('DROP TRIGGER %I ON outbox.%I;', g.tgname, t.relname)
FROM tables AS t JOIN pg_trigger AS g ON g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgparentid = 0
WHERE g.tgname NOT IN ('accepted', 'append_only')
