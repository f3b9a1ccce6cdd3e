/* tests/unit/handler_http_test.c -- the http handler against a server on loopback without manners: what
 * goes out, what each kind of answer becomes, that order holds per key, and that no answer can hold it. */
#include "consumers/handler.h"
#include "consumers/webhook_sign.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cjson/cJSON.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OK_HEAD  "HTTP/1.1 200 OK\r\n"
#define BIG      (10 << 20)
#define MESSAGES 512

/* ---------------------------------------------------------------- the server */

struct seen {
	char *head, *body;
	int connection;
	int64_t from_us;
};

static struct {
	int fd, port;
	pthread_t thread;
	atomic_int connections, flying, most_flying, alive;
	pthread_mutex_t mutex;
	struct seen seen[MESSAGES];
	size_t n;
} server = { .mutex = PTHREAD_MUTEX_INITIALIZER };

/* Returns 0 when all of it went out, -1 when the other side closed before that. */
static int push(int fd, const char *bytes, size_t n)
{
	while (n > 0) {
		ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);

		if (sent <= 0)
			return -1;
		bytes += sent;
		n -= (size_t)sent;
	}
	return 0;
}

static int say(int fd, const char *text)
{
	return push(fd, text, strlen(text));
}

static void answer(int fd, int status, const char *more, const char *body)
{
	char *text = pr_asprintf(
		"HTTP/1.1 %d Said\r\n%sContent-Length: %zu\r\n\r\n%s", status, more, strlen(body), body);

	(void)say(fd, text);
	free(text);
}

/* Until the other side closes, and never more than ms. */
static void wait_for_end(int fd, int ms)
{
	int64_t until = pr_mono_us() + ms * PR_MS;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char buf[256];

	while (pr_mono_us() < until && poll(&p, 1, pr_until_ms(until)) > 0)
		if (recv(fd, buf, sizeof(buf), 0) <= 0)
			return;
}

/* A byte every 10 ms: never silent, never done. */
static void drip(int fd, const char *byte)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	for (int i = 0; i < 1000 && say(fd, byte) == 0; i++)
		if (poll(&p, 1, 10) > 0)
			return;
}

static void reset(int fd)
{
	struct linger now = { .l_onoff = 1 };

	(void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static void put_zeros(int fd, size_t n)
{
	char block[16384];

	memset(block, '0', sizeof(block));
	for (size_t at = 0; at < n; at += sizeof(block))
		if (push(fd, block, sizeof(block)) < 0)
			return;
}

/* /do: the payload says what to answer, {"status": 503, "wait": 20, "retry": 7}. */
static void obey(int fd, const char *body)
{
	cJSON *doc = cJSON_Parse(body), *payload = cJSON_GetObjectItem(doc, "payload");
	cJSON *status = cJSON_GetObjectItem(payload, "status"), *wait = cJSON_GetObjectItem(payload, "wait"),
	      *retry = cJSON_GetObjectItem(payload, "retry");
	char head[64] = "";

	if (wait)
		wait_for_end(fd, wait->valueint);
	if (retry)
		(void)snprintf(head, sizeof(head), "Retry-After: %d\r\n", retry->valueint);
	answer(fd, status ? status->valueint : 204, head, "");
	cJSON_Delete(doc);
}

static void early_hints(int fd)
{
	(void)say(fd, "HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n");
	answer(fd, 503, "", "");
}

static void retry_at_date(int fd)
{
	time_t at = (time_t)(pr_wall_us() / PR_SEC) + 90;
	char date[64], head[128];
	struct tm tm;

	(void)strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&at, &tm));
	(void)snprintf(head, sizeof(head), "Retry-After: %s\r\n", date);
	answer(fd, 429, head, "");
}

/* Whether the connection goes on. */
static int serve_path(int fd, const char *path, const char *body)
{
	if (strncmp(path, "/do", 3) == 0)
		obey(fd, body);
	else if (strncmp(path, "/status/", 8) == 0)
		answer(fd, atoi(path + 8), "", "said \x01\n\xff so");
	else if (strncmp(path, "/retry/", 7) == 0) {
		char *head = pr_asprintf("retry-AFTER:\t%s \r\n", path + 7);

		answer(fd, 503, head, "");
		free(head);
	} else if (strcmp(path, "/retry-date") == 0)
		retry_at_date(fd);
	else if (strcmp(path, "/retry-past") == 0)
		answer(fd, 503, "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n", "");
	else if (strcmp(path, "/early") == 0)
		early_hints(fd);
	else if (strcmp(path, "/redirect") == 0)
		answer(fd, 302, "Location: /do\r\n", "");
	else if (strcmp(path, "/gzip") == 0)
		answer(fd, 500, "Content-Encoding: gzip\r\n", "not gzip at all");
	else if (strcmp(path, "/close-later") == 0) {
		answer(fd, 200, "", "fine");
		return 0; /* as if it were kept, then it is gone */
	} else if (strcmp(path, "/slow-head") == 0) {
		(void)say(fd, OK_HEAD "X-Slow: ");
		drip(fd, "x");
	} else if (strcmp(path, "/slow-body") == 0) {
		(void)say(fd, OK_HEAD "Content-Length: 1000000\r\n\r\n");
		drip(fd, "x");
	} else if (strcmp(path, "/slow-failure") == 0) {
		(void)say(fd, "HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n");
		drip(fd, "x");
	} else if (strcmp(path, "/hang") == 0)
		wait_for_end(fd, 120000);
	else if (strcmp(path, "/endless") == 0) {
		(void)say(fd, OK_HEAD "\r\n");
		put_zeros(fd, SIZE_MAX / 2);
	} else if (strcmp(path, "/endless-failure") == 0) {
		(void)say(fd, "HTTP/1.1 418 No\r\n\r\n");
		put_zeros(fd, SIZE_MAX / 2);
	} else if (strcmp(path, "/endless-head") == 0) {
		(void)say(fd, OK_HEAD);
		while (say(fd, "X-More: and more and more and more\r\n") == 0)
			;
	} else if (strcmp(path, "/big") == 0) {
		(void)say(fd, OK_HEAD "Content-Length: 10485760\r\n\r\n");
		put_zeros(fd, BIG);
	} else if (strcmp(path, "/reset") == 0) {
		(void)say(fd, OK_HEAD "Content-Le");
		reset(fd);
		return 0;
	} else if (strcmp(path, "/reset-body") == 0) {
		(void)say(fd, OK_HEAD "Content-Length: 100\r\n\r\nhalf of");
		reset(fd);
		return 0;
	} else if (strcmp(path, "/short-body") == 0) {
		(void)say(fd, OK_HEAD "Content-Length: 100\r\n\r\nhalf of");
		return 0;
	} else if (strcmp(path, "/garbage") == 0) {
		(void)say(fd, "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n");
		return 0;
	} else if (strcmp(path, "/nothing") == 0)
		return 0;
	else
		answer(fd, 404, "", "no such page");
	return strncmp(path, "/do", 3) == 0 || strncmp(path, "/status", 7) == 0 ||
	       strncmp(path, "/retry", 6) == 0 || strcmp(path, "/early") == 0;
}

