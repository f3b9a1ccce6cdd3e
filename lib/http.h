/* lib/http.h -- a small HTTP server on libmicrohttpd with its own threads: bounded
 * connections, bodies, headers and times. Loopback unless a token is given. Handlers of
 * plain routes run on the server's thread: they read atomics or take short locks, and never
 * wait. Handlers of slow routes run on worker threads, at most `workers` at a time, and may
 * wait as long as they bound it themselves. */
#ifndef PR_HTTP_H
#define PR_HTTP_H

#include "lib/err.h"

#include <stddef.h>

struct pr_http; /* the server */
struct pr_stream;

struct pr_request {
	const char *method, *path;
	const char *body; /* NUL-terminated, "" when none; borrowed */
	size_t body_len;
	void *conn;       /* for pr_http_header / pr_http_query */
	const char *rest; /* of the path, behind a prefix route's "/"; "" on an exact route */
	void *worker;     /* slow routes: what worker_open gave this thread; else NULL */
	int in_company;   /* it has a place that others of its route wait for: who must wait answers by
			   * resp->alone, and comes again without */
};

struct pr_response {
	int status;               /* default 200 */
	const char *content_type; /* static string; default "application/json" */
	char *body;               /* malloc'd, taken; NULL = empty */
	size_t body_len;
	char location[256];        /* Location header when not "" */
	char set_cookie[256];      /* Set-Cookie header when not "" */
	int retry_after;           /* Retry-After seconds when > 0 */
	const char *cache_control; /* static string; default "no-store" */
	struct pr_stream *stream;  /* instead of a body: an answer that goes on; taken (below) */
	int alone; /* in company: this one has no answer yet, the route's handler shall handle it by itself */
	const char *policy; /* static string: the page's Content-Security-Policy; default: only itself */
};

typedef void (*pr_http_handler)(void *ctx, const struct pr_request *req, struct pr_response *resp);

struct pr_route {
	const char *method; /* "GET", "PUT"; HEAD is answered by GET's handler without the body */
	const char *path;   /* exact, or a prefix when it ends with a slash and a star: "/sagas/" "*" */
	pr_http_handler handler;
	void *ctx;
	int open; /* 1: needs no token (health, metrics stay behind the token unless set) */
	int slow; /* 1: on a worker. Several at the same time: ctx is shared, req->worker is not. More than 1:
		   * so many of it, that wait at the same time, are handled together (opts.many) */
};

/* Files in PEM. */
struct pr_http_tls {
	char *cert, *key; /* NULL: no TLS. cert may hold the chain */
	char *client_ca;  /* only clients with a certificate of it; NULL: any */
};

struct pr_http_opts {
	const char *listen; /* "127.0.0.1:9470", "[::1]:9470", "*:9470"; port 0 picks one */
	const char *token;  /* bearer token required when set; it or tls.client_ca is required off loopback */
	struct pr_http_tls tls;   /* client_ca is as good as a token to listen off loopback; copied */
	unsigned max_connections; /* 0: 64. All taken: the idle ones make room for new ones */
	size_t max_body;          /* 0: 64 kB */
	unsigned timeout_s;       /* 0: 5 */
	int reuse_port;           /* several processes on one address */
	/* Origins of pages that may ask from a browser ("http://127.0.0.1:8082"), ended by NULL; copied. NULL
	 * or none: no page of another origin may. */
	const char *const *origins;
	/* Whether a prefix route has this path, asked with the route's ctx; NULL: each has all below it. */
	int (*has)(void *ctx, const char *path);
	int guarded;      /* the handlers ask for tokens themselves: off loopback without one of ours */
	unsigned threads; /* 0: 1. Serve connections on so many threads: then plain handlers, too, run
			   * side by side */
	/* Slow routes. No worker runs when there is no slow route. */
	unsigned workers; /* 0: 4 */
	unsigned waiting; /* requests that wait for a worker; more: 503 with Retry-After. 0, and at most: as
			   * many as leave a quarter of max_connections to the plain routes */
	/* The handler of two and more requests of a route, with that route's ctx. Of each such route a
	 * quarter of the workers (one at least) handles any at a time, so that what waits meanwhile comes
	 * together. */
	void (*many)(void *ctx, const struct pr_request *reqs, struct pr_response *const *resps, unsigned n);
	/* Called on each worker's thread, first and last: what it gives is req->worker, a database session
	 * for one (NULL is fine). Both may be NULL. */
	void *(*worker_open)(void *worker_ctx);
	void (*worker_close)(void *worker);
	void *worker_ctx;
};

/* Starts serving; routes (ended by method NULL) are copied. A slow request that waited for a worker longer
 * than timeout_s gets a 503, one whose client has gone is not handled at all. 405 for a known path with
 * another method, 404 otherwise, 400 for a foreign Host on loopback (DNS rebinding), 413, 431, 401: all as
 * application/problem+json. */
int pr_http_start(const struct pr_http_opts *opts, const struct pr_route *routes, struct pr_http **ret,
	struct pr_err *err) PR_MUSTCHECK;
int pr_http_port(const struct pr_http *http);
/* Reads the files of tls again, for connections from now on. -1: they are not right, the old ones stay. */
int pr_http_renew(struct pr_http *http, struct pr_err *err) PR_MUSTCHECK;
/* Accepts NULL. Nothing new is taken, what waits for a worker gets a 503, what is at work is waited for and
 * answered: ends within a second of the last slow handler (so wake them: they own their deadlines). */
void pr_http_stop(struct pr_http *http);

const char *pr_http_header(const struct pr_request *req, const char *name); /* NULL when absent; borrowed */
const char *pr_http_query(const struct pr_request *req, const char *name);  /* decoded; borrowed */

/* The i-th segment of req->rest ("a" and "b" of "a/b"; decoded; an escaped slash counts as one). Returns its
 * length, 0 when there is none or it is empty; *ret is not NUL-terminated, borrowed. */
size_t pr_http_segment(const struct pr_request *req, unsigned i, const char **ret);

/* An answer that goes on until one of the two ends it: server-sent events. A handler of a slow route makes
 * it, puts it into resp->stream and keeps it for whoever has something to say. most: bytes that may wait for
 * its client. It has a connection of max_connections for as long as it lives, and none of the times of a
 * request: whoever makes streams bounds their number. Any thread may call these. pr_http_stop ends all. */
struct pr_stream *pr_stream_new(size_t most);
/* All or nothing. -1: the client has gone, or is too slow: the stream has ended. */
int pr_stream_send(struct pr_stream *s, const char *data, size_t n);
/* Ends it once what was sent has gone out, and gives it back. Accepts NULL. */
void pr_stream_free(struct pr_stream *s);

/* Fills an RFC 9457 problem: type "/problems/<slug>", title, detail. */
void pr_http_problem(
	struct pr_response *resp, int status, const char *slug, const char *title, const char *detail);

#endif
