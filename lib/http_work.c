/* lib/http_work.c -- the threads of slow routes: a bounded queue in, libmicrohttpd's resume out. Refuses to
 * begin with a request whose client has gone, or that has waited too long: under an overload that work is for
 * nobody. */
#include "lib/http_inner.h"

#include "lib/clock.h"
#include "lib/daemon.h"

#include <poll.h>
#include <stdlib.h>

#define DEFAULT_WORKERS 4

/* A client that closed its side, or half of it, no longer waits (as proxies see it, too). */
static int client_gone(const struct exchange *ex)
{
	struct pollfd p = { .fd = ex->peer->fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0;
}

static void refuse_later(struct exchange *ex, const char *slug, const char *title, const char *detail)
{
	pr_http_problem(&ex->resp, 503, slug, title, detail);
	ex->resp.retry_after = 1;
}

/* Whether it is still worth handling; else it has its answer, or needs none. */
static int is_wanted(const struct work *w, struct exchange *ex, int stopping)
{
	if (stopping)
		refuse_later(ex, "stopping", "The server is stopping", NULL);
	else if (client_gone(ex))
		ex->gone = 1;
	else if (pr_mono_us() - ex->queued_us > w->patience_us)
		refuse_later(ex, "overloaded", "Too much to do", "the request waited too long for its turn");
	else
		return 1;
	return 0;
}

/* Behind the resume the exchange is the loop's again: it may be gone at once. */
static void give_back(struct exchange *ex)
{
	struct loop *loop = ex->loop;
	struct MHD_Connection *conn = ex->conn;

	atomic_store_explicit(&ex->handled, 1, memory_order_release);
	MHD_resume_connection(conn); /* from here on ex is the loop's, which may free it */
	http_wake(loop);
}

/* ---- the queue: all of this with the mutex ---- */

static void append(struct work *w, struct exchange *ex)
{
	ex->next = NULL;
	*w->last = ex;
	w->last = &ex->next;
}

static struct exchange *unlink_at(struct work *w, struct exchange **at)
{
	struct exchange *ex = *at;

	*at = ex->next;
	if (w->last == &ex->next)
		w->last = at;
	w->waiting--;
	return ex;
}

static unsigned *together(const struct work *w, const struct exchange *ex)
{
	return &w->together[ex->route - ex->http->route];
}

/* The first that a worker may begin with; points at NULL: none. */
static struct exchange **first_ready(struct work *w)
{
	struct exchange **at = &w->first;

	while (*at && http_has_company(*at) && !w->stopping && *together(w, *at) >= w->together_most)
		at = &(*at)->next;
	return at;
}

/* The next request, and with it those that may be handled together with it, in the order in which they came;
 * how many. 0: none will come. */
static unsigned take(struct work *w, struct exchange **batch, int *ret_stopping)
{
	struct exchange **at;
	unsigned n = 0, most;

	(void)pthread_mutex_lock(&w->mutex);
	/* A place that is reserved will be taken: its exchange must be given back, too. */
	while (!*(at = first_ready(w)) && !(w->stopping && w->waiting == 0))
		(void)pthread_cond_wait(&w->more, &w->mutex);
	if (*at) {
		batch[n++] = unlink_at(w, at);
		most = http_has_company(batch[0]) ? (unsigned)batch[0]->route->slow : 1;
		while (n < most && *at)
			if ((*at)->route == batch[0]->route && !(*at)->alone)
				batch[n++] = unlink_at(w, at);
			else
				at = &(*at)->next;
		if (http_has_company(batch[0]))
			++*together(w, batch[0]);
	}
	if (w->stopping && w->waiting == 0)
		(void)pthread_cond_broadcast(&w->more);
	else if (*first_ready(w)) /* whoever was woken for it may have taken another */
		(void)pthread_cond_signal(&w->more);
	*ret_stopping = w->stopping;
	(void)pthread_mutex_unlock(&w->mutex);
	return n;
}

static void leave_together(struct work *w, unsigned *count)
{
	(void)pthread_mutex_lock(&w->mutex);
	--*count;
	(void)pthread_mutex_unlock(&w->mutex);
}

/* Into the queue again; its time goes on. */
static void again_alone(struct work *w, struct exchange *ex)
{
	ex->alone = 1;
	ex->resp.alone = 0;
	(void)pthread_mutex_lock(&w->mutex);
	w->waiting++;
	append(w, ex);
	(void)pthread_cond_signal(&w->more);
	(void)pthread_mutex_unlock(&w->mutex);
}

/* ---- workers ---- */

static void work_on(struct work *w, struct exchange **batch, unsigned n, int stopping, void *worker)
{
	unsigned *count = http_has_company(batch[0]) ? together(w, batch[0]) : NULL, good = 0;

	for (unsigned i = 0; i < n; i++)
		if (is_wanted(w, batch[i], stopping))
			batch[good++] = batch[i];
		else
			give_back(batch[i]);
	if (good == 1)
		http_handle(batch[0], worker);
	else if (good > 1)
		http_handle_many(batch, good, worker);
	for (unsigned i = 0; i < good; i++)
		if (batch[i]->resp.alone)
			again_alone(w, batch[i]);
		else
			give_back(batch[i]);
	if (count)
		leave_together(w, count);
}

static void *work_thread(void *arg)
{
	struct work *w = arg;
	void *worker = w->worker_open ? w->worker_open(w->worker_ctx) : NULL;
	struct exchange **batch = pr_calloc(w->batch_most, sizeof(struct exchange *));
	unsigned n;
	int stopping;

	while ((n = take(w, batch, &stopping)) > 0)
		work_on(w, batch, n, stopping, worker);
	free(batch);
	if (w->worker_close)
		w->worker_close(worker);
	return NULL;
}

int http_work_reserve(struct work *w)
{
	int rc = -1;

	(void)pthread_mutex_lock(&w->mutex);
	if (!w->stopping && w->waiting < w->waiting_most) {
		w->waiting++;
		rc = 0;
	}
	(void)pthread_mutex_unlock(&w->mutex);
	return rc;
}

void http_work_push(struct work *w, struct exchange *ex)
{
	ex->queued_us = pr_mono_us();
	(void)pthread_mutex_lock(&w->mutex);
	append(w, ex);
	/* Else whoever holds a place looks again when he gives it up. */
	if (!http_has_company(ex) || w->stopping || *together(w, ex) < w->together_most)
		(void)pthread_cond_signal(&w->more);
	(void)pthread_mutex_unlock(&w->mutex);
}

static int any_slow(const struct pr_http *http)
{
	for (size_t i = 0; i < http->route_count; i++)
		if (http->route[i].slow)
			return 1;
	return 0;
}

static unsigned batch_most(const struct pr_http *http)
{
	int most = 1;

	for (size_t i = 0; i < http->route_count; i++)
		if (http->route[i].slow > most)
			most = http->route[i].slow;
	return (unsigned)most;
}

void http_work_init(struct pr_http *http, const struct pr_http_opts *opts)
{
	unsigned n = opts->workers ? opts->workers : DEFAULT_WORKERS, conns = http->max_peers * http->loops;
	unsigned most = conns - conns / 4 > n ? conns - conns / 4 - n : 1;
	struct work *w = &http->work;

	(void)pthread_mutex_init(&w->mutex, NULL);
	(void)pthread_cond_init(&w->more, NULL);
	w->last = &w->first;
	w->waiting_most = opts->waiting && opts->waiting < most ? opts->waiting : most;
	w->patience_us = (int64_t)http->timeout_s * PR_SEC;
	w->worker_open = opts->worker_open;
	w->worker_close = opts->worker_close;
	w->worker_ctx = opts->worker_ctx;
	w->threads_wanted = any_slow(http) ? n : 0;
	w->together = pr_calloc(http->route_count + 1, sizeof(*w->together));
	w->together_most = n > 4 ? n / 4 : 1;
	w->batch_most = batch_most(http);
	w->many = opts->many;
	w->thread = pr_calloc(n, sizeof(*w->thread));
}

int http_work_start(struct pr_http *http, struct pr_err *err)
{
	struct work *w = &http->work;

	for (; w->threads < w->threads_wanted; w->threads++)
		if (pr_thread_start(&w->thread[w->threads], "http-work", work_thread, w, err) < 0)
			return -1;
	return 0;
}

void http_work_stop(struct work *w)
{
	(void)pthread_mutex_lock(&w->mutex);
	w->stopping = 1;
	(void)pthread_cond_broadcast(&w->more);
	(void)pthread_mutex_unlock(&w->mutex);
	for (unsigned i = 0; i < w->threads; i++)
		(void)pthread_join(w->thread[i], NULL);
	w->threads = 0;
}

void http_work_free(struct work *w)
{
	free(w->thread);
	free(w->together);
	(void)pthread_cond_destroy(&w->more);
	(void)pthread_mutex_destroy(&w->mutex);
}
