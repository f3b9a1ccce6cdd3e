/* tests/unit/sink_format_test.c -- Avro and Parquet as bytes: read again by libavro, the same whenever and in
 * whatever order they are made, and what waits for them in the spool. What pyarrow and fastavro make of them:
 * tests/e2e/test_sink_formats.py. */
#include "consumers/message.h"
#include "consumers/sink/sink.h"
#include "consumers/sink/spool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <avro.h>
#include <cmocka.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct memory {
	struct sink_dest dest; /* first */
	struct pr_buf bytes;
};

static int keep(struct sink_dest *d, const void *p, size_t n, struct pr_err *err)
{
	(void)err;
	pr_buf_put(&((struct memory *)d)->bytes, p, n);
	return 0;
}

/* ---------------------------------------------------------------- rows */

static void put(const struct sink_format_ops *f, struct sink_encoder *e, int64_t i)
{
	static const struct header headers[] = { { "again", "first", 5 }, { "bytes", "\xff\0\1", 3 },
		{ "none", NULL, 0 }, { "again", "last", 4 } };
	char id[64], payload[64];
	struct pr_err err = { 0 };
	struct sink_row row = { .id = i % 3 ? id : NULL,
		.type = "order.created",
		.type_len = 13,
		.topic = "orders",
		.partition = 3,
		.offset = i,
		.time_us = i % 4 ? 1767225600000000 + i : -1,
		.key = i % 5 == 1 ? "\x80key"
		       : i % 5    ? "key"
				  : NULL,
		.key_len = i % 5 == 1 ? 4 : 3,
		.headers = headers,
		.headers_n = i % 2 ? 4 : 0,
		.json = i % 7 > 1 };

	row.id_len = (size_t)snprintf(id, sizeof(id), "0197f9a0-0000-7000-8000-%012llx", (long long)i);
	row.payload_len = (size_t)snprintf(payload, sizeof(payload), "{\"n\":%lld}", (long long)i);
	row.payload = payload;
	if (i % 7 == 0)
		row.payload = NULL;
	if (i % 7 == 1) {
		row.payload = "\xff\xfe";
		row.payload_len = 2;
	}
	assert_int_equal(f->put(e, &row, &err), 0);
}

/* Its memory is wanted elsewhere. */
static void spare(const struct sink_format_ops *f, struct sink_encoder *e, struct sink_out *out)
{
	struct pr_err err;

	if (f->spare) {
		assert_int_equal(f->spare(e, &err), 0);
		assert_int_equal(f->held(e), 0);
	}
	assert_int_equal(sink_out_spare(out, &err), 0);
	assert_int_equal(out->buf.cap, 0);
}

/* every: so often its memory is wanted elsewhere; 0: never. */
static struct pr_buf encode_spared(const struct sink_format_ops *f, const struct pr_sink_format_conf *conf,
	const char *seed, int64_t n, int every, unsigned char sum[SINK_SUM])
{
	struct sink_press *press =
		f->packs ? NULL
			 : sink_press_new((enum pr_sink_compression)conf->compression, (int)conf->level);
	struct memory m = { .dest.write = keep };
	struct sink_encoder *e = NULL;
	struct pr_err err = { 0 };
	struct sink_out out;

	sink_out_init(&out, &m.dest, press);
	assert_int_equal(f->open(conf, seed, &out, &e, &err), 0);
	for (int64_t i = 0; i < n; i++) {
		put(f, e, i);
		if (every && i % every == 0)
			spare(f, e, &out);
	}
	assert_int_equal(f->finish(e, &err), 0);
	assert_int_equal(sink_out_end(&out, sum, &err), 0);
	assert_int_equal(out.out, m.bytes.len);
	f->close(e);
	sink_out_free(&out);
	sink_press_free(press);
	return m.bytes;
}

static struct pr_buf encode(const struct sink_format_ops *f, const struct pr_sink_format_conf *conf,
	const char *seed, int64_t n, unsigned char sum[SINK_SUM])
{
	return encode_spared(f, conf, seed, n, 0, sum);
}

/* ---------------------------------------------------------------- Avro, by libavro */

static void want_text(avro_value_t *record, const char *name, const char *want)
{
	avro_value_t v, branch;
	const char *s = NULL;
	size_t n;

	assert_int_equal(avro_value_get_by_name(record, name, &v, NULL), 0);
	if (avro_value_get_type(&v) == AVRO_UNION) {
		assert_int_equal(avro_value_get_current_branch(&v, &branch), 0);
		v = branch;
	}
	if (!want) {
		assert_int_equal(avro_value_get_type(&v), AVRO_NULL);
		return;
	}
	assert_int_equal(avro_value_get_string(&v, &s, &n), 0);
	assert_string_equal(s, want);
}

