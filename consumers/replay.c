/* consumers/replay.c -- reads ranges again that an operator asked for (inbox.replay), and gives the messages
 * to the lanes like any others: the same handler, the same memory of what was seen. One window after the
 * other: pushed, waited for, noted. Refuses to replay what nobody could recognize: older than the remembered
 * ids, or without dedupe by id.
 *
 * If we die here, at any line: the job's next_offset stands before the window, which is then read once more,
 * and what was handled in it is a duplicate. That it was begun is counted before its first message is pushed
 * (inbox.replay_begun): after a death its messages go one by one, and the one that was begun limits.crashes
 * times ends the job. */
#include "consumers/store.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW   1000          /* messages of one window, at most */
#define LOOK_US  (500 * PR_MS) /* how often we look for jobs */
#define QUIET_US (10 * PR_SEC) /* a range whose records do not come in this time is tried again later */

struct job {
	char id[24], topic[256], next[24];
	int32_t partition;
	int64_t at, to;
	int64_t since_us;  /* ids are remembered since; INT64_MIN: all */
	struct part *part; /* counted */
	int begun;         /* the window is counted as begun, and has not ended */
	unsigned careful;  /* so many windows of one message each: a larger one never came back */
	char fatal[400];   /* why the job ends: the record that takes the process along */
};

struct replayer {
	struct consumer *c;
	struct pr_pg *pg;
	uint64_t request_seen;
	int64_t look_us;
};

void replay_drop(struct replay *r)
{
	if (r && atomic_fetch_sub(&r->refs, 1) == 1)
		free(r);
}

void replay_done(struct replay *r, int duplicate)
{
	atomic_fetch_add(&r->done, 1);
	atomic_fetch_add(&r->duplicates, (uint64_t)(duplicate != 0));
}

static int wait_us(struct replayer *r, int64_t us)
{
	struct pollfd wake = { .fd = r->c->wake_fd, .events = POLLIN };

	(void)poll(&wake, 1, (int)(us / PR_MS) + 1);
	return atomic_load(&r->c->stopping);
}

/* The partition as we own it now, counted; NULL: another member does. */
static struct part *owned(struct consumer *c, const char *topic, int32_t partition)
{
	struct part *found = NULL;

	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n && !found; i++)
		if (strcmp(c->parts[i]->topic, topic) == 0 && c->parts[i]->partition == partition &&
			!atomic_load(&c->parts[i]->dead))
			found = part_hold(c->parts[i]);
	(void)pthread_mutex_unlock(&c->mutex);
	return found;
}

/* ---------------------------------------------------------------- the job's rows */

/* Moves the job on; 1 while it is to go on. */
static int progress(struct replayer *r, const struct job *j, int64_t next, uint64_t handled,
	uint64_t duplicates, struct pr_err *err)
{
	char partition[16], at[24], n[24], d[24];
	const char *params[6] = { j->id, j->topic, partition, at, n, d };
	PGresult *res;
	int running;

	(void)snprintf(partition, sizeof(partition), "%d", (int)j->partition);
	(void)snprintf(at, sizeof(at), "%" PRId64, next);
	(void)snprintf(n, sizeof(n), "%" PRIu64, handled);
	(void)snprintf(d, sizeof(d), "%" PRIu64, duplicates);
	res = pr_pg_exec(r->pg, sql_replay_progress, 6, params, err);
	if (!res)
		return -1;
	running = strcmp(PQgetvalue(res, 0, 0), "running") == 0;
	if (!running)
		pr_log(PR_INFO, "replay", KS("job", j->id), KS("state", PQgetvalue(res, 0, 0)));
	PQclear(res);
	return running;
}

/* How often the window was begun now; -1: broken. */
static int begun(struct replayer *r, const struct job *j, const char *times, struct pr_err *err)
{
	char partition[16];
	const char *params[4] = { j->id, j->topic, partition, times };
	PGresult *res;
	int n;

	(void)snprintf(partition, sizeof(partition), "%d", (int)j->partition);
	res = pr_pg_exec(r->pg, sql_replay_begun, 4, params, err);
	if (!res)
		return -1;
	n = atoi(PQgetvalue(res, 0, 0));
	PQclear(res);
	return n;
}

/* The window was cut short, by a stop or by losing the partition, and we live: no crash. At a stop our
 * session says nothing more: another one, which no wake-up ends. */
static void unbegin(struct replayer *r, struct job *j)
{
	struct pr_err err;

	if (!j->begun || begun(r, j, "-1", &err) >= 0 || !atomic_load(&r->c->stopping))
		return; /* else one crash too many is counted */
	pr_pg_close(r->pg);
	r->pg = NULL;
	if (session_open(&r->pg, r->c, "replay", -1, &err) == 0)
		(void)begun(r, j, "-1", &err);
}