static void note(char *head, char *body, int connection)
{
	pthread_mutex_lock(&server.mutex);
	assert_true(server.n < MESSAGES);
	server.seen[server.n++] = (struct seen){ head, body, connection, pr_mono_us() };
	pthread_mutex_unlock(&server.mutex);
}

static char *header_of(const char *head, const char *name)
{
	char *line = pr_asprintf("\r\n%s: ", name), *found = strcasestr(head, line), *value = NULL;

	if (found)
		value = pr_asprintf("%.*s", (int)strcspn(found + strlen(line), "\r"), found + strlen(line));
	free(line);
	return value;
}

/* One request of the connection; 0 when there is none, or none to come. */
static int serve_one(int fd, int connection, struct pr_buf *in)
{
	char buf[65536], path[64] = "", *end, *length, *head, *body;
	size_t want;
	ssize_t n;
	int on, flying, most;

	while (!in->s || !(end = strstr(in->s, "\r\n\r\n"))) {
		if ((n = recv(fd, buf, sizeof(buf), 0)) <= 0 || buf[0] == 0x16)
			return 0; /* 22 begins a TLS handshake */
		pr_buf_put(in, buf, (size_t)n);
	}
	head = pr_asprintf("%.*s", (int)(end + 2 - in->s), in->s);
	length = header_of(head, "Content-Length");
	want = (size_t)(end + 4 - in->s) + (length ? (size_t)atol(length) : 0);
	free(length);
	while (in->len < want && (n = recv(fd, buf, sizeof(buf), 0)) > 0)
		pr_buf_put(in, buf, (size_t)n);
	body = pr_strdup(in->s + strlen(head) + 2);
	in->len = 0;
	in->s[0] = '\0';
	(void)sscanf(head, "POST %63s", path);
	note(head, body, connection);
	flying = atomic_fetch_add(&server.flying, 1) + 1;
	for (most = atomic_load(&server.most_flying); flying > most;)
		if (atomic_compare_exchange_weak(&server.most_flying, &most, flying))
			break;
	on = serve_path(fd, path, body);
	(void)atomic_fetch_sub(&server.flying, 1);
	return on;
}

static void *serve_connection(void *arg)
{
	int fd = (int)(intptr_t)arg, connection = atomic_fetch_add(&server.connections, 1);
	struct pr_buf in = { 0 };

	while (serve_one(fd, connection, &in))
		;
	pr_buf_free(&in);
	(void)close(fd);
	(void)atomic_fetch_sub(&server.alive, 1);
	return NULL;
}

static void *serve(void *arg)
{
	pthread_attr_t detached;
	pthread_t t;
	int fd;

	(void)arg;
	(void)pthread_attr_init(&detached);
	(void)pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	while ((fd = accept(server.fd, NULL, NULL)) >= 0) {
		(void)atomic_fetch_add(&server.alive, 1);
		(void)pthread_create(&t, &detached, serve_connection, (void *)(intptr_t)fd);
	}
	(void)pthread_attr_destroy(&detached);
	return NULL;
}

