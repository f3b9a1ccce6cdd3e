/* consumers/sink/parquet.c -- format: Parquet, written by DuckDB's library (docs/decisions: the sink's
 * formats). It wants a file's rows in one go, so they wait in the spool until the file ends: a file that is
 * open costs a small buffer, and one that is being ended a row group. Deterministic: one thread, rows in
 * order, nothing of the clock. Refuses to begin without the library; refuses nothing that is in a record. */
#include "consumers/sink/cells.h"
#include "consumers/sink/duck.h"
#include "consumers/sink/spool.h"

#include "lib/err.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_BYTES  (64u << 10) /* so much waits in memory, then it goes to the spool */
#define WAIT_KEPT   (256u << 10)
#define CHUNK_BYTES (1u << 20) /* DuckDB gets so much at a time, or one row */
#define READ_BYTES  (256u << 10)
#define TEXTS       6 /* id, type, topic, key, payload, payload_base64 */
#define NONE        UINT32_MAX

struct sink_encoder {
	const struct duck *duck;
	struct sink_out *out; /* borrowed */
	const struct pr_sink_format_conf *conf;
	struct sink_cells cells;
	struct pr_buf waiting; /* rows that are not in the spool yet */
	struct sink_roll roll; /* those before */
};

/* A row as it waits: this, then its texts, then its headers' names and values, each after its length. */
struct row_head {
	uint32_t bytes; /* behind this head */
	uint32_t headers_n;
	int32_t partition;
	int64_t offset, time_us;
};

/* ---------------------------------------------------------------- rows into the spool */

static void put_text(struct pr_buf *b, struct sink_text t)
{
	uint32_t n = t.s ? (uint32_t)t.n : NONE;

	pr_buf_put(b, &n, sizeof(n));
	if (t.s)
		pr_buf_put(b, t.s, t.n);
}

static void put_row(struct pr_buf *b, const struct sink_cells *c)
{
	struct row_head head = { .headers_n = (uint32_t)c->headers_n,
		.partition = c->partition,
		.offset = c->offset,
		.time_us = c->time_us };
	size_t at = b->len;

	pr_buf_put(b, &head, sizeof(head));
	put_text(b, c->id);
	put_text(b, c->type);
	put_text(b, c->topic);
	put_text(b, c->key);
	put_text(b, c->payload);
	put_text(b, c->payload_base64);
	for (size_t i = 0; i < c->headers_n; i++) {
		put_text(b, c->headers[i].name);
		put_text(b, c->headers[i].value);
	}
	head.bytes = (uint32_t)(b->len - at - sizeof(head));
	memcpy(b->s + at, &head, sizeof(head));
}

static int parquet_put(struct sink_encoder *e, const struct sink_row *row, struct pr_err *err)
{
	size_t before = e->waiting.len;

	sink_cells_of(&e->cells, row);
	put_row(&e->waiting, &e->cells);
	e->out->in +=
		(int64_t)(e->waiting.len - before); /* a cut is due by what came, not by what is written */
	if (e->waiting.len < WAIT_BYTES)
		return 0;
	if (sink_roll_put(&e->roll, e->waiting.s, e->waiting.len, err) < 0)
		return -1;
	e->waiting.len = 0;
	if (e->waiting.cap > WAIT_KEPT)
		pr_buf_free(&e->waiting);
	return 0;
}

static size_t parquet_held(const struct sink_encoder *e)
{
	return e->waiting.cap + sink_cells_held(&e->cells);
}

static int parquet_spare(struct sink_encoder *e, struct pr_err *err)
{
	sink_cells_free(&e->cells);
	return sink_roll_take(&e->roll, &e->waiting, err);
}

/* ---------------------------------------------------------------- rows out of the spool, as DuckDB wants
 * them */

/* The rows of one file on their way; the table function's argument is its address. */
struct rows {
	const struct duck *duck;
	struct sink_encoder *e;
	int64_t at;           /* of the spool's bytes, then the waiting ones */
	struct pr_buf window; /* whole rows from it on, and the beginning of another */
	int failed;
	struct pr_err err;
};

static int64_t bytes_of(const struct sink_encoder *e)
{
	return e->roll.len + (int64_t)e->waiting.len;
}

static int read_bytes(const struct sink_encoder *e, int64_t at, char *p, size_t n, struct pr_err *err)
{
	size_t in_roll = at < e->roll.len ? (size_t)(e->roll.len - at) : 0;

	in_roll = in_roll < n ? in_roll : n;
	if (in_roll && sink_roll_read(&e->roll, at, p, in_roll, err) < 0)
		return -1;
	if (n > in_roll)
		memcpy(p + in_roll, e->waiting.s + (at + (int64_t)in_roll - e->roll.len), n - in_roll);
	return 0;
}

