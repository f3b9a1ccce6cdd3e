/* consumers/sink/avro.c -- format: Avro object container files (Avro 1.11), written by ourselves: libavro's
 * marker between blocks is random, and it has no zstd (docs/decisions/0015-formats-of-the-sink.md). Tests
 * read them with libavro and fastavro. Deterministic: the marker is made of the seed, blocks end after a
 * number of records or bytes. Refuses nothing that is in a record. */
#include "consumers/sink/cells.h"

#include "lib/err.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (64u << 10)  /* a block ends with the record that reaches it */
#define BLOCK_KEPT  (256u << 10) /* more than this is given back after a block */
#define MARKER      16
#define GZIP_HEAD   10 /* of a member without names */
#define GZIP_TAIL   8

/* Field by field what put_record writes. */
static const char schema[] =
	"{\"type\":\"record\",\"name\":\"event\",\"namespace\":\"postrider\",\"fields\":["
	"{\"name\":\"id\",\"type\":[\"null\",\"string\"]},"
	"{\"name\":\"type\",\"type\":\"string\"},"
	"{\"name\":\"topic\",\"type\":\"string\"},"
	"{\"name\":\"partition\",\"type\":\"int\"},"
	"{\"name\":\"offset\",\"type\":\"long\"},"
	"{\"name\":\"key\",\"type\":[\"null\",\"string\"]},"
	"{\"name\":\"time\",\"type\":[\"null\",{\"type\":\"long\",\"logicalType\":\"timestamp-micros\"}]},"
	"{\"name\":\"headers\",\"type\":{\"type\":\"map\",\"values\":[\"null\",\"string\"]}},"
	"{\"name\":\"payload\",\"type\":[\"null\",\"string\"]},"
	"{\"name\":\"payload_base64\",\"type\":[\"null\",\"string\"]}]}";

struct sink_encoder {
	struct sink_out *out; /* borrowed */
	int compression;      /* enum pr_sink_compression */
	int level;
	int64_t most; /* records of a block */
	unsigned char marker[MARKER];
	int begun; /* the header is written */
	struct pr_buf block;
	struct sink_roll roll; /* of the block, before that */
	int64_t records;       /* in it */
	struct sink_cells cells;
};

/* ---------------------------------------------------------------- compressors: one a thread, for all files
 */

static pthread_once_t press_once = PTHREAD_ONCE_INIT;
static pthread_key_t press_key;

struct press {
	struct sink_press *press;
	int compression, level;
};

static void press_end(void *p)
{
	struct press *x = p;

	sink_press_free(x->press);
	free(x);
}

static void press_begin(void)
{
	if (pthread_key_create(&press_key, press_end) != 0)
		abort(); /* no more keys: out of memory of a kind */
}

static struct sink_press *press_of(const struct sink_encoder *e)
{
	struct press *x;

	(void)pthread_once(&press_once, press_begin);
	x = pthread_getspecific(press_key);
	if (!x) {
		x = pr_calloc(1, sizeof(*x));
		(void)pthread_setspecific(press_key, x);
	}
	if (!x->press || x->compression != e->compression || x->level != e->level) {
		sink_press_free(x->press);
		x->press = sink_press_new(e->compression, e->level);
		x->compression = e->compression;
		x->level = e->level;
	}
	return x->press;
}

/* ---------------------------------------------------------------- Avro's binary encoding */

static void put_long(struct pr_buf *b, int64_t v)
{
	uint64_t u = ((uint64_t)v << 1) ^ (v < 0 ? UINT64_MAX : 0);
	char c[10];
	size_t n = 0;

	for (; u >= 0x80; u >>= 7)
		c[n++] = (char)(u | 0x80);
	c[n++] = (char)u;
	pr_buf_put(b, c, n);
}

static void put_string(struct pr_buf *b, const char *s, size_t n)
{
	put_long(b, (int64_t)n);
	pr_buf_put(b, s, n);
}

/* Of ["null", "string"]. */
static void put_maybe(struct pr_buf *b, struct sink_text t)
{
	put_long(b, t.s != NULL);
	if (t.s)
		put_string(b, t.s, t.n);
}

static void put_record(struct pr_buf *b, const struct sink_cells *c)
{
	put_maybe(b, c->id);
	put_string(b, c->type.s, c->type.n);
	put_string(b, c->topic.s, c->topic.n);
	put_long(b, c->partition);
	put_long(b, c->offset);
	put_maybe(b, c->key);
	put_long(b, c->time_us >= 0);
	if (c->time_us >= 0)
		put_long(b, c->time_us);
	if (c->headers_n)
		put_long(b, (int64_t)c->headers_n);
	for (size_t i = 0; i < c->headers_n; i++) {
		put_string(b, c->headers[i].name.s, c->headers[i].name.n);
		put_maybe(b, c->headers[i].value);
	}
	put_long(b, 0); /* the map's end */
	put_maybe(b, c->payload);
	put_maybe(b, c->payload_base64);
}

