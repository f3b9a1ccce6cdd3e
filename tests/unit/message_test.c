/* tests/unit/message_test.c -- consumers/message.c by table, and what it writes read by a real Postgres
 * (PR_TEST_CONNINFO): whatever pr_json_text calls JSON, jsonb takes. */
#include "consumers/consumer.h"

#include "lib/err.h"
#include "lib/pg.h"
#include "lib/uuid.h"

#include <cjson/cJSON.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define UUID "0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5d"

/* ---------------------------------------------------------------- JSON */

/* An exact copy on the heap, so that the sanitizers see a read behind the end. */
static int json_text(const char *text, size_t len)
{
	char *copy = pr_malloc(len ? len : 1);
	int rc;

	memcpy(copy, text, len);
	rc = pr_json_text(copy, len);
	free(copy);
	return rc;
}

#define T(s)                                                                                                 \
	{                                                                                                    \
		(s), sizeof(s) - 1                                                                           \
	}
static const struct text {
	const char *s;
	size_t len;
} good[] = { T("0"), T("-0"), T("1"), T("-1.5e+3"), T("1E400"), T("1e-400"), T("0.000"), T("\"\""),
	T(" true\r\n\t"), T("null"), T("false"), T("[]"), T("{}"), T("[ ]"), T("{ }"), T("[1,2]"),
	T("[[],{},[{}]]"), T("{\"a\":1,\"a\":2}"), T("{\"\":{\"\":[null]}}"),
	T("\"\\u0001\\u00e9\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\\\\\\"\""),
	T("\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \x7f\""), T("\"12345678\\n12345678\""),
	T("\"\xef\xbf\xbf\""), T("\"\xed\x9f\xbf\xee\x80\x80\""), T("1e131071"), T("1e-16383"),
	T("[1e131071,{\"x\":-1e-16383}]"), T("0e131071"),
	T("123456789012345678901234567890.123456789012345678901234567890"), T("\"\\uFFFF\\ufffe\""),
	T("{\"a\" : [ 1 , \"b\" ] , \"c\" : { } }"), T("1e00000000000000000000000000000000000005") },
  bad[] = { T(""), T(" "), T("nul"), T("nulll"), T("+1"), T("01"), T("1."), T(".5"), T("1e"), T("1e+"),
	  T("-"), T("--1"), T("- 1"), T("0x1"), T("NaN"), T("Infinity"), T("[1,]"), T("[,1]"), T("[1 2]"),
	  T("{\"a\"}"), T("{\"a\":}"), T("{a:1}"), T("{\"a\":1,}"), T("{,}"), T("[}"), T("{]"), T("["),
	  T("{"), T("]"), T("[1]]"), T("1 2"), T("{}{}"), T("\""), T("\"a"), T("'a'"), T("\"\t\""),
	  T("\"\n\""), T("\"\x1f\""), T("\"\\x\""), T("\"\\u12\""), T("\"\\u12g4\""), T("\"\\u0000\""),
	  T("\"\\ud800\""), T("\"\\udc00\""), T("\"\\ud800\\ud800\""), T("\"\\ud800x\""),
	  T("\"\\ude00\\ud83d\""), T("\"\xc3\""), T("\"\xc3\x28\""), T("\"\xc0\x80\""), T("\"\xed\xa0\x80\""),
	  T("\"\xf4\x90\x80\x80\""), T("\"\xff\""), T("\"12345678\x80\""), T("\"a\0b\""), T("1\0"), T("\0"),
	  T("\xef\xbb\xbf{}"), T("1e131072"), T("1e-16384"), T("1e999999999999999999999"),
	  T("[1e-99999999999]"), T("\v1"),
	  T("\xc2\xa0"
	    "1"),
	  T("/**/1"), T("{\"a\":1\"b\":2}"), T("{\"a\" 1}"), T("tru"), T("\"\\") };

static char *nested(int depth, char open, size_t *ret_len)
{
	char *s = pr_malloc((size_t)depth * 8 + 2), *p = s;

	for (int i = 0; i < depth; i++)
		p += sprintf(p, open == '[' ? "[" : "{\"a\":");
	*p++ = '1';
	for (int i = 0; i < depth; i++)
		*p++ = open == '[' ? ']' : '}';
	*ret_len = (size_t)(p - s);
	return s;
}

