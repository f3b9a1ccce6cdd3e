/* tests/unit/http_test.c -- the server over real sockets on loopback: what it answers, what
 * it refuses, and that neither a slow nor a rude client nor a crowd of them can hold it. */
#include "lib/http.h"

#include "lib/clock.h"
#include "lib/json.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST "Host: localhost\r\n"
#define END  "Connection: close\r\n\r\n"

static const char token[] = "0123456789abcdef0123456789abcdef";

/* ---- the served routes ---- */

static void echo(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *q = pr_http_query(req, "q"), *h = pr_http_header(req, "X-Test");

	resp->body = pr_asprintf("%s %s %s q=%s h=%s %zu:%s", (const char *)ctx, req->method, req->path,
		q ? q : "-", h ? h : "-", req->body_len, req->body);
	resp->body_len = strlen(resp->body);
}

static void page(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->content_type = "text/html; charset=utf-8";
	resp->body = pr_strdup("<p>page");
	resp->body_len = 7;
}

static void started(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->status = 202;
	resp->retry_after = 7;
	(void)snprintf(resp->location, sizeof(resp->location), "/sagas/1");
}

static void conflict(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	pr_http_problem(resp, 409, "seat-taken", "Seat \"A\"\n", "taken \x01\xff.");
}

static char exact_name[] = "exact", prefix_name[] = "prefix", longer_name[] = "longer";

static const struct pr_route routes[] = {
	{ "GET", "/healthz", echo, exact_name, 1, 0 },
	{ "GET", "/", page, NULL, 0, 0 },
	{ "GET", "/a/*", echo, prefix_name, 0, 0 },
	{ "POST", "/a/*", echo, prefix_name, 0, 0 },
	{ "GET", "/a/b/*", echo, longer_name, 0, 0 },
	{ "GET", "/a/b/c", echo, exact_name, 0, 0 },
	{ "POST", "/start", started, NULL, 0, 0 },
	{ "POST", "/conflict", conflict, NULL, 0, 0 },
	{ 0 },
};

static struct pr_http *serve_with(struct pr_http_opts opts)
{
	struct pr_http *http = NULL;
	struct pr_err err;

	if (pr_http_start(&opts, routes, &http, &err) < 0)
		fail_msg("%s", err.text);
	assert_true(pr_http_port(http) > 0);
	return http;
}

static struct pr_http *serve(void)
{
	return serve_with((struct pr_http_opts){ .listen = "127.0.0.1:0" });
}

/* ---- a client without manners ---- */

struct reply {
	char *text; /* all that came, NUL-terminated */
	size_t len;
	int closed; /* the server ended the connection */
};

static int dial(int port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	return fd;
}

/* Returns 0 when all of it went out, -1 when the server closed before that. */
static int push(int fd, const char *bytes, size_t n)
{
	while (n > 0) {
		ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);

		if (sent < 0)
			return -1;
		bytes += sent;
		n -= (size_t)sent;
	}
	return 0;
}

/* Whether its head and as many bytes as that says are there. */
static int is_whole(const struct reply *r)
{
	const char *end = strstr(r->text, "\r\n\r\n"), *length = strstr(r->text, "\r\nContent-Length: ");

	return end && length && length < end &&
	       r->len - (size_t)(end + 4 - r->text) >= strtoul(length + 18, NULL, 10);
}

/* Reads until the server closes, or until nothing came for quiet_ms; one answer: not beyond it. */
static struct reply pull_some(int fd, int quiet_ms, int one_answer)
{
	struct reply r = { .text = pr_calloc(1, 1) };
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char buf[16384];

	while (!(one_answer && is_whole(&r)) && poll(&p, 1, quiet_ms) > 0) {
		ssize_t n = recv(fd, buf, sizeof(buf), 0);

		if (n <= 0) {
			r.closed = 1;
			break;
		}
		r.text = pr_realloc(r.text, r.len + (size_t)n + 1);
		memcpy(r.text + r.len, buf, (size_t)n);
		r.len += (size_t)n;
		r.text[r.len] = '\0';
	}
	return r;
}

static struct reply pull(int fd, int quiet_ms)
{
	return pull_some(fd, quiet_ms, 0);
}

static struct reply talk_n(int port, const char *bytes, size_t n, int quiet_ms)
{
	int fd = dial(port);
	struct reply r;

	(void)push(fd, bytes, n);
	r = pull(fd, quiet_ms);
	close(fd);
	return r;
}

static struct reply talk(int port, const char *bytes)
{
	return talk_n(port, bytes, strlen(bytes), 20000);
}

static int status_of(const struct reply *r)
{
	return r->len > 12 && strncmp(r->text, "HTTP/1.1 ", 9) == 0 ? atoi(r->text + 9) : 0;
}

static void must_have(const struct reply *r, const char *part)
{
	if (!strstr(r->text, part))
		fail_msg("no \"%s\" in:\n%s", part, r->text);
}

static void must_lack(const struct reply *r, const char *part)
{
	if (strstr(r->text, part))
		fail_msg("\"%s\" is in:\n%s", part, r->text);
}

static const char *body_of(const struct reply *r)
{
	const char *p = strstr(r->text, "\r\n\r\n");

	return p ? p + 4 : "";
}

/* One exchange; a refusal of ours must be a problem that says its own status. */
static void expect(int port, const char *request, int status, const char *part)
{
	struct reply r = talk(port, request);
	char text[40];

	if (status_of(&r) != status)
		fail_msg("expected %d for:\n%s\ngot:\n%s", status, request, r.text);
	must_have(&r, "X-Content-Type-Options: nosniff\r\n");
	must_have(&r, "Cache-Control: no-store\r\n");
	if (part)
		must_have(&r, part);
	(void)snprintf(text, sizeof(text), "\"status\":%d", status);
	if (status >= 400) {
		must_have(&r, "Content-Type: application/problem+json\r\n");
		must_have(&r, text);
	}
	free(r.text);
}

static void must_be_healthy(int port)
{
	expect(port, "GET /healthz HTTP/1.1\r\n" HOST END, 200, "exact GET /healthz q=- h=- 0:");
}

/* ---- answers ---- */

static void test_get(void **state)
{
	struct pr_http *http = serve();
	int port = pr_http_port(http);
	struct reply r;

	(void)state;
	must_be_healthy(port);
	expect(port, "GET /a/x%20y?q=1%262+3&z HTTP/1.1\r\nX-Test: t\r\n" HOST END, 200,
		"prefix GET /a/x y q=1&2 3 h=t 0:");
	expect(port, "GET /a/?q HTTP/1.1\r\n" HOST END, 200, "prefix GET /a/ q= h=- 0:");
	expect(port, "GET /a/b/x HTTP/1.1\r\n" HOST END, 200, "longer GET");
	expect(port, "GET /a/b/c HTTP/1.1\r\n" HOST END, 200, "exact GET");
	expect(port, "GET / HTTP/1.1\r\n" HOST END, 200,
		"Content-Security-Policy: default-src 'self'; frame-ancestors 'none'\r\n");
	r = talk(port, "GET /a/x HTTP/1.1\r\n" HOST END);
	must_have(&r, "Content-Type: application/json\r\n");
	must_lack(&r, "Content-Security-Policy");
	free(r.text);
	pr_http_stop(http);
}

