/* consumers/group.c -- the poll thread: member of the Kafka group, owner of the positions in memory. The
 * database is the truth about them; what Kafka is told is for tools that show lag. Refuses to wait for a
 * lane, a handler or Postgres: a member that does not poll is thrown out, and its partitions wander. */
#include "consumers/group.h"

#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/log.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define TICK_US         PR_SEC
#define COMMIT_US       (5 * PR_SEC)
#define UNBROKEN_US     (15 * PR_SEC) /* longer than a session */
#define DRY_MS          100 /* a lane that has room again wakes us; this is for a wake-up that is lost */
#define BUSY_US         (10 * PR_MS)  /* the errand thread is at something else */
#define DRAIN_US        (20 * PR_MS)  /* how often a partition that drains is looked at */
#define RECLAIM_US      (700 * PR_MS) /* after being fenced: longer than Kafka needs to tell a zombie so */
#define FENCED_SOON_US  (60 * PR_SEC)
#define GAP_US          (5 * PR_SEC) /* a partition in a gap looks whether its position was moved */
#define GROUP_ERR_US    (30 * PR_SEC)
#define FINAL_COMMIT_MS 2000
#define CLOSE_US        (5 * PR_SEC)
#define DESTROY_S       5
#define METADATA_MS     "10000" /* new topics and partitions are found within */

static struct group *group; /* one consumer a process; set while its thread lives */
static atomic_int group_fd = -1, finishing;

void group_wake(struct consumer *c)
{
	static const uint64_t one = 1;
	int fd = atomic_load(&group_fd);

	(void)c;
	if (fd >= 0)
		(void)!write(fd, &one, sizeof(one));
}

void group_finish(struct consumer *c)
{
	atomic_store(&finishing, 1);
	group_wake(c);
}

/* ---------------------------------------------------------------- parts and lanes */

/* Nothing of it may be handled any more. */
static void retire(struct group *g, struct slot *s)
{
	slot_close(s);
	if (!s->part)
		return;
	atomic_store(&s->part->dead, 1);
	for (int i = 0; i < s->part->workers; i++)
		lane_forget(g->c->lanes[i], s->part);
	part_drop(s->part);
	s->part = NULL;
	g->reserve = 1;
}

static void drop_slots(struct group *g)
{
	for (size_t i = 0; i < g->slots_n; i++) {
		retire(g, &g->slots[i]);
		free(g->slots[i].topic);
	}
	free(g->slots);
	g->slots = NULL;
	g->slots_n = 0;
	g->reserve = 1;
	atomic_store(&g->c->assigned, 0);
}

/* Tells the lanes, and the pages, what is served from now on. */
static void serve(struct group *g)
{
	struct consumer *c = g->c;
	struct part **parts = pr_calloc(g->slots_n + 1, sizeof(*parts)), **old;
	size_t n = 0, old_n;
	int used = lanes_wanted(c), begun;

	for (size_t i = 0; i < g->slots_n; i++) {
		if (!g->slots[i].part)
			continue;
		parts[n++] = part_hold(g->slots[i].part);
		if (g->slots[i].part->workers > used)
			used = g->slots[i].part->workers;
	}
	lanes_begin(c, used);
	atomic_store(&c->lanes_used, used);
	begun = lanes_begun(c);
	for (int i = 0; i < begun; i++)
		lane_serve(c->lanes[i], parts, n);
	(void)pthread_mutex_lock(&c->mutex);
	old = c->parts;
	old_n = c->parts_n;
	c->parts = parts;
	c->parts_n = n;
	(void)pthread_mutex_unlock(&c->mutex);
	for (size_t i = 0; i < old_n; i++)
		part_drop(old[i]);
	free(old);
	g->reserve = 0;
}

