/* cli/adopt_layout.c -- the outbox tables of other systems: one row of a table each, by the names of their
 * columns, and what becomes of each column. Refuses to guess: a table that fits two layouts, or none, is told
 * about. */
#include "cli/adopt.h"
#include "lib/rights.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* A column ("n.id") is taken by its type; what is more than a column is of the type given. */
struct source {
	const char *sql, *type;
};

struct adopt_layout {
	const char *name, *of;
	struct source from[ADOPT_FIELDS];
	const char *trace; /* a column that is used when it is there */
	const char *extra; /* further headers: arguments of jsonb_build_object */
	struct adopt_flag flags[ADOPT_FLAGS];
	const char *pending, *order;
	const char *never, *because; /* a column of a variant that cannot be adopted */
	struct adopt_note notes[9];  /* of columns first, then in general: "(order)" */
};

#define POLLED  "the trigger sets it in new rows: the old publisher, if it polls, finds them done"
#define CLAIM   "the old publisher's own: the relay claims no rows, its position is in Kafka"
#define CREATED "header outbox-created-at has the time of the insert"

/* clang-format off */
static const struct adopt_layout layouts[] = {
{ .name = "debezium", .of = "Debezium's EventRouter",
  .from = { [ADOPT_ID] = { "n.id" }, [ADOPT_ROUTE] = { "n.aggregatetype" }, [ADOPT_KEY] = { "n.aggregateid" },
	[ADOPT_TYPE] = { "n.type" }, [ADOPT_PAYLOAD] = { "n.payload" } },
  .trace = "n.tracingspancontext",
  .notes = {
	{ "timestamp", ADOPT_DIFFERS, CREATED },
	{ "(rows that are there)", ADOPT_TO_DO,
	  "nothing in the table says what Debezium has published: let it catch up, then stop it" },
	{ "(insert, then delete)", ADOPT_KEPT, "a service that deletes its row at once may go on doing so" },
	{ "(connector's options)", ADOPT_TO_DO, "topics, headers and key that the connector names: postrider import-debezium" } } },

{ .name = "openoutbox", .of = "Open Outbox",
  .from = { [ADOPT_ID] = { "n.event_id" }, [ADOPT_ROUTE] = { "n.event_type" },
	[ADOPT_KEY] = { "coalesce(nullif(n.partition_key, ''), n.event_id::text)", "text" },
	[ADOPT_TYPE] = { "n.event_type" }, [ADOPT_PAYLOAD] = { "n.payload" }, [ADOPT_HEADERS] = { "n.headers" },
	[ADOPT_TOPIC] = { "n.event_type" }, [ADOPT_AT] = { "n.available_at" } },
  .trace = "n.headers ->> 'traceparent'",
  .extra = "'X-Event-ID', n.event_id::text",
  .flags = { { "status", "'DELIVERED'" }, { "delivered_at", "now()" } },
  .pending = "n.status IN ('PENDING', 'DELIVERING')", .order = "n.available_at, n.created_at",
  .notes = {
	{ "attempts", ADOPT_NEEDLESS, CLAIM }, { "last_error", ADOPT_NEEDLESS, "postrider parked list has the reasons" },
	{ "locked_by", ADOPT_NEEDLESS, CLAIM }, { "locked_at", ADOPT_NEEDLESS, CLAIM },
	{ "created_at", ADOPT_DIFFERS, CREATED }, { "updated_at", ADOPT_NEEDLESS, CLAIM },
	{ "(partition)", ADOPT_DIFFERS, "murmur2 of partition_key, not FNV-1a; an event without one has its id as key" },
	{ "(DEAD)", ADOPT_TO_DO, "rows that were given up stay where they are: set them PENDING, and they are taken" } } },

{ .name = "eventuate", .of = "Eventuate Tram's message",
  .from = { [ADOPT_ID] = { "coalesce(n.headers::jsonb ->> 'ID', n.id)", "text" }, [ADOPT_ROUTE] = { "n.destination" },
	[ADOPT_KEY] = { "coalesce(nullif(n.headers::jsonb ->> 'PARTITION_ID', ''), n.headers::jsonb ->> 'ID', n.id)", "text" },
	[ADOPT_TYPE] = { "coalesce(n.headers::jsonb ->> 'event-type', n.headers::jsonb ->> 'command_type', "
		"n.headers::jsonb ->> 'reply_type', n.destination)", "text" },
	[ADOPT_PAYLOAD] = { "jsonb_build_object('payload', n.payload::text, 'headers', n.headers::jsonb)", "jsonb" },
	[ADOPT_TOPIC] = { "n.destination" } },
  .flags = { { "published", "1" } }, .pending = "n.published = 0", .order = "n.id",
  .never = "dbid", .because = "the reader gives the messages their ids, the rows have none",
  .notes = {
	{ "message_partition", ADOPT_NEEDLESS, "shares out the rows among Eventuate's readers" },
	{ "creation_time", ADOPT_DIFFERS, CREATED },
	{ "(value)", ADOPT_KEPT, "{\"payload\", \"headers\"}, as Eventuate's consumers read it; keys in jsonb's order" },
	{ "(rows that are there)", ADOPT_TO_DO,
	  "Eventuate's WAL reader leaves published at 0: give --backfill only if its polling reader was in use" } } },

{ .name = "tomorrow", .of = "tomorrow-one's outbox_kafka",
  .from = { [ADOPT_ID] = { "n.id" }, [ADOPT_ROUTE] = { "n.topic" },
	[ADOPT_KEY] = { "coalesce(nullif(n.key, ''), n.id::text)", "text" },
	[ADOPT_TYPE] = { "coalesce(nullif(n.headers ->> 'x-value-type', ''), n.topic)", "text" },
	[ADOPT_PAYLOAD] = { "n.value" }, [ADOPT_HEADERS] = { "n.headers" }, [ADOPT_TOPIC] = { "n.topic" } },
  .trace = "n.headers ->> 'traceparent'",
  .flags = { { "processed", "timezone('UTC', now())" } }, .pending = "n.processed IS NULL", .order = "n.id",
  .notes = {
	{ "created", ADOPT_DIFFERS, CREATED },
	{ "(x-sequence)", ADOPT_IMPOSSIBLE, "eight bytes in a header: headers are text. Header outbox-seq has our number; "
	  "gaps in it mean nothing, as in the table's sequence" },
	{ "(x-source)", ADOPT_TO_DO, "it is the publisher's setting, not the row's: let the service put it into headers" },
	{ "(no key)", ADOPT_DIFFERS, "an event without a key has its id as key" },
	{ "(outbox_kafka_lock)", ADOPT_NEEDLESS, CLAIM } } },

{ .name = "pgtrx", .of = "pg-transactional-outbox",
  .from = { [ADOPT_ID] = { "n.id" }, [ADOPT_ROUTE] = { "n.aggregate_type" }, [ADOPT_KEY] = { "n.aggregate_id" },
	[ADOPT_TYPE] = { "n.message_type" }, [ADOPT_PAYLOAD] = { "n.payload" }, [ADOPT_HEADERS] = { "n.metadata" },
	[ADOPT_AT] = { "n.locked_until" } },
  .trace = "n.metadata ->> 'traceparent'",
  .flags = { { "processed_at", "now()" } },
  .pending = "n.processed_at IS NULL AND n.abandoned_at IS NULL", .order = "n.created_at",
  .notes = {
	{ "segment", ADOPT_DIFFERS, "order is kept per aggregate_id; --map segment=aggregateid keeps it per segment" },
	{ "concurrency", ADOPT_NEEDLESS, "order is always kept per key" },
	{ "created_at", ADOPT_DIFFERS, CREATED }, { "abandoned_at", ADOPT_NEEDLESS, "postrider parked list has what failed" },
	{ "started_attempts", ADOPT_NEEDLESS, CLAIM }, { "finished_attempts", ADOPT_NEEDLESS, CLAIM },
	{ "(topic)", ADOPT_DIFFERS, "the handler chose it; here the relay's route.topic with aggregate_type does, or --map" } } },
{ .name = NULL } };
/* clang-format on */

