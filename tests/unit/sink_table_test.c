/* tests/unit/sink_table_test.c -- rows and statements of the table target against a real Postgres
 * (PR_TEST_CONNINFO): what becomes of any record, and what each mode makes of batches that come in pieces,
 * again, and out of time. */
#include "consumers/sink/table_row.h"

#include "lib/clock.h"
#include "lib/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SECOND 1000000LL

static struct pr_pg *pg;

static int begin_tests(void **state)
{
	const char *conninfo = getenv("PR_TEST_CONNINFO");
	struct pr_pg_opts opts = { conninfo, "sink_table_test", 20 * PR_SEC, -1 };
	struct pr_err err;

	(void)state;
	if (!conninfo || !*conninfo)
		return 0;
	if (pr_pg_open(&opts, &pg, &err) < 0)
		fail_msg("%s", err.text);
	return 0;
}

static int end_tests(void **state)
{
	(void)state;
	pr_pg_close(pg);
	return 0;
}

static void need_server(void)
{
	if (!pg) {
		print_message("SKIPPED: PR_TEST_CONNINFO names no server\n");
		skip();
	}
}

static void run(const char *sql)
{
	struct pr_err err;

	if (pr_pg_run(pg, sql, 0, NULL, &err) < 0)
		fail_msg("%s: %s", sql, err.text);
}

/* All rows of a query as "a|b;c|d", in a static buffer. */
static const char *rows_of(const char *sql)
{
	static char text[4000];
	size_t n = 0;
	struct pr_err err;
	PGresult *res = pr_pg_exec(pg, sql, 0, NULL, &err);

	if (!res)
		fail_msg("%s: %s", sql, err.text);
	text[0] = '\0';
	for (int i = 0; i < PQntuples(res); i++)
		for (int c = 0; c < PQnfields(res); c++)
			n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s",
				c   ? "|"
				: i ? ";"
				    : "",
				PQgetisnull(res, i, c) ? "~" : PQgetvalue(res, i, c));
	PQclear(res);
	return text;
}

static int keeps; /* of upsert: tombstones */

static struct table_sql make(enum pr_sink_mode mode, const char *table, const char *const *keys, size_t n)
{
	struct pr_sink_conf conf = { 0 };
	struct table_sql t;
	struct pr_err err = { 0 };

	conf.table.table = (char *)(uintptr_t)table;
	conf.table.mode = mode;
	conf.table.create = 1;
	conf.table.tombstones = keeps ? PR_SINK_KEEP_ROW : PR_SINK_DELETE_ROW;
	conf.table.key = (struct pr_strs){ (char **)(uintptr_t)keys, n };
	if (table_sql_make(&t, pg, &conf, &err) < 0)
		fail_msg("%s %s", err.text, err.hint);
	return t;
}

static void fails(enum pr_sink_mode mode, const char *table, const char *key, const char *words)
{
	const char *keys[] = { key };
	struct pr_sink_conf conf = { 0 };
	struct table_sql t;
	struct pr_err err = { 0 };

	conf.table.table = (char *)(uintptr_t)table;
	conf.table.mode = mode;
	conf.table.create = 1;
	conf.table.tombstones = keeps ? PR_SINK_KEEP_ROW : PR_SINK_DELETE_ROW;
	conf.table.key = (struct pr_strs){ (char **)(uintptr_t)keys, key ? 1 : 0 };
	assert_int_equal(table_sql_make(&t, pg, &conf, &err), -1);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" is not in: %s", words, err.text);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
}

static struct sink_row row(int partition, int64_t offset, const char *key, int second, const char *payload)
{
	return (struct sink_row){ .id = "i",
		.id_len = 1,
		.type = "T",
		.type_len = 1,
		.topic = "t",
		.partition = partition,
		.offset = offset,
		.key = key,
		.key_len = key ? strlen(key) : 0,
		.time_us = second * SECOND,
		.payload = payload,
		.payload_len = payload ? strlen(payload) : 0,
		.json = payload && pr_json_text(payload, strlen(payload)) };
}

