/* consumers/sink/cut.c -- the machine: open -> sealed -> recorded -> published, or refused, or given up; and
 * what a new owner does with what the database holds. The only place that changes a cut's state, in memory
 * and in the database. Refuses to publish what is not recorded, to move a position before what is below it is
 * published, and to do either for a partition that has another owner. */
#include "consumers/sink/ledger.h"
#include "consumers/tx.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN_US     (200 * PR_MS)
#define AGAIN_MAX_US (10 * PR_SEC)
#define IDLE_MOVE_US PR_SEC
#define FORGIVEN_US  (30 * PR_SEC) /* a trouble that nobody tells any more, of a partition that left us */

static int64_t position_of(const struct sink_part *sp)
{
	return sp->part->lane[0].next;
}

/* ---------------------------------------------------------------- what is told */

static struct sink_trouble *trouble_of(struct sink_lane *sl, const struct part *p)
{
	for (size_t i = 0; i < sl->troubles_n; i++)
		if (sl->troubles[i].partition == p->partition && strcmp(sl->troubles[i].topic, p->topic) == 0)
			return &sl->troubles[i];
	return NULL;
}

/* The target does not take what the partition has: how long to wait before the next try. */
int64_t sink_trouble(struct sink_part *sp, const struct pr_err *err)
{
	struct sink_lane *sl = sp->lane;
	struct sink_trouble *t = trouble_of(sl, sp->part);

	health_trouble(sl->l->c, TROUBLE_SINK, err);
	if (!t) {
		sl->troubles = pr_realloc(sl->troubles, (sl->troubles_n + 1) * sizeof(*sl->troubles));
		t = &sl->troubles[sl->troubles_n++];
		*t = (struct sink_trouble){ pr_strdup(sp->part->topic), sp->part->partition, 0, 0 };
		if (sl->troubles_n == 1)
			atomic_fetch_add(&sl->shared->troubled, 1);
	}
	t->told_us = pr_mono_us();
	return pr_backoff_us(t->tries++, AGAIN_US, AGAIN_MAX_US);
}

static void trouble_drop(struct sink_lane *sl, struct sink_trouble *t)
{
	free(t->topic);
	*t = sl->troubles[--sl->troubles_n];
	if (sl->troubles_n == 0 && atomic_fetch_sub(&sl->shared->troubled, 1) == 1)
		health_trouble(sl->l->c, TROUBLE_SINK, NULL);
}

void sink_trouble_over(struct sink_part *sp)
{
	struct sink_trouble *t = trouble_of(sp->lane, sp->part);

	if (t)
		trouble_drop(sp->lane, t);
}

/* Of partitions that are not ours any more: one that is claimed again is not served for a moment. */
void sink_troubles_look(struct sink_lane *sl)
{
	int64_t now = pr_mono_us();

	for (size_t i = 0; i < sl->troubles_n;) {
		size_t j = 0;

		while (j < sl->l->served_n &&
			(sl->l->served[j].part->partition != sl->troubles[i].partition ||
				strcmp(sl->l->served[j].part->topic, sl->troubles[i].topic) != 0))
			j++;
		if (j == sl->l->served_n && now - sl->troubles[i].told_us > FORGIVEN_US)
			trouble_drop(sl, &sl->troubles[i]);
		else
			i++;
	}
}

/* Since when we have what is not published, for the pages: to collect is no lag, however old records are. */
static void tell_age(struct sink_part *sp)
{
	const struct sink_cut *c = sp->cuts ? sp->cuts : sp->open;

	sp->part->lane[0].held_us = c ? c->taken_us : 0;
}

static void count_published(struct sink_lane *sl, const struct sink_cut *c)
{
	const char *const target[] = { sl->ops->name, c->part->part->topic };
	int64_t bytes = 0;

	for (size_t i = 0; i < c->files_n; i++)
		bytes += c->files[i].bytes;
	pr_counter_add(pr_series_get(sl->shared->m.records, target), (uint64_t)c->records);
	pr_counter_add(pr_series_get(sl->shared->m.bytes, target), (uint64_t)(c->files_n ? bytes : c->bytes));
	pr_counter_add(sl->shared->m.files, c->files_n);
	pr_counter_add(pr_series_get(sl->shared->m.cuts, &c->reason), 1);
	atomic_fetch_add(&sl->l->c->handled[HANDLED], (uint64_t)c->records);
}

