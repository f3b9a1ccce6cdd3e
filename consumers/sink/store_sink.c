/* consumers/sink/store_sink.c -- a group that copies: records go into open cuts as they come, cuts that are
 * due go through the machine (cut.c) between two batches, and positions move by cuts and not by batches. What
 * is taken in and not published is nowhere but here, and is read again by whoever goes on. Refuses to take a
 * record twice, or one that does not follow what was taken before it. */
#include "consumers/sink/files.h"
#include "consumers/sink/ledger.h"
#include "consumers/sink/prune.h"
#include "consumers/tx.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/uuid.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define TOLD_EVERY (60 * PR_SEC)     /* what is left out, or comes from the future, a lane */
#define AHEAD_US   (5 * 60 * PR_SEC) /* clocks of producers may be ahead of ours */

static const struct sink_target_ops *const targets[] = { [PR_SINK_FILES] = &sink_files,
	[PR_SINK_HTTP] = &sink_http,
	[PR_SINK_S3] = &sink_s3,
	[PR_SINK_TABLE] = &sink_table };

/* ---------------------------------------------------------------- shared by all lanes */

static struct sink_shared *make_shared(struct consumer *c)
{
	struct sink_shared *s = pr_calloc(1, sizeof(*s));
	struct pr_metrics *m = c->m.registry;
	struct pr_family *withheld;

	s->c = c;
	s->m.records = pr_family_new(m, PR_COUNTER, "postrider_sink_records_total", "target,topic", 0,
		"Records that are published.");
	s->m.bytes = pr_family_new(m, PR_COUNTER, "postrider_sink_bytes_total", "target,topic", 0,
		"Bytes of what is published, as it lies there.");
	s->m.cuts = pr_family_new(m, PR_COUNTER, "postrider_sink_cuts_total", "reason", 0,
		"Ranges of offsets that were published as a whole, and why they ended where they did.");
	s->m.files = pr_series_one(pr_family_new(
		m, PR_COUNTER, "postrider_sink_files_total", "", 0, "Files that got their name."));
	s->m.manifests = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_sink_manifests_total", "", 0,
		"Manifests that were written, each as a whole."));
	s->m.open_files = pr_gauge_new(m, "postrider_sink_open_files", "Files that are open for writing.");
	s->m.lag = pr_gauge_new(m, "postrider_sink_lag_seconds",
		"Age of the oldest record that was read and is not published; 0: there is none.");
	s->m.drift = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_sink_drift_total", "", 0,
		"Paths and kinds in payloads that were never seen before in their type."));
	s->m.late = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_sink_late_total", "", 0,
		"Records that came after their hour was over."));
	s->m.future = pr_series_one(pr_family_new(m, PR_COUNTER, "postrider_sink_future_total", "", 0,
		"Records whose time is more than five minutes ahead of the clock: they end no hour."));
	withheld = pr_family_new(m, PR_COUNTER, "postrider_sink_withheld_total", "what", 0,
		"Payloads, and values in them, that were left out because handler.fields could not look into "
		"them.");
	s->m.withheld = pr_series_get(withheld, (const char *const[]){ "payload" });
	s->m.misfits = pr_series_get(withheld, (const char *const[]){ "value" });
	for (int i = 0; i < LANES_MOST; i++)
		atomic_init(&s->oldest_us[i], INT64_MAX);
	if (c->conf->sink.catalogue)
		s->catalogue = sink_catalogue_new(s, &c->conf->sink);
	return s;
}

struct sink_shared *sink_shared_of(struct consumer *c)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static struct sink_shared *shared; /* one consumer a process */
	struct sink_shared *s;

	(void)pthread_mutex_lock(&mutex);
	if (!shared)
		shared = make_shared(c);
	s = shared;
	(void)pthread_mutex_unlock(&mutex);
	return s;
}

/* What waits for its turn, and what is collected, by the records' times. */
static int64_t oldest_of(const struct sink_part *sp)
{
	int64_t oldest = part_oldest_us(sp->part);

	if (sp->open && sp->open->oldest_us < oldest)
		oldest = sp->open->oldest_us;
	for (const struct sink_cut *c = sp->cuts; c; c = c->after)
		oldest = c->oldest_us < oldest ? c->oldest_us : oldest;
	return oldest;
}