const char *adopt_layout_name(const struct adopt_layout *l)
{
	return l->name;
}

const struct adopt_note *adopt_layout_notes(const struct adopt_layout *l)
{
	return l->notes;
}

const struct adopt_layout *adopt_layout_named(const char *name)
{
	for (const struct adopt_layout *l = layouts; l->name; l++)
		if (strcmp(l->name, name) == 0)
			return l;
	return NULL;
}

static struct adopt_column *column_of(const struct adopt_table *t, const char *name, size_t n)
{
	for (int i = 0; i < t->n; i++)
		if (strlen(t->v[i].name) == n && memcmp(t->v[i].name, name, n) == 0)
			return &t->v[i];
	return NULL;
}

/* The next "n.column" of sql: its name, and its length; NULL behind the last. */
static const char *next_column(const char *sql, size_t *ret_n)
{
	for (const char *p = sql; (p = strstr(p, "n.")); p++) {
		if (p > sql && (isalnum((unsigned char)p[-1]) || p[-1] == '_'))
			continue;
		p += 2;
		*ret_n = strspn(p, "abcdefghijklmnopqrstuvwxyz_0123456789");
		return p;
	}
	return NULL;
}

/* The first column of sql that the table does not have. */
static const char *missing_of(const struct adopt_table *t, const char *sql, size_t *ret_n)
{
	while (sql && (sql = next_column(sql, ret_n))) {
		if (!column_of(t, sql, *ret_n))
			return sql;
		sql += *ret_n;
	}
	return NULL;
}