/* One transaction. code: what the database says; NULL: nothing. */
static void bring(const struct table_sql *t, const struct sink_row *rows, size_t n, const char *code)
{
	struct pr_buf b = { 0 };
	struct pr_err err = { 0 };
	char *sql = t->copy ? pr_asprintf("BEGIN; %s; COMMIT", t->copy)
			    : pr_asprintf("BEGIN; %s; %sCOMMIT", t->copy_aside, t->merge);
	PGresult *res = NULL;

	table_row_head(&b);
	for (size_t i = 0; i < n; i++)
		table_row_put(&b, &rows[i], t->sends);
	table_row_tail(&b);
	if (pr_pg_copy_in_begin(pg, sql, &err) == 0 && pr_pg_copy_in_put(pg, b.s, b.len, &err) == 0)
		res = pr_pg_copy_in_end(pg, &err);
	if (!res && !code)
		fail_msg("%s: %s", err.code, err.text);
	if (res && code)
		fail_msg("it should have failed with %s", code);
	if (code) {
		assert_string_equal(err.code, code);
		run("ROLLBACK");
	}
	PQclear(res);
	pr_buf_free(&b);
	free(sql);
}

/* ---------------------------------------------------------------- rows */

#define RAW(r, s)                                                                                            \
	((r).payload = (s), (r).payload_len = sizeof(s) - 1, (r).json = pr_json_text((s), sizeof(s) - 1))

static void any_record(void **state)
{
	static const struct header headers[] = { { "a", "1", 1 }, { "b", NULL, 0 }, { "a", "\"2\n", 3 },
		{ "c", "\xff", 1 }, { "d\xfe", "\0", 1 } };
	struct table_sql t;
	struct sink_row r[12];
	struct pr_buf large = { 0 };

	(void)state;
	need_server();
	t = make(PR_SINK_APPEND, "a.row", NULL, 0);
	assert_non_null(t.copy);
	for (int i = 0; i < 12; i++)
		r[i] = row(0, i, "k", 3600 * i, "{\"n\": 1.50}");
	r[0].headers = headers;
	r[0].headers_n = 5;
	r[1].payload = NULL;
	RAW(r[2], "");
	RAW(r[3], "not json");
	RAW(r[4], "\"\\u0000\"");
	RAW(r[5], "1e999999");
	RAW(r[6], "\xff\0\xfe");
	r[7].key = "\xff\0";
	r[7].key_len = 2;
	r[7].type = "\xc3\xa9\xff";
	r[7].type_len = 3;
	r[7].id = "\0x";
	r[7].id_len = 2;
	r[8].key = NULL;
	r[8].id = NULL;
	r[8].time_us = -1;
	r[9].key = "";
	r[9].key_len = 0;
	r[9].type = "";
	r[9].type_len = 0;
	pr_buf_puts(&large, "\"");
	for (int i = 0; i < 10 << 20; i += 16)
		pr_buf_puts(&large, "0123456789abcdef");
	pr_buf_puts(&large, "\"");
	r[10].payload = large.s;
	r[10].payload_len = large.len;
	r[11].payload = large.s + 1;
	r[11].payload_len = large.len - 1;
	r[11].json = pr_json_text(r[11].payload, r[11].payload_len);
	bring(&t, r, 12, NULL);
	assert_string_equal(
		rows_of("SELECT headers, payload, payload_base64 FROM a.row WHERE \"offset\" = 0"),
		"{\"a\": \"\\\"2\\n\", \"b\": null, \"c\": {\"base64\": \"/w==\"}, \"d\xef\xbf\xbd\": "
		"{\"base64\": \"AA==\"}}"
		"|{\"n\": 1.50}|~");
	assert_string_equal(rows_of("SELECT payload, payload_base64, key, id FROM a.row WHERE \"offset\" "
				    "BETWEEN 1 AND 9 ORDER BY \"offset\""),
		"~|~|k|i;~||k|i;~|bm90IGpzb24=|k|i;~|Ilx1MDAwMCI=|k|i;~|MWU5OTk5OTk=|k|i;~|/wD+|k|i;"
		"{\"n\": 1.50}|~|base64:/wA=|?x;{\"n\": 1.50}|~|~|~;{\"n\": 1.50}|~||i");
	assert_string_equal(rows_of("SELECT type, \"time\", hour FROM a.row WHERE \"offset\" IN (6, 7, 8, 9) "
				    "ORDER BY \"offset\""),
		"T|1970-01-01 06:00:00+00|1970-01-01 06:00:00+00;???|1970-01-01 07:00:00+00|1970-01-01 "
		"07:00:00+00;"
		"T|~|~;|1970-01-01 09:00:00+00|1970-01-01 09:00:00+00");
	assert_string_equal(rows_of("SELECT pg_catalog.length(payload #>> '{}'), "
				    "pg_catalog.length(payload_base64) FROM a.row"
				    " WHERE \"offset\" >= 10 ORDER BY \"offset\""),
		"10485760|~;~|13981016");
	bring(&t, r, 1, "23505");
	pr_buf_free(&large);
	table_sql_free(&t);
}