/* ---------------------------------------------------------------- cuts in memory */

struct sink_cut *sink_cut_open(struct sink_part *sp, int64_t first, int64_t ceiling_us)
{
	const struct sink_forced *f = sink_part_forced(sp);
	struct sink_cut *c = pr_calloc(1, sizeof(*c));

	c->part = sp;
	c->state = SINK_OPEN;
	c->first = first;
	c->min_us = INT64_MAX;
	c->max_us = INT64_MIN;
	c->oldest_us = INT64_MAX;
	c->watermark_us = c->mark_us = sp->watermark_us;
	c->ceiling_us = f && f->first == first ? f->ceiling_us : ceiling_us;
	c->future_us = INT64_MAX;
	sp->open = c;
	sp->opened_us = pr_mono_us();
	return c;
}

static void cut_free(struct sink_cut *c, int published)
{
	c->part->lane->ops->forget_cut(c, published);
	sink_letters_free(c);
	free(c);
}

void sink_part_forget(struct sink_part *sp)
{
	struct sink_cut *c;

	if (sp->lane->target)
		sp->lane->ops->forget(sp);
	if (sp->open)
		sink_letters_free(sp->open);
	free(sp->open);
	sp->open = NULL;
	while ((c = sp->cuts)) {
		sp->cuts = c->after;
		/* What is recorded is the next owner's to finish: its files stay. */
		cut_free(c, c->state == SINK_RECORDED);
	}
	sp->through = INT64_MAX; /* nothing more is taken */
	sp->part->lane[0].held_us = 0;
}

void sink_part_again(struct sink_part *sp, int64_t delay_us)
{
	sink_part_forget(sp);
	atomic_store(&sp->part->again_us, pr_mono_us() + delay_us);
	atomic_store(&sp->part->dead, 1);
	group_wake(sp->lane->l->c);
}

static struct sink_forced *forced_of(struct sink_part *sp)
{
	while (sp->forced_at < sp->forced_n && sp->forced[sp->forced_at].next <= position_of(sp))
		sp->forced_at++;
	return sp->forced_at < sp->forced_n ? &sp->forced[sp->forced_at] : NULL;
}

struct sink_forced *sink_part_forced(struct sink_part *sp)
{
	return forced_of(sp);
}

/* ---------------------------------------------------------------- transactions */

/* Positions of the cuts' parts: as they are (a fence), or behind the cuts. */
static void take_positions(struct sink_lane *sl, struct sink_cut **cuts, size_t n, int moved)
{
	struct lane *l = sl->l;

	l->steps_n = 0;
	for (size_t i = 0; i < n; i++)
		step_of(l, cuts[i]->part->part, 0)->next = moved ? cuts[i]->next : position_of(cuts[i]->part);
	qsort(l->steps, l->steps_n, sizeof(*l->steps), step_by_place);
}

/* 0, or -1: another owner's parts are fenced by then, and err says so; else the session or the database. */
static int submit(struct tx *t, struct pr_err *err)
{
	struct lane *l = t->l;
	int rc = pr_pg_pipeline(l->pg, t->s, t->s_n, NULL, err);

	pr_stmt_clear(t->s, t->s_n);
	tx_free(t);
	if (rc < 0 && pr_pg_ok(l->pg) && strcmp(err->code, "PRF01") == 0)
		lane_fenced(l, err);
	if (rc < 0)
		l->steps_n = 0;
	return rc;
}

static int record(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	struct tx t;

	tx_init(&t, sl->l, sl->l->work, 0);
	take_positions(sl, cuts, n, 0);
	tx_advance(&t, 0);
	ledger_record(&t, cuts, n);
	(void)tx_plain(&t, "SELECT 1", 1);
	if (submit(&t, err) < 0)
		return -1;
	sl->l->steps_n = 0;
	for (size_t i = 0; i < n; i++)
		cuts[i]->state = SINK_RECORDED;
	return 0;
}