static void test_head(void **state)
{
	struct pr_http *http = serve();
	struct reply r = talk(pr_http_port(http), "HEAD /a/x HTTP/1.1\r\n" HOST END);

	(void)state;
	assert_int_equal(status_of(&r), 200);
	must_have(&r, "Content-Length: 26\r\n"); /* of "prefix GET /a/x q=- h=- 0:" */
	assert_string_equal(body_of(&r), "");
	free(r.text);
	r = talk(pr_http_port(http), "HEAD /start HTTP/1.1\r\n" HOST END);
	assert_int_equal(status_of(&r), 405);
	assert_string_equal(body_of(&r), "");
	free(r.text);
	pr_http_stop(http);
}

static void test_post(void **state)
{
	struct pr_http *http = serve();
	int port = pr_http_port(http);
	struct reply r;

	(void)state;
	expect(port, "POST /a/x HTTP/1.1\r\nContent-Length: 5\r\n" HOST END "hello", 200, " 5:hello");
	expect(port,
		"POST /a/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" HOST END
		"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
		200, " 5:hello");
	expect(port, "POST /a/x HTTP/1.1\r\n" HOST END, 200, " 0:");
	expect(port, "POST /start HTTP/1.1\r\n" HOST END, 202, "Location: /sagas/1\r\n");
	expect(port, "POST /start HTTP/1.1\r\n" HOST END, 202, "Retry-After: 7\r\n");
	r = talk(port, "POST /start HTTP/1.1\r\n" HOST END);
	must_lack(&r, "Content-Type:");
	free(r.text);
	expect(port, "POST /conflict HTTP/1.1\r\n" HOST END, 409,
		"{\"type\":\"/problems/seat-taken\",\"title\":\"Seat \\\"A\\\"\\n\",\"status\":409,"
		"\"detail\":\"taken \\u0001\xef\xbf\xbd.\"}");
	pr_http_stop(http);
}

static void test_unknown(void **state)
{
	struct pr_http *http = serve();
	int port = pr_http_port(http);

	(void)state;
	expect(port, "GET /nope HTTP/1.1\r\n" HOST END, 404, "/problems/not-found");
	expect(port, "GET /healthz/ HTTP/1.1\r\n" HOST END, 404, NULL);
	expect(port, "GET /health HTTP/1.1\r\n" HOST END, 404, NULL);
	expect(port, "GET /a HTTP/1.1\r\n" HOST END, 404, NULL);
	expect(port, "POST /healthz HTTP/1.1\r\n" HOST END, 405, "Allow: GET, HEAD\r\n");
	expect(port, "DELETE /a/x HTTP/1.1\r\n" HOST END, 405, "Allow: GET, HEAD, POST\r\n");
	expect(port, "BREW /start HTTP/1.1\r\n" HOST END, 405, "Allow: POST\r\n");
	expect(port, "get /healthz HTTP/1.1\r\n" HOST END, 405, NULL);
	must_be_healthy(port);
	pr_http_stop(http);
}

static void test_targets(void **state)
{
	static const char *const bad[] = { "/a/../healthz", "/a/..", "/..", "/a/./x", "/a/%2e%2e/x",
		"/a/%2E.", "/a/..%2fx", "/a/%00", "/healthz%00", "/a/%c0%ae%c0%ae/x", "/a/%zz", "/a/%",
		"/a/%4", "/a/%ff", "/a/%ed%a0%80", "/a/%0a", "/a/\x01", "/a/x?q=%00", "/a/x?q=%c3",
		"/a/x?q=%e2%82", "/a/x?q=%", "http://localhost/healthz", "*", "healthz", "/a/x#y", "/a/x y" };
	static const char *const good[] = { "/a/...", "/a/.x", "/a/x..", "/a/%252e%252e", "/a/x?q=../..",
		"/a/%c3%a9", "/a/\xc3\xa9", "/a/%f0%9f%98%80", "/a//x", "/a/x?", "/a/x?q=%3f%2F.%20" };
	struct pr_http *http = serve();
	char request[200];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		(void)snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST END, bad[i]);
		expect(pr_http_port(http), request, 400, "/problems/bad-target");
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		(void)snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n" HOST END, good[i]);
		expect(pr_http_port(http), request, 200, "prefix GET /a/");
	}
	pr_http_stop(http);
}

/* ---- who may ask ---- */

/* DNS rebinding: a page of evil.example makes its name resolve to 127.0.0.1 and then reads
 * us as its own origin; the Host header gives it away. */
static void test_host(void **state)
{
	static const char *const good[] = { "localhost", "LOCALHOST:9470", "127.0.0.1", "127.0.0.1:1",
		"[::1]", "[::1]:65535", "127.0.0.9", "127.0.0.9:80" };
	static const char *const bad[] = { "evil.example", "localhost.evil.example", "localhost:80@evil",
		"::1", "127.0.0.1.", "127.0.0.11", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:123456", "[::1",
		"[::1]x", "[localhost", "10.0.0.1", "0.0.0.0", "xlocalhost" };
	struct pr_http *http = serve_with((struct pr_http_opts){ .listen = "127.0.0.9:0" });
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)pr_http_port(http)) };

	(void)state;
	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 8);
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]) + sizeof(bad) / sizeof(bad[0]); i++) {
		size_t n = sizeof(good) / sizeof(good[0]);
		const char *host = i < n ? good[i] : bad[i - n];
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		char request[200];
		struct reply r;

		assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
		(void)snprintf(request, sizeof(request), "GET /healthz HTTP/1.1\r\nHost: %s\r\n" END, host);
		(void)push(fd, request, strlen(request));
		r = pull(fd, 20000);
		if (status_of(&r) != (i < n ? 200 : 400))
			fail_msg("Host: %s got:\n%s", host, r.text);
		free(r.text);
		close(fd);
	}
	pr_http_stop(http);
}

static void test_host_once(void **state)
{
	struct pr_http *http = serve();
	int port = pr_http_port(http);

	(void)state;
	expect(port, "GET /healthz HTTP/1.1\r\n" END, 400, "/problems/bad-host");
	expect(port, "GET /healthz HTTP/1.1\r\n" HOST HOST END, 400, "/problems/bad-host");
	expect(port, "GET /healthz HTTP/1.0\r\n\r\n", 400, "/problems/bad-host");
	expect(port, "GET /healthz HTTP/1.0\r\n" HOST "\r\n", 200, NULL);
	pr_http_stop(http);
}

/* A page of another origin may send a POST without asking anybody. */
static void test_cross_site_write(void **state)
{
	struct pr_http *http = serve();
	int port = pr_http_port(http);

	(void)state;
	expect(port, "POST /start HTTP/1.1\r\nOrigin: http://evil.example\r\n" HOST END, 403, "cross-site");
	expect(port, "POST /start HTTP/1.1\r\nOrigin: null\r\n" HOST END, 403, NULL);
	expect(port, "POST /start HTTP/1.1\r\nOrigin: http://localhost:1\r\n" HOST END, 403, NULL);
	expect(port, "POST /start HTTP/1.1\r\nSec-Fetch-Site: cross-site\r\n" HOST END, 403, NULL);
	expect(port, "POST /start HTTP/1.1\r\nSec-Fetch-Site: same-site\r\n" HOST END, 403, NULL);
	expect(port,
		"POST /start HTTP/1.1\r\nSec-Fetch-Site: same-origin\r\nOrigin: http://localhost\r\n" HOST
			END,
		202, NULL);
	expect(port, "GET /healthz HTTP/1.1\r\nSec-Fetch-Site: cross-site\r\n" HOST END, 200, NULL);
	pr_http_stop(http);
}

/* The page of an origin that we know may ask and read, whatever the answer; its browser asks before, without
 * the token. Nobody else gets a word of it. */
