/* lib/s3.c -- the requests that putting objects needs, and what their answers mean. Refuses to take half an
 * answer for a whole one: an object counts as there when S3 has said so to the end. */
#include "lib/s3_inner.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGES 10

/* ---------------------------------------------------------------- what it says */

/* The text of the first element of that name from `from` on, entities resolved; NULL: none. Owned. *ret_end:
 * behind it. S3's answers have no attributes on what we read, and no CDATA. */
static char *element(const char *from, const char *name, const char **ret_end)
{
	static const struct {
		const char *entity;
		char c;
	} entities[] = { { "&quot;", '"' }, { "&amp;", '&' }, { "&lt;", '<' }, { "&gt;", '>' },
		{ "&apos;", '\'' } };
	char open[64], close[64], *out, *o;
	const char *p, *end;

	(void)snprintf(open, sizeof(open), "<%s>", name);
	(void)snprintf(close, sizeof(close), "</%s>", name);
	p = strstr(from, open);
	end = p ? strstr(p, close) : NULL;
	if (!end)
		return NULL;
	if (ret_end)
		*ret_end = end + strlen(close);
	out = o = pr_malloc((size_t)(end - p) + 1);
	for (p += strlen(open); p < end;) {
		size_t skip = 1;

		*o = *p;
		for (size_t i = 0; *p == '&' && i < sizeof(entities) / sizeof(*entities); i++) {
			if (strncmp(p, entities[i].entity, strlen(entities[i].entity)) != 0)
				continue;
			*o = entities[i].c;
			skip = strlen(entities[i].entity);
		}
		o++;
		p += skip;
	}
	*o = '\0';
	return out;
}

static int is_one_of(const char *s, const char *const *list)
{
	for (; *list; list++)
		if (strcmp(s, *list) == 0)
			return 1;
	return 0;
}

static void hint_for(struct pr_s3 *s, const char *code, struct pr_err *err)
{
	if (strcmp(code, "NoSuchBucket") == 0)
		(void)pr_hint(
			err, "make the bucket \"%s\" at %s, or name another one", s->bucket, s->endpoint);
	else if (strcmp(code, "SignatureDoesNotMatch") == 0)
		(void)pr_hint(err, "the secret key is not the one of access key %s", s->access_key);
	else if (strcmp(code, "InvalidAccessKeyId") == 0)
		(void)pr_hint(err, "the store does not know access key %s", s->access_key);
	else if (strcmp(code, "AccessDenied") == 0)
		(void)pr_hint(err,
			"access key %s needs s3:PutObject, s3:GetObject and s3:AbortMultipartUpload on it",
			s->access_key);
	else if (strcmp(code, "RequestTimeTooSkewed") == 0)
		(void)pr_hint(err, "this machine's clock is wrong by more than the store allows");
	else if (s->region_said[0] && strcmp(s->region_said, s->region) != 0)
		(void)pr_hint(err, "the bucket's region is %s, not %s", s->region_said, s->region);
}

/* Any answer that is none of the wanted ones; -1. */
static int refused(struct pr_s3 *s, const char *what, const char *key, struct pr_err *err)
{
	static const char *const again[] = { "RequestTimeout", "RequestTimeTooSkewed", "SlowDown",
		"InternalError", "ServiceUnavailable", "OperationAborted", NULL };
	char *code = element(s->body.s, "Code", NULL), *message = element(s->body.s, "Message", NULL);
	char *region = element(s->body.s, "Region", NULL);
	int retry = s->status >= 500 || s->status == 429 || s->status == 408 || s->status < 300 ||
		    (code && is_one_of(code, again));

	if (region && !s->region_said[0])
		(void)snprintf(s->region_said, sizeof(s->region_said), "%s", region);
	(void)pr_fail(err, retry ? PR_RETRY : PR_REJECT, "%s %s%s%s: status %ld%s%s%s%s", what, s->bucket,
		key ? "/" : "", key ? key : "", s->status, code ? " " : "", code ? code : "",
		message           ? ": "
		: s->status < 300 ? ": half an answer"
				  : "",
		message ? message : "");
	if (err && code)
		(void)snprintf(err->code, sizeof(err->code), "%s", code);
	hint_for(s, code ? code : "", err);
	free(code);
	free(message);
	free(region);
	return -1;
}

/* ---------------------------------------------------------------- the client */

static int bad_endpoint(const struct pr_s3_conf *conf, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "\"%s\" is no object store's address", conf->endpoint);
	if (err)
		err->exit = PR_EX_CONFIG;
	return pr_hint(err, "write it as https://host or http://host:port, without bucket or path");
}

/* Default ports are left out of Host, as HTTP has it and signatures need it. */
static size_t host_length(const char *host, int tls)
{
	size_t n = strcspn(host, "/");
	const char *port = tls ? ":443" : ":80";
	size_t p = strlen(port);

	return n > p && strncmp(host + n - p, port, p) == 0 ? n - p : n;
}

