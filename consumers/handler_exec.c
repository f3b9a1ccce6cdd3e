/* consumers/handler_exec.c -- messages as lines of JSON to one long-lived subprocess per lane, one answer
 * line per message. Refuses to guess: whatever is no answer to a message in flight ends the process.
 *
 * A message is, in this order: waiting (for the answer to the one before it of its key), ready, in flight
 * (written, or in the buffer to be), done. At most handler.concurrency are in flight, in the order sent;
 * answers come in any order. The clock of handler.timeout runs for the oldest in flight only, from when it
 * became that, so that a process that works one by one has the whole of it for each.
 *
 * When the process is lost (deadline, garbage, exit), the oldest in flight is to blame and all that is not
 * done fails as "behind". Lost with nothing in flight: nobody is to blame, another one is started. A start
 * after a loss waits by backoff; the first answer resets it.
 *
 * If the process does its work and we die before the offset commits, the message comes again: its id is
 * what the process must look at. The program that links this ignores SIGPIPE. */
#include "consumers/handler.h"
#include "consumers/outcome.h"
#include "consumers/subprocess.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/uuid.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STARTS_TO_SHOW (200 * PR_MS) /* a process that ends within it never started */
#define CLOSE_GRACE    (1 * PR_SEC)
#define HANGUP_GRACE   (1 * PR_SEC) /* from a closed pipe to the exit that explains it */
#define BACKOFF        (100 * PR_MS)
#define BACKOFF_MAX    (10 * PR_SEC)
#define TICK           (50 * PR_MS)  /* without pidfd */
#define WRITE_AHEAD    (256 * 1024)  /* lines are made when less than this is waiting to be written */
#define READS          16            /* of 16 kB, per turn */
#define RETRY_AFTER    (24 * 3600.0) /* s; what is asked for beyond it is cut */
#define NONE           SIZE_MAX

struct handler {
	struct handler_env env;
	const struct pr_consumer_conf *conf;
	int lane, wake_fd;
	struct subprocess p;
	char **argv;
	char *env_lane, *env_group;
	struct pr_buf to;   /* lines for it; to_done bytes are written */
	struct pr_buf from; /* what is not yet a line; from_seen bytes have no newline */
	size_t to_done, from_seen;
	struct pr_buf scratch, scratch_error;
	unsigned losses;   /* since the last answer */
	int64_t start_us;  /* not before */
	int64_t hangup_us; /* it closed a pipe: it has until then to exit; 0: it has not */
	int stale;         /* answers to a run that was given up may come: it must go */
};

struct run {
	struct handler *h;
	const char *op;
	struct message *const *m;
	size_t n, left;
	struct outcome *out;
	unsigned char *done;
	size_t *next;   /* the next of the same key, NONE: none */
	size_t *ready;  /* a queue: [ready_head, ready_tail) */
	size_t *flight; /* oldest first */
	size_t ready_head, ready_tail, flight_n, flight_max;
	int64_t oldest_us; /* since when flight[0] is the oldest */
	int lost_idle;     /* once already, without an answer since */
	int stops;         /* we were told to: what is in flight has until end_us */
	int64_t end_us;
};

struct answer {
	char id[sizeof(((struct message *)0)->id_text)];
	int has_id, id_null, ok, has_error;
	char code[32], text[600];
	double retry_after;
	struct pr_buf *scratch;
};

/* ---------------------------------------------------------------- keys */

static uint64_t key_hash(const struct message *m)
{
	uint64_t h = 0xcbf29ce484222325ULL; /* FNV-1a */

	for (size_t i = 0; i < m->key_len; i++)
		h = (h ^ (unsigned char)m->key[i]) * 0x100000001b3ULL;
	return h ^ h >> 32;
}

static int same_key(const struct message *a, const struct message *b)
{
	return a->key_len == b->key_len && memcmp(a->key, b->key, a->key_len) == 0;
}

