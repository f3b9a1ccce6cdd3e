/* consumers/lanes.c -- how many lanes there shall be, by the operator's order or the config, and their
 * threads. A lane is there from the start; its thread begins when something is first spread over so many. One
 * that is not needed any more stays, without a connection and without a handler. Refuses to begin one once we
 * stop. */
#include "consumers/consumer.h"

#include "lib/clock.h"
#include "lib/log.h"

int lanes_wanted(struct consumer *c)
{
	int ordered = atomic_load(&c->lanes_ordered);

	return ordered ? ordered : (int)pr_setting(&c->conf->lanes);
}

void lanes_order(struct consumer *c, int64_t n)
{
	int bounded = n > LANES_MOST ? LANES_MOST : (int)n;

	if (atomic_exchange(&c->lanes_ordered, bounded) == bounded)
		return;
	if (n > LANES_MOST)
		pr_log(PR_WARN, "more lanes are wanted than a process can have", KI("wanted", n),
			KI("lanes", LANES_MOST));
	pr_log(PR_INFO, "lanes", KI("lanes", lanes_wanted(c)), KS("by", bounded ? "operator" : "config"));
	group_wake(c);
}

void lanes_begin(struct consumer *c, int n)
{
	(void)pthread_mutex_lock(&c->mutex);
	while (c->lanes_begun < n && !atomic_load(&c->stopping)) {
		if (pthread_create(&c->lane_threads[c->lanes_begun], NULL, lane_thread,
			    c->lanes[c->lanes_begun]) != 0) {
			pr_log(PR_ERROR, "cannot start a thread");
			consumer_stop(c, PR_EX_UNAVAILABLE);
			break;
		}
		c->lanes_begun++;
	}
	(void)pthread_mutex_unlock(&c->mutex);
}

int lanes_begun(struct consumer *c)
{
	int n;

	(void)pthread_mutex_lock(&c->mutex);
	n = c->lanes_begun;
	(void)pthread_mutex_unlock(&c->mutex);
	return n;
}

void lanes_drain(struct consumer *c)
{
	int64_t drain = pr_setting(&c->conf->drain_us), none = 0;
	int64_t commit = drain / 5 < PR_SEC ? drain / 5 : PR_SEC; /* what was answered last takes that */

	(void)atomic_compare_exchange_strong(&c->end_us, &none, pr_mono_us() + drain - commit);
}

int lane_number(const struct part *p, int lane)
{
	return (p->first + lane) % p->workers;
}

/* Without a database a part has one lane, wherever it is. */
int part_must_change(const struct part *p, int wanted)
{
	if (p->own_lane)
		return p->workers != wanted;
	return p->lane_count != wanted || p->workers < wanted;
}
