/* cli/adopt_sql.c -- the SQL that makes rows of somebody else's outbox table events of ours: two triggers,
 * and the rows that wait. It may be run again: functions are replaced, triggers that are there stay, a row
 * that was taken is marked and not taken again. Touches nothing but the table it is for; writes no secret. */
#include "cli/adopt.h"
#include "lib/rights.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

const char *const adopt_fields[ADOPT_FIELDS] = { "id", "aggregatetype", "aggregateid", "type", "payload",
	"payload_bytes", "headers", "topic", "partition", "aggregateversion", "tracingspancontext", "at" };

const char *const adopt_fate_str[] = { [ADOPT_UNKNOWN] = "unknown",
	[ADOPT_KEPT] = "kept",
	[ADOPT_NEEDLESS] = "needless",
	[ADOPT_DIFFERS] = "differs",
	[ADOPT_TO_DO] = "to do",
	[ADOPT_IMPOSSIBLE] = "impossible" };

static const char *const reserved[] = { "id", "type", "content-type", "outbox-seq", "outbox-created-at",
	"traceparent" };

int adopt_is_reserved(const char *header)
{
	for (size_t i = 0; i < sizeof(reserved) / sizeof(*reserved); i++)
		if (strcasecmp(header, reserved[i]) == 0)
			return 1;
	return 0;
}

char *adopt_headers(const char *x)
{
	return pr_asprintf(
		"coalesce((SELECT jsonb_object_agg(h.key, h.value) FROM jsonb_each(CASE jsonb_typeof(%s) "
		"WHEN 'object' THEN %s ELSE '{}' END) AS h\n\t\tWHERE octet_length(h.key) BETWEEN 1 AND "
		"256 AND lower(h.key) NOT IN ('id', 'type', 'content-type', 'outbox-seq', "
		"'outbox-created-at', 'traceparent')), '{}')",
		x, x);
}

void adopt_put_literal(struct pr_buf *b, const char *s)
{
	pr_buf_puts(b, "'");
	for (; *s; s++)
		pr_buf_puts(b, *s == '\'' ? "''" : (const char[]){ *s, '\0' });
	pr_buf_puts(b, "'");
}

/* name of the table, and of the two functions beside it. A name is cut at 63 bytes: a long one gets a sum
 * instead of its end, so that two tables never share a function. */
static void put_name(const struct adopt *a, const char *behind, struct pr_buf *b)
{
	char quoted[140], *name;
	unsigned sum = 2166136261U;

	(void)pr_quote_ident(a->schema, strlen(a->schema), quoted, sizeof(quoted));
	pr_buf_printf(b, "%s.", quoted);
	for (const char *p = a->table; *p; p++)
		sum = (sum ^ (unsigned char)*p) * 16777619U;
	if (*behind && strlen(a->table) > 40)
		name = pr_asprintf("%.30s_%08x%s", a->table, sum, behind);
	else
		name = pr_asprintf("%s%s", a->table, behind);
	pr_buf_puts(b, pr_quote_ident(name, strlen(name), quoted, sizeof(quoted)));
	free(name);
}

static char *name_of(const struct adopt *a, const char *behind)
{
	struct pr_buf b = { 0 };

	put_name(a, behind, &b);
	return b.s;
}

#define TO_US   "_to_postrider"
#define BY_US   "_by_postrider"
#define AT_OF_N " WHERE (%s > now()) IS %sTRUE"

/* INSERT INTO outbox.event, or outbox.scheduled, from the rows that are called n. */
static void put_insert(
	const struct adopt *a, int later, const char *from, const char *order, struct pr_buf *b)
{
	int last = later ? ADOPT_FIELDS : ADOPT_AT, n = 0;

	pr_buf_printf(b, "INSERT INTO outbox.%s (", later ? "scheduled" : "event");
	for (int i = 0; i < last; i++)
		if (a->expr[i])
			pr_buf_printf(b, "%s%s", n++ ? ", " : "", adopt_fields[i]);
	pr_buf_puts(b, ")\n\tSELECT ");
	n = 0;
	for (int i = 0; i < last; i++)
		if (a->expr[i])
			pr_buf_printf(b, "%s%s", n++ ? ",\n\t\t" : "", a->expr[i]);
	pr_buf_printf(b, "\n\tFROM %s AS n", from);
	if (a->expr[ADOPT_AT])
		pr_buf_printf(b, AT_OF_N, a->expr[ADOPT_AT], later ? "" : "NOT ");
	if (order)
		pr_buf_printf(b, " ORDER BY %s", order);
}

