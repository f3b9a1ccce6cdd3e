/* lib/service_route.c -- from a request to its use case and back: which endpoint, who asks, what with, the
 * answer, and how long it took. Refuses what the table does not name. */
#include "lib/service_inner.h"

#include "lib/clock.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

/* ---- the table, made ready ---- */

static int count_fields(const struct pr_field *f)
{
	int n = 0;

	while (f && f[n].name)
		n++;
	return n;
}

/* CASE keeps the order: the use case runs after the claim, and not at all when there is an answer. */
static char *keyed(const char *sql, int n)
{
	return pr_asprintf(
		"WITH c AS MATERIALIZED (SELECT service.claim($%d, $%d) AS old) SELECT CASE WHEN c.old IS "
		"NULL "
		"THEN service.settle($%d, $%d, %s) ELSE c.old -> 'answer' END, c.old IS NOT NULL FROM c",
		n + 1, n + 2, n + 1, n + 2, sql);
}

/* claim_all before the use case, which a row of it gates; what is remembered is what was done. */
static char *many_keyed(const char *sql, int n)
{
	return pr_asprintf(
		"WITH c AS MATERIALIZED (SELECT service.claim_all($%d::bytea[]) AS ok), "
		"u AS MATERIALIZED (SELECT u.* FROM %s AS u WHERE (SELECT c.ok FROM c)), "
		"s AS (INSERT INTO service.idempotency (key, fingerprint, answer) "
		"SELECT ($%d::bytea[])[u.n], ($%d::bytea[])[u.n], u.answer FROM u "
		"WHERE u.code IS NULL AND u.answer IS NOT NULL AND ($%d::bytea[])[u.n] IS NOT NULL) "
		"SELECT u.n, u.answer, u.code, u.detail, u.hint FROM u",
		n + 1, sql, n + 1, n + 2, n + 1);
}

void service_compile(struct pr_service_run *run)
{
	const struct pr_endpoint *e = run->service->endpoints;
	struct pr_family *seconds = pr_histogram_new(run->metrics, "postrider_http_request_seconds", "route",
		pr_seconds_buckets, pr_seconds_buckets_n, "Time from a request's turn to its answer.");

	run->requests = pr_family_new(run->metrics, PR_COUNTER, "postrider_http_requests_total",
		"method,route,status", 0, "Requests answered.");
	while (e[run->n].method)
		run->n++;
	run->compiled = pr_calloc((size_t)run->n + 1, sizeof(*run->compiled));
	for (int i = 0; i < run->n; i++) {
		struct compiled *c = &run->compiled[i];

		c->e = &e[i];
		c->fields = count_fields(e[i].fields);
		c->once = e[i].sql ? pr_asprintf("SELECT %s, false", e[i].sql) : NULL;
		c->keyed = e[i].sql ? keyed(e[i].sql, c->fields) : NULL;
		c->many_once =
			e[i].many ? pr_asprintf("SELECT u.n, u.answer, u.code, u.detail, u.hint FROM %s AS u",
					    e[i].many)
				  : NULL;
		c->many_keyed = e[i].many ? many_keyed(e[i].many, c->fields) : NULL;
		c->seconds = pr_series_get(seconds, (const char *const[]){ e[i].path });
	}
}

void service_uncompile(struct pr_service_run *run)
{
	for (int i = 0; i < run->n; i++) {
		free(run->compiled[i].once);
		free(run->compiled[i].keyed);
		free(run->compiled[i].many_once);
		free(run->compiled[i].many_keyed);
	}
	free(run->compiled);
	free(run->doors);
}

/* ---- which endpoint ---- */