/* Links the messages of one key; the first of each, and those without key, are ready. */
static void link_keys(struct run *r)
{
	size_t size = 16, *last;

	while (size < 2 * r->n)
		size *= 2;
	last = pr_malloc(size * sizeof(*last));
	memset(last, 0xff, size * sizeof(*last));
	for (size_t i = 0; i < r->n; i++) {
		size_t at;

		r->next[i] = NONE;
		if (!r->m[i]->key) {
			r->ready[r->ready_tail++] = i;
			continue;
		}
		at = key_hash(r->m[i]) & (size - 1);
		while (last[at] != NONE && !same_key(r->m[last[at]], r->m[i]))
			at = (at + 1) & (size - 1);
		if (last[at] == NONE)
			r->ready[r->ready_tail++] = i;
		else
			r->next[last[at]] = i;
		last[at] = i;
	}
	free(last);
}

/* ---------------------------------------------------------------- what became of them */

static void run_begin(struct run *r)
{
	size_t most = (size_t)(r->h->conf->handler.concurrency > 0 ? r->h->conf->handler.concurrency : 1);

	r->left = r->n;
	r->flight_max = most < r->n ? most : r->n;
	r->done = pr_calloc(r->n, 1);
	r->next = pr_calloc(r->n, sizeof(*r->next));
	r->ready = pr_calloc(r->n, sizeof(*r->ready));
	r->flight = pr_calloc(r->flight_max, sizeof(*r->flight));
	link_keys(r);
}

static void run_end(struct run *r)
{
	free(r->done);
	free(r->next);
	free(r->ready);
	free(r->flight);
}

static void set_done(struct run *r, size_t i)
{
	r->done[i] = 1;
	r->left--;
}

static void handled(struct run *r, size_t i)
{
	set_done(r, i);
	if (r->next[i] != NONE)
		r->ready[r->ready_tail++] = r->next[i];
}

/* out[i] says why; those behind it on its key are not tried. */
static void failed(struct run *r, size_t i)
{
	set_done(r, i);
	for (size_t j = r->next[i]; j != NONE; j = r->next[j]) {
		outcome_behind(&r->out[j]);
		set_done(r, j);
	}
}

/* Ends the run: the oldest in flight, else the first that is not done, failed for this reason. */
static void blame(struct run *r, const struct outcome *why)
{
	size_t guilty = r->flight_n > 0 ? r->flight[0] : 0;

	while (r->done[guilty])
		guilty++;
	r->out[guilty] = *why;
	set_done(r, guilty);
	for (size_t i = 0; i < r->n && r->left > 0; i++) {
		if (r->done[i])
			continue;
		outcome_behind(&r->out[i]);
		set_done(r, i);
	}
	r->flight_n = 0;
}

/* Nothing more is begun. */
static void stop_begins(struct run *r)
{
	r->stops = 1;
	r->end_us = handler_end_us(&r->h->env);
}

static void interrupted(struct run *r)
{
	for (size_t i = 0; i < r->n && r->left > 0; i++) {
		if (r->done[i])
			continue;
		outcome_behind(&r->out[i]); /* a stop is no failed try of it */
		set_done(r, i);
	}
	r->h->stale |= r->flight_n > 0 || r->h->to_done < r->h->to.len;
	r->flight_n = 0;
}

/* ---------------------------------------------------------------- the process comes and goes */

static int start(struct handler *h, struct pr_err *err)
{
	const char *env[] = { h->env_lane, h->env_group, NULL };

	h->to.len = h->to_done = 0;
	h->from.len = h->from_seen = 0;
	h->hangup_us = 0;
	h->stale = 0;
	return subprocess_start(&h->p, h->argv, env, err);
}

static void back_off(struct handler *h)
{
	int64_t most = h->conf->handler.timeout_us < BACKOFF_MAX ? h->conf->handler.timeout_us : BACKOFF_MAX;

	/* The first after an answer costs nothing: some processes end by themselves after so many messages.
	 */
	h->start_us = h->losses == 0 ? 0 : pr_mono_us() + pr_backoff_us(h->losses - 1, BACKOFF, most);
	if (h->losses < 16)
		h->losses++;
}