/* Kafka reads what is to be read, each from our position; what it had fetched ahead is fetched once more. */
static void assign(struct group *g)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)g->slots_n);
	rd_kafka_resp_err_t code;

	for (size_t i = 0; i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];

		if (s->state != SLOT_READING || !s->queue)
			continue;
		rd_kafka_topic_partition_list_add(list, s->topic, s->partition)->offset = s->position;
		s->hot = s->full = 1; /* full: its broker's thread is woken */
	}
	code = rd_kafka_assign(g->rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	g->reassign = code != RD_KAFKA_RESP_ERR_NO_ERROR && rd_kafka_fatal_error(g->rk, NULL, 0) == 0;
	if (!code)
		return;
	(void)pr_kafka_fail(&g->group_err, code, "cannot begin to read");
	g->group_err_us = pr_mono_us();
}

/* ---------------------------------------------------------------- membership */

static void new_slots(struct group *g, const rd_kafka_topic_partition_list_t *list)
{
	g->slots = pr_calloc((size_t)list->cnt + 1, sizeof(*g->slots));
	g->slots_n = (size_t)list->cnt;
	for (int i = 0; i < list->cnt; i++) {
		struct slot *s = &g->slots[i];

		s->topic = pr_strdup(list->elems[i].topic);
		s->partition = list->elems[i].partition;
		s->state = SLOT_WANTED;
		s->equal_at = s->low = s->high = -1;
	}
	atomic_store(&g->c->assigned, list->cnt);
}

/* The rebalance completes at once, with nothing to read: claims take as long as Postgres takes. */
static void on_rebalance(
	rd_kafka_t *rk, rd_kafka_resp_err_t code, rd_kafka_topic_partition_list_t *list, void *opaque)
{
	rd_kafka_topic_partition_list_t *none;
	struct group *g = opaque;
	int ours = code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS && !rd_kafka_assignment_lost(rk);

	drop_slots(g);
	g->round++;
	errand_round(&g->errand, g->round);
	g->reassign = 0;
	atomic_store(&g->c->joined, ours);
	if (!ours) {
		(void)rd_kafka_assign(rk, NULL);
		pr_log(PR_INFO, "partitions revoked", KI("partitions", list->cnt),
			KI("lost", rd_kafka_assignment_lost(rk)));
		return;
	}
	none = rd_kafka_topic_partition_list_new(0);
	(void)rd_kafka_assign(rk, none);
	rd_kafka_topic_partition_list_destroy(none);
	atomic_fetch_add(&g->c->rebalances, 1);
	memset(&g->group_err, 0, sizeof(g->group_err));
	if (!atomic_load(&g->c->stopping))
		new_slots(g, list);
	pr_log(PR_INFO, "partitions assigned", KI("partitions", list->cnt));
}

/* Another process with our member name, mostly: there is no way back for this handle. */
static void fatal(struct group *g)
{
	struct pr_err err;
	char why[300];
	rd_kafka_resp_err_t code = rd_kafka_fatal_error(g->rk, why, sizeof(why));

	if (!code || atomic_load(&g->c->stopping))
		return;
	(void)pr_fail(&err, PR_STOP, "kafka has shut this member out: %s", why);
	(void)snprintf(err.code, sizeof(err.code), "%s", rd_kafka_err2name(code));
	if (code == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID)
		(void)pr_hint(&err,
			"another process of the group has the same member name: set member, or another"
			" http.listen");
	health_trouble(g->c, TROUBLE_REFUSED, &err);
	consumer_stop(g->c, PR_EX_REFUSED);
}

static void poll_events(struct group *g)
{
	rd_kafka_message_t *rkm;

	while ((rkm = rd_kafka_consumer_poll(g->rk, 0)) != NULL) {
		switch ((int)rkm->err) {
		case RD_KAFKA_RESP_ERR_NO_ERROR:
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			g->astray = 1;
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART: /* the errand thread watches over them */
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			break;
		case RD_KAFKA_RESP_ERR__FATAL:
			fatal(g);
			break;
		default:
			(void)pr_fail(&g->group_err, pr_kafka_kind(rkm->err), "group \"%s\": %s",
				g->c->conf->group, rd_kafka_message_errstr(rkm));
			g->group_err_us = pr_mono_us();
			g->tick_us = 0;
		}
		rd_kafka_message_destroy(rkm);
	}
	if (!g->astray)
		return;
	g->astray = 0;
	for (size_t i = 0; i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];

		if (s->state != SLOT_READING || !s->queue)
			continue;
		slot_listen(g, s);
		g->reassign = 1;
	}
}