/* Segment by segment; {names} go to values (malloc'd; NULL: nowhere), n of them. */
static int path_fits(const char *pattern, const char *path, char **values, int *n)
{
	while (*pattern && *path) {
		size_t p = strcspn(pattern + 1, "/"), q = strcspn(path + 1, "/");

		if (pattern[1] == '{') {
			if (q == 0 || *n == PR_FIELDS_MAX)
				return 0;
			if (values)
				values[*n] = strndup(path + 1, q);
			(*n)++;
		} else if (p != q || strncmp(pattern + 1, path + 1, p) != 0) {
			return 0;
		}
		pattern += p + 1;
		path += q + 1;
	}
	return !*pattern && !*path;
}

static const struct compiled *find(
	struct pr_service_run *run, const char *method, const char *path, char **values)
{
	int n;

	for (int i = 0; i < run->n; i++) {
		const struct compiled *c = &run->compiled[i];

		n = 0;
		if (strcmp(c->e->method, method) == 0 && path_fits(c->e->path, path, values, &n))
			return c;
		while (n > 0)
			free(values[--n]), values[n] = NULL;
	}
	return NULL;
}

/* Whether one of a door's endpoints has the path. */
int service_has(void *door, const char *path)
{
	const struct pr_door *d = door;
	int n;

	for (int i = 0; i < d->run->n; i++) {
		const struct pr_endpoint *e = d->run->compiled[i].e;

		n = 0;
		if (strcmp(e->method, d->method) == 0 && path_fits(e->path, path, NULL, &n))
			return 1;
	}
	return 0;
}

/* ---- who asks ---- */

static int is_not_known(enum pr_token_verdict verdict)
{
	return verdict == PR_TOKEN_UNKNOWN_KEY || verdict == PR_TOKEN_NO_KEYS;
}

/* Its key may be fetched in a moment. */
enum pr_token_verdict pr_call_verify(
	struct pr_call *call, struct pr_tokens *tokens, const char *token, struct pr_claims *claims)
{
	enum pr_token_verdict verdict = pr_tokens_verify(tokens, token, strlen(token), 0, claims);

	if (!is_not_known(verdict) || !call->req->worker)
		return verdict;
	if (call->req->in_company) {
		call->resp->alone = 1;
	} else if (service_may_wait(call->run)) {
		verdict = pr_tokens_verify(tokens, token, strlen(token), 1, claims);
		service_waited(call->run);
	}
	return verdict;
}

/* 1: it was answered, or is left for later. */
static int authorize(struct pr_call *call)
{
	const char *token = pr_call_bearer(call);
	enum pr_token_verdict verdict;

	if (call->endpoint->auth == PR_OPEN)
		return 0;
	verdict = token ? pr_call_verify(call, call->run->tokens, token, &call->caller) : PR_TOKEN_MISSING;
	if (verdict == PR_TOKEN_OK)
		return 0;
	return call->resp->alone ? 1 : pr_call_unauthorized(call, verdict);
}

/* ---- what is dear ---- */

/* Waits for a place, at most http.timeout, but never takes the last worker: what is cheap goes on meanwhile.
 */
static int wait_heavy(struct pr_service_run *run)
{
	const struct pr_service_conf *conf = run->service->conf;
	int64_t end = pr_mono_us() + conf->http_timeout_us;
	struct timespec until = { .tv_sec = (time_t)(end / PR_SEC), .tv_nsec = end % PR_SEC * 1000 };
	int got;

	(void)pthread_mutex_lock(&run->heavy_mutex);
	if (run->heavy_free == 0 && run->heavy_waiting + conf->heavy + 1 < conf->workers) {
		run->heavy_waiting++;
		while (run->heavy_free == 0 && pr_mono_us() < end)
			(void)pthread_cond_timedwait(&run->heavy_left, &run->heavy_mutex, &until);
		run->heavy_waiting--;
	}
	got = run->heavy_free > 0;
	run->heavy_free -= got;
	(void)pthread_mutex_unlock(&run->heavy_mutex);
	return got;
}