/* ---------------------------------------------------------------- the container */

static const char *codec_of(const struct sink_encoder *e)
{
	switch (e->compression) {
	case PR_SINK_GZIP:
		return "deflate";
	case PR_SINK_ZSTD:
		return "zstandard";
	default:
		return "null";
	}
}

static int put_header(struct sink_encoder *e, struct pr_err *err)
{
	const char *codec = codec_of(e);
	struct pr_buf b = { 0 };
	int rc;

	pr_buf_put(&b, "Obj\1", 4);
	put_long(&b, 2);
	put_string(&b, "avro.schema", 11);
	put_string(&b, schema, sizeof(schema) - 1);
	put_string(&b, "avro.codec", 10);
	put_string(&b, codec, strlen(codec));
	put_long(&b, 0);
	pr_buf_put(&b, e->marker, MARKER);
	rc = sink_out_put(e->out, b.s, b.len, err);
	pr_buf_free(&b);
	e->begun = 1;
	return rc;
}

/* What of the block goes into the file: a gzip member without its head and tail is what deflate is. */
static int packed(struct sink_encoder *e, const char **ret, size_t *ret_n, struct pr_err *err)
{
	const void *frame;

	if (e->compression == PR_SINK_PLAIN) {
		*ret = e->block.s;
		*ret_n = e->block.len;
		return 0;
	}
	if (sink_press_frame(press_of(e), e->block.s, e->block.len, &frame, ret_n, err) < 0)
		return -1;
	*ret = frame;
	if (e->compression == PR_SINK_GZIP) {
		*ret += GZIP_HEAD;
		*ret_n -= GZIP_HEAD + GZIP_TAIL;
	}
	return 0;
}

static int end_block(struct sink_encoder *e, struct pr_err *err)
{
	int64_t in = e->out->in; /* counts records as they came */
	struct pr_buf head = { 0 };
	const char *s;
	size_t n;
	int rc = -1;

	if (sink_roll_join(&e->roll, &e->block, err) < 0 || packed(e, &s, &n, err) < 0)
		return -1;
	put_long(&head, e->records);
	put_long(&head, (int64_t)n);
	if (sink_out_put(e->out, head.s, head.len, err) == 0 && sink_out_put(e->out, s, n, err) == 0 &&
		sink_out_put(e->out, e->marker, MARKER, err) == 0)
		rc = 0;
	pr_buf_free(&head);
	e->out->in = in;
	e->records = 0;
	e->block.len = 0;
	if (e->block.cap > BLOCK_KEPT)
		pr_buf_free(&e->block);
	return rc;
}

static int avro_open(const struct pr_sink_format_conf *conf, const char *seed, struct sink_out *out,
	struct sink_encoder **ret, struct pr_err *err)
{
	struct sink_encoder *e = pr_calloc(1, sizeof(*e));
	unsigned char sum[EVP_MAX_MD_SIZE];

	e->out = out;
	e->compression = conf->compression;
	e->level = (int)conf->level;
	e->most = conf->row_group > 0 ? conf->row_group : INT64_MAX;
	if (EVP_Digest(seed, strlen(seed), sum, NULL, EVP_sha256(), NULL) != 1) {
		free(e);
		return pr_fail(err, PR_RETRY, "no SHA-256 of a file's seed: out of memory");
	}
	memcpy(e->marker, sum, MARKER);
	*ret = e;
	return 0;
}

static int avro_put(struct sink_encoder *e, const struct sink_row *row, struct pr_err *err)
{
	size_t before;

	if (!e->begun && put_header(e, err) < 0)
		return -1;
	sink_cells_of(&e->cells, row);
	before = e->block.len;
	put_record(&e->block, &e->cells);
	e->out->in += (int64_t)(e->block.len - before);
	e->records++;
	return e->records >= e->most || (size_t)e->roll.len + e->block.len >= BLOCK_BYTES ? end_block(e, err)
											  : 0;
}

static size_t avro_held(const struct sink_encoder *e)
{
	return e->block.cap + sink_cells_held(&e->cells);
}

static int avro_spare(struct sink_encoder *e, struct pr_err *err)
{
	sink_cells_free(&e->cells);
	return sink_roll_take(&e->roll, &e->block, err);
}

static int avro_finish(struct sink_encoder *e, struct pr_err *err)
{
	if (!e->begun && put_header(e, err) < 0)
		return -1;
	return e->records ? end_block(e, err) : 0;
}

static void avro_close(struct sink_encoder *e)
{
	if (!e)
		return;
	pr_buf_free(&e->block);
	sink_roll_free(&e->roll);
	sink_cells_free(&e->cells);
	free(e);
}

const struct sink_format_ops sink_format_avro = {
	.name = "avro",
	.ext = "avro",
	.packs = 1,
	.open = avro_open,
	.put = avro_put,
	.held = avro_held,
	.spare = avro_spare,
	.finish = avro_finish,
	.close = avro_close,
};