static int roll_back(struct sink_lane *sl)
{
	if (!pr_pg_ok(sl->l->pg) || PQtransactionStatus(pr_pg_conn(sl->l->pg)) == PQTRANS_IDLE)
		return 0;
	return pr_pg_run(sl->l->pg, "ROLLBACK", 0, NULL, NULL);
}

static int have_letters(struct sink_cut **cuts, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (cuts[i]->letters)
			return 1;
	return 0;
}

/* A transaction is open then, and has their dead letters. */
static int bury_letters(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	if (pr_pg_run(sl->l->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	if (sink_letters_bury(sl, cuts, n, err) < 0) {
		(void)roll_back(sl);
		return -1;
	}
	/* If we die here, none of them is a dead letter: whoever goes on reads their cut again. */
	FAULT(sink_buried_before_commit);
	return 0;
}

static int publish_tx(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	int letters = have_letters(cuts, n);
	struct tx t;

	if (letters && bury_letters(sl, cuts, n, err) < 0)
		return -1;
	tx_init(&t, sl->l, sl->l->work, 0);
	take_positions(sl, cuts, n, 1);
	ledger_publish(&t, cuts, n);
	tx_advance(&t, !letters);
	if (letters)
		(void)tx_plain(&t, "COMMIT", 1);
	if (submit(&t, err) == 0)
		return 0;
	(void)roll_back(sl);
	return -1;
}

/* ---------------------------------------------------------------- after publishing */

/* The parts' first cuts are over. */
static void done(struct sink_lane *sl, struct sink_cut **cuts, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct sink_part *sp = cuts[i]->part;

		sp->cuts = cuts[i]->after;
		count_published(sl, cuts[i]);
		sink_letters_told(sl, cuts[i]);
		tell_age(sp);
		sink_trouble_over(sp);
	}
	lane_moved(sl->l);
	if (sl->ops->published)
		sl->ops->published(sl, cuts, n);
	for (size_t i = 0; i < n; i++)
		cut_free(cuts[i], 1);
}

static int finish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	if (n == 0)
		return 0;
	/* If we die here, everything is where it shall be, and the position is not: the next owner finds the
	 * cut recorded and looks. */
	FAULT(sink_published_before_position);
	if (publish_tx(sl, cuts, n, err) < 0)
		return -1;
	/* If we die here, all of it is durable: the next owner begins behind it. */
	FAULT(sink_position_before_memory);
	done(sl, cuts, n);
	return 0;
}

/* Two halves, recorded in one transaction: each range's key keeps its meaning, whoever goes on. */
static int split(struct sink_lane *sl, struct sink_cut *c, struct pr_err *err)
{
	struct sink_cut *second = pr_calloc(1, sizeof(*second));
	struct tx t;

	*second = (struct sink_cut){ .part = c->part,
		.after = c->after,
		.state = SINK_RECORDED,
		.first = c->split_at,
		.next = c->next,
		.min_us = c->min_us,
		.max_us = c->max_us,
		.watermark_us = c->watermark_us,
		.mark_us = c->mark_us,
		.ceiling_us = c->ceiling_us,
		.oldest_us = c->oldest_us,
		.taken_us = c->taken_us,
		.reason = "split" };
	if (sl->ops->split(c->part, c, second, err) < 0) {
		free(second);
		return -1;
	}
	c->next = c->split_at;
	c->after = second;
	if (sl->ops->one_transaction) { /* nothing was seen of it, and nothing is recorded */
		second->state = SINK_SEALED;
		return 0;
	}
	tx_init(&t, sl->l, sl->l->work, 0);
	take_positions(sl, &c, 1, 0);
	tx_advance(&t, 0);
	ledger_split(&t, c, second);
	(void)tx_plain(&t, "SELECT 1", 1);
	/* If we die here, the cut is still one, and is refused as one again. */
	FAULT(sink_split_before_commit);
	if (submit(&t, err) < 0) {
		/* Whether it is one or two there is not known: what the database says is done. */
		sink_part_again(c->part, 1);
		return -1;
	}
	return 0;
}