static void json_by_table(void **state)
{
	char *s;
	size_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		if (!json_text(good[i].s, good[i].len))
			fail_msg("refused: %s", good[i].s);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		if (json_text(bad[i].s, bad[i].len))
			fail_msg("accepted: %s", bad[i].s);
	for (int depth = 511; depth <= 513; depth++)
		for (int i = 0; i < 2; i++) {
			s = nested(depth, "[{"[i], &n);
			assert_int_equal(json_text(s, n), depth <= 512);
			free(s);
		}
}

static void digits_have_limits(void **state)
{
	char *s = pr_malloc(200000);

	(void)state;
	memset(s, '9', 200000);
	assert_true(json_text(s, 131072));
	assert_false(json_text(s, 131073));
	s[0] = '0';
	s[1] = '.';
	assert_true(json_text(s, 2 + 16383));
	assert_false(json_text(s, 2 + 16384));
	memcpy(s + 2 + 16383, "e-1", 3);
	assert_false(json_text(s, 2 + 16383 + 3));
	memcpy(s + 2 + 16382, "e-1", 3);
	assert_true(json_text(s, 2 + 16382 + 3));
	free(s);
}

/* ---------------------------------------------------------------- Postgres */

static PGconn *connect_or_skip(void)
{
	const char *info = getenv("PR_TEST_CONNINFO");
	PGconn *conn;

	if (!info || !*info) {
		print_message("SKIPPED: PR_TEST_CONNINFO names no server\n");
		skip();
	}
	conn = PQconnectdb(info);
	if (PQstatus(conn) != CONNECTION_OK || PQsetClientEncoding(conn, "UTF8") < 0)
		fail_msg("connect: %s", PQerrorMessage(conn));
	return conn;
}

static void run(PGconn *conn, const char *sql)
{
	PGresult *res = PQexec(conn, sql);

	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s: %s", sql, PQerrorMessage(conn));
	PQclear(res);
}

static PGresult *with_binary(PGconn *conn, const char *sql, Oid type, const char *value, size_t len)
{
	return PQexecParams(conn, sql, 1, &type, &value, (const int[]){ (int)len }, (const int[]){ 1 }, 0);
}

/* As it is sent: jsonb in binary. Postgres refusing what we call JSON would make a handler's whole batch
 * fail. */
static void jsonb_takes(PGconn *conn, const char *s, size_t n)
{
	char *value = pr_malloc(n + 1);
	PGresult *res;

	value[0] = 1;
	memcpy(value + 1, s, n);
	res = with_binary(conn, "SELECT $1 IS NOT NULL", 3802, value, n + 1);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("jsonb refuses \"%.*s\": %s", n > 300 ? 300 : (int)n, s, PQerrorMessage(conn));
	PQclear(res);
	free(value);
}

/* xorshift: the same mutations in every run. */
static uint32_t rnd(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	return *x ^= *x << 5;
}

static void what_we_call_json_jsonb_takes(void **state)
{
	static const char pieces[][8] = { "\"", "\\", "\\u", "0", "e", "-", ".", ",", "[", "]", "{", "}", ":",
		"\xc3\xa9", "\xed", "\\ud83d", "\\ude00", "\\u0000", "1e9999", "\t", " ", "null" };
	PGconn *conn = connect_or_skip();
	char *s, text[600];
	uint32_t x = 88172645;
	size_t n, at, len;
	int taken = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		jsonb_takes(conn, good[i].s, good[i].len);
	for (int i = 0; i < 2; i++) {
		s = nested(512, "[{"[i], &n);
		jsonb_takes(conn, s, n);
		free(s);
	}
	s = pr_malloc(1 << 21);
	memset(s, '9', 131072);
	jsonb_takes(conn, s, 131072);
	memcpy(s, "0.", 2);
	jsonb_takes(conn, s, 2 + 16383);
	for (n = 0, s[n++] = '['; n < (1 << 21) - 2;) {
		s[n++] = '1';
		s[n++] = ',';
	}
	s[n - 1] = ']';
	assert_true(json_text(s, n));
	jsonb_takes(conn, s, n);
	free(s);
	for (int round = 0; round < 20000; round++) {
		const struct text *t = &good[rnd(&x) % (sizeof(good) / sizeof(*good))];

		memcpy(text, t->s, len = t->len);
		for (unsigned k = rnd(&x) % 3 + 1; k > 0; k--) {
			const char *piece = pieces[rnd(&x) % (sizeof(pieces) / sizeof(*pieces))];

			at = rnd(&x) % (len + 1);
			memmove(text + at + strlen(piece), text + at, len - at);
			memcpy(text + at, piece, strlen(piece));
			len += strlen(piece);
		}
		if (!json_text(text, len))
			continue;
		jsonb_takes(conn, text, len);
		taken++;
	}
	assert_in_range(taken, 500, 19000);
	PQfinish(conn);
}