/* One socket for 127.0.0.1 and ::1 alike. */
static int start_server(void **state)
{
	struct sockaddr_in6 in = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
	socklen_t len = sizeof(in);
	int off = 0;

	(void)state;
	(void)signal(SIGPIPE, SIG_IGN);
	server.fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(server.fd >= 0);
	(void)setsockopt(server.fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	assert_int_equal(bind(server.fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(listen(server.fd, 64), 0);
	assert_int_equal(getsockname(server.fd, (struct sockaddr *)&in, &len), 0);
	server.port = ntohs(in.sin6_port);
	return pthread_create(&server.thread, NULL, serve, NULL);
}

static void wait_for(atomic_int *what, int value)
{
	for (int i = 0; i < 6000 && atomic_load(what) != value; i++)
		(void)poll(NULL, 0, 10);
	assert_int_equal(atomic_load(what), value);
}

static int stop_server(void **state)
{
	(void)state;
	(void)shutdown(server.fd, SHUT_RDWR);
	(void)pthread_join(server.thread, NULL);
	wait_for(&server.alive, 0);
	return close(server.fd);
}

/* Before each test: what was seen is forgotten. */
static int forget(void **state)
{
	(void)state;
	wait_for(&server.alive, 0);
	for (size_t i = 0; i < server.n; i++) {
		free(server.seen[i].head);
		free(server.seen[i].body);
	}
	server.n = 0;
	atomic_store(&server.connections, 0);
	atomic_store(&server.most_flying, 0);
	return 0;
}

/* ---------------------------------------------------------------- the handler */

struct rig {
	struct pr_consumer_conf conf;
	struct handler *h;
	int wake_fd;
	struct message m[MESSAGES], *list[MESSAGES];
	char text[MESSAGES][80];
	struct outcome out[MESSAGES];
	size_t n;
};

static char topic_name[] = "outbox.event.seat";

static struct rig *rig_new(const char *path)
{
	struct rig *r = pr_calloc(1, sizeof(*r));

	r->conf.handler.url =
		*path == '/' ? pr_asprintf("http://127.0.0.1:%d%s", server.port, path) : pr_strdup(path);
	r->conf.handler.timeout_us = 30 * PR_SEC;
	r->conf.handler.response_bytes = 64 * 1024;
	r->conf.handler.concurrency = 4;
	r->wake_fd = eventfd(0, EFD_CLOEXEC);
	return r;
}

static int rig_try(struct rig *r, struct pr_err *err)
{
	struct handler_env env = { .conf = &r->conf, .wake_fd = r->wake_fd };

	return handler_http.open(&env, NULL, &r->h, err);
}

static struct rig *rig_open(struct rig *r)
{
	struct pr_err err;

	if (rig_try(r, &err) < 0)
		fail_msg("%s", err.text);
	return r;
}

static void rig_free(struct rig *r)
{
	handler_http.close(r->h);
	free(r->conf.handler.url);
	(void)close(r->wake_fd);
	free(r);
}

/* key NULL: none. The payload is JSON. */
static struct message *add(struct rig *r, const char *key, const char *payload)
{
	struct message *m = &r->m[r->n];

	*m = (struct message){ .topic = topic_name, .offset = (int64_t)r->n, .time_us = 0, .type = "Seat" };
	m->type_len = 4;
	m->key = key;
	m->key_len = key ? strlen(key) : 0;
	m->payload = payload;
	m->payload_len = strlen(payload);
	m->json = 1;
	m->id[15] = (unsigned char)r->n;
	m->id[14] = (unsigned char)(r->n >> 8);
	(void)snprintf(m->id_text, sizeof(m->id_text), "00000000-0000-0000-0000-%012zx", r->n);
	r->list[r->n++] = m;
	return m;
}

static void run_op(struct rig *r, enum op op)
{
	struct pr_err err;

	memset(r->out, 0, sizeof(r->out));
	assert_int_equal(handler_http.run(r->h, NULL, op, r->list, r->n, r->out, &err), 0);
}

static void run(struct rig *r)
{
	run_op(r, OP_DO);
}

static void expect(const struct outcome *o, enum pr_fail_class cls, const char *code)
{
	if (o->cls != cls || strcmp(o->code, code) != 0)
		fail_msg("class %d code \"%s\" (%s), not %d \"%s\"", o->cls, o->code, o->text, cls, code);
	assert_true((o->text[0] != '\0') == (cls != PR_FAIL_NONE));
}

/* All are handled, in as many rounds as that takes: as a lane gives again what was left behind. */
static void run_all(struct rig *r)
{
	struct pr_err err;

	for (size_t from = 0, to; from < r->n; from = to) {
		memset(r->out + from, 0, (r->n - from) * sizeof(*r->out)); /* as a lane does */
		assert_int_equal(
			handler_http.run(r->h, NULL, OP_DO, r->list + from, r->n - from, r->out + from, &err),
			0);
		for (to = from; to < r->n && r->out[to].cls == PR_FAIL_NONE;)
			to++;
		if (to < r->n)
			expect(&r->out[to], PR_FAIL_REPLY, "behind");
		assert_true(to > from);
	}
}

/* One message to the path, and what became of it. */
static struct outcome post(const char *path, int64_t timeout_us, int64_t response_bytes)
{
	struct rig *r = rig_new(path);
	struct outcome out;

	r->conf.handler.timeout_us = timeout_us;
	r->conf.handler.response_bytes = response_bytes;
	add(rig_open(r), "k", "{}");
	run(r);
	out = r->out[0];
	rig_free(r);
	return out;
}

static struct outcome get(const char *path)
{
	return post(path, 30 * PR_SEC, 64 * 1024);
}

/* ---------------------------------------------------------------- what goes out */

static void expect_header(size_t at, const char *name, const char *want)
{
	char *value = header_of(server.seen[at].head, name);

	if (want)
		assert_string_equal(value ? value : "(missing)", want);
	else
		assert_null(value);
	free(value);
}

static void a_request_carries_the_message(void **state)
{
	static const char trace[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
	struct rig *r = rig_open(rig_new("/do?x=1"));
	struct message *m = add(r, "seat-7", "{\"n\": 1}");
	cJSON *doc;

	(void)state;
	m->traceparent = trace;
	m->traceparent_len = strlen(trace);
	run(r);
	expect(&r->out[0], PR_FAIL_NONE, "");
	assert_int_equal(server.n, 1);
	assert_ptr_equal(strstr(server.seen[0].head, "POST /do?x=1 HTTP/1.1\r\n"), server.seen[0].head);
	expect_header(0, "Content-Type", "application/json");
	expect_header(0, "User-Agent", "postrider/" PR_VERSION);
	expect_header(0, "Idempotency-Key", m->id_text);
	expect_header(0, "webhook-id", m->id_text);
	expect_header(0, "webhook-signature", NULL);
	expect_header(0, "traceparent", trace);
	expect_header(0, "Cookie", NULL);
	expect_header(0, "Expect", NULL);
	expect_header(0, "Accept-Encoding", NULL);
	doc = cJSON_Parse(server.seen[0].body);
	assert_string_equal(cJSON_GetObjectItem(doc, "op")->valuestring, "do");
	assert_string_equal(cJSON_GetObjectItem(doc, "key")->valuestring, "seat-7");
	assert_string_equal(cJSON_GetObjectItem(doc, "id")->valuestring, m->id_text);
	assert_int_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(doc, "payload"), "n")->valueint, 1);
	cJSON_Delete(doc);
	rig_free(r);
}

/* A receiver that remembers ids must not take an undo for a repetition of the deed. */
static void an_undo_has_an_id_of_its_own(void **state)
{
	struct rig *r = rig_open(rig_new("/do"));
	cJSON *doc;

	(void)state;
	add(r, "k", "{}");
	run_op(r, OP_UNDO);
	expect(&r->out[0], PR_FAIL_NONE, "");
	doc = cJSON_Parse(server.seen[0].body);
	assert_string_equal(cJSON_GetObjectItem(doc, "op")->valuestring, "undo");
	assert_string_equal(cJSON_GetObjectItem(doc, "id")->valuestring, r->m[0].id_text);
	cJSON_Delete(doc);
	expect_header(0, "Idempotency-Key", "00000000-0000-0000-0000-000000000000-undo");
	expect_header(0, "webhook-id", "00000000-0000-0000-0000-000000000000-undo");
	rig_free(r);
}

/* Ids come from records: a line break in one would end the header, and what was cut is no identity. */
static void ids_that_no_header_can_carry_go_as_uuids(void **state)
{
	struct rig *r = rig_open(rig_new("/do"));

	(void)state;
	strcpy(add(r, "k", "{}")->id_text, "a\r\nX-Evil: 1");
	memset(add(r, "k", "{}")->id_text, 'x', sizeof(r->m[0].id_text) - 1);
	strcpy(add(r, "k", "{}")->id_text, "\xc3\xa4");
	strcpy(add(r, "k", "{}")->id_text, "order-7");
	add(r, "k", "{}")->id_state = ID_MISSING;
	r->m[4].id_text[0] = '\0';
	run(r);
	assert_int_equal(server.n, 5);
	expect_header(0, "X-Evil", NULL);
	expect_header(0, "Idempotency-Key", "00000000-0000-0000-0000-000000000000");
	expect_header(1, "Idempotency-Key", "00000000-0000-0000-0000-000000000001");
	expect_header(2, "Idempotency-Key", "00000000-0000-0000-0000-000000000002");
	expect_header(3, "Idempotency-Key", "order-7");
	expect_header(4, "Idempotency-Key", "outbox.event.seat-0-4");
	rig_free(r);
}

static void a_bad_traceparent_stays_behind(void **state)
{
	static const char bad[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7\r\nX: 1";
	struct rig *r = rig_open(rig_new("/do"));
	struct message *m = add(r, "k", "{}");

	(void)state;
	m->traceparent = bad;
	m->traceparent_len = strlen(bad);
	run(r);
	expect_header(0, "traceparent", NULL);
	expect_header(0, "X", NULL);
	rig_free(r);
}

static void own_headers_go_along(void **state)
{
	char one[] = "Authorization: Bearer abc", two[] = "X-Empty:", *v[] = { one, two };
	struct rig *r = rig_new("/do");

	(void)state;
	r->conf.handler.headers = (struct pr_strs){ v, 2 };
	add(rig_open(r), "k", "{}");
	run(r);
	expect_header(0, "Authorization", "Bearer abc");
	assert_non_null(strstr(server.seen[0].head, "\r\nX-Empty:\r\n"));
	rig_free(r);
}

/* Example of the specification's reference implementations. */
static void the_signature_is_the_standards(void **state)
{
	static const char text[] = "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}";
	struct webhook_keys *k = NULL;
	struct pr_buf b = { 0 };
	struct pr_err err;

	(void)state;
	assert_int_equal(webhook_keys_parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &k, &err), 0);
	webhook_sign_put(&b, k, text, strlen(text));
	assert_string_equal(b.s, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
	webhook_keys_free(k);
	pr_buf_free(&b);
}

static void every_secret_signs_what_is_sent(void **state)
{
	char secret[] = " whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw  "
			"whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
	struct rig *r = rig_new("/do");
	struct webhook_keys *k = NULL;
	struct pr_buf want = { 0 }, text = { 0 };
	struct pr_err err;
	char *stamp;

	(void)state;
	r->conf.handler.secret = secret;
	add(rig_open(r), "k", "{\"n\":1}");
	run(r);
	stamp = header_of(server.seen[0].head, "webhook-timestamp");
	assert_true(llabs(atoll(stamp) - (long long)(pr_wall_us() / PR_SEC)) < 30);
	pr_buf_printf(&text, "%s.%s.%s", r->m[0].id_text, stamp, server.seen[0].body);
	assert_int_equal(webhook_keys_parse(secret, &k, &err), 0);
	webhook_sign_put(&want, k, text.s, text.len);
	assert_non_null(strstr(want.s, " v1,"));
	expect_header(0, "webhook-signature", want.s);
	webhook_keys_free(k);
	pr_buf_free(&want);
	pr_buf_free(&text);
	free(stamp);
	rig_free(r);
}

static void the_environments_proxy_is_not_used(void **state)
{
	struct outcome out;

	(void)state;
	assert_int_equal(setenv("http_proxy", "http://127.0.0.1:1", 1), 0);
	assert_int_equal(setenv("all_proxy", "http://127.0.0.1:1", 1), 0);
	out = get("/do");
	assert_int_equal(unsetenv("http_proxy") + unsetenv("all_proxy"), 0);
	expect(&out, PR_FAIL_NONE, "");
}

static void an_address_of_version_6(void **state)
{
	char url[64];
	struct outcome out;

	(void)state;
	(void)snprintf(url, sizeof(url), "http://[::1]:%d/do", server.port);
	out = get(url);
	if (strcmp(out.code, "connect") == 0 && access("/proc/net/if_inet6", R_OK) != 0)
		skip();
	expect(&out, PR_FAIL_NONE, "");
}

/* Ten megabytes out: whole, and without the second that "Expect: 100-continue" would cost. */
static void a_large_message(void **state)
{
	struct rig *r = rig_open(rig_new("/do"));
	char *payload = pr_malloc(BIG + 3);

	(void)state;
	memset(payload, 'x', BIG);
	payload[0] = payload[BIG - 1] = '"';
	payload[BIG] = '\0';
	add(r, "k", payload);
	run(r);
	expect(&r->out[0], PR_FAIL_NONE, "");
	assert_non_null(strstr(server.seen[0].body, payload));
	expect_header(0, "Expect", NULL);
	free(payload);
	rig_free(r);
}

/* ---------------------------------------------------------------- what answers become */

static void statuses(void **state)
{
	static const int codes[] = { 100, 300, 304, 307, 400, 401, 404, 409, 410, 422, 429, 500, 502, 503,
		599, 999 };
	struct outcome out;

	(void)state;
	for (int s = 200; s < 210; s++) {
		char path[32];

		if (s == 204 || s == 205) /* with a body they are no HTTP; /do answers 204 without */
			continue;
		(void)snprintf(path, sizeof(path), "/status/%d", s);
		out = get(path);
		expect(&out, PR_FAIL_NONE, "");
	}
	out = get("/do");
	expect(&out, PR_FAIL_NONE, "");
	for (size_t i = 1; i < sizeof(codes) / sizeof(codes[0]); i++) {
		char path[32], code[8];

		(void)snprintf(path, sizeof(path), "/status/%d", codes[i]);
		(void)snprintf(code, sizeof(code), "%d", codes[i]);
		out = get(path);
		expect(&out, PR_FAIL_HTTP, code);
		assert_int_equal(out.retry_after_us, 0);
	}
}

static void a_failures_body_is_shown_as_text(void **state)
{
	struct outcome out = get("/status/500");

	(void)state;
	assert_non_null(strstr(out.text, "answers 500: said   ? so"));
}

/* Nothing is unpacked: a small answer cannot become a large one. */
static void a_packed_answer_stays_packed(void **state)
{
	struct outcome out = get("/gzip");

	(void)state;
	expect(&out, PR_FAIL_HTTP, "500");
	assert_non_null(strstr(out.text, "answers 500: not gzip at all"));
}

static void a_redirect_is_not_followed(void **state)
{
	struct outcome out = get("/redirect");

	(void)state;
	expect(&out, PR_FAIL_HTTP, "302");
	assert_int_equal(server.n, 1);
	assert_non_null(strstr(out.text, "not followed"));
}

static void retry_after(void **state)
{
	static const struct {
		const char *path;
		int64_t from, to; /* seconds */
	} cases[] = { { "/retry/7", 7, 7 }, { "/retry/0", 0, 0 }, { "/retry/3600", 3600, 3600 },
		{ "/retry/3601", 3600, 3600 }, { "/retry/99999999999999999999999", 3600, 3600 },
		{ "/retry/soon", 0, 0 }, { "/retry/-5", 0, 0 }, { "/retry-past", 0, 0 },
		{ "/retry-date", 60, 90 }, { "/early", 0, 0 } };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct outcome out = get(cases[i].path);

		assert_int_equal(out.cls, PR_FAIL_HTTP);
		if (out.retry_after_us < cases[i].from * PR_SEC || out.retry_after_us > cases[i].to * PR_SEC)
			fail_msg("%s: %lld us", cases[i].path, (long long)out.retry_after_us);
	}
}

/* The handle is used again: what one answer asked for must not stick to the next. */
static void retry_after_is_forgotten(void **state)
{
	struct rig *r = rig_new("/do");

	(void)state;
	r->conf.handler.concurrency = 1;
	rig_open(r);
	add(r, "a", "{\"status\":503,\"retry\":7}");
	add(r, "b", "{\"status\":503}");
	run(r);
	assert_int_equal(r->out[0].retry_after_us, 7 * PR_SEC);
	expect(&r->out[1], PR_FAIL_HTTP, "503");
	assert_int_equal(r->out[1].retry_after_us, 0);
	rig_free(r);
}

static void late(const char *path, int64_t timeout_us, enum pr_fail_class cls, const char *code)
{
	int64_t since = pr_mono_us();
	struct outcome out = post(path, timeout_us, 64 * 1024);

	expect(&out, cls, code);
	assert_true(pr_mono_us() - since < 20 * PR_SEC);
}

static void a_slow_answer_has_a_deadline(void **state)
{
	(void)state;
	late("/hang", 300 * PR_MS, PR_FAIL_TIMEOUT, "");
	late("/slow-head", 300 * PR_MS, PR_FAIL_TIMEOUT, "");
	late("/slow-body", 300 * PR_MS, PR_FAIL_TIMEOUT, "");
	late("/slow-failure", 2 * PR_SEC, PR_FAIL_HTTP, "500"); /* its status comes within that */
}

static void an_answer_has_a_size(void **state)
{
	int64_t since = pr_mono_us();
	struct outcome out;

	(void)state;
	out = get("/endless");
	expect(&out, PR_FAIL_NONE, "");
	out = get("/big");
	expect(&out, PR_FAIL_NONE, "");
	out = post("/big", 30 * PR_SEC, 64 << 20);
	expect(&out, PR_FAIL_NONE, "");
	out = get("/endless-failure");
	expect(&out, PR_FAIL_HTTP, "418");
	assert_true(strlen(out.text) < sizeof(out.text) - 1);
	out = get("/endless-head");
	expect(&out, PR_FAIL_HTTP, "connect");
	assert_non_null(strstr(out.text, "head of its answer is too long"));
	assert_true(pr_mono_us() - since < 30 * PR_SEC);
}

static void no_answer(void **state)
{
	static const char *const paths[] = { "/reset", "/reset-body", "/short-body", "/garbage", "/nothing" };

	(void)state;
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		struct outcome out = get(paths[i]);

		expect(&out, PR_FAIL_HTTP, "connect");
	}
}

/* A port that was ours a moment ago. */
static int closed_port(void)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(in);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
	(void)close(fd);
	return ntohs(in.sin_port);
}

