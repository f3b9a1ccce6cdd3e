/* consumers/sink/table_sql.c -- the statements of a table target. Refuses names that are none, and tables
 * that cannot hold what is to be told apart: which record a row is of, or which row a record is about.
 *
 * append  one row for each record; an existing row of the same place (topic, partition, offset) stays, and
 * what else a table of theirs holds unique refuses a record that breaks it
 * upsert  one row for each key: of two records of one partition the one with the later offset wins, of
 * records of different partitions the later one by time; a tombstone deletes the row, after which an older
 * record of another partition would be its first one: unless it is kept, with deleted_at
 * scd2    one row for each record that is no tombstone, from when until when it held: [valid_from, valid_to).
 * The times of one key never go back: a record that says it is older than the one before it begins with it,
 * so that at each moment one row at most holds. A tombstone ends the row that holds, and begins none
 *
 * A batch is of one partition. Whatever of it was brought in before changes nothing. */
#include "consumers/sink/table_sql.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASIDE     "pg_temp.sink_row"
#define NAME_MOST 63

#define IS_TOMBSTONE "s.payload IS NULL AND s.payload_base64 IS NULL"

#define IS_VERSION "(r.payload IS NOT NULL OR r.payload_base64 IS NOT NULL)"

static const struct {
	const char *name, *quoted, *type;
	int must; /* NOT NULL */
	int key;  /* may be one of a key */
} columns[COLUMN_COUNT] = {
	[COLUMN_ID] = { "id", "id", "text", 0, 1 },
	[COLUMN_TYPE] = { "type", "type", "text", 1, 1 },
	[COLUMN_TOPIC] = { "topic", "topic", "text", 1, 1 },
	[COLUMN_PARTITION] = { "partition", "partition", "integer", 1, 1 },
	[COLUMN_OFFSET] = { "offset", "\"offset\"", "bigint", 1, 0 },
	[COLUMN_KEY] = { "key", "key", "text", 0, 1 },
	[COLUMN_TIME] = { "time", "\"time\"", "timestamp with time zone", 0, 0 },
	[COLUMN_HOUR] = { "hour", "hour", "timestamp with time zone", 0, 0 },
	[COLUMN_HEADERS] = { "headers", "headers", "jsonb", 1, 0 },
	[COLUMN_PAYLOAD] = { "payload", "payload", "jsonb", 0, 0 },
	[COLUMN_PAYLOAD_BASE64] = { "payload_base64", "payload_base64", "text", 0, 0 },
};

static const char *const word_of_mode[] = { "append", "upsert", "scd2" };

/* While it is being made. */
struct plan {
	enum pr_sink_mode mode;
	char *schema, *table; /* as they are */
	char *full;           /* both, quoted */
	int key[COLUMN_COUNT], keys;
	int by_place; /* append: its places are unique by an index */
	int keeps;    /* upsert: tombstones are rows */
	struct table_sql *t;
};

/* ---------------------------------------------------------------- names */

static int refuse(struct pr_err *err)
{
	if (err) {
		err->kind = PR_STOP;
		err->exit = PR_EX_CONFIG;
	}
	return -1;
}

static void put_quoted(struct pr_buf *b, const char *s, char quote)
{
	pr_buf_put(b, &quote, 1);
	for (; *s; s++) {
		if (*s == quote)
			pr_buf_put(b, s, 1);
		pr_buf_put(b, s, 1);
	}
	pr_buf_put(b, &quote, 1);
}

static int read_name(struct plan *p, const char *name, struct pr_err *err)
{
	const char *dot = name ? strchr(name, '.') : NULL;
	struct pr_buf full = { 0 };

	p->schema = dot ? pr_asprintf("%.*s", (int)(dot - name), name) : pr_strdup("public");
	p->table = pr_strdup(dot ? dot + 1 : name ? name : "");
	if (!*p->schema || !*p->table || strchr(p->table, '.') || strlen(p->schema) > NAME_MOST ||
		strlen(p->table) > NAME_MOST || !pr_utf8_text(p->schema, strlen(p->schema)) ||
		!pr_utf8_text(p->table, strlen(p->table))) {
		(void)pr_fail(err, PR_STOP, "handler.table.table is not the name of a table: \"%.200s\"",
			name ? name : "");
		(void)pr_hint(err, "write schema.table, without quotes, at most %d bytes each", NAME_MOST);
		return refuse(err);
	}
	put_quoted(&full, p->schema, '"');
	pr_buf_puts(&full, ".");
	put_quoted(&full, p->table, '"');
	p->full = full.s;
	return 0;
}

