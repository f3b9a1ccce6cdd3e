/* tests/support/proxy_main.c -- a TCP proxy that does harm at exact places: it knows where
 * a Postgres or Kafka message begins, and which one it is.
 *
 *   proxy PROTOCOL LISTEN_PORT UPSTREAM_PORT CONTROL_SOCKET     PROTOCOL: raw, postgres, kafka
 *
 * Both ports are of 127.0.0.1; LISTEN_PORT 0 takes a free one; "ready PORT" on stdout says
 * which. Commands come as lines on the unix socket, one answer line each (proxy.py):
 *
 *   latency MS | freeze | thaw | refuse on|off | reset | cut | upstream PORT | clear | stats
 *   rule up|down MATCH NTH ACTION
 *     MATCH   any | bytes | kafka:API_KEY | pg:TYPE[:TEXT]   (TEXT: anywhere in the first bytes)
 *     NTH     the n-th match since the rule was set, over all connections; with bytes the n-th byte
 *     ACTION  words joined by "+": drop (swallow the message), hold:MS (it and all behind it go
 *             late, even when the sender has gone), then one of cut (FIN), rst, hole (the connection
 *             stays and nothing passes any more). Without drop the message passes first.
 *
 * Refuses what a test cannot want: other hosts, threads, unbounded buffers. */
#include "lib/clock.h"
#include "lib/err.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define IN_BYTES   65536
#define QUEUE_MAX  (1 << 20) /* bytes on their way in one direction; past it the sender waits */
#define RULES_MAX  16
#define CONNS_MAX  1000
#define PEEK_BYTES 64   /* of a Postgres message's body, to find TEXT in */
#define CORR_SLOTS 4096 /* Kafka requests in flight per connection that we can tell apart */
#define KEYS       256  /* Kafka api keys or Postgres message types counted */

enum protocol { RAW, POSTGRES, KAFKA };
enum dir { UP, DOWN };
enum match { ANY, BYTES, KAFKA_KEY, PG_TYPE };
enum after { NOTHING, CUT, RST, HOLE };

struct rule {
	bool armed, drop;
	enum dir dir;
	enum match match;
	int key;
	char text[PEEK_BYTES];
	int64_t nth, count, hold_us;
	enum after after;
};

struct chunk {
	struct chunk *next;
	int64_t due_us;
	size_t at, len;
	unsigned char data[];
};

/* One direction of a connection: from fd[dir] to fd[!dir]. */
struct flow {
	struct chunk *head, *tail;
	size_t queued;
	bool eof;  /* the sender has ended */
	bool shut; /* ... and the receiver knows */
	unsigned char in[IN_BYTES];
	size_t in_len;
	uint64_t remaining; /* of the message that passes now */
	bool swallow;
	enum after then; /* at the message's end */
	int64_t hold_until_us;
};

struct conn {
	struct conn *next;
	struct end {
		struct conn *c;
		enum dir side;
		uint32_t interest; /* what epoll knows; 0: not registered */
	} end[2];
	int fd[2]; /* client, upstream; -1: gone */
	bool connecting, dead;
	enum after after; /* once what is queued has gone */
	bool typed, raw;  /* Postgres: past the start-up message; TLS */
	int ssl_replies;
	struct flow flow[2];
	struct {
		int32_t id;
		int16_t key;
	} corr[CORR_SLOTS];
};

static struct {
	enum protocol protocol;
	int epoll, listener, control, upstream_port;
	const char *control_path;
	bool frozen, refuse;
	int64_t latency_us;
	struct rule rule[RULES_MAX];
	struct conn *conns;
	int open;
	uint64_t connections, messages[2], bytes[2], by_key[2][KEYS], fired, dropped;
} px;

static volatile sig_atomic_t ended;

static void on_signal(int sig)
{
	(void)sig;
	ended = 1;
}

