/* producers/platform/unpack.c -- gzip and zstd, one stream or several behind one another. Refuses to go on
 * past the most bytes that are allowed: a few of them can hold gigabytes. */
#include "producers/platform/unpack.h"

#include "lib/err.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>
#include <zstd.h>

#define PIECE 65536

/* Takes a piece of what came out. */
static int take(struct pr_buf *b, const char *piece, size_t n, size_t most)
{
	if (b->len + n > most)
		return -1;
	pr_buf_put(b, piece, n);
	return 0;
}

static enum unpacked gunzip_to(
	z_stream *z, const char *s, size_t n, size_t most, char *piece, struct pr_buf *b)
{
	int rc = Z_OK;

	z->next_in = (unsigned char *)(uintptr_t)s;
	z->avail_in = (uInt)n;
	while (z->avail_in > 0 || rc != Z_STREAM_END) {
		if (rc == Z_STREAM_END && inflateReset(z) != Z_OK)
			return UNPACK_BROKEN;
		z->next_out = (unsigned char *)piece;
		z->avail_out = PIECE;
		rc = inflate(z, Z_NO_FLUSH);
		if (rc != Z_OK && rc != Z_STREAM_END)
			return UNPACK_BROKEN;
		if (take(b, piece, PIECE - z->avail_out, most) < 0)
			return UNPACK_TOO_LONG;
	}
	return UNPACK_OK;
}

static enum unpacked gunzip(const char *s, size_t n, size_t most, char *piece, struct pr_buf *b)
{
	z_stream z = { 0 };
	enum unpacked rc;

	if (n > UINT32_MAX || inflateInit2(&z, 15 + 16) != Z_OK)
		return UNPACK_TOO_LONG;
	rc = gunzip_to(&z, s, n, most, piece, b);
	(void)inflateEnd(&z);
	return rc;
}

static enum unpacked unzstd(const char *s, size_t n, size_t most, char *piece, struct pr_buf *b)
{
	ZSTD_DCtx *z = ZSTD_createDCtx();
	ZSTD_inBuffer in = { s, n, 0 };
	enum unpacked rc = z ? UNPACK_OK : UNPACK_TOO_LONG;
	size_t left = 1;
	int full = 0;

	/* Bounds what a frame's window may take. */
	if (z)
		(void)ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, 23);
	while (rc == UNPACK_OK && (in.pos < n || full)) {
		ZSTD_outBuffer out = { piece, PIECE, 0 };

		left = ZSTD_decompressStream(z, &out, &in);
		if (ZSTD_isError(left))
			rc = UNPACK_BROKEN;
		else if (take(b, piece, out.pos, most) < 0)
			rc = UNPACK_TOO_LONG;
		full = out.pos == PIECE;
	}
	(void)ZSTD_freeDCtx(z);
	return rc == UNPACK_OK && left != 0 ? UNPACK_BROKEN : rc;
}

enum unpacked unpack(const char *encoding, const char *s, size_t n, size_t most, struct pr_buf *b)
{
	char *piece;
	enum unpacked rc = UNPACK_UNKNOWN;

	pr_buf_put(b, "", 0);
	if (!encoding || !*encoding || strcasecmp(encoding, "identity") == 0)
		return take(b, s, n, most) < 0 ? UNPACK_TOO_LONG : UNPACK_OK;
	piece = pr_malloc(PIECE);
	if (strcasecmp(encoding, "gzip") == 0)
		rc = gunzip(s, n, most, piece, b);
	else if (strcasecmp(encoding, "zstd") == 0)
		rc = unzstd(s, n, most, piece, b);
	free(piece);
	return rc;
}