/* ---------------------------------------------------------------- messages made by hand */

static struct message *make(const char *key, const char *payload)
{
	struct message *m = pr_calloc(1, sizeof(*m));

	m->topic = "outbox.event.order";
	m->partition = 3;
	m->offset = 1234567890123;
	m->time_us = 1767225600123456;
	m->key = key;
	m->key_len = key ? strlen(key) : 0;
	m->payload = payload;
	m->payload_len = payload ? strlen(payload) : 0;
	return m;
}

static void add_header(struct message *m, const char *name, const char *value, size_t len)
{
	m->headers = pr_realloc(m->headers, (m->headers_n + 1) * sizeof(*m->headers));
	m->headers[m->headers_n++] = (struct header){ .name = name, .value = value, .len = len };
}

static void decode(struct message *m, const char *id)
{
	char how[100];
	struct pr_consumer_conf conf = { .id = how };

	(void)snprintf(how, sizeof(how), "%s", id);
	message_decode(m, &conf);
}

static const char *uuid_of(const struct message *m)
{
	static char buf[37];

	return pr_uuid_print(m->id, buf);
}

static void ids(void **state)
{
	static const struct {
		const char *how, *header, *payload;
		enum id_state want;
		const char *text, *uuid;
	} t[] = {
		{ "header:id", UUID, "{}", ID_OK, UUID, UUID },
		{ "header:id", "0190A8C47D2E7B6F8C3D5E1F2A3B4C5D", "{}", ID_OK,
			"0190A8C47D2E7B6F8C3D5E1F2A3B4C5D", UUID },
		{ "header:id", NULL, "{}", ID_MISSING, "", NULL },
		/* sha256sum of the text, version and variant set by hand */
		{ "header:id", "abc", "{}", ID_MALFORMED, "abc", "ba7816bf-8f01-8fea-8141-40de5dae2223" },
		{ "header:id", "", "{}", ID_MALFORMED, "", "e3b0c442-98fc-8c14-9afb-f4c8996fb924" },
		{ "header:id", "{0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5d}", "{}", ID_MALFORMED,
			"{0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5d}", NULL },
		{ "header:id", "0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5", "{}", ID_MALFORMED,
			"0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5", NULL },
		{ "header:id", "0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5g", "{}", ID_MALFORMED,
			"0190a8c4-7d2e-7b6f-8c3d-5e1f2a3b4c5g", NULL },
		{ "header:event", "abc", "{}", ID_MISSING, "", NULL },
		{ "json:id", NULL, "{\"id\":\"abc\"}", ID_OK, "abc", "ba7816bf-8f01-8fea-8141-40de5dae2223" },
		{ "json:a.b.id", NULL, "{\"a\":{\"x\":{},\"b\":{\"id\":\"" UUID "\"}}}", ID_OK, UUID, UUID },
		{ "json:a.id", NULL, "{\"a\":{\"id\":1},\"a\":{\"id\":7}}", ID_OK, "7", NULL },
		{ "json:a.id", NULL, "{\"a\":\"{\\\"id\\\":1}\"}", ID_MISSING, "", NULL },
		{ "json:a", NULL, "{\"a\":{\"id\":1}}", ID_MISSING, "", NULL },
		{ "json:a", NULL, "{\"a\":null}", ID_MISSING, "", NULL },
		{ "json:a", NULL, "{\"a\":\"\"}", ID_MALFORMED, "", NULL },
		{ "json:a", NULL, "[\"a\"]", ID_MISSING, "", NULL },
		{ "json:a", NULL, "{\"a\":1", ID_MISSING, "", NULL },
		{ "json:a", NULL, NULL, ID_MISSING, "", NULL },
		{ "json:a.b", NULL, "{\"a\":1}", ID_MISSING, "", NULL },
		{ "json:a", NULL, "{\"a\":\"{\\u0061}\"}", ID_OK, "{a}", NULL },
		{ "offset", NULL, "x", ID_OK, "outbox.event.order-3-1234567890123", NULL },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct message *m = make("k", t[i].payload);

		if (t[i].header)
			add_header(m, "id", t[i].header, strlen(t[i].header));
		decode(m, t[i].how);
		if (m->id_state != t[i].want || strcmp(m->id_text, t[i].text) != 0)
			fail_msg("case %zu: state %d, text \"%s\"", i, m->id_state, m->id_text);
		if (t[i].uuid)
			assert_string_equal(uuid_of(m), t[i].uuid);
		message_free(m);
	}
}

