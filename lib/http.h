/* lib/http.h -- a small HTTP server on libmicrohttpd with its own thread: bounded
 * connections, bodies, headers and times. Loopback unless a token is given. Handlers
 * run on the server's thread: they read atomics or take short locks, and never wait. */
#ifndef PR_HTTP_H
#define PR_HTTP_H

#include "lib/err.h"

#include <stddef.h>

struct pr_http; /* the server */

struct pr_request {
	const char *method, *path;
	const char *body; /* NUL-terminated, "" when none; borrowed */
	size_t body_len;
	void *conn; /* for pr_http_header / pr_http_query */
};

struct pr_response {
	int status;               /* default 200 */
	const char *content_type; /* static string; default "application/json" */
	char *body;               /* malloc'd, taken; NULL = empty */
	size_t body_len;
	char location[256]; /* Location header when not "" */
	int retry_after;    /* Retry-After seconds when > 0 */
};

typedef void (*pr_http_handler)(void *ctx, const struct pr_request *req, struct pr_response *resp);

struct pr_route {
	const char *method; /* "GET"; HEAD is answered by GET's handler without the body */
	const char *path;   /* exact, or a prefix when it ends with a slash and a star: "/sagas/" "*" */
	pr_http_handler handler;
	void *ctx;
	int open; /* 1: needs no token (health, metrics stay behind the token unless set) */
};

struct pr_http_opts {
	const char *listen;       /* "127.0.0.1:9470", "[::1]:9470", "*:9470"; port 0 picks one */
	const char *token;        /* bearer token required when set; required to listen off loopback */
	unsigned max_connections; /* 0: 64 */
	size_t max_body;          /* 0: 64 kB */
	unsigned timeout_s;       /* 0: 5 */
	int reuse_port;           /* several processes on one address */
};

/* Starts serving; routes (ended by method NULL) are copied. 405 for a known path with another
 * method, 404 otherwise, 400 for a foreign Host on loopback (DNS rebinding), 413, 431, 401:
 * all as application/problem+json. */
int pr_http_start(const struct pr_http_opts *opts, const struct pr_route *routes, struct pr_http **ret,
	struct pr_err *err) PR_MUSTCHECK;
int pr_http_port(const struct pr_http *http);
void pr_http_stop(struct pr_http *http); /* accepts NULL; ends within a second */

const char *pr_http_header(const struct pr_request *req, const char *name); /* NULL when absent; borrowed */
const char *pr_http_query(const struct pr_request *req, const char *name);  /* decoded; borrowed */

/* Fills an RFC 9457 problem: type "/problems/<slug>", title, detail. */
void pr_http_problem(
	struct pr_response *resp, int status, const char *slug, const char *title, const char *detail);

#endif
