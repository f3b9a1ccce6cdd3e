/* bench/ask_main.c -- asks a service over HTTP: `ask PORT CONNECTIONS RATE FILE [ANSWERS]`. Each line of FILE
 * is a request, "METHOD TAB PATH TAB TOKEN TAB BODY", asked once. RATE: requests begun a second, whatever the
 * answers do, and a request's time runs from the moment it was due; 0: each connection asks again as soon as
 * it was answered. Prints one line of JSON: answers by status, seconds, and the milliseconds of 50, 99, 99.9
 * and 100 percent. ANSWERS gets "NUMBER TAB STATUS TAB BODY" of each. Refuses to talk to anything but
 * loopback, and to follow or repeat anything. */
#include "lib/clock.h"
#include "lib/err.h"
#include "lib/json.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LONGEST_US (60 * PR_SEC) /* nothing came for so long: it will not come */

struct request {
	char *text;
	size_t len;
	int64_t took_us;
	int status;
};

struct conn {
	int fd;
	long at; /* its request, -1: idle */
	int64_t due_us;
	size_t sent;
	struct pr_buf in;
	int want_out;
};

static struct request *requests;
static struct conn *conns;
static long count, next_one, done;
static int port, epoll_fd, idle_first = -1, *idle_next;
static FILE *answers;
static const char *host_line;

/* ---- what is asked ---- */

static char *field(char **line)
{
	char *begin = *line, *tab = strchr(begin, '\t');

	*line = tab ? tab + 1 : begin + strlen(begin);
	if (tab)
		*tab = '\0';
	return begin;
}

static void add(char *line)
{
	char *method = field(&line), *path = field(&line), *token = field(&line), *body = line;
	struct request *r;

	if ((count & (count - 1)) == 0)
		requests = pr_realloc(requests, (size_t)(count ? 2 * count : 1) * sizeof(*requests));
	r = &requests[count++];
	*r = (struct request){ .status = 0 };
	r->text = pr_asprintf("%s %s HTTP/1.1\r\n%s%s%s%s%sContent-Length: %zu\r\n\r\n%s", method, path,
		host_line, *token ? "Authorization: Bearer " : "", token, *token ? "\r\n" : "",
		*body ? "Content-Type: application/json\r\n" : "", strlen(body), body);
	r->len = strlen(r->text);
}

static void read_requests(const char *name)
{
	FILE *f = fopen(name, "r");
	char *line = NULL;
	size_t room = 0;
	ssize_t n;

	if (!f) {
		perror(name);
		exit(PR_EX_USAGE);
	}
	while ((n = getline(&line, &room, f)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		add(line);
	}
	free(line);
	(void)fclose(f);
}

/* ---- connections ---- */

static void watch(struct conn *c, int op, int out)
{
	struct epoll_event e = { .events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c };

	c->want_out = out;
	(void)epoll_ctl(epoll_fd, op, c->fd, &e);
}

static int dial(struct conn *c)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1;

	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&in, sizeof(in)) < 0)
		return -1;
	(void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	(void)fcntl(c->fd, F_SETFL, O_NONBLOCK);
	watch(c, EPOLL_CTL_ADD, 0);
	return 0;
}

static void make_idle(struct conn *c)
{
	int i = (int)(c - conns);

	c->at = -1;
	idle_next[i] = idle_first;
	idle_first = i;
}

static void push(struct conn *c)
{
	struct request *r = &requests[c->at];

	while (c->sent < r->len) {
		ssize_t n = send(c->fd, r->text + c->sent, r->len - c->sent, MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n < 0)
			return; /* the end of the stream tells */
		c->sent += (size_t)n;
	}
	if (c->want_out != (c->sent < r->len))
		watch(c, EPOLL_CTL_MOD, c->sent < r->len);
}

static void begin(struct conn *c, int64_t due_us)
{
	c->at = next_one++;
	c->due_us = due_us;
	c->sent = 0;
	c->in.len = 0;
	push(c);
}

static void finish(struct conn *c, int status, const char *body)
{
	struct request *r = &requests[c->at];

	r->status = status;
	r->took_us = pr_mono_us() - c->due_us;
	if (answers)
		(void)fprintf(answers, "%ld\t%d\t%.*s\n", c->at, status, (int)strcspn(body, "\n"), body);
	done++;
	make_idle(c);
}

