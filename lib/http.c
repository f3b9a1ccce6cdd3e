/* lib/http.c -- one thread, libmicrohttpd driven through its epoll descriptor. Refuses
 * before a handler runs: a listener off loopback without a token, a foreign Host on
 * loopback (DNS rebinding), a cross-site write, a path that is not plain UTF-8, two body
 * lengths (smuggling), bodies and headers past their bounds. Never logs.
 *
 * Why our own thread around MHD_run and not MHD's: (a) MHD's timeout counts silence, so a
 * client that drips a byte every few seconds would hold its connection for ever; ours also
 * bounds the whole request; (b) no signal is ever delivered to our thread. It costs one
 * more poll(2) per wakeup.
 *
 * What libmicrohttpd itself turns down before a request exists (a broken request line,
 * headers past HEADER_POOL) gets its status and a short HTML text, then the connection is
 * closed; everything else that fails is application/problem+json. */
#include "lib/http.h"

#include "lib/clock.h"
#include "lib/json.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER_POOL     (32 * 1024) /* MHD's memory per connection: the head of a request and of its answer */
#define HEADER_MAX      (12 * 1024) /* a head that fits the pool but is larger than any of ours gets a 431 */
#define DISCARD_MAX     (1024 * 1024) /* of a refused body we read so much, so that its sender sees why */
#define DEADLINE_FACTOR 2             /* a whole request, and the wait before it, in timeouts */
#define LISTEN_BACKLOG  128
#define DEFAULT_CONNS   64
#define DEFAULT_BODY    (64 * 1024)
#define DEFAULT_TIMEOUT 5

/* A connection, from accept to close. Lives on the server's thread only. */
struct peer {
	struct peer *prev, *next;
	int fd;
	int64_t since_us; /* accepted, or its last request was answered */
};

struct pr_http {
	struct MHD_Daemon *daemon;
	pthread_t thread;
	int wake; /* eventfd: pr_http_stop says stop */
	int port;
	int loopback;
	char listen_host[NI_MAXHOST]; /* as given, without brackets: also a valid Host */
	char *token;
	size_t max_body;
	int64_t deadline_us;
	struct pr_route *route;
	size_t route_count;
	struct peer *peers;
	int freed; /* a connection was closed since this was last cleared */
};

/* What the header lines say about the request's own form. */
struct head {
	int hosts, lengths, codings, expects;
	int bad; /* a name that is no token, "Content-Length " for one */
};

/* One request, from its line to the end of its answer. */
struct exchange {
	const struct pr_http *http;
	const struct pr_route *route;
	struct head lines;
	int bad_target; /* the request target is not acceptable */
	int begun;      /* the head was judged */
	int failed;     /* resp holds the refusal; the body is read and dropped */
	int close;      /* the rest of the stream cannot be trusted, or is not worth reading */
	struct pr_response resp;
	char allow[64];
	char *body;
	size_t body_len, body_cap, dropped;
};

/* ---- problems ---- */

void pr_http_problem(
	struct pr_response *resp, int status, const char *slug, const char *title, const char *detail)
{
	struct pr_buf b = { 0 };

	pr_buf_printf(&b, "{\"type\":\"/problems/%s\",\"title\":", slug);
	pr_buf_json(&b, title, strlen(title));
	pr_buf_printf(&b, ",\"status\":%d", status);
	if (detail) {
		pr_buf_puts(&b, ",\"detail\":");
		pr_buf_json(&b, detail, strlen(detail));
	}
	pr_buf_puts(&b, "}\n");
	free(resp->body);
	resp->status = status;
	resp->content_type = "application/problem+json";
	resp->body = b.s;
	resp->body_len = b.len;
}

static void refuse(struct exchange *ex, int status, const char *slug, const char *title, const char *detail)
{
	ex->failed = 1;
	pr_http_problem(&ex->resp, status, slug, title, detail);
}

/* ---- what a request says ---- */