static void test_pages_of_other_origins(void **state)
{
	static const char *const origins[] = { "http://127.0.0.1:8082", "http://box.example", NULL };
	struct pr_http *http = serve_with(
		(struct pr_http_opts){ .listen = "127.0.0.1:0", .token = token, .origins = origins });
	int port = pr_http_port(http);
	struct reply r;

	(void)state;
	expect(port,
		"OPTIONS /start HTTP/1.1\r\nOrigin: http://box.example\r\nAccess-Control-Request-Method: "
		"POST\r\n"
		"Sec-Fetch-Site: cross-site\r\n" HOST END,
		204,
		"Access-Control-Allow-Headers: Authorization, Content-Type, Idempotency-Key, "
		"Last-Event-ID, traceparent\r\n");
	expect(port,
		"POST /start HTTP/1.1\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
		"Origin: http://127.0.0.1:8082\r\nSec-Fetch-Site: same-site\r\n" HOST END,
		202, "Access-Control-Allow-Origin: http://127.0.0.1:8082\r\n");
	expect(port, "POST /start HTTP/1.1\r\nOrigin: http://box.example\r\n" HOST END, 401,
		"Access-Control-Allow-Origin: http://box.example\r\n");
	expect(port,
		"OPTIONS /start HTTP/1.1\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: "
		"POST\r\n" HOST END,
		401, NULL);
	r = talk(port, "POST /start HTTP/1.1\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
		       "Origin: http://evil.example\r\n" HOST END);
	assert_int_equal(status_of(&r), 403);
	must_lack(&r, "Access-Control");
	must_have(&r, "Vary: Origin\r\n");
	free(r.text);
	pr_http_stop(http);
}

static void ask_with(int port, const char *path, const char *authorization, int status)
{
	char request[300];

	(void)snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\n%s%s%s" HOST END, path,
		*authorization ? "Authorization: " : "", authorization, *authorization ? "\r\n" : "");
	expect(port, request, status, status == 401 ? "WWW-Authenticate: Bearer" : NULL);
}

static void test_token(void **state)
{
	struct pr_http *http = serve_with((struct pr_http_opts){ .listen = "127.0.0.1:0", .token = token });
	int port = pr_http_port(http);

	(void)state;
	ask_with(port, "/healthz", "", 200); /* open */
	ask_with(port, "/a/x", "", 401);
	ask_with(port, "/nope", "", 401); /* which paths there are is told to nobody */
	ask_with(port, "/a/x", "Bearer 0123456789abcdef0123456789abcdef", 200);
	ask_with(port, "/a/x", "bearer 0123456789abcdef0123456789abcdef", 200);
	ask_with(port, "/nope", "Bearer 0123456789abcdef0123456789abcdef", 404);
	ask_with(port, "/a/x", "Bearer 0123456789abcdef0123456789abcdeg", 401);
	ask_with(port, "/a/x", "Bearer 0123456789abcdef0123456789abcde", 401);
	ask_with(port, "/a/x", "Bearer 0123456789abcdef", 401); /* the secret is this, twice */
	ask_with(port, "/a/x", "Bearer 0123456789abcdef0123456789abcdef0", 401);
	ask_with(port, "/a/x", "Bearer ", 401);
	ask_with(port, "/a/x", "Bearer", 401);
	ask_with(port, "/a/x", "Basic 0123456789abcdef0123456789abcdef", 401);
	pr_http_stop(http);
}

/* ---- forms and bounds ---- */

/* Requests that we and a proxy before us could take apart differently: refused, and the
 * connection is closed, so that the rest of the stream is never taken for a request. */
static void test_doubtful_framing(void **state)
{
	static const char *const bad[] = {
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"Content-Length : 3\r\n\r\nabc",
		"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
	};
	struct pr_http *http = serve();
	char request[400];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct reply r;

		(void)snprintf(request, sizeof(request),
			"POST /a/x HTTP/1.1\r\n" HOST "%sGET /healthz HTTP/1.1\r\n" HOST "\r\n", bad[i]);
		r = talk(pr_http_port(http), request);
		if (status_of(&r) != 400 || !r.closed || strstr(r.text, "200 OK"))
			fail_msg("for:\n%s\ngot (closed %d):\n%s", request, r.closed, r.text);
		must_have(&r, "/problems/bad-framing");
		free(r.text);
	}
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
}

/* What libmicrohttpd turns down by itself: the status is right and the connection ends. */
static void test_malformed(void **state)
{
	static const struct {
		const char *request;
		int status;
	} bad[] = {
		{ "GET /healthz\r\n\r\n", 400 }, /* HTTP/0.9 */
		{ "GET /healthz FOO\r\n" HOST "\r\n", 400 },
		{ "GET /healthz HTTP/3.0\r\n" HOST "\r\n", 505 },
		{ "GET /healthz HTTP/1.1\r\n" HOST "no colon\r\n\r\n", 400 },
		{ "POST /a/x HTTP/1.1\r\n" HOST "Content-Length: 5x\r\n\r\nhello", 400 },
		{ "POST /a/x HTTP/1.1\r\n" HOST "Content-Length: -5\r\n\r\nhello", 400 },
		{ "POST /a/x HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999999\r\n\r\nhello", 413 },
		{ "POST /a/x HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
			400 },
		{ "POST /a/x HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
			400 },
		{ "POST /a/x HTTP/1.1\r\n" HOST
		  "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc\r\n",
			413 },
	};
	struct pr_http *http = serve();

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct reply r = talk(pr_http_port(http), bad[i].request);

		if (status_of(&r) != bad[i].status || !r.closed)
			fail_msg("for:\n%s\ngot (closed %d):\n%s", bad[i].request, r.closed, r.text);
		free(r.text);
	}
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
}

/* The head of a request with n headers, or with a filler of that many bytes in its line or a header. */
static char *long_head(const char *what, size_t n)
{
	char *text = pr_calloc(1, 200 + (strcmp(what, "headers") == 0 ? n * 16 : n)), *p = text;

	p += sprintf(p, "GET /a/x");
	if (strcmp(what, "line") == 0) {
		memset(p, 'x', n);
		p += n;
	}
	p += sprintf(p, " HTTP/1.1\r\n" HOST);
	if (strcmp(what, "header") == 0) {
		p += sprintf(p, "X: ");
		memset(p, 'x', n);
		p += n;
		p += sprintf(p, "\r\n");
	}
	for (size_t i = 0; strcmp(what, "headers") == 0 && i < n; i++)
		p += sprintf(p, "X-%zu: y\r\n", i);
	(void)sprintf(p, END);
	return text;
}

static void test_long_heads(void **state)
{
	static const struct {
		const char *what;
		size_t n;
		int status, problem;
	} heads[] = {
		{ "line", 8000, 200, 0 },
		{ "line", 14000, 431, 1 },
		{ "line", 1024 * 1024, 414, 0 },
		{ "header", 8000, 200, 0 },
		{ "header", 14000, 431, 1 },
		{ "header", 1024 * 1024, 431, 0 },
		{ "headers", 100, 200, 0 },
		{ "headers", 10000, 431, 0 },
	};
	struct pr_http *http = serve();

	(void)state;
	for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
		char *text = long_head(heads[i].what, heads[i].n);
		struct reply r = talk(pr_http_port(http), text);

		if (status_of(&r) != heads[i].status || !r.closed)
			fail_msg("%zu of %s: got (closed %d):\n%s", heads[i].n, heads[i].what, r.closed,
				r.text);
		if (heads[i].problem)
			must_have(&r, "/problems/headers-too-large");
		free(r.text);
		free(text);
	}
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
}