static uint32_t be32(const unsigned char *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* ---------------------------------------------------------------- the way out */

static void forget_queue(struct flow *f)
{
	struct chunk *k;

	while ((k = f->head)) {
		f->head = k->next;
		free(k);
	}
	f->tail = NULL;
	f->queued = 0;
}

static void close_side(struct conn *c, enum dir side, bool rst)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	if (c->fd[side] < 0)
		return;
	if (rst)
		(void)setsockopt(c->fd[side], SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	else
		(void)shutdown(c->fd[side], SHUT_WR);
	(void)close(c->fd[side]); /* leaves epoll by itself */
	c->fd[side] = -1;
}

static void end_conn(struct conn *c, bool rst)
{
	close_side(c, UP, rst);
	close_side(c, DOWN, rst);
	c->dead = true;
}

/* One socket broke. What it had sent still goes to the other one: a held request
 * reaches its server after the client has given up. */
static void lose_side(struct conn *c, enum dir side)
{
	close_side(c, side, false);
	c->flow[side].eof = true;
	forget_queue(&c->flow[!side]);
}

static void put(struct flow *f, const unsigned char *data, size_t len)
{
	struct chunk *k;
	int64_t due = pr_mono_us() + px.latency_us;

	if (len == 0)
		return;
	if (due < f->hold_until_us)
		due = f->hold_until_us;
	if (f->tail && due < f->tail->due_us)
		due = f->tail->due_us;
	k = pr_malloc(sizeof(*k) + len);
	*k = (struct chunk){ .due_us = due, .len = len };
	memcpy(k->data, data, len);
	if (f->tail)
		f->tail->next = k;
	else
		f->head = k;
	f->tail = k;
	f->queued += len;
}

/* Sends what is due. */
static void flush_flow(struct conn *c, enum dir dir)
{
	struct flow *f = &c->flow[dir];
	struct chunk *k;
	ssize_t n;

	while ((k = f->head) && k->due_us <= pr_mono_us() && c->fd[!dir] >= 0) {
		n = send(c->fd[!dir], k->data + k->at, k->len - k->at, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno != EAGAIN && errno != EINTR)
				lose_side(c, !dir);
			return;
		}
		k->at += (size_t)n;
		f->queued -= (size_t)n;
		if (k->at < k->len)
			return;
		f->head = k->next;
		if (!f->head)
			f->tail = NULL;
		free(k);
	}
}

/* ---------------------------------------------------------------- rules */

static bool has_text(const unsigned char *body, size_t len, const char *text)
{
	return !*text || memmem(body, len, text, strlen(text)) != NULL;
}

static bool rule_matches(const struct rule *r, enum dir dir, int key, const unsigned char *body, size_t len)
{
	if (!r->armed || r->dir != dir)
		return false;
	switch (r->match) {
	case ANY:
		return true;
	case BYTES:
		return false;
	case KAFKA_KEY:
		return r->key == key;
	case PG_TYPE:
		return r->key == key && has_text(body, len, r->text);
	}
	return false;
}

static void fire(struct rule *r, struct flow *f)
{
	r->armed = false;
	px.fired++;
	if (r->hold_us)
		f->hold_until_us = pr_mono_us() + r->hold_us;
	if (r->drop) {
		f->swallow = true;
		px.dropped++;
	}
	if (r->after > f->then)
		f->then = r->after;
}

/* A message of total bytes begins; body is as much of it as has been looked at. */
static void begin_message(
	struct flow *f, enum dir dir, uint64_t total, int key, const unsigned char *body, size_t body_len)
{
	size_t i;

	px.messages[dir]++;
	if (key >= 0 && key < KEYS)
		px.by_key[dir][key]++;
	f->remaining = total;
	f->swallow = false;
	for (i = 0; i < RULES_MAX; i++)
		if (rule_matches(&px.rule[i], dir, key, body, body_len) &&
			++px.rule[i].count == px.rule[i].nth)
			fire(&px.rule[i], f);
}

/* How many of len bytes may pass before a byte rule fires. */
static size_t count_bytes(struct conn *c, enum dir dir, size_t len)
{
	struct rule *r;

	for (r = px.rule; r < px.rule + RULES_MAX; r++) {
		if (!r->armed || r->match != BYTES || r->dir != dir)
			continue;
		if (r->count + (int64_t)len >= r->nth) {
			len = (size_t)(r->nth - r->count);
			fire(r, &c->flow[dir]);
			c->flow[dir].swallow = false;
			c->after = r->after;
		}
		r->count += (int64_t)len;
	}
	return len;
}

/* ---------------------------------------------------------------- frames */

/* Each returns how many bytes of f->in it needs to see more of, or 0 when it has begun a message. */
static size_t begin_kafka(struct conn *c, enum dir dir)
{
	struct flow *f = &c->flow[dir];
	size_t head = dir == UP ? 12 : 8;
	int32_t id;
	int key = -1;

	if (f->in_len < head)
		return head;
	id = (int32_t)be32(f->in + (dir == UP ? 8 : 4));
	if (dir == UP) {
		key = f->in[4] << 8 | f->in[5];
		c->corr[(uint32_t)id % CORR_SLOTS].id = id;
		c->corr[(uint32_t)id % CORR_SLOTS].key = (int16_t)key;
	} else if (c->corr[(uint32_t)id % CORR_SLOTS].id == id) {
		key = c->corr[(uint32_t)id % CORR_SLOTS].key;
	}
	begin_message(f, dir, 4ull + be32(f->in), key, f->in + 4, head - 4);
	return 0;
}

