/* lib/http.c -- the server: its loops (a thread each, libmicrohttpd driven through its epoll descriptor),
 * their connections and how they end. Refuses to let silence, dripping or idleness hold a place. Never logs.
 *
 * Why our own thread around MHD_run and not MHD's: (a) MHD's timeout counts silence, so a
 * client that drips a byte every few seconds would hold its connection for ever; ours also
 * bounds the whole request; (b) no signal is ever delivered to our thread. It costs one
 * more poll(2) per wakeup.
 *
 * What libmicrohttpd itself turns down before a request exists (a broken request line,
 * headers past HEADER_POOL) gets its status and a short HTML text, then the connection is
 * closed; everything else that fails is application/problem+json. */
#include "lib/http_inner.h"

#include "lib/clock.h"
#include "lib/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER_POOL     (32 * 1024) /* MHD's memory per connection: the head of a request and of its answer */
#define DEADLINE_FACTOR 2           /* a whole request, and the wait before it, in timeouts */
#define DEFAULT_CONNS   64
#define DEFAULT_BODY    (64 * 1024)
#define DEFAULT_TIMEOUT 5
#define IDLE_US         PR_SEC /* before that, an idle connection or half a head makes no room for others */
#define FLUSH_US        (PR_SEC / 2) /* for the last answers to reach their clients when we stop */

/* ---- connections ---- */

static void peer_add(struct loop *loop, struct MHD_Connection *conn, void **context)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct peer *p = pr_calloc(1, sizeof(*p));

	p->fd = info->connect_fd;
	p->since_us = pr_mono_us();
	p->next = loop->peers;
	if (p->next)
		p->next->prev = p;
	loop->peers = p;
	loop->peer_count++;
	*context = p;
}

static void peer_drop(struct loop *loop, struct peer *p)
{
	if (p->prev)
		p->prev->next = p->next;
	else
		loop->peers = p->next;
	if (p->next)
		p->next->prev = p->prev;
	loop->peer_count--;
	free(p);
}

static void on_connection(
	void *cls, struct MHD_Connection *conn, void **context, enum MHD_ConnectionNotificationCode what)
{
	struct tls *tls = ((struct loop *)cls)->http->tls;

	if (what == MHD_CONNECTION_NOTIFY_STARTED) {
		peer_add(cls, conn, context);
		if (tls && http_tls_begin(tls, conn) < 0)
			(void)shutdown(((struct peer *)*context)->fd, SHUT_RDWR);
	} else if (*context) {
		peer_drop(cls, *context);
		((struct loop *)cls)->freed = 1;
		*context = NULL;
	}
}

/* Every place is taken and somebody knocks. */
static int places_wanted(const struct loop *loop)
{
	struct pollfd knock = { .fd = loop->fd, .events = POLLIN };

	return loop->peer_count >= loop->http->max_peers && poll(&knock, 1, 0) > 0;
}

/* Nobody looks at the socket of a stream that has nothing to say. */
static int has_left(const struct peer *p)
{
	struct pollfd fd = { .fd = p->fd, .events = POLLRDHUP };

	return poll(&fd, 1, 0) > 0;
}

/* Ends the connections whose request takes too long, and where they are in the way idle ones and those that
 * do not come to the end of a request's head. */
static void sweep(struct loop *loop)
{
	int64_t now = pr_mono_us();
	int full = places_wanted(loop);

	for (struct peer *p = loop->peers; p; p = p->next) {
		int64_t since = now - p->since_us;

		if (p->stream) {
			if (has_left(p))
				http_stream_end(p->stream);
			continue;
		}
		/* MHD sees the end of the stream and closes the connection. */
		if (!p->at_work &&
			(since > loop->http->deadline_us || (full && !p->asking && since > IDLE_US)))
			(void)shutdown(p->fd, SHUT_RDWR);
	}
}

/* ---- loops ---- */

/* At its limit MHD takes the listening socket out of its epoll set, and puts it back at the
 * start of a run: without another run after a close, nobody would ever be accepted again. */
static void run(struct loop *loop)
{
	do {
		loop->freed = 0;
		(void)MHD_run(loop->daemon);
	} while (loop->freed);
}

static int wait_ms(const struct loop *loop)
{
	MHD_UNSIGNED_LONG_LONG ms = 0;

	if (MHD_get_timeout(loop->daemon, &ms) == MHD_YES && ms < 500)
		return (int)ms;
	return loop->peers ? 500 : -1;
}