/* A POST with n bytes of body, then a GET on the same connection. */
static char *long_body(int chunked, size_t n, size_t *ret_len)
{
	char *text = pr_calloc(1, n + 400), *p = text;

	if (chunked)
		p += sprintf(p, "POST /a/x HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n%zx\r\n", n);
	else
		p += sprintf(p, "POST /a/x HTTP/1.1\r\n" HOST "Content-Length: %zu\r\n\r\n", n);
	memset(p, 'x', n);
	p += n;
	if (chunked)
		p += sprintf(p, "\r\n0\r\n\r\n");
	p += sprintf(p, "GET /healthz HTTP/1.1\r\n" HOST END);
	*ret_len = (size_t)(p - text);
	return text;
}

static void test_bodies(void **state)
{
	static const struct {
		int chunked;
		size_t n;
		int status, next; /* the GET after it is answered */
	} bodies[] = {
		{ 0, 100, 200, 1 },
		{ 1, 100, 200, 1 },
		{ 0, 101, 413, 1 },
		{ 1, 101, 413, 1 },
		{ 0, 500000, 413, 1 },
		{ 1, 500000, 413, 1 },
		/* Past what is read for politeness: an answer and the end. */
		{ 0, 5000000, 413, 0 },
		{ 1, 5000000, 413, 0 },
	};
	struct pr_http *http = serve_with((struct pr_http_opts){ .listen = "127.0.0.1:0", .max_body = 100 });

	(void)state;
	for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++) {
		size_t len;
		char *text = long_body(bodies[i].chunked, bodies[i].n, &len);
		struct reply r = talk_n(pr_http_port(http), text, len, 4000);

		if (status_of(&r) != bodies[i].status || !r.closed ||
			!strstr(r.text, "exact GET /healthz") != !bodies[i].next)
			fail_msg("%zu bytes, chunked %d: got (closed %d):\n%s", bodies[i].n,
				bodies[i].chunked, r.closed, r.text);
		if (bodies[i].status == 413)
			must_have(&r, "/problems/body-too-large");
		free(r.text);
		free(text);
	}
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
}

static void test_expect_continue(void **state)
{
	struct pr_http *http = serve();
	int port = pr_http_port(http), fd = dial(port);
	const char *head = "POST /a/x HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n" HOST END;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char buf[100] = "";
	struct reply r;

	(void)state;
	assert_int_equal(push(fd, head, strlen(head)), 0);
	assert_int_equal(poll(&p, 1, 20000), 1);
	assert_true(recv(fd, buf, sizeof(buf) - 1, 0) > 0);
	assert_non_null(strstr(buf, "100 Continue"));
	assert_int_equal(push(fd, "ok", 2), 0);
	r = pull(fd, 20000);
	must_have(&r, " 2:ok");
	free(r.text);
	close(fd);
	/* Refused before a byte of the body is asked for. */
	expect(port, "POST /a/x HTTP/1.1\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n" HOST "\r\n",
		413, NULL);
	pr_http_stop(http);
}

static void test_pipelined(void **state)
{
	static const char one[] = "POST /a/x HTTP/1.1\r\nContent-Length: 3\r\n" HOST "\r\nabc";
	struct pr_http *http = serve();
	char text[30 * sizeof(one) + 100], *p = text;
	struct reply r;
	int n = 0;

	(void)state;
	for (int i = 0; i < 30; i++)
		p += sprintf(p, "%s", one);
	(void)sprintf(p, "GET /healthz HTTP/1.1\r\n" HOST END);
	r = talk(pr_http_port(http), text);
	for (const char *s = r.text; (s = strstr(s, " 3:abc")); s++)
		n++;
	assert_int_equal(n, 30);
	must_have(&r, "exact GET /healthz");
	free(r.text);
	pr_http_stop(http);
}

/* ---- time ---- */

static void test_silence_is_closed(void **state)
{
	static const char *const starts[] = { "", "GET /hea", "GET /healthz HTTP/1.1\r\nHost: loc",
		"POST /a/x HTTP/1.1\r\nContent-Length: 10\r\n" HOST "\r\nabc",
		"POST /a/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" HOST "\r\n5\r\nab",
		"GET /healthz HTTP/1.1\r\n" HOST "\r\n" };
	struct pr_http *http = serve_with((struct pr_http_opts){ .listen = "127.0.0.1:0", .timeout_s = 1 });
	int fd[sizeof(starts) / sizeof(starts[0])];
	int64_t begin = pr_mono_us();

	(void)state;
	for (size_t i = 0; i < sizeof(fd) / sizeof(fd[0]); i++) {
		fd[i] = dial(pr_http_port(http));
		assert_int_equal(push(fd[i], starts[i], strlen(starts[i])), 0);
	}
	for (size_t i = 0; i < sizeof(fd) / sizeof(fd[0]); i++) {
		struct reply r = pull(fd[i], 20000);

		assert_true(r.closed);
		free(r.text);
		close(fd[i]);
	}
	assert_true(pr_mono_us() - begin > PR_SEC / 2);
	assert_true(pr_mono_us() - begin < 20 * PR_SEC);
	pr_http_stop(http);
}

/* Slowloris: a byte now and then keeps libmicrohttpd's own timeout from ever firing. With
 * all places taken so, nobody else was served any more. */
static void test_dripping_is_closed(void **state)
{
	enum { N = 8 };
	struct pr_http *http = serve_with(
		(struct pr_http_opts){ .listen = "127.0.0.1:0", .timeout_s = 1, .max_connections = N });
	int fd[N], open = N;
	int64_t begin = pr_mono_us();

	(void)state;
	for (int i = 0; i < N; i++) {
		fd[i] = dial(pr_http_port(http));
		assert_int_equal(push(fd[i], "GET /healthz?q=", 15), 0);
	}
	while (open > 0 && pr_mono_us() - begin < 30 * PR_SEC) {
		(void)poll(NULL, 0, 100);
		for (int i = 0; i < N; i++) {
			struct pollfd p = { .fd = fd[i], .events = POLLIN };

			if (fd[i] < 0 || (push(fd[i], "x", 1) == 0 && poll(&p, 1, 0) == 0))
				continue;
			close(fd[i]);
			fd[i] = -1;
			open--;
		}
	}
	assert_int_equal(open, 0);
	assert_true(pr_mono_us() - begin > PR_SEC);
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
}

static const char ask_text[] = "GET /healthz HTTP/1.1\r\n" HOST END;

/* Dripping clients that come back for ever held all places for two timeouts at a time, and whoever asked
 * properly waited behind them: where places are wanted, half a head has a second. */
static void test_dripping_makes_room(void **state)
{
	static const char half[] = "GET /healthz HTTP/1.1\r\n" HOST "X-Slow: ";
	enum { N = 8 };
	struct pr_http *http = serve_with(
		(struct pr_http_opts){ .listen = "127.0.0.1:0", .timeout_s = 60, .max_connections = N });
	int fd[N];
	struct reply r;

	(void)state;
	for (int i = 0; i < N; i++) {
		fd[i] = dial(pr_http_port(http));
		assert_int_equal(push(fd[i], half, sizeof(half) - 1), 0);
	}
	r = talk_n(pr_http_port(http), ask_text, sizeof(ask_text) - 1, 30000);
	assert_int_equal(status_of(&r), 200);
	free(r.text);
	for (int i = 0; i < N; i++)
		close(fd[i]);
	pr_http_stop(http);
}

