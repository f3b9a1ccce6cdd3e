/* lib/service_call.c -- asks Postgres: one statement, one transaction, one round trip a request, on the
 * worker's own session. Refuses to try while Postgres is known to be away: a request is not the one to wait
 * for it.
 *
 * With Idempotency-Key the statement is claim, use case and settle in one: the answer is remembered if and
 * only if the effect is. If we die here, before the answer is sent, the client asks again with the same key
 * and gets it. */
#include "lib/service_inner.h"

#include "lib/clock.h"
#include "lib/fault.h"

#include <openssl/evp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define AWAY_US   (PR_SEC / 2) /* after a failed connect nobody tries before */
#define TRIES     4            /* of what met a deadlock or a serialization failure */
#define AWAIT_US  (25 * PR_MS) /* between two looks at what may still come */
#define KEY_MAX   255
#define TEXT_TYPE 25
#define BYTEA     17

/* ---- the session ---- */

void *service_worker_open(void *run)
{
	struct worker *w = pr_calloc(1, sizeof(*w));

	w->run = run;
	return w;
}

void service_worker_close(void *worker)
{
	struct worker *w = worker;

	pr_pg_close(w->pg);
	free(w);
}

/* Postgres says nothing unasked but goodbye. */
static int said_goodbye(struct pr_pg *pg)
{
	struct pollfd p = { .fd = PQsocket(pr_pg_conn(pg)), .events = POLLIN | POLLRDHUP };

	return poll(&p, 1, 0) != 0;
}

static int connect_anew(struct worker *w, struct pr_err *err)
{
	const struct pr_service *s = w->run->service;
	struct pr_pg_opts opts = { .conninfo = s->conf->conninfo,
		.appname = s->program,
		.timeout_us = s->conf->timeout_us,
		.wake_fd = -1 };

	if (pr_mono_us() < atomic_load(&w->run->away_until_us))
		return pr_fail(err, PR_RETRY, "the database is away");
	if (pr_pg_open(&opts, &w->pg, err) == 0)
		return 0;
	atomic_store(&w->run->away_until_us, pr_mono_us() + AWAY_US);
	return -1;
}

static int session(struct worker *w, struct pr_err *err)
{
	if (w->pg && pr_pg_ok(w->pg) && !said_goodbye(w->pg))
		return 0;
	pr_pg_close(w->pg);
	w->pg = NULL;
	return connect_anew(w, err);
}

/* ---- the statement ---- */

int service_trace(const struct pr_call *call, char out[PR_TRACEPARENT_LEN + 1])
{
	const char *s = pr_http_header(call->req, "traceparent");
	struct pr_trace trace;

	if (!s || pr_traceparent_read(s, strlen(s), &trace) < 0)
		return -1;
	(void)pr_traceparent_put(&trace, out);
	return 0;
}

/* In the same transaction and round trip as what the worker has to set. */
static int pipeline(struct worker *w, struct pr_stmt *stmt, struct pr_err *err)
{
	const char *values[] = { w->setting, w->value };
	struct pr_stmt s[2] = { { .sql = "SELECT pg_catalog.set_config($1, $2, true)",
					.n = 2,
					.types = (const Oid[]){ TEXT_TYPE, TEXT_TYPE },
					.values = values },
		*stmt };
	int rc;

	if (!w->value)
		return pr_pg_pipeline(w->pg, stmt, 1, NULL, err);
	rc = pr_pg_pipeline(w->pg, s, 2, NULL, err);
	stmt->res = s[1].res;
	stmt->at_end = s[1].at_end;
	pr_stmt_clear(s, 1);
	return rc;
}

/* *ret_sent: whether Postgres may have got it. */
static int run_once(struct worker *w, struct pr_stmt *stmt, int *ret_sent, struct pr_err *err)
{
	*ret_sent = 0;
	if (session(w, err) < 0)
		return -1;
	*ret_sent = 1;
	if (pipeline(w, stmt, err) == 0)
		return 0;
	if (!pr_pg_ok(w->pg)) {
		pr_pg_close(w->pg);
		w->pg = NULL;
	}
	return -1;
}