static int enter_heavy(struct pr_call *call)
{
	if (!(call->endpoint->flags & PR_HEAVY) || wait_heavy(call->run))
		return 0;
	call->resp->retry_after = 1;
	return pr_call_problem(call, 503, "overloaded", "too many ask for this at the same time");
}

static void leave_heavy(struct pr_call *call)
{
	if (!(call->endpoint->flags & PR_HEAVY))
		return;
	(void)pthread_mutex_lock(&call->run->heavy_mutex);
	call->run->heavy_free++;
	(void)pthread_cond_signal(&call->run->heavy_left);
	(void)pthread_mutex_unlock(&call->run->heavy_mutex);
}

/* ---- the answer ---- */

/* "/orders/{order_id}" of the answer's member. */
static void set_location(struct pr_call *call)
{
	const char *t = call->endpoint->location, *brace = strchr(t, '{');
	char name[64], *value;

	if (!brace)
		return;
	(void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(brace + 1, "}"), brace + 1);
	value = pr_json_string(call->answer, name);
	if (value)
		(void)snprintf(call->resp->location, sizeof(call->resp->location), "%.*s%s", (int)(brace - t),
			t, value);
	free(value);
}

static void good_answer(struct pr_call *call)
{
	int status = call->endpoint->status ? call->endpoint->status : 200;

	if (call->endpoint->location)
		set_location(call);
	(void)pr_call_answer(call, status, call->answer);
	call->answer = NULL;
}

static void finish(struct pr_call *call)
{
	if (call->endpoint->after)
		call->endpoint->after(call);
	if (call->answer)
		good_answer(call);
}

static void use(struct pr_call *call, const struct compiled *c)
{
	const struct pr_endpoint *e = c->e;

	if (e->before && e->before(call))
		return;
	if (!e->sql || service_ask(call, c))
		return;
	finish(call);
}

static void release(struct pr_call *call)
{
	for (int i = 0; i < PR_FIELDS_MAX; i++) {
		free(call->own[i]);
		free((void *)(uintptr_t)call->path[i]);
	}
	free(call->answer);
	cJSON_Delete(call->body);
}

static void count(struct pr_call *call, const struct compiled *c, int64_t since_us)
{
	char status[12];

	(void)snprintf(status, sizeof(status), "%d", call->resp->status ? call->resp->status : 200);
	pr_counter_add(
		pr_series_get(call->run->requests, (const char *const[]){ c->e->method, c->e->path, status }),
		1);
	pr_observe(c->seconds, (double)(pr_mono_us() - since_us) / (double)PR_SEC);
}

/* 1: answered: it is none of those who may ask, or not well asked. Or left for later. */
static int turned_away(struct pr_call *call, const struct compiled *c)
{
	call->endpoint = c->e;
	if (!(c->e->flags & PR_PLAIN) && !atomic_load(&call->run->installed)) {
		call->resp->retry_after = 1;
		return pr_call_problem(call, 503, "unavailable", "the service is starting");
	}
	return authorize(call) || service_input(call);
}

static void serve(struct pr_call *call, const struct compiled *c)
{
	int64_t since_us = pr_mono_us();
	char trace[PR_TRACEPARENT_LEN + 1];
	struct worker *w = call->req->worker;

	if (w) {
		w->setting = "outbox.traceparent";
		w->value = service_trace(call, trace) == 0 ? trace : NULL;
	}
	if (!turned_away(call, c) && !enter_heavy(call)) {
		use(call, c);
		leave_heavy(call);
	}
	if (w)
		w->value = NULL;
	if (!call->resp->alone)
		count(call, c, since_us);
}

static void handle(void *door, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_door *d = door;
	struct pr_call call = { .run = d->run, .req = req, .resp = resp };
	char *values[PR_FIELDS_MAX] = { NULL };
	const struct compiled *c = find(d->run, d->method, req->path, values);

	memcpy(call.path, values, sizeof(values));
	if (c)
		serve(&call, c);
	else
		pr_http_problem(resp, 404, "not-found", "No such path", req->path);
	release(&call);
}