/* ---- crowds ---- */

struct crowd {
	int port;
	_Atomic int ok, failed, stop;
};

static const char keep_text[] = "GET /healthz HTTP/1.1\r\n" HOST "\r\n";

static void *ask_once(void *arg)
{
	struct crowd *c = arg;
	struct reply r = talk_n(c->port, ask_text, sizeof(ask_text) - 1, 60000);

	atomic_fetch_add(status_of(&r) == 200 && strstr(r.text, "exact GET") ? &c->ok : &c->failed, 1);
	free(r.text);
	return NULL;
}

static void test_crowd(void **state)
{
	enum { N = 150 };
	struct pr_http *http = serve_with((struct pr_http_opts){ .listen = "127.0.0.1:0", .timeout_s = 1 });
	struct crowd c = { .port = pr_http_port(http) };
	int idle[64];
	pthread_t thread[N];

	(void)state;
	/* Silent ones take every place; the others wait for the places to fall free. */
	for (int i = 0; i < 64; i++)
		idle[i] = dial(c.port);
	for (int i = 0; i < N; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, ask_once, &c), 0);
	for (int i = 0; i < N; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(c.ok, N);
	for (int i = 0; i < 64; i++)
		close(idle[i]);
	pr_http_stop(http);
}

static void *ask_always(void *arg)
{
	static const char request[] = "POST /a/x HTTP/1.1\r\nContent-Length: 5\r\n" HOST "\r\nhello";
	struct crowd *c = arg;
	int fd = dial(c->port);
	char buf[1000];

	while (push(fd, request, sizeof(request) - 1) == 0 && recv(fd, buf, sizeof(buf), 0) > 0)
		atomic_fetch_add(&c->ok, 1);
	close(fd);
	return NULL;
}

static void test_stop_under_load(void **state)
{
	enum { N = 4, IDLE = 30 };
	struct pr_http *http = serve();
	struct crowd c = { .port = pr_http_port(http) };
	pthread_t thread[N];
	int idle[IDLE];
	int64_t begin;

	(void)state;
	for (int i = 0; i < IDLE; i++) {
		idle[i] = dial(c.port);
		assert_int_equal(push(idle[i], "POST /a/x HTTP/1.1\r\n", 20), 0);
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, ask_always, &c), 0);
	while (c.ok < 1000)
		(void)poll(NULL, 0, 1);
	begin = pr_mono_us();
	pr_http_stop(http);
	assert_true(pr_mono_us() - begin < 10 * PR_SEC);
	for (int i = 0; i < N; i++)
		pthread_join(thread[i], NULL);
	for (int i = 0; i < IDLE; i++) {
		struct reply r = pull(idle[i], 20000);

		assert_true(r.closed);
		free(r.text);
		close(idle[i]);
	}
}

/* Random changes to good requests: whatever is answered, the server lives on. */
static void test_random_requests(void **state)
{
	static const char *const seeds[] = { "GET /a/x%20y?q=%c3%a9&z=1 HTTP/1.1\r\nX-Test: t\r\n" HOST
					     "\r\n",
		"POST /a/x HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello",
		"POST /a/x HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" };
	struct pr_http *http = serve_with(
		(struct pr_http_opts){ .listen = "127.0.0.1:0", .timeout_s = 1, .max_connections = 300 });
	unsigned seed = (unsigned)pr_wall_us();

	(void)state;
	print_message("seed %u\n", seed);
	for (int i = 0; i < 600; i++) {
		char text[300];
		size_t n = strlen(seeds[i % 3]);
		struct reply r;

		memcpy(text, seeds[i % 3], n);
		for (int k = rand_r(&seed) % 5; k >= 0; k--)
			text[(size_t)rand_r(&seed) % n] = (char)rand_r(&seed);
		r = talk_n(pr_http_port(http), text, (size_t)rand_r(&seed) % (n + 1), 0);
		free(r.text);
	}
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
}

/* Idle connections that nobody would miss held every place for the length of their timeout. */
static void test_idle_makes_room(void **state)
{
	enum { N = 8 };
	struct pr_http *http = serve_with(
		(struct pr_http_opts){ .listen = "127.0.0.1:0", .timeout_s = 60, .max_connections = N });
	int64_t begin = pr_mono_us();
	int fd[N];

	(void)state;
	for (int i = 0; i < N; i++) {
		char buf[1000];

		fd[i] = dial(pr_http_port(http));
		assert_int_equal(push(fd[i], keep_text, sizeof(keep_text) - 1), 0);
		assert_true(recv(fd[i], buf, sizeof(buf), 0) > 0);
	}
	must_be_healthy(pr_http_port(http));
	assert_true(pr_mono_us() - begin < 30 * PR_SEC);
	for (int i = 0; i < N; i++)
		close(fd[i]);
	pr_http_stop(http);
}

/* ---- routes that wait ---- */

/* Handlers stop here until the gate opens. */
struct gate {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	int open, inside, most, handled, workers;
};

static struct gate gate = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void gate_set(int open)
{
	pthread_mutex_lock(&gate.mutex);
	gate.open = open;
	if (!open)
		gate.inside = gate.most = gate.handled = 0;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.mutex);
}

/* Until *number is n; the test's own timeout is the bound. */
static void gate_await(const int *number, int n)
{
	pthread_mutex_lock(&gate.mutex);
	while (*number != n)
		pthread_cond_wait(&gate.changed, &gate.mutex);
	pthread_mutex_unlock(&gate.mutex);
}

static void gate_pass(void)
{
	pthread_mutex_lock(&gate.mutex);
	if (++gate.inside > gate.most)
		gate.most = gate.inside;
	pthread_cond_broadcast(&gate.changed);
	while (!gate.open)
		pthread_cond_wait(&gate.changed, &gate.mutex);
	gate.inside--;
	gate.handled++;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.mutex);
}

static void slow_echo(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	assert_non_null(req->worker);
	++*(int *)req->worker; /* nobody else has it, or ThreadSanitizer would say so */
	gate_pass();
	echo(ctx, req, resp);
}

static void large(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->body_len = 64 << 20;
	resp->body = pr_calloc(1, resp->body_len);
}

static void *open_worker(void *ctx)
{
	struct gate *g = ctx;

	pthread_mutex_lock(&g->mutex);
	g->workers++;
	pthread_mutex_unlock(&g->mutex);
	return pr_calloc(1, sizeof(int));
}

static void close_worker(void *worker)
{
	pthread_mutex_lock(&gate.mutex);
	gate.workers--;
	pthread_mutex_unlock(&gate.mutex);
	free(worker);
}

static void segments(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_buf b = { 0 };
	const char *s;

	(void)ctx;
	pr_buf_printf(&b, "%s %s", req->method, req->rest);
	for (unsigned i = 0; i < 4; i++) {
		size_t n = pr_http_segment(req, i, &s);

		pr_buf_printf(&b, " [%.*s]", (int)n, s);
	}
	resp->body = b.s;
	resp->body_len = b.len;
}

static void say(struct pr_response *resp, char *text)
{
	resp->body = text;
	resp->body_len = strlen(text);
}

static void by_itself(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	gate_pass();
	say(resp, pr_strdup("by itself"));
}

/* Who asks for it is left for later. */
static void together(void *ctx, const struct pr_request *reqs, struct pr_response *const *resps, unsigned n)
{
	assert_ptr_equal(ctx, prefix_name);
	gate_pass();
	for (unsigned i = 0; i < n; i++)
		if (pr_http_query(&reqs[i], "alone"))
			resps[i]->alone = 1;
		else
			say(resps[i], pr_asprintf("%u of %u", i + 1, n));
}