static const char *lacks(const struct adopt_layout *l, const struct adopt_table *t, size_t *ret_n)
{
	const char *name = NULL;

	for (int i = 0; i < ADOPT_FIELDS && !name; i++)
		name = missing_of(t, l->from[i].sql, ret_n);
	return name ? name : missing_of(t, l->pending, ret_n);
}

/* " debezium lacks aggregatetype," and so on. */
static void name_lacks(const struct adopt_table *t, struct pr_buf *b)
{
	const char *name;
	size_t n;

	for (const struct adopt_layout *l = layouts; l->name; l++)
		if ((name = lacks(l, t, &n)))
			pr_buf_printf(b, "%s%s lacks %.*s", b->len ? ", " : "", l->name, (int)n, name);
}

const struct adopt_layout *adopt_layout_recognise(
	const struct adopt_table *t, char *why, size_t size, struct pr_err *err)
{
	const struct adopt_layout *found = NULL, *second = NULL;
	struct pr_buf b = { 0 };
	size_t n;

	for (const struct adopt_layout *l = layouts; l->name; l++)
		if (!lacks(l, t, &n)) {
			second = found ? l : NULL;
			found = found ? found : l;
		}
	if (found && strcasestr(t->table, "inbox")) {
		(void)pr_fail(err, PR_REJECT, "%s.%s has the columns of %s, and the name of an inbox",
			t->schema, t->table, found->of);
		(void)pr_hint(err, "an inbox has the same columns; if it is none: --layout %s", found->name);
		err->exit = PR_EX_REFUSED;
		return NULL;
	}
	if (found && !second) {
		(void)snprintf(why, size, "it has every column of %s", found->of);
		return found;
	}
	if (second) {
		(void)pr_fail(err, PR_REJECT, "%s.%s fits two layouts, %s and %s", t->schema, t->table,
			found->name, second->name);
		(void)pr_hint(err, "say which one it is: --layout %s", found->name);
	} else {
		name_lacks(t, &b);
		(void)pr_fail(err, PR_REJECT, "%s.%s fits no layout: %s", t->schema, t->table, b.s);
		(void)pr_hint(err, "name the nearest, and your own columns: --layout debezium --map "
				   "your_column=aggregatetype");
		pr_buf_free(&b);
	}
	err->exit = PR_EX_REFUSED;
	return NULL;
}

/* ---------------------------------------------------------------- types */

/* A text that is a UUID (Eventuate's, too: 16-16) stays one; any other id becomes one, always the same. */
static char *as_id(const struct adopt_table *t, const char *x, const char *type)
{
	struct pr_buf space = { 0 };
	char *out;

	if (strcmp(type, "uuid") == 0)
		return pr_strdup(x);
	adopt_put_literal(&space, t->space);
	out = pr_asprintf("CASE WHEN %s::text ~* "
			  "'^([0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{16}-[0-9a-f]{16})$'"
			  "\n\t\t\tTHEN %s::text::uuid ELSE md5(%s || %s::text)::uuid END",
		x, x, space.s, x);
	pr_buf_free(&space);
	return out;
}

