/* consumers/saga/clock.c -- the thread that knows what time it is: tries that are overdue or to be made
 * again, deadlines, locks that became free, and the operator's orders. Refuses to call anything overdue while
 * records that may answer it wait to be handled: after an outage the replies go first. */
#include "consumers/saga/saga.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/json_path.h"
#include "lib/log.h"
#include "lib/uuid.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SOON_US     (20 * PR_MS)
#define POLL_US     (200 * PR_MS)
#define MOST_TEXT   "500"
#define MOST        500 /* instances of one transaction */
#define ORDERS_TEXT "500"
#define ORDERS      500 /* of one transaction */
#define COUNT_US    PR_SEC
#define NEVER_US    0
#define WRITER      1000 /* its counter rows: lanes have their numbers */

static struct {
	int fd;                   /* eventfd: earlier than it sleeps to */
	_Atomic int64_t until_us; /* wall: it sleeps until then */
} bell = { .fd = -1, .until_us = INT64_MAX };

struct order {
	int64_t entry;
	unsigned char id[16];
	char what[16], step[80], by[100];
	char *detail;
	const char *outcome; /* NULL: it waits on */
	char reason[1100];
};

struct saga_clock {
	struct consumer *c;
	struct pr_pg *pg;
	struct store *store;
	struct saga_writing writing;
	struct pr_buf parts, until;               /* array literals */
	unsigned char ids[2 * MOST + ORDERS][16]; /* timers, locks that became free, orders */
	size_t ids_n;
	struct order order[ORDERS];
	size_t orders_n;
	unsigned failures;
	int64_t next_count_us, next_rotate_us;
	struct saga_ends *ends;
	int expects;        /* a timer is due, or will be by the next round */
	int64_t blocked_us; /* how long it rested last before a timer that may not fire yet; 0: there is none
			     */
	struct pr_family *instances;
	struct pr_series *stuck;
};

void saga_clock_nudge(int64_t due_us)
{
	uint64_t one = 1;

	if (bell.fd >= 0 && due_us < atomic_load(&bell.until_us))
		(void)!write(bell.fd, &one, sizeof(one));
}

/* ---------------------------------------------------------------- how far the replies are handled */

/* What is due before the returned time may fire: all that came in by then is handled. The time of a record as
 * it has it, or the database's: this host's clock may be anything. */
static int64_t handled_until(const struct saga_clock *k, const struct part *p)
{
	int64_t oldest = part_oldest_us(p);

	if (oldest != INT64_MAX)
		return oldest > 0 ? oldest : NEVER_US;
	return p->end_now.idle_us ? p->end_now.idle_us + ends_clock_us(k->ends) : NEVER_US;
}

/* The parts of ours as two array literals: name, and how far. 0: there is none. */
static size_t our_parts(struct saga_clock *k)
{
	struct pr_buf *names = &k->parts, *until = &k->until;
	struct consumer *c = k->c;
	size_t n = 0;

	names->len = until->len = 0;
	pr_buf_puts(names, "{");
	pr_buf_puts(until, "{");
	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++) {
		if (atomic_load(&c->parts[i]->dead))
			continue;
		pr_buf_printf(
			names, "%s\"%s-%d\"", n ? "," : "", c->parts[i]->topic, (int)c->parts[i]->partition);
		pr_buf_printf(until, "%s%" PRId64, n ? "," : "", handled_until(k, c->parts[i]));
		n++;
	}
	(void)pthread_mutex_unlock(&c->mutex);
	pr_buf_puts(names, "}");
	pr_buf_puts(until, "}");
	return n;
}

/* ---------------------------------------------------------------- what there is to do */

static int64_t number(const PGresult *res, int row, int col, int64_t none)
{
	return PQgetisnull(res, row, col) ? none : strtoll(PQgetvalue(res, row, col), NULL, 10);
}

static void add_id(struct saga_clock *k, const PGresult *res, int row, int col, unsigned char id[16])
{
	if (pr_uuid_parse(PQgetvalue(res, row, col), (size_t)PQgetlength(res, row, col), id) == 0 &&
		k->ids_n < sizeof(k->ids) / sizeof(k->ids[0]))
		memcpy(k->ids[k->ids_n++], id, 16);
}

