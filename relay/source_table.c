/* relay/source_table.c -- the table engine: outbox.event, read by differences of snapshots.
 *
 * A turn reads the rows that are visible in a new snapshot and were not in the last one, ordered by
 * seq, in two arms that do not overlap and so need no merge:
 *   late  seq <= L(last): transactions that were running at the last snapshot and have finished since
 *   new   seq >  L(last)
 * Invariants (schedules that break a relay without them: tests/fault/test_schedules.py):
 *  1. L is read before N, N before the snapshot, each by a statement of its own. So a transaction that
 *     owns a seq <= L has an xid < N: it is finished in S, running in S, or in [xmax(S), N).
 *  2. No batch leaves before the WAL is flushed past the insert position read after the snapshot.
 *  3. No transaction of ours waits for Kafka: a piece is read only when the pipe has room for it.
 * Source of the idea: PgQ's ticks (pgq.batch_event_sql); the bounds and the barrier are ours.
 * Refuses a standby, a foreign schema, another database than the position's, a position ahead of it. */
#include "relay/source.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/json.h"
#include "lib/log.h"
#include "lib/migrate.h"
#include "lib/pg.h"
#include "relay/snapshot.h"
#include "relay/worker.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SLICE      1000      /* most events in one batch: a release and a bisection work on these */
#define WINDOW     1000000LL /* seqs one statement scans at first; how long it took sets the next */
#define WINDOW_MIN 1000LL
#define WINDOW_MAX 64000000LL

enum arm { ARM_LATE, ARM_NEW };

struct source {
	const struct pr_relay_conf *conf;
	int wake_fd;
	struct pr_pg *control; /* holds the lock; bounds, snapshots, barrier */
	struct pr_pg *data;    /* COPY; closed to cut one short */
	int connected_once;
	uint64_t page, segment; /* wal_block_size, wal_segment_size */
	struct identity identity;

	struct pr_position pos; /* of reading: ahead of what is published */
	struct snapshot last, now;
	struct bounds bounds;
	struct turn *turn; /* NULL between turns */
	enum arm arm;
	int64_t cursor; /* seqs <= this are read */
	int64_t upper;  /* no seq above this is visible in the turn's snapshot */
	int64_t window;
	uint64_t barrier; /* WAL position to be flushed; 0 once it is */
	size_t piece;     /* rows the next statement may return */
	int64_t idle_us;
	int64_t turn_us;    /* when the turn began */
	struct batch *held; /* the slice being filled */
	int put_any;        /* a batch of this turn has gone to the pipe */
};

struct foreign_rows source_foreign;
_Atomic int64_t source_contact_us;
_Atomic int64_t source_clock_skew_us;
_Atomic int64_t source_last_seq;
_Atomic uint64_t source_reconnects;

static struct source *table_new(const struct pr_relay_conf *conf, int wake_fd)
{
	struct source *s = pr_calloc(1, sizeof(*s));

	s->conf = conf;
	s->wake_fd = wake_fd;
	s->window = WINDOW;
	return s;
}

static void forget_turn(struct source *s)
{
	turn_drop(s->turn);
	s->turn = NULL;
	batch_free(s->held);
	s->held = NULL;
}

static void table_close(struct source *s)
{
	forget_turn(s);
	pr_pg_close(s->data);
	pr_pg_close(s->control);
	s->data = s->control = NULL;
}

static void table_free(struct source *s)
{
	if (!s)
		return;
	table_close(s);
	pr_position_release(&s->pos);
	snapshot_release(&s->last);
	snapshot_release(&s->now);
	free(s);
}

/* ---------------------------------------------------------------- who leads, and where */

static struct pr_pg *session(struct source *s, const char *role, struct pr_err *err)
{
	struct pr_pg *pg = NULL;

	if (session_open(&pg, s->conf, role, s->wake_fd, err) == 0 &&
		pr_pg_run(pg, sql_relay_session, 0, NULL, err) < 0) {
		pr_pg_close(pg);
		pg = NULL;
	}
	return pg;
}