/* Between dollars that do not come in it: names of columns and headers are anything. Takes the body. */
static void put_body(struct pr_buf *b, struct pr_buf *body)
{
	char tag[16] = "$f$";

	for (int i = 1; strstr(body->s, tag); i++)
		(void)snprintf(tag, sizeof(tag), "$f%d$", i);
	pr_buf_printf(b, "%s%s%s", tag, body->s, tag);
	pr_buf_free(body);
}

/* In a comment, where the end of a line would be the end of it. */
static char *in_comment(const struct adopt *a)
{
	char *name = name_of(a, "");

	for (char *p = name; *p; p++)
		*p = (unsigned char)*p < ' ' || *p == 127 ? '?' : *p;
	return name;
}

/* Whose right the services use from now on. */
static void put_right(const struct adopt *a, struct pr_buf *b)
{
	pr_buf_printf(b,
		"DO $d$ BEGIN\n\tIF NOT has_column_privilege('outbox.event', 'id', 'INSERT')%s THEN\n"
		"\t\tRAISE insufficient_privilege USING MESSAGE = format('outbox: %%I may not insert into "
		"outbox.%s', "
		"current_user),\n\t\t\tHINT = '%s';\n\tEND IF;\nEND $d$;\n",
		a->expr[ADOPT_AT] ? " OR NOT has_table_privilege('outbox.scheduled', 'INSERT')" : "",
		a->expr[ADOPT_AT] ? "event and outbox.scheduled" : "event",
		a->expr[ADOPT_AT]
			? "Run this as the owner of schema outbox, who owns the table or is given it."
			: "GRANT outbox_writer to it: the trigger inserts with its right.");
}

void adopt_sql_begin(const struct adopt *a, struct pr_buf *b)
{
	char *table = in_comment(a);

	pr_buf_printf(b,
		"-- Behind postrider init, by whom owns %s and may insert into outbox.event. What is written "
		"into\n"
		"-- the table from now on is an event of Postrider, too, in the same transaction. May be run "
		"again.\n"
		"BEGIN ISOLATION LEVEL READ COMMITTED;\n"
		"SET LOCAL lock_timeout = '5s'; -- somebody writes for longer: nothing is done, try again\n",
		table);
	free(table);
	put_right(a, b);
}

/* Old publishers that poll find the row done. */
static void put_flags(const struct adopt *a, const char *function, struct pr_buf *b)
{
	struct pr_buf body = { 0 };

	pr_buf_puts(&body, "\nBEGIN\n");
	for (int i = 0; i < ADOPT_FLAGS && a->flags[i].column; i++)
		pr_buf_printf(&body, "\tNEW.%s := %s;\n", a->flags[i].column, a->flags[i].value);
	pr_buf_puts(&body, "\tRETURN NEW;\nEND ");
	pr_buf_printf(b,
		"CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql\n"
		"SET search_path = pg_catalog, pg_temp AS ",
		function);
	put_body(b, &body);
	pr_buf_puts(b, ";\n");
}

static void put_trigger(
	const char *table, const char *name, const char *what, const char *function, struct pr_buf *b)
{
	struct pr_buf body = { 0 };

	pr_buf_puts(&body, " BEGIN\n\tIF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = ");
	adopt_put_literal(&body, table);
	pr_buf_printf(&body,
		"::pg_catalog.regclass AND tgname = '%s') THEN\n\t\tCREATE TRIGGER %s %s\n\t\t\tEXECUTE "
		"FUNCTION "
		"%s();\n\tEND IF;\nEND ",
		name, name, what, function);
	pr_buf_puts(b, "DO ");
	put_body(b, &body);
	pr_buf_puts(b, ";\n");
}