/* The gauge is the process's: the oldest of all lanes. */
static void tell_lag(struct sink_lane *sl)
{
	int64_t oldest = INT64_MAX, now = pr_wall_us(), us;

	for (const struct sink_part *sp = sl->parts; sp; sp = sp->after) {
		us = oldest_of(sp);
		oldest = us < oldest && !atomic_load(&sp->part->dead) ? us : oldest;
	}
	atomic_store(&sl->shared->oldest_us[sl->l->number], oldest);
	for (int i = 0; i < LANES_MOST; i++) {
		us = atomic_load(&sl->shared->oldest_us[i]);
		oldest = us < oldest ? us : oldest;
	}
	pr_gauge_set(sl->shared->m.lag, oldest < now ? (double)(now - oldest) / PR_SEC : 0);
}

/* ---------------------------------------------------------------- parts */

static struct sink_part *find_part(const struct sink_lane *sl, const struct part *p)
{
	struct sink_part *sp = sl->parts;

	while (sp && sp->part != p)
		sp = sp->after;
	return sp;
}

static void part_free(struct sink_part *sp)
{
	sink_part_forget(sp);
	part_drop(sp->part);
	ledger_free_ranges(sp);
	free(sp);
}

static int is_served(const struct lane *l, const struct part *p)
{
	for (size_t i = 0; i < l->served_n; i++)
		if (l->served[i].part == p)
			return 1;
	return 0;
}

/* Those that are not ours any more; with all of them: nothing is. */
static void drop_parts(struct sink_lane *sl, int all)
{
	struct sink_part **at = &sl->parts, *sp;

	while ((sp = *at)) {
		if (!all && !atomic_load(&sp->part->dead) && is_served(sl->l, sp->part)) {
			at = &sp->after;
			continue;
		}
		*at = sp->after;
		part_free(sp);
	}
}

static struct sink_part *add_part(struct sink_lane *sl, struct part *p)
{
	struct sink_part *sp = pr_calloc(1, sizeof(*sp));

	sp->part = part_hold(p);
	sp->lane = sl;
	sp->watermark_us = INT64_MIN;
	sp->ended_us = -1;
	sp->through = INT64_MAX;
	sp->after = sl->parts;
	sl->parts = sp;
	return sp;
}

static int load(struct lane *l, struct pr_err *err)
{
	struct sink_lane *sl = l->sink;

	drop_parts(sl, 0);
	sink_troubles_look(sl);
	for (size_t i = 0; i < l->served_n; i++) {
		struct part *p = l->served[i].part;

		if (atomic_load(&p->dead) || find_part(sl, p))
			continue;
		if (sink_part_load(add_part(sl, p), err) < 0) {
			struct sink_part *sp = sl->parts;

			sl->parts = sp->after;
			part_free(sp);
			return -1;
		}
	}
	return 0;
}

/* ---------------------------------------------------------------- one record */

static void row_of(struct sink_lane *sl, const struct message *m, struct sink_row *row)
{
	char uuid[37];

	*row = (struct sink_row){ .type = m->type,
		.type_len = m->type_len,
		.topic = m->topic,
		.partition = m->partition,
		.offset = m->offset,
		.time_us = m->time_us,
		.key = m->key,
		.key_len = m->key_len,
		.headers = m->headers,
		.headers_n = m->headers_n,
		.payload = m->payload,
		.payload_len = m->payload_len,
		.json = m->json };
	if (m->id_state == ID_MISSING)
		return;
	row->id = m->id_text;
	row->id_len = strlen(m->id_text);
	if (row->id_len < sizeof(m->id_text) - 4)
		return;
	/* One that was cut would be no identity. */
	sl->scratch.len = 0;
	pr_buf_puts(&sl->scratch, pr_uuid_print(m->id, uuid));
	row->id = sl->scratch.s;
	row->id_len = sl->scratch.len;
}