/* The same failure reads the same each time: people group by it. */
static void nobody_listens(void **state)
{
	int port = closed_port();
	struct outcome out, again;
	char url[64];

	(void)state;
	(void)snprintf(url, sizeof(url), "http://127.0.0.1:%d/do", port);
	out = get(url);
	expect(&out, PR_FAIL_HTTP, "connect");
	again = get(url);
	assert_string_equal(out.text, again.text);
}

/* A listener that never accepts, its queue full: connecting itself takes too long. */
static void a_connection_that_does_not_come(void **state)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fill[8];
	socklen_t len = sizeof(in);
	char url[64];

	(void)state;
	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(listen(fd, 0), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
	for (size_t i = 0; i < 8; i++) {
		fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		(void)connect(fill[i], (struct sockaddr *)&in, len);
	}
	(void)snprintf(url, sizeof(url), "http://127.0.0.1:%d/do", ntohs(in.sin_port));
	late(url, 300 * PR_MS, PR_FAIL_HTTP, "connect");
	for (size_t i = 0; i < 8; i++)
		(void)close(fill[i]);
	(void)close(fd);
}

/* A label of 70 letters: the resolver refuses it without asking anybody. */
static void a_name_that_is_none(void **state)
{
	char url[128] = "http://", *at = url + strlen(url);
	struct outcome out;

	(void)state;
	memset(at, 'a', 70);
	strcpy(at + 70, "/do");
	out = get(url);
	expect(&out, PR_FAIL_HTTP, "dns");
}