static int column_of(const char *name)
{
	for (int c = 0; c < COLUMN_COUNT; c++)
		if (columns[c].key && strcmp(columns[c].name, name) == 0)
			return c;
	return -1;
}

static int add_key(struct plan *p, const char *name, struct pr_err *err)
{
	int c = column_of(name);

	for (int i = 0; i < p->keys; i++)
		c = p->key[i] == c ? -1 : c;
	if (c < 0) {
		(void)pr_fail(err, PR_STOP, "handler.table.key cannot hold \"%.64s\"", name);
		(void)pr_hint(err, "it is one or more of topic, key, id, type, partition, once each");
		return refuse(err);
	}
	p->key[p->keys++] = c;
	return 0;
}

static int read_key(struct plan *p, const struct pr_strs *key, struct pr_err *err)
{
	if (p->mode == PR_SINK_APPEND)
		return 0;
	for (size_t i = 0; i < key->n; i++)
		if (add_key(p, key->v[i], err) < 0)
			return -1;
	if (p->keys == 0) {
		p->key[p->keys++] = COLUMN_TOPIC;
		p->key[p->keys++] = COLUMN_KEY;
	}
	for (int i = 0; i < p->keys; i++)
		p->t->key[p->key[i]] = 1;
	return 0;
}

static void plan_free(struct plan *p)
{
	free(p->schema);
	free(p->table);
	free(p->full);
}

/* ---------------------------------------------------------------- pieces */

/* "a.key, a.topic" of the key's columns. */
static void put_keys(struct pr_buf *b, const struct plan *p, const char *alias)
{
	for (int i = 0; i < p->keys; i++)
		pr_buf_printf(b, "%s%s%s", i ? ", " : "", alias, columns[p->key[i]].quoted);
}

static void put_same_key(struct pr_buf *b, const struct plan *p, const char *x, const char *y)
{
	for (int i = 0; i < p->keys; i++)
		pr_buf_printf(b, "%s%s.%s = %s.%s", i ? " AND " : "", x, columns[p->key[i]].quoted, y,
			columns[p->key[i]].quoted);
}

/* Columns that are written; alias: "s." for one. */
static void put_columns(struct pr_buf *b, const struct plan *p, const char *alias)
{
	const char *comma = "";

	for (int c = 0; c < COLUMN_COUNT; c++) {
		if (!p->t->has[c])
			continue;
		pr_buf_printf(b, "%s%s%s", comma, alias, columns[c].quoted);
		comma = ", ";
	}
}

static void put_shape(struct pr_buf *b, int strict)
{
	for (int c = 0; c < COLUMN_COUNT; c++)
		pr_buf_printf(b, "%s%s %s%s%s", c ? ", " : "", columns[c].quoted, columns[c].type,
			c == COLUMN_TOPIC ? " COLLATE \"C\"" : "",
			strict && columns[c].must ? " NOT NULL" : "");
}

/* Whether the row x is of an earlier record than y, as "x is older". */
static void put_older(struct pr_buf *b, const char *x, const char *y)
{
	pr_buf_printf(b,
		"CASE WHEN %s.topic = %s.topic AND %s.partition = %s.partition THEN %s.\"offset\" < "
		"%s.\"offset\""
		" ELSE coalesce(%s.\"time\" <= %s.\"time\", true) END",
		x, y, x, y, x, y, x, y);
}

/* ---------------------------------------------------------------- a table of ours */

static void put_create(struct pr_buf *b, const struct plan *p)
{
	pr_buf_printf(b, "CREATE TABLE IF NOT EXISTS %s (", p->full);
	put_shape(b, 1);
	if (p->mode == PR_SINK_UPSERT) {
		pr_buf_puts(b, p->keeps ? ", deleted_at timestamp with time zone" : "");
		pr_buf_puts(b, ", PRIMARY KEY (");
		put_keys(b, p, "");
		pr_buf_puts(b, "))");
		return;
	}
	if (p->mode == PR_SINK_SCD2)
		pr_buf_puts(b,
			", valid_from timestamp with time zone NOT NULL, valid_to timestamp with time zone,"
			" current boolean NOT NULL");
	pr_buf_puts(b, ", PRIMARY KEY (topic, partition, \"offset\"))");
	if (p->mode != PR_SINK_SCD2)
		return;
	/* Without a name it gets one of its own. */
	pr_buf_printf(b, "; CREATE UNIQUE INDEX ON %s (", p->full);
	put_keys(b, p, "");
	pr_buf_printf(b, ") WHERE current; CREATE INDEX ON %s (", p->full);
	put_keys(b, p, "");
	pr_buf_puts(b, ", valid_from, valid_to)");
}