/* Since when the open cut has what it has. */
static void count_age(struct sink_part *sp, int64_t time_us)
{
	struct sink_cut *c = sp->open;
	int64_t now, at;

	if (c->taken_us != 0 && time_us >= c->oldest_us)
		return;
	now = pr_wall_us();
	at = time_us >= 0 && time_us < now ? time_us : now;
	if (at < c->oldest_us)
		c->oldest_us = at;
	if (c->taken_us == 0)
		sp->part->lane[0].held_us = c->taken_us = now;
}

static void count_future(struct sink_part *sp, const struct sink_row *row)
{
	struct sink_lane *sl = sp->lane;

	if (row->time_us < sp->open->future_us)
		sp->open->future_us = row->time_us;
	pr_counter_add(sl->shared->m.future, 1);
	if (pr_log_due(&sl->future_told_us, TOLD_EVERY))
		pr_log(PR_WARN, "a record's time is ahead of the clock: it ends no hour",
			KS("topic", row->topic), KI("partition", row->partition), KI("offset", row->offset),
			KI("seconds", (row->time_us - pr_wall_us()) / PR_SEC));
}

static void count_row(struct sink_part *sp, const struct sink_row *row)
{
	struct sink_cut *c = sp->open;

	c->records++;
	count_age(sp, row->time_us);
	if (row->time_us < 0)
		return;
	if (row->time_us < c->min_us)
		c->min_us = row->time_us;
	if (row->time_us > c->max_us)
		c->max_us = row->time_us;
	if (row->time_us > c->ceiling_us)
		count_future(sp, row);
	else if (row->time_us > sp->watermark_us)
		sp->watermark_us = c->mark_us = row->time_us;
}

static const struct pr_sink_late_conf *late_conf(const struct sink_lane *sl)
{
	return pr_sink_target_of(sl->conf) == PR_SINK_S3 ? &sl->conf->s3.late : &sl->conf->files.late;
}

static int has_hours(const struct sink_lane *sl)
{
	enum pr_sink_target t = pr_sink_target_of(sl->conf);

	return t == PR_SINK_FILES || t == PR_SINK_S3;
}

static int is_late(const struct sink_part *sp, const struct message *m)
{
	return has_hours(sp->lane) && sink_is_late(late_conf(sp->lane), m->time_us, sp->watermark_us);
}

/* To be a dead letter. In a range that the database holds: as it was. */
static int is_letter(const struct sink_part *sp, const struct sink_forced *f, const struct message *m)
{
	if (f)
		return sink_letters_have(f->letters, m->offset);
	return is_late(sp, m) && late_conf(sp->lane)->policy == PR_SINK_REJECT;
}

/* The ceiling rises with the clock while a cut is open, but stays below what was the future in it: read again
 * under the one that is recorded, the same records are. 0: this one would be above. */
static int raise_ceiling(struct sink_cut *c, int64_t time_us)
{
	int64_t to;

	if (time_us <= c->ceiling_us)
		return 1;
	to = pr_wall_us() + AHEAD_US;
	if (time_us > to)
		return 1;
	if (time_us >= c->future_us)
		return 0;
	c->ceiling_us = to < c->future_us ? to : c->future_us - 1;
	return 1;
}

enum taken {
	TAKEN,
	LETTER,  /* late, and a dead letter when the open cut is published */
	BEFORE,  /* the open cut has to be published before it */
	BURY_IT, /* a dead letter; nothing is open */
	GONE,    /* the part is read again */
};

/* The open cut ends before the record, and why. */
static enum taken ends(struct sink_part *sp, const char *reason)
{
	sp->open->reason = reason;
	return BEFORE;
}

/* No range of the database's is about it. */
static enum taken may_take_new(struct sink_part *sp, const struct message *m)
{
	if (is_letter(sp, NULL, m))
		return sink_letters_have_room(sp, m->bytes) ? LETTER : ends(sp, "late");
	return !sp->open || raise_ceiling(sp->open, m->time_us) ? TAKEN : ends(sp, "clock");
}

