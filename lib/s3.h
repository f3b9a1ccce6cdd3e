/* lib/s3.h -- an object store that speaks S3: what putting objects there needs, with our own deadlines.
 * Signed with AWS Signature Version 4. Not thread-safe: one client a thread. Refuses redirects, cookies and a
 * proxy. */
#ifndef PR_S3_H
#define PR_S3_H

#include "lib/err.h"
#include "lib/json.h"

#include <stdint.h>

#define PR_S3_ETAG  200
#define PR_S3_PARTS 10000 /* most of an upload */

/* ---------------------------------------------------------------- signing: s3_sign.c */

/* What a request is signed with; all borrowed. */
struct pr_s3_sign {
	const char *access_key, *secret_key, *region, *service;
	const char *stamp; /* 20130524T000000Z */
	const char *method;
	const char *path;           /* encoded */
	const char *query;          /* encoded and sorted; "" */
	const char *const *headers; /* "name:value", lower case names, sorted; all of them are signed */
	size_t headers_n;
	const char *payload_sha256; /* hexadecimal */
};

/* Appends the value of header Authorization. */
int pr_s3_sign(struct pr_buf *b, const struct pr_s3_sign *s, struct pr_err *err) PR_MUSTCHECK;

/* Percent-encoding of all but A-Z a-z 0-9 - _ . ~ and, where slash is set, '/'. */
void pr_s3_encode(struct pr_buf *b, const char *s, int slash);

void pr_s3_hex(const unsigned char *p, size_t n, char *out); /* 2n + 1 */

/* ---------------------------------------------------------------- requests: s3.c, s3_request.c */

struct pr_s3_conf {
	const char *endpoint; /* http(s)://host[:port] */
	const char *bucket, *region;
	const char *access_key, *secret_key;
	int path_style;
	int64_t timeout_us; /* of one request */
};

struct pr_s3;

/* Copies what it needs. PR_STOP, exit 78: an endpoint that is none. */
int pr_s3_new(const struct pr_s3_conf *conf, struct pr_s3 **ret, struct pr_err *err) PR_MUSTCHECK;
void pr_s3_free(struct pr_s3 *s); /* accepts NULL */

/* All of them: PR_RETRY when the same may work later (no answer in time, 5xx, 429, half an answer), else
 * PR_REJECT with S3's own word (NoSuchBucket, SignatureDoesNotMatch) as code and a hint where we know one. */

/* Whether bucket, keys and region are right. A store that only forbids us to list is right. */
int pr_s3_check(struct pr_s3 *s, struct pr_err *err) PR_MUSTCHECK;

struct pr_s3_object {
	int found;
	int64_t bytes;
	char sha256[65]; /* as pr_s3_begin was told, hexadecimal; "" */
};
int pr_s3_head(struct pr_s3 *s, const char *key, struct pr_s3_object *ret, struct pr_err *err) PR_MUSTCHECK;

/* A small object's bytes into b. 1: they are there, 0: there is none, or we may not read it. */
int pr_s3_get(struct pr_s3 *s, const char *key, struct pr_buf *b, struct pr_err *err) PR_MUSTCHECK;

int pr_s3_put(struct pr_s3 *s, const char *key, const char *type, const void *p, size_t n,
	struct pr_err *err) PR_MUSTCHECK;

/* An object in parts: begin, part 1 to n, complete. Nobody sees it before it is complete. *ret_id: owned. */
int pr_s3_begin(struct pr_s3 *s, const char *key, const char *type, const char *sha256, char **ret_id,
	struct pr_err *err) PR_MUSTCHECK;
int pr_s3_part(struct pr_s3 *s, const char *key, const char *id, int number, const void *p, size_t n,
	char etag[PR_S3_ETAG], struct pr_err *err) PR_MUSTCHECK;
/* Code NoSuchUpload: it was completed or aborted before. */
int pr_s3_complete(struct pr_s3 *s, const char *key, const char *id, const char *const *etags, size_t n,
	struct pr_err *err) PR_MUSTCHECK;
int pr_s3_abort(struct pr_s3 *s, const char *key, const char *id, struct pr_err *err) PR_MUSTCHECK;

/* Uploads under way whose key begins so; a page of a thousand at a time, ten at most. each: not 0 ends it and
 * is returned. */
int pr_s3_uploads(struct pr_s3 *s, const char *prefix,
	int (*each)(void *ctx, const char *key, const char *id), void *ctx, struct pr_err *err) PR_MUSTCHECK;

#endif