static char *as_field(const struct adopt_table *t, enum adopt_field f, const char *x, const char *type)
{
	static const char *const casts[ADOPT_FIELDS] = { [ADOPT_PAYLOAD] = "jsonb",
		[ADOPT_PARTITION] = "integer",
		[ADOPT_VERSION] = "bigint",
		[ADOPT_AT] = "timestamptz" };
	const char *want = casts[f] ? casts[f] : "text";
	char *json, *out;

	if (f == ADOPT_ID)
		return as_id(t, x, type);
	if (f == ADOPT_HEADERS) {
		json = pr_asprintf("%s%s", x, strcmp(type, "jsonb") == 0 ? "" : "::jsonb");
		out = adopt_headers(json);
		free(json);
		return out;
	}
	if (f == ADOPT_BYTES)
		return strcmp(type, "bytea") == 0 ? pr_strdup(x)
						  : pr_asprintf("convert_to(%s::text, 'UTF8')", x);
	if (strcmp(type, want) == 0 || (f == ADOPT_AT && strcmp(type, "timestamp with time zone") == 0))
		return pr_strdup(x);
	return pr_asprintf("%s::%s", x, want);
}

/* A payload that is not jsonb goes byte for byte. */
static void set(
	const struct adopt_table *t, struct adopt *a, enum adopt_field f, const char *x, const char *type)
{
	if (f == ADOPT_PAYLOAD && strcmp(type, "jsonb") != 0)
		f = ADOPT_BYTES;
	free(a->expr[f]);
	a->expr[f] = as_field(t, f, x, type);
}

/* ---------------------------------------------------------------- --map */

static int bad_map(struct pr_err *err, const struct adopt_map *m)
{
	(void)cli_usage(err, "--map %s=%s: there is no such field", m->column, m->as);
	return pr_hint(err,
		"id, aggregatetype, aggregateid, type, payload, json (a text that is JSON), headers, topic, "
		"partition, aggregateversion, tracingspancontext, at, or header:NAME");
}

static int field_of(const char *as)
{
	for (int i = 0; i < ADOPT_FIELDS; i++)
		if (strcmp(adopt_fields[i], as) == 0)
			return i;
	return strcmp(as, "json") == 0 ? ADOPT_PAYLOAD : -1;
}

static void say(struct adopt_column *c, enum adopt_fate fate, const char *why)
{
	c->fate = fate;
	(void)snprintf(c->why, sizeof(c->why), "%s", why);
}

static int map_one(const struct adopt_map *m, struct adopt_table *t, struct adopt *a, struct pr_buf *headers,
	struct pr_err *err)
{
	struct adopt_column *c = column_of(t, m->column, strlen(m->column));
	int f = field_of(m->as), is_header = strncmp(m->as, "header:", 7) == 0;
	char quoted[140], *x;

	if (!c)
		return cli_usage(
			err, "--map %s=%s: %s.%s has no such column", m->column, m->as, t->schema, t->table);
	if (is_header && adopt_is_reserved(m->as + 7))
		return cli_usage(
			err, "--map %s=%s: the relay writes this header by itself", m->column, m->as);
	if ((f < 0 || f == ADOPT_BYTES) && (!is_header || !m->as[7]))
		return bad_map(err, m);
	x = pr_asprintf("n.%s", pr_quote_ident(c->name, strlen(c->name), quoted, sizeof(quoted)));
	if (is_header) {
		pr_buf_puts(headers, headers->len ? ", " : "");
		adopt_put_literal(headers, m->as + 7);
		pr_buf_printf(headers, ", %s::text", x);
	} else if (f == ADOPT_PAYLOAD) {
		free(a->expr[ADOPT_BYTES]);
		free(a->expr[ADOPT_PAYLOAD]);
		a->expr[ADOPT_BYTES] = a->expr[ADOPT_PAYLOAD] = NULL;
		if (strcmp(m->as, "json") == 0)
			a->expr[f] = as_field(t, ADOPT_PAYLOAD, x, c->type);
		else
			set(t, a, ADOPT_PAYLOAD, x, c->type);
	} else {
		set(t, a, (enum adopt_field)f, x, c->type);
	}
	say(c, ADOPT_KEPT, m->as);
	free(x);
	return 0;
}

static int is_mapped(const struct adopt_map *maps, int n, int field)
{
	for (int i = 0; i < n; i++)
		if (field_of(maps[i].as) == field)
			return 1;
	return 0;
}

/* ---------------------------------------------------------------- columns */

static const char *type_of(const struct adopt_table *t, const struct source *s)
{
	const struct adopt_column *c = s->type ? NULL : column_of(t, s->sql + 2, strlen(s->sql) - 2);

	return c ? c->type : s->type ? s->type : "text";
}