/* MHD's own wake-up is no good here: a resume between its look at the resumed and its epoll_wait is forgotten
 * until the next run. Ours is taken back before the run, given after the resume. */
void http_wake(struct loop *loop)
{
	if (!atomic_exchange(&loop->woken, 1))
		(void)eventfd_write(loop->wake, 1);
}

static void unwake(struct loop *loop)
{
	eventfd_t n;

	(void)eventfd_read(loop->wake, &n);
	atomic_store(&loop->woken, 0);
}

static void turn(struct loop *loop, int epoll_fd, int most_ms)
{
	struct pollfd fds[2] = { { .fd = epoll_fd, .events = POLLIN },
		{ .fd = loop->wake, .events = POLLIN } };

	(void)poll(fds, 2, most_ms);
	if (fds[1].revents & POLLIN)
		unwake(loop);
	run(loop);
}

static void *serve(void *arg)
{
	struct loop *loop = arg;
	int epoll_fd = MHD_get_daemon_info(loop->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
	int64_t swept = pr_mono_us(), end;

	run(loop);
	while (!atomic_load(&loop->ending)) {
		turn(loop, epoll_fd, wait_ms(loop));
		if (pr_mono_us() - swept > PR_SEC / 2) {
			sweep(loop);
			swept = pr_mono_us();
		}
	}
	for (struct peer *p = loop->peers; p; p = p->next)
		if (p->stream)
			http_stream_end(p->stream);
	/* All workers have ended: their answers are on their way. */
	for (end = pr_mono_us() + FLUSH_US; loop->slow > 0 && pr_mono_us() < end;)
		turn(loop, epoll_fd, 10);
	return NULL;
}

/* ---- start and stop ---- */

static struct MHD_Daemon *start_daemon(struct loop *loop, struct MHD_OptionItem *more)
{
	const struct pr_http *http = loop->http;

	return MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | (http->tls ? MHD_USE_TLS : 0), 0,
		NULL, NULL, http_on_request, loop, MHD_OPTION_LISTEN_SOCKET, loop->fd,
		MHD_OPTION_CONNECTION_LIMIT, http->max_peers, MHD_OPTION_CONNECTION_TIMEOUT, http->timeout_s,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_POOL, MHD_OPTION_URI_LOG_CALLBACK,
		http_on_target, loop, MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, loop,
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, loop, MHD_OPTION_ARRAY, more, MHD_OPTION_END);
}

static struct MHD_Daemon *start_with_tls(struct loop *loop)
{
	struct MHD_OptionItem more[] = { { MHD_OPTION_END, 0, NULL }, { MHD_OPTION_END, 0, NULL },
		{ MHD_OPTION_END, 0, NULL } };
	struct MHD_Daemon *daemon = NULL;
	char *cert = NULL, *key = NULL;

	if (!loop->http->tls)
		return start_daemon(loop, more);
	if (http_tls_pair(loop->http->tls, &cert, &key) == 0) {
		more[0] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_CERT, 0, cert };
		more[1] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_KEY, 0, key };
		daemon = start_daemon(loop, more);
		explicit_bzero(key, strlen(key));
	}
	free(cert);
	free(key);
	return daemon;
}

/* fd is the listening socket, taken. Every loop has one of its own that MHD closes: whoever is free accepts.
 */
static int loop_open(struct loop *loop, struct pr_http *http, int fd)
{
	loop->http = http;
	loop->fd = fd;
	loop->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->fd < 0 || loop->wake < 0)
		return -1;
	loop->daemon = start_with_tls(loop);
	return loop->daemon ? 0 : -1;
}

static void loop_close(struct loop *loop)
{
	if (loop->running) {
		atomic_store(&loop->ending, 1);
		http_wake(loop);
		(void)pthread_join(loop->thread, NULL);
	}
	if (loop->daemon)
		MHD_stop_daemon(loop->daemon);
	else if (loop->fd >= 0)
		(void)close(loop->fd);
	if (loop->wake >= 0)
		(void)close(loop->wake);
}