static void tls_with_who_speaks_none(void **state)
{
	char url[64];
	struct outcome out;

	(void)state;
	(void)snprintf(url, sizeof(url), "https://127.0.0.1:%d/do", server.port);
	out = get(url);
	expect(&out, PR_FAIL_HTTP, "tls");
}

/* Runs openssl's own server; 0 when there is none. */
static pid_t start_openssl(const char *dir, int port)
{
	char *make = pr_asprintf("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
				 "-days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
				 "-keyout %s/key -out %s/cert >/dev/null 2>&1",
		dir, dir);
	char *cert = pr_asprintf("%s/cert", dir), *key = pr_asprintf("%s/key", dir);
	char at[32];
	pid_t pid = 0;

	(void)snprintf(at, sizeof(at), "127.0.0.1:%d", port);
	if (system(make) == 0 && (pid = fork()) == 0) {
		int null = open("/dev/null", O_RDWR);

		(void)dup2(null, 0);
		(void)dup2(null, 1);
		(void)dup2(null, 2);
		(void)execlp("openssl", "openssl", "s_server", "-accept", at, "-cert", cert, "-key", key,
			"-quiet", "-www", (char *)NULL);
		_exit(127);
	}
	free(make);
	free(cert);
	free(key);
	return pid;
}

static void a_certificate_that_nobody_vouches_for(void **state)
{
	char dir[] = "/tmp/handler-http-XXXXXX", url[64], *clean;
	int port = closed_port();
	struct outcome out = { 0 };
	pid_t pid;

	(void)state;
	assert_non_null(mkdtemp(dir));
	(void)snprintf(url, sizeof(url), "https://127.0.0.1:%d/do", port);
	pid = start_openssl(dir, port);
	for (int i = 0; pid > 0 && i < 500; i++) {
		out = get(url);
		if (strcmp(out.code, "connect") != 0)
			break;
		(void)poll(NULL, 0, 10);
	}
	if (pid > 0) {
		(void)kill(pid, SIGKILL);
		(void)waitpid(pid, NULL, 0);
	}
	clean = pr_asprintf("rm -r %s", dir);
	assert_int_equal(system(clean), 0);
	free(clean);
	if (pid <= 0)
		skip();
	expect(&out, PR_FAIL_HTTP, "tls");
	assert_non_null(strstr(out.text, "certificate"));
}