static const struct pr_route slow_routes[] = {
	{ "GET", "/healthz", echo, exact_name, 1, 0 },
	{ "GET", "/slow/*", slow_echo, prefix_name, 0, 1 },
	{ "POST", "/slow/*", slow_echo, prefix_name, 0, 1 },
	{ "GET", "/many", by_itself, prefix_name, 0, 3 },
	{ "GET", "/large", large, NULL, 0, 1 },
	{ "PUT", "/s/*", segments, NULL, 0, 0 },
	{ "DELETE", "/s/*", segments, NULL, 0, 0 },
	{ "PATCH", "/s/*", segments, NULL, 0, 0 },
	{ "PATCH", "/s", segments, NULL, 0, 0 },
	{ 0 },
};

static struct pr_http *serve_slow(struct pr_http_opts opts)
{
	struct pr_http *http = NULL;
	struct pr_err err;

	opts.listen = "127.0.0.1:0";
	opts.worker_open = open_worker;
	opts.worker_close = close_worker;
	opts.worker_ctx = &gate;
	opts.many = together;
	gate_set(0);
	if (pr_http_start(&opts, slow_routes, &http, &err) < 0)
		fail_msg("%s", err.text);
	return http;
}

static void stop_slow(struct pr_http *http)
{
	pr_http_stop(http);
	assert_int_equal(gate.workers, 0);
}

static const char slow_text[] = "GET /slow/x HTTP/1.1\r\n" HOST "\r\n";

/* A request that is left waiting; its answer is read later. */
static int ask_for(struct pr_http *http, const char *text)
{
	int fd = dial(pr_http_port(http));

	assert_int_equal(push(fd, text, strlen(text)), 0);
	return fd;
}

static int ask_slow(struct pr_http *http)
{
	return ask_for(http, slow_text);
}

static void must_answer(int fd, int status, const char *part)
{
	struct reply r = pull_some(fd, 30000, 1);

	if (status_of(&r) != status)
		fail_msg("expected %d, got:\n%s", status, r.text);
	must_have(&r, part);
	free(r.text);
	close(fd);
}

static void test_methods_and_segments(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ 0 });
	int port = pr_http_port(http);

	(void)state;
	expect(port, "PUT /s/a%2Fb/c//d HTTP/1.1\r\nContent-Length: 2\r\n" HOST END "{}", 200,
		"PUT a/b/c//d [a] [b] [c] []");
	expect(port, "DELETE /s/a%20b HTTP/1.1\r\n" HOST END, 200, "DELETE a b [a b] [] [] []");
	expect(port, "PATCH /s/ HTTP/1.1\r\n" HOST END, 200, "PATCH  [] [] [] []");
	expect(port, "PATCH /s HTTP/1.1\r\n" HOST END, 200, "PATCH  [] [] [] []");
	expect(port, "GET /s/a HTTP/1.1\r\n" HOST END, 405, "Allow: PUT, DELETE, PATCH\r\n");
	expect(port, "DELETE /s/a HTTP/1.1\r\nOrigin: http://evil.example\r\n" HOST END, 403, "cross-site");
	stop_slow(http);
}

static void test_slow_answers(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ 0 });
	int port = pr_http_port(http);
	int64_t begin = pr_mono_us();
	struct reply r;

	(void)state;
	gate_set(1);
	expect(port, "GET /slow/x%20y?q=1%262 HTTP/1.1\r\nX-Test: t\r\n" HOST END, 200,
		"prefix GET /slow/x y q=1&2 h=t 0:");
	expect(port, "POST /slow/x HTTP/1.1\r\nContent-Length: 5\r\n" HOST END "hello", 200, " 5:hello");
	r = talk(port, "HEAD /slow/x HTTP/1.1\r\n" HOST END);
	assert_int_equal(status_of(&r), 200);
	assert_string_equal(body_of(&r), "");
	free(r.text);
	r = talk(port, "POST /slow/1 HTTP/1.1\r\nContent-Length: 1\r\n" HOST "\r\naPOST /slow/2 "
		       "HTTP/1.1\r\nContent-Length: 1\r\n" HOST "\r\nbGET /healthz HTTP/1.1\r\n" HOST END);
	must_have(&r, "/slow/1 q=- h=- 1:a");
	must_have(&r, "/slow/2 q=- h=- 1:b");
	must_have(&r, "exact GET /healthz");
	free(r.text);
	/* An answer is sent when it is there, and not when somebody looks the next time. */
	for (int i = 0; i < 50; i++)
		expect(port, "GET /slow/x HTTP/1.1\r\n" HOST END, 200, NULL);
	assert_true(pr_mono_us() - begin < 30 * PR_SEC);
	stop_slow(http);
}

/* What waits while one worker is at it comes together, at most three, in order; others have the other workers
 * meanwhile, and who is left for later is answered by itself. */
static void test_slow_together(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ .workers = 4, .timeout_s = 30 });
	static const char text[] = "GET /many HTTP/1.1\r\n" HOST "\r\n";
	static const char *const answers[] = { "1 of 3", "by itself", "3 of 3", "1 of 2", "2 of 2" };
	int first = ask_for(http, text), fd[5], other;

	(void)state;
	gate_await(&gate.inside, 1);
	for (int i = 0; i < 5; i++)
		fd[i] = ask_for(http, i == 1 ? "GET /many?alone=1 HTTP/1.1\r\n" HOST "\r\n" : text);
	other = ask_slow(http);
	gate_await(&gate.inside, 2);
	must_be_healthy(pr_http_port(http));
	assert_int_equal(gate.inside, 2);
	gate_set(1);
	must_answer(first, 200, "by itself");
	must_answer(other, 200, "prefix GET /slow/x");
	for (int i = 0; i < 5; i++)
		must_answer(fd[i], 200, answers[i]);
	stop_slow(http);
}

/* Every worker stands, every place of the queue is taken: who comes then is told so, and health is answered.
 */
static void test_slow_is_bounded(void **state)
{
	struct pr_http *http =
		serve_slow((struct pr_http_opts){ .workers = 2, .waiting = 3, .timeout_s = 30 });
	int port = pr_http_port(http), fd[5];
	int64_t begin;

	(void)state;
	for (int i = 0; i < 2; i++) {
		fd[i] = ask_slow(http);
		gate_await(&gate.inside, i + 1);
	}
	for (int i = 2; i < 5; i++)
		fd[i] = ask_slow(http);
	/* One thread reads in the order of arrival: when this is refused, the three before it wait. */
	expect(port, "GET /slow/x HTTP/1.1\r\n" HOST END, 503, "Retry-After: 1\r\n");
	begin = pr_mono_us();
	for (int i = 0; i < 20; i++)
		must_be_healthy(port);
	assert_true(pr_mono_us() - begin < 20 * PR_SEC);
	gate_set(1);
	for (int i = 0; i < 5; i++)
		must_answer(fd[i], 200, "prefix GET /slow/x");
	assert_int_equal(gate.handled, 5);
	assert_int_equal(gate.most, 2);
	expect(port, "GET /slow/x HTTP/1.1\r\n" HOST END, 200, NULL);
	stop_slow(http);
}

