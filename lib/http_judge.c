/* lib/http_judge.c -- what can be told from the head of a request, before a handler runs. Refuses a foreign
 * Host on loopback (DNS rebinding), a cross-site write, a path that is not plain UTF-8, two body lengths
 * (smuggling), bodies and headers past their bounds, whoever lacks the token. */
#include "lib/http_inner.h"

#include "lib/json.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEADER_MAX (12 * 1024) /* a head that fits the pool but is larger than any of ours gets a 431 */

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

void http_refuse(struct exchange *ex, int status, const char *slug, const char *title, const char *detail)
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

size_t pr_http_segment(const struct pr_request *req, unsigned i, const char **ret)
{
	const char *s = req->rest;

	for (; i > 0; i--) {
		s += strcspn(s, "/");
		if (*s)
			s++;
	}
	*ret = s;
	return strcspn(s, "/");
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

int http_target_ok(const char *target)
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
 * the write is done), unless its origin is one of ours. Clients that are no browsers send neither header. */
static int cross_site(const struct exchange *ex, struct MHD_Connection *conn)
{
	const char *site = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Sec-Fetch-Site");
	const char *origin = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Origin");
	const char *host = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Host");

	if (ex->origin)
		return 0;
	if (site && strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0)
		return 1;
	if (!origin)
		return 0;
	origin = strstr(origin, "://");
	return !origin || !host || strcasecmp(origin + 3, host) != 0;
}

/* ---- pages of other origins (CORS) ---- */

#define ASK_METHODS "GET, HEAD, POST, PUT, DELETE"
#define ASK_HEADERS "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, traceparent"

/* Without credentials: tokens go in a header, there are no cookies that another page could make a browser
 * send. */
static const char *known_origin(const struct pr_http *http, struct MHD_Connection *conn)
{
	const char *given = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Origin");

	for (char **o = http->origin; given && *o; o++)
		if (strcasecmp(*o, given) == 0)
			return *o;
	return NULL;
}

/* The browser's question whether it may ask: answered here, no handler and no token in it. */
static int is_preflight(const struct exchange *ex, struct MHD_Connection *conn, const char *method)
{
	return ex->origin && strcmp(method, "OPTIONS") == 0 &&
	       MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Access-Control-Request-Method");
}

void http_add_origin(const struct exchange *ex, struct MHD_Response *r)
{
	if (ex->http->origin[0])
		(void)MHD_add_response_header(r, "Vary", "Origin");
	if (!ex->origin)
		return;
	(void)MHD_add_response_header(r, "Access-Control-Allow-Origin", ex->origin);
	(void)MHD_add_response_header(r, "Access-Control-Expose-Headers", "Location, Retry-After");
	if (ex->resp.status != 204)
		return;
	(void)MHD_add_response_header(r, "Access-Control-Allow-Methods", ASK_METHODS);
	(void)MHD_add_response_header(r, "Access-Control-Allow-Headers", ASK_HEADERS);
	(void)MHD_add_response_header(r, "Access-Control-Max-Age", "600");
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
static size_t path_match(const struct pr_http *http, const struct pr_route *r, const char *path)
{
	size_t n = strlen(r->path);

	if (n < 2 || strcmp(r->path + n - 2, "/*") != 0)
		return strcmp(r->path, path) == 0 ? n + 1 : 0;
	if (strncmp(r->path, path, n - 1) != 0 || (http->has && !http->has(r->ctx, path)))
		return 0;
	return n - 1;
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
		size_t len = path_match(http, &http->route[i], path);

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

		if (!path_match(http, r, path) || strstr(buf, r->method))
			continue;
		*ret_open |= r->open;
		len += (size_t)snprintf(buf + len, size - len, "%s%s", len ? ", " : "",
			strcmp(r->method, "GET") == 0 ? "GET, HEAD" : r->method);
	}
	return len > 0;
}

/* ---- the verdict ---- */

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

size_t http_content_length(struct MHD_Connection *conn)
{
	const char *length = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, "Content-Length");

	return length ? (size_t)strtoull(length, NULL, 10) : 0;
}

void http_too_large(struct exchange *ex)
{
	char detail[80];

	(void)snprintf(detail, sizeof(detail), "a body may have %zu bytes here", ex->http->max_body);
	http_refuse(ex, 413, "body-too-large", "Request body too large", detail);
}

static void judge_route(
	struct exchange *ex, struct MHD_Connection *conn, const char *method, const char *path)
{
	int open = 0, known;

	ex->origin = known_origin(ex->http, conn);
	if (is_preflight(ex, conn, method)) {
		ex->failed = 1; /* no handler */
		ex->resp.status = 204;
		return;
	}
	ex->route = find_route(ex->http, method, path);
	known = allowed(ex->http, path, ex->allow, sizeof(ex->allow), &open);
	if (ex->route)
		open = ex->route->open;
	/* Without the token nobody learns which paths there are. */
	if (!open && !token_ok(ex->http, conn))
		http_refuse(ex, 401, "unauthorized", "Bearer token required",
			"send Authorization: Bearer with the token of this server");
	else if (!known)
		http_refuse(ex, 404, "not-found", "No such path", path);
	else if (!ex->route)
		http_refuse(ex, 405, "method-not-allowed", "Method not allowed", ex->allow);
	else if (strcmp(ex->route->method, "GET") != 0 && cross_site(ex, conn))
		http_refuse(ex, 403, "cross-site", "Refused from another site",
			"a page of another origin may not change anything here");
}

/* A head that makes the rest of the stream doubtful: answered at once, then closed. */
static void judge_form(struct exchange *ex, struct MHD_Connection *conn)
{
	(void)MHD_get_connection_values(conn, MHD_HEADER_KIND, head_line, &ex->lines);
	if (head_too_large(conn))
		http_refuse(ex, 431, "headers-too-large", "Request headers too large", NULL);
	else if (!framing_ok(&ex->lines, conn))
		http_refuse(ex, 400, "bad-framing", "Malformed request",
			"one Content-Length, or Transfer-Encoding: chunked, and not both");
	ex->close = ex->failed;
}

void http_judge(struct exchange *ex, struct MHD_Connection *conn, const char *method, const char *path)
{
	ex->begun = 1;
	judge_form(ex, conn);
	if (ex->failed)
		return;
	if (!host_ok(ex->http, conn, &ex->lines))
		http_refuse(ex, 400, "bad-host", "Host not served here",
			"the Host header must be one of this server's own names");
	else if (ex->bad_target)
		http_refuse(ex, 400, "bad-target", "Malformed request target",
			"a path must decode to UTF-8, without control characters or dot segments");
	else
		judge_route(ex, conn, method, path);
	if (!ex->failed && http_content_length(conn) > ex->http->max_body)
		http_too_large(ex);
	/* The rest of a refused body is read, so that its sender comes to reading our answer,
	 * unless it is long or waits for our word. */
	if (ex->failed)
		ex->close = http_content_length(conn) > DISCARD_MAX || ex->lines.expects > 0;
}