/* ---------------------------------------------------------------- connections and order */

static void connections_are_kept(void **state)
{
	struct rig *r = rig_open(rig_new("/do"));

	(void)state;
	for (int i = 0; i < 20; i++)
		add(r, "k", "{}");
	run(r);
	run(r);
	assert_int_equal(server.n, 40);
	assert_int_equal(atomic_load(&server.connections), 1);
	rig_free(r);
}

/* The server closes each connection after its answer, without saying so: now and then a request meets the
 * closing, and has to go again on a new one. libcurl does that five times in the life of a handle, so that
 * with one handle for all of a lane's requests every sixth such meeting was a failure. */
static void a_kept_connection_that_was_closed(void **state)
{
	struct rig *r = rig_open(rig_new("/close-later"));

	(void)state;
	for (int i = 0; i < 400; i++)
		add(r, "k", "{}");
	run_all(r);
	rig_free(r);
}

static int offset_of(const struct seen *s)
{
	cJSON *doc = cJSON_Parse(s->body);
	int offset = cJSON_GetObjectItem(doc, "offset")->valueint;

	cJSON_Delete(doc);
	return offset;
}

/* Requests of one key: in order, and each only after the one before was answered. */
static void expect_order(const struct rig *r, const char *key)
{
	const struct seen *before = NULL;
	int offset = -1;

	for (size_t i = 0; i < server.n; i++) {
		const struct seen *s = &server.seen[i];
		int at = offset_of(s);

		if (strcmp(r->m[at].key, key) != 0)
			continue;
		assert_true(at > offset);
		assert_true(!before || before->from_us < s->from_us);
		offset = at;
		before = s;
	}
	assert_true(offset >= 0);
}

static void a_slow_key_holds_up_no_other(void **state)
{
	static const char *const keys[] = { "slow", "b", "c", "d", "e", "f", "g", "h" };
	struct rig *r = rig_open(rig_new("/do"));
	int64_t slow_last = 0, other_last = 0;

	(void)state;
	for (size_t i = 0; i < 64; i++) /* in one round, on a busy machine too */
		add(r, keys[i % 8], i % 8 == 0 ? "{\"wait\":100}" : "{}");
	run(r);
	assert_int_equal(server.n, 64);
	for (size_t i = 0; i < 64; i++)
		expect(&r->out[i], PR_FAIL_NONE, "");
	for (size_t k = 0; k < 8; k++)
		expect_order(r, keys[k]);
	for (size_t i = 0; i < server.n; i++) {
		int64_t *last = offset_of(&server.seen[i]) % 8 == 0 ? &slow_last : &other_last;

		*last = server.seen[i].from_us > *last ? server.seen[i].from_us : *last;
	}
	assert_true(other_last < slow_last);
	assert_true(atomic_load(&server.most_flying) > 1);
	assert_true(atomic_load(&server.most_flying) <= 4);
	assert_true(atomic_load(&server.connections) <= 4);
	rig_free(r);
}