static void a_long_id_is_cut_in_whole_characters(void **state)
{
	struct message *m = make("k", "{}"), *other = make("k", "{}");
	char text[300];

	(void)state;
	memset(text, 'a', sizeof(text));
	for (size_t i = 98; i + 1 < sizeof(text); i += 2)
		memcpy(text + i, "\xc3\xa9", 2);
	add_header(m, "id", text, sizeof(text));
	decode(m, "header:id");
	assert_int_equal(strlen(m->id_text), 98);
	text[200]--; /* 0xc2: another character behind the cut is another id */
	add_header(other, "id", text, sizeof(text));
	decode(other, "header:id");
	assert_memory_not_equal(m->id, other->id, 16);
	assert_int_equal(m->id[6] >> 4, 8);
	message_free(m);
	message_free(other);

	m = make("k", "{}");
	add_header(m, "id",
		"a\0\xff"
		"b",
		4);
	decode(m, "header:id");
	assert_string_equal(m->id_text, "a??b");
	message_free(m);
}

static void the_last_header_of_a_name_counts(void **state)
{
	struct message *m = make("k", NULL);
	struct pr_buf b = { 0 };

	(void)state;
	add_header(m, "type", "Old", 3);
	add_header(m, "n", NULL, 0);
	add_header(m, "type", "New", 3);
	add_header(m, "raw", "\xff\x00\x01", 3);
	add_header(m, "nul", "a\0b", 3);
	decode(m, "header:id");
	assert_int_equal(m->type_len, 3);
	assert_memory_equal(m->type, "New", 3);
	assert_int_equal(m->hash, 0);
	assert_false(m->json);
	message_put_headers(&b, m);
	assert_string_equal(b.s,
		"{\"n\":null,\"type\":\"New\",\"raw\":{\"base64\":\"/wAB\"},\"nul\":{\"base64\":\"YQBi\"}}");
	pr_buf_free(&b);
	message_free(m);
}

static void many_headers_are_one_object(void **state)
{
	struct message *m = make("k", "1");
	struct pr_buf b = { 0 };
	char names[100][8];
	cJSON *doc;

	(void)state;
	for (int i = 0; i < 100; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "h%d", i % 40);
		add_header(m, names[i], names[i] + i % 2, strlen(names[i]) - (size_t)i % 2);
	}
	message_put_headers(&b, m);
	doc = cJSON_Parse(b.s);
	assert_int_equal(cJSON_GetArraySize(doc), 40);
	for (int i = 60; i < 100; i++)
		assert_string_equal(cJSON_GetObjectItem(doc, names[i])->valuestring, names[i] + i % 2);
	cJSON_Delete(doc);
	pr_buf_free(&b);
	message_free(m);
}