/* ---- many at once ---- */

/* Those that are well asked are asked together; the others were answered. Its path has no {names}. */
void service_handle_many(
	void *door, const struct pr_request *reqs, struct pr_response *const *resps, unsigned n)
{
	const struct pr_door *d = door;
	const struct compiled *c = d->many;
	struct pr_call *calls = pr_calloc(n, sizeof(*calls)),
		       **ready = pr_calloc(n, sizeof(struct pr_call *));
	char *done = pr_calloc(n, 1);
	int64_t since_us = pr_mono_us();
	int k = 0;

	for (unsigned i = 0; i < n; i++) {
		struct pr_call *call = &calls[i];

		*call = (struct pr_call){ .run = d->run, .req = &reqs[i], .resp = resps[i] };
		if (!turned_away(call, c) && !(c->e->before && c->e->before(call)))
			ready[k++] = call;
	}
	service_ask_many(ready, k, c, done);
	for (int i = 0; i < k; i++)
		if (done[i])
			finish(ready[i]);
	for (unsigned i = 0; i < n; i++) {
		if (!resps[i]->alone)
			count(&calls[i], c, since_us);
		release(&calls[i]);
	}
	free(done);
	free(ready);
	free(calls);
}

/* ---- doors ---- */

static void prefix_of(const char *path, char *prefix, size_t size)
{
	size_t n = strcspn(path, "{");

	(void)snprintf(prefix, size, "%.*s%s", (int)n, path, path[n] ? "*" : "");
}

size_t service_routes_most(const struct pr_service *service)
{
	size_t n = 0;

	while (service->endpoints[n].method)
		n++;
	return n;
}

static const struct pr_route *same_door(const struct pr_route *routes, const char *method, const char *prefix)
{
	for (; routes->method; routes++)
		if (strcmp(routes->method, method) == 0 && strcmp(routes->path, prefix) == 0)
			return routes;
	return NULL;
}

/* What a table must not say: the program does not start. */
static int refuse(
	const struct pr_endpoint *e, const struct pr_route *same, const char *prefix, struct pr_err *err)
{
	if (e->many && e->flags & PR_HEAVY)
		return pr_fail(err, PR_STOP, "%s %s: many, and PR_HEAVY", e->method, e->path);
	if (same && !same->slow != !!(e->flags & PR_PLAIN))
		return pr_fail(
			err, PR_STOP, "%s %s: PR_PLAIN, and others below %s not", e->method, e->path, prefix);
	if (same && (same->slow > 1 || e->many))
		return pr_fail(err, PR_STOP, "%s %s: many, and others below %s", e->method, e->path, prefix);
	return 0;
}

int service_routes(struct pr_service_run *run, struct pr_route *routes, size_t room, struct pr_err *err)
{
	size_t n = 0;

	run->doors = pr_calloc((size_t)run->n + 1, sizeof(*run->doors));
	while (routes[n].method)
		n++;
	for (int i = 0; i < run->n; i++) {
		const struct pr_endpoint *e = run->compiled[i].e;
		struct pr_door *d = &run->doors[i];
		const struct pr_route *same;

		prefix_of(e->path, d->prefix, sizeof(d->prefix));
		same = same_door(routes, e->method, d->prefix);
		if (refuse(e, same, d->prefix, err) < 0)
			return -1;
		if (same)
			continue;
		if (room-- == 0)
			return pr_fail(err, PR_STOP, "too many endpoints");
		d->run = run;
		d->method = e->method;
		routes[n] = (struct pr_route){ e->method, d->prefix, handle, d, 1, !(e->flags & PR_PLAIN) };
		if (e->many && !strchr(e->path, '{') && run->service->conf->batch > 1) {
			d->many = &run->compiled[i];
			routes[n].slow = (int)run->service->conf->batch;
		}
		n++;
	}
	return 0;
}