/* The record is read again, to become a dead letter: the database remembers why. */
static int refuse(struct sink_lane *sl, struct sink_cut *c, struct pr_err *err)
{
	struct tx t;

	tx_init(&t, sl->l, sl->l->work, 0);
	take_positions(sl, &c, 1, 0);
	tx_advance(&t, 0);
	if (sl->ops->one_transaction)
		ledger_record(&t, &c, 1);
	ledger_refuse(&t, c);
	(void)tx_plain(&t, "SELECT 1", 1);
	if (submit(&t, err) < 0)
		return -1;
	sl->l->steps_n = 0;
	sink_part_again(c->part, 1);
	return 0;
}

static int not_published(struct sink_lane *sl, struct sink_cut *c, struct pr_err *err)
{
	int64_t wait_us;

	switch (c->said) {
	case SINK_SPLIT:
		return split(sl, c, err);
	case SINK_REFUSED:
		return refuse(sl, c, err);
	case SINK_REREAD:
		sink_part_again(c->part, sink_trouble(c->part, &c->why));
		return 0;
	default:
		wait_us = sink_trouble(c->part, &c->why);
		if (c->again_us <= pr_mono_us())
			c->again_us = pr_mono_us() + wait_us;
		return 0;
	}
}

/* Those that are published first; how many. */
static size_t sort_out(struct sink_cut **cuts, size_t n)
{
	size_t good = 0;

	for (size_t i = 0; i < n; i++) {
		struct sink_cut *c = cuts[i];

		if (c->said != SINK_PUBLISHED)
			continue;
		cuts[i] = cuts[good];
		cuts[good++] = c;
	}
	return good;
}

static int all_not_published(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	int rc = 0;

	for (size_t i = 0; i < n && rc == 0; i++)
		rc = not_published(sl, cuts[i], err);
	return rc;
}

/* What publish said of each. */
static int judge(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	size_t good = sort_out(cuts, n);

	if (finish(sl, cuts, good, err) < 0)
		return -1;
	return all_not_published(sl, cuts + good, n - good, err);
}

/* ---------------------------------------------------------------- a round */

static int publish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	if (n == 0)
		return 0;
	/* If we die here, the cuts are recorded, and nobody sees them yet: the next owner finishes them. */
	FAULT(sink_recorded_before_publish);
	if (SABOTAGE(sink_position_first)) {
		if (publish_tx(sl, cuts, n, err) < 0)
			return -1;
		lane_moved(sl->l);
		FAULT(sink_published_before_position);
	}
	if (sl->ops->publish(sl, cuts, n, err) < 0)
		return -1;
	return judge(sl, cuts, n, err);
}

static int commit_with(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	struct tx t;

	tx_init(&t, sl->l, sl->l->work, 0);
	take_positions(sl, cuts, n, 1);
	ledger_record(&t, cuts, n);
	ledger_publish(&t, cuts, n);
	tx_advance(&t, 0);
	(void)tx_plain(&t, "COMMIT", 1);
	/* If we die here, nothing of it has happened. */
	FAULT(sink_copied_before_commit);
	if (submit(&t, err) < 0)
		return -1;
	done(sl, cuts, n);
	return 0;
}