int pr_s3_new(const struct pr_s3_conf *conf, struct pr_s3 **ret, struct pr_err *err)
{
	int tls = strncmp(conf->endpoint, "https://", 8) == 0;
	const char *host = conf->endpoint + (tls ? 8 : 7);
	struct pr_buf base = { 0 };
	struct pr_s3 *s;
	size_t n;

	if (!tls && strncmp(conf->endpoint, "http://", 7) != 0)
		return bad_endpoint(conf, err);
	n = strcspn(host, "/");
	if (!n || (host[n] && host[n + 1]) || strcspn(host, "@?#") < n)
		return bad_endpoint(conf, err);
	s = pr_calloc(1, sizeof(*s));
	s->origin = pr_asprintf("%s://%s%s%.*s", tls ? "https" : "http", conf->path_style ? "" : conf->bucket,
		conf->path_style ? "" : ".", (int)n, host);
	s->host = pr_asprintf("%s%s%.*s", conf->path_style ? "" : conf->bucket, conf->path_style ? "" : ".",
		(int)host_length(host, tls), host);
	if (conf->path_style) {
		pr_buf_puts(&base, "/");
		pr_s3_encode(&base, conf->bucket, 0);
	}
	s->base = base.s ? base.s : pr_strdup("");
	s->bucket = pr_strdup(conf->bucket);
	s->region = pr_strdup(conf->region);
	s->access_key = pr_strdup(conf->access_key);
	s->secret_key = pr_strdup(conf->secret_key);
	s->endpoint = pr_strdup(conf->endpoint);
	s->timeout_us = conf->timeout_us;
	s->multi = curl_multi_init();
	if (!s->multi)
		abort(); /* out of memory */
	*ret = s;
	return 0;
}

void pr_s3_free(struct pr_s3 *s)
{
	if (!s)
		return;
	(void)curl_multi_cleanup(s->multi);
	free(s->origin);
	free(s->host);
	free(s->base);
	free(s->bucket);
	free(s->region);
	free(s->access_key);
	free(s->secret_key);
	free(s->endpoint);
	pr_buf_free(&s->body);
	free(s);
}

int pr_s3_check(struct pr_s3 *s, struct pr_err *err)
{
	struct pr_err why = { 0 };

	if (s3_send(s, &(struct s3_request){ .method = "GET", .query = "list-type=2&max-keys=1" }, err) < 0)
		return -1;
	if (s->status == 200)
		return 0;
	(void)refused(s, "bucket", NULL, &why);
	if (strcmp(why.code, "AccessDenied") == 0)
		return 0; /* writing may well be allowed */
	if (err)
		*err = why;
	return -1;
}

int pr_s3_head(struct pr_s3 *s, const char *key, struct pr_s3_object *ret, struct pr_err *err)
{
	memset(ret, 0, sizeof(*ret));
	if (s3_send(s, &(struct s3_request){ .method = "HEAD", .key = key }, err) < 0)
		return -1;
	if (s->status == 404)
		return 0;
	if (s->status != 200)
		return refused(s, "looking at", key, err);
	ret->found = 1;
	ret->bytes = s->length;
	(void)snprintf(ret->sha256, sizeof(ret->sha256), "%s", s->sha256);
	return 0;
}

int pr_s3_get(struct pr_s3 *s, const char *key, struct pr_buf *b, struct pr_err *err)
{
	if (s3_send(s, &(struct s3_request){ .method = "GET", .key = key }, err) < 0)
		return -1;
	if (s->status == 404 || s->status == 403)
		return 0;
	if (s->status != 200)
		return refused(s, "reading", key, err);
	pr_buf_put(b, s->body.s, s->body.len);
	return 1;
}

int pr_s3_put(struct pr_s3 *s, const char *key, const char *type, const void *p, size_t n, struct pr_err *err)
{
	if (s3_send(s, &(struct s3_request){ .method = "PUT", .key = key, .type = type, .body = p, .n = n },
		    err) < 0)
		return -1;
	return s->status == 200 ? 0 : refused(s, "putting", key, err);
}

/* ---------------------------------------------------------------- an object in parts */

int pr_s3_begin(struct pr_s3 *s, const char *key, const char *type, const char *sha256, char **ret_id,
	struct pr_err *err)
{
	const struct s3_request r = {
		.method = "POST", .key = key, .query = "uploads=", .type = type, .meta = sha256
	};
	char *id;

	if (s3_send(s, &r, err) < 0)
		return -1;
	id = s->status == 200 ? element(s->body.s, "UploadId", NULL) : NULL;
	if (!id || !*id || strchr(id, ' ')) {
		free(id);
		return refused(s, "beginning to put", key, err);
	}
	*ret_id = id;
	return 0;
}

int pr_s3_part(struct pr_s3 *s, const char *key, const char *id, int number, const void *p, size_t n,
	char etag[PR_S3_ETAG], struct pr_err *err)
{
	struct pr_buf query = { 0 };
	int rc;

	pr_buf_printf(&query, "partNumber=%d&uploadId=", number);
	pr_s3_encode(&query, id, 0);
	rc = s3_send(s,
		&(struct s3_request){ .method = "PUT", .key = key, .query = query.s, .body = p, .n = n },
		err);
	pr_buf_free(&query);
	if (rc < 0)
		return -1;
	if (s->status != 200 || !s->etag[0] || strchr(s->etag, ' '))
		return refused(s, "putting a part of", key, err);
	memcpy(etag, s->etag, PR_S3_ETAG);
	return 0;
}