const char *pr_http_header(const struct pr_request *req, const char *name)
{
	return MHD_lookup_connection_value(req->conn, MHD_HEADER_KIND, name);
}

const char *pr_http_query(const struct pr_request *req, const char *name)
{
	const char *value = NULL;

	if (MHD_lookup_connection_value_n(
		    req->conn, MHD_GET_ARGUMENT_KIND, name, strlen(name), &value, NULL) != MHD_YES)
		return NULL;
	return value ? value : "";
}

static int hex_value(unsigned char c)
{
	return isdigit(c) ? c - '0' : isxdigit(c) ? tolower(c) - 'a' + 10 : -1;
}

/* The next byte of a target, %-escapes undone; -1 for a broken escape. */
static int target_byte(const char **p)
{
	const unsigned char *s = (const unsigned char *)*p;
	int high, low;

	if (*s != '%') {
		*p += *s != 0;
		return *s;
	}
	high = hex_value(s[1]);
	low = high < 0 ? -1 : hex_value(s[2]);
	*p += 3;
	return low < 0 ? -1 : high * 16 + low;
}

/* The number of bytes that must follow the first byte of a UTF-8 character, and the range
 * of the second one (no overlong forms, no surrogates, nothing past U+10FFFF). */
static int utf8_follow(int c, int *low, int *high)
{
	*low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
	*high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
	return c < 0x80 ? 0 : c < 0xc2 ? -1 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : -1;
}

/* True for a target that begins with a slash, decodes to UTF-8 without control characters
 * (a NUL would cut the string for whoever reads it as one), and has no "." or ".." among its path's segments.
 */
static int target_ok(const char *target)
{
	int in_path = 1, segment = 0, dots = 0, follow = 0, low = 0, high = 0, c;

	if (*target != '/')
		return 0;
	while (*target) {
		int raw = (unsigned char)*target;

		if (raw == ' ' || raw == '#')
			return 0;
		c = target_byte(&target);
		if (follow > 0) {
			if (c < low || c > high)
				return 0;
			low = 0x80;
			high = 0xbf;
			follow--;
		} else {
			follow = utf8_follow(c, &low, &high);
			if (c < 0x20 || c == 0x7f || follow < 0)
				return 0;
		}
		if (!in_path)
			continue;
		in_path = raw != '?';
		if (c == '/' || !in_path) {
			if (segment > 0 && segment <= 2 && dots == segment)
				return 0;
			segment = dots = 0;
		} else {
			segment++;
			dots += c == '.';
		}
	}
	return follow == 0 && !(in_path && segment > 0 && segment <= 2 && dots == segment);
}

static enum MHD_Result head_line(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
	struct head *h = cls;

	(void)kind;
	(void)value;
	h->hosts += strcasecmp(name, "Host") == 0;
	h->lengths += strcasecmp(name, "Content-Length") == 0;
	h->codings += strcasecmp(name, "Transfer-Encoding") == 0;
	h->expects += strcasecmp(name, "Expect") == 0;
	h->bad |= !*name || strpbrk(name, " \t\"(),/:;<=>?@[\\]{}") != NULL;
	return MHD_YES;
}

/* Compares a host[:port] with a bare host, brackets or not. */
static int host_is(const char *given, const char *host)
{
	size_t n = strlen(host), digits;
	int bracket = *given == '[';

	given += bracket;
	if (strncasecmp(given, host, n) != 0)
		return 0;
	given += n;
	if (bracket && *given++ != ']')
		return 0;
	if (*given == '\0')
		return bracket || !strchr(host, ':');
	digits = strspn(given + 1, "0123456789");
	return *given == ':' && digits > 0 && digits <= 5 && given[1 + digits] == '\0' &&
	       (bracket || !strchr(host, ':'));
}

/* A browser that was lured to a name which resolves to 127.0.0.1 sends that name: only
 * our own names are answered on loopback. Elsewhere the token stands guard. */