/* ---------------------------------------------------------------- modes */

/* A table of somebody's own: other types, columns of theirs, some of ours missing. */
static void append_to_theirs(void **state)
{
	struct table_sql t;
	char *merge;
	struct sink_row r[3] = { row(0, 1, "x", 1, "1"), row(0, 2, "y", 2, NULL), row(1, 1, "z", 3, "3") };

	(void)state;
	need_server();
	run("CREATE SCHEMA \"Wei\"\"rd\"; CREATE TABLE \"Wei\"\"rd\".\"Row s\" (n serial, topic varchar(20), "
	    "partition smallint, "
	    "\"offset\" numeric, key varchar(10), payload jsonb, UNIQUE (partition, \"offset\"))");
	t = make(PR_SINK_APPEND, "Wei\"rd.Row s", NULL, 0);
	assert_null(t.copy);
	bring(&t, r, 3, NULL);
	bring(&t, r, 3, "23505"); /* no index on what a place is: what is there is looked for then */
	merge = t.merge;
	t.merge = t.merge_again;
	bring(&t, r, 3, NULL);
	t.merge = merge;
	assert_string_equal(rows_of("SELECT partition, \"offset\", key, payload FROM \"Wei\"\"rd\".\"Row s\" "
				    "ORDER BY 1, 2"),
		"0|1|x|1;0|2|y|~;1|1|z|3");
	table_sql_free(&t);
	r[0].key = "much too long";
	r[0].key_len = 13;
	t = make(PR_SINK_APPEND, "Wei\"rd.Row s", NULL, 0);
	bring(&t, r, 1, "22001");
	table_sql_free(&t);
}

/* A table of theirs said ids are unique: a second record of one id left no row, no dead letter and no word.
 */
static void append_breaks_what_is_unique(void **state)
{
	struct table_sql t;
	struct sink_row r[3] = { row(0, 1, "x", 1, "1"), row(0, 2, "y", 2, "2"), row(0, 3, "x", 3, "3") };

	(void)state;
	need_server();
	run("CREATE SCHEMA one; CREATE TABLE one.row (topic text COLLATE \"C\", partition integer, "
	    "\"offset\" bigint, "
	    "key text UNIQUE, payload jsonb, PRIMARY KEY (topic, partition, \"offset\"))");
	t = make(PR_SINK_APPEND, "one.row", NULL, 0);
	assert_null(t.merge_again);
	bring(&t, r, 2, NULL); /* straight */
	free(t.copy);
	t.copy = NULL;
	bring(&t, r, 2, NULL); /* these are there */
	bring(&t, r, 3, "23505");
	bring(&t, r + 1, 1, NULL);
	assert_string_equal(
		rows_of("SELECT \"offset\", key, payload FROM one.row ORDER BY 1"), "1|x|1;2|y|2");
	table_sql_free(&t);
}