/* One row of one value: 1 when it is "t". */
static int is_true(struct pr_pg *pg, const char *sql, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql, 0, NULL, err);
	int yes;

	if (!res)
		return -1;
	yes = PQntuples(res) == 1 && strcmp(PQgetvalue(res, 0, 0), "t") == 0;
	PQclear(res);
	return yes;
}

static int refuse(struct pr_err *err, const char *text, const char *hint)
{
	(void)pr_fail(err, PR_STOP, "%s", text);
	(void)pr_hint(err, "%s", hint);
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int check_standby(struct source *s, struct pr_err *err)
{
	int standby = is_true(s->control, "SELECT pg_catalog.pg_is_in_recovery()", err);

	if (standby <= 0)
		return standby;
	(void)refuse(err, "the database is a standby: rows become visible there in another order",
		"point source.conninfo at the primary, e.g. target_session_attrs=read-write");
	if (s->connected_once) /* after a failover the address may lead to the primary again */
		err->kind = PR_RETRY;
	return -1;
}

static int read_identity(struct source *s, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(s->control, sql_relay_identity, 0, NULL, err);
	const char *name;
	int rc = -1;

	if (!res)
		return -1;
	memset(&s->identity, 0, sizeof(s->identity));
	(void)snprintf(s->identity.system_id, sizeof(s->identity.system_id), "%s", PQgetvalue(res, 0, 0));
	s->identity.timeline = strtoll(PQgetvalue(res, 0, 1), NULL, 10);
	s->page = strtoull(PQgetvalue(res, 0, 3), NULL, 10);
	s->segment = strtoull(PQgetvalue(res, 0, 4), NULL, 10);
	name = PQgetvalue(res, 0, 2);
	s->identity.position_known = !PQgetisnull(res, 0, 2);
	s->identity.paused = PQgetvalue(res, 0, 6)[0] == 't';
	if (s->identity.position_known && strcmp(name, s->conf->name) != 0) {
		(void)pr_fail(err, PR_STOP, "this outbox belongs to the relay named \"%s\", not \"%s\"", name,
			s->conf->name);
		(void)pr_hint(err,
			"an outbox has one position: set name = \"%s\", or run `postrider position adopt`",
			name);
		err->exit = PR_EX_CONFIG;
	} else if (s->page && s->segment) {
		rc = 0;
	}
	PQclear(res);
	return rc;
}

static int table_open(struct source *s, struct identity *ret, struct pr_err *err)
{
	int locked;

	forget_turn(s);
	if (s->control && !pr_pg_ok(s->control))
		table_close(s);
	if (!s->control) {
		s->control = session(s, "control", err);
		if (s->control && s->connected_once)
			atomic_fetch_add(&source_reconnects, 1);
	}
	if (!s->control || check_standby(s, err) < 0 || pr_schema_check(s->control, err) < 0)
		return -1;
	s->connected_once = 1;
	atomic_store(&source_contact_us, pr_mono_us());
	locked = is_true(s->control, sql_relay_lock, err);
	if (locked <= 0)
		return locked;
	if (read_identity(s, err) < 0)
		return -1;
	*ret = s->identity;
	return 1;
}

static const char *adopt_hint = "if the database was restored, upgraded or failed over on purpose: "
				"postrider position adopt; else point source.conninfo at the right database";

static int check_same_database(const struct source *s, const struct pr_position *p, struct pr_err *err)
{
	if (strcmp(p->system_id, s->identity.system_id) != 0)
		return pr_fail(err, PR_STOP, "the position in Kafka is of database system %s, this is %s",
			p->system_id, s->identity.system_id);
	if (p->timeline != s->identity.timeline)
		return pr_fail(err, PR_STOP,
			"the position in Kafka is of timeline %" PRId64 ", the database is on %" PRId64
			": after a failover published events may be missing here",
			p->timeline, s->identity.timeline);
	return 0;
}

struct bounds_read {
	int64_t l, upper;
	uint64_t n, insert_lsn, flush_lsn;
	char *snapshot; /* owned */
};

static uint64_t get_u64(const PGresult *res, int column)
{
	return strtoull(PQgetvalue(res, 0, column), NULL, 10);
}

/* Widens the low 32 bits of the next xid by a recent one that is not above it. */
static uint64_t widen(int64_t age, uint64_t recent)
{
	uint32_t low = (uint32_t)(age + 3);

	return recent + (uint32_t)(low - (uint32_t)recent);
}

/* The same statements one by one, and time for a test to do something before the third. */
static int read_slowly(struct pr_pg *pg, const char *const *sql, int n, PGresult **ret, struct pr_err *err)
{
	for (int i = 0; i < n; i++) {
		if (i == 2)
			HOLD(bounds);
		ret[i] = pr_pg_exec(pg, sql[i], 0, NULL, err);
		if (ret[i])
			continue;
		while (i-- > 0)
			PQclear(ret[i]);
		return -1;
	}
	return 0;
}

static int read_bounds(struct source *s, struct bounds_read *ret, struct pr_err *err)
{
	const char *sql[4] = { sql_turn_bound, sql_turn_next_xid, sql_turn_snapshot, sql_turn_barrier };
	int l = 0, n = 1, snap = 2;
	PGresult *res[4];

	if (SABOTAGE(bound_after_snapshot)) {
		n = 0, snap = 1, l = 2;
		sql[n] = sql_turn_next_xid, sql[snap] = sql_turn_snapshot, sql[l] = sql_turn_bound;
	}
	if ((HELD(bounds) ? read_slowly : pr_pg_round_trip)(s->control, sql, 4, res, err) < 0)
		return -1;
	ret->l = (int64_t)get_u64(res[l], 0);
	ret->n = widen(strtoll(PQgetvalue(res[n], 0, 0), NULL, 10), get_u64(res[n], 1));
	ret->snapshot = pr_strdup(PQgetvalue(res[snap], 0, 0));
	ret->insert_lsn = get_u64(res[3], 0);
	ret->flush_lsn = get_u64(res[3], 1);
	ret->upper = (int64_t)get_u64(res[3], 2);
	atomic_store(&source_clock_skew_us, strtoll(PQgetvalue(res[3], 0, 3), NULL, 10) - pr_wall_us());
	atomic_store(&source_contact_us, pr_mono_us());
	atomic_store(&source_last_seq, ret->upper);
	for (int i = 0; i < 4; i++)
		PQclear(res[i]);
	return 0;
}

static int check_not_ahead(const struct pr_position *p, const struct snapshot *newest,
	const struct bounds_read *b, struct pr_err *err)
{
	int64_t l = p->to.snapshot ? p->to.l : p->from.l;

	if (l > b->upper)
		return pr_fail(err, PR_STOP,
			"the position in Kafka (seq %" PRId64 ") is ahead of the database (seq %" PRId64 ")",
			l, b->upper);
	if (newest->xmax > b->n)
		return pr_fail(err, PR_STOP,
			"the position in Kafka (xid %" PRIu64 ") is ahead of the database (next xid %" PRIu64
			")",
			newest->xmax, b->n);
	if (p->lsn > b->flush_lsn)
		return pr_fail(err, PR_STOP,
			"the position in Kafka (WAL %" PRIX64 ") is ahead of the database (WAL %" PRIX64 ")",
			p->lsn, b->flush_lsn);
	return 0;
}

static int record_start(struct source *s, struct pr_err *err)
{
	char timeline[24];
	const char *params[3] = { s->conf->name, s->identity.system_id, timeline };

	(void)snprintf(timeline, sizeof(timeline), "%" PRId64, s->identity.timeline);
	return pr_pg_run(s->control, sql_relay_first_start, 3, params, err);
}

static int bad_snapshot(const char *text, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "not a snapshot: \"%.60s\"", text);
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int set_last(struct source *s, struct pr_err *err)
{
	const struct pr_mark *from = &s->pos.from;

	snapshot_release(&s->last);
	s->bounds.len = 0;
	if (!from->snapshot)
		return 0;
	if (snapshot_parse(from->snapshot, &s->last) < 0)
		return bad_snapshot(from->snapshot, err);
	bounds_remember(&s->bounds, s->last.xmin, from->low);
	bounds_remember(&s->bounds, from->n, from->l);
	return 0;
}

static void enter_turn(struct source *s);

/* The position may stand inside a batch: that turn goes on with its own snapshot. */
static int resume_turn(struct source *s, int64_t upper, struct pr_err *err)
{
	snapshot_release(&s->now);
	if (snapshot_parse(s->pos.to.snapshot, &s->now) < 0)
		return bad_snapshot(s->pos.to.snapshot, err);
	s->turn = turn_new();
	pr_mark_copy(&s->turn->from, &s->pos.from);
	pr_mark_copy(&s->turn->to, &s->pos.to);
	s->turn->lsn = s->pos.lsn;
	s->upper = upper;
	enter_turn(s);
	if (s->pos.seq >= s->turn->from.l)
		s->arm = ARM_NEW; /* the late rows are out */
	s->cursor = s->pos.seq;
	s->put_any = 1;
	s->barrier = 0; /* it was flushed before the first record of this turn left */
	return 0;
}

static int table_start(struct source *s, const struct pr_position *position, struct pr_err *err)
{
	const char *newest = position->to.snapshot ? position->to.snapshot : position->from.snapshot;
	struct bounds_read b = { 0 };
	struct snapshot snap = { 0 };
	int rc = -1;

	forget_turn(s);
	if (read_bounds(s, &b, err) < 0)
		return -1;
	if (newest && snapshot_parse(newest, &snap) < 0) {
		(void)bad_snapshot(newest, err);
		goto out;
	}
	if (check_same_database(s, position, err) < 0 || check_not_ahead(position, &snap, &b, err) < 0) {
		(void)pr_hint(err, "%s", adopt_hint);
		err->exit = PR_EX_CONFIG;
		goto out;
	}
	if (record_start(s, err) < 0)
		goto out;
	pr_position_copy(&s->pos, position);
	s->piece = setting(&s->conf->limits.batch_events) < 1000
			   ? (size_t)(setting(&s->conf->limits.batch_events) + 1) / 2
			   : 500;
	if (set_last(s, err) < 0)
		goto out;
	rc = position->to.snapshot ? resume_turn(s, b.upper, err) : 0;
out:
	snapshot_release(&snap);
	free(b.snapshot);
	return rc;
}

/* ---------------------------------------------------------------- a turn */

/* Which arm the turn begins with. The late arm is skipped when nobody who could own a seq below the bound
 * has finished, or when all of them began after the bound was read. */
static void enter_turn(struct source *s)
{
	uint64_t n = SABOTAGE(no_n_bound) ? s->last.xmax : s->turn->from.n, first;

	s->arm = ARM_NEW;
	s->put_any = 0;
	s->cursor = s->turn->from.l;
	if (!s->turn->from.snapshot || SABOTAGE(cursor_by_seq))
		return;
	first = snapshot_first_finished(&s->last, n, &s->now);
	if (first == UINT64_MAX || bounds_below(&s->bounds, first) >= s->turn->from.l)
		return;
	s->arm = ARM_LATE;
	s->cursor = bounds_below(&s->bounds, first);
}

/* The WAL position without the page header it may stand behind: at a page boundary the insert position
 * is past the header of a page that has nothing to flush yet. */
static uint64_t without_header(const struct source *s, uint64_t lsn)
{
	if (lsn % s->segment == 40)
		return lsn - 40;
	return lsn % s->page == 24 ? lsn - 24 : lsn;
}

static void finish_turn(struct source *s)
{
	pr_mark_copy(&s->pos.from, &s->turn->to);
	pr_mark_release(&s->pos.to);
	turn_drop(s->turn);
	s->turn = NULL;
	snapshot_release(&s->last);
	s->last = s->now;
	memset(&s->now, 0, sizeof(s->now));
	bounds_remember(&s->bounds, s->pos.from.n, s->pos.from.l);
	bounds_forget(&s->bounds, s->last.xmin);
}

/* Sabotage: pretends that everything at or above the oldest running xid is invisible. */
static void cut_at_horizon(char **snapshot)
{
	unsigned long long xmin = strtoull(*snapshot, NULL, 10);

	free(*snapshot);
	*snapshot = pr_asprintf("%llu:%llu:", xmin, xmin);
}

/* 1 when nothing has become visible since the last turn: the same snapshot sees the same rows. One trivial
 * statement, so that looking a hundred times a second costs next to nothing. */
static int unchanged(struct source *s, struct pr_err *err)
{
	const char *sql[1] = { sql_turn_snapshot };
	PGresult *res[1];
	int same;

	if (!s->pos.from.snapshot || s->idle_us == 0)
		return 0;
	if (pr_pg_round_trip(s->control, sql, 1, res, err) < 0)
		return -1;
	same = strcmp(PQgetvalue(res[0], 0, 0), s->pos.from.snapshot) == 0;
	PQclear(res[0]);
	atomic_store(&source_contact_us, pr_mono_us());
	return same;
}

/* 1: a turn has begun that may find rows. 0: nothing can have appeared since the last one. */
static int begin_turn(struct source *s, struct pr_err *err)
{
	struct bounds_read b = { 0 };
	struct pr_mark *to;
	int same = unchanged(s, err);

	if (same != 0)
		return same < 0 ? -1 : 0;
	if (read_bounds(s, &b, err) < 0)
		return -1;
	if (SABOTAGE(xmin_horizon))
		cut_at_horizon(&b.snapshot);
	if (s->pos.from.snapshot && strcmp(b.snapshot, s->pos.from.snapshot) == 0) {
		free(b.snapshot);
		return 0;
	}
	snapshot_release(&s->now);
	if (snapshot_parse(b.snapshot, &s->now) < 0) {
		(void)bad_snapshot(b.snapshot, err);
		free(b.snapshot);
		return -1;
	}
	s->turn = turn_new();
	pr_mark_copy(&s->turn->from, &s->pos.from);
	to = &s->turn->to;
	to->snapshot = b.snapshot;
	to->l = b.l;
	to->n = b.n;
	to->low = b.n <= s->now.xmin ? b.l : bounds_below(&s->bounds, s->now.xmin);
	s->upper = b.upper;
	s->barrier = without_header(s, b.insert_lsn);
	s->turn->lsn = s->barrier;
	if (s->barrier <= b.flush_lsn)
		s->barrier = 0;
	enter_turn(s);
	if (s->arm == ARM_NEW && s->pos.from.snapshot && s->upper == s->pos.from.l) {
		finish_turn(s);
		return 0;
	}
	s->turn_us = pr_mono_us();
	return 1;
}

static int flushed(struct source *s, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(s->control, sql_turn_flushed, 0, NULL, err);
	uint64_t lsn;

	if (!res)
		return -1;
	lsn = get_u64(res, 0);
	PQclear(res);
	return lsn >= s->barrier;
}

/* Rows that are visible but not durable would be ghosts after a crash of the server, and the next real
 * events would get their seqs. Writers flush by themselves within a millisecond; one that commits
 * asynchronously may take as long as the WAL writer likes, so then we flush for it. */
static int pass_barrier(struct source *s, struct pr_err *err)
{
	int64_t force_at = pr_mono_us() + PR_MS;
	int64_t give_up = pr_mono_us() + s->conf->source.timeout_us;
	int done;

	if (SABOTAGE(no_barrier))
		s->barrier = 0;
	while (s->barrier) {
		done = flushed(s, err);
		if (done < 0)
			return -1;
		if (done)
			break;
		if (pr_mono_us() > give_up)
			return pr_fail(err, PR_RETRY, "the WAL was not flushed within source.timeout");
		if (pr_mono_us() < force_at) {
			if (pr_pg_idle(s->control, 300, err) < 0)
				return -1;
		} else if (pr_pg_run(s->control, sql_turn_force_flush, 0, NULL, err) < 0) {
			return -1;
		}
	}
	s->barrier = 0;
	return 0;
}

/* ---------------------------------------------------------------- a piece of a turn */

/* seq of the last row this statement may look at. */
static int64_t window_end(const struct source *s)
{
	int64_t bound = s->arm == ARM_LATE ? s->turn->from.l : s->upper;

	return bound - s->cursor > s->window ? s->cursor + s->window : bound;
}

static void put_late_owners(struct pr_buf *q, const struct source *s)
{
	const struct snapshot *last = &s->last;
	uint64_t n = SABOTAGE(no_n_bound) ? last->xmax : s->turn->from.n;

	pr_buf_puts(q, "(xid = ANY ('{");
	for (size_t i = 0; i < last->n; i++)
		if (snapshot_finished(&s->now, last->xip[i]))
			pr_buf_printf(q, "%s%" PRIu64, q->s[q->len - 1] == '{' ? "" : ",", last->xip[i]);
	pr_buf_printf(
		q, "}'::xid8[]) OR xid >= '%" PRIu64 "'::xid8 AND xid < '%" PRIu64 "'::xid8)", last->xmax, n);
}

/* A row above everything handled so far that the last snapshot claims to know came with an old xid from
 * elsewhere: it is new here, and goes. One with an xid that this server has not assigned is only named. */
static void put_new_rows(struct pr_buf *q, const struct source *s, const char *unassigned)
{
	if (SABOTAGE(cursor_by_seq)) {
		pr_buf_printf(q, "seq > %" PRId64, s->pos.top);
		return;
	}
	/* The comparison first: it decides for all but the newest rows, and costs a fraction of the call. */
	pr_buf_printf(q,
		"((xid < '%" PRIu64 "'::xid8 OR pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot))",
		s->now.xmin, s->turn->to.snapshot);
	if (s->turn->from.snapshot)
		pr_buf_printf(q,
			" AND (NOT pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot) OR seq > "
			"%" PRId64 ")",
			s->turn->from.snapshot, s->pos.top);
	pr_buf_printf(q, " OR %s)", unassigned);
}

static void chunk_query(const struct source *s, struct pr_buf *q)
{
	/* Whoever's row this statement sees has committed, so its xid is below this snapshot's xmax. */
	const char *unassigned =
		"xid >= (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()))";

	pr_buf_printf(q,
		"SELECT " ROW_COLUMNS ", CASE WHEN %s THEN true END FROM outbox.event WHERE seq > %" PRId64,
		unassigned, SABOTAGE(cursor_by_seq) ? s->pos.top : s->cursor);
	pr_buf_printf(q, " AND seq <= %" PRId64 " AND ", window_end(s));
	if (s->arm == ARM_LATE) {
		put_late_owners(q, s);
		pr_buf_printf(q, " AND pg_catalog.pg_visible_in_snapshot(xid, '%s'::pg_snapshot)",
			s->turn->to.snapshot);
	} else {
		put_new_rows(q, s, unassigned);
	}
	pr_buf_printf(q, " ORDER BY %sseq LIMIT %zu", SABOTAGE(order_by_xid) ? "xid, " : "", s->piece);
}

struct reading {
	size_t rows, bytes;
	int cut; /* the statement was ended early: its rows were larger than thought */
};

typedef int (*put_fn)(void *ctx, struct batch *b);

static int put_held(struct source *s, put_fn put, void *ctx, struct pr_err *err)
{
	struct batch *b = s->held;

	if (!b)
		return 0;
	if (s->barrier && pass_barrier(s, err) < 0)
		return -1;
	s->held = NULL;
	if (put(ctx, b) < 0)
		return pr_fail(err, PR_RETRY, "reset");
	s->put_any = 1;
	return 0;
}

static void note_foreign(const struct event *e)
{
	if (!e->foreign)
		return;
	if (atomic_fetch_add(&source_foreign.count, 1) == 0)
		atomic_store(&source_foreign.first_seq, e->seq);
}

static struct batch *new_batch(struct source *s, size_t cap)
{
	struct batch *b = batch_new(s->turn, cap);

	b->before = s->pos.top;
	return b;
}

static int take_row(
	struct source *s, char *row, size_t len, struct reading *r, put_fn put, void *ctx, struct pr_err *err)
{
	size_t slice_bytes = (size_t)setting(&s->conf->limits.batch_bytes) / 8 + 1;

	if (s->held && (s->held->n == s->held->cap || s->held->bytes >= slice_bytes))
		if (put_held(s, put, ctx, err) < 0)
			goto failed;
	if (!s->held)
		s->held = new_batch(s, s->piece < SLICE ? s->piece : SLICE);
	if (batch_add_row(s->held, row, len, err) < 0)
		goto failed;
	s->cursor = s->held->ev[s->held->n - 1].seq;
	if (s->cursor > s->pos.top)
		s->pos.top = s->cursor;
	note_foreign(&s->held->ev[s->held->n - 1]);
	r->rows++;
	r->bytes += len;
	return 0;
failed:
	PQfreemem(row);
	return -1;
}

/* Runs the statement. Past twice the budget it is cut by closing the connection, which costs a few
 * milliseconds and needs no reply: the next piece is made for rows of this size. */
/* The connection the rows come from must lead to the database the snapshots came from, also when the
 * address has two answers in the middle of a failover. A slow link may take a statement longer than the
 * deadline, which counts from row to row. */
static struct pr_pg *data_session(struct source *s, struct pr_err *err)
{
	struct pr_pg *pg = session(s, "data", err);
	PGresult *res = NULL;
	char set[80];

	if (!pg)
		return NULL;
	(void)snprintf(set, sizeof(set), "SET statement_timeout = %lld",
		(long long)(s->conf->source.timeout_us / PR_MS * 4));
	if (pr_pg_run(pg, set, 0, NULL, err) == 0)
		res = pr_pg_exec(pg, sql_relay_identity, 0, NULL, err);
	if (res && strcmp(PQgetvalue(res, 0, 0), s->identity.system_id) == 0 &&
		strtoll(PQgetvalue(res, 0, 1), NULL, 10) == s->identity.timeline) {
		PQclear(res);
		return pg;
	}
	if (res)
		(void)pr_fail(err, PR_RETRY, "source.conninfo leads to two different databases");
	PQclear(res);
	pr_pg_close(pg);
	return NULL;
}

static int read_rows(struct source *s, struct reading *r, put_fn put, void *ctx, struct pr_err *err)
{
	struct pr_buf q = { 0 };
	char *row;
	int len, rc;

	if (!s->data || !pr_pg_ok(s->data)) {
		pr_pg_close(s->data);
		s->data = data_session(s, err);
		if (!s->data)
			return -1;
	}
	chunk_query(s, &q);
	rc = pr_pg_copy_begin(s->data, q.s, err);
	pr_buf_free(&q);
	while (rc == 0 && (rc = pr_pg_copy_row(s->data, &row, &len, err)) == 1) {
		rc = take_row(s, row, (size_t)len, r, put, ctx, err);
		if (rc == 0 && r->bytes > (size_t)setting(&s->conf->limits.batch_bytes)) {
			r->cut = 1;
			break;
		}
	}
	if (rc < 0 || r->cut) { /* possibly in the middle of the stream */
		pr_pg_close(s->data);
		s->data = NULL;
	}
	return rc;
}

/* A desert (a bulk load still open, or rolled back; a late commit's long past) is crossed in steps that fit
 * the deadline by far, whatever the disk. The step is kept over turns and resets: a step that was too long
 * would else be too long again, for ever. */
static void size_window(struct source *s, int64_t took_us, int failed)
{
	int64_t deadline = s->conf->source.timeout_us;

	if (failed)
		s->window /= 4;
	else if (took_us > deadline / 8)
		s->window /= 2;
	else if (took_us < deadline / 32 && s->window < WINDOW_MAX)
		s->window *= 2;
	if (s->window < WINDOW_MIN)
		s->window = WINDOW_MIN;
}

/* The next statement's LIMIT: half a batch of rows or bytes, growing with care. */
static void size_piece(struct source *s, const struct reading *r)
{
	size_t most = (size_t)(setting(&s->conf->limits.batch_events) + 1) / 2, want = most;

	if (r->rows > 0)
		want = (size_t)setting(&s->conf->limits.batch_bytes) / 2 / (r->bytes / r->rows + 1);
	if (want > s->piece * 4)
		want = s->piece * 4;
	s->piece = want < 1 ? 1 : want > most ? most : want;
}

/* The statement is done: on to the next window, arm or turn? 1 when the turn is over. */
static int advance(struct source *s, const struct reading *r, size_t limit, int64_t end)
{
	if (r->cut || r->rows == limit)
		return 0;
	s->cursor = end;
	if (end < (s->arm == ARM_LATE ? s->turn->from.l : s->upper))
		return 0;
	if (s->arm == ARM_NEW)
		return 1;
	s->arm = ARM_NEW;
	return s->upper == s->turn->from.l;
}

static int wait_a_moment(struct source *s, struct pr_err *err)
{
	int64_t least = setting(&s->conf->limits.poll_min_us), most = setting(&s->conf->limits.poll_max_us);

	s->idle_us = s->idle_us < least ? least : s->idle_us * 2 > most ? most : s->idle_us * 2;
	return pr_pg_idle(s->control, s->idle_us, err) < 0 ? -1 : 0;
}

/* After a turn that found events. What one left behind because it was long does not wait: it ended late. */
static int gather(struct source *s, struct pr_err *err)
{
	int64_t left = s->turn_us + setting(&s->conf->limits.gather_us) - pr_mono_us();

	return left > 0 && pr_pg_idle(s->control, left, err) < 0 ? -1 : 0;
}

static int is_timeout(const struct pr_err *err)
{
	return strcmp(err->code, "57014") == 0 || strcmp(err->code, "timeout") == 0;
}

static int table_next(struct source *s, put_fn put, void *ctx, struct pr_err *err)
{
	struct reading r = { 0 };
	size_t limit = s->piece;
	int64_t end, began;
	int rc, over;

	if (!s->turn) {
		rc = begin_turn(s, err);
		if (rc < 0)
			return -1;
		if (rc == 0)
			return wait_a_moment(s, err);
	}
	end = window_end(s);
	began = pr_mono_us();
	rc = end > s->cursor ? read_rows(s, &r, put, ctx, err) : 0;
	size_window(s, pr_mono_us() - began, rc < 0 && is_timeout(err));
	if (rc < 0)
		return -1;
	size_piece(s, &r);
	over = advance(s, &r, limit, end);
	if (over && !s->held && s->put_any)
		s->held = new_batch(s, 1); /* nothing more, but Kafka has to learn that the turn is over */
	if (s->held)
		s->held->ends_turn = over;
	if (put_held(s, put, ctx, err) < 0)
		return -1;
	if (over || r.rows > 0) /* crossing a desert is no word from anybody: it counts as lag */
		atomic_store(&source_contact_us, pr_mono_us());
	if (over)
		finish_turn(s);
	if (r.rows > 0)
		s->idle_us = 0;
	if (over)
		return r.rows > 0 ? gather(s, err) : wait_a_moment(s, err);
	return 1;
}

static size_t table_piece(const struct source *s)
{
	return s->piece;
}

const struct source_ops source_table = { "table", table_new, table_free, table_open, table_start, table_piece,
	table_next, table_close };