static int is_there(struct pr_pg *pg, const char *sql, const char *arg, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql, 1, &arg, err);
	int there;

	if (!res)
		return -1;
	there = PQntuples(res) == 1 && !PQgetisnull(res, 0, 0);
	PQclear(res);
	return there;
}

static int make_schema(const struct plan *p, struct pr_pg *pg, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	int rc = 0;

	put_quoted(&b, p->schema, '"');
	switch (is_there(pg, "SELECT pg_catalog.to_regnamespace($1)", b.s, err)) {
	case 0:
		b.len = 0;
		pr_buf_puts(&b, "CREATE SCHEMA IF NOT EXISTS ");
		put_quoted(&b, p->schema, '"');
		rc = pr_pg_run(pg, b.s, 0, NULL, err);
		break;
	case -1:
		rc = -1;
		break;
	default:
		break;
	}
	pr_buf_free(&b);
	return rc;
}

/* A lock of its own: CREATE ... IF NOT EXISTS of several lanes at once fails, against what it says. */
static int create_in(struct plan *p, struct pr_pg *pg, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	int there, rc;

	if (pr_pg_run(pg, "SELECT pg_catalog.pg_advisory_xact_lock(77, pg_catalog.hashtext($1))", 1,
		    (const char *const[]){ p->full }, err) < 0 ||
		make_schema(p, pg, err) < 0)
		return -1;
	there = is_there(pg, "SELECT pg_catalog.to_regclass($1)", p->full, err);
	if (there != 0)
		return there < 0 ? -1 : 0;
	put_create(&b, p);
	rc = pr_pg_run(pg, b.s, 0, NULL, err);
	pr_buf_free(&b);
	return rc;
}

static int is_missing(const struct plan *p, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "there is no table %s", p->full);
	(void)pr_hint(err, "make it, or set handler.table.create");
	return refuse(err);
}