/* However many the options would let wait, plain routes keep a quarter of the connections. */
static void test_slow_leaves_room(void **state)
{
	enum { N = 8 };
	struct pr_http *http = serve_slow((struct pr_http_opts){
		.workers = 1, .waiting = 1000, .max_connections = N, .timeout_s = 30 });
	int fd[N - 2];

	(void)state;
	for (int i = 0; i < N - 2; i++) {
		fd[i] = ask_slow(http);
		gate_await(&gate.inside, 1);
	}
	expect(pr_http_port(http), "GET /slow/x HTTP/1.1\r\n" HOST END, 503, "/problems/overloaded");
	must_be_healthy(pr_http_port(http));
	gate_set(1);
	for (int i = 0; i < N - 2; i++)
		must_answer(fd[i], 200, "prefix GET /slow/x");
	stop_slow(http);
}

/* A request that is waited for by nobody is no work. */
static void test_slow_client_gone(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ .workers = 1, .timeout_s = 30 });
	int at_work = ask_slow(http), gone[3], stays;

	(void)state;
	gate_await(&gate.inside, 1);
	for (int i = 0; i < 3; i++)
		gone[i] = ask_slow(http);
	stays = ask_slow(http);
	must_be_healthy(pr_http_port(http)); /* all were read */
	for (int i = 0; i < 3; i++)
		close(gone[i]);
	gate_set(1);
	must_answer(at_work, 200, "prefix GET /slow/x");
	must_answer(stays, 200, "prefix GET /slow/x");
	assert_int_equal(gate.handled, 2);
	/* Who goes while his request is at work leaves nothing behind either. */
	gate_set(0);
	at_work = ask_slow(http);
	gate_await(&gate.inside, 1);
	close(at_work);
	gate_set(1);
	gate_await(&gate.handled, 1);
	must_be_healthy(pr_http_port(http));
	stop_slow(http);
}

/* The work may take longer than any client may: its time is the handler's. The queue's is not. */
static void test_slow_takes_long(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ .workers = 1, .timeout_s = 1 });
	int at_work = ask_slow(http), waits;
	int64_t begin = pr_mono_us();

	(void)state;
	gate_await(&gate.inside, 1);
	waits = ask_slow(http);
	while (pr_mono_us() - begin < 3 * PR_SEC)
		must_be_healthy(pr_http_port(http));
	gate_set(1);
	must_answer(at_work, 200, "prefix GET /slow/x");
	must_answer(waits, 503, "/problems/overloaded");
	assert_int_equal(gate.handled, 1);
	stop_slow(http);
}

static void *stop_http(void *arg)
{
	pr_http_stop(arg);
	return NULL;
}

/* While the server ends, those that wait to be handled together are refused, and those at work are answered.
 */
static void test_slow_together_stops(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ .workers = 4, .timeout_s = 30 });
	static const char text[] = "GET /many HTTP/1.1\r\n" HOST "\r\n";
	int first = ask_for(http, text), fd[2];
	pthread_t thread;

	(void)state;
	gate_await(&gate.inside, 1);
	for (int i = 0; i < 2; i++)
		fd[i] = ask_for(http, text);
	must_be_healthy(pr_http_port(http));
	assert_int_equal(pthread_create(&thread, NULL, stop_http, http), 0);
	for (int i = 0; i < 2; i++)
		must_answer(fd[i], 503, "/problems/stopping");
	gate_set(1);
	must_answer(first, 200, "by itself");
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(gate.workers, 0);
}

static void test_slow_stop(void **state)
{
	struct pr_http *http = serve_slow((struct pr_http_opts){ .workers = 2, .timeout_s = 30 });
	int at_work[2], waits[3], port = pr_http_port(http);
	pthread_t thread;

	(void)state;
	for (int i = 0; i < 2; i++)
		at_work[i] = ask_slow(http);
	gate_await(&gate.inside, 2);
	for (int i = 0; i < 3; i++)
		waits[i] = ask_slow(http);
	must_be_healthy(port);
	assert_int_equal(pthread_create(&thread, NULL, stop_http, http), 0);
	/* While the work ends, new work is refused and health is told. */
	for (int refused = 0, ms = 20; !refused; ms += ms < 2000 ? ms : 0) {
		int fd = dial(port);
		struct pollfd p = { .fd = fd, .events = POLLIN };

		assert_int_equal(push(fd, slow_text, sizeof(slow_text) - 1), 0);
		if (poll(&p, 1, ms) == 1) {
			struct reply r = pull_some(fd, 10000, 1);

			refused = status_of(&r) == 503;
			free(r.text);
		}
		close(fd);
	}
	must_be_healthy(port);
	gate_set(1);
	for (int i = 0; i < 2; i++)
		must_answer(at_work[i], 200, "prefix GET /slow/x");
	for (int i = 0; i < 3; i++)
		must_answer(waits[i], 503, "/problems/stopping");
	pthread_join(thread, NULL);
	assert_int_equal(gate.handled, 2);
	assert_int_equal(gate.workers, 0);
}

/* Who does not read the answer holds neither a worker nor the end. */
static void test_slow_reader(void **state)
{
	static const char request[] = "GET /large HTTP/1.1\r\n" HOST "\r\n";
	struct pr_http *http = serve_slow((struct pr_http_opts){ .workers = 1, .timeout_s = 1 });
	int fd[3];
	int64_t begin = pr_mono_us();
	struct reply r;

	(void)state;
	gate_set(1);
	for (int i = 0; i < 3; i++) {
		struct pollfd p = { .events = POLLIN };

		p.fd = fd[i] = dial(pr_http_port(http));
		assert_int_equal(push(fd[i], request, sizeof(request) - 1), 0);
		assert_int_equal(poll(&p, 1, 20000), 1);
	}
	expect(pr_http_port(http), "GET /slow/x HTTP/1.1\r\n" HOST END, 200, NULL);
	while (pr_mono_us() - begin < 7 * PR_SEC / 2)
		must_be_healthy(pr_http_port(http));
	r = pull(fd[0], 20000);
	assert_true(r.closed && r.len < 64 << 20);
	free(r.text);
	close(fd[1]);
	close(fd[2]);
	stop_slow(http);
	http = serve_slow((struct pr_http_opts){ .workers = 1, .timeout_s = 60 });
	gate_set(1);
	fd[0] = dial(pr_http_port(http));
	assert_int_equal(push(fd[0], request, sizeof(request) - 1), 0);
	assert_int_equal(poll(&(struct pollfd){ .fd = fd[0], .events = POLLIN }, 1, 20000), 1);
	begin = pr_mono_us();
	stop_slow(http);
	assert_true(pr_mono_us() - begin < 20 * PR_SEC);
	close(fd[0]);
}

static void *ask_mixed(void *arg)
{
	static const char *const requests[] = { "GET /healthz HTTP/1.1\r\n" HOST "\r\n",
		"POST /slow/x HTTP/1.1\r\nContent-Length: 5\r\n" HOST "\r\nhello",
		"GET /slow/y HTTP/1.1\r\n" HOST "\r\n" };
	struct crowd *c = arg;
	int fd = dial(c->port);
	char buf[1000];

	for (int i = 0; !c->stop; i++) {
		ssize_t n;

		if (i % 50 == 49) { /* leaves with a request under way */
			(void)push(fd, requests[1], strlen(requests[1]));
			close(fd);
			fd = dial(c->port);
		}
		if (push(fd, requests[i % 3], strlen(requests[i % 3])) < 0)
			break;
		n = recv(fd, buf, sizeof(buf) - 1, 0);
		if (n <= 0)
			break;
		buf[n] = '\0';
		atomic_fetch_add(
			strstr(buf, i % 3 == 1 ? "5:hello" : " q=- h=- 0:") ? &c->ok : &c->failed, 1);
	}
	close(fd);
	return NULL;
}