/* ---------------------------------------------------------------- claims */

static void want(struct group *g, struct slot *s, int64_t retry_us)
{
	g->reassign |= s->state == SLOT_READING || s->state == SLOT_DRAINING;
	retire(g, s);
	s->state = SLOT_WANTED;
	s->retry_us = retry_us;
}

/* All partitions whose time has come, in one transaction. */
static void post_claim(struct group *g, int64_t now)
{
	struct claim_wanted *wanted;
	size_t n = 0;

	for (size_t i = 0; i < g->slots_n; i++)
		n += g->slots[i].state == SLOT_WANTED && g->slots[i].retry_us <= now;
	if (n == 0)
		return;
	wanted = pr_calloc(n, sizeof(*wanted));
	n = 0;
	for (size_t i = 0; i < g->slots_n; i++)
		if (g->slots[i].state == SLOT_WANTED && g->slots[i].retry_us <= now)
			wanted[n++] =
				(struct claim_wanted){ pr_strdup(g->slots[i].topic), g->slots[i].partition };
	if (errand_claim(&g->errand, g->round, wanted, n) < 0) {
		wanted_free(wanted, n);
		return;
	}
	for (size_t i = 0; i < g->slots_n; i++)
		if (g->slots[i].state == SLOT_WANTED && g->slots[i].retry_us <= now)
			g->slots[i].state = SLOT_CLAIMING;
}

static struct slot *claiming(struct group *g, const struct claim_wanted *w)
{
	for (size_t i = 0; i < g->slots_n; i++)
		if (g->slots[i].state == SLOT_CLAIMING && g->slots[i].partition == w->partition &&
			strcmp(g->slots[i].topic, w->topic) == 0)
			return &g->slots[i];
	return NULL;
}

/* Takes the part. */
static void install(struct group *g, struct slot *s, struct part *p)
{
	int64_t next = part_next(p);

	s->part = p;
	s->state = SLOT_READING;
	s->position = next < 0 ? RD_KAFKA_OFFSET_BEGINNING : next;
	s->claimed_us = pr_mono_us();
	s->equal_at = -1;
	for (int i = 0; part_must_change(p, lanes_wanted(g->c)) && i < p->lane_count; i++)
		if (atomic_load(&p->lane[i].shown) > s->equal_at)
			s->equal_at = atomic_load(&p->lane[i].shown);
	slot_open(g, s);
	g->reassign = g->reserve = 1;
}

static void take_claims(struct group *g)
{
	struct claim_wanted *wanted;
	struct part **parts;
	unsigned round;
	size_t n;

	if (!errand_claimed(&g->errand, &round, &wanted, &parts, &n))
		return;
	for (size_t i = 0; i < n; i++) {
		struct slot *s = round == g->round ? claiming(g, &wanted[i]) : NULL;

		if (s)
			install(g, s, parts[i]);
		else
			part_drop(parts[i]);
	}
	free(parts);
	wanted_free(wanted, n);
}

/* Every lane stands where reading stands. */
static int drained(const struct slot *s)
{
	int64_t through = atomic_load(&s->part->read_through);

	for (int i = 0; i < s->part->lane_count; i++)
		if (atomic_load(&s->part->lane[i].shown) != through)
			return 0;
	return s->held_bytes == 0;
}

/* All that was read of it is in the lanes. The next part's lanes may be others: a key goes on there only when
 * nothing of it is under way here. */
static void end_part(struct group *g, struct slot *s, int64_t now)
{
	struct part *p = s->part;

	if (atomic_load(&p->ending) == PART_GOES_ON)
		atomic_store(&p->ending, PART_DRAINS);
	if (!drained(s))
		return;
	atomic_store(&p->ending, PART_CLOSED);
	if (atomic_load(&p->aside) == 0)
		want(g, s, now);
}

/* A worker that is to go has no connection (there were not enough, that is why it is to go), and those that
 * stay do: waiting for it would be for ever. Claimed anew, the same lanes are spread over the others. */