static size_t begin_startup(struct conn *c)
{
	struct flow *f = &c->flow[UP];
	uint32_t code;

	if (f->in_len < 8)
		return 8;
	code = be32(f->in + 4);
	if (code == 80877103 || code == 80877104) /* SSLRequest, GSSENCRequest: answered by one byte */
		c->ssl_replies++;
	else
		c->typed = true;
	begin_message(f, UP, be32(f->in), '~', f->in + 4, 4);
	return 0;
}

static size_t begin_postgres(struct conn *c, enum dir dir)
{
	struct flow *f = &c->flow[dir];
	uint64_t total;
	size_t seen;

	if (dir == UP && !c->typed)
		return begin_startup(c);
	if (dir == DOWN && c->ssl_replies > 0) {
		c->ssl_replies--;
		c->raw = f->in[0] == 'S' || f->in[0] == 'G';
		begin_message(f, DOWN, 1, '~', f->in, 1);
		return 0;
	}
	if (f->in_len < 5)
		return 5;
	total = 1ull + be32(f->in + 1);
	seen = total < 5 + PEEK_BYTES ? (size_t)total : 5 + PEEK_BYTES;
	if (f->in_len < seen)
		return seen;
	begin_message(f, dir, total, f->in[0], f->in + 5, seen < 5 ? 0 : seen - 5);
	return 0;
}

static size_t begin_any(struct conn *c, enum dir dir)
{
	if (px.protocol == KAFKA)
		return begin_kafka(c, dir);
	if (px.protocol == POSTGRES && !c->raw)
		return begin_postgres(c, dir);
	begin_message(&c->flow[dir], dir, c->flow[dir].in_len, -1, c->flow[dir].in, c->flow[dir].in_len);
	return 0;
}

static void consume(struct flow *f, size_t n)
{
	memmove(f->in, f->in + n, f->in_len - n);
	f->in_len -= n;
}

/* Lets through what has been read, message by message, until a rule stops it. */
static void pass(struct conn *c, enum dir dir)
{
	struct flow *f = &c->flow[dir];
	size_t n, allowed;

	while (f->in_len > 0 && c->after == NOTHING) {
		if (f->remaining == 0 && begin_any(c, dir) > 0)
			break;
		n = f->remaining < f->in_len ? (size_t)f->remaining : f->in_len;
		allowed = count_bytes(c, dir, n);
		px.bytes[dir] += allowed;
		if (!f->swallow)
			put(f, f->in, allowed);
		consume(f, n);
		f->remaining -= n;
		if (f->remaining == 0 && f->then != NOTHING)
			c->after = f->then;
	}
	/* The end of the stream inside a header: nothing to understand any more. */
	if (f->eof && f->in_len > 0 && c->after == NOTHING) {
		put(f, f->in, f->in_len);
		f->in_len = 0;
	}
}

static void receive(struct conn *c, enum dir dir)
{
	struct flow *f = &c->flow[dir];
	ssize_t n = recv(c->fd[dir], f->in + f->in_len, sizeof(f->in) - f->in_len, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0)
		lose_side(c, dir);
	else if (n == 0)
		f->eof = true;
	else
		f->in_len += (size_t)n;
	pass(c, dir);
}

/* ---------------------------------------------------------------- connections */

static int tcp_socket(void)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd >= 0) {
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	return fd;
}