/* The window grows to at least n bytes, when there are so many. */
static int look_ahead(struct rows *r, size_t n)
{
	struct pr_buf *w = &r->window;
	int64_t left = bytes_of(r->e) - r->at - (int64_t)w->len;
	size_t more = n > w->len ? n - w->len : 0;

	if (!more || !left)
		return 0;
	more = more < READ_BYTES ? READ_BYTES : more;
	more = (int64_t)more < left ? more : (size_t)left;
	if (w->len + more + 1 > w->cap) {
		w->cap = w->len + more + 1;
		w->s = pr_realloc(w->s, w->cap);
	}
	if (read_bytes(r->e, r->at + (int64_t)w->len, w->s + w->len, more, &r->err) < 0)
		return -1;
	w->len += more;
	return 0;
}

/* Whole rows that lie in the window from its beginning: at most `most`, at most CHUNK_BYTES unless it is one.
 */
static int find_rows(struct rows *r, uint64_t most, uint64_t *ret_n, size_t *ret_bytes, uint64_t *ret_headers)
{
	struct row_head head;
	size_t at = 0;

	*ret_n = *ret_headers = 0;
	while (*ret_n < most && at < CHUNK_BYTES) {
		if (look_ahead(r, at + sizeof(head)) < 0)
			return -1;
		if (r->window.len < at + sizeof(head))
			break;
		memcpy(&head, r->window.s + at, sizeof(head));
		if (look_ahead(r, at + sizeof(head) + head.bytes) < 0)
			return -1;
		at += sizeof(head) + head.bytes;
		*ret_headers += head.headers_n;
		++*ret_n;
	}
	*ret_bytes = at;
	return 0;
}

/* A vector of strings that may be null. */
static const char *take_text(const struct duck *d, void *vector, uint64_t row, const char *p)
{
	uint32_t n;

	memcpy(&n, p, sizeof(n));
	p += sizeof(n);
	if (n != NONE) {
		d->vector_assign_string_element_len(vector, row, p, n);
		return p + n;
	}
	d->vector_ensure_validity_writable(vector);
	d->validity_set_row_invalid(d->vector_get_validity(vector), row);
	return p;
}

/* The columns of a chunk. */
struct columns {
	void *text[TEXTS];
	int32_t *partition;
	int64_t *offset, *time_us;
	void *time, *headers, *name, *value;
	struct duck_list_entry *entries;
	uint64_t headers_n;
};

static void columns_of(const struct duck *d, void *chunk, struct columns *c)
{
	static const uint64_t text_at[TEXTS] = { 0, 1, 2, 5, 8, 9 };

	for (size_t i = 0; i < TEXTS; i++)
		c->text[i] = d->data_chunk_get_vector(chunk, text_at[i]);
	c->partition = d->vector_get_data(d->data_chunk_get_vector(chunk, 3));
	c->offset = d->vector_get_data(d->data_chunk_get_vector(chunk, 4));
	c->time = d->data_chunk_get_vector(chunk, 6);
	c->time_us = d->vector_get_data(c->time);
	c->headers = d->data_chunk_get_vector(chunk, 7);
	c->entries = d->vector_get_data(c->headers);
	c->headers_n = 0;
}

static int room_for_headers(const struct duck *d, struct columns *c, uint64_t n)
{
	void *pair;

	if (d->list_vector_reserve(c->headers, n ? n : 1) != 0 || d->list_vector_set_size(c->headers, n) != 0)
		return -1;
	pair = d->list_vector_get_child(c->headers);
	c->name = d->struct_vector_get_child(pair, 0);
	c->value = d->struct_vector_get_child(pair, 1);
	return 0;
}

static const char *take_row(const struct duck *d, struct columns *c, uint64_t row, const char *p)
{
	struct row_head head;

	memcpy(&head, p, sizeof(head));
	p += sizeof(head);
	c->partition[row] = head.partition;
	c->offset[row] = head.offset;
	c->time_us[row] = head.time_us;
	if (head.time_us < 0) {
		d->vector_ensure_validity_writable(c->time);
		d->validity_set_row_invalid(d->vector_get_validity(c->time), row);
	}
	for (size_t i = 0; i < TEXTS; i++)
		p = take_text(d, c->text[i], row, p);
	c->entries[row] = (struct duck_list_entry){ .offset = c->headers_n, .length = head.headers_n };
	for (uint32_t i = 0; i < head.headers_n; i++, c->headers_n++) {
		p = take_text(d, c->name, c->headers_n, p);
		p = take_text(d, c->value, c->headers_n, p);
	}
	return p;
}