static void test_slow_crowd(void **state)
{
	enum { N = 8 };
	struct pr_http *http =
		serve_slow((struct pr_http_opts){ .workers = 3, .threads = 2, .max_connections = 400 });
	struct crowd c = { .port = pr_http_port(http) };
	pthread_t thread[N];

	(void)state;
	gate_set(1);
	for (int i = 0; i < N; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, ask_mixed, &c), 0);
	while (c.ok < 5000 && c.failed == 0)
		(void)poll(NULL, 0, 1);
	c.stop = 1;
	for (int i = 0; i < N; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(c.failed, 0);
	stop_slow(http);
	/* And once more, stopped in the middle of it. */
	c.stop = 0;
	http = serve_slow((struct pr_http_opts){ .workers = 3, .threads = 2, .max_connections = 400 });
	c.port = pr_http_port(http);
	gate_set(1);
	c.ok = 0;
	for (int i = 0; i < N; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, ask_mixed, &c), 0);
	while (c.ok < 1000)
		(void)poll(NULL, 0, 1);
	c.stop = 1;
	stop_slow(http);
	for (int i = 0; i < N; i++)
		pthread_join(thread[i], NULL);
}

/* ---- where to listen ---- */

static void refuse_listen(const char *listen, const char *with_token, enum pr_kind kind, int code)
{
	struct pr_http_opts opts = { .listen = listen, .token = with_token };
	struct pr_http *http = NULL;
	struct pr_err err = { 0 };

	assert_int_equal(pr_http_start(&opts, routes, &http, &err), -1);
	assert_null(http);
	assert_int_equal(err.kind, kind);
	assert_int_equal(err.exit, code);
	assert_non_null(strstr(err.text, listen));
	assert_true(err.hint[0] != '\0');
	assert_int_equal(pr_http_start(&opts, routes, &http, NULL), -1);
}

static void test_listen_addresses(void **state)
{
	static const char *const bad[] = { "", ":", "9470", "127.0.0.1", ":9470", "127.0.0.1:", "127.0.0.1:x",
		"127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1: 1", "127.0.0.1:65536", "127.0.0.1:999999999999",
		"127.0.0.1:1 ", "::1:9470", "[::1]", "[::1:9470", "[]:9470", "[::1]x:9470", "localhost.:1",
		"postgres.example:1", "127.0.0.256:1", "[127.0.0.1:1" };

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		refuse_listen(bad[i], token, PR_REJECT, PR_EX_CONFIG);
	/* Off loopback nobody listens without a token, and an empty one is none. */
	refuse_listen("*:0", NULL, PR_REJECT, PR_EX_CONFIG);
	refuse_listen("0.0.0.0:0", NULL, PR_REJECT, PR_EX_CONFIG);
	refuse_listen("0.0.0.0:0", "", PR_REJECT, PR_EX_CONFIG);
	refuse_listen("[::]:0", NULL, PR_REJECT, PR_EX_CONFIG);
	refuse_listen("[::ffff:10.0.0.1]:0", NULL, PR_REJECT, PR_EX_CONFIG);
	refuse_listen("192.0.2.1:0", token, PR_RETRY, PR_EX_UNAVAILABLE); /* an address nobody has */
}

static void test_any_address(void **state)
{
	struct pr_http *http = serve_with((struct pr_http_opts){ .listen = "*:0", .token = token });

	(void)state;
	/* The token stands guard, so any name is good; one is still asked for. */
	expect(pr_http_port(http), "GET /healthz HTTP/1.1\r\nHost: relay7.example\r\n" END, 200, NULL);
	expect(pr_http_port(http), "GET /healthz HTTP/1.1\r\n" END, 400, NULL);
	expect(pr_http_port(http), "GET /a/x HTTP/1.1\r\n" HOST END, 401, NULL);
	pr_http_stop(http);
	http = serve_with((struct pr_http_opts){ .listen = "localhost:0" });
	must_be_healthy(pr_http_port(http));
	pr_http_stop(http);
	pr_http_stop(NULL);
}

static void test_ipv6(void **state)
{
	static const char request[] = "GET /healthz HTTP/1.1\r\nHost: [::1]:1\r\n" END;
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct pr_http *http;
	struct reply r;

	(void)state;
	if (fd < 0 || bind(fd, (struct sockaddr *)&in6, sizeof(in6)) < 0) {
		print_message("no IPv6 here\n");
		skip();
	}
	http = serve_with((struct pr_http_opts){ .listen = "[::1]:0" });
	in6.sin6_port = htons((uint16_t)pr_http_port(http));
	assert_int_equal(connect(fd, (struct sockaddr *)&in6, sizeof(in6)), 0);
	(void)push(fd, request, sizeof(request) - 1);
	r = pull(fd, 20000);
	assert_int_equal(status_of(&r), 200);
	free(r.text);
	close(fd);
	pr_http_stop(http);
}

static void test_address_in_use(void **state)
{
	struct pr_http *http = serve(), *second = NULL;
	struct pr_http_opts opts = { .reuse_port = 1 };
	char listen[40];
	struct pr_err err = { 0 };

	(void)state;
	(void)snprintf(listen, sizeof(listen), "127.0.0.1:%d", pr_http_port(http));
	refuse_listen(listen, NULL, PR_RETRY, PR_EX_UNAVAILABLE);
	opts.listen = listen;
	assert_int_equal(pr_http_start(&opts, routes, &second, &err), -1);
	assert_string_equal(err.code, "EADDRINUSE");
	pr_http_stop(http);
	/* Free again at once, and shared by all who ask for it. */
	assert_int_equal(pr_http_start(&opts, routes, &http, &err), 0);
	assert_int_equal(pr_http_start(&opts, routes, &second, &err), 0);
	must_be_healthy(pr_http_port(second));
	pr_http_stop(http);
	must_be_healthy(pr_http_port(second));
	pr_http_stop(second);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_get),
		cmocka_unit_test(test_head),
		cmocka_unit_test(test_post),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_targets),
		cmocka_unit_test(test_host),
		cmocka_unit_test(test_host_once),
		cmocka_unit_test(test_cross_site_write),
		cmocka_unit_test(test_pages_of_other_origins),
		cmocka_unit_test(test_token),
		cmocka_unit_test(test_doubtful_framing),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_long_heads),
		cmocka_unit_test(test_bodies),
		cmocka_unit_test(test_expect_continue),
		cmocka_unit_test(test_pipelined),
		cmocka_unit_test(test_silence_is_closed),
		cmocka_unit_test(test_dripping_is_closed),
		cmocka_unit_test(test_dripping_makes_room),
		cmocka_unit_test(test_crowd),
		cmocka_unit_test(test_stop_under_load),
		cmocka_unit_test(test_random_requests),
		cmocka_unit_test(test_idle_makes_room),
		cmocka_unit_test(test_methods_and_segments),
		cmocka_unit_test(test_slow_answers),
		cmocka_unit_test(test_slow_together),
		cmocka_unit_test(test_slow_together_stops),
		cmocka_unit_test(test_slow_is_bounded),
		cmocka_unit_test(test_slow_leaves_room),
		cmocka_unit_test(test_slow_client_gone),
		cmocka_unit_test(test_slow_takes_long),
		cmocka_unit_test(test_slow_stop),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_slow_crowd),
		cmocka_unit_test(test_listen_addresses),
		cmocka_unit_test(test_any_address),
		cmocka_unit_test(test_ipv6),
		cmocka_unit_test(test_address_in_use),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