/* Whether it can go into the open cut, or begin one; *ret: the range of the database's that it is in. */
static enum taken may_take(struct sink_part *sp, const struct message *m, const struct sink_forced **ret)
{
	const struct sink_forced *f;

	*ret = NULL;
	if (sp->cuts || sink_part_is_due(sp))
		return BEFORE;
	f = sink_part_forced(sp);
	if (!f && sp->forced_more)
		return BEFORE; /* the next ones are read first */
	if (f && !sp->open && m->offset >= f->next) {
		sp->through = m->offset; /* nothing is left of it */
		return BEFORE;
	}
	if (f && f->folded && !sp->open && m->offset >= f->first) {
		sink_say_folded(sp, f);
		return GONE;
	}
	if (f && sp->open && (f->first == sp->open->first ? m->offset >= f->next : m->offset >= f->first))
		return ends(sp, "recorded");
	if (!f || m->offset < f->first)
		return may_take_new(sp, m);
	*ret = f;
	if (f->refused)
		return sp->open ? ends(sp, "refused") : BURY_IT;
	return is_letter(sp, f, m) ? LETTER : TAKEN;
}

/* By the rules; what they could not look into is left out, and told of. */
static void project(struct sink_lane *sl, struct sink_row *row)
{
	uint64_t misfits = sink_project_row(sl->project, row);
	int64_t now = pr_mono_us();

	if (!row->withheld && misfits == 0)
		return;
	pr_counter_add(sl->shared->m.withheld, row->withheld != 0);
	pr_counter_add(sl->shared->m.misfits, misfits);
	if (sl->withheld_told_us && now - sl->withheld_told_us < TOLD_EVERY)
		return;
	sl->withheld_told_us = now;
	pr_log(PR_WARN, "left out of a record what handler.fields could not look into",
		KS("what", row->withheld ? "its payload" : "values in its payload"), KS("topic", row->topic),
		KI("partition", row->partition), KI("offset", row->offset));
}

/* Where the cut begins whose first record it is. */
static int64_t begin_of(struct sink_part *sp, const struct message *m)
{
	const struct sink_forced *f = sink_part_forced(sp);
	int64_t position = sp->part->lane[0].next;

	if (f && f->first <= m->offset)
		return f->first;
	return position >= 0 ? position : m->offset;
}

static void open_for(struct sink_part *sp, const struct message *m)
{
	if (!sp->open)
		(void)sink_cut_open(
			sp, begin_of(sp, m), has_hours(sp->lane) ? pr_wall_us() + AHEAD_US : INT64_MAX);
}

/* f: the range of the database's that it is in. */
static enum taken put_letter(struct sink_part *sp, struct message *m, const struct sink_forced *f)
{
	if (!f || !f->buried) {
		open_for(sp, m);
		sink_letter_add(sp, m);
		count_age(sp, m->time_us);
		pr_counter_add(sp->lane->shared->m.late, 1);
	}
	sp->through = m->offset + 1;
	return TAKEN;
}

static enum taken put(struct sink_part *sp, const struct message *m)
{
	struct sink_lane *sl = sp->lane;
	struct sink_row row;
	struct pr_err err;
	int late = is_late(sp, m);

	open_for(sp, m);
	row_of(sl, m, &row);
	if (sl->shared->catalogue)
		sink_catalogue_row(sl->shared->catalogue, &row);
	if (sl->project)
		project(sl, &row);
	if (sl->ops->put(sp, &row, &err) < 0) {
		sink_part_again(sp, sink_trouble(sp, &err));
		return GONE;
	}
	count_row(sp, &row);
	if (late)
		pr_counter_add(sl->shared->m.late, 1);
	sp->through = m->offset + 1;
	return TAKEN;
}

/* ---------------------------------------------------------------- dead letters */

/* What its target refused it with. */
static enum pr_fail_class class_of(const struct sink_lane *sl, const char *code)
{
	if (pr_sink_target_of(sl->conf) != PR_SINK_TABLE)
		return PR_FAIL_HTTP;
	return strcmp(code, "key") == 0 || strcmp(code, "json") == 0 ? PR_FAIL_DECODE : PR_FAIL_SQLSTATE;
}