static void forget_window(struct rows *r, size_t n)
{
	memmove(r->window.s, r->window.s + n, r->window.len - n);
	r->window.len -= n;
	r->at += (int64_t)n;
}

/* DuckDB's library is one for the process, and its callbacks know no more than this. */
static struct {
	pthread_mutex_t mutex;
	const struct duck *duck;
	void *database;
} base = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static void on_rows(void *info, void *chunk)
{
	const struct duck *d = base.duck;
	struct rows *r = d->function_get_bind_data(info);
	uint64_t n = 0, headers = 0;
	struct columns c;
	const char *p;
	size_t bytes = 0;

	columns_of(d, chunk, &c);
	if (find_rows(r, d->vector_size(), &n, &bytes, &headers) < 0 ||
		room_for_headers(d, &c, headers) < 0) {
		r->failed = 1;
		d->function_set_error(info, r->err.text[0] ? r->err.text : "no room for headers");
		return;
	}
	p = r->window.s;
	for (uint64_t i = 0; i < n; i++)
		p = take_row(d, &c, i, p);
	if (n)
		forget_window(r, bytes);
	d->data_chunk_set_size(chunk, n);
}

static void add_column(const struct duck *d, void *info, const char *name, int type)
{
	void *t = d->create_logical_type(type);

	d->bind_add_result_column(info, name, t);
	d->destroy_logical_type(&t);
}

static void add_map(const struct duck *d, void *info, const char *name)
{
	void *text = d->create_logical_type(DUCK_VARCHAR), *map = d->create_map_type(text, text);

	d->bind_add_result_column(info, name, map);
	d->destroy_logical_type(&map);
	d->destroy_logical_type(&text);
}

static void on_bind(void *info)
{
	const struct duck *d = base.duck;
	void *value = d->bind_get_parameter(info, 0);
	intptr_t address = (intptr_t)d->get_int64(value);

	d->destroy_value(&value);
	add_column(d, info, "id", DUCK_VARCHAR);
	add_column(d, info, "type", DUCK_VARCHAR);
	add_column(d, info, "topic", DUCK_VARCHAR);
	add_column(d, info, "partition", DUCK_INTEGER);
	add_column(d, info, "offset", DUCK_BIGINT);
	add_column(d, info, "key", DUCK_VARCHAR);
	add_column(d, info, "time", DUCK_TIMESTAMP_TZ);
	add_map(d, info, "headers");
	add_column(d, info, "payload", DUCK_VARCHAR);
	add_column(d, info, "payload_base64", DUCK_VARCHAR);
	d->bind_set_bind_data(info, (void *)address, NULL);
}

static void on_init(void *info)
{
	base.duck->init_set_max_threads(info, 1);
}

/* ---------------------------------------------------------------- the database that holds nothing */

static int duck_fail(const struct duck *d, struct duck_result *result, const char *what, struct pr_err *err)
{
	const char *why = result ? d->result_error(result) : NULL;

	return pr_fail(err, PR_RETRY, "DuckDB %s: %s%s", d->library_version(), what, why ? why : "");
}

static int register_rows(const struct duck *d, void *connection)
{
	void *f = d->create_table_function(), *bigint = d->create_logical_type(DUCK_BIGINT);
	int rc;

	d->table_function_set_name(f, "postrider_rows");
	d->table_function_add_parameter(f, bigint);
	d->table_function_set_bind(f, on_bind);
	d->table_function_set_init(f, on_init);
	d->table_function_set_function(f, on_rows);
	rc = d->register_table_function(connection, f);
	d->destroy_table_function(&f);
	d->destroy_logical_type(&bigint);
	return rc == 0 ? 0 : -1;
}

/* One thread: rows keep their order, so the order need not be kept up, and a row group may end by its bytes.
 */
static int open_base(const struct duck *d, struct pr_err *err)
{
	static const char *const settings[][2] = { { "threads", "1" }, { "memory_limit", "512MB" },
		{ "preserve_insertion_order", "false" }, { "autoinstall_known_extensions", "false" },
		{ "autoload_known_extensions", "false" } };
	void *config = NULL, *connection = NULL;
	char *why = NULL;
	int rc;

	if (d->create_config(&config) != 0)
		return duck_fail(d, NULL, "no configuration", err);
	for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++)
		(void)d->set_config(
			config, settings[i][0], settings[i][1]); /* what it does not know may go */
	rc = d->open_ext(NULL, &base.database, config, &why);
	d->destroy_config(&config);
	if (rc != 0) {
		(void)duck_fail(d, NULL, why ? why : "it does not open", err);
		d->free(why);
		return -1;
	}
	base.duck = d;
	rc = d->connect(base.database, &connection) == 0 ? register_rows(d, connection) : -1;
	if (connection)
		d->disconnect(&connection);
	if (rc == 0)
		return 0;
	d->close(&base.database);
	base.database = NULL;
	return duck_fail(d, NULL, "its function cannot be registered", err);
}

