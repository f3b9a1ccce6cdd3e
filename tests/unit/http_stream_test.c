/* tests/unit/http_stream_test.c -- answers that go on: bytes from several threads in whole pieces, clients
 * that leave or do not read, and the end from either side. */
#include "lib/http.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 100000

static struct {
	pthread_mutex_t mutex;
	struct pr_stream *stream[64];
	int n;
} opened = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static void open_stream(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)ctx;
	(void)req;
	resp->stream = pr_stream_new(MOST);
	resp->content_type = "text/event-stream";
	(void)pthread_mutex_lock(&opened.mutex);
	opened.stream[opened.n++] = resp->stream;
	(void)pthread_mutex_unlock(&opened.mutex);
}

static const struct pr_route routes[] = { { "GET", "/stream", open_stream, NULL, 1, 1 }, { 0 } };

static struct pr_http *serve(void)
{
	struct pr_http_opts opts = { .listen = "127.0.0.1:0", .timeout_s = 1 };
	struct pr_http *http;
	struct pr_err err;

	opened.n = 0;
	if (pr_http_start(&opts, routes, &http, &err) < 0)
		fail_msg("%s", err.text);
	return http;
}

static int count(void)
{
	int n;

	(void)pthread_mutex_lock(&opened.mutex);
	n = opened.n;
	(void)pthread_mutex_unlock(&opened.mutex);
	return n;
}

static int ask(const struct pr_http *http)
{
	static const char text[] = "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)pr_http_port(http)) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), want = count() + 1, have = 0;

	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
	for (int64_t end = pr_mono_us() + 5 * PR_SEC; have < want && pr_mono_us() < end;
		(void)poll(NULL, 0, 1))
		have = count();
	assert_int_equal(have, want);
	return fd;
}

/* What comes until the end of the connection, or until it has `until` in it; chunk heads included. */
static size_t take(int fd, char *buf, size_t size, const char *until)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t n = 0;
	ssize_t got = 1;

	buf[0] = '\0';
	while (got > 0 && n < size - 1 && !(until && strstr(buf, until))) {
		assert_int_equal(poll(&p, 1, 5000), 1);
		got = read(fd, buf + n, size - 1 - n);
		n += got > 0 ? (size_t)got : 0;
		buf[n] = '\0';
	}
	return n;
}

/* It goes on long after a request's time, and ends when its sender says so. */
static void test_goes_on(void **state)
{
	struct pr_http *http = serve();
	int fd = ask(http);
	char buf[4096];

	(void)state;
	assert_int_equal(pr_stream_send(opened.stream[0], "first\n", 6), 0);
	(void)take(fd, buf, sizeof(buf), "first");
	assert_non_null(strstr(buf, "HTTP/1.1 200"));
	assert_non_null(strstr(buf, "Content-Type: text/event-stream"));
	(void)poll(NULL, 0, 3500);
	assert_int_equal(pr_stream_send(opened.stream[0], "second\n", 7), 0);
	(void)take(fd, buf, sizeof(buf), "second");
	assert_int_equal(pr_stream_send(opened.stream[0], "last\n", 5), 0);
	pr_stream_free(opened.stream[0]);
	(void)take(fd, buf, sizeof(buf), NULL);
	assert_non_null(strstr(buf, "last"));
	assert_non_null(strstr(buf, "\r\n0\r\n"));
	(void)close(fd);
	pr_http_stop(http);
}

/* Nobody looks at the socket of a stream that sleeps, and still its end is seen; what is sent then is
 * refused. */
static void test_a_client_leaves(void **state)
{
	struct pr_http *http = serve();
	int fd = ask(http), rc = 0;

	(void)state;
	(void)close(fd);
	for (int64_t end = pr_mono_us() + 5 * PR_SEC; rc == 0 && pr_mono_us() < end; (void)poll(NULL, 0, 5))
		rc = pr_stream_send(opened.stream[0], "", 0);
	assert_int_equal(rc, -1);
	pr_stream_free(opened.stream[0]);
	pr_http_stop(http);
}

/* Beyond its bound, and the kernel's, the stream has ended. */
static void test_a_client_does_not_read(void **state)
{
	static char piece[MOST / 2];
	struct pr_http *http = serve();
	int fd = ask(http), rc = 0;

	(void)state;
	memset(piece, 'x', sizeof(piece));
	for (int64_t end = pr_mono_us() + 10 * PR_SEC; rc == 0 && pr_mono_us() < end;)
		rc = pr_stream_send(opened.stream[0], piece, sizeof(piece));
	assert_int_equal(rc, -1);
	assert_int_equal(pr_stream_send(opened.stream[0], piece, 1), -1);
	pr_stream_free(opened.stream[0]);
	(void)close(fd);
	pr_http_stop(http);
}

static void *send_lines(void *stream)
{
	for (int i = 0; i < 500; i++)
		if (pr_stream_send(stream, "[0123456789]\n", 13) < 0)
			return stream;
	return NULL;
}

/* Pieces of several threads come whole. */
static void test_many_senders(void **state)
{
	static char buf[MOST * 2];
	struct pr_http *http = serve();
	int fd = ask(http), whole = 0;
	pthread_t thread[4];
	void *failed;
	char *to = buf;

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, send_lines, opened.stream[0]), 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(thread[i], &failed), 0);
		assert_null(failed);
	}
	pr_stream_free(opened.stream[0]);
	(void)take(fd, buf, sizeof(buf), NULL);
	/* Without the heads of chunks: "\r\n<hex>\r\n". */
	for (const char *from = strstr(buf, "\r\n\r\n") + 2; *from;) {
		if (strncmp(from, "\r\n", 2) == 0 && strstr(from + 2, "\r\n"))
			from = strstr(from + 2, "\r\n") + 2;
		else
			*to++ = *from++;
	}
	*to = '\0';
	for (const char *p = buf; (p = strstr(p, "[0123456789]\n")); p++)
		whole++;
	assert_int_equal(whole, 2000);
	(void)close(fd);
	pr_http_stop(http);
}

/* The server's end is the end of all, also of those that sleep; their senders hear of it. */
static void test_stop(void **state)
{
	struct pr_http *http = serve();
	int64_t began;
	int fd[20];
	char buf[4096];

	(void)state;
	for (int i = 0; i < 20; i++)
		fd[i] = ask(http);
	began = pr_mono_us();
	pr_http_stop(http);
	assert_true(pr_mono_us() - began < 20 * PR_SEC);
	for (int i = 0; i < 20; i++) {
		(void)take(fd[i], buf, sizeof(buf), NULL);
		(void)close(fd[i]);
		assert_int_equal(pr_stream_send(opened.stream[i], "x", 1), -1);
		pr_stream_free(opened.stream[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_goes_on),
		cmocka_unit_test(test_a_client_leaves),
		cmocka_unit_test(test_a_client_does_not_read),
		cmocka_unit_test(test_many_senders),
		cmocka_unit_test(test_stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
