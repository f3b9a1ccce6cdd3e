/* consumers/sink/out.c -- bytes on their way into a file or an upload: collected, compressed in chunks,
 * summed, counted. Each chunk is a frame (zstd) or a member (gzip) by itself, so that hundreds of files share
 * one context, and a file's memory is its buffer; tools read frames behind each other as one. Chunks end at
 * the same bytes whenever the same records come, also when the file had to make room meanwhile, and nothing
 * else goes in: no time, no name. */
#include "consumers/sink/sink.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define CHUNK_PLAIN  (64 << 10)
#define CHUNK_PACKED (128 << 10)

struct sink_press {
	enum pr_sink_compression how;
	int level;
	ZSTD_CCtx *zstd;
	z_stream gzip;
	char *to;
	size_t cap;
};

struct sink_press *sink_press_new(enum pr_sink_compression how, int level)
{
	struct sink_press *p;

	if (how == PR_SINK_PLAIN)
		return NULL;
	p = pr_calloc(1, sizeof(*p));
	p->how = how;
	p->level = level;
	return p;
}

void sink_press_free(struct sink_press *p)
{
	if (!p)
		return;
	(void)ZSTD_freeCCtx(p->zstd);
	if (p->gzip.state)
		(void)deflateEnd(&p->gzip);
	free(p->to);
	free(p);
}

static void make_room(struct sink_press *p, size_t n)
{
	if (n <= p->cap)
		return;
	free(p->to);
	p->to = pr_malloc(n);
	p->cap = n;
}

static int zstd_frame(struct sink_press *p, const void *s, size_t n, size_t *ret_n, struct pr_err *err)
{
	size_t got;

	if (!p->zstd) {
		p->zstd = ZSTD_createCCtx();
		if (!p->zstd)
			return pr_fail(err, PR_RETRY, "zstd has no memory for a context");
		(void)ZSTD_CCtx_setParameter(p->zstd, ZSTD_c_compressionLevel, p->level);
		(void)ZSTD_CCtx_setParameter(p->zstd, ZSTD_c_checksumFlag, 1);
	}
	make_room(p, ZSTD_compressBound(n));
	got = ZSTD_compress2(p->zstd, p->to, p->cap, s, n);
	if (ZSTD_isError(got))
		return pr_fail(err, PR_RETRY, "zstd: %s", ZSTD_getErrorName(got));
	*ret_n = got;
	return 0;
}

/* 15 + 16: with a gzip header, in which zlib writes no time. */
static int gzip_member(struct sink_press *p, const void *s, size_t n, size_t *ret_n, struct pr_err *err)
{
	int rc = p->gzip.state ? deflateReset(&p->gzip)
			       : deflateInit2(&p->gzip, p->level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);

	if (rc != Z_OK)
		return pr_fail(err, PR_RETRY, "zlib has no memory for a stream");
	make_room(p, deflateBound(&p->gzip, n));
	p->gzip.next_in = (z_const Bytef *)(uintptr_t)s;
	p->gzip.avail_in = (uInt)n;
	p->gzip.next_out = (Bytef *)p->to;
	p->gzip.avail_out = (uInt)p->cap;
	if (deflate(&p->gzip, Z_FINISH) != Z_STREAM_END)
		return pr_fail(err, PR_RETRY, "zlib: %s", p->gzip.msg ? p->gzip.msg : "no end");
	*ret_n = p->cap - p->gzip.avail_out;
	return 0;
}

int sink_press_frame(
	struct sink_press *p, const void *s, size_t n, const void **ret, size_t *ret_n, struct pr_err *err)
{
	if ((p->how == PR_SINK_GZIP ? gzip_member : zstd_frame)(p, s, n, ret_n, err) < 0)
		return -1;
	*ret = p->to;
	return 0;
}

/* ---------------------------------------------------------------- one file's bytes */

void sink_out_init(struct sink_out *o, struct sink_dest *dest, struct sink_press *press)
{
	memset(o, 0, sizeof(*o));
	o->dest = dest;
	o->press = press;
	o->sum = EVP_MD_CTX_new();
	if (!o->sum || EVP_DigestInit_ex(o->sum, EVP_sha256(), NULL) != 1)
		abort(); /* out of memory */
}

static size_t chunk_of(const struct sink_out *o)
{
	return o->press ? CHUNK_PACKED : CHUNK_PLAIN;
}

static int go(struct sink_out *o, const void *s, size_t n, struct pr_err *err)
{
	if (o->press && sink_press_frame(o->press, s, n, &s, &n, err) < 0)
		return -1;
	(void)EVP_DigestUpdate(o->sum, s, n);
	if (o->dest->write(o->dest, s, n, err) < 0)
		return -1;
	o->out += (int64_t)n;
	return 0;
}

/* A large record leaves a large buffer behind. */
static void drop(struct sink_out *o, size_t n)
{
	o->buf.len -= n;
	memmove(o->buf.s, o->buf.s + n, o->buf.len);
	if (o->buf.cap > 4 * chunk_of(o)) {
		o->buf.cap = o->buf.len + 1;
		o->buf.s = pr_realloc(o->buf.s, o->buf.cap);
	}
}

int sink_out_pushed(struct sink_out *o, size_t n, struct pr_err *err)
{
	size_t chunk = chunk_of(o), at = 0;

	o->in += (int64_t)n;
	if ((size_t)o->roll.len + o->buf.len < chunk)
		return 0;
	if (sink_roll_join(&o->roll, &o->buf, err) < 0)
		return -1;
	/* Plain bytes need no chunks: fewer, larger writes. */
	while (o->press && o->buf.len - at >= chunk) {
		if (go(o, o->buf.s + at, chunk, err) < 0)
			return -1;
		at += chunk;
	}
	if (!o->press) {
		if (go(o, o->buf.s, o->buf.len, err) < 0)
			return -1;
		at = o->buf.len;
	}
	drop(o, at);
	return 0;
}

int sink_out_put(struct sink_out *o, const void *p, size_t n, struct pr_err *err)
{
	pr_buf_put(&o->buf, p, n);
	return sink_out_pushed(o, n, err);
}

static int flush(struct sink_out *o, struct pr_err *err)
{
	if (o->buf.len > 0 && go(o, o->buf.s, o->buf.len, err) < 0)
		return -1;
	pr_buf_free(&o->buf);
	return 0;
}

/* What is compressed together waits together. */
int sink_out_spare(struct sink_out *o, struct pr_err *err)
{
	return o->press ? sink_roll_take(&o->roll, &o->buf, err) : flush(o, err);
}

int sink_out_end(struct sink_out *o, unsigned char sum[SINK_SUM], struct pr_err *err)
{
	if (sink_roll_join(&o->roll, &o->buf, err) < 0 || flush(o, err) < 0)
		return -1;
	(void)EVP_DigestFinal_ex(o->sum, sum, NULL);
	return 0;
}

void sink_out_free(struct sink_out *o)
{
	pr_buf_free(&o->buf);
	sink_roll_free(&o->roll);
	EVP_MD_CTX_free(o->sum);
	o->sum = NULL;
}
