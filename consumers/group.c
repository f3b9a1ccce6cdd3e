/* consumers/group.c -- the poll thread: from what the group gives us (member.c) to what is claimed in
 * Postgres, read (read.c) and served by the lanes. The database is the truth about positions. Refuses to wait
 * for a lane, a handler or Postgres: a member that does not poll is thrown out, and its partitions wander. */
#include "consumers/group.h"
#include "consumers/topics.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/pulse.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define DRY_MS         100 /* a lane that has room again wakes us; this is for a wake-up that is lost */
#define BUSY_US        (10 * PR_MS)  /* the errand thread is at something else */
#define DRAIN_US       (20 * PR_MS)  /* how often a partition that drains is looked at */
#define RECLAIM_US     (700 * PR_MS) /* after being fenced: longer than Kafka needs to tell a zombie so */
#define FENCED_SOON_US (60 * PR_SEC)
#define ANEW_US        (60 * PR_SEC) /* the old handle is given back, and its name becomes free */

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
void slot_retire(struct group *g, struct slot *s)
{
	slot_close(s);
	if (!s->part)
		return;
	atomic_store(&s->part->dead, 1);
	HOLD(part_dead_before_forgotten);
	for (int i = 0; i < s->part->workers; i++)
		lane_forget(g->c->lanes[i], s->part);
	part_drop(s->part);
	s->part = NULL;
	g->reserve = 1;
}

/* A claim under way is about partitions that are not ours any more: what of it is, is claimed again. */
static void next_round(struct group *g)
{
	g->round++;
	if (g->rk)
		errand_round(&g->errand, g->round);
	for (size_t i = 0; i < g->slots_n; i++) {
		if (g->slots[i].state != SLOT_CLAIMING)
			continue;
		g->slots[i].state = SLOT_WANTED;
		g->slots[i].retry_us = 0;
	}
}

void slots_drop(struct group *g)
{
	for (size_t i = 0; i < g->slots_n; i++) {
		slot_retire(g, &g->slots[i]);
		free(g->slots[i].topic);
	}
	free(g->slots);
	g->slots = NULL;
	g->slots_n = 0;
	g->reserve = 1;
	next_round(g);
	atomic_store(&g->c->assigned, 0);
}

static void slot_init(struct slot *s, const char *topic, int32_t partition)
{
	memset(s, 0, sizeof(*s));
	s->topic = pr_strdup(topic);
	s->partition = partition;
	s->state = SLOT_WANTED;
	s->equal_at = s->low = s->high = -1;
}

static struct slot *slot_find(struct group *g, const char *topic, int32_t partition)
{
	for (size_t i = 0; i < g->slots_n; i++)
		if (g->slots[i].partition == partition && strcmp(g->slots[i].topic, topic) == 0)
			return &g->slots[i];
	return NULL;
}

void slots_add(struct group *g, const rd_kafka_topic_partition_list_t *list)
{
	g->slots = pr_realloc(g->slots, (g->slots_n + (size_t)list->cnt + 1) * sizeof(*g->slots));
	for (int i = 0; i < list->cnt; i++)
		if (!slot_find(g, list->elems[i].topic, list->elems[i].partition))
			slot_init(&g->slots[g->slots_n++], list->elems[i].topic, list->elems[i].partition);
	atomic_store(&g->c->assigned, (int)g->slots_n);
}