static int create(struct plan *p, struct pr_pg *pg, int may, struct pr_err *err)
{
	int there = is_there(pg, "SELECT pg_catalog.to_regclass($1)", p->full, err);

	if (there != 0)
		return there < 0 ? -1 : 0;
	if (!may)
		return is_missing(p, err);
	if (pr_pg_run(pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	if (create_in(p, pg, err) == 0)
		return pr_pg_run(pg, "COMMIT", 0, NULL, err);
	if (strcmp(err->code, "42501") == 0) {
		(void)pr_hint(err, "make the table by hand, or let the login make it");
		(void)refuse(err);
	}
	(void)pr_wrap(err, "cannot make %s", p->full);
	if (pr_pg_ok(pg) && pr_pg_run(pg, "ROLLBACK", 0, NULL, NULL) < 0)
		return -1;
	return -1;
}

/* ---------------------------------------------------------------- a table that is there */

static int lacks(const struct plan *p, const char *column, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "%s has no column \"%s\", which mode %s needs", p->full, column,
		word_of_mode[p->mode]);
	(void)pr_hint(err, "add it, or name a table that is not there: it is made");
	return refuse(err);
}

static void look_at(struct plan *p, const char *name, const char *type, int *typed, int *more)
{
	static const char *const names[] = { "valid_from", "valid_to", "current", "deleted_at" };

	for (int i = 0; i < 4; i++)
		*more |= strcmp(name, names[i]) == 0 ? 1 << i : 0;
	for (int c = 0; c < COLUMN_COUNT; c++) {
		if (strcmp(name, columns[c].name) != 0)
			continue;
		p->t->has[c] = 1;
		*typed &= strcmp(type, columns[c].type) == 0;
	}
}

static int check_columns(const struct plan *p, int more, struct pr_err *err)
{
	static const enum table_column place[] = { COLUMN_TOPIC, COLUMN_PARTITION, COLUMN_OFFSET };

	for (size_t i = 0; i < sizeof(place) / sizeof(*place); i++)
		if (!p->t->has[place[i]])
			return lacks(p, columns[place[i]].name, err);
	if (!p->t->has[COLUMN_PAYLOAD])
		return lacks(p, "payload", err);
	for (int i = 0; i < p->keys; i++)
		if (!p->t->has[p->key[i]])
			return lacks(p, columns[p->key[i]].name, err);
	if (p->mode == PR_SINK_UPSERT && !p->t->has[COLUMN_TIME])
		return lacks(p, "time", err);
	if (p->mode == PR_SINK_SCD2 && (more & 7) != 7)
		return lacks(p, more & 1 ? more & 2 ? "current" : "valid_to" : "valid_from", err);
	return p->keeps && !(more & 8) ? lacks(p, "deleted_at", err) : 0;
}

static int look(struct plan *p, struct pr_pg *pg, struct pr_err *err)
{
	static const char sql[] =
		"SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM "
		"pg_catalog.pg_attribute AS a"
		" WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped"
		" AND a.attgenerated = ''";
	const char *const full[] = { p->full };
	PGresult *res = pr_pg_exec(pg, sql, 1, full, err);
	int typed = 1, more = 0;

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		look_at(p, PQgetvalue(res, i, 0), PQgetvalue(res, i, 1), &typed, &more);
	PQclear(res);
	p->t->typed = typed;
	return check_columns(p, more, err);
}

/* ---------------------------------------------------------------- statements */

static char *copy_into(const struct plan *p, const char *into)
{
	struct table_sql sent = { 0 };
	struct plan all = { .t = &sent };
	struct pr_buf b = { 0 };

	memcpy(sent.has, p->t->sends, sizeof(sent.has));
	pr_buf_printf(&b, "COPY %s (", into);
	put_columns(&b, &all, "");
	pr_buf_puts(&b, ") FROM STDIN (FORMAT binary)");
	return b.s;
}

static void put_append(struct pr_buf *b, const struct plan *p)
{
	pr_buf_printf(b, "INSERT INTO %s (", p->full);
	put_columns(b, p, "");
	pr_buf_puts(b, ") SELECT ");
	put_columns(b, p, "s.");
	pr_buf_printf(b, " FROM " ASIDE " AS s ORDER BY s.\"offset\"%s; ",
		p->by_place ? " ON CONFLICT (topic, partition, \"offset\") DO NOTHING" : "");
}

/* Rows whose places are there. */
static void put_forget_places(struct pr_buf *b, const struct plan *p)
{
	pr_buf_printf(b,
		"DELETE FROM " ASIDE " AS s USING %s AS t WHERE t.topic = s.topic AND t.partition = "
		"s.partition AND t.\"offset\" = s.\"offset\"; ",
		p->full);
}

/* Lanes whose keys are the same wait for each other: each looks at what the other left, and no snapshot lies.
 * A key of its topic is in one partition, and so in one lane, while their number does not change. */
static void put_lock(struct pr_buf *b, const struct plan *p)
{
	struct pr_buf name = { 0 };

	if (p->t->key[COLUMN_TOPIC] && p->t->key[COLUMN_KEY])
		return;
	put_quoted(&name, p->full, '\'');
	pr_buf_printf(b, "SELECT pg_catalog.pg_advisory_xact_lock(78, pg_catalog.hashtext(%s)); ", name.s);
	pr_buf_free(&name);
}

static void put_last_of_each(struct pr_buf *b, const struct plan *p)
{
	pr_buf_puts(b, "WITH s AS MATERIALIZED (SELECT DISTINCT ON (");
	put_keys(b, p, "r.");
	pr_buf_puts(b, ") r.* FROM " ASIDE " AS r ORDER BY ");
	put_keys(b, p, "r.");
	pr_buf_puts(b, ", r.\"offset\" DESC)");
}

static void put_delete(struct pr_buf *b, const struct plan *p)
{
	pr_buf_printf(b, ", gone AS (DELETE FROM %s AS t USING s WHERE ", p->full);
	put_same_key(b, p, "t", "s");
	pr_buf_puts(b, " AND " IS_TOMBSTONE " AND ");
	put_older(b, "t", "s");
	pr_buf_puts(b, ")");
}

/* Rows that are deleted and those that are written have different keys. Sorted, so that two lanes rarely lock
 * the same rows crosswise. With tombstones that are rows nothing needs a lock: each key is decided on its
 * row.
 */
static void put_upsert(struct pr_buf *b, const struct plan *p)
{
	const char *comma = "";

	if (!p->keeps)
		put_lock(b, p);
	put_last_of_each(b, p);
	if (!p->keeps)
		put_delete(b, p);
	pr_buf_printf(b, " INSERT INTO %s AS t (", p->full);
	put_columns(b, p, "");
	pr_buf_printf(b, "%s) SELECT ", p->keeps ? ", deleted_at" : "");
	put_columns(b, p, "s.");
	pr_buf_puts(b, p->keeps ? ", CASE WHEN " IS_TOMBSTONE
				  " THEN coalesce(s.\"time\", pg_catalog.now()) END FROM s ORDER BY "
				: " FROM s WHERE NOT (" IS_TOMBSTONE ") ORDER BY ");
	put_keys(b, p, "s.");
	pr_buf_puts(b, " ON CONFLICT (");
	put_keys(b, p, "");
	pr_buf_puts(b, ") DO UPDATE SET ");
	for (int c = 0; c < COLUMN_COUNT; c++) {
		if (!p->t->has[c])
			continue;
		pr_buf_printf(b, "%s%s = excluded.%s", comma, columns[c].quoted, columns[c].quoted);
		comma = ", ";
	}
	pr_buf_puts(b, p->keeps ? ", deleted_at = excluded.deleted_at WHERE " : " WHERE ");
	put_older(b, "t", "excluded");
	pr_buf_puts(b, "; ");
}

/* What was brought in before goes: a row of the same place, and what is not later than what holds now. */
static void put_forget_known(struct pr_buf *b, const struct plan *p)
{
	put_forget_places(b, p);
	pr_buf_printf(b, "DELETE FROM " ASIDE " AS s USING %s AS t WHERE t.current AND ", p->full);
	put_same_key(b, p, "t", "s");
	pr_buf_puts(
		b, " AND t.topic = s.topic AND t.partition = s.partition AND t.\"offset\" >= s.\"offset\"; ");
}

/* An end of what had ended already says nothing: else what comes of a history would depend on where it was
 * cut. */
static void put_forget_ends(struct pr_buf *b, const struct plan *p)
{
	pr_buf_puts(b, "DELETE FROM " ASIDE " AS s USING (SELECT r.\"offset\", lag(" IS_VERSION
		       ") OVER (PARTITION BY ");
	put_keys(b, p, "r.");
	pr_buf_printf(b,
		" ORDER BY r.\"offset\") AS before FROM " ASIDE
		" AS r) AS o WHERE o.\"offset\" = s.\"offset\""
		" AND s.payload IS NULL AND s.payload_base64 IS NULL"
		" AND NOT coalesce(o.before, EXISTS (SELECT FROM %s AS t WHERE t.current AND ",
		p->full);
	put_same_key(b, p, "t", "s");
	pr_buf_puts(b, ")); ");
}

/* When each begins: never before the one in front of it began or ended; and when it ends: with the next one.
 */
static void put_times(struct pr_buf *b, const struct plan *p)
{
	pr_buf_puts(b, "WITH f AS (SELECT ");
	put_keys(b, p, "r.");
	pr_buf_puts(b, ", r.\"offset\", coalesce(greatest(max(r.\"time\") OVER (PARTITION BY ");
	put_keys(b, p, "r.");
	pr_buf_printf(b,
		" ORDER BY r.\"offset\"), o.since), '-infinity') AS at FROM " ASIDE
		" AS r LEFT JOIN LATERAL (SELECT coalesce(t.valid_to, t.valid_from) AS since FROM %s AS t "
		"WHERE ",
		p->full);
	put_same_key(b, p, "t", "r");
	pr_buf_puts(b, " ORDER BY ");
	for (int i = 0; i < p->keys; i++) /* as the index has them */
		pr_buf_printf(b, "t.%s DESC, ", columns[p->key[i]].quoted);
	pr_buf_puts(b,
		"t.valid_from DESC, t.valid_to DESC LIMIT 1) AS o ON true),"
		" n AS (SELECT f.\"offset\", f.at, lead(f.at) OVER w AS until, row_number() OVER w AS nth"
		" FROM f WINDOW w AS (PARTITION BY ");
	put_keys(b, p, "f.");
	pr_buf_puts(b,
		" ORDER BY f.\"offset\")) UPDATE " ASIDE " AS s SET at = n.at, until = n.until, nth = n.nth "
		"FROM n WHERE n.\"offset\" = s.\"offset\"; ");
}

static void put_scd2(struct pr_buf *b, const struct plan *p)
{
	put_lock(b, p);
	put_forget_known(b, p);
	put_forget_ends(b, p);
	put_times(b, p);
	pr_buf_printf(b,
		"UPDATE %s AS t SET valid_to = s.at, current = false FROM " ASIDE
		" AS s WHERE t.current AND s.nth = 1 AND ",
		p->full);
	put_same_key(b, p, "t", "s");
	pr_buf_printf(b, "; INSERT INTO %s (", p->full);
	put_columns(b, p, "");
	pr_buf_puts(b, ", valid_from, valid_to, current) SELECT ");
	put_columns(b, p, "s.");
	pr_buf_puts(b,
		", s.at, s.until, s.until IS NULL FROM " ASIDE
		" AS s WHERE s.payload IS NOT NULL OR s.payload_base64 IS NOT NULL ORDER BY s.\"offset\"; ");
}

static char *aside_of(const struct plan *p)
{
	struct pr_buf b = { 0 };

	pr_buf_puts(&b, "DROP TABLE IF EXISTS " ASIDE "; CREATE TEMP TABLE sink_row (");
	put_shape(&b, 0);
	if (p->mode == PR_SINK_SCD2)
		pr_buf_puts(&b, ", at timestamp with time zone, until timestamp with time zone, nth bigint");
	pr_buf_puts(&b, ") ON COMMIT DELETE ROWS");
	return b.s;
}

static void make(struct plan *p)
{
	static void (*const put[])(
		struct pr_buf *, const struct plan *) = { put_append, put_upsert, put_scd2 };
	struct pr_buf b = { 0 };

	put[p->mode](&b, p);
	p->t->merge = b.s;
	p->t->aside = aside_of(p);
	for (int c = 0; c < COLUMN_COUNT; c++)
		p->t->sends[c] = p->mode == PR_SINK_APPEND ? p->t->has[c] : 1;
	p->t->copy_aside = copy_into(p, ASIDE);
	p->t->copy = p->mode == PR_SINK_APPEND && p->t->typed ? copy_into(p, p->full) : NULL;
	p->t->mode = p->mode;
}

/* No index says which places are there: they are looked for, and only once something is there already. */
static void without_index(struct plan *p)
{
	struct pr_buf merge = { 0 }, again = { 0 };

	p->by_place = 0;
	put_append(&merge, p);
	put_forget_places(&again, p);
	pr_buf_puts(&again, merge.s);
	free(p->t->merge);
	p->t->merge = merge.s;
	p->t->merge_again = again.s;
}

/* The planner says whether the table has what ON CONFLICT and the columns' types need, before the first row.
 */
static int try_it(struct plan *p, struct pr_pg *pg, struct pr_err *err)
{
	const char *with = strstr(p->t->merge, "WITH "); /* behind the lock */
	char *sql = pr_asprintf("EXPLAIN %s", with && p->mode == PR_SINK_UPSERT ? with : p->t->merge);
	int rc = p->mode == PR_SINK_SCD2 ? 0 : pr_pg_run(pg, sql, 0, NULL, err);

	free(sql);
	if (rc == 0 || (strncmp(err->code, "42", 2) != 0))
		return rc;
	if (p->by_place && strcmp(err->code, "42P10") == 0) {
		without_index(p);
		return try_it(p, pg, err);
	}
	if (strcmp(err->code, "42P10") == 0)
		(void)pr_hint(err,
			"mode %s needs a unique index on the columns of handler.table.key, and no others",
			word_of_mode[p->mode]);
	(void)pr_wrap(err, "%s cannot take our rows", p->full);
	return refuse(err);
}

int table_sql_make(
	struct table_sql *ret, struct pr_pg *pg, const struct pr_sink_conf *conf, struct pr_err *err)
{
	struct plan p = { .mode = (enum pr_sink_mode)conf->table.mode,
		.by_place = conf->table.mode == PR_SINK_APPEND,
		.keeps = conf->table.mode == PR_SINK_UPSERT && conf->table.tombstones == PR_SINK_KEEP_ROW,
		.t = ret };
	int rc = -1;

	*ret = (struct table_sql){ 0 };
	if (read_name(&p, conf->table.table, err) == 0 && read_key(&p, &conf->table.key, err) == 0 &&
		create(&p, pg, conf->table.create, err) == 0 && look(&p, pg, err) == 0) {
		make(&p);
		rc = pr_pg_run(pg, ret->aside, 0, NULL, err) < 0 ? -1 : try_it(&p, pg, err);
	}
	plan_free(&p);
	if (rc < 0)
		table_sql_free(ret);
	return rc;
}

void table_sql_free(struct table_sql *t)
{
	free(t->copy);
	free(t->copy_aside);
	free(t->merge);
	free(t->merge_again);
	free(t->aside);
	*t = (struct table_sql){ 0 };
}