static int ask_due(struct saga_clock *k, size_t ours, struct pr_err *err)
{
	int64_t others = ends_others_us(k->ends, ours);
	char text[24];
	const char *params[] = { k->parts.s, k->until.s, MOST_TEXT, SAGA_INBOX,
		others == INT64_MAX ? NULL : text };
	PGresult *res;
	unsigned char id[16];

	(void)snprintf(text, sizeof(text), "%" PRId64,
		others > 0 ? others + ends_clock_us(k->ends) : (int64_t)NEVER_US);
	res = pr_pg_exec(k->pg, sql_engine_due, 5, params, err);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		add_id(k, res, i, 0, id);
	PQclear(res);
	return 0;
}

static void copy(char *to, size_t size, const PGresult *res, int row, int col)
{
	(void)snprintf(to, size, "%s", PQgetisnull(res, row, col) ? "" : PQgetvalue(res, row, col));
}

static void forget_orders(struct saga_clock *k)
{
	for (size_t i = 0; i < k->orders_n; i++)
		free(k->order[i].detail);
	k->orders_n = 0;
}

static int ask_orders(struct saga_clock *k, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(
		k->pg, sql_engine_orders, 2, (const char *const[]){ k->parts.s, ORDERS_TEXT }, err);

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		struct order *o = &k->order[k->orders_n++];

		*o = (struct order){ .entry = number(res, i, 0, 0) };
		add_id(k, res, i, 1, o->id);
		copy(o->what, sizeof(o->what), res, i, 2);
		copy(o->step, sizeof(o->step), res, i, 3);
		o->detail = PQgetisnull(res, i, 4) ? NULL : pr_strdup(PQgetvalue(res, i, 4));
		copy(o->by, sizeof(o->by), res, i, 5);
	}
	PQclear(res);
	return 0;
}

/* ---------------------------------------------------------------- an order */

/* {"version": N} */
static const struct saga_def *target(struct saga_clock *k, const struct saga_row *row, const char *detail)
{
	const struct saga_def *def = NULL;
	const char *v;
	struct pr_err err;
	size_t n;

	if (!detail || pr_json_at(detail, strlen(detail), "version", &v, &n) != 1 ||
		book_version(k->pg, row->def->name, (int)strtol(v, NULL, 10), &def, &err) < 0)
		return NULL;
	return def;
}

static int obey(
	struct saga_clock *k, struct saga_row *row, const struct order *o, int64_t now, struct pr_err *err)
{
	int what = saga_order_parse(o->what, strlen(o->what)), step = -1, ended;
	const struct saga_def *to = NULL;

	if (!row->def)
		return pr_fail(err, PR_REJECT, "it is over, or there is no such saga");
	if (what < 0)
		return pr_fail(err, PR_REJECT, "there is no order \"%s\"", o->what);
	if (*o->step && (step = saga_def_step(row->def, o->step, strlen(o->step))) < 0)
		return pr_fail(err, PR_REJECT, "saga %s version %d has no step \"%s\"", row->def->name,
			row->def->version, o->step);
	if (what == ORDER_MIGRATE)
		to = target(k, row, o->detail);
	ended = row_has_ended(row);
	if (ended && store_load_ended(row, k->pg, err) < 0)
		return -1;
	if (saga_take_order(row->def, &row->in, (enum saga_order)what, step, o->detail,
		    o->detail ? strlen(o->detail) : 0, to, now, &k->writing.out, err) < 0)
		return -1;
	if (ended && store_revive(row, k->pg, err) < 0)
		return -1;
	if (to)
		row->def = to;
	row->changed = row->data_changed = 1;
	return 0;
}

static void do_order(struct saga_clock *k, struct saga_row *row, struct order *o, int64_t now)
{
	struct pr_err err;

	if (obey(k, row, o, now, &err) == 0) {
		o->outcome = "done";
		writing_take(&k->writing, row, *o->by ? o->by : "operator");
		return;
	}
	saga_out_clear(&k->writing.out);
	if (err.kind == PR_RETRY)
		return;
	o->outcome = "refused";
	(void)snprintf(o->reason, sizeof(o->reason), "%s%s%s", err.text, *err.hint ? "; " : "", err.hint);
}

static struct saga_row *row_of(struct saga_row *rows, size_t n, const unsigned char id[16])
{
	for (size_t i = 0; i < n; i++)
		if (memcmp(rows[i].id, id, 16) == 0)
			return &rows[i];
	return NULL;
}

/* ---------------------------------------------------------------- a round */

static void tick(struct saga_clock *k, struct saga_row *row, int64_t now)
{
	if (row->def && !row_has_ended(row)) {
		if (row->lock_free)
			saga_granted(row->def, &row->in, now, &k->writing.out);
		saga_tick(row->def, &row->in, now, &k->writing.out);
		/* Also when nothing was due after all: its timer is set anew. Time does not touch its data.
		 */
		row->changed = 1;
		writing_take(&k->writing, row, NULL);
	}
}