/* A target in our own database: what it writes, the cuts and the positions are one transaction. */
static int one_transaction(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	size_t good;
	int rc;

	if (pr_pg_run(sl->l->pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	rc = sl->ops->publish(sl, cuts, n, err);
	good = rc == 0 ? sort_out(cuts, n) : 0;
	if (good > 0)
		rc = commit_with(sl, cuts, good, err);
	if ((rc < 0 || good == 0) && roll_back(sl) < 0)
		return rc < 0 ? -1 : pr_fail(err, PR_RETRY, "the database does not take ROLLBACK");
	return rc < 0 ? -1 : all_not_published(sl, cuts + good, n - good, err);
}

/* First cuts of parts that are in that state and not put off. */
static size_t collect(struct sink_lane *sl, enum sink_state state, struct sink_cut **cuts)
{
	int64_t now = pr_mono_us();
	size_t n = 0;

	for (struct sink_part *sp = sl->parts; sp; sp = sp->after)
		if (sp->cuts && sp->cuts->state == state && sp->cuts->again_us <= now &&
			!atomic_load(&sp->part->dead))
			cuts[n++] = sp->cuts;
	return n;
}

static size_t count_parts(const struct sink_lane *sl)
{
	size_t n = 0;

	for (const struct sink_part *sp = sl->parts; sp; sp = sp->after)
		n++;
	return n;
}

static int through_the_machine(struct sink_lane *sl, struct pr_err *err)
{
	struct sink_cut **cuts = pr_calloc(count_parts(sl) + 1, sizeof(struct sink_cut *));
	size_t n = collect(sl, SINK_SEALED, cuts);
	int rc = 0, did = n > 0;

	if (n > 0 && sl->shared->catalogue)
		sink_catalogue_flush(sl->shared->catalogue, sl->l->pg);
	/* If we die here, nothing of the cuts is known: their records are read again, and cut anew. */
	if (n > 0)
		FAULT(sink_sealed_before_record);
	if (n > 0)
		HOLD(sink_sealed_before_record);
	if (n > 0 && sl->ops->one_transaction) {
		rc = one_transaction(sl, cuts, n, err);
	} else {
		if (n > 0 && !SABOTAGE(sink_no_record))
			rc = record(sl, cuts, n, err);
		for (size_t i = 0; i < n && SABOTAGE(sink_no_record); i++)
			cuts[i]->state = SINK_RECORDED;
		n = rc == 0 ? collect(sl, SINK_RECORDED, cuts) : 0;
		did |= n > 0;
		if (rc == 0)
			rc = publish(sl, cuts, n, err);
	}
	free(cuts);
	return rc < 0 ? -1 : did;
}

static void went_elsewhere(struct sink_part *sp, const char *target)
{
	struct pr_err err;

	(void)pr_fail(&err, PR_STOP,
		"group \"%s\" has published partition %" PRId32 " of \"%s\" to target %s, not %s",
		sp->lane->l->c->conf->group, sp->part->partition, sp->part->topic, target,
		sp->lane->ops->name);
	(void)pr_hint(&err, "a sink with another target is a group of its own: another name");
	sink_part_again(sp, sink_trouble(sp, &err));
}

static void stands_inside(struct sink_part *sp, const struct sink_forced *f)
{
	struct pr_err err;

	(void)pr_fail(&err, PR_STOP,
		"position %" PRId64 " of partition %" PRId32
		" of \"%s\" is in the middle of what is published as a whole",
		position_of(sp), sp->part->partition, sp->part->topic);
	(void)pr_hint(&err,
		"set next_offset in inbox.position to %" PRId64 " to have it again, or to %" PRId64
		" to go on behind it",
		f->first, f->next);
	sink_part_again(sp, sink_trouble(sp, &err));
}

/* Whether what comes by again is the same nobody can tell. */
void sink_say_folded(struct sink_part *sp, const struct sink_forced *f)
{
	const struct consumer *c = sp->lane->l->c;
	enum pr_sink_target target = pr_sink_target_of(&c->conf->sink);
	struct pr_err err;

	(void)pr_fail(&err, PR_STOP,
		"offsets %" PRId64 " to %" PRId64 " of partition %" PRId32
		" of \"%s\" are published, and how they were cut is not known any more (handler.%s.keep)",
		f->first, f->next - 1, sp->part->partition, sp->part->topic, pr_sink_target_str(target));
	if (target == PR_SINK_HTTP)
		(void)pr_hint(&err,
			"set next_offset in inbox.position to %" PRId64
			" to go on behind them; to send them again, "
			"give the sink a group of its own, another name",
			f->next);
	else
		(void)pr_hint(&err,
			"set next_offset in inbox.position to %" PRId64
			" to go on behind them; to have them again, "
			"move aside what the sink has of the topic, and SELECT sink.forget('%s', '%s')",
			f->next, c->conf->group, sp->part->topic);
	sink_part_again(sp, sink_trouble(sp, &err));
}

int sink_part_load(struct sink_part *sp, struct pr_err *err)
{
	const struct sink_forced *f;
	char target[16];

	if (ledger_read_ranges(sp, err) < 0 || ledger_read_watermark(sp, target, err) < 0)
		return -1;
	if (*target && strcmp(target, sp->lane->ops->name) != 0)
		went_elsewhere(sp, target);
	sp->through = position_of(sp);
	f = forced_of(sp);
	if (f && f->first < position_of(sp))
		(f->folded ? sink_say_folded : stands_inside)(sp, f);
	return 0;
}

/* ---------------------------------------------------------------- what is due */

static const char *due(const struct sink_part *sp, int64_t now)
{
	const struct pr_sink_cut_conf *conf = pr_sink_cut_of(sp->lane->conf);
	const struct sink_cut *c = sp->open;

	if (c->reason)
		return c->reason;
	if (c->records >= conf->max_records)
		return "records";
	if (c->bytes >= conf->max_bytes)
		return "bytes";
	return now - sp->opened_us >= conf->max_age_us ? "age" : NULL;
}

/* A range that the database holds is cut there, however large it is. */
static int is_forced(const struct sink_part *sp, const struct sink_forced *f)
{
	return f && f->first == sp->open->first;
}

int sink_part_is_due(struct sink_part *sp)
{
	const struct pr_sink_cut_conf *conf = pr_sink_cut_of(sp->lane->conf);
	const struct sink_forced *f = forced_of(sp);

	if (!sp->open || sp->open->reason)
		return sp->open != NULL;
	if (is_forced(sp, f))
		return sp->through >= f->next;
	return sp->open->records >= conf->max_records || sp->open->bytes >= conf->max_bytes;
}

/* All that was read of it is taken. */
static int is_level(const struct sink_part *sp, int64_t through)
{
	const struct lane *l = sp->lane->l;

	for (size_t i = 0; i < l->served_n && l->level && l->work_n == 0; i++)
		if (l->served[i].part == sp->part)
			return l->served[i].through >= through;
	return 0;
}

/* ---------------------------------------------------------------- what was published before */

void sink_hint_anew(const struct consumer *c, const char *topic, struct pr_err *err)
{
	if (pr_sink_target_of(&c->conf->sink) == PR_SINK_HTTP)
		(void)pr_hint(err,
			"if the topic was made anew, give the sink a group of its own, another name: to the "
			"API this one's Idempotency-Keys mean the old records");
	else
		(void)pr_hint(err,
			"if the topic was made anew, move aside what the sink has of it, SELECT "
			"sink.forget('%s', '%s'), and set next_offset in inbox.position to where to go on",
			c->conf->group, topic);
}

static void say_other(struct sink_part *sp, const struct sink_forced *f)
{
	struct pr_err err;
	size_t n;

	(void)pr_fail(&err, PR_STOP,
		"offsets %" PRId64 " to %" PRId64 " of partition %" PRId32
		" of \"%s\" were published before with other records or in another form",
		f->first, f->next - 1, sp->part->partition, sp->part->topic);
	sink_hint_anew(sp->lane->l->c, sp->part->topic, &err);
	n = strlen(err.hint);
	(void)snprintf(err.hint + n, sizeof(err.hint) - n,
		"; next_offset %" PRId64 " leaves what is there as it is", f->next);
	sink_part_again(sp, sink_trouble(sp, &err));
}

/* The same records in other bytes. What lies there stays; where it does not, the bytes of now are recorded.
 */
static void keep_files(struct sink_part *sp, struct sink_cut *was, struct sink_cut *c)
{
	struct pr_err err;

	if (sp->lane->ops->recover(sp, was, &err) <= 0)
		return;
	sp->lane->ops->forget_cut(c, 0);
	c->files = was->files;
	c->files_n = was->files_n;
	c->state = SINK_RECORDED;
	was->files = NULL;
	was->files_n = 0;
}

/* -1: it was published, but not like this, and that is said. What was published before is recorded. */
static int compare(struct sink_part *sp, const struct sink_forced *f, struct sink_cut *c)
{
	struct pr_err err;
	struct sink_cut *was = ledger_read_cut(sp, f, &err);
	int same, bytes;

	if (!was) {
		sink_part_again(sp, AGAIN_US);
		return -1;
	}
	same = ledger_is_same(was, f, c, &bytes);
	if (same && !bytes)
		keep_files(sp, was, c);
	else if (same && !sp->lane->ops->one_transaction)
		c->state = SINK_RECORDED;
	cut_free(was, 1);
	if (!same)
		say_other(sp, f);
	return same ? 0 : -1;
}

/* -1: said, and put off. */
static int seal(struct sink_part *sp, const char *reason)
{
	const struct sink_forced *f = forced_of(sp);
	struct sink_cut *c = sp->open;
	struct pr_err err;

	f = is_forced(sp, f) ? f : NULL;
	c->reason = reason;
	c->next = f ? f->next : sp->through;
	if (sp->lane->ops->seal(sp, c, &err) < 0) {
		sink_part_again(sp, sink_trouble(sp, &err));
		return -1;
	}
	sp->open = NULL;
	c->state = SINK_SEALED;
	if (f && f->published && compare(sp, f, c) < 0) {
		cut_free(c, 0);
		return -1;
	}
	sp->cuts = c;
	sp->through = later(sp->through, c->next);
	return 0;
}

static void seal_due(struct sink_lane *sl, int all)
{
	int64_t now = pr_mono_us();

	for (struct sink_part *sp = sl->parts; sp; sp = sp->after) {
		const struct sink_forced *f = forced_of(sp);
		int drains = atomic_load(&sp->part->ending) != PART_GOES_ON;
		const char *reason;

		if (!sp->open || sp->cuts || atomic_load(&sp->part->dead))
			continue;
		if (is_forced(sp, f)) /* exactly so, or not at all */
			reason = sp->open->reason                                  ? sp->open->reason
				 : sp->through >= f->next || is_level(sp, f->next) ? "recorded"
										   : NULL;
		else
			reason = all || drains ? "stop" : due(sp, now);
		if (reason)
			(void)seal(sp, reason);
		else if (drains) /* its end is read by who comes next */
			sink_part_again(sp, 1);
	}
}

/* ---------------------------------------------------------------- what owners before us left */

/* 1: what the database holds at the position is published, and the position behind it. */
static int recover(struct sink_part *sp, struct sink_forced *f, struct pr_err *err)
{
	struct sink_lane *sl = sp->lane;
	struct sink_cut *c;
	int rc;

	f->looked = 1;
	c = ledger_read_cut(sp, f, err);
	if (!c)
		return -1;
	rc = sl->ops->recover(sp, c, err);
	if (rc <= 0) {
		cut_free(c, 1);
		if (rc < 0) { /* the target, and not the database */
			sink_part_again(sp, sink_trouble(sp, err));
			return 0;
		}
		return 0;
	}
	if (*f->letters && !f->buried)
		pr_log(PR_WARN, "late records are gone from the topic before they were dead letters",
			KS("topic", sp->part->topic), KI("partition", sp->part->partition),
			KS("offsets", f->letters));
	sp->cuts = c;
	sp->through = c->next;
	sp->watermark_us = later(sp->watermark_us, c->mark_us);
	c->said = SINK_PUBLISHED;
	if (finish(sl, &c, 1, err) < 0)
		return -1;
	return 1;
}

/* Whether the cut begins where we stand: a position that was never set stands before the first record. */
static int is_here(const struct sink_part *sp, const struct sink_forced *f)
{
	return f->first == position_of(sp) || (position_of(sp) < 0 && sp->forced_at == 0);
}

/* What was recorded is what its owner read, but for late ones that are to be dead letters. Of what was
 * published before only the topic can tell, unless it has nothing of it any more. */
static int may_recover(const struct sink_part *sp, const struct sink_forced *f)
{
	int gone = f->next <= atomic_load(&sp->part->low);

	if (f->looked || f->refused || f->folded || !sp->lane->ops->recover)
		return 0;
	return f->published ? gone : is_here(sp, f) && (gone || f->buried || !*f->letters);
}

static int look_back(struct sink_lane *sl, struct pr_err *err)
{
	int did = 0, rc;

	for (struct sink_part *sp = sl->parts; sp; sp = sp->after) {
		struct sink_forced *f = forced_of(sp);

		if (atomic_load(&sp->part->dead) || sp->open || sp->cuts)
			continue;
		if (!f && sp->forced_more) {
			if (ledger_read_ranges(sp, err) < 0)
				return -1;
			f = forced_of(sp);
		}
		if (f && may_recover(sp, f)) {
			rc = recover(sp, f, err);
			if (rc < 0)
				return -1;
			did |= rc;
			if (rc > 0)
				continue;
		}
		if (!sp->recovered && !atomic_load(&sp->part->dead)) {
			sp->recovered = 1;
			if (sl->ops->taken_over)
				sl->ops->taken_over(sp);
		}
	}
	return did;
}

/* ---------------------------------------------------------------- positions without cuts */

/* Nothing is left of a range that the database holds: no cut comes of it. */
static int pass_over(struct sink_part *sp, const struct sink_forced *f, struct pr_err *err)
{
	struct lane *l = sp->lane->l;
	struct tx t;

	if (!f->published)
		pr_log(PR_WARN, "nothing is left of a range that was to be published",
			KS("topic", sp->part->topic), KI("partition", sp->part->partition),
			KI("from", f->first), KI("to", f->next));
	tx_init(&t, l, l->work, 0);
	l->steps_n = 0;
	step_of(l, sp->part, 0)->next = f->next;
	ledger_pass(&t, sp, f);
	tx_advance(&t, 1);
	if (submit(&t, err) < 0)
		return -1;
	lane_moved(l);
	return 0;
}

static int is_idle(const struct sink_part *sp)
{
	return sp->recovered && !sp->open && !sp->cuts && !atomic_load(&sp->part->dead);
}

static int pass_all(struct sink_lane *sl, struct pr_err *err)
{
	int did = 0;

	for (struct sink_part *sp = sl->parts; sp; sp = sp->after) {
		const struct sink_forced *f;

		while (is_idle(sp) && (f = forced_of(sp)) && sp->through >= f->next) {
			if (pass_over(sp, f, err) < 0)
				return -1;
			did = 1;
		}
	}
	return did;
}

/* How far the position may go: not into a range that the database holds. */
static int64_t bound_of(struct sink_part *sp)
{
	const struct sink_forced *f = forced_of(sp);

	return f ? f->first : sp->forced_more ? position_of(sp) : INT64_MAX;
}

/* Records that are not wanted, and offsets that are no records: nothing is open below them. */
int sink_move_idle(struct sink_lane *sl, struct pr_err *err)
{
	struct lane *l = sl->l;
	struct tx t;

	l->steps_n = 0;
	for (struct sink_part *sp = sl->parts; sp; sp = sp->after) {
		int64_t through;

		if (!is_idle(sp))
			continue;
		for (size_t i = 0; i < l->served_n && l->level && l->work_n == 0; i++)
			if (l->served[i].part == sp->part)
				sp->through = later(sp->through, l->served[i].through);
		if (health_part_events(sp->part) == 0)
			sink_trouble_over(sp);
		through = sp->through < bound_of(sp) ? sp->through : bound_of(sp);
		if (through > position_of(sp))
			step_of(l, sp->part, 0)->next = through;
	}
	if (l->steps_n == 0)
		return 0;
	qsort(l->steps, l->steps_n, sizeof(*l->steps), step_by_place);
	tx_init(&t, l, l->work, 0);
	tx_advance(&t, 1);
	if (submit(&t, err) < 0)
		return -1;
	lane_moved(l);
	return 0;
}

/* ---------------------------------------------------------------- the way in */

int sink_cuts_run(struct sink_lane *sl, int all, struct pr_err *err)
{
	int did = look_back(sl, err), rc = did < 0 ? -1 : pass_all(sl, err);

	if (rc < 0)
		return -1;
	did |= rc;
	seal_due(sl, all);
	rc = through_the_machine(sl, err);
	if (rc < 0)
		return -1;
	if (pr_mono_us() - sl->idle_moved_us > IDLE_MOVE_US) {
		sl->idle_moved_us = pr_mono_us();
		sink_troubles_look(sl);
		if (sink_move_idle(sl, err) < 0)
			return -1;
		if (sl->ops->look && !all)
			sl->ops->look(sl);
	}
	return did | rc;
}