/* Deadlocks and serialization failures have undone everything: again. A lost connection only if nothing can
 * have been done by it. */
static int run(struct worker *w, struct pr_stmt *stmt, int harmless, struct pr_err *err)
{
	int sent, rc = -1;

	for (int tries = 0; rc < 0 && tries < TRIES; tries++) {
		rc = run_once(w, stmt, &sent, err);
		if (rc == 0 || !sent)
			break;
		if (strncmp(err->code, "40", 2) != 0 && !(harmless && tries == 0 && !w->pg))
			break;
	}
	return rc;
}

int service_run(struct worker *w, struct pr_stmt *stmt, int *ret_alive, struct pr_err *err)
{
	int rc = run(w, stmt, 0, err);

	*ret_alive = w->pg != NULL && *err->code != '\0';
	return rc;
}

/* ---- what may be true in a moment ---- */

int service_may_wait(struct pr_service_run *run)
{
	if (atomic_fetch_add(&run->patient, 1) < run->service->conf->workers / 2)
		return 1;
	atomic_fetch_sub(&run->patient, 1);
	return 0;
}

void service_waited(struct pr_service_run *run)
{
	atomic_fetch_sub(&run->patient, 1);
}

static void pause_us(int64_t us)
{
	(void)poll(NULL, 0, (int)(us / PR_MS));
}

/* service.await: again, until it is no longer said or http.patience has passed. Each try is undone before the
 * next, so a death in between leaves nothing. */
static int run_patiently(struct worker *w, struct pr_stmt *stmt, int harmless, struct pr_err *err)
{
	int rc = run(w, stmt, harmless, err);
	int64_t until_us;

	if (rc == 0 || strncmp(err->code, "PA", 2) != 0 || !service_may_wait(w->run))
		return rc;
	until_us = pr_mono_us() + w->run->service->conf->patience_us;
	while (rc < 0 && strncmp(err->code, "PA", 2) == 0 && pr_mono_us() + AWAIT_US <= until_us) {
		pause_us(AWAIT_US);
		rc = run(w, stmt, harmless, err);
	}
	service_waited(w->run);
	return rc;
}

static int is_get(const struct pr_call *call)
{
	return strcmp(call->endpoint->method, "GET") == 0;
}

PGresult *pr_call_query(struct pr_call *call, const char *sql, int n, const char *const *params)
{
	static const Oid types[PR_FIELDS_MAX] = { TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE,
		TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE, TEXT_TYPE,
		TEXT_TYPE, TEXT_TYPE };
	struct pr_stmt stmt = { .sql = sql, .n = n, .types = types, .values = params, .sync = 1 };
	struct pr_err err = { 0 };

	if (run_patiently(call->req->worker, &stmt, is_get(call), &err) == 0)
		return stmt.res;
	service_fail(call, &err);
	return NULL;
}

/* ---- Idempotency-Key ---- */

static int key_ok(const char *key)
{
	size_t n = strlen(key);

	for (size_t i = 0; i < n; i++)
		if (key[i] < 0x20 || key[i] > 0x7e)
			return 0;
	return n > 0 && n <= KEY_MAX;
}

/* Who asks, for what, under which key: another user's same key is another key. */
static int key_sum(const struct pr_call *call, const char *key, unsigned char ret[32])
{
	EVP_MD_CTX *sum = EVP_MD_CTX_new();
	const char *parts[] = { call->endpoint->method, call->req->path, call->caller.sub, key };
	int ok = sum && EVP_DigestInit_ex(sum, EVP_sha256(), NULL) == 1;

	for (size_t i = 0; ok && i < sizeof(parts) / sizeof(*parts); i++)
		ok = EVP_DigestUpdate(sum, parts[i], strlen(parts[i]) + 1) == 1;
	ok = ok && EVP_DigestFinal_ex(sum, ret, NULL) == 1;
	EVP_MD_CTX_free(sum);
	return ok ? 0 : -1;
}