/* Those that another transaction has locked move on there, or are met in the next round. */
static int walk(struct saga_clock *k, struct pr_err *err)
{
	int64_t entry[ORDERS], now;
	const char *outcome[ORDERS], *reason[ORDERS];
	struct saga_orders_done done = { entry, outcome, reason, 0 };
	struct saga_row *rows, *row;

	if (store_load(k->store, k->pg, (const unsigned char(*)[16])k->ids, k->ids_n, k->orders_n == 0, &rows,
		    &now, err) < 0)
		return -1;
	writing_clear(&k->writing);
	for (size_t i = 0; i < k->ids_n; i++)
		tick(k, &rows[i], now);
	for (size_t i = 0; i < k->orders_n; i++) {
		struct order *o = &k->order[i];

		row = row_of(rows, k->ids_n, o->id);
		if (!row)
			continue;
		do_order(k, row, o, now);
		if (!o->outcome)
			continue;
		entry[done.n] = o->entry;
		outcome[done.n] = o->outcome;
		reason[done.n++] = *o->reason ? o->reason : NULL;
	}
	return store_save(k->store, k->pg, rows, k->ids_n, &k->writing, WRITER, now, &done, err);
}

static int transaction(struct saga_clock *k, struct pr_err *err)
{
	int rc = -1;

	if (pr_pg_run(k->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	if (walk(k, err) == 0) {
		/* If we die here, nothing has happened, and all of it is still due. */
		FAULT(saga_clock_before_commit);
		rc = pr_pg_run(k->pg, "COMMIT", 0, NULL, err);
	}
	if (rc < 0 && pr_pg_ok(k->pg)) {
		struct pr_err ignored;

		if (pr_pg_run(k->pg, "ROLLBACK", 0, NULL, &ignored) < 0)
			return -1;
	}
	return rc;
}

/* 1: there may be more. */
static int due_and_orders(struct saga_clock *k, struct pr_err *err)
{
	size_t ours = our_parts(k);

	if (ours == 0)
		return 0;
	if (ask_due(k, ours, err) < 0 || ask_orders(k, err) < 0)
		return -1;
	if (k->ids_n == 0)
		return 0;
	k->ids_n = store_sort_ids(k->ids, k->ids_n);
	if (transaction(k, err) < 0)
		return -1;
	return k->ids_n >= MOST || k->orders_n == ORDERS;
}

/* ---------------------------------------------------------------- counts */

static void tell_stuck(struct saga_clock *k, int64_t stuck)
{
	struct pr_err err;

	pr_gauge_set(k->stuck, (double)stuck);
	if (stuck <= 0) {
		health_trouble(k->c, TROUBLE_SAGA_STUCK, NULL);
		return;
	}
	(void)pr_fail(&err, PR_REJECT, "%" PRId64 " saga%s stuck: a person must decide", stuck,
		stuck == 1 ? " is" : "s are");
	(void)pr_hint(
		&err, "postrider saga list --state STUCK, then postrider saga show ID, retry, skip or undo");
	health_trouble(k->c, TROUBLE_SAGA_STUCK, &err);
}

static int count(struct saga_clock *k, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(k->pg, sql_engine_counts, 0, NULL, err);
	int64_t stuck = 0, n;

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		n = number(res, i, 2, 0);
		pr_gauge_set(pr_series_get(k->instances,
				     (const char *const[]){ PQgetvalue(res, i, 0), PQgetvalue(res, i, 1) }),
			(double)n);
		if (strcmp(PQgetvalue(res, i, 1), saga_state_str(SAGA_STUCK)) == 0)
			stuck += n;
	}
	PQclear(res);
	tell_stuck(k, stuck);
	k->next_count_us = pr_mono_us() + COUNT_US;
	return 0;
}

static int rotate(struct saga_clock *k, struct pr_err *err)
{
	int64_t keep = k->c->conf->handler.keep_us, every = keep / 16;
	char text[24];
	PGresult *res;

	every = every < PR_SEC / 2 ? PR_SEC / 2 : every > 60 * PR_SEC ? 60 * PR_SEC : every;
	k->next_rotate_us = pr_mono_us() + every;
	(void)snprintf(text, sizeof(text), "%" PRId64, keep);
	res = pr_pg_exec(k->pg, sql_engine_rotate, 1, (const char *const[]){ text }, err);
	if (!res) /* in use: next time it waits longer for its turn */
		return strcmp(err->code, "55P03") == 0 ? 0 : -1;
	if (number(res, 0, 0, 0) > 0)
		pr_log(PR_INFO, "sagas that ended rotated");
	PQclear(res);
	return 0;
}

/* ---------------------------------------------------------------- the thread */

/* 1: there is more to do at once. */
static int round_of_work(struct saga_clock *k, struct pr_err *err)
{
	int more = 0, told = 0;
	struct pr_err why;

	forget_orders(k);
	k->ids_n = 0;
	if (!atomic_load(&k->c->paused)) {
		told = k->expects ? ends_look(k->ends, k->c, k->pg, &why) : 0;
		more = due_and_orders(k, err);
	}
	if (more < 0 || (pr_mono_us() >= k->next_count_us && count(k, err) < 0) ||
		(pr_mono_us() >= k->next_rotate_us && rotate(k, err) < 0))
		return -1;
	if (told < 0) {
		*err = why;
		return -1;
	}
	return more;
}

/* Due, and not to be fired yet: replies before it wait. Each time in vain it is twice as long. */
static int64_t rest_blocked(struct saga_clock *k)
{
	int64_t us = k->ids_n > 0 || !k->blocked_us ? SOON_US : 2 * k->blocked_us;

	k->blocked_us = us < POLL_US ? us : POLL_US;
	return k->blocked_us;
}

/* Until the next timer; not longer than POLL_US, for what others may have set. */
static int64_t until_next(struct saga_clock *k)
{
	struct pr_err err;
	PGresult *res = k->parts.len > 2 ? pr_pg_exec(k->pg, sql_engine_next_due, 1,
						   (const char *const[]){ k->parts.s }, &err)
					 : NULL;
	int64_t next;

	if (!res)
		return POLL_US;
	next = number(res, 0, 0, INT64_MAX);
	PQclear(res);
	k->expects = next <= POLL_US;
	if (next <= 0)
		return rest_blocked(k);
	k->blocked_us = 0;
	return next < POLL_US ? next + PR_MS : POLL_US;
}

/* So long, or until a nudge or a stop. */
static void rest(struct saga_clock *k, int64_t us)
{
	struct pollfd fds[2] = { { .fd = k->c->wake_fd, .events = POLLIN },
		{ .fd = bell.fd, .events = POLLIN } };
	uint64_t rings;

	atomic_store(&bell.until_us, pr_wall_us() + us);
	(void)poll(fds, 2, (int)((us + PR_MS - 1) / PR_MS));
	atomic_store(&bell.until_us, 0);
	(void)!read(bell.fd, &rings, sizeof(rings));
}

static void init(struct saga_clock *k, struct consumer *c)
{
	k->c = c;
	k->store = store_new();
	k->ends = ends_new();
	k->instances = pr_family_new(c->m.registry, PR_GAUGE, "postrider_saga_instances", "saga,state", 1000,
		"Sagas in each state; of those that have ended, how many there ever were.");
	k->stuck = pr_gauge_new(c->m.registry, "postrider_saga_stuck", "Sagas that wait for a person.");
	bell.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void *saga_clock_thread(void *arg)
{
	struct saga_clock *k = pr_calloc(1, sizeof(*k));
	struct consumer *c = arg;
	struct pr_err err;
	int more;

	init(k, c);
	while (!atomic_load(&c->stopping)) {
		more = -1;
		if (session_open(&k->pg, c, "saga clock", c->wake_fd, &err) == 0)
			more = round_of_work(k, &err);
		if (more >= 0) {
			k->failures = 0;
			health_trouble(c, TROUBLE_SAGA_CLOCK, NULL);
		} else if (!atomic_load(&c->stopping) && ++k->failures > 1) {
			health_trouble(c, TROUBLE_SAGA_CLOCK, &err);
		}
		if (more < 0)
			rest(k, pr_backoff_us(k->failures, 100 * PR_MS, 2 * PR_SEC));
		else if (!more)
			rest(k, k->orders_n > 0 ? SOON_US
						: until_next(k)); /* who orders many waits for each lot */
	}
	forget_orders(k);
	store_free(k->store);
	ends_free(k->ends);
	writing_free(&k->writing);
	pr_buf_free(&k->parts);
	pr_buf_free(&k->until);
	pr_pg_close(k->pg);
	free(k);
	return NULL;
}
