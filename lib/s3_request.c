/* lib/s3_request.c -- one signed request and its answer, with a deadline of our own. Refuses redirects (a
 * store that sends us elsewhere was named wrongly), proxies, cookies, and answers longer than a page of a
 * list. */
#include "lib/s3_inner.h"

#include "lib/clock.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ANSWER_MAX      (4u << 20) /* a page of a list: a thousand keys of 1024 bytes each */
#define CONNECT_MAX_MS  10000
#define CONNECTION_LIFE 300L /* seconds; then the name is looked up again */
#define LOOK_MS         200

struct signed_headers {
	char stamp[32], sha256[65];
	struct pr_buf host, sum, date, meta, type, authorization;
};

static size_t on_body(char *p, size_t size, size_t n, void *ctx)
{
	struct pr_s3 *s = ctx;
	size_t room = ANSWER_MAX - s->body.len;

	if (n * size > room) {
		s->cut = 1;
		return 0;
	}
	pr_buf_put(&s->body, p, n * size);
	return n * size;
}

/* The value of the header line when it has that name, without spaces around it; cut at size. */
static int is_header(const char *line, size_t n, const char *name, char *out, size_t size)
{
	size_t len = strlen(name);

	if (n < len + 1 || strncasecmp(line, name, len) != 0 || line[len] != ':')
		return 0;
	for (line += len + 1, n -= len + 1; n && (*line == ' ' || *line == '\t'); line++)
		n--;
	while (n && (unsigned char)line[n - 1] <= ' ')
		n--;
	(void)snprintf(out, size, "%.*s", (int)n, line);
	return 1;
}

static size_t on_header(char *p, size_t size, size_t n, void *ctx)
{
	struct pr_s3 *s = ctx;
	char number[32];

	n *= size;
	if (is_header(p, n, "ETag", s->etag, sizeof(s->etag)) ||
		is_header(p, n, "x-amz-bucket-region", s->region_said, sizeof(s->region_said)) ||
		is_header(p, n, "x-amz-meta-sha256", s->sha256, sizeof(s->sha256)))
		return n;
	if (is_header(p, n, "Content-Length", number, sizeof(number)))
		s->length = strtoll(number, NULL, 10);
	return n;
}

static void add(struct curl_slist **list, const char *line)
{
	struct curl_slist *longer = curl_slist_append(*list, line);

	if (!longer)
		abort(); /* out of memory */
	*list = longer;
}

/* What is signed, in the order of the names. */
static int sign(struct pr_s3 *s, const struct s3_request *r, const char *path, struct signed_headers *h,
	struct pr_err *err)
{
	unsigned char sum[EVP_MAX_MD_SIZE];
	const char *headers[5];
	size_t n = 0;
	time_t now = (time_t)(pr_wall_us() / PR_SEC);
	struct tm tm;

	(void)strftime(h->stamp, sizeof(h->stamp), "%Y%m%dT%H%M%SZ", gmtime_r(&now, &tm));
	if (EVP_Digest(r->body ? r->body : "", r->n, sum, NULL, EVP_sha256(), NULL) != 1)
		return pr_fail(err, PR_RETRY, "no SHA-256 of a request: out of memory");
	pr_s3_hex(sum, 32, h->sha256);
	if (r->type) {
		pr_buf_printf(&h->type, "content-type:%s", r->type);
		headers[n++] = h->type.s;
	}
	pr_buf_printf(&h->host, "host:%s", s->host);
	headers[n++] = h->host.s;
	pr_buf_printf(&h->sum, "x-amz-content-sha256:%s", h->sha256);
	headers[n++] = h->sum.s;
	pr_buf_printf(&h->date, "x-amz-date:%s", h->stamp);
	headers[n++] = h->date.s;
	if (r->meta) {
		pr_buf_printf(&h->meta, "x-amz-meta-sha256:%s", r->meta);
		headers[n++] = h->meta.s;
	}
	pr_buf_puts(&h->authorization, "authorization:");
	return pr_s3_sign(&h->authorization,
		&(struct pr_s3_sign){ .access_key = s->access_key,
			.secret_key = s->secret_key,
			.region = s->region,
			.service = "s3",
			.stamp = h->stamp,
			.method = r->method,
			.path = path,
			.query = r->query ? r->query : "",
			.headers = headers,
			.headers_n = n,
			.payload_sha256 = h->sha256 },
		err);
}

static void free_headers(struct signed_headers *h)
{
	pr_buf_free(&h->host);
	pr_buf_free(&h->sum);
	pr_buf_free(&h->date);
	pr_buf_free(&h->meta);
	pr_buf_free(&h->type);
	pr_buf_free(&h->authorization);
}

static struct curl_slist *list_of(const struct s3_request *r, const struct signed_headers *h)
{
	struct curl_slist *list = NULL;

	add(&list, h->host.s);
	add(&list, h->sum.s);
	add(&list, h->date.s);
	if (r->meta)
		add(&list, h->meta.s);
	add(&list, r->type ? h->type.s : "Content-Type:");
	add(&list, h->authorization.s);
	add(&list, "Expect:"); /* else libcurl waits a second before a large body */
	return list;
}