void adopt_sql_triggers(const struct adopt *a, struct pr_buf *b)
{
	char *table = name_of(a, ""), *to = name_of(a, TO_US), *by = name_of(a, BY_US), *when;
	struct pr_buf body = { 0 };

	pr_buf_puts(&body, "\nBEGIN\n\t");
	if (a->expr[ADOPT_AT]) {
		pr_buf_puts(&body, "WITH later AS (");
		put_insert(a, 1, "new_rows", NULL, &body);
		pr_buf_puts(&body, ")\n\t");
	}
	put_insert(a, 0, "new_rows", NULL, &body);
	pr_buf_puts(&body, ";\n\tRETURN NULL;\nEND ");
	pr_buf_printf(b,
		"CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql\n"
		"SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS ",
		to);
	put_body(b, &body);
	pr_buf_printf(b,
		";\n"
		"REVOKE ALL ON FUNCTION %s() FROM PUBLIC; -- a trigger needs no right, and nobody else may "
		"use it\n",
		to);
	when = pr_asprintf(
		"AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows\n\t\t\tFOR EACH STATEMENT", table);
	put_trigger(table, "to_postrider", when, to, b);
	free(when);
	if (a->flags[0].column) {
		put_flags(a, by, b);
		when = pr_asprintf("BEFORE INSERT ON %s FOR EACH ROW", table);
		put_trigger(table, "by_postrider", when, by, b);
		free(when);
	}
	free(table);
	free(to);
	free(by);
}

/* Behind the triggers: making them waits for every open transaction that has written, and lets nobody write
 * before the end, so that no row comes between them and this. A row is taken and marked by one statement:
 * none is taken twice, whoever runs this how often. */
void adopt_sql_take(const struct adopt *a, struct pr_buf *b)
{
	char *table = name_of(a, "");

	pr_buf_printf(b, "WITH taken AS (UPDATE %s AS n SET ", table);
	for (int i = 0; i < ADOPT_FLAGS && a->flags[i].column; i++)
		pr_buf_printf(b, "%s%s = %s", i ? ", " : "", a->flags[i].column, a->flags[i].value);
	pr_buf_printf(b, " WHERE %s RETURNING n.*),\nevents AS (", a->pending);
	put_insert(a, 0, "taken", a->order, b);
	pr_buf_puts(b, " RETURNING 1)");
	if (a->expr[ADOPT_AT]) {
		pr_buf_puts(b, ",\nlater AS (");
		put_insert(a, 1, "taken", a->order, b);
		pr_buf_puts(b, " RETURNING 1)");
	}
	pr_buf_printf(b, "\nSELECT (SELECT count(*) FROM events) AS events, %s AS scheduled;\n",
		a->expr[ADOPT_AT] ? "(SELECT count(*) FROM later)" : "0");
	free(table);
}

void adopt_sql_end(struct pr_buf *b)
{
	pr_buf_puts(b, "COMMIT;\n");
}

void adopt_sql_undo(const struct adopt *a, struct pr_buf *b)
{
	char *table = name_of(a, ""), *to = name_of(a, TO_US), *by = name_of(a, BY_US);
	char *said = in_comment(a);

	pr_buf_printf(b,
		"-- What is written into %s from now on is no event of Postrider any more.\n"
		"BEGIN ISOLATION LEVEL READ COMMITTED;\n"
		"SET LOCAL lock_timeout = '5s';\n"
		"DROP TRIGGER IF EXISTS to_postrider ON %s;\n"
		"DROP TRIGGER IF EXISTS by_postrider ON %s;\n"
		"DROP FUNCTION IF EXISTS %s();\n"
		"DROP FUNCTION IF EXISTS %s();\n"
		"COMMIT;\n",
		said, table, table, to, by);
	free(said);
	free(table);
	free(to);
	free(by);
}

void adopt_release(struct adopt *a)
{
	for (int i = 0; i < ADOPT_FIELDS; i++)
		free(a->expr[i]);
	free(a->schema);
	free(a->table);
}