/* The process is of no use any more. Kills it, and blames, or, once, starts over. */
static void lost(struct run *r, const struct outcome *why)
{
	struct handler *h = r->h;

	subprocess_stop(&h->p, 0);
	back_off(h);
	pr_log(PR_WARN, "handler's process lost", KI("lane", h->lane),
		KS("class", pr_fail_class_str(why->cls)), KS("code", why->code), KS("why", why->text));
	if (r->left == 0)
		return;
	if (r->flight_n == 0 && !r->lost_idle)
		r->lost_idle = 1;
	else
		blame(r, why);
}

static void garbage(struct run *r, const char *what, const char *line, size_t len)
{
	struct outcome why;

	if (line)
		outcome_fail(&why, PR_FAIL_REPLY, "garbage", "the handler's process wrote %s: %.*s", what,
			(int)(len < 200 ? len : 200), line);
	else
		outcome_fail(&why, PR_FAIL_REPLY, "garbage", "the handler's process %s", what);
	lost(r, &why);
}

static void exited(struct run *r, int status)
{
	struct handler *h = r->h;
	const char *last = h->p.said.last;
	struct outcome why;
	char code[32];

	subprocess_said(&h->p);
	if (status >= 0) {
		(void)snprintf(code, sizeof(code), "%d", status);
		outcome_fail(&why, PR_FAIL_EXIT, code, "the handler's process exited with status %d%s%s",
			status, *last ? ": " : "", last);
	} else {
		(void)snprintf(code, sizeof(code), "signal:%d", -status);
		outcome_fail(&why, PR_FAIL_EXIT, code,
			"the handler's process was killed by signal %d (%s)%s%s", -status, strsignal(-status),
			*last ? ": " : "", last);
	}
	lost(r, &why);
}

static void timed_out(struct run *r)
{
	struct outcome why;

	outcome_fail(&why, PR_FAIL_TIMEOUT, "", "the handler's process did not answer in %.3f s",
		(double)r->h->conf->handler.timeout_us / PR_SEC);
	lost(r, &why);
}

/* 1: woken. */
static int wait_until(int wake_fd, int64_t deadline)
{
	struct pollfd p = { .fd = wake_fd, .events = POLLIN };
	int n;

	do
		n = poll(&p, 1, pr_until_ms(deadline));
	while (n < 0 && errno == EINTR);
	return n > 0;
}

static void start_failed(struct run *r, const struct pr_err *err)
{
	struct outcome why;

	outcome_fail(&why, PR_FAIL_EXIT, "127", "%s", err->text); /* as a shell says it */
	back_off(r->h);
	blame(r, &why);
}

/* A process to talk to, or the run is ended. */
static void ensure(struct run *r)
{
	struct handler *h = r->h;
	struct pr_err err = { 0 };

	if (h->p.pid > 0 && h->stale)
		subprocess_stop(&h->p, CLOSE_GRACE);
	if (h->p.pid > 0)
		return;
	if (wait_until(h->wake_fd, h->start_us))
		interrupted(r);
	else if (start(h, &err) < 0)
		start_failed(r, &err);
}

/* ---------------------------------------------------------------- out: messages */

static void feed(struct run *r)
{
	struct handler *h = r->h;

	if (h->hangup_us)
		return;
	while (r->ready_head < r->ready_tail && r->flight_n < r->flight_max &&
		h->to.len - h->to_done < WRITE_AHEAD) {
		size_t i = r->ready[r->ready_head++];

		if (h->to_done == h->to.len)
			h->to.len = h->to_done = 0;
		message_put_json(&h->to, r->m[i], r->op);
		pr_buf_put(&h->to, "\n", 1);
		if (r->flight_n == 0)
			r->oldest_us = pr_mono_us();
		r->flight[r->flight_n++] = i;
	}
}

static void hang_up(struct handler *h, int *fd)
{
	(void)close(*fd);
	*fd = -1;
	if (!h->hangup_us)
		h->hangup_us = pr_mono_us() + HANGUP_GRACE;
}