static int failed(struct replayer *r, const struct job *j, const char *why, struct pr_err *err)
{
	const char *params[2] = { j->id, why };

	pr_log(PR_WARN, "replay failed", KS("job", j->id), KS("topic", j->topic),
		KI("partition", j->partition), KS("why", why));
	return pr_pg_run(r->pg, sql_replay_failed, 2, params, err);
}

/* ---------------------------------------------------------------- reading */

static rd_kafka_t *open_reader(const struct replayer *r, const struct job *j, struct pr_err *err)
{
	const struct pr_kafka_prop ours[] = {
		{ "group.id", "postrider.replay.reader" }, /* required by the library, never joined */
		{ "isolation.level", "read_committed" },
		{ "enable.auto.commit", "false" },
		{ "enable.auto.offset.store", "false" },
		{ "enable.partition.eof", "true" },
		{ "auto.offset.reset", "error" },
		{ "queued.max.messages.kbytes", "1024" },
		{ "fetch.max.bytes", "8388608" },
		{ "allow.auto.create.topics", "false" },
		{ NULL, NULL },
	};
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_resp_err_t code;
	rd_kafka_t *rk;

	rk = pr_kafka_new(RD_KAFKA_CONSUMER, r->c->conf->kafka.brokers, &r->c->conf->kafka.properties, ours,
		NULL, NULL, err);
	if (!rk)
		return NULL;
	(void)rd_kafka_poll_set_consumer(rk);
	list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_list_add(list, j->topic, j->partition)->offset = j->at;
	code = rd_kafka_assign(rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	if (!code)
		return rk;
	(void)pr_kafka_fail(err, code, "replay");
	rd_kafka_destroy(rk);
	return NULL;
}

static struct message *message_for(struct replay *w, const struct job *j, rd_kafka_message_t *rkm)
{
	struct message *m = message_of_record(rkm);

	m->part = part_hold(j->part);
	m->lane = message_lane(m, j->part->lane_count);
	m->replay = w;
	atomic_fetch_add(&w->refs, 1);
	return m;
}

enum window {
	WINDOW_ON,
	WINDOW_END,
	WINDOW_LOST,
	WINDOW_TOO_OLD,
	WINDOW_GONE,
	WINDOW_QUIET,
	WINDOW_FATAL,
	WINDOW_BROKEN
};

/* Before its first message. */
static enum window begin_window(
	struct replayer *r, struct job *j, const struct message *first, struct pr_err *err)
{
	int times = begun(r, j, "1", err);

	if (times < 0)
		return WINDOW_BROKEN;
	j->begun = 1;
	if (times > 1)
		j->careful = WINDOW;
	if (times <= pr_setting(&r->c->conf->limits.crashes))
		return WINDOW_ON;
	(void)snprintf(j->fatal, sizeof(j->fatal),
		"%s-%d-%" PRId64 " was begun %d times and never finished: it takes the process along",
		j->topic, (int)j->partition, first->offset, times - 1);
	return WINDOW_FATAL;
}

/* Pushes up to a window of messages; *ret_next is the offset behind them. */
static enum window push_window(struct replayer *r, rd_kafka_t *rk, struct job *j, struct replay *w,
	int64_t *ret_next, uint64_t *ret_pushed, struct pr_err *err)
{
	int64_t quiet_at = pr_mono_us() + QUIET_US;
	rd_kafka_message_t *rkm;
	enum window how;
	struct message *m;
	struct lane *l;

	*ret_pushed = 0;
	while (*ret_pushed < (j->careful ? 1 : WINDOW) && *ret_next < j->to) {
		if (atomic_load(&r->c->stopping) || atomic_load(&j->part->dead))
			return WINDOW_LOST;
		rkm = rd_kafka_consumer_poll(rk, 50);
		if (!rkm) {
			if (pr_mono_us() > quiet_at)
				return WINDOW_QUIET;
			continue;
		}
		if (rkm->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
			*ret_next = rkm->offset;
			rd_kafka_message_destroy(rkm);
			return WINDOW_END; /* the range ends behind the last record */
		}
		if (rkm->err) {
			rd_kafka_resp_err_t code = rkm->err;

			rd_kafka_message_destroy(rkm);
			if (code == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET ||
				code == RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE)
				return WINDOW_GONE;
			continue;
		}
		if (rkm->offset >= j->to) { /* control records may lie in between */
			rd_kafka_message_destroy(rkm);
			*ret_next = j->to;
			return WINDOW_END;
		}
		m = message_for(w, j, rkm);
		if (m->time_us >= 0 && m->time_us < j->since_us) {
			message_free(m);
			return WINDOW_TOO_OLD;
		}
		if (*ret_pushed == 0 && (how = begin_window(r, j, m, err)) != WINDOW_ON) {
			message_free(m);
			return how;
		}
		*ret_next = m->offset + 1;
		l = lane_of(r->c, j->part, m->lane);
		while (!lane_has_room(l) && !atomic_load(&j->part->dead))
			if (wait_us(r, 5 * PR_MS))
				break;
		++*ret_pushed;
		lane_push(l, m);
		quiet_at = pr_mono_us() + QUIET_US;
	}
	return *ret_next < j->to ? WINDOW_ON : WINDOW_END;
}

/* Until every message of the window was handled or thrown away. */
static void await_window(struct replayer *r, struct replay *w)
{
	while (atomic_load(&w->refs) > 1)
		if (wait_us(r, 2 * PR_MS))
			return; /* we stop: the lanes will not handle them any more */
}

/* Windows of one part of a job, until it ends, is stopped, or we lose the partition. */
static int run_part(struct replayer *r, struct job *j, struct pr_err *err)
{
	rd_kafka_t *rk = open_reader(r, j, err);
	enum window how = WINDOW_ON;
	int rc = rk ? 1 : -1;

	while (rc > 0 && (how == WINDOW_ON || how == WINDOW_END) && j->at < j->to) {
		struct replay *w = pr_calloc(1, sizeof(*w));
		uint64_t done, duplicates;
		int64_t next = j->at;
		uint64_t pushed;

		atomic_store(&w->refs, 1);
		j->begun = 0;
		how = push_window(r, rk, j, w, &next, &pushed, err);
		await_window(r, w);
		done = atomic_load(&w->done);
		duplicates = atomic_load(&w->duplicates);
		replay_drop(w);
		if (done < pushed) {
			unbegin(r, j);
			break; /* the partition was lost under way: its next owner goes on */
		}
		if (how == WINDOW_END)
			next = j->to;
		j->careful -= j->careful > 0;
		if (how == WINDOW_BROKEN)
			rc = -1;
		else if (how == WINDOW_FATAL)
			rc = failed(r, j, j->fatal, err);
		else if (how == WINDOW_TOO_OLD)
			rc = failed(r, j,
				"its messages are older than the ids that inbox.seen remembers: they could "
				"not be "
				"told from new ones",
				err);
		else if (how == WINDOW_GONE)
			rc = failed(r, j, "its records are not on the topic any more", err);
		else
			rc = progress(r, j, next, pushed - duplicates, duplicates, err);
		j->at = next;
	}
	/* Messages of it that lanes still have keep a client from going: at a stop nobody handles them any
	 * more. */
	if (rk && atomic_load(&r->c->stopping))
		r->c->replay_reader = rk;
	else if (rk)
		rd_kafka_destroy(rk);
	return rc < 0 ? -1 : 0;
}

void replay_release(struct consumer *c)
{
	if (c->replay_reader)
		rd_kafka_destroy(c->replay_reader);
	c->replay_reader = NULL;
}

/* ---------------------------------------------------------------- jobs */

static int run_jobs(struct replayer *r, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(r->pg, sql_replay_parts, 1, (const char *const[]){ r->c->conf->group }, err);
	int rc = 0;

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res) && rc == 0 && !atomic_load(&r->c->stopping); i++) {
		struct job j = { .partition = atoi(PQgetvalue(res, i, 2)),
			.at = strtoll(PQgetvalue(res, i, 3), NULL, 10),
			.to = strtoll(PQgetvalue(res, i, 4), NULL, 10),
			.since_us = PQgetisnull(res, i, 5) ? INT64_MIN
							   : strtoll(PQgetvalue(res, i, 5), NULL, 10) };

		(void)snprintf(j.id, sizeof(j.id), "%s", PQgetvalue(res, i, 0));
		(void)snprintf(j.topic, sizeof(j.topic), "%s", PQgetvalue(res, i, 1));
		j.part = owned(r->c, j.topic, j.partition);
		if (!j.part)
			continue;
		if (r->c->store->one_lane)
			rc = failed(r, &j, "the group is a sink: it takes no record a second time", err);
		else if (r->c->conf->dedupe != PR_DEDUPE_INBOX)
			rc = failed(r, &j,
				"the group runs with dedupe = \"offset\": it could not tell what was handled",
				err);
		else
			rc = run_part(r, &j, err);
		part_drop(j.part);
	}
	PQclear(res);
	return rc;
}

void *replay_thread(void *arg)
{
	struct replayer r = { .c = arg };
	struct consumer *c = arg;
	unsigned failures = 0;
	struct pr_err err;

	while (!atomic_load(&c->stopping)) {
		/* The keeper counts running jobs: without any, nothing is asked here. */
		if (atomic_load(&c->replays) == 0 || atomic_load(&c->paused)) {
			(void)wait_us(&r, LOOK_US);
			continue;
		}
		if (session_open(&r.pg, c, "replay", c->wake_fd, &err) < 0 || run_jobs(&r, &err) < 0) {
			if (failures++ > 0 && !atomic_load(&c->stopping))
				pr_log_err(PR_WARN, "replay", &err);
			(void)wait_us(&r, pr_backoff_us(failures, 100 * PR_MS, 5 * PR_SEC));
			continue;
		}
		failures = 0;
		(void)wait_us(&r, LOOK_US);
	}
	pr_pg_close(r.pg);
	return NULL;
}