static int need_base(const struct duck *d, struct pr_err *err)
{
	int rc;

	(void)pthread_mutex_lock(&base.mutex);
	rc = base.database ? 0 : open_base(d, err);
	(void)pthread_mutex_unlock(&base.mutex);
	return rc;
}

/* ---------------------------------------------------------------- the file */

static void put_statement(struct pr_buf *b, const struct sink_encoder *e, struct rows *r, int fd)
{
	const char *codec = e->conf->compression == PR_SINK_ZSTD   ? "zstd"
			    : e->conf->compression == PR_SINK_GZIP ? "gzip"
								   : "uncompressed";

	pr_buf_printf(b,
		"COPY (SELECT * FROM postrider_rows(%" PRId64 ")) TO '/proc/self/fd/%d' (FORMAT parquet, "
		"USE_TMP_FILE false, ROW_GROUP_SIZE %" PRId64 ", ROW_GROUP_SIZE_BYTES '32MB', COMPRESSION %s",
		(int64_t)(intptr_t)r, fd, e->conf->row_group, codec);
	if (e->conf->compression == PR_SINK_ZSTD)
		pr_buf_printf(b, ", COMPRESSION_LEVEL %" PRId64, e->conf->level);
	pr_buf_puts(b, ")");
}

static int run(const struct duck *d, const char *statement, struct rows *r, struct pr_err *err)
{
	struct duck_result result = { 0 };
	void *connection = NULL;
	int rc = -1;

	if (d->connect(base.database, &connection) != 0)
		return duck_fail(d, NULL, "no connection", err);
	if (d->query(connection, statement, &result) == 0)
		rc = 0;
	else if (r->failed && r->err.text[0] && err)
		*err = r->err;
	else
		(void)duck_fail(d, &result, "", err);
	d->destroy_result(&result);
	d->disconnect(&connection);
	return rc;
}

static int hand_on(struct sink_encoder *e, int fd, struct pr_err *err)
{
	char *buf = pr_malloc(READ_BYTES);
	ssize_t n;
	off_t at = 0;
	int rc = 0;

	while (rc == 0 && (n = pread(fd, buf, READ_BYTES, at)) != 0) {
		rc = n < 0 ? pr_fail(err, PR_RETRY, "a Parquet file cannot be read back: %s", strerror(errno))
			   : sink_out_put(e->out, buf, (size_t)n, err);
		at += n;
	}
	free(buf);
	return rc;
}

static int parquet_finish(struct sink_encoder *e, struct pr_err *err)
{
	struct rows r = { .duck = e->duck, .e = e };
	struct pr_buf statement = { 0 };
	int fd = sink_spool_file(err), rc = -1;

	if (fd < 0)
		return -1;
	put_statement(&statement, e, &r, fd);
	if (run(e->duck, statement.s, &r, err) == 0)
		rc = hand_on(e, fd, err);
	pr_buf_free(&statement);
	pr_buf_free(&r.window);
	(void)close(fd);
	return rc;
}

static int parquet_check(const struct pr_sink_format_conf *conf, struct pr_err *err)
{
	const struct duck *d = duck_load(conf->parquet_library, err);

	return d && need_base(d, err) == 0 && sink_spool_open(err) == 0 ? 0 : -1;
}

static int parquet_open(const struct pr_sink_format_conf *conf, const char *seed, struct sink_out *out,
	struct sink_encoder **ret, struct pr_err *err)
{
	const struct duck *d = duck_load(conf->parquet_library, err);
	struct sink_encoder *e;

	(void)seed; /* nothing in the file is made by chance */
	if (!d || need_base(d, err) < 0)
		return -1;
	e = pr_calloc(1, sizeof(*e));
	e->duck = d;
	e->out = out;
	e->conf = conf;
	*ret = e;
	return 0;
}

static void parquet_close(struct sink_encoder *e)
{
	if (!e)
		return;
	sink_roll_free(&e->roll);
	pr_buf_free(&e->waiting);
	sink_cells_free(&e->cells);
	free(e);
}

const struct sink_format_ops sink_format_parquet = {
	.name = "parquet",
	.ext = "parquet",
	.packs = 1,
	.check = parquet_check,
	.open = parquet_open,
	.put = parquet_put,
	.held = parquet_held,
	.spare = parquet_spare,
	.finish = parquet_finish,
	.close = parquet_close,
};
