/* cli/reconcile_file.c -- one data file in one pass: its checksum, and the lines in it. Bounded memory: a
 * chunk, and the longest line. Refuses lines longer than 128 MB. */
#include "cli/reconcile.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define CHUNK     (128 * 1024)
#define MOST_LINE ((size_t)128 << 20)

struct reading {
	struct pr_buf line, scratch; /* line: what is not ended yet */
	int64_t lines, from_us, to_us;
	void (*each)(void *ctx, const struct rec_line *line);
	void *ctx;
	/* of the compression */
	z_stream gz;
	ZSTD_DStream *zs;
	int packed; /* 'g', 'z', 0 */
	int inside; /* a member or frame has begun and not ended */
	char out[CHUNK];
};

/* ---- a line ---- */

static int64_t number(const char *s, size_t n)
{
	char text[24];

	if (n == 0 || n >= sizeof(text) || strspn(s, "0123456789") < n)
		return -1;
	memcpy(text, s, n);
	text[n] = '\0';
	return strtoll(text, NULL, 10);
}

struct parsing {
	struct rec_line line;
	int64_t time_us;
};

static int is_name(const char *name, size_t len, const char *word)
{
	return len == strlen(word) && memcmp(name, word, len) == 0;
}

static int on_member(void *ctx, const char *name, size_t name_len, const char *value, size_t len, int is_null)
{
	struct parsing *p = ctx;
	char text[64];

	if (is_name(name, name_len, "id") && !is_null) {
		p->line.id_len = len < sizeof(p->line.id) ? len : sizeof(p->line.id) - 1;
		memcpy(p->line.id, value, p->line.id_len);
		p->line.id[p->line.id_len] = '\0';
	} else if (is_name(name, name_len, "offset")) {
		p->line.offset = number(value, len);
	} else if (is_name(name, name_len, "partition")) {
		p->line.partition = number(value, len);
	} else if (is_name(name, name_len, "time") && !is_null && len < sizeof(text)) {
		memcpy(text, value, len);
		text[len] = '\0';
		if (cli_parse_time(text, &p->time_us, NULL) < 0)
			p->time_us = -1;
	}
	return 0;
}

static int on_line(struct reading *rd, const char *s, size_t n, struct pr_err *err)
{
	struct parsing p = { .line = { .offset = -1, .partition = -1 }, .time_us = -1 };

	rd->lines++;
	rd->scratch.len = 0;
	if (pr_json_flat(s, n, &rd->scratch, on_member, &p) != 0 || p.line.offset < 0 || p.line.partition < 0)
		return pr_fail(err, PR_REJECT, "line %lld is no record", (long long)rd->lines);
	p.line.in_window = p.time_us >= rd->from_us && p.time_us < rd->to_us;
	rd->each(rd->ctx, &p.line);
	return 0;
}

static int on_bytes(struct reading *rd, const char *s, size_t n, struct pr_err *err)
{
	const char *stop;

	for (; (stop = memchr(s, '\n', n)); n -= (size_t)(stop + 1 - s), s = stop + 1) {
		const char *line = s;
		size_t len = (size_t)(stop - s);

		if (rd->line.len) {
			pr_buf_put(&rd->line, s, len);
			line = rd->line.s;
			len = rd->line.len;
			rd->line.len = 0;
		}
		if (on_line(rd, line, len, err) < 0)
			return -1;
	}
	if (rd->line.len + n > MOST_LINE)
		return pr_fail(err, PR_REJECT, "a line is longer than %zu bytes", MOST_LINE);
	if (n > 0)
		pr_buf_put(&rd->line, s, n);
	return 0;
}

/* ---- compression ---- */

static int on_gzip(struct reading *rd, const char *s, size_t n, struct pr_err *err)
{
	rd->gz.next_in = (unsigned char *)(uintptr_t)s;
	rd->gz.avail_in = (unsigned)n;
	while (rd->gz.avail_in > 0 || rd->gz.avail_out == 0) {
		int rc;

		if (!rd->inside && rd->gz.avail_in > 0 && inflateReset(&rd->gz) == Z_OK)
			rd->inside = 1;
		if (!rd->inside)
			break;
		rd->gz.next_out = (unsigned char *)rd->out;
		rd->gz.avail_out = CHUNK;
		rc = inflate(&rd->gz, Z_NO_FLUSH);
		if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
			return pr_fail(err, PR_REJECT, "gzip: %s", rd->gz.msg ? rd->gz.msg : "broken");
		if (on_bytes(rd, rd->out, CHUNK - rd->gz.avail_out, err) < 0)
			return -1;
		if (rc == Z_STREAM_END)
			rd->inside = 0;
		else if (rc == Z_BUF_ERROR)
			break;
	}
	return 0;
}