static int stuck(const struct group *g, const struct part *p)
{
	int wanted = lanes_wanted(g->c), away = 0;

	for (int i = 0; i < p->workers; i++) {
		if (!lane_is_away(g->c->lanes[i]))
			continue;
		if (i < wanted)
			return 0;
		away = 1;
	}
	return away;
}

static void look_after(struct group *g, struct slot *s, int64_t now)
{
	if (!s->part)
		return;
	if (atomic_load(&s->part->fenced)) {
		if (now - s->claimed_us > FENCED_SOON_US)
			s->fenced = 0;
		want(g, s, now + (RECLAIM_US << (s->fenced < 5 ? s->fenced : 5)));
		s->fenced++;
		return;
	}
	if (s->state == SLOT_READING && s->equal_at < 0 && part_must_change(s->part, lanes_wanted(g->c)))
		s->equal_at = s->position > 0 ? s->position : 0;
	if (s->state == SLOT_READING && s->equal_at >= 0 && s->position >= s->equal_at)
		s->state = SLOT_DRAINING;
	if (s->state == SLOT_DRAINING && stuck(g, s->part))
		want(g, s, now);
	else if (s->state == SLOT_DRAINING && s->held_bytes == 0)
		end_part(g, s, now);
}

/* ---------------------------------------------------------------- once a second */

static void read_end(struct group *g, struct slot *s)
{
	int64_t low, high;

	if (s->part &&
		rd_kafka_get_watermark_offsets(g->rk, s->topic, s->partition, &low, &high) ==
			RD_KAFKA_RESP_ERR_NO_ERROR &&
		high >= 0)
		atomic_store(&s->part->end, high);
}

static void read_on(struct group *g, struct slot *s, int64_t position)
{
	s->position = position;
	s->state = SLOT_READING;
	s->touched = 1;
	g->reassign = 1;
}

/* Its position is not in the log. Retention was faster than we: a matter of the config. Beyond the end: the
 * log is another one, and nobody but people can say what to do. */
static void mind_gap(struct group *g, struct slot *s, int64_t now)
{
	if (s->state != SLOT_GAP || !s->part)
		return;
	if (s->low < 0 && !errand_log(&g->errand, s->topic, s->partition, &s->low, &s->high))
		return;
	if (s->position >= s->low && s->position <= s->high) {
		read_on(g, s, s->position);
		return;
	}
	if (s->position < s->low && strcmp(g->c->conf->on_gap, "skip") == 0) {
		pr_log(PR_WARN, "records were gone before they were read: stepped over",
			KS("topic", s->topic), KI("partition", s->partition), KI("from", s->position),
			KI("to", s->low));
		atomic_fetch_add(&g->c->lost, (uint64_t)(s->low - s->position));
		s->gap = 0;
		read_on(g, s, s->low);
		return;
	}
	if (!s->gap || s->retry_us == 0) {
		s->gap = 1;
		s->retry_us = now + GAP_US;
	} else if (now >= s->retry_us) {
		/* Somebody may have moved the position. What is in the lanes is handled first: it is gone
		 * from the log. */
		s->low = -1;
		s->retry_us = now + GAP_US;
		if (drained(s))
			want(g, s, now);
	}
}

static void tell_gaps(struct group *g)
{
	const struct slot *first = NULL;
	struct pr_err err;
	int n = 0;

	for (size_t i = 0; i < g->slots_n; i++) {
		if (!g->slots[i].gap)
			continue;
		first = n++ ? first : &g->slots[i];
	}
	if (!first) {
		health_trouble(g->c, TROUBLE_GAP, NULL);
		return;
	}
	if (first->low < 0)
		return; /* being looked at again: what was said stands */
	if (first->position < first->low) {
		(void)pr_fail(&err, PR_STOP,
			"records %" PRId64 " to %" PRId64 " of partition %" PRId32
			" of \"%s\" were deleted before they were read",
			first->position, first->low - 1, first->partition, first->topic);
		(void)pr_hint(&err, "on_gap = \"skip\" goes on behind them");
	} else {
		(void)pr_fail(&err, PR_STOP,
			"position %" PRId64 " of partition %" PRId32
			" of \"%s\" is past its end, which is %" PRId64,
			first->position, first->partition, first->topic, first->high);
		(void)pr_hint(&err, "the topic was made anew or has lost records; set next_offset in"
				    " inbox.position to where to go on");
	}
	if (n > 1)
		(void)pr_wrap(&err, "%d partitions stand, the first", n);
	health_trouble(g->c, TROUBLE_GAP, &err);
}