static int host_ok(const struct pr_http *http, struct MHD_Connection *conn, const struct head *lines)
{
	const char *host = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Host");

	if (!host || lines->hosts != 1)
		return 0;
	return !http->loopback || host_is(host, "localhost") || host_is(host, "127.0.0.1") ||
	       host_is(host, "::1") || host_is(host, http->listen_host);
}

/* A page of another site may not make a browser write here (it cannot read the answer, but
 * the write is done). Clients that are no browsers send neither header. */
static int cross_site(struct MHD_Connection *conn)
{
	const char *site = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Sec-Fetch-Site");
	const char *origin = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Origin");
	const char *host = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Host");

	if (site && strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0)
		return 1;
	if (!origin)
		return 0;
	origin = strstr(origin, "://");
	return !origin || !host || strcasecmp(origin + 3, host) != 0;
}

/* Takes the time that the secret's length asks for, whatever was given. */
static int same_secret(const char *given, const char *secret)
{
	size_t n = strlen(given), m = strlen(secret);
	volatile unsigned char differs = n != m;

	for (size_t i = 0; i < m; i++)
		differs |= (unsigned char)(given[n ? i % n : 0] ^ secret[i]);
	return !differs;
}

static int token_ok(const struct pr_http *http, struct MHD_Connection *conn)
{
	const char *auth = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Authorization");

	if (!http->token)
		return 1;
	return auth && strncasecmp(auth, "Bearer ", 7) == 0 && same_secret(auth + 7, http->token);
}

/* ---- routes ---- */

/* Length of the match: an exact one beats any prefix, a longer prefix a shorter one; 0: none. */
static size_t path_match(const struct pr_route *r, const char *path)
{
	size_t n = strlen(r->path);

	if (n >= 2 && strcmp(r->path + n - 2, "/*") == 0)
		return strncmp(r->path, path, n - 1) == 0 ? n - 1 : 0;
	return strcmp(r->path, path) == 0 ? n + 1 : 0;
}

static int method_is(const struct pr_route *r, const char *method)
{
	return strcmp(r->method, strcmp(method, "HEAD") == 0 ? "GET" : method) == 0;
}

static const struct pr_route *find_route(const struct pr_http *http, const char *method, const char *path)
{
	const struct pr_route *best = NULL;
	size_t best_len = 0;

	for (size_t i = 0; i < http->route_count; i++) {
		size_t len = path_match(&http->route[i], path);

		if (len > best_len && method_is(&http->route[i], method)) {
			best = &http->route[i];
			best_len = len;
		}
	}
	return best;
}

/* "GET, HEAD, POST" of a path into buf; returns 0 when no route has that path. */
static int allowed(const struct pr_http *http, const char *path, char *buf, size_t size, int *ret_open)
{
	size_t len = 0;

	*buf = '\0';
	*ret_open = 0;
	for (size_t i = 0; i < http->route_count && len < size; i++) {
		const struct pr_route *r = &http->route[i];

		if (!path_match(r, path) || strstr(buf, r->method))
			continue;
		*ret_open |= r->open;
		len += (size_t)snprintf(buf + len, size - len, "%s%s", len ? ", " : "",
			strcmp(r->method, "GET") == 0 ? "GET, HEAD" : r->method);
	}
	return len > 0;
}

/* ---- one request ---- */

static int head_too_large(struct MHD_Connection *conn)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);

	return info && info->header_size > HEADER_MAX;
}

/* Whatever could be read as two different requests by us and by a proxy before us. */
static int framing_ok(const struct head *lines, struct MHD_Connection *conn)
{
	const char *coding = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Transfer-Encoding");

	return !lines->bad && lines->lengths + lines->codings <= 1 &&
	       (!coding || strcasecmp(coding, "chunked") == 0);
}

static size_t content_length(struct MHD_Connection *conn)
{
	const char *length = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Content-Length");

	return length ? (size_t)strtoull(length, NULL, 10) : 0;
}