#define U "SELECT key, payload, \"offset\" FROM u.row ORDER BY key"

static void upsert(void **state)
{
	static const char *const keys[] = { "key" };
	struct table_sql t;

	(void)state;
	need_server();
	t = make(PR_SINK_UPSERT, "u.row", keys, 1);
	bring(&t,
		(struct sink_row[]){ row(0, 1, "a", 9, "1"), row(0, 2, "b", 1, "2"), row(0, 3, "a", 1, "3"),
			row(0, 4, "c", 1, "4"), row(0, 5, "c", 1, NULL), row(0, 6, "d", 1, NULL),
			row(0, 7, "d", 1, "7") },
		7, NULL);
	assert_string_equal(rows_of(U), "a|3|3;b|2|2;d|7|7");
	/* What comes again changes nothing, whatever came after it. */
	bring(&t,
		(struct sink_row[]){ row(0, 1, "a", 9, "1"), row(0, 2, "b", 1, "2"), row(0, 5, "d", 1, "5") },
		3, NULL);
	assert_string_equal(rows_of(U), "a|3|3;b|2|2;d|7|7");
	bring(&t,
		(struct sink_row[]){
			row(0, 6, "d", 1, NULL), row(0, 2, "a", 1, NULL), row(0, 9, "b", 1, NULL) },
		3, NULL);
	assert_string_equal(rows_of(U), "a|3|3;d|7|7");
	/* Of another partition: by time. */
	bring(&t,
		(struct sink_row[]){
			row(1, 1, "a", 0, "\"old\""), row(1, 2, "d", 5, "\"new\""), row(1, 3, "a", 0, NULL) },
		3, NULL);
	assert_string_equal(rows_of(U), "a|3|3;d|\"new\"|2");
	/* An empty payload is no tombstone. */
	bring(&t, (struct sink_row[]){ row(0, 8, "a", 0, "") }, 1, NULL);
	assert_string_equal(rows_of("SELECT payload, payload_base64 FROM u.row WHERE key = 'a'"), "~|");
	table_sql_free(&t);
}

#define K "SELECT key, payload, \"offset\", extract(epoch FROM deleted_at)::int FROM k.row ORDER BY key"

/* Partitions were added: a tombstone in the new one was read before an older record in the old one, which
 * came to life. */
static void upsert_keeps_tombstones(void **state)
{
	static const char *const keys[] = { "key" };
	struct table_sql t;

	(void)state;
	need_server();
	keeps = 1;
	fails(PR_SINK_UPSERT, "u.row", "key", "has no column \"deleted_at\"");
	t = make(PR_SINK_UPSERT, "k.row", keys, 1);
	bring(&t,
		(struct sink_row[]){
			row(1, 1, "a", 60, NULL), row(1, 2, "b", 60, "2"), row(1, 3, "b", 61, NULL) },
		3, NULL);
	assert_string_equal(rows_of(K), "a|~|1|60;b|~|3|61");
	bring(&t,
		(struct sink_row[]){
			row(0, 7, "a", 1, "7"), row(0, 8, "b", 1, NULL), row(0, 9, "c", 1, "9") },
		3, NULL);
	assert_string_equal(rows_of(K), "a|~|1|60;b|~|3|61;c|9|9|~");
	bring(&t, (struct sink_row[]){ row(1, 4, "a", 2, "4"), row(1, 5, "c", 70, NULL) }, 2, NULL);
	assert_string_equal(rows_of(K), "a|4|4|~;b|~|3|61;c|~|5|70");
	table_sql_free(&t);
	keeps = 0;
}

#define H                                                                                                    \
	"SELECT key, payload, extract(epoch FROM valid_from)::int, extract(epoch FROM valid_to)::int, "      \
	"current FROM s.row ORDER BY key, \"offset\""