static void tell_kafka(struct group *g, int64_t now)
{
	struct pr_err err;
	int rc = errand_kafka(&g->errand, &err);

	if (rc == 0 && g->group_err.text[0] && now - g->group_err_us < GROUP_ERR_US) {
		err = g->group_err;
		rc = 1;
	}
	for (size_t i = 0; rc == 0 && i < g->slots_n; i++) {
		struct slot *s = &g->slots[i];

		if (!s->words[0])
			continue;
		(void)pr_fail(&err, PR_RETRY, "cannot read partition %" PRId32 " of \"%s\": %s", s->partition,
			s->topic, s->words);
		rc = 1;
	}
	if (rc >= 0)
		health_trouble(g->c, TROUBLE_KAFKA, rc ? &err : NULL);
}

static void tick(struct group *g, int64_t now)
{
	if (now < g->tick_us)
		return;
	g->tick_us = now + TICK_US;
	for (size_t i = 0; i < g->slots_n; i++) {
		read_end(g, &g->slots[i]);
		mind_gap(g, &g->slots[i], now);
	}
	tell_gaps(g);
	tell_kafka(g, now);
	if (rd_kafka_fatal_error(g->rk, NULL, 0))
		fatal(g);
}

static rd_kafka_topic_partition_list_t *positions(struct group *g)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)g->slots_n);
	int64_t next;

	for (size_t i = 0; i < g->slots_n; i++) {
		next = g->slots[i].part ? part_next(g->slots[i].part) : -1;
		if (next >= 0)
			rd_kafka_topic_partition_list_add(list, g->slots[i].topic, g->slots[i].partition)
				->offset = next;
	}
	return list;
}

/* For tools that show lag; whether it works is of no interest here. Not while a broker may be away: a commit
 * that waits for it is signed with the member's id of now, and once our session has ended and we have joined
 * anew under the same name, Kafka takes it for a stranger's and shuts this handle out for ever. */
static void commit_lazily(struct group *g, int64_t now)
{
	int64_t broken = pr_kafka_last_words_us();
	rd_kafka_topic_partition_list_t *list;

	if (now < g->commit_us || !atomic_load(&g->c->kafka_up) ||
		(broken != INT64_MIN && now - broken < UNBROKEN_US))
		return;
	g->commit_us = now + COMMIT_US;
	list = positions(g);
	if (list->cnt > 0)
		(void)rd_kafka_commit(g->rk, list, 1);
	rd_kafka_topic_partition_list_destroy(list);
}

/* ---------------------------------------------------------------- the loop */

static int64_t wait_until(const struct group *g, int64_t now)
{
	int64_t until = g->tick_us;

	if (g->dry && until > now + DRY_MS * PR_MS)
		until = now + DRY_MS * PR_MS;
	for (size_t i = 0; i < g->slots_n; i++) {
		const struct slot *s = &g->slots[i];
		int64_t at = PR_FOREVER;

		if (s->state == SLOT_WANTED)
			at = s->retry_us > now ? s->retry_us : now + BUSY_US;
		else if (s->state == SLOT_DRAINING)
			at = now + DRAIN_US;
		else if (s->state == SLOT_READING && !s->hot && !s->at_end)
			at = s->dry_us + s->dry_wait_us > now ? s->dry_us + s->dry_wait_us : now + BUSY_US;
		if (at < until)
			until = at;
	}
	return until;
}