static void too_large(struct exchange *ex)
{
	char detail[80];

	(void)snprintf(detail, sizeof(detail), "a body may have %zu bytes here", ex->http->max_body);
	refuse(ex, 413, "body-too-large", "Request body too large", detail);
}

static void judge_route(
	struct exchange *ex, struct MHD_Connection *conn, const char *method, const char *path)
{
	int open = 0, known;

	ex->route = find_route(ex->http, method, path);
	known = allowed(ex->http, path, ex->allow, sizeof(ex->allow), &open);
	if (ex->route)
		open = ex->route->open;
	/* Without the token nobody learns which paths there are. */
	if (!open && !token_ok(ex->http, conn))
		refuse(ex, 401, "unauthorized", "Bearer token required",
			"send Authorization: Bearer with the token of this server");
	else if (!known)
		refuse(ex, 404, "not-found", "No such path", path);
	else if (!ex->route)
		refuse(ex, 405, "method-not-allowed", "Method not allowed", ex->allow);
	else if (strcmp(ex->route->method, "GET") != 0 && cross_site(conn))
		refuse(ex, 403, "cross-site", "Refused from another site",
			"a page of another origin may not change anything here");
}

/* A head that makes the rest of the stream doubtful: answered at once, then closed. */
static void judge_form(struct exchange *ex, struct MHD_Connection *conn)
{
	(void)MHD_get_connection_values(conn, MHD_HEADER_KIND, head_line, &ex->lines);
	if (head_too_large(conn))
		refuse(ex, 431, "headers-too-large", "Request headers too large", NULL);
	else if (!framing_ok(&ex->lines, conn))
		refuse(ex, 400, "bad-framing", "Malformed request",
			"one Content-Length, or Transfer-Encoding: chunked, and not both");
	ex->close = ex->failed;
}

/* Everything that can be told from the head of a request. */
static void judge(struct exchange *ex, struct MHD_Connection *conn, const char *method, const char *path)
{
	ex->begun = 1;
	judge_form(ex, conn);
	if (ex->failed)
		return;
	if (!host_ok(ex->http, conn, &ex->lines))
		refuse(ex, 400, "bad-host", "Host not served here",
			"the Host header must be one of this server's own names");
	else if (ex->bad_target)
		refuse(ex, 400, "bad-target", "Malformed request target",
			"a path must decode to UTF-8, without control characters or dot segments");
	else
		judge_route(ex, conn, method, path);
	if (!ex->failed && content_length(conn) > ex->http->max_body)
		too_large(ex);
	/* The rest of a refused body is read, so that its sender comes to reading our answer,
	 * unless it is long or waits for our word. */
	if (ex->failed)
		ex->close = content_length(conn) > DISCARD_MAX || ex->lines.expects > 0;
}

static void add_header(struct MHD_Response *r, const char *name, const char *value)
{
	(void)MHD_add_response_header(r, name, value);
}

static struct MHD_Response *response_new(struct exchange *ex)
{
	struct pr_response *resp = &ex->resp;
	const char *type = resp->content_type ? resp->content_type : "application/json";
	struct MHD_Response *r = MHD_create_response_from_buffer(
		resp->body ? resp->body_len : 0, resp->body, MHD_RESPMEM_MUST_FREE);
	char seconds[16];

	if (!r)
		return NULL;
	resp->body = NULL; /* taken */
	if (resp->body_len > 0)
		add_header(r, "Content-Type", type);
	add_header(r, "X-Content-Type-Options", "nosniff");
	add_header(r, "Cache-Control", "no-store");
	if (strncmp(type, "text/html", 9) == 0)
		add_header(r, "Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'");
	if (resp->location[0])
		add_header(r, "Location", resp->location);
	(void)snprintf(seconds, sizeof(seconds), "%d", resp->retry_after);
	if (resp->retry_after > 0)
		add_header(r, "Retry-After", seconds);
	if (resp->status == 401)
		add_header(r, "WWW-Authenticate", "Bearer realm=\"postrider\"");
	if (resp->status == 405 && ex->allow[0])
		add_header(r, "Allow", ex->allow);
	if (ex->close)
		add_header(r, "Connection", "close");
	return r;
}