const char *service_key(const struct pr_call *call)
{
	return strcmp(call->endpoint->method, "POST") == 0 ? pr_http_header(call->req, "Idempotency-Key")
							   : NULL;
}

static int bad_key(struct pr_call *call)
{
	return pr_call_problem(
		call, 400, "malformed", "Idempotency-Key must have 1 to 255 characters of ASCII");
}

static int no_sum(struct pr_call *call)
{
	return pr_call_problem(call, 500, "internal", "no memory for a sum");
}

int service_key_sums(struct pr_call *call, const char *key, unsigned char sum[32], unsigned char print[32])
{
	if (!key_ok(key))
		return bad_key(call);
	if (key_sum(call, key, sum) < 0 || service_fingerprint(call, print) < 0)
		return no_sum(call);
	return 0;
}

int pr_call_remembered(struct pr_call *call)
{
	const char *key = service_key(call);
	char hex[2 * 32 + 3] = "\\x";
	unsigned char sum[32];
	PGresult *res;
	int known;

	if (!key)
		return 0;
	if (!key_ok(key))
		return -bad_key(call);
	if (key_sum(call, key, sum) < 0)
		return -no_sum(call);
	for (size_t i = 0; i < sizeof(sum); i++)
		(void)snprintf(hex + 2 + 2 * i, 3, "%02x", sum[i]);
	res = pr_call_query(call, "SELECT EXISTS (SELECT FROM service.idempotency WHERE key = $1::bytea)", 1,
		(const char *const[]){ hex });
	if (!res)
		return -1;
	known = *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	return known;
}

/* ---- the use case ---- */

static void take(struct pr_call *call, PGresult *res)
{
	if (!PQgetisnull(res, 0, 0))
		call->answer = pr_strdup(PQgetvalue(res, 0, 0));
	call->repeated = *PQgetvalue(res, 0, 1) == 't';
	PQclear(res);
}

static int ask(struct pr_call *call, struct pr_stmt *stmt)
{
	struct worker *w = call->req->worker;
	struct pr_err err = { 0 };
	int rc = call->req->in_company ? run(w, stmt, is_get(call), &err)
				       : run_patiently(w, stmt, is_get(call), &err);

	if (rc < 0) {
		call->resp->alone = call->req->in_company && strncmp(err.code, "PA", 2) == 0;
		if (!call->resp->alone)
			service_fail(call, &err);
		return 1;
	}
	take(call, stmt->res);
	/* If we die here the effect and its remembered answer are committed, and nobody was told. */
	FAULT(service_answered);
	return call->answer ? 0 : pr_call_problem(call, 404, "not-found", "there is no such thing");
}

int service_ask(struct pr_call *call, const struct compiled *c)
{
	const char *key = service_key(call), *values[PR_FIELDS_MAX + 2];
	int lengths[PR_FIELDS_MAX + 2] = { 0 }, formats[PR_FIELDS_MAX + 2] = { 0 }, n = c->fields;
	unsigned char sum[32], print[32];
	Oid types[PR_FIELDS_MAX + 2];

	for (int i = 0; i < n; i++) {
		values[i] = call->param[i];
		types[i] = TEXT_TYPE;
	}
	if (key) {
		if (service_key_sums(call, key, sum, print))
			return 1;
		values[n] = (const char *)sum;
		values[n + 1] = (const char *)print;
		for (int i = n; i < n + 2; i++) {
			lengths[i] = 32;
			formats[i] = 1;
			types[i] = BYTEA;
		}
	}
	return ask(call, &(struct pr_stmt){ .sql = key ? c->keyed : c->once,
				 .n = key ? n + 2 : n,
				 .types = types,
				 .values = values,
				 .lengths = lengths,
				 .formats = formats,
				 .sync = 1 });
}