/* The first message of work, and the position behind it, in one transaction. */
static enum applied bury(struct sink_part *sp, const struct sink_forced *why, struct pr_err *err)
{
	struct lane *l = sp->lane->l;
	struct work *w = &l->work[0];
	struct outcome out = { .cls = class_of(sp->lane, why->code) };
	struct tx t;
	int rc;

	(void)snprintf(out.code, sizeof(out.code), "%s", why->code);
	(void)snprintf(out.text, sizeof(out.text), "%s", why->answer);
	w->m->attempts++;
	message_failed(w->m, &out);
	w->v = (struct verdict){ .fate = FATE_BURY };
	tx_init(&t, l, w, 1);
	l->steps_n = 0;
	step_of(l, sp->part, 0)->next = w->m->offset + 1;
	tx_held(&t);
	tx_advance(&t, 1);
	rc = pr_pg_pipeline(l->pg, t.s, t.s_n, NULL, err);
	pr_stmt_clear(t.s, t.s_n);
	tx_free(&t);
	if (rc < 0)
		return pr_pg_ok(l->pg) && strcmp(err->code, "PRF01") == 0 ? FENCED : BROKEN;
	sp->through = w->m->offset + 1;
	sink_trouble_over(sp);
	account(l, w, 1);
	return APPLIED;
}

/* ---------------------------------------------------------------- a batch */

/* Until a cut has to be published: the machine is next, unless it was put off. */
static void wait_for(struct lane *l, const struct sink_part *sp)
{
	int64_t until = sp->cuts ? sp->cuts->again_us : 0;

	l->not_before_us = until;
}

/* 1: done with, whatever it was. */
static int is_over(struct lane *l, struct sink_part *sp, struct work *w)
{
	if (w->m->offset < sp->through)
		return 1;
	if (!w->decoded)
		message_decode(w->m, l->c->conf);
	w->decoded = 1;
	if (message_wanted(w->m, l->c->conf))
		return 0;
	sp->through = w->m->offset + 1;
	atomic_fetch_add(&l->c->handled[FILTERED], 1);
	return 1;
}

static enum applied take(struct lane *l, size_t n, size_t *ret_n, struct pr_err *err)
{
	struct sink_part *sp = NULL;
	const struct sink_forced *f;

	for (*ret_n = 0; *ret_n < n; (*ret_n)++) {
		struct work *w = &l->work[*ret_n];
		enum taken taken;

		if (!sp || sp->part != w->m->part)
			sp = find_part(l->sink, w->m->part);
		if (!sp || (sp->through == INT64_MAX && !atomic_load(&sp->part->dead))) {
			l->loaded = 0;
			return APPLIED;
		}
		if (sp->through == INT64_MAX) /* it is dropped with its part */
			return APPLIED;
		if (w->m->after > 0 && w->m->after > sp->through) {
			l->steps_n = 0;
			(void)step_of(l, sp->part, 0);
			return lane_torn(err);
		}
		if (is_over(l, sp, w))
			continue;
		taken = may_take(sp, w->m, &f);
		if (taken == BURY_IT && *ret_n == 0) {
			enum applied rc = bury(sp, f, err);

			*ret_n = rc == APPLIED;
			return rc;
		}
		if (taken == TAKEN)
			taken = put(sp, w->m);
		else if (taken == LETTER)
			taken = put_letter(sp, w->m, f);
		if (taken == BEFORE)
			wait_for(l, sp);
		if (taken != TAKEN)
			return APPLIED;
	}
	return APPLIED;
}

static enum applied sink_apply(
	struct lane *l, size_t n, size_t *ret_n, struct outcome *ret, struct pr_err *err)
{
	int64_t began_us = pr_mono_us();
	enum applied rc;

	(void)ret;
	l->steps_n = 0;
	rc = take(l, n, ret_n, err);
	if (rc == APPLIED && *ret_n > 0) {
		pr_observe(l->c->m.batch_events, (double)*ret_n);
		time_it(l, began_us, l->work[0].m);
	}
	return rc;
}