static struct sockaddr_in loopback(int port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET,
		.sin_port = htons((uint16_t)port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static void accept_one(void)
{
	struct sockaddr_in to = loopback(px.upstream_port);
	int one = 1, fd = accept4(px.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct conn *c;

	if (fd < 0)
		return;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	c = pr_calloc(1, sizeof(*c));
	*c = (struct conn){ .fd = { fd, tcp_socket() }, .connecting = true, .next = px.conns };
	memset(c->corr, 0xff, sizeof(c->corr));
	c->end[UP] = (struct end){ .c = c, .side = UP };
	c->end[DOWN] = (struct end){ .c = c, .side = DOWN };
	px.conns = c;
	px.open++;
	px.connections++;
	if (px.refuse || px.open > CONNS_MAX || c->fd[DOWN] < 0 ||
		(connect(c->fd[DOWN], (struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS))
		end_conn(c, true);
}

/* Nothing is queued any more: does what the rule said, or passes on an end of stream. */
static void settle_conn(struct conn *c)
{
	struct flow *f;
	int dir;

	if (c->after != NOTHING) {
		if (c->after != HOLE && !c->flow[UP].head && !c->flow[DOWN].head)
			end_conn(c, c->after == RST);
		return;
	}
	for (dir = UP; dir <= DOWN; dir++) {
		f = &c->flow[dir];
		if (!f->eof || f->head || f->shut)
			continue;
		f->shut = true;
		if (c->fd[dir] < 0)
			close_side(c, !dir, false);
		else if (c->fd[!dir] >= 0)
			(void)shutdown(c->fd[!dir], SHUT_WR);
	}
	if ((c->flow[UP].shut && c->flow[DOWN].shut) || (c->fd[UP] < 0 && c->fd[DOWN] < 0))
		end_conn(c, false);
}

static uint32_t wanted(const struct conn *c, enum dir side)
{
	const struct flow *from = &c->flow[side], *to = &c->flow[!side];
	uint32_t want = 0;

	if (px.frozen || c->fd[side] < 0)
		return 0;
	if (c->connecting)
		return side == DOWN ? EPOLLOUT : 0;
	if (!from->eof && c->after == NOTHING && from->queued < QUEUE_MAX && from->in_len < sizeof(from->in))
		want |= EPOLLIN;
	if (to->head && to->head->due_us <= pr_mono_us())
		want |= EPOLLOUT;
	return want;
}

/* Tells epoll what a socket waits for. One that waits for nothing is taken out: epoll
 * would report its hang-up for ever. */
static void watch(struct conn *c, enum dir side)
{
	struct end *e = &c->end[side];
	struct epoll_event ev = { .events = wanted(c, side), .data.ptr = e };

	if (c->fd[side] < 0 || ev.events == e->interest)
		return;
	(void)epoll_ctl(px.epoll,
		!e->interest ? EPOLL_CTL_ADD
		: !ev.events ? EPOLL_CTL_DEL
			     : EPOLL_CTL_MOD,
		c->fd[side], &ev);
	e->interest = ev.events;
}

static void on_event(struct end *e, uint32_t events)
{
	struct conn *c = e->c;
	int error = 0;
	socklen_t len = sizeof(error);

	if (c->dead || c->fd[e->side] < 0)
		return;
	if (c->connecting) {
		(void)getsockopt(c->fd[DOWN], SOL_SOCKET, SO_ERROR, &error, &len);
		if (error)
			end_conn(c, true);
		c->connecting = false;
		return;
	}
	if (events & EPOLLIN)
		receive(c, e->side);
	else if (events & (EPOLLERR | EPOLLHUP))
		lose_side(c, e->side);
}

static void tend_conn(struct conn *c, int64_t now, int64_t *next)
{
	const struct chunk *k;
	int dir;

	if (c->dead || c->connecting || px.frozen)
		return;
	for (dir = UP; dir <= DOWN; dir++) {
		flush_flow(c, dir);
		k = c->flow[dir].head;
		if (k && k->due_us > now && k->due_us < *next)
			*next = k->due_us;
	}
	settle_conn(c);
}

/* After each round: sends what is due, settles, watches, buries the dead. Returns when
 * the next chunk is due; one that was due and did not fit waits for EPOLLOUT. */
static int64_t tend(void)
{
	struct conn **at = &px.conns, *c;
	int64_t now = pr_mono_us(), next = PR_FOREVER;

	while ((c = *at)) {
		tend_conn(c, now, &next);
		if (c->dead) {
			*at = c->next;
			forget_queue(&c->flow[UP]);
			forget_queue(&c->flow[DOWN]);
			free(c);
			px.open--;
			continue;
		}
		watch(c, UP);
		watch(c, DOWN);
		at = &c->next;
	}
	return next;
}

static void end_all(bool rst, bool only_holes)
{
	struct conn *c;

	for (c = px.conns; c; c = c->next)
		if (!only_holes || c->after == HOLE)
			end_conn(c, rst);
}

/* ---------------------------------------------------------------- control */

static const char *parse_match(char *word, struct rule *r)
{
	char *text;

	if (strcmp(word, "any") == 0) {
		r->match = ANY;
	} else if (strcmp(word, "bytes") == 0) {
		r->match = BYTES;
	} else if (strncmp(word, "kafka:", 6) == 0 && px.protocol == KAFKA) {
		r->match = KAFKA_KEY;
		r->key = atoi(word + 6);
	} else if (strncmp(word, "pg:", 3) == 0 && word[3] && px.protocol == POSTGRES) {
		r->match = PG_TYPE;
		r->key = word[3];
		text = word[4] == ':' ? word + 5 : word + 4;
		if (strlen(text) >= sizeof(r->text))
			return "text too long";
		(void)snprintf(r->text, sizeof(r->text), "%s", text);
	} else {
		return "no such match in this protocol";
	}
	return NULL;
}

static const char *parse_action(char *words, struct rule *r)
{
	char *save = NULL, *w;

	for (w = strtok_r(words, "+", &save); w; w = strtok_r(NULL, "+", &save)) {
		if (strcmp(w, "drop") == 0)
			r->drop = true;
		else if (strncmp(w, "hold:", 5) == 0)
			r->hold_us = atoll(w + 5) * PR_MS;
		else if (strcmp(w, "cut") == 0)
			r->after = CUT;
		else if (strcmp(w, "rst") == 0)
			r->after = RST;
		else if (strcmp(w, "hole") == 0)
			r->after = HOLE;
		else
			return "no such action";
	}
	if (r->match == BYTES && r->after == NOTHING)
		return "bytes needs cut, rst or hole";
	return NULL;
}

static const char *add_rule(char *args)
{
	char *save = NULL, *dir = strtok_r(args, " ", &save), *match = strtok_r(NULL, " ", &save);
	char *nth = strtok_r(NULL, " ", &save), *action = strtok_r(NULL, " ", &save);
	struct rule r = { .armed = true };
	const char *wrong;
	size_t i;

	if (!action || strtok_r(NULL, " ", &save))
		return "usage: rule up|down MATCH NTH ACTION";
	if (strcmp(dir, "up") != 0 && strcmp(dir, "down") != 0)
		return "direction is up or down";
	r.dir = strcmp(dir, "up") == 0 ? UP : DOWN;
	r.nth = atoll(nth);
	if (r.nth < 1)
		return "NTH counts from 1";
	wrong = parse_match(match, &r);
	if (!wrong)
		wrong = parse_action(action, &r);
	if (wrong)
		return wrong;
	for (i = 0; i < RULES_MAX; i++) {
		if (!px.rule[i].armed) {
			px.rule[i] = r;
			return NULL;
		}
	}
	return "too many rules";
}

static void print_stats(FILE *out)
{
	int dir, key;

	(void)fprintf(out, "connections=%llu open=%d fired=%llu dropped=%llu",
		(unsigned long long)px.connections, px.open, (unsigned long long)px.fired,
		(unsigned long long)px.dropped);
	for (dir = UP; dir <= DOWN; dir++) {
		(void)fprintf(out, " %s.messages=%llu %s.bytes=%llu", dir ? "down" : "up",
			(unsigned long long)px.messages[dir], dir ? "down" : "up",
			(unsigned long long)px.bytes[dir]);
		for (key = 0; key < KEYS; key++)
			if (px.by_key[dir][key])
				(void)fprintf(out, " %s.%d=%llu", dir ? "down" : "up", key,
					(unsigned long long)px.by_key[dir][key]);
	}
	(void)fputc('\n', out);
}

/* Returns what is wrong with the command, or NULL. */
static const char *command(char *line)
{
	char *arg = strchr(line, ' ');

	if (arg)
		*arg++ = '\0';
	if (strcmp(line, "rule") == 0 && arg)
		return add_rule(arg);
	if (strcmp(line, "latency") == 0 && arg)
		px.latency_us = atoll(arg) * PR_MS;
	else if (strcmp(line, "freeze") == 0 || strcmp(line, "thaw") == 0)
		px.frozen = line[0] == 'f';
	else if (strcmp(line, "refuse") == 0 && arg)
		px.refuse = strcmp(arg, "on") == 0;
	else if (strcmp(line, "reset") == 0)
		end_all(true, false);
	else if (strcmp(line, "cut") == 0)
		end_all(false, false);
	else if (strcmp(line, "upstream") == 0 && arg)
		px.upstream_port = atoi(arg);
	else if (strcmp(line, "clear") == 0) {
		memset(px.rule, 0, sizeof(px.rule));
		px.latency_us = 0;
		px.frozen = px.refuse = false;
		end_all(true, true);
	} else {
		return "no such command";
	}
	return NULL;
}

/* One test driver, one line, one answer: served at once, within a second. */
static void serve_control(void)
{
	struct timeval second = { .tv_sec = 1 };
	int fd = accept4(px.control, NULL, NULL, SOCK_CLOEXEC);
	const char *wrong;
	char line[512];
	ssize_t n;
	FILE *out;

	if (fd < 0)
		return;
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
	n = recv(fd, line, sizeof(line) - 1, 0); /* the driver sends its line at once */
	out = n > 0 ? fdopen(fd, "w") : NULL;
	if (!out) {
		(void)close(fd);
		return;
	}
	line[n] = '\0';
	line[strcspn(line, "\n")] = '\0';
	wrong = strcmp(line, "stats") == 0 ? NULL : command(line);
	if (strcmp(line, "stats") == 0)
		print_stats(out);
	else if (wrong)
		(void)fprintf(out, "error: %s\n", wrong);
	else
		(void)fputs("ok\n", out);
	(void)fclose(out);
}

/* ---------------------------------------------------------------- start and end */

static int die(const char *what)
{
	(void)fprintf(stderr, "proxy: %s: %s\n", what, strerror(errno));
	return PR_EX_FAILED;
}

static int add_listener(int fd, void *mark)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = mark };

	return listen(fd, 128) < 0 ? -1 : epoll_ctl(px.epoll, EPOLL_CTL_ADD, fd, &ev);
}

static int open_listeners(int port)
{
	struct sockaddr_in at = loopback(port);
	struct sockaddr_un where = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(at);

	if (strlen(px.control_path) >= sizeof(where.sun_path)) {
		errno = ENAMETOOLONG;
		return die(px.control_path);
	}
	(void)snprintf(where.sun_path, sizeof(where.sun_path), "%s", px.control_path);
	px.epoll = epoll_create1(EPOLL_CLOEXEC);
	px.listener = tcp_socket();
	px.control = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (px.epoll < 0 || px.listener < 0 || px.control < 0)
		return die("socket");
	if (bind(px.listener, (struct sockaddr *)&at, sizeof(at)) < 0 ||
		add_listener(px.listener, &px.listener) < 0)
		return die("listen");
	if (bind(px.control, (struct sockaddr *)&where, sizeof(where)) < 0 ||
		add_listener(px.control, &px.control) < 0)
		return die(px.control_path);
	if (getsockname(px.listener, (struct sockaddr *)&at, &len) < 0)
		return die("getsockname");
	(void)printf("ready %d\n", ntohs(at.sin_port));
	return fflush(stdout) == 0 ? 0 : die("stdout");
}

/* The signals are let in only while we wait: one that came just before would else be slept over. */
static void run(const sigset_t *while_waiting)
{
	struct epoll_event ev[64];
	int64_t next;
	int i, n;

	while (!ended) {
		next = tend();
		n = epoll_pwait(px.epoll, ev, 64, pr_until_ms(next), while_waiting);
		for (i = 0; i < n; i++) {
			if (ev[i].data.ptr == &px.listener)
				accept_one();
			else if (ev[i].data.ptr == &px.control)
				serve_control();
			else
				on_event(ev[i].data.ptr, ev[i].events);
		}
	}
}

int main(int argc, char **argv)
{
	struct sigaction end = { .sa_handler = on_signal };
	sigset_t ends, before;
	int rc;

	if (argc != 5) {
		(void)fputs(
			"usage: proxy raw|postgres|kafka LISTEN_PORT UPSTREAM_PORT CONTROL_SOCKET\n", stderr);
		return PR_EX_USAGE;
	}
	(void)sigemptyset(&ends);
	(void)sigaddset(&ends, SIGTERM);
	(void)sigaddset(&ends, SIGINT);
	(void)sigprocmask(SIG_BLOCK, &ends, &before);
	(void)sigaction(SIGTERM, &end, NULL);
	(void)sigaction(SIGINT, &end, NULL);
	px.protocol = strcmp(argv[1], "kafka") == 0      ? KAFKA
		      : strcmp(argv[1], "postgres") == 0 ? POSTGRES
							 : RAW;
	px.upstream_port = atoi(argv[3]);
	px.control_path = argv[4];
	rc = open_listeners(atoi(argv[2]));
	if (rc == 0)
		run(&before);
	end_all(true, false);
	(void)tend();
	(void)unlink(px.control_path);
	return rc;
}