static void write_some(struct handler *h)
{
	while (h->p.in >= 0 && h->to_done < h->to.len) {
		ssize_t n = write(h->p.in, h->to.s + h->to_done, h->to.len - h->to_done);

		if (n > 0)
			h->to_done += (size_t)n;
		else if (n < 0 && errno == EAGAIN)
			break;
		else if (n < 0 && errno != EINTR)
			hang_up(h, &h->p.in);
	}
}

/* ---------------------------------------------------------------- in: answers */

static void put(char *to, size_t size, const char *from, size_t len)
{
	size_t n = len < size ? len : size - 1;

	for (size_t i = 0; i < n; i++)
		to[i] = from[i] ? from[i] : ' ';
	to[n] = '\0';
}

static int is(const char *name, size_t len, const char *word)
{
	return len == strlen(word) && memcmp(name, word, len) == 0;
}

static int each_error(void *ctx, const char *name, size_t name_len, const char *value, size_t len, int null)
{
	struct answer *a = ctx;
	char number[64];

	if (null)
		return 0;
	if (is(name, name_len, "code"))
		put(a->code, sizeof(a->code), value, len);
	else if (is(name, name_len, "message"))
		put(a->text, sizeof(a->text), value, len);
	else if (is(name, name_len, "retry_after")) {
		put(number, sizeof(number), value, len);
		a->retry_after = strtod(number, NULL);
	}
	return 0;
}

static int each_member(void *ctx, const char *name, size_t name_len, const char *value, size_t len, int null)
{
	struct answer *a = ctx;

	if (is(name, name_len, "id")) {
		if (len >= sizeof(a->id))
			return 1;
		put(a->id, sizeof(a->id), null ? "" : value, null ? 0 : len);
		a->has_id = 1;
		a->id_null = null;
	} else if (is(name, name_len, "ok")) {
		a->ok = is(value, len, "true");
	} else if (is(name, name_len, "error") && !null) {
		a->has_error = 1;
		return pr_json_flat(value, len, a->scratch, each_error, a) ? 1 : 0;
	}
	return 0;
}

/* The place in flight of the oldest with that id: as it came, as its uuid, or null. */
static size_t find_flight(const struct run *r, const struct answer *a)
{
	unsigned char uuid[16];
	int is_uuid = pr_uuid_parse(a->id, strlen(a->id), uuid) == 0;

	for (size_t at = 0; at < r->flight_n; at++) {
		const struct message *m = r->m[r->flight[at]];

		if (a->id_null ? m->id_state == ID_MISSING : strcmp(m->id_text, a->id) == 0)
			return at;
		if (is_uuid && m->id_state != ID_MISSING && memcmp(m->id, uuid, sizeof(uuid)) == 0)
			return at;
	}
	return NONE;
}

static void not_handled(struct outcome *o, const struct answer *a)
{
	/* "behind" is our own word: from outside it would make a message that failed look untried. */
	int own = *a->code && strcmp(a->code, "behind") != 0;
	double after = a->retry_after > 0 && isfinite(a->retry_after) ? a->retry_after : 0;

	outcome_fail(
		o, PR_FAIL_REPLY, own ? a->code : "failed", "%s", *a->text ? a->text : "no message given");
	o->retry_after_us = (int64_t)((after < RETRY_AFTER ? after : RETRY_AFTER) * PR_SEC);
}

/* 0, or -1 when the line is no answer. */
static int take_answer(struct run *r, const char *line, size_t len)
{
	struct handler *h = r->h;
	struct answer a = { .scratch = &h->scratch_error };
	size_t at, i;

	if (pr_json_flat(line, len, &h->scratch, each_member, &a) != 0 || !a.has_id || a.ok == a.has_error)
		return -1;
	at = find_flight(r, &a);
	if (at == NONE)
		return -1;
	i = r->flight[at];
	memmove(r->flight + at, r->flight + at + 1, (--r->flight_n - at) * sizeof(*r->flight));
	if (at == 0)
		r->oldest_us = pr_mono_us();
	h->losses = 0;
	r->lost_idle = 0;
	if (a.ok) {
		handled(r, i);
	} else {
		not_handled(&r->out[i], &a);
		failed(r, i);
	}
	return 0;
}