/* ---------------------------------------------------------------- between two batches */

static int run(struct lane *l, int all, struct pr_err *err)
{
	int rc;

	tell_lag(l->sink);
	rc = sink_cuts_run(l->sink, all, err);
	if (rc < 0 && pr_pg_ok(l->pg) && strcmp(err->code, "PRF01") == 0)
		return 0; /* those parts are gone, the others go on */
	return rc;
}

static int release(struct lane *l, int64_t until_us, struct pr_err *err)
{
	(void)until_us;
	return run(l, 0, err);
}

static enum applied move_idle_sink(struct lane *l, struct pr_err *err)
{
	int rc;

	if (l->sink->shared->catalogue)
		sink_catalogue_flush(l->sink->shared->catalogue, l->pg);
	rc = sink_move_idle(l->sink, err);

	if (rc < 0 && pr_pg_ok(l->pg) && strcmp(err->code, "PRF01") == 0)
		rc = 0;
	return rc < 0 ? BROKEN : APPLIED;
}

/* We stop: what is open is published, once. */
static void finish(struct lane *l)
{
	struct pr_err err;

	if (!l->sink || !l->sink->ready || !l->pg || !pr_pg_ok(l->pg))
		return;
	for (int i = 0; i < 2; i++)
		if (run(l, 1, &err) < 0) {
			pr_log_err(PR_WARN, "what was open is not published, it is read again", &err);
			return;
		}
	if (l->sink->ops->look)
		l->sink->ops->look(l->sink);
}

/* ---------------------------------------------------------------- begin and end */

static int open_lane(struct lane *l, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = l->c->conf;
	struct sink_lane *sl = l->sink;

	if (l->pg && pr_pg_ok(l->pg) && l->handler && sl && sl->ready)
		return 0;
	if (!sl) {
		sl = l->sink = pr_calloc(1, sizeof(*sl));
		sl->l = l;
		sl->shared = sink_shared_of(l->c);
		sl->conf = &conf->sink;
		sl->ops = sl->conf->table.conninfo ? &sink_table_away : targets[pr_sink_target_of(sl->conf)];
	}
	if (lane_connect(l, err) < 0)
		return -1;
	if (!sl->project && sink_project_new(sl->conf, &sl->project, err) < 0)
		return -1;
	if (sl->ops->open(sl, err) < 0) {
		l->opened = 0; /* what is wrong with the target may be said to be the config's */
		return -1;
	}
	l->opened = 1;
	sl->ready = 1;
	return 0;
}

static int usable(const struct lane *l)
{
	return l->pg && pr_pg_ok(l->pg);
}

/* What is open stays, for the session's sake nothing is read again: unless nothing is served any more. */
static void close_lane(struct lane *l)
{
	struct sink_lane *sl = l->sink;

	store_postgres.close(l);
	if (!sl)
		return;
	sl->ready = 0;
	if (l->served_n > 0 && !atomic_load(&l->c->stopping))
		return;
	drop_parts(sl, 1);
	sink_troubles_look(sl);
	atomic_store(&sl->shared->oldest_us[l->number], INT64_MAX);
	if (!atomic_load(&l->c->stopping))
		return;
	sl->ops->close(sl);
	hours_close(sl);
	for (size_t i = 0; i < sl->troubles_n; i++)
		free(sl->troubles[i].topic);
	free(sl->troubles);
	sink_project_free(sl->project);
	pr_buf_free(&sl->scratch);
	free(sl);
	l->sink = NULL;
}

const struct store store_sink = { .trouble = TROUBLE_POSTGRES,
	.one_lane = 1,
	.claim = store_postgres_claim,
	.open = open_lane,
	.usable = usable,
	.close = close_lane,
	.finish = finish,
	.load = load,
	.release = release,
	.apply = sink_apply,
	.move_idle = move_idle_sink,
	.hint_anew = sink_hint_anew,
	.keeper = keeper_thread,
	.prune = sink_prune };