static void copy_routes(struct pr_http *http, const struct pr_route *routes)
{
	while (routes[http->route_count].method)
		http->route_count++;
	http->route = pr_calloc(http->route_count, sizeof(*http->route));
	for (size_t i = 0; i < http->route_count; i++) {
		http->route[i] = routes[i];
		http->route[i].method = pr_strdup(routes[i].method);
		http->route[i].path = pr_strdup(routes[i].path);
	}
}

static char **copy_origins(const char *const *origins)
{
	char **copy;
	size_t n = 0;

	while (origins && origins[n])
		n++;
	copy = pr_calloc(n + 1, sizeof(*copy));
	while (n-- > 0)
		copy[n] = pr_strdup(origins[n]);
	return copy;
}

static struct pr_http *http_new(const struct pr_http_opts *opts, const struct pr_route *routes)
{
	unsigned conns = opts->max_connections ? opts->max_connections : DEFAULT_CONNS;
	struct pr_http *http = pr_calloc(1, sizeof(*http));

	copy_routes(http, routes);
	http->origin = copy_origins(opts->origins);
	http->has = opts->has;
	http->token = opts->token && *opts->token ? pr_strdup(opts->token) : NULL;
	http->max_body = opts->max_body ? opts->max_body : DEFAULT_BODY;
	http->timeout_s = opts->timeout_s ? opts->timeout_s : DEFAULT_TIMEOUT;
	http->deadline_us = (int64_t)http->timeout_s * DEADLINE_FACTOR * PR_SEC;
	http->loops = opts->threads ? opts->threads : 1;
	http->max_peers = conns / http->loops > 0 ? conns / http->loops : 1;
	http->loop = pr_calloc(http->loops, sizeof(*http->loop));
	for (unsigned i = 0; i < http->loops; i++)
		http->loop[i] = (struct loop){ .fd = -1, .wake = -1 };
	return http;
}

/* Workers before loops: while they end, health is still answered. */
static void http_end(struct pr_http *http)
{
	http_work_stop(&http->work);
	for (unsigned i = 0; i < http->loops; i++)
		loop_close(&http->loop[i]);
	http_work_free(&http->work);
	http_tls_free(http->tls);
	if (http->token)
		explicit_bzero(http->token, strlen(http->token));
	for (size_t i = 0; i < http->route_count; i++) {
		free((void *)(uintptr_t)http->route[i].method);
		free((void *)(uintptr_t)http->route[i].path);
	}
	for (char **o = http->origin; *o; o++)
		free(*o);
	free(http->origin);
	free(http->token);
	free(http->route);
	free(http->loop);
	free(http);
}

/* Takes fd. */
static int open_loops(struct pr_http *http, int fd)
{
	for (unsigned i = 1; i < http->loops; i++)
		if (loop_open(&http->loop[i], http, fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0) {
			(void)close(fd);
			return -1;
		}
	return loop_open(&http->loop[0], http, fd);
}

static int start_loops(struct pr_http *http, struct pr_err *err)
{
	for (unsigned i = 0; i < http->loops; i++) {
		struct loop *loop = &http->loop[i];

		if (pr_thread_start(&loop->thread, "http", serve, loop, err) < 0)
			return -1;
		loop->running = 1;
	}
	return 0;
}

int pr_http_start(const struct pr_http_opts *opts, const struct pr_route *routes, struct pr_http **ret,
	struct pr_err *err)
{
	struct pr_http *http = http_new(opts, routes);
	int fd, rc = -1;

	http_work_init(http, opts);
	if (opts->tls.cert) {
		http->tls = http_tls_new(&opts->tls, err);
		if (!http->tls)
			goto out;
	}
	fd = http_listen(http, opts, err);
	if (fd < 0)
		goto out;
	if (open_loops(http, fd) < 0) {
		(void)pr_fail(err, PR_RETRY, "cannot serve http on \"%s\": libmicrohttpd did not start",
			opts->listen);
		goto out;
	}
	if (http_work_start(http, err) < 0 || start_loops(http, err) < 0)
		goto out;
	*ret = http;
	rc = 0;
out:
	if (rc < 0)
		http_end(http);
	return rc;
}

int pr_http_port(const struct pr_http *http)
{
	return http->port;
}

int pr_http_renew(struct pr_http *http, struct pr_err *err)
{
	return http->tls ? http_tls_load(http->tls, err) : 0;
}

void pr_http_stop(struct pr_http *http)
{
	if (http)
		http_end(http);
}