/* What goes into inbox.parked comes out of it. */
static void headers_come_back(void **state)
{
	struct message *m = make("k", NULL), *back = make("k", NULL);
	struct pr_buf b = { 0 }, again = { 0 };
	const struct header *h;

	(void)state;
	add_header(m, "id", UUID, 36);
	add_header(m, "n", NULL, 0);
	add_header(m, "empty", "", 0);
	add_header(m, "raw1", "\xff", 1);
	add_header(m, "raw2", "\xff\x00", 2);
	add_header(m, "raw3", "\xff\x00\x01", 3);
	add_header(m, "zero", "\0", 1);
	add_header(m, "fake", "{\"base64\":\"AAAA\"}", 17);
	message_put_headers(&b, m);
	message_read_headers(back, b.s);
	assert_int_equal(back->headers_n, m->headers_n);
	message_put_headers(&again, back);
	assert_string_equal(b.s, again.s);
	for (size_t i = 0; i < m->headers_n; i++) {
		h = message_header(back, m->headers[i].name);
		assert_non_null(h);
		assert_int_equal(h->len, m->headers[i].len);
		assert_int_equal(!h->value, !m->headers[i].value);
		if (h->value)
			assert_memory_equal(h->value, m->headers[i].value, h->len);
	}
	decode(back, "header:id");
	assert_string_equal(uuid_of(back), UUID);
	message_read_headers(back, NULL);
	assert_int_equal(back->headers_n, 0);
	message_read_headers(back, "[1");
	assert_int_equal(back->headers_n, 0);
	message_read_headers(back, "{\"a\":{\"base64\":\"!!!!\"},\"b\":[1],\"c\":{\"base64\":\"A\"}}");
	assert_int_equal(back->headers_n, 3);
	assert_string_equal(message_header(back, "b")->value, "[1]");
	message_free(m);
	message_free(back);
	pr_buf_free(&b);
	pr_buf_free(&again);
}