void slots_remove(struct group *g, const char *topic, int32_t partition)
{
	struct slot *s = slot_find(g, topic, partition);

	if (!s)
		return;
	if (s->state == SLOT_CLAIMING)
		next_round(g);
	slot_retire(g, s);
	free(s->topic);
	*s = g->slots[--g->slots_n];
	atomic_store(&g->c->assigned, (int)g->slots_n);
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

/* ---------------------------------------------------------------- claims */

void slot_want(struct group *g, struct slot *s, int64_t retry_us)
{
	g->reassign |= s->state == SLOT_READING || s->state == SLOT_DRAINING;
	slot_retire(g, s);
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
	s->anew = g->reassign = g->reserve = 1;
}

static void take_claims(struct group *g)
{
	struct claim_wanted *wanted;
	struct part **parts;
	unsigned round;
	size_t n;

	if (!errand_claimed(&g->errand, &round, &wanted, &parts, &n))
		return;
	if (g->c->topics)
		topics_join(g->c, g->rk);
	for (size_t i = 0; i < n; i++) {
		struct slot *s = slot_find(g, wanted[i].topic, wanted[i].partition);

		if (s && s->state == SLOT_CLAIMING && round == g->round)
			install(g, s, parts[i]);
		else
			part_drop(parts[i]);
	}
	free(parts);
	wanted_free(wanted, n);
}

/* Every lane stands where reading stands, or beyond: a sink finishes what is gone from the log. */
int slot_drained(const struct slot *s)
{
	int64_t through = atomic_load(&s->part->read_through);

	for (int i = 0; i < s->part->lane_count; i++)
		if (atomic_load(&s->part->lane[i].shown) < through)
			return 0;
	return s->held_bytes == 0 || s->due_us > 0;
}

/* All that was read of it is in the lanes. The next part's lanes may be others: a key goes on there only when
 * nothing of it is under way here. */
static void end_part(struct group *g, struct slot *s, int64_t now)
{
	struct part *p = s->part;

	if (atomic_load(&p->ending) == PART_GOES_ON)
		atomic_store(&p->ending, PART_DRAINS);
	if (!slot_drained(s))
		return;
	atomic_store(&p->ending, PART_CLOSED);
	if (atomic_load(&p->aside) == 0)
		slot_want(g, s, now);
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
	if (atomic_load(&s->part->again_us) > 0) {
		slot_want(g, s, atomic_load(&s->part->again_us));
		return;
	}
	if (atomic_load(&s->part->fenced)) {
		if (now - s->claimed_us > FENCED_SOON_US)
			s->fenced = 0;
		slot_want(g, s, now + (RECLAIM_US << (s->fenced < 5 ? s->fenced : 5)));
		s->fenced++;
		return;
	}
	if (s->state == SLOT_READING && s->equal_at < 0 && part_must_change(s->part, lanes_wanted(g->c)))
		s->equal_at = s->position > 0 ? s->position : 0;
	if (s->state == SLOT_READING && s->equal_at >= 0 && s->position >= s->equal_at)
		s->state = SLOT_DRAINING;
	if (s->state == SLOT_DRAINING && stuck(g, s->part))
		slot_want(g, s, now);
	else if (s->state == SLOT_DRAINING && (s->held_bytes == 0 || s->due_us > 0))
		end_part(g, s, now);
}

/* ---------------------------------------------------------------- the loop */

static int64_t wait_until(const struct group *g, int64_t now)
{
	int64_t until = g->tick_us, wall = pr_wall_us();

	if (atomic_load(&g->c->stopping)) /* nothing is read or claimed: group_finish wakes us */
		return now + DRY_MS * PR_MS;
	if (g->dry && until > now + DRY_MS * PR_MS)
		until = now + DRY_MS * PR_MS;
	for (size_t i = 0; i < g->slots_n; i++) {
		const struct slot *s = &g->slots[i];
		int64_t at = PR_FOREVER;

		if (s->state == SLOT_WANTED)
			at = s->retry_us > now ? s->retry_us : now + BUSY_US;
		else if (s->state == SLOT_DRAINING)
			at = now + DRAIN_US;
		else if (s->due_us > 0)
			at = now + (s->due_us > wall ? s->due_us - wall : 0);
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

	HOLD(group_turn);
	member_events(g);
	topics_join_asked(g->c, g->rk);
	if (!stopping) {
		take_claims(g);
		for (size_t i = 0; i < g->slots_n; i++)
			look_after(g, &g->slots[i], now);
		post_claim(g, now);
		watch_tick(g, now);
		if (g->reassign)
			member_assign(g);
	}
	if (g->reserve)
		serve(g);
	if (!stopping)
		more = read_turn(g);
	watch_commit(g, now);
	wait(g, more);
}

/* ---------------------------------------------------------------- begin and end */

/* Until we end, or have to join anew. */
static void take_part(struct group *g)
{
	int64_t deadline = PR_FOREVER;

	while (!atomic_load(&finishing) && !g->again && pr_mono_us() < deadline) {
		pr_pulse("group", g->c->conf->kafka.timeout_us);
		turn(g);
		if (deadline == PR_FOREVER && atomic_load(&g->c->stopping))
			deadline = pr_mono_us() + pr_setting(&g->c->conf->drain_us);
	}
}

/* 1: a new handle may join. Lanes and what is parked go on meanwhile, with nothing to read. */
static int join_anew(struct group *g)
{
	struct pollfd stop = { .fd = g->c->wake_fd, .events = POLLIN };

	pr_pulse("group", ANEW_US);
	slots_drop(g);
	serve(g);
	if (member_release(g) < 0) {
		pr_log(PR_ERROR, "cannot end what is left of the last membership");
		consumer_stop(g->c, PR_EX_UNAVAILABLE);
	}
	if (!atomic_load(&g->c->stopping) && g->again_us > pr_mono_us())
		(void)poll(&stop, 1, pr_until_ms(g->again_us));
	return !atomic_load(&g->c->stopping);
}

void *group_thread(void *consumer)
{
	struct consumer *c = consumer;
	struct group *g = pr_calloc(1, sizeof(*g));
	struct pr_err err;

	g->c = c;
	g->lost_us = INT64_MIN;
	g->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	atomic_store(&group_fd, g->fd);
	group = g;
	do {
		if (member_begin(g, &err) < 0) {
			health_trouble(c, TROUBLE_REFUSED, &err);
			consumer_stop(c, err.exit ? err.exit : PR_EX_FAILED);
			return NULL;
		}
		take_part(g);
	} while (g->again && join_anew(g));
	if (g->rk)
		watch_final_commit(g);
	slots_drop(g);
	serve(g);
	if (g->rk)
		member_leave(g);
	return NULL;
}

void group_release(struct consumer *c)
{
	struct group *g = group;

	(void)c;
	if (!g || member_release(g) < 0)
		return; /* the process ends anyway; g stays, for librdkafka may still look at it */
	atomic_store(&group_fd, -1);
	(void)close(g->fd);
	group = NULL;
	free(g);
}