static void want_header(avro_value_t *record, const char *name, const char *want)
{
	avro_value_t map;

	assert_int_equal(avro_value_get_by_name(record, "headers", &map, NULL), 0);
	want_text(&map, name, want);
}

static void want_row(avro_value_t *r, int64_t i)
{
	char id[64], payload[64];
	avro_value_t v, branch;
	int64_t l;
	size_t n;

	(void)snprintf(id, sizeof(id), "0197f9a0-0000-7000-8000-%012llx", (long long)i);
	(void)snprintf(payload, sizeof(payload), "{\"n\":%lld}", (long long)i);
	want_text(r, "id", i % 3 ? id : NULL);
	want_text(r, "type", "order.created");
	want_text(r, "topic", "orders");
	want_text(r, "key", i % 5 == 1 ? "base64:gGtleQ==" : i % 5 ? "key" : NULL);
	want_text(r, "payload", i % 7 > 1 ? payload : NULL);
	want_text(r, "payload_base64", i % 7 == 1 ? "//4=" : NULL);
	assert_int_equal(avro_value_get_by_name(r, "offset", &v, NULL), 0);
	assert_int_equal(avro_value_get_long(&v, &l), 0);
	assert_int_equal(l, i);
	assert_int_equal(avro_value_get_by_name(r, "time", &v, NULL), 0);
	assert_int_equal(avro_value_get_current_branch(&v, &branch), 0);
	if (i % 4) {
		assert_int_equal(avro_value_get_long(&branch, &l), 0);
		assert_int_equal(l, 1767225600000000 + i);
	} else {
		assert_int_equal(avro_value_get_type(&branch), AVRO_NULL);
	}
	assert_int_equal(avro_value_get_by_name(r, "headers", &v, NULL), 0);
	assert_int_equal(avro_value_get_size(&v, &n), 0);
	assert_int_equal(n, i % 2 ? 3 : 0);
	if (i % 2) {
		want_header(r, "again", "last");
		want_header(r, "bytes", "base64:/wAB");
		want_header(r, "none", NULL);
	}
}

static void read_avro(struct pr_buf *bytes, int64_t n)
{
	FILE *fp = fmemopen(bytes->s, bytes->len, "rb");
	avro_file_reader_t reader;
	avro_value_iface_t *iface;
	avro_schema_t schema;
	avro_value_t record;

	assert_non_null(fp);
	assert_int_equal(avro_file_reader_fp(fp, "memory", 1, &reader), 0);
	schema = avro_file_reader_get_writer_schema(reader);
	iface = avro_generic_class_from_schema(schema);
	assert_int_equal(avro_generic_value_new(iface, &record), 0);
	for (int64_t i = 0; i < n; i++) {
		assert_int_equal(avro_file_reader_read_value(reader, &record), 0);
		want_row(&record, i);
	}
	assert_int_not_equal(avro_file_reader_read_value(reader, &record), 0);
	avro_value_decref(&record);
	avro_value_iface_decref(iface);
	avro_schema_decref(schema);
	assert_int_equal(avro_file_reader_close(reader), 0);
}

static void avro_is_read_by_libavro(void **state)
{
	const int codecs[] = { PR_SINK_PLAIN, PR_SINK_GZIP };
	unsigned char sum[SINK_SUM];

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct pr_sink_format_conf conf = { .compression = codecs[i], .level = 3, .row_group = 100 };
		struct pr_buf bytes = encode(&sink_format_avro, &conf, "orders/3/0", 1234, sum);

		read_avro(&bytes, 1234);
		pr_buf_free(&bytes);
	}
}

/* A file without a record is one too. */
static void empty_avro(void **state)
{
	struct pr_sink_format_conf conf = { .row_group = 100 };
	unsigned char sum[SINK_SUM];
	struct pr_buf bytes = encode(&sink_format_avro, &conf, "", 0, sum);

	(void)state;
	read_avro(&bytes, 0);
	pr_buf_free(&bytes);
}

/* Also when others had the memory in between: chunks, blocks and row groups end where they do. */
static void same(const struct sink_format_ops *f, const struct pr_sink_format_conf *conf, int64_t n)
{
	unsigned char a[SINK_SUM], b[SINK_SUM];
	struct pr_buf x = encode(f, conf, "orders/3/0", n, a),
		      y = encode_spared(f, conf, "orders/3/0", n, 7, b);

	assert_int_equal(x.len, y.len);
	assert_memory_equal(x.s, y.s, x.len);
	assert_memory_equal(a, b, SINK_SUM);
	pr_buf_free(&x);
	pr_buf_free(&y);
}

static void lines_are_deterministic(void **state)
{
	struct pr_sink_format_conf conf = { .level = 3 };

	(void)state;
	for (conf.compression = PR_SINK_PLAIN; conf.compression <= PR_SINK_ZSTD; conf.compression++)
		same(&sink_format_ndjson, &conf, 5000);
}