static void filters(void **state)
{
	char *types[] = { (char[]){ "Order*" }, (char[]){ "Paid" } },
	     *headers[] = { (char[]){ "region=eu" } };
	struct pr_consumer_conf conf = { .id = (char[]){ "offset" } };
	static const struct {
		const char *type, *region;
		int types, headers, want;
	} t[] = {
		{ "Any", NULL, 0, 0, 1 },
		{ "OrderMade", NULL, 2, 0, 1 },
		{ "Order", NULL, 2, 0, 1 },
		{ "Orde", NULL, 2, 0, 0 },
		{ "Paid", NULL, 2, 0, 1 },
		{ "PaidLate", NULL, 2, 0, 0 },
		{ "Pai", NULL, 2, 0, 0 },
		{ "Paid", "eu", 2, 1, 1 },
		{ "Paid", "us", 2, 1, 0 },
		{ "Paid", NULL, 2, 1, 0 },
		{ "Any", "eu", 0, 1, 1 },
		{ "Any", "eu2", 0, 1, 0 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct message *m = make("k", "1");

		add_header(m, "type", t[i].type, strlen(t[i].type));
		if (t[i].region)
			add_header(m, "region", t[i].region, strlen(t[i].region));
		conf.filter.types = (struct pr_strs){ .v = types, .n = (size_t)t[i].types };
		conf.filter.headers = (struct pr_strs){ .v = headers, .n = (size_t)t[i].headers };
		message_decode(m, &conf);
		if (message_wanted(m, &conf) != t[i].want)
			fail_msg("case %zu", i);
		message_free(m);
	}
}

/* "!Seen*" excludes; alone, all others are wanted. */
static void excluded_types(void **state)
{
	static const char *const lists[][3] = { { "!Seen*" }, { "!Seen*", "Paid" },
		{ "Paid*", "!PaidLate" } };
	static const struct {
		const char *type;
		int list, want;
	} t[] = { { "Paid", 0, 1 }, { "SeenTwice", 0, 0 }, { "Seen", 0, 0 }, { "", 0, 1 }, { "Paid", 1, 1 },
		{ "Other", 1, 0 }, { "Seen", 1, 0 }, { "PaidEarly", 2, 1 }, { "PaidLate", 2, 0 },
		{ "Other", 2, 0 } };
	struct pr_consumer_conf conf = { 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct message *m = make("k", "1");

		add_header(m, "type", t[i].type, strlen(t[i].type));
		conf.filter.types =
			(struct pr_strs){ .v = (char **)(uintptr_t)lists[t[i].list], .n = t[i].list ? 2 : 1 };
		message_decode(m, &conf);
		if (message_wanted(m, &conf) != t[i].want)
			fail_msg("case %zu", i);
		message_free(m);
	}
}

/* ---------------------------------------------------------------- lanes */

static uint32_t mix(uint32_t h)
{
	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return h ^ h >> 16;
}

static void lane_hash_is_murmur2_mixed(void **state)
{
	/* From Kafka's own UtilsTest.testMurmur2. */
	static const struct {
		const char *key;
		int32_t murmur2;
	} t[] = { { "21", -973932308 }, { "foobar", -790332482 }, { "a-little-bit-long-string", -985981536 },
		{ "a-little-bit-longer-string", -1486304829 },
		{ "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971 }, { "abc", 479470107 } };

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct message *m = make(t[i].key, NULL);

		assert_int_equal(message_lane_hash(m), mix((uint32_t)t[i].murmur2) & 0x7fffffff);
		message_free(m);
	}
}

/* murmur2 of a key of eight bytes, written down once more. */
static uint32_t murmur2_of_8(const char *key)
{
	uint32_t h = 0x9747b28c ^ 8, k;

	for (int i = 0; i < 2; i++) {
		memcpy(&k, key + i * 4, 4);
		k *= 0x5bd1e995;
		k = (k ^ k >> 24) * 0x5bd1e995;
		h = h * 0x5bd1e995 ^ k;
	}
	h = (h ^ h >> 13) * 0x5bd1e995;
	return (h ^ h >> 15) & 0x7fffffff;
}

/* All keys of one partition share murmur2 modulo the partitions; still they must fill all lanes. */
static void keys_of_one_partition_fill_all_lanes(void **state)
{
	int seen[4] = { 0 }, n = 0;
	struct message *m;
	char key[16];

	(void)state;
	for (int i = 0; i < 100000; i++) {
		(void)snprintf(key, sizeof(key), "k%07d", i);
		if (murmur2_of_8(key) % 4 != 1)
			continue;
		m = make(key, NULL);
		seen[message_lane(m, 4)]++;
		message_free(m);
		n++;
	}
	assert_in_range(n, 24000, 26000);
	for (int i = 0; i < 4; i++)
		assert_in_range(seen[i], n / 4 - 500, n / 4 + 500);
}

static void without_a_key_the_offset_decides(void **state)
{
	struct message *m = make(NULL, NULL);

	(void)state;
	for (m->offset = 5; m->offset < 9; m->offset++)
		assert_int_equal(message_lane(m, 4), m->offset % 4);
	m->offset = INT64_MAX;
	assert_in_range(message_lane(m, 7), 0, 6);
	message_free(m);
}

/* ---------------------------------------------------------------- as others see it */

static void json_line(void **state)
{
	struct pr_buf b = { 0 };
	struct message *m = make("k\"1", "{\"a\":\r\n 1.50}");

	(void)state;
	add_header(m, "id", UUID, 36);
	add_header(m, "type", "Made", 4);
	decode(m, "header:id");
	m->attempts = 2;
	message_put_json(&b, m, "do");
	assert_string_equal(b.s,
		"{\"op\":\"do\",\"id\":\"" UUID
		"\",\"type\":\"Made\",\"topic\":\"outbox.event.order\",\"partition\":3,"
		"\"offset\":1234567890123,\"key\":\"k\\\"1\",\"time\":\"2026-01-01T00:00:00.123456Z\","
		"\"attempt\":3,"
		"\"headers\":{\"id\":\"" UUID "\",\"type\":\"Made\"},\"payload\":{\"a\":   1.50}}");
	message_free(m);

	b.len = 0;
	m = make(NULL, NULL);
	m->time_us = -1;
	decode(m, "header:id");
	message_put_json(&b, m, "undo");
	assert_string_equal(b.s,
		"{\"op\":\"undo\",\"id\":null,\"type\":\"\",\"topic\":\"outbox.event.order\",\"partition\":3,"
		"\"offset\":1234567890123,\"key\":null,\"time\":null,\"attempt\":1,\"headers\":{},"
		"\"payload\":null}");
	message_free(m);

	b.len = 0;
	m = make("\xff\xfe", "not json");
	decode(m, "offset");
	message_put_json(&b, m, "do");
	assert_non_null(strstr(b.s, "\"key\":\"base64://4=\""));
	assert_non_null(strstr(b.s, "\"payload_base64\":\"bm90IGpzb24=\"}"));
	message_free(m);

	b.len = 0;
	m = make("k", "");
	decode(m, "offset");
	message_put_json(&b, m, "do");
	assert_non_null(strstr(b.s, "\"payload_base64\":\"\"}"));
	message_free(m);
	pr_buf_free(&b);
}

static void big_payloads_are_coded_in_parts(void **state)
{
	size_t n = 7u << 20;
	char *big = pr_calloc(1, n + 1);
	struct message *m = make("k", NULL);
	struct pr_buf b = { 0 };
	const char *at;

	(void)state;
	m->payload = big;
	m->payload_len = n;
	decode(m, "offset");
	message_put_json(&b, m, "do");
	at = strstr(b.s, "\"payload_base64\":\"") + 18;
	assert_int_equal(strspn(at, "A"), (n + 2) / 3 * 4 - 2);
	assert_string_equal(at + (n + 2) / 3 * 4 - 2, "==\"}");
	assert_int_equal(strlen(b.s), b.len);
	message_free(m);
	free(big);
	pr_buf_free(&b);
}

#define SCHEMA                                                                                               \
	"BEGIN; DROP SCHEMA IF EXISTS inbox CASCADE; CREATE SCHEMA inbox;"                                   \
	"CREATE TYPE inbox.message AS (id uuid, topic text, partition int, message_offset bigint, key text," \
	" type text, payload jsonb, payload_bytes bytea, headers jsonb, \"time\" timestamptz);"              \
	"SET LOCAL TimeZone = 'UTC'"

static void types_of(PGconn *conn, struct message_types *types)
{
	PGresult *res = PQexec(conn, "SELECT 'inbox.message'::regtype::oid, 'inbox.message[]'::regtype::oid");

	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	types->message = (Oid)strtoul(PQgetvalue(res, 0, 0), NULL, 10);
	types->message_array = (Oid)strtoul(PQgetvalue(res, 0, 1), NULL, 10);
	PQclear(res);
}

static void row_is(PGresult *res, int row, const char *const want[10])
{
	for (int i = 0; i < 10; i++) {
		assert_int_equal(PQgetisnull(res, row, i), want[i] == NULL);
		if (want[i])
			assert_string_equal(PQgetvalue(res, row, i), want[i]);
	}
}

static void postgres_reads_the_array(void **state)
{
	PGconn *conn = connect_or_skip();
	struct message_types types;
	struct message *m[5];
	struct pr_buf b = { 0 };
	PGresult *res;

	(void)state;
	run(conn, SCHEMA);
	types_of(conn, &types);
	m[0] = make("k1", "{\"a\": 1.50}");
	add_header(m[0], "id", UUID, 36);
	add_header(m[0], "type", "Made", 4);
	decode(m[0], "header:id");
	m[1] = make(NULL, NULL); /* tombstone, nothing known */
	m[1]->time_us = -1;
	decode(m[1], "header:id");
	m[2] = make("\xff", "\x01\x02");
	add_header(m[2], "type", "\xfe", 1);
	decode(m[2], "offset");
	m[3] = make("a", "");
	m[3]->key_len = 0;
	m[3]->time_us = 0;
	decode(m[3], "offset");
	m[4] = make("\xc3\xa9", "[]");
	m[4]->time_us = 253402300799999000;
	add_header(m[4], "raw", "\0", 1);
	decode(m[4], "header:id");
	message_put_array(&b, &types, m, 5);
	res = with_binary(conn, "SELECT (unnest($1)).*", types.message_array, b.s, b.len);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s", PQerrorMessage(conn));
	assert_int_equal(PQntuples(res), 5);
	row_is(res, 0,
		(const char *const[10]){ UUID, "outbox.event.order", "3", "1234567890123", "k1", "Made",
			"{\"a\": 1.50}", NULL, "{\"id\": \"" UUID "\", \"type\": \"Made\"}",
			"2026-01-01 00:00:00.123456+00" });
	row_is(res, 1,
		(const char *const[10]){
			NULL, "outbox.event.order", "3", "1234567890123", NULL, "", NULL, NULL, "{}", NULL });
	row_is(res, 2,
		(const char *const[10]){ uuid_of(m[2]), "outbox.event.order", "3", "1234567890123",
			"base64:/w==", "base64:/g==", NULL, "\\x0102", "{\"type\": {\"base64\": \"/g==\"}}",
			"2026-01-01 00:00:00.123456+00" });
	row_is(res, 3,
		(const char *const[10]){ uuid_of(m[3]), "outbox.event.order", "3", "1234567890123", "", "",
			NULL, "\\x", "{}", "1970-01-01 00:00:00+00" });
	row_is(res, 4,
		(const char *const[10]){ NULL, "outbox.event.order", "3", "1234567890123", "\xc3\xa9", "",
			"[]", NULL, "{\"raw\": {\"base64\": \"AA==\"}}", "9999-12-31 23:59:59.999+00" });
	PQclear(res);
	b.len = 0;
	message_put_array(&b, &types, m, 0);
	res = with_binary(conn, "SELECT cardinality($1)", types.message_array, b.s, b.len);
	assert_string_equal(PQgetvalue(res, 0, 0), "0");
	PQclear(res);
	for (int i = 0; i < 5; i++)
		message_free(m[i]);
	pr_buf_free(&b);
	PQfinish(conn);
}

static void many_messages_in_one_array(void **state)
{
	enum { N = 3000 };
	PGconn *conn = connect_or_skip();
	struct message_types types;
	struct message *m[N];
	struct pr_buf b = { 0 };
	PGresult *res;

	(void)state;
	run(conn, SCHEMA);
	types_of(conn, &types);
	for (int i = 0; i < N; i++) {
		m[i] = make("k1", i % 3 ? "{\"amount\":1}" : "bytes");
		m[i]->offset = i;
		add_header(m[i], "id", UUID, 36);
		decode(m[i], i % 7 ? "header:id" : "header:none");
	}
	message_put_array(&b, &types, m, N);
	res = with_binary(conn,
		"SELECT sum((payload->>'amount')::int), count(payload_bytes), count(id), sum(message_offset)"
		" FROM unnest($1)",
		types.message_array, b.s, b.len);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s", PQerrorMessage(conn));
	assert_string_equal(PQgetvalue(res, 0, 0), "2000");
	assert_string_equal(PQgetvalue(res, 0, 1), "1000");
	assert_string_equal(PQgetvalue(res, 0, 2), "2571");
	assert_string_equal(PQgetvalue(res, 0, 3), "4498500");
	PQclear(res);
	for (int i = 0; i < N; i++)
		message_free(m[i]);
	pr_buf_free(&b);
	PQfinish(conn);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(json_by_table),
		cmocka_unit_test(digits_have_limits),
		cmocka_unit_test(what_we_call_json_jsonb_takes),
		cmocka_unit_test(ids),
		cmocka_unit_test(a_long_id_is_cut_in_whole_characters),
		cmocka_unit_test(the_last_header_of_a_name_counts),
		cmocka_unit_test(many_headers_are_one_object),
		cmocka_unit_test(headers_come_back),
		cmocka_unit_test(filters),
		cmocka_unit_test(excluded_types),
		cmocka_unit_test(lane_hash_is_murmur2_mixed),
		cmocka_unit_test(keys_of_one_partition_fill_all_lanes),
		cmocka_unit_test(without_a_key_the_offset_decides),
		cmocka_unit_test(json_line),
		cmocka_unit_test(big_payloads_are_coded_in_parts),
		cmocka_unit_test(postgres_reads_the_array),
		cmocka_unit_test(many_messages_in_one_array),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