static void put_xml(struct pr_buf *b, const char *s)
{
	for (; *s; s++) {
		if (*s == '&')
			pr_buf_puts(b, "&amp;");
		else if (*s == '<')
			pr_buf_puts(b, "&lt;");
		else if (*s == '"')
			pr_buf_puts(b, "&quot;");
		else
			pr_buf_put(b, s, 1);
	}
}

int pr_s3_complete(struct pr_s3 *s, const char *key, const char *id, const char *const *etags, size_t n,
	struct pr_err *err)
{
	struct pr_buf query = { 0 }, body = { 0 };
	int rc;

	pr_buf_puts(&query, "uploadId=");
	pr_s3_encode(&query, id, 0);
	pr_buf_puts(&body, "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
	for (size_t i = 0; i < n; i++) {
		pr_buf_printf(&body, "<Part><PartNumber>%zu</PartNumber><ETag>", i + 1);
		put_xml(&body, etags[i]);
		pr_buf_puts(&body, "</ETag></Part>");
	}
	pr_buf_puts(&body, "</CompleteMultipartUpload>");
	rc = s3_send(s,
		&(struct s3_request){ .method = "POST",
			.key = key,
			.query = query.s,
			.type = "application/xml",
			.body = body.s,
			.n = body.len },
		err);
	pr_buf_free(&query);
	pr_buf_free(&body);
	if (rc < 0)
		return -1;
	/* Status 200 is sent before the store knows: the body says it. */
	if (s->status == 200 && strstr(s->body.s, "</CompleteMultipartUploadResult>"))
		return 0;
	return refused(s, "completing", key, err);
}

int pr_s3_abort(struct pr_s3 *s, const char *key, const char *id, struct pr_err *err)
{
	struct pr_buf query = { 0 };
	int rc;

	pr_buf_puts(&query, "uploadId=");
	pr_s3_encode(&query, id, 0);
	rc = s3_send(s, &(struct s3_request){ .method = "DELETE", .key = key, .query = query.s }, err);
	pr_buf_free(&query);
	if (rc < 0)
		return -1;
	return s->status == 204 || s->status == 200 || s->status == 404 ? 0
									: refused(s, "aborting", key, err);
}

/* ---------------------------------------------------------------- what is under way */

static void put_page(struct pr_buf *b, const char *prefix, const char *key, const char *id)
{
	b->len = 0;
	if (key) {
		pr_buf_puts(b, "key-marker=");
		pr_s3_encode(b, key, 0);
		pr_buf_puts(b, "&");
	}
	pr_buf_puts(b, "prefix=");
	pr_s3_encode(b, prefix, 0);
	if (id) {
		pr_buf_puts(b, "&upload-id-marker=");
		pr_s3_encode(b, id, 0);
	}
	pr_buf_puts(b, "&uploads=");
}

static int each_upload(const char *page, const char *prefix,
	int (*each)(void *ctx, const char *key, const char *id), void *ctx)
{
	int rc = 0;

	for (const char *p = page; rc == 0 && (p = strstr(p, "<Upload>")) != NULL; p++) {
		char *key = element(p, "Key", NULL), *id = element(p, "UploadId", NULL);

		if (key && id && strncmp(key, prefix, strlen(prefix)) == 0)
			rc = each(ctx, key, id);
		free(key);
		free(id);
	}
	return rc;
}

int pr_s3_uploads(struct pr_s3 *s, const char *prefix,
	int (*each)(void *ctx, const char *key, const char *id), void *ctx, struct pr_err *err)
{
	struct pr_buf query = { 0 }, page = { 0 };
	char *key = NULL, *id = NULL, *more = NULL;
	int rc = 0;

	for (int i = 0; i < PAGES && rc == 0; i++) {
		put_page(&query, prefix, key, id);
		rc = s3_send(s, &(struct s3_request){ .method = "GET", .query = query.s }, err);
		if (rc == 0 && (s->status != 200 || !strstr(s->body.s, "</ListMultipartUploadsResult>")))
			rc = refused(s, "listing uploads of", NULL, err);
		if (rc < 0)
			break;
		page.len = 0; /* each() asks the store too */
		pr_buf_put(&page, s->body.s, s->body.len);
		rc = each_upload(page.s, prefix, each, ctx);
		free(key);
		free(id);
		free(more);
		key = element(page.s, "NextKeyMarker", NULL);
		id = element(page.s, "NextUploadIdMarker", NULL);
		more = element(page.s, "IsTruncated", NULL);
		if (!more || strcmp(more, "true") != 0 || !key)
			break;
	}
	free(key);
	free(id);
	free(more);
	pr_buf_free(&query);
	pr_buf_free(&page);
	return rc;
}