static void history(void **state)
{
	static const char *const keys[] = { "key" };
	struct table_sql t;
	struct sink_row first[] = { row(0, 1, "a", 10, "1"), row(0, 2, "b", 11, "2"), row(0, 3, "a", 12, "3"),
		row(0, 4, "b", 13, NULL), row(0, 5, "c", 14, NULL) },
			second[] = { row(0, 6, "a", 11, "6"), row(0, 7, "a", 20, "7"),
				row(0, 8, "b", 21, "8"), row(0, 9, "a", 22, NULL) };

	(void)state;
	need_server();
	t = make(PR_SINK_SCD2, "s.row", keys, 1);
	bring(&t, first, 5, NULL);
	assert_string_equal(rows_of(H), "a|1|10|12|f;a|3|12|~|t;b|2|11|13|f");
	/* The one that says it is older than the one before it held for no time before it. */
	bring(&t, second, 4, NULL);
	assert_string_equal(
		rows_of(H), "a|1|10|12|f;a|3|12|12|f;a|6|12|20|f;a|7|20|22|f;b|2|11|13|f;b|8|21|~|t");
	/* All of it again, in other pieces: the same. */
	for (int i = 0; i < 5; i++)
		bring(&t, first + i, 1, NULL);
	bring(&t, first, 5, NULL);
	bring(&t, second, 4, NULL);
	assert_string_equal(
		rows_of(H), "a|1|10|12|f;a|3|12|12|f;a|6|12|20|f;a|7|20|22|f;b|2|11|13|f;b|8|21|~|t");
	/* An old end beside a new beginning. */
	bring(&t, (struct sink_row[]){ first[3], second[2], row(0, 10, "b", 30, "10") }, 3, NULL);
	assert_string_equal(rows_of("SELECT payload, extract(epoch FROM valid_to)::int, current FROM s.row "
				    "WHERE key = 'b' ORDER BY"
				    " \"offset\""),
		"2|13|f;8|30|f;10|~|t");
	table_sql_free(&t);
}

static void refusals(void **state)
{
	struct pr_sink_conf conf = { 0 };
	struct pr_err err = { 0 };
	struct table_sql t;

	(void)state;
	need_server();
	fails(PR_SINK_APPEND, "", NULL, "is not the name of a table");
	fails(PR_SINK_APPEND, "a.b.c", NULL, "is not the name of a table");
	fails(PR_SINK_APPEND, ".b", NULL, "is not the name of a table");
	fails(PR_SINK_UPSERT, "r.none", "payload", "cannot hold \"payload\"");
	run("CREATE SCHEMA r; CREATE TABLE r.short (topic text, partition int, payload jsonb);"
	    "CREATE TABLE r.wide (topic text, partition int, \"offset\" bigint, key text, \"time\" "
	    "timestamptz, payload jsonb);"
	    "CREATE TABLE r.odd (topic text, partition int, \"offset\" bigint, payload int)");
	fails(PR_SINK_APPEND, "r.short", NULL, "no column \"offset\"");
	fails(PR_SINK_SCD2, "r.wide", "key", "no column \"valid_from\"");
	fails(PR_SINK_UPSERT, "r.wide", "key", "cannot take our rows");
	fails(PR_SINK_APPEND, "r.odd", NULL, "cannot take our rows");
	conf.table.table = (char *)(uintptr_t) "r.not_there";
	assert_int_equal(table_sql_make(&t, pg, &conf, &err), -1);
	assert_non_null(strstr(err.text, "there is no table"));
	assert_int_equal(err.exit, PR_EX_CONFIG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_record),
		cmocka_unit_test(append_to_theirs),
		cmocka_unit_test(append_breaks_what_is_unique),
		cmocka_unit_test(upsert),
		cmocka_unit_test(upsert_keeps_tombstones),
		cmocka_unit_test(history),
		cmocka_unit_test(refusals),
	};

	return cmocka_run_group_tests(tests, begin_tests, end_tests);
}