static enum MHD_Result answer(struct exchange *ex, struct MHD_Connection *conn)
{
	struct MHD_Response *r = response_new(ex);
	enum MHD_Result rc;

	if (!r)
		return MHD_NO;
	rc = MHD_queue_response(conn, ex->resp.status ? (unsigned)ex->resp.status : 200, r);
	MHD_destroy_response(r);
	return rc;
}

static void take_body(struct exchange *ex, const char *data, size_t n)
{
	if (ex->failed) {
		ex->dropped += n;
		return;
	}
	if (n > ex->http->max_body - ex->body_len) {
		ex->dropped = ex->body_len + n;
		too_large(ex);
		return;
	}
	if (ex->body_len + n + 1 > ex->body_cap) {
		ex->body_cap =
			ex->body_cap * 2 > ex->body_len + n + 1 ? ex->body_cap * 2 : ex->body_len + n + 1;
		ex->body = pr_realloc(ex->body, ex->body_cap);
	}
	memcpy(ex->body + ex->body_len, data, n);
	ex->body_len += n;
	ex->body[ex->body_len] = '\0';
}

static void handle(struct exchange *ex, struct MHD_Connection *conn, const char *path)
{
	struct pr_request req = { .method = ex->route->method,
		.path = path,
		.body = ex->body ? ex->body : "",
		.body_len = ex->body_len,
		.conn = conn };

	ex->route->handler(ex->route->ctx, &req, &ex->resp);
}

/* MHD takes an answer before or after a body, never inside one. This one goes out beside
 * it, if the socket has room, and the connection ends. */
static enum MHD_Result give_up(struct exchange *ex, struct MHD_Connection *conn)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	unsigned status = (unsigned)ex->resp.status;
	char *text = pr_asprintf(
		"HTTP/1.1 %u %s\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
		"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\r\n%s",
		status, MHD_get_reason_phrase_for(status), ex->resp.content_type, ex->resp.body_len,
		ex->resp.body);

	if (info)
		(void)send(info->connect_fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
	free(text);
	return MHD_NO;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *path,
	const char *method, const char *version, const char *data, size_t *data_len, void **state)
{
	struct exchange *ex = *state;

	(void)cls;
	(void)version;
	if (!ex->begun) {
		judge(ex, conn, method, path);
		return ex->failed && ex->close ? answer(ex, conn) : MHD_YES;
	}
	if (*data_len > 0) {
		take_body(ex, data, *data_len);
		*data_len = 0;
		return ex->dropped > DISCARD_MAX ? give_up(ex, conn) : MHD_YES;
	}
	if (!ex->failed)
		handle(ex, conn, path);
	return answer(ex, conn);
}

static void *on_target(void *cls, const char *target, struct MHD_Connection *conn)
{
	struct exchange *ex = pr_calloc(1, sizeof(*ex));

	(void)conn;
	ex->http = cls;
	ex->bad_target = !target_ok(target);
	return ex;
}

static void on_completed(
	void *cls, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode how)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct exchange *ex = *state;

	(void)cls;
	(void)how;
	if (info && info->socket_context)
		((struct peer *)info->socket_context)->since_us = pr_mono_us();
	if (!ex)
		return;
	free(ex->resp.body);
	free(ex->body);
	free(ex);
	*state = NULL;
}

/* ---- connections ---- */

static void peer_add(struct pr_http *http, struct MHD_Connection *conn, void **context)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct peer *p = pr_calloc(1, sizeof(*p));

	p->fd = info->connect_fd;
	p->since_us = pr_mono_us();
	p->next = http->peers;
	if (p->next)
		p->next->prev = p;
	http->peers = p;
	*context = p;
}

static void peer_drop(struct pr_http *http, struct peer *p)
{
	if (p->prev)
		p->prev->next = p->next;
	else
		http->peers = p->next;
	if (p->next)
		p->next->prev = p->prev;
	free(p);
}