static int set_up(CURL *c, struct pr_s3 *s, const struct s3_request *r, const char *url, char *problem)
{
	long ms = s->timeout_us < PR_MS ? 1 : (long)(s->timeout_us / PR_MS);

#define SET(option, value) (curl_easy_setopt(c, CURLOPT_##option, value) == CURLE_OK)
	if (!SET(URL, url) || !SET(PATH_AS_IS, 1L) || !SET(PROTOCOLS_STR, "http,https") ||
		!SET(FOLLOWLOCATION, 0L) || !SET(PROXY, "") || !SET(NETRC, (long)CURL_NETRC_IGNORED) ||
		!SET(HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) || !SET(HTTP09_ALLOWED, 0L) ||
		!SET(USERAGENT, "postrider/" PR_VERSION) || !SET(NOSIGNAL, 1L) || !SET(TIMEOUT_MS, ms) ||
		!SET(CONNECTTIMEOUT_MS, ms / 2 < CONNECT_MAX_MS ? ms / 2 + 1 : (long)CONNECT_MAX_MS) ||
		!SET(MAXLIFETIME_CONN, CONNECTION_LIFE) || !SET(TCP_KEEPALIVE, 1L) ||
		!SET(HEADERFUNCTION, on_header) || !SET(HEADERDATA, s) || !SET(WRITEFUNCTION, on_body) ||
		!SET(WRITEDATA, s) || !SET(ERRORBUFFER, problem) || !SET(CUSTOMREQUEST, r->method))
		return -1;
	if (strcmp(r->method, "HEAD") == 0)
		return SET(NOBODY, 1L) ? 0 : -1;
	if (strcmp(r->method, "PUT") != 0 && strcmp(r->method, "POST") != 0)
		return 0;
	return SET(POSTFIELDS, r->body ? r->body : "") && SET(POSTFIELDSIZE_LARGE, (curl_off_t)r->n) ? 0 : -1;
#undef SET
}

/* Until the request has ended, or the deadline of all of it passed; libcurl's own may not see all that hangs.
 */
static CURLcode perform(struct pr_s3 *s, int64_t until_us)
{
	int running, left;
	CURLMsg *m;

	for (;;) {
		if (curl_multi_perform(s->multi, &running) != CURLM_OK)
			return CURLE_FAILED_INIT;
		if (!running)
			break;
		if (pr_mono_us() > until_us)
			return CURLE_OPERATION_TIMEDOUT;
		(void)curl_multi_poll(s->multi, NULL, 0, LOOK_MS, NULL);
	}
	m = curl_multi_info_read(s->multi, &left);
	return m ? m->data.result : CURLE_FAILED_INIT;
}

static void forget_answer(struct pr_s3 *s)
{
	s->status = 0;
	s->cut = 0;
	s->etag[0] = s->region_said[0] = s->sha256[0] = '\0';
	s->length = -1;
	s->body.len = 0;
	pr_buf_puts(&s->body, "");
}

static int transfer(struct pr_s3 *s, const struct s3_request *r, const char *url, struct curl_slist *headers,
	struct pr_err *err)
{
	char problem[CURL_ERROR_SIZE] = "";
	CURL *c = curl_easy_init();
	CURLcode code = CURLE_FAILED_INIT;

	forget_answer(s);
	if (c && set_up(c, s, r, url, problem) == 0 &&
		curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers) == CURLE_OK &&
		curl_multi_add_handle(s->multi, c) == CURLM_OK) {
		code = perform(s, pr_mono_us() + s->timeout_us + PR_SEC);
		(void)curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &s->status);
		(void)curl_multi_remove_handle(s->multi, c);
	}
	curl_easy_cleanup(c);
	if (code == CURLE_OK)
		return 0;
	(void)pr_fail(err, PR_RETRY, "object store %s: %s", s->endpoint,
		s->cut       ? "its answer is too long"
		: problem[0] ? problem
			     : curl_easy_strerror(code));
	return -1;
}

int s3_send(struct pr_s3 *s, const struct s3_request *r, struct pr_err *err)
{
	struct signed_headers h = { 0 };
	struct pr_buf path = { 0 }, url = { 0 };
	struct curl_slist *headers = NULL;
	int rc = -1;

	pr_buf_puts(&path, s->base);
	pr_buf_puts(&path, "/");
	if (r->key)
		pr_s3_encode(&path, r->key, 1);
	pr_buf_printf(&url, "%s%s%s%s", s->origin, path.s, r->query ? "?" : "", r->query ? r->query : "");
	if (sign(s, r, path.s, &h, err) == 0) {
		headers = list_of(r, &h);
		rc = transfer(s, r, url.s, headers, err);
	}
	curl_slist_free_all(headers);
	free_headers(&h);
	pr_buf_free(&path);
	pr_buf_free(&url);
	return rc;
}
