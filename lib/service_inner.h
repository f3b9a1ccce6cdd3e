/* lib/service_inner.h -- what the files of lib/service know of each other, and nobody else: service.c is the
 * program; service_schema.c what it installs; service_route.c finds the use case; service_input.c reads the
 * request; service_call.c asks Postgres, service_many.c for many at once; service_answer.c says how it went;
 * service_base64.c is for tokens.
 */
#ifndef PR_SERVICE_INNER_H
#define PR_SERVICE_INNER_H

#include "lib/service.h"

#include "lib/health.h"
#include "lib/traceparent.h"

#include <pthread.h>
#include <stdatomic.h>

/* An endpoint, with what was made of it at the start. */
struct compiled {
	const struct pr_endpoint *e;
	int fields, in_body; /* how many, and how many of them in the body */
	char *once, *keyed;  /* the statement without and with Idempotency-Key */
	char *many_once, *many_keyed;
	struct pr_series *seconds;
};

/* One HTTP route: all endpoints of one method below one prefix. */
struct pr_door {
	struct pr_service_run *run;
	const char *method;
	char prefix[200];
	const struct compiled *many; /* it has this endpoint only, one with many; else NULL */
};

struct pr_service_run {
	const struct pr_service *service;
	struct compiled *compiled;
	int n;
	struct pr_door *doors;
	struct pr_tokens *tokens, *own_tokens;
	pthread_mutex_t heavy_mutex;
	pthread_cond_t heavy_left; /* CLOCK_MONOTONIC */
	int64_t heavy_free, heavy_waiting;
	_Atomic int64_t patient;       /* requests that wait for what is not known yet */
	_Atomic int64_t away_until_us; /* Postgres did not answer: nobody tries before */
	_Atomic int installed, stopping;
	struct pr_board board;
	struct pr_metrics *metrics;
	struct pr_vitals vitals;
	struct pr_family *requests;
	_Atomic int64_t logged_us; /* the last line about an error of a request */
};

enum { TROUBLE_POSTGRES, TROUBLE_SCHEMA, TROUBLE_TICK, TROUBLE_RELOAD, TROUBLES };

/* A worker's own. */
struct worker {
	struct pr_service_run *run;
	struct pr_pg *pg;
	/* Set in each transaction of the call: outbox.traceparent, or service.traces of many at once. value
	 * NULL: neither. */
	const char *setting, *value;
};

int service_install(const struct pr_service *service, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;
void service_compile(struct pr_service_run *run);
void service_uncompile(struct pr_service_run *run);
/* The API's HTTP routes behind those there are (ended by method NULL); room: how many more fit. */
int service_routes(
	struct pr_service_run *run, struct pr_route *routes, size_t room, struct pr_err *err) PR_MUSTCHECK;
size_t service_routes_most(const struct pr_service *service);
/* Of a door with many: what of n requests is well asked is asked together, the others are answered. */
void service_handle_many(
	void *door, const struct pr_request *reqs, struct pr_response *const *resps, unsigned n);
int service_has(void *door, const char *path);

/* Fills call->body and the parameters; 1: the call was answered. */
int service_input(struct pr_call *call);
/* The bytes that tell one request's content from another's, without keeping its secrets. -1: out of order. */
int service_fingerprint(struct pr_call *call, unsigned char ret[32]);

/* The request's traceparent, in our own words. -1: it has none that is one. */
int service_trace(const struct pr_call *call, char out[PR_TRACEPARENT_LEN + 1]);

/* Runs the endpoint's SQL; 1: the call was answered otherwise than well. */
int service_ask(struct pr_call *call, const struct compiled *c);
/* Of n calls that are ready to be asked, all by c->many: each is answered, or has call->answer, or is left
 * for later (resp->alone). Returns 0 where the caller has to go on with call->answer, in ret_done. */
void service_ask_many(struct pr_call **calls, int n, const struct compiled *c, char *ret_done);
/* The statement, again while deadlocks undo it. On -1 *ret_alive: Postgres has said why, and nothing was
 * done. */
int service_run(struct worker *w, struct pr_stmt *stmt, int *ret_alive, struct pr_err *err) PR_MUSTCHECK;
/* 1: a worker may wait for what is not known yet, and says when that is over: half of them at most do. */
int service_may_wait(struct pr_service_run *run) PR_MUSTCHECK;
void service_waited(struct pr_service_run *run);
/* The request's Idempotency-Key: NULL: none, or nobody asks here for one. */
const char *service_key(const struct pr_call *call);
/* Its sums: who asks, for what, under which key; and the content. 1: the call was answered. */
int service_key_sums(struct pr_call *call, const char *key, unsigned char sum[32], unsigned char print[32]);
void *service_worker_open(void *run);
void service_worker_close(void *worker);

/* An error of Postgres as an answer. */
void service_fail(struct pr_call *call, const struct pr_err *err);
/* {"type", "title", "status", "detail"} and, of a member, "errors". */
int service_problem(
	struct pr_call *call, int status, const char *slug, const char *detail, const char *member);

/* Base64 without padding in the URL's alphabet. Decode: exact, no other writing of the same bytes; the
 * length, or -1. encode: NUL-terminated, out has 4/3 n + 4 bytes. */
int service_base64_decode(const char *s, size_t n, unsigned char *out, size_t size);
size_t service_base64_encode(const unsigned char *s, size_t n, char *out);

#endif