static void on_connection(
	void *cls, struct MHD_Connection *conn, void **context, enum MHD_ConnectionNotificationCode what)
{
	if (what == MHD_CONNECTION_NOTIFY_STARTED) {
		peer_add(cls, conn, context);
	} else if (*context) {
		peer_drop(cls, *context);
		((struct pr_http *)cls)->freed = 1;
		*context = NULL;
	}
}

/* Ends the connections whose request takes too long; MHD sees the end of the stream and closes them. */
static void sweep(struct pr_http *http)
{
	int64_t now = pr_mono_us();

	for (struct peer *p = http->peers; p; p = p->next)
		if (now - p->since_us > http->deadline_us)
			(void)shutdown(p->fd, SHUT_RDWR);
}

/* At its limit MHD takes the listening socket out of its epoll set, and puts it back at the
 * start of a run: without another run after a close, nobody would ever be accepted again. */
static void run(struct pr_http *http)
{
	do {
		http->freed = 0;
		(void)MHD_run(http->daemon);
	} while (http->freed);
}

static int wait_ms(struct pr_http *http)
{
	MHD_UNSIGNED_LONG_LONG ms = 0;

	if (MHD_get_timeout(http->daemon, &ms) == MHD_YES && ms < 500)
		return (int)ms;
	return http->peers ? 500 : -1;
}

static void *serve(void *arg)
{
	struct pr_http *http = arg;
	const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	struct pollfd fds[2] = { { .fd = info->epoll_fd, .events = POLLIN },
		{ .fd = http->wake, .events = POLLIN } };
	int64_t swept = pr_mono_us();

	while (!(fds[1].revents & POLLIN)) {
		run(http);
		if (pr_mono_us() - swept > PR_SEC / 2) {
			sweep(http);
			swept = pr_mono_us();
		}
		(void)poll(fds, 2, wait_ms(http));
	}
	return NULL;
}

/* ---- start and stop ---- */

static int is_loopback(const struct sockaddr *sa)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)sa;

	if (sa->sa_family == AF_INET)
		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
		return in6->sin6_addr.s6_addr[12] == 127;
	return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

static int bad_listen(const char *listen, const char *why, struct pr_err *err)
{
	(void)pr_fail(err, PR_REJECT, "cannot listen on \"%s\": %s", listen, why);
	if (err)
		err->exit = PR_EX_CONFIG;
	return pr_hint(err, "write it as \"127.0.0.1:9470\", \"[::1]:9470\" or \"*:9470\"");
}

/* "host:port" or "[v6]:port" -> host without brackets, and the port's digits (borrowed). */
static int split_listen(
	const char *listen, char *host, size_t size, const char **ret_port, struct pr_err *err)
{
	const char *colon = strrchr(listen, ':');
	int bracket = *listen == '[';
	size_t n, digits;

	if (!colon)
		return bad_listen(listen, "no port", err);
	digits = strspn(colon + 1, "0123456789");
	if (digits == 0 || digits > 5 || colon[1 + digits] != '\0' || atoi(colon + 1) > 65535)
		return bad_listen(listen, "the port is not a number from 0 to 65535", err);
	if (bracket && (colon - listen < 3 || colon[-1] != ']'))
		return bad_listen(listen, "no closing bracket before the port", err);
	n = (size_t)(colon - listen) - (bracket ? 2 : 0);
	if (n == 0 || n >= size)
		return bad_listen(listen, "no address before the port", err);
	if (!bracket && memchr(listen, ':', n))
		return bad_listen(listen, "an IPv6 address stands in brackets", err);
	memcpy(host, listen + bracket, n);
	host[n] = '\0';
	*ret_port = colon + 1;
	return 0;
}