/* librdkafka says only that an empty queue is empty no more, and not which: so all are looked at. */
static void wait(struct group *g, int more)
{
	int stopping = atomic_load(&g->c->stopping);
	struct pollfd fds[2] = { { .fd = g->fd, .events = POLLIN },
		{ .fd = stopping ? -1 : g->c->wake_fd, .events = POLLIN } };
	uint64_t n;

	if (poll(fds, 2, more ? 0 : pr_until_ms(wait_until(g, pr_mono_us()))) <= 0)
		return;
	if (!(fds[0].revents & POLLIN) || read(g->fd, &n, sizeof(n)) != (ssize_t)sizeof(n))
		return;
	for (size_t i = 0; i < g->slots_n; i++)
		g->slots[i].hot = 1;
}

static void turn(struct group *g)
{
	int64_t now = pr_mono_us();
	int more = 0, stopping = atomic_load(&g->c->stopping);

	poll_events(g);
	if (!stopping) {
		take_claims(g);
		for (size_t i = 0; i < g->slots_n; i++)
			look_after(g, &g->slots[i], now);
		post_claim(g, now);
		tick(g, now);
		if (g->reassign)
			assign(g);
	}
	if (g->reserve)
		serve(g);
	if (!stopping)
		more = read_turn(g);
	commit_lazily(g, now);
	wait(g, more);
}

/* ---------------------------------------------------------------- begin and end */

/* The same name after a restart gets its partitions back without a rebalance. */
static char *member_name(const struct pr_consumer_conf *conf)
{
	const char *port = conf->http.listen ? strrchr(conf->http.listen, ':') : NULL;
	char host[128] = "";

	if (conf->member)
		return pr_strdup(conf->member);
	if (!port || strcmp(port, ":0") == 0 || gethostname(host, sizeof(host) - 1) < 0)
		return NULL;
	return pr_asprintf("%s-%s", host, port + 1);
}

static rd_kafka_t *new_member(struct group *g, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = g->c->conf;
	struct pr_kafka_prop props[24];
	char *member = member_name(conf), bytes[24], kbytes[24], messages[24];
	int64_t prefetch = pr_setting(&conf->limits.prefetch_bytes);
	rd_kafka_t *rk;
	size_t n = 0;

	(void)snprintf(kbytes, sizeof(kbytes), "%" PRId64, prefetch >> 10);
	(void)snprintf(messages, sizeof(messages), "%d", QUEUE_MESSAGES);
	/* A record in memory takes several times what it takes on the wire, compressed ones still more. */
	(void)snprintf(bytes, sizeof(bytes), "%" PRId64, prefetch < (16 << 20) ? prefetch / 16 : 1 << 20);
#define PROP(k, v) (props[n++] = (struct pr_kafka_prop){ (k), (v) })
	PROP("group.id", conf->group);
	if (member)
		PROP("group.instance.id", member);
	PROP("enable.auto.commit", "false");
	PROP("enable.auto.offset.store", "false");
	PROP("auto.offset.reset", "error");
	PROP("isolation.level", "read_committed");
	PROP("enable.partition.eof", "true");
	/* cooperative-sticky turns in circles below librdkafka 2.6.1 */
	PROP("partition.assignment.strategy", "range");
	if (!pr_kafka_has(&conf->kafka.properties, "session.timeout.ms"))
		PROP("session.timeout.ms", "10000"); /* after that the others take over */
	PROP("heartbeat.interval.ms", "300"); /* so soon a member learns of a rebalance it has to join */
	PROP("topic.metadata.refresh.interval.ms", METADATA_MS);
	PROP("queued.max.messages.kbytes", kbytes);
	PROP("queued.min.messages", messages);
	/* A partition that is read on has to wait for the end of the request under way. */
	PROP("fetch.wait.max.ms", "100");
	PROP("fetch.message.max.bytes", bytes);
	PROP("fetch.max.bytes", "8388608"); /* one larger record comes all the same */
	PROP(NULL, NULL);
#undef PROP
	rk = pr_kafka_new_member(conf->kafka.brokers, &conf->kafka.properties, props, on_rebalance, g, err);
	free(member);
	return rk;
}