static int uses(const char *sql, const char *name)
{
	size_t n, w = strlen(name);

	while (sql && (sql = next_column(sql, &n))) {
		if (n == w && memcmp(sql, name, n) == 0)
			return 1;
		sql += n;
	}
	return 0;
}

static void judge(const struct adopt_layout *l, const struct adopt *a, struct adopt_column *c)
{
	if (*c->why)
		return;
	for (int i = 0; i < ADOPT_FLAGS; i++)
		if (a->flags[i].column && strcmp(a->flags[i].column, c->name) == 0) {
			say(c, ADOPT_DIFFERS, POLLED);
			return;
		}
	for (const struct adopt_note *n = l->notes; n->what; n++)
		if (strcmp(n->what, c->name) == 0) {
			say(c, n->fate, n->why);
			return;
		}
	for (int i = 0; i < ADOPT_FIELDS; i++)
		if (a->expr[i] && uses(a->expr[i], c->name)) {
			say(c, ADOPT_KEPT, adopt_fields[i]);
			return;
		}
	(void)snprintf(c->why, sizeof(c->why),
		"not carried over: --map %.60s=header:NAME puts it into a header", c->name);
	c->fate = ADOPT_TO_DO;
}

static int columns_there(const struct adopt_layout *l, const struct adopt_table *t,
	const struct adopt_map *maps, int n, struct pr_err *err)
{
	const char *name;
	size_t len;

	if (l->never && column_of(t, l->never, strlen(l->never))) {
		(void)pr_fail(err, PR_REJECT, "%s.%s has the column %s: %s", t->schema, t->table, l->never,
			l->because);
		err->exit = PR_EX_REFUSED;
		return pr_hint(err, "let the service make the ids, as Eventuate does by default");
	}
	for (int i = 0; i < ADOPT_FIELDS; i++) {
		if (is_mapped(maps, n, i) || !(name = missing_of(t, l->from[i].sql, &len)))
			continue;
		(void)pr_fail(err, PR_REJECT, "%s.%s has no column %.*s, which layout %s has", t->schema,
			t->table, (int)len, name, l->name);
		err->exit = PR_EX_REFUSED;
		return pr_hint(err, "say which column has it: --map your_column=%s", adopt_fields[i]);
	}
	return 0;
}

static void add_headers(struct adopt *a, const char *more)
{
	char *was = a->expr[ADOPT_HEADERS];

	a->expr[ADOPT_HEADERS] = pr_asprintf(
		"%s%sjsonb_strip_nulls(jsonb_build_object(%s))", was ? was : "", was ? " || " : "", more);
	free(was);
}

int adopt_layout_apply(const struct adopt_layout *l, struct adopt_table *t, const struct adopt_map *maps,
	int n, struct adopt *a, struct pr_err *err)
{
	struct pr_buf headers = { 0 };
	size_t len;
	int rc = columns_there(l, t, maps, n, err);

	a->schema = pr_strdup(t->schema);
	a->table = pr_strdup(t->table);
	for (int i = 0; i < ADOPT_FIELDS && rc == 0; i++)
		if (l->from[i].sql && !is_mapped(maps, n, i))
			set(t, a, (enum adopt_field)i, l->from[i].sql, type_of(t, &l->from[i]));
	if (rc == 0 && l->trace && !missing_of(t, l->trace, &len))
		set(t, a, ADOPT_TRACE, l->trace, "text");
	if (l->extra && !missing_of(t, l->extra, &len))
		pr_buf_puts(&headers, l->extra);
	for (int i = 0; i < n && rc == 0; i++)
		rc = map_one(&maps[i], t, a, &headers, err);
	if (rc == 0 && headers.len)
		add_headers(a, headers.s);
	pr_buf_free(&headers);
	if (rc < 0)
		return -1;
	for (int i = 0; i < ADOPT_FLAGS; i++)
		if (l->flags[i].column && column_of(t, l->flags[i].column, strlen(l->flags[i].column)))
			a->flags[i] = l->flags[i];
	if (l->pending && a->flags[0].column && !missing_of(t, l->pending, &len)) {
		a->pending = l->pending;
		a->order = missing_of(t, l->order, &len) ? NULL : l->order;
	}
	for (int i = 0; i < t->n; i++)
		judge(l, a, &t->v[i]);
	return 0;
}