/* Names are not looked up: a resolver may hang, and may answer with an address of its own choice. */
static int resolve(const char *listen, char *host, size_t size, struct addrinfo **ret, struct pr_err *err)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
		.ai_socktype = SOCK_STREAM };
	const char *port = "", *node;

	if (split_listen(listen, host, size, &port, err) < 0)
		return -1;
	node = strcmp(host, "*") == 0 ? "::" : strcasecmp(host, "localhost") == 0 ? "127.0.0.1" : host;
	if (getaddrinfo(node, port, &hints, ret) != 0)
		return bad_listen(listen, "not a numeric address", err);
	return 0;
}

static int listen_failed(const char *listen, struct pr_err *err)
{
	int no = errno;
	enum pr_kind kind = no == EADDRINUSE || no == EADDRNOTAVAIL || no == EMFILE || no == ENFILE
				    ? PR_RETRY
				    : PR_REJECT;

	(void)pr_fail(err, kind, "cannot listen on \"%s\": %s", listen, strerror(no));
	if (!err)
		return -1;
	(void)snprintf(err->code, sizeof(err->code), "%s", strerrorname_np(no) ? strerrorname_np(no) : "");
	if (no == EADDRINUSE)
		(void)pr_hint(err,
			"another process serves there (ss -ltnp shows it): stop it, or listen elsewhere");
	else if (no == EADDRNOTAVAIL)
		(void)pr_hint(err, "no interface of this host has that address now");
	else if (no == EACCES)
		(void)pr_hint(err, "ports below 1024 need CAP_NET_BIND_SERVICE: take a higher one");
	return -1;
}

static int bind_socket(int fd, const struct addrinfo *ai, int reuse_port)
{
	const int on = 1, off = 0;

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		return -1;
	if (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0)
		return -1;
	/* "*" is [::] with IPv4 in it; an explicit [::] as well, whatever the sysctl says. */
	if (ai->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0)
		return -1;
	return bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 ? -1 : listen(fd, LISTEN_BACKLOG);
}

static int open_socket(const struct pr_http_opts *opts, const struct addrinfo *ai, struct pr_err *err)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return listen_failed(opts->listen, err);
	if (bind_socket(fd, ai, opts->reuse_port) < 0) {
		(void)listen_failed(opts->listen, err);
		(void)close(fd);
		return -1;
	}
	return fd;
}

/* A kernel without IPv6 refuses the socket of "*": IPv4 alone then. */
static int open_any(const struct pr_http_opts *opts, struct addrinfo *ai, struct pr_err *err)
{
	struct sockaddr_in in = { .sin_family = AF_INET };
	struct addrinfo v4 = {
		.ai_family = AF_INET, .ai_addr = (struct sockaddr *)&in, .ai_addrlen = sizeof(in)
	};
	int probe;

	if (*opts->listen != '*')
		return open_socket(opts, ai, err);
	probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (probe < 0) {
		in.sin_port = ((const struct sockaddr_in6 *)(const void *)ai->ai_addr)->sin6_port;
		return open_socket(opts, &v4, err);
	}
	(void)close(probe);
	return open_socket(opts, ai, err);
}

static int bound_port(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
		return 0;
	return ntohs(ss.ss_family == AF_INET ? ((struct sockaddr_in *)&ss)->sin_port
					     : ((struct sockaddr_in6 *)&ss)->sin6_port);
}

static int open_listener(struct pr_http *http, const struct pr_http_opts *opts, struct pr_err *err)
{
	struct addrinfo *ai = NULL;
	int fd;

	if (resolve(opts->listen, http->listen_host, sizeof(http->listen_host), &ai, err) < 0)
		return -1;
	http->loopback = is_loopback(ai->ai_addr);
	if (!http->loopback && !http->token) {
		freeaddrinfo(ai);
		(void)pr_fail(err, PR_REJECT, "refusing to listen on \"%s\" without a token", opts->listen);
		if (err)
			err->exit = PR_EX_CONFIG;
		return pr_hint(err, "set a bearer token, or listen on 127.0.0.1");
	}
	fd = open_any(opts, ai, err);
	freeaddrinfo(ai);
	if (fd >= 0)
		http->port = bound_port(fd);
	return fd;
}