/* The key is topic, partition and bytes; what has no key has no order to keep. */
static void what_is_one_key(void **state)
{
	static const char other[] = "other";
	struct rig *r = rig_open(rig_new("/do"));

	(void)state;
	add(r, "k", "{\"status\":500}");
	add(r, "k", "{}")->topic = other;
	add(r, "k", "{}")->partition = 1;
	add(r, "k", "{}")->key_len = 0; /* an empty key is one */
	add(r, NULL, "{\"status\":500}");
	add(r, NULL, "{}");
	add(r, "", "{}");
	add(r, "k", "{}");
	run(r);
	for (size_t i = 1; i < 7; i++)
		if (i != 4)
			expect(&r->out[i], PR_FAIL_NONE, "");
	expect(&r->out[4], PR_FAIL_HTTP, "500");
	expect(&r->out[7], PR_FAIL_REPLY, "behind");
	rig_free(r);
}

static void one_at_a_time_goes_by_offset(void **state)
{
	static const char *const keys[] = { "a", "b", "c" };
	struct rig *r = rig_new("/do");

	(void)state;
	r->conf.handler.concurrency = 1;
	rig_open(r);
	for (size_t i = 0; i < 24; i++)
		add(r, keys[i * i % 3], "{}");
	run(r);
	assert_int_equal(server.n, 24);
	for (size_t i = 0; i < server.n; i++)
		assert_int_equal(offset_of(&server.seen[i]), i);
	rig_free(r);
}

/* After a failure those of its key are not tried; all other keys are. */
static void a_failure_keeps_its_key_back(void **state)
{
	static const char *const keys[] = { "a", "b", "c" };
	struct rig *r = rig_open(rig_new("/do"));

	(void)state;
	for (size_t i = 0; i < 30; i++)
		add(r, keys[i % 3], i == 6 ? "{\"status\":422}" : "{}");
	run(r);
	for (size_t i = 0; i < 30; i++) {
		if (i == 6)
			expect(&r->out[i], PR_FAIL_HTTP, "422");
		else if (i % 3 == 0 && i > 6)
			expect(&r->out[i], PR_FAIL_REPLY, "behind");
		else
			expect(&r->out[i], PR_FAIL_NONE, "");
	}
	assert_int_equal(server.n, 30 - 7);
	rig_free(r);
}

/* With a receiver that hangs, a run costs one timeout and not one for each key. */
static void a_dead_receiver_is_not_asked_again(void **state)
{
	struct rig *r = rig_new("/hang");
	size_t late_ones = 0;

	(void)state;
	r->conf.handler.timeout_us = 300 * PR_MS;
	rig_open(r);
	for (size_t i = 0; i < 200; i++)
		add(r, NULL, "{}");
	run(r);
	for (size_t i = 0; i < 200; i++) {
		late_ones += r->out[i].cls == PR_FAIL_TIMEOUT;
		if (i >= 8)
			expect(&r->out[i], PR_FAIL_REPLY, "behind");
	}
	assert_true(late_ones >= 4 && late_ones <= 8);
	rig_free(r);
}

/* Hundreds of slow answers: the run ends after a moment with those it has, and each was asked once. */
static void a_slow_receiver_is_asked_in_rounds(void **state)
{
	struct rig *r = rig_new("/do");
	int64_t since = pr_mono_us();
	size_t done = 0;

	(void)state;
	r->conf.handler.concurrency = 2;
	rig_open(r);
	for (size_t i = 0; i < MESSAGES; i++)
		add(r, NULL, "{\"wait\":100}");
	run(r);
	assert_true(pr_mono_us() - since < 15 * PR_SEC);
	while (done < MESSAGES && r->out[done].cls == PR_FAIL_NONE)
		done++;
	assert_true(done >= 4);
	assert_int_equal(server.n, done);
	for (size_t i = done; i < MESSAGES; i++)
		expect(&r->out[i], PR_FAIL_REPLY, "behind");
	rig_free(r);
}

static void *wake_when_asked(void *arg)
{
	struct rig *r = arg;

	wait_for(&server.flying, 4);
	assert_int_equal(eventfd_write(r->wake_fd, 1), 0);
	return NULL;
}

/* What was under way did not fail: a stop must not use up the last of its attempts. */
static void told_to_stop_it_stops_at_once(void **state)
{
	struct rig *r = rig_new("/hang");
	int64_t since;
	pthread_t t;

	(void)state;
	r->conf.handler.timeout_us = 60 * PR_SEC;
	rig_open(r);
	for (size_t i = 0; i < 20; i++)
		add(r, NULL, "{}");
	since = pr_mono_us();
	assert_int_equal(pthread_create(&t, NULL, wake_when_asked, r), 0);
	run(r);
	assert_true(pr_mono_us() - since < 30 * PR_SEC);
	(void)pthread_join(t, NULL);
	for (size_t i = 0; i < 20; i++)
		expect(&r->out[i], PR_FAIL_REPLY, "behind");
	/* And while it is told so, nothing is sent. */
	wait_for(&server.alive, 0);
	run(r);
	assert_int_equal(server.n, 4);
	rig_free(r);
}