static int subscribe(struct group *g, struct pr_err *err)
{
	const struct pr_strs *topics = &g->c->conf->kafka.topics;
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)topics->n);
	rd_kafka_resp_err_t code;

	for (size_t i = 0; i < topics->n; i++)
		rd_kafka_topic_partition_list_add(list, topics->v[i], RD_KAFKA_PARTITION_UA);
	code = rd_kafka_subscribe(g->rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	if (!code)
		return 0;
	(void)pr_kafka_fail(err, code, "cannot subscribe to kafka.topics");
	err->kind = PR_STOP;
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int begin(struct group *g, struct pr_err *err)
{
	static const uint64_t one = 1;

	g->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	atomic_store(&group_fd, g->fd);
	g->commit_us = pr_mono_us() + COMMIT_US;
	g->rk = new_member(g, err);
	if (!g->rk)
		return -1;
	g->events = rd_kafka_queue_get_consumer(g->rk);
	rd_kafka_queue_io_event_enable(g->events, g->fd, &one, sizeof(one));
	errand_start(&g->errand, g->c, g->rk);
	return subscribe(g, err);
}

static void final_commit(struct group *g)
{
	rd_kafka_topic_partition_list_t *list = positions(g);
	rd_kafka_queue_t *answer = rd_kafka_queue_new(g->rk);
	rd_kafka_event_t *event;

	if (list->cnt > 0 &&
		rd_kafka_commit_queue(g->rk, list, answer, NULL, NULL) == RD_KAFKA_RESP_ERR_NO_ERROR) {
		event = rd_kafka_queue_poll(answer, FINAL_COMMIT_MS);
		if (event)
			rd_kafka_event_destroy(event);
	}
	rd_kafka_queue_destroy(answer);
	rd_kafka_topic_partition_list_destroy(list);
}

/* A static member does not leave: its partitions wait for it as long as its session lasts. */
static void leave(struct group *g)
{
	int64_t deadline = pr_mono_us() + CLOSE_US;
	rd_kafka_queue_t *answers = rd_kafka_queue_new(g->rk);
	rd_kafka_message_t *rkm;
	rd_kafka_error_t *error;

	rd_kafka_queue_io_event_enable(g->events, -1, NULL, 0);
	rd_kafka_queue_destroy(g->events);
	g->events = NULL;
	error = rd_kafka_consumer_close_queue(g->rk, answers);
	if (error) {
		rd_kafka_error_destroy(error);
		goto out;
	}
	while (!rd_kafka_consumer_closed(g->rk) && pr_mono_us() < deadline) {
		rkm = rd_kafka_consume_queue(answers, 50);
		if (rkm)
			rd_kafka_message_destroy(rkm);
	}
out:
	rd_kafka_queue_destroy(answers);
}

void *group_thread(void *consumer)
{
	struct consumer *c = consumer;
	struct group *g = pr_calloc(1, sizeof(*g));
	int64_t deadline = PR_FOREVER;
	struct pr_err err;

	g->c = c;
	group = g;
	if (begin(g, &err) < 0) {
		health_trouble(c, TROUBLE_REFUSED, &err);
		consumer_stop(c, err.exit ? err.exit : PR_EX_FAILED);
		return NULL;
	}
	while (!atomic_load(&finishing) && pr_mono_us() < deadline) {
		turn(g);
		if (deadline == PR_FOREVER && atomic_load(&c->stopping))
			deadline = pr_mono_us() + pr_setting(&c->conf->drain_us);
	}
	final_commit(g);
	drop_slots(g);
	serve(g);
	leave(g);
	return NULL;
}

static void *destroy_thread(void *arg)
{
	rd_kafka_destroy_flags(arg, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	return NULL;
}

void group_release(struct consumer *c)
{
	struct group *g = group;
	struct timespec deadline;
	pthread_t thread;

	(void)c;
	if (!g || errand_stop(&g->errand) < 0)
		return;
	if (g->rk && pthread_create(&thread, NULL, destroy_thread, g->rk) == 0) {
		(void)clock_gettime(CLOCK_REALTIME, &deadline);
		deadline.tv_sec += DESTROY_S;
		if (pthread_timedjoin_np(thread, NULL, &deadline) != 0)
			return; /* the process ends anyway; g stays, for librdkafka may still look at it */
	}
	atomic_store(&group_fd, -1);
	(void)close(g->fd);
	group = NULL;
	free(g);
}