static void avro_is_deterministic(void **state)
{
	struct pr_sink_format_conf conf = { .level = 3, .row_group = 1000 };
	unsigned char a[SINK_SUM], b[SINK_SUM];
	struct pr_buf x, y;

	(void)state;
	for (conf.compression = PR_SINK_PLAIN; conf.compression <= PR_SINK_ZSTD; conf.compression++)
		same(&sink_format_avro, &conf, 5000);
	conf.compression = PR_SINK_PLAIN;
	x = encode(&sink_format_avro, &conf, "orders/3/0", 10, a);
	y = encode(&sink_format_avro, &conf, "orders/4/0", 10, b);
	assert_memory_not_equal(a, b, SINK_SUM); /* the marker is the file's own */
	pr_buf_free(&x);
	pr_buf_free(&y);
}

/* ---------------------------------------------------------------- Parquet */

/* Where make setup puts it; NULL: it could not be had. Owned. */
static char *duckdb(void)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	char *pattern = cache && *cache
				? pr_asprintf("%s/postrider/duckdb-*/libduckdb.so", cache)
				: pr_asprintf("%s/.cache/postrider/duckdb-*/libduckdb.so", home ? home : "");
	char *path = NULL;
	glob_t g;

	if (glob(pattern, 0, NULL, &g) == 0)
		path = pr_strdup(g.gl_pathv[g.gl_pathc - 1]);
	globfree(&g);
	free(pattern);
	return path;
}

static void parquet_is_deterministic(void **state)
{
	struct pr_sink_format_conf conf = { .compression = PR_SINK_ZSTD, .level = 3, .row_group = 4096 };
	unsigned char sum[SINK_SUM];
	struct pr_buf bytes;

	(void)state;
	conf.parquet_library = duckdb();
	if (!conf.parquet_library)
		skip();
	same(&sink_format_parquet, &conf, 10000); /* more than waits in memory, several row groups */
	bytes = encode(&sink_format_parquet, &conf, "", 3, sum);
	assert_memory_equal(bytes.s, "PAR1", 4);
	assert_memory_equal(bytes.s + bytes.len - 4, "PAR1", 4);
	pr_buf_free(&bytes);
	free(conf.parquet_library);
}

/* Its first use is refused by name, as a mistake in the configuration. */
static void parquet_without_its_library(void **state)
{
	char path[] = "/nowhere/libduckdb.so", other[] = "libz.so.1";
	struct pr_sink_format_conf conf = { .parquet_library = path };
	struct sink_encoder *e;
	struct pr_err err = { 0 };

	(void)state;
	assert_int_equal(sink_format_parquet.open(&conf, "", NULL, &e, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_non_null(strstr(err.text, path));
	assert_non_null(strstr(err.hint, "parquet_library"));
	conf.parquet_library = other;
	assert_int_equal(sink_format_parquet.open(&conf, "", NULL, &e, &err), -1);
	assert_non_null(strstr(err.text, "lacks: duckdb_"));
}

/* ---------------------------------------------------------------- what waits */

static void check_roll(const struct sink_roll *r, char c, int64_t len)
{
	char buf[1000];
	struct pr_err err;

	assert_int_equal(r->len, len);
	for (int64_t at = 0; at < len; at += (int64_t)sizeof(buf)) {
		size_t n = len - at < (int64_t)sizeof(buf) ? (size_t)(len - at) : sizeof(buf);

		assert_int_equal(sink_roll_read(r, at, buf, n, &err), 0);
		for (size_t i = 0; i < n; i++)
			assert_int_equal(buf[i], c);
	}
	assert_int_equal(sink_roll_read(r, len, buf, 1, &err), -1);
}

/* Written by turns, freed in between: nobody gets another's bytes. */
static void rolls_share_a_file(void **state)
{
	struct sink_roll r[4] = { 0 };
	static char chunk[50000];
	struct pr_err err;

	(void)state;
	for (int turn = 0; turn < 3; turn++) {
		for (int i = 0; i < 40; i++) {
			memset(chunk, 'a' + i % 4, sizeof(chunk));
			assert_int_equal(sink_roll_put(&r[i % 4], chunk, sizeof(chunk), &err), 0);
		}
		sink_roll_free(&r[turn]);
		for (int i = turn + 1; i < 4; i++)
			check_roll(&r[i], (char)('a' + i), (turn + 1) * 10 * (int64_t)sizeof(chunk));
		for (int i = 0; i <= turn; i++)
			sink_roll_free(&r[i]);
	}
	sink_roll_free(&r[3]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(avro_is_read_by_libavro),
		cmocka_unit_test(empty_avro),
		cmocka_unit_test(lines_are_deterministic),
		cmocka_unit_test(avro_is_deterministic),
		cmocka_unit_test(parquet_without_its_library),
		cmocka_unit_test(parquet_is_deterministic),
		cmocka_unit_test(rolls_share_a_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