/* Every whole line that has come. 0, or -1: the process was lost by one. */
static int take_lines(struct run *r)
{
	struct handler *h = r->h;
	size_t most = (size_t)h->conf->handler.response_bytes, begin = 0;
	char *end;

	while (h->from_seen < h->from.len &&
		(end = memchr(h->from.s + h->from_seen, '\n', h->from.len - h->from_seen))) {
		const char *line = h->from.s + begin;
		size_t len = (size_t)(end - line);

		if (len > most) {
			garbage(r, "wrote a line longer than handler.response_bytes", NULL, 0);
			return -1;
		}
		if (take_answer(r, line, len) < 0) {
			garbage(r, "what answers no message in flight", line, len);
			return -1;
		}
		begin = h->from_seen = (size_t)(end + 1 - h->from.s);
	}
	if (begin > 0)
		memmove(h->from.s, h->from.s + begin, h->from.len - begin);
	h->from.len -= begin;
	h->from_seen = h->from.len;
	if (h->from.len <= most)
		return 0;
	garbage(r, "wrote a line longer than handler.response_bytes", NULL, 0);
	return -1;
}

/* 1: nothing more for now, 0: there may be, -1: the process was lost. */
static int read_some(struct run *r)
{
	struct handler *h = r->h;
	char chunk[16384];

	for (int i = 0; i < READS; i++) {
		ssize_t n = h->p.out < 0 ? -1 : read(h->p.out, chunk, sizeof(chunk));

		if (n > 0) {
			pr_buf_put(&h->from, chunk, (size_t)n);
			if (take_lines(r) < 0)
				return -1;
		} else if (n == 0) {
			hang_up(h, &h->p.out);
		} else if (h->p.out < 0 || errno != EINTR) {
			return 1;
		}
	}
	return 0;
}

/* ---------------------------------------------------------------- one turn */

static int64_t next_deadline(const struct run *r)
{
	const struct handler *h = r->h;
	int64_t at = PR_FOREVER;

	if (r->flight_n > 0)
		at = r->oldest_us + h->conf->handler.timeout_us;
	if (h->hangup_us && h->hangup_us < at)
		at = h->hangup_us;
	if (h->p.pidfd < 0 && pr_mono_us() + TICK < at)
		at = pr_mono_us() + TICK;
	if (r->stops && r->end_us < at)
		at = r->end_us;
	return at;
}

/* Waits for any of them; both directions at once, or two full pipes would wait for each other. 1: woken. */
static int wait_any(struct run *r)
{
	struct handler *h = r->h;
	struct pollfd fds[5] = {
		{ .fd = r->stops ? -1 : h->wake_fd, .events = POLLIN },
		{ .fd = h->to_done < h->to.len ? h->p.in : -1, .events = POLLOUT },
		{ .fd = h->p.out, .events = POLLIN },
		{ .fd = h->p.err, .events = POLLIN },
		{ .fd = h->p.pidfd, .events = POLLIN },
	};

	return poll(fds, 5, pr_until_ms(next_deadline(r))) > 0 && fds[0].revents;
}

/* With nothing in flight: what it wrote, or that it ended, is no message's fault. 0: the process was lost. */
static int is_well(struct run *r)
{
	int status = 0, ended = subprocess_ended(&r->h->p, &status);

	if (read_some(r) < 0)
		return 0;
	if (ended)
		exited(r, status);
	return !ended;
}

/* An end is looked at before the reads and told after them: what it wrote before it ended counts. */
static void turn(struct run *r)
{
	struct handler *h = r->h;
	int status = 0, ended, rc;
	int64_t now;

	if (r->flight_n == 0 && !is_well(r))
		return;
	if (!r->stops)
		feed(r);
	if (wait_any(r))
		stop_begins(r);
	if (r->stops && (r->flight_n == 0 || pr_mono_us() >= r->end_us)) {
		interrupted(r);
		return;
	}
	write_some(h);
	subprocess_said(&h->p);
	ended = subprocess_ended(&h->p, &status);
	rc = read_some(r);
	if (rc < 0 || r->left == 0)
		return;
	now = pr_mono_us();
	if (ended && (rc == 1 || r->flight_n == 0))
		exited(r, status);
	else if (r->flight_n > 0 && now >= r->oldest_us + h->conf->handler.timeout_us)
		timed_out(r);
	else if (h->hangup_us && now >= h->hangup_us)
		garbage(r, h->p.out < 0 ? "closed its stdout" : "closed its stdin", NULL, 0);
}