static int on_zstd(struct reading *rd, const char *s, size_t n, struct pr_err *err)
{
	ZSTD_inBuffer in = { s, n, 0 };
	ZSTD_outBuffer out;

	do {
		size_t rc;

		out = (ZSTD_outBuffer){ rd->out, CHUNK, 0 };
		rc = ZSTD_decompressStream(rd->zs, &out, &in);
		if (ZSTD_isError(rc))
			return pr_fail(err, PR_REJECT, "zstd: %s", ZSTD_getErrorName(rc));
		rd->inside = rc != 0;
		if (on_bytes(rd, rd->out, out.pos, err) < 0)
			return -1;
	} while (in.pos < in.size || out.pos == CHUNK);
	return 0;
}

static int unpack(struct reading *rd, const char *s, size_t n, struct pr_err *err)
{
	if (rd->packed == 'g')
		return on_gzip(rd, s, n, err);
	return rd->packed == 'z' ? on_zstd(rd, s, n, err) : on_bytes(rd, s, n, err);
}

static int ends_with(const char *path, const char *end)
{
	size_t n = strlen(path), m = strlen(end);

	return n >= m && strcmp(path + n - m, end) == 0;
}

static int begin(struct reading *rd, const char *path, struct pr_err *err)
{
	rd->packed = ends_with(path, ".gz") ? 'g' : ends_with(path, ".zst") ? 'z' : 0;
	rd->gz.avail_out = 1;
	if (rd->packed == 'g' && inflateInit2(&rd->gz, 15 + 16) != Z_OK)
		return pr_fail(err, PR_STOP, "zlib does not start");
	if (rd->packed == 'z' && !(rd->zs = ZSTD_createDStream()))
		return pr_fail(err, PR_STOP, "zstd does not start");
	return 0;
}

static int end(const struct reading *rd, struct pr_err *err)
{
	if (rd->inside)
		return pr_fail(err, PR_REJECT, "it ends in the middle of a compressed frame");
	return rd->line.len ? pr_fail(err, PR_REJECT, "its last line does not end") : 0;
}

/* ---- the file ---- */

static int pass(int fd, struct reading *rd, EVP_MD_CTX *sum, int64_t *ret_bytes, struct pr_err *err)
{
	char *chunk = pr_malloc(CHUNK);
	int broken = 0;
	ssize_t n;

	/* The checksum is of all of it, also of what cannot be read. */
	while ((n = read(fd, chunk, CHUNK)) > 0) {
		*ret_bytes += n;
		(void)EVP_DigestUpdate(sum, chunk, (size_t)n);
		if (rd && !broken)
			broken = unpack(rd, chunk, (size_t)n, err) < 0;
	}
	free(chunk);
	if (n < 0)
		return pr_fail(err, PR_REJECT, "cannot be read: %s", strerror(errno));
	if (broken)
		return -1;
	return rd ? end(rd, err) : 0;
}

static void to_hex(EVP_MD_CTX *sum, char sha256[65])
{
	unsigned char bytes[EVP_MAX_MD_SIZE];

	(void)EVP_DigestFinal_ex(sum, bytes, NULL);
	for (int i = 0; i < 32; i++)
		(void)snprintf(sha256 + 2 * i, 3, "%02x", bytes[i]);
}

int rec_read_file(const char *path, int64_t from_us, int64_t to_us, int lines,
	void (*each)(void *ctx, const struct rec_line *line), void *ctx, int64_t *ret_bytes, char sha256[65],
	int64_t *ret_lines, struct pr_err *err)
{
	struct reading *rd = lines ? pr_calloc(1, sizeof(*rd)) : NULL;
	EVP_MD_CTX *sum = EVP_MD_CTX_new();
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;

	*ret_bytes = *ret_lines = 0;
	sha256[0] = '\0';
	if (rd) {
		rd->each = each;
		rd->ctx = ctx;
		rd->from_us = from_us;
		rd->to_us = to_us;
	}
	if (!sum || EVP_DigestInit_ex(sum, EVP_sha256(), NULL) != 1)
		rc = pr_fail(err, PR_STOP, "no checksum can be made");
	else if (fd < 0)
		rc = pr_fail(err, PR_REJECT, "%s", strerror(errno));
	else if (rd && begin(rd, path, err) < 0)
		rc = -1;
	else
		rc = pass(fd, rd, sum, ret_bytes, err);
	if (fd >= 0)
		to_hex(sum, sha256);
	if (rd) {
		*ret_lines = rd->lines;
		if (rd->packed == 'g')
			(void)inflateEnd(&rd->gz);
		ZSTD_freeDStream(rd->zs);
		pr_buf_free(&rd->line);
		pr_buf_free(&rd->scratch);
		free(rd);
	}
	EVP_MD_CTX_free(sum);
	if (fd >= 0)
		(void)close(fd);
	return rc < 0 ? 1 : 0;
}