/* After a stop, a timeout and a cut answer the instance is as good as new. */
static void an_instance_survives_everything(void **state)
{
	struct rig *r = rig_new("/do");
	uint64_t n;

	(void)state;
	r->conf.handler.timeout_us = 2 * PR_SEC; /* enough for the last one, which is answered */
	rig_open(r);
	add(r, "k", "{\"wait\":60000}");
	run(r);
	expect(&r->out[0], PR_FAIL_TIMEOUT, "");
	assert_int_equal(eventfd_write(r->wake_fd, 1), 0);
	run(r);
	expect(&r->out[0], PR_FAIL_REPLY, "behind");
	assert_int_equal(eventfd_read(r->wake_fd, &n), 0);
	r->n = 0;
	add(r, "k", "{}");
	run(r);
	expect(&r->out[0], PR_FAIL_NONE, "");
	rig_free(r);
}

/* ---------------------------------------------------------------- configuration */

static void refused(const char *url, char *secret, char *header, const char *words)
{
	struct rig *r = rig_new(url);
	struct pr_err err;

	r->conf.handler.secret = secret;
	if (header)
		r->conf.handler.headers = (struct pr_strs){ &header, 1 };
	if (rig_try(r, &err) == 0)
		fail_msg("taken: %s %s %s", url, secret ? secret : "", header ? header : "");
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	if (!strstr(err.text, words))
		fail_msg("\"%s\" does not say \"%s\"", err.text, words);
	assert_null(strstr(err.text, "s3cret"));
	assert_null(strstr(err.hint, "s3cret"));
	rig_free(r);
}

static void bad_config_is_refused(void **state)
{
	static const char *const headers[] = { "Content-Type: text/plain", "content-length: 0",
		"HOST: s3cret", "Webhook-Id: 1", "webhook-anything: 1", "Idempotency-Key: 1", "Expect: x",
		"User-Agent: me", "Transfer-Encoding: chunked", "Proxy-Authorization: s3cret" };
	static const char *const lines[] = { "s3cret", ": s3cret", "X Y: s3cret", "X-Y : s3cret",
		"X: s3cret\r\nY: 1", "X: s3cret\x7f", "" };
	static const char *const secrets[] = { "", " ", "s3cret", "whsec_", "whsec_s3cret",
		"whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw s3cret",
		"whsec_"
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" };
	char text[200];

	(void)state;
	refused("ftp://127.0.0.1/", NULL, NULL, "http://");
	refused("file:///etc/passwd", NULL, NULL, "http://");
	refused("127.0.0.1:80/x", NULL, NULL, "handler.url");
	refused("http://me:s3cret@127.0.0.1/", NULL, NULL, "credentials");
	refused("http://127.0.0.1/#s3cret", NULL, NULL, "fragment");
	refused("http://127.0.0.1/\r\nX: s3cret", NULL, NULL, "handler.url");
	refused("http://", NULL, NULL, "handler.url");
	for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
		(void)snprintf(text, sizeof(text), "%s", headers[i]);
		refused("/do", NULL, text, "is set by the consumer itself");
	}
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		(void)snprintf(text, sizeof(text), "%s", lines[i]);
		refused("/do", NULL, text, "is no header");
	}
	for (size_t i = 0; i < sizeof(secrets) / sizeof(secrets[0]); i++) {
		(void)snprintf(text, sizeof(text), "%s", secrets[i]);
		refused("/do", text, NULL, "handler.secret: ");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_request_carries_the_message, forget),
		cmocka_unit_test_setup(an_undo_has_an_id_of_its_own, forget),
		cmocka_unit_test_setup(ids_that_no_header_can_carry_go_as_uuids, forget),
		cmocka_unit_test_setup(a_bad_traceparent_stays_behind, forget),
		cmocka_unit_test_setup(own_headers_go_along, forget),
		cmocka_unit_test_setup(the_signature_is_the_standards, forget),
		cmocka_unit_test_setup(every_secret_signs_what_is_sent, forget),
		cmocka_unit_test_setup(the_environments_proxy_is_not_used, forget),
		cmocka_unit_test_setup(an_address_of_version_6, forget),
		cmocka_unit_test_setup(a_large_message, forget),
		cmocka_unit_test_setup(statuses, forget),
		cmocka_unit_test_setup(a_failures_body_is_shown_as_text, forget),
		cmocka_unit_test_setup(a_packed_answer_stays_packed, forget),
		cmocka_unit_test_setup(a_redirect_is_not_followed, forget),
		cmocka_unit_test_setup(retry_after, forget),
		cmocka_unit_test_setup(retry_after_is_forgotten, forget),
		cmocka_unit_test_setup(a_slow_answer_has_a_deadline, forget),
		cmocka_unit_test_setup(an_answer_has_a_size, forget),
		cmocka_unit_test_setup(no_answer, forget),
		cmocka_unit_test_setup(nobody_listens, forget),
		cmocka_unit_test_setup(a_connection_that_does_not_come, forget),
		cmocka_unit_test_setup(a_name_that_is_none, forget),
		cmocka_unit_test_setup(tls_with_who_speaks_none, forget),
		cmocka_unit_test_setup(a_certificate_that_nobody_vouches_for, forget),
		cmocka_unit_test_setup(connections_are_kept, forget),
		cmocka_unit_test_setup(a_kept_connection_that_was_closed, forget),
		cmocka_unit_test_setup(a_slow_key_holds_up_no_other, forget),
		cmocka_unit_test_setup(what_is_one_key, forget),
		cmocka_unit_test_setup(one_at_a_time_goes_by_offset, forget),
		cmocka_unit_test_setup(a_failure_keeps_its_key_back, forget),
		cmocka_unit_test_setup(a_dead_receiver_is_not_asked_again, forget),
		cmocka_unit_test_setup(a_slow_receiver_is_asked_in_rounds, forget),
		cmocka_unit_test_setup(told_to_stop_it_stops_at_once, forget),
		cmocka_unit_test_setup(an_instance_survives_everything, forget),
		cmocka_unit_test_setup(bad_config_is_refused, forget),
	};

	return cmocka_run_group_tests(tests, start_server, stop_server);
}