static void lost(struct conn *c)
{
	(void)close(c->fd);
	if (c->at >= 0)
		finish(c, 0, "");
	c->in.len = 0;
	if (dial(c) < 0)
		exit(PR_EX_UNAVAILABLE);
}

/* A whole answer, its length said in its head. */
static void look(struct conn *c)
{
	char *end = c->in.s ? strstr(c->in.s, "\r\n\r\n") : NULL, *length;
	size_t want;

	if (!end || c->at < 0)
		return;
	length = strcasestr(c->in.s, "\r\nContent-Length:");
	want = (size_t)(end - c->in.s) + 4 + (length && length < end ? strtoul(length + 17, NULL, 10) : 0);
	if (c->in.len < want)
		return;
	finish(c, c->in.len > 12 ? atoi(c->in.s + 9) : 0, end + 4);
	c->in.len = 0;
	if (strcasestr(c->in.s, "\r\nConnection: close"))
		lost(c);
}

static void pull(struct conn *c)
{
	char buf[65536];
	ssize_t n = recv(c->fd, buf, sizeof(buf), 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		lost(c);
		return;
	}
	pr_buf_put(&c->in, buf, (size_t)n);
	look(c);
}

/* ---- the run ---- */

/* Begins what is due; the time until the next is, in ms. */
static int start_due(int64_t began_us, double rate)
{
	while (idle_first >= 0 && next_one < count) {
		int64_t now = pr_mono_us(),
			due = rate > 0 ? began_us + (int64_t)((double)next_one * 1e6 / rate) : now;
		struct conn *c = &conns[idle_first];

		if (due > now)
			return (int)((due - now) / 1000);
		idle_first = idle_next[idle_first];
		begin(c, due);
	}
	return 100;
}

static void run(double rate)
{
	int64_t began_us = pr_mono_us(), heard_us = began_us;
	struct epoll_event events[256];

	while (done < count && pr_mono_us() - heard_us < LONGEST_US) {
		int wait_ms = start_due(began_us, rate), n = epoll_wait(epoll_fd, events, 256, wait_ms);

		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			heard_us = pr_mono_us();
			if (events[i].events & EPOLLOUT && c->at >= 0)
				push(c);
			if (events[i].events & ~(unsigned)EPOLLOUT)
				pull(c);
		}
	}
}

static int by_time(const void *a, const void *b)
{
	const struct request *x = a, *y = b;

	return (x->took_us > y->took_us) - (x->took_us < y->took_us);
}

static double at(double share)
{
	long i = (long)(share * (double)(count - 1));

	return (double)requests[i].took_us / 1000;
}

static void report(int64_t took_us)
{
	int statuses[600] = { 0 };

	for (long i = 0; i < count; i++)
		statuses[requests[i].status % 600]++;
	qsort(requests, (size_t)count, sizeof(*requests), by_time);
	(void)printf("{\"seconds\": %.3f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, \"max_ms\": "
		     "%.3f, \"statuses\": {",
		(double)took_us / 1e6, at(0.5), at(0.99), at(0.999), at(1));
	for (int i = 0, first = 1; i < 600; i++)
		if (statuses[i]) {
			(void)printf("%s\"%d\": %d", first ? "" : ", ", i, statuses[i]);
			first = 0;
		}
	(void)printf("}}\n");
}

int main(int argc, char **argv)
{
	int n = argc > 2 ? atoi(argv[2]) : 0;
	int64_t began_us;

	if (argc < 5 || n < 1 || (port = atoi(argv[1])) < 1) {
		(void)fprintf(stderr, "usage: ask PORT CONNECTIONS RATE FILE [ANSWERS]\n");
		return PR_EX_USAGE;
	}
	host_line = pr_asprintf("Host: 127.0.0.1:%d\r\n", port);
	read_requests(argv[4]);
	answers = argc > 5 ? fopen(argv[5], "w") : NULL;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	conns = pr_calloc((size_t)n, sizeof(*conns));
	idle_next = pr_calloc((size_t)n, sizeof(*idle_next));
	for (int i = 0; i < n; i++) {
		if (dial(&conns[i]) < 0) {
			perror("connect");
			return PR_EX_UNAVAILABLE;
		}
		make_idle(&conns[i]);
	}
	began_us = pr_mono_us();
	run(atof(argv[3]));
	report(pr_mono_us() - began_us);
	if (answers)
		(void)fclose(answers);
	return done == count ? 0 : PR_EX_FAILED;
}