static struct MHD_Daemon *start_daemon(struct pr_http *http, const struct pr_http_opts *opts, int fd)
{
	unsigned conns = opts->max_connections ? opts->max_connections : DEFAULT_CONNS;
	unsigned timeout = opts->timeout_s ? opts->timeout_s : DEFAULT_TIMEOUT;

	return MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, on_request, http, MHD_OPTION_LISTEN_SOCKET, fd,
		MHD_OPTION_CONNECTION_LIMIT, conns, MHD_OPTION_CONNECTION_TIMEOUT, timeout,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_POOL, MHD_OPTION_URI_LOG_CALLBACK,
		on_target, http, MHD_OPTION_NOTIFY_COMPLETED, on_completed, http,
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_END);
}

/* All signals stay with the program's own threads. */
static int start_thread(struct pr_http *http)
{
	sigset_t all, was;
	int rc;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &was);
	rc = pthread_create(&http->thread, NULL, serve, http);
	(void)pthread_sigmask(SIG_SETMASK, &was, NULL);
	if (rc == 0)
		(void)pthread_setname_np(http->thread, "http");
	return rc;
}

static void http_free(struct pr_http *http)
{
	if (http->wake >= 0)
		(void)close(http->wake);
	if (http->token)
		explicit_bzero(http->token, strlen(http->token));
	for (size_t i = 0; i < http->route_count; i++) {
		free((void *)(uintptr_t)http->route[i].method);
		free((void *)(uintptr_t)http->route[i].path);
	}
	free(http->token);
	free(http->route);
	free(http);
}

static struct pr_http *http_new(const struct pr_http_opts *opts, const struct pr_route *routes)
{
	unsigned timeout = opts->timeout_s ? opts->timeout_s : DEFAULT_TIMEOUT;
	struct pr_http *http = pr_calloc(1, sizeof(*http));

	while (routes[http->route_count].method)
		http->route_count++;
	http->route = pr_calloc(http->route_count, sizeof(*http->route));
	for (size_t i = 0; i < http->route_count; i++) {
		http->route[i] = routes[i];
		http->route[i].method = pr_strdup(routes[i].method);
		http->route[i].path = pr_strdup(routes[i].path);
	}
	http->token = opts->token && *opts->token ? pr_strdup(opts->token) : NULL;
	http->max_body = opts->max_body ? opts->max_body : DEFAULT_BODY;
	http->deadline_us = (int64_t)timeout * DEADLINE_FACTOR * PR_SEC;
	http->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return http;
}

int pr_http_start(const struct pr_http_opts *opts, const struct pr_route *routes, struct pr_http **ret,
	struct pr_err *err)
{
	struct pr_http *http = http_new(opts, routes);
	int fd = -1, rc = -1;

	if (http->wake < 0) {
		(void)pr_fail(err, PR_RETRY, "cannot serve http: eventfd: %s", strerror(errno));
		goto out;
	}
	fd = open_listener(http, opts, err);
	if (fd < 0)
		goto out;
	http->daemon = start_daemon(http, opts, fd);
	if (!http->daemon) {
		(void)pr_fail(err, PR_RETRY, "cannot serve http on \"%s\": libmicrohttpd did not start",
			opts->listen);
		goto out;
	}
	if (start_thread(http) != 0) {
		MHD_stop_daemon(http->daemon);
		(void)pr_fail(err, PR_RETRY, "cannot serve http on \"%s\": no thread", opts->listen);
		goto out;
	}
	*ret = http;
	rc = 0;
out:
	if (rc < 0)
		http_free(http);
	return rc;
}

int pr_http_port(const struct pr_http *http)
{
	return http->port;
}

void pr_http_stop(struct pr_http *http)
{
	if (!http)
		return;
	(void)eventfd_write(http->wake, 1);
	(void)pthread_join(http->thread, NULL);
	MHD_stop_daemon(http->daemon);
	http_free(http);
}
