/* lib/s3_inner.h -- one request of the client: s3_request.c makes it, s3.c says which. */
#ifndef PR_S3_INNER_H
#define PR_S3_INNER_H

#include "lib/s3.h"

#include <curl/curl.h>

struct pr_s3 {
	char *origin; /* scheme://host[:port] */
	char *host;   /* as header Host has it */
	char *base;   /* encoded path before the key: "/bucket" or "" */
	char *bucket, *region, *access_key, *secret_key, *endpoint;
	int64_t timeout_us;
	CURLM *multi; /* keeps connections */

	/* the answer */
	long status;
	int cut; /* it was longer than we read */
	char etag[PR_S3_ETAG];
	char region_said[64];
	char sha256[65];
	int64_t length; /* Content-Length */
	struct pr_buf body;
};

struct s3_request {
	const char *method, *key; /* NULL: the bucket */
	const char *query;        /* encoded and sorted; NULL: none */
	const char *type;         /* Content-Type; NULL: none */
	const char *meta;         /* x-amz-meta-sha256; NULL: none */
	const void *body;
	size_t n;
};

/* The answer is in s. -1: there is none, PR_RETRY. Any status is an answer. */
int s3_send(struct pr_s3 *s, const struct s3_request *r, struct pr_err *err) PR_MUSTCHECK;

#endif