static int exec_run(struct handler *h, struct pr_pg *pg, enum op op, struct message *const *m, size_t n,
	struct outcome *out, struct pr_err *err)
{
	struct run r = {
		.h = h, .op = op == OP_UNDO ? "undo" : "do", .m = m, .n = n, .out = out, .flight_n = 0
	};

	(void)pg;
	(void)err;
	run_begin(&r);
	if (wait_until(h->wake_fd, 0))
		stop_begins(&r);
	while (r.left > 0) {
		ensure(&r);
		if (r.left > 0 && h->p.pid > 0)
			turn(&r);
	}
	run_end(&r);
	return 0;
}

/* ---------------------------------------------------------------- open and close */

/* A process that ends at once is broken, and it is better to hear it now than with a message in hand. */
static int still_there(struct handler *h, struct pr_err *err)
{
	int64_t deadline = pr_mono_us() + STARTS_TO_SHOW;
	int status = 0;

	while (!subprocess_ended(&h->p, &status)) {
		struct pollfd fds[2] = { { .fd = h->wake_fd, .events = POLLIN },
			{ .fd = h->p.pidfd, .events = POLLIN } };
		int64_t tick = pr_mono_us() + TICK;

		if (pr_mono_us() >= deadline)
			return 0;
		if (poll(fds, 2, pr_until_ms(h->p.pidfd < 0 && tick < deadline ? tick : deadline)) > 0 &&
			fds[0].revents)
			return pr_fail(err, PR_RETRY, "interrupted while \"%s\" started", h->argv[0]);
	}
	subprocess_stop(&h->p, 0);
	(void)pr_fail(err, PR_RETRY, "\"%s\" ended as soon as it was started (%s %d)%s%s", h->argv[0],
		status < 0 ? "signal" : "status", status < 0 ? -status : status, *h->p.said.last ? ": " : "",
		h->p.said.last);
	return pr_hint(err, "it must read its standard input, line by line, until that ends");
}

static void exec_close(struct handler *h)
{
	if (!h)
		return;
	subprocess_stop(&h->p, CLOSE_GRACE);
	pr_buf_free(&h->to);
	pr_buf_free(&h->from);
	pr_buf_free(&h->scratch);
	pr_buf_free(&h->scratch_error);
	free(h->argv);
	free(h->env_lane);
	free(h->env_group);
	free(h);
}

static int exec_open(
	const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	const struct pr_strs *command = &env->conf->handler.command;
	struct handler *h;

	(void)pg;
	if (command->n == 0) {
		(void)pr_fail(err, PR_STOP, "handler.command is empty");
		err->exit = PR_EX_CONFIG;
		return -1;
	}
	h = pr_calloc(1, sizeof(*h));
	h->env = *env;
	h->conf = env->conf;
	h->lane = env->lane;
	h->wake_fd = env->wake_fd;
	h->p = SUBPROCESS_NONE;
	h->p.lane = env->lane;
	h->argv = pr_calloc(command->n + 1, sizeof(*h->argv));
	for (size_t i = 0; i < command->n; i++)
		h->argv[i] = command->v[i];
	h->env_lane = pr_asprintf("POSTRIDER_LANE=%d", env->lane);
	h->env_group = pr_asprintf("POSTRIDER_GROUP=%s", env->conf->group ? env->conf->group : "");
	if (start(h, err) < 0 || still_there(h, err) < 0) {
		exec_close(h);
		return -1;
	}
	*ret = h;
	return 0;
}

const struct handler_ops handler_exec = {
	.kind = "exec", .in_transaction = 0, .open = exec_open, .close = exec_close, .run = exec_run
};
