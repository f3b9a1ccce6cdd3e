/* lib/http_inner.h -- what the files of lib/http know of each other, and nobody else: http.c owns the server,
 * its loops and connections; http_listen.c the address; http_judge.c the head of a request; http_exchange.c
 * its course from the first line to the end of the answer; http_work.c the threads of slow routes;
 * http_stream.c answers without an end; http_tls.c certificates. */
#ifndef PR_HTTP_INNER_H
#define PR_HTTP_INNER_H

#include "lib/http.h"

#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define DISCARD_MAX (1024 * 1024) /* of a refused body we read so much, so that its sender sees why */

/* A connection, from accept to close. Lives on its loop's thread only. */
struct peer {
	struct peer *prev, *next;
	int fd;
	int asking;  /* between a request's head and the end of its answer */
	int at_work; /* its request waits for a worker or is with one: no time of the client's runs */
	struct pr_stream *stream; /* its answer goes on; no time runs either */
	int64_t since_us;         /* accepted, or its last request was answered, or came back from work */
};

/* One thread that serves connections. */
struct loop {
	struct pr_http *http;
	struct MHD_Daemon *daemon;
	pthread_t thread;
	int fd;   /* listening */
	int wake; /* eventfd: a worker gives a request back, or we shall end */
	_Atomic int woken, ending;
	struct peer *peers;
	unsigned peer_count;
	unsigned slow; /* requests that went to work and are not fully answered */
	int running;
	int freed; /* a connection was closed since this was last cleared */
};

/* The threads of slow routes, and what waits for them. Under mutex, but for what never changes. */
struct work {
	pthread_mutex_t mutex;
	pthread_cond_t more;
	struct exchange *first, **last;
	unsigned waiting, waiting_most;
	unsigned *together; /* by route: workers that handle many of it */
	unsigned together_most, batch_most;
	void (*many)(void *ctx, const struct pr_request *reqs, struct pr_response *const *resps, unsigned n);
	int stopping;
	pthread_t *thread;
	unsigned threads, threads_wanted;
	int64_t patience_us;
	void *(*worker_open)(void *worker_ctx);
	void (*worker_close)(void *worker);
	void *worker_ctx;
};

struct pr_http {
	struct loop *loop;
	unsigned loops;
	struct work work;
	int port;
	int loopback;
	char listen_host[NI_MAXHOST]; /* as given, without brackets: also a valid Host */
	char *token;
	struct tls *tls; /* NULL: none */
	char **origin;   /* ended by NULL */
	int (*has)(void *ctx, const char *path);
	size_t max_body;
	unsigned max_peers; /* of one loop */
	unsigned timeout_s;
	int64_t deadline_us;
	struct pr_route *route;
	size_t route_count;
};

/* What the header lines say about the request's own form. */
struct head {
	int hosts, lengths, codings, expects;
	int bad; /* a name that is no token, "Content-Length " for one */
};

/* One request, from its line to the end of its answer. Belongs to its loop's thread; while it is at work, to
 * the worker, which gives it back by MHD_resume_connection. */
struct exchange {
	struct loop *loop;
	const struct pr_http *http;
	struct MHD_Connection *conn;
	struct peer *peer;
	const struct pr_route *route;
	const char *path;
	const char *origin; /* of the page that asks, when it may read the answer */
	struct head lines;
	int bad_target;        /* the request target is not acceptable */
	int begun;             /* the head was judged */
	int failed;            /* resp holds the refusal; the body is read and dropped */
	int close;             /* the rest of the stream cannot be trusted, or is not worth reading */
	_Atomic int handled;   /* resp holds the handler's answer; what else the worker wrote is before it */
	int gone;              /* the client went while the request waited: nobody to answer */
	int alone;             /* not with others again */
	struct exchange *next; /* in the queue for the workers, or of those that are handled together */
	int64_t queued_us;
	struct pr_response resp;
	char allow[64];
	char *body;
	size_t body_len, body_cap, dropped;
};

/* It is handled together with others of its route that wait. */
static inline int http_has_company(const struct exchange *ex)
{
	return ex->route->slow > 1 && !ex->alone;
}

/* http_tls.c. Load: reads the files again. Pair: their text, the caller's. */
struct tls;
struct tls *http_tls_new(const struct pr_http_tls *opts, struct pr_err *err);
int http_tls_load(struct tls *tls, struct pr_err *err) PR_MUSTCHECK;
void http_tls_free(struct tls *tls); /* accepts NULL; no connection is left */
int http_tls_pair(const struct tls *tls, char **cert, char **key) PR_MUSTCHECK;
/* Before the handshake. -1: it must not go on. */
int http_tls_begin(struct tls *tls, struct MHD_Connection *conn) PR_MUSTCHECK;
void http_tls_send(struct MHD_Connection *conn, const char *text, size_t n);

int http_listen(struct pr_http *http, const struct pr_http_opts *opts, struct pr_err *err) PR_MUSTCHECK;

/* True for a target that begins with a slash, decodes to UTF-8 without control characters (a NUL would cut
 * the string for whoever reads it as one), and has no "." or ".." among its path's segments. */
int http_target_ok(const char *target);
/* Everything that can be told from the head of a request: the route, or ex->failed and the refusal. */
void http_judge(struct exchange *ex, struct MHD_Connection *conn, const char *method, const char *path);
/* What a browser wants to see in an answer to a page of another origin. */
void http_add_origin(const struct exchange *ex, struct MHD_Response *r);
void http_refuse(struct exchange *ex, int status, const char *slug, const char *title, const char *detail);
void http_too_large(struct exchange *ex);
size_t http_content_length(struct MHD_Connection *conn);

/* libmicrohttpd's callbacks, cls is the loop: a request's line, its head and body, its end. */
void *http_on_target(void *cls, const char *target, struct MHD_Connection *conn);
enum MHD_Result http_on_request(void *cls, struct MHD_Connection *conn, const char *path, const char *method,
	const char *version, const char *data, size_t *data_len, void **state);
void http_on_completed(
	void *cls, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode how);
/* Runs the route's handler. On the loop's thread, or on a worker's. */
void http_handle(struct exchange *ex, void *worker);
/* The same of n, of one route, by the handler of many. */
void http_handle_many(struct exchange *const *ex, unsigned n, void *worker);

void http_wake(struct loop *loop);

/* For the loop's thread. The answer, NULL: no memory. A response takes the stream over. */
struct MHD_Response *http_stream_response(struct pr_stream *s, struct exchange *ex);
void http_stream_end(struct pr_stream *s);  /* the client shall see its end */
void http_stream_drop(struct pr_stream *s); /* of an answer that was never given; accepts NULL */

void http_work_init(struct pr_http *http, const struct pr_http_opts *opts);
int http_work_start(struct pr_http *http, struct pr_err *err) PR_MUSTCHECK;
/* A place in the queue; the caller suspends the connection, and only then pushes. -1: too many wait, or we
 * stop. */
int http_work_reserve(struct work *w);
void http_work_push(struct work *w, struct exchange *ex);
/* What waits is refused, what is at work is waited for; then every exchange was given back. */
void http_work_stop(struct work *w);
void http_work_free(struct work *w); /* after the loops have ended */

#endif
