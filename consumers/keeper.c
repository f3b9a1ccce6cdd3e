/* consumers/keeper.c -- the thread beside the way: asks at the start whether the inbox is what this group
 * needs, obeys the operator, rotates the remembered ids and what steps of sagas did here, counts for people,
 * and sends dead letters to their topic. Refuses to let anything be handled while ids that may come again are
 * forgotten. */
#include "consumers/consumer.h"
#include "consumers/dead_letter.h"
#include "consumers/store.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/migrate.h"
#include "lib/pg.h"
#include "lib/pulse.h"
#include "sql.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ORDERS_US (200 * PR_MS)
#define STATS_US  PR_SEC
#define FROZEN_US (2 * PR_SEC)
#define SHARE     20 /* counting may take one part in so many of the time */

struct keeper {
	struct consumer *c;
	struct pr_pg *pg;
	struct dead_letters *dead_letters; /* NULL: no topic */
	unsigned failures;                 /* rounds in a row */
	int64_t next_stats_us, next_rotate_us, next_sagas_us, next_frozen_us, next_prune_us;
};

static int64_t cell(const PGresult *res, int row, int col, int64_t none)
{
	return PQgetisnull(res, row, col) ? none : strtoll(PQgetvalue(res, row, col), NULL, 10);
}

/* ---------------------------------------------------------------- before anything is handled */

static int refuse_forgotten(const char *since, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP,
		"the ids of handled messages are all remembered since %s only, and inbox.horizon is longer: "
		"a message that comes again would be applied twice",
		since);
	(void)pr_hint(err,
		"inbox.keep was shorter before. Set inbox.horizon to what is remembered, and make sure that "
		"nothing older comes again, until the ids reach back far enough");
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int begin(struct keeper *k, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = k->c->conf;
	char keep[24], horizon[24];
	PGresult *res;
	int rc = 0;

	if (pr_schema_check(k->pg, err) < 0)
		return -1;
	if (conf->dedupe == PR_DEDUPE_INBOX) {
		(void)snprintf(keep, sizeof(keep), "%" PRId64, pr_setting(&conf->inbox.keep_us));
		(void)snprintf(horizon, sizeof(horizon), "%" PRId64, pr_setting(&conf->inbox.horizon_us));
		res = pr_pg_exec(
			k->pg, sql_keeper_begin, 3, (const char *const[]){ conf->group, keep, horizon }, err);
		if (!res)
			return -1;
		if (PQntuples(res) > 0)
			rc = refuse_forgotten(PQgetvalue(res, 0, 0), err);
		PQclear(res);
	}
	return rc;
}

/* ---------------------------------------------------------------- orders */

/* Known before the first claim, which is about so many lanes. */
static int orders(struct keeper *k, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(k->pg, sql_keeper_orders, 1, (const char *const[]){ k->c->conf->group }, err);
	int paused;

	if (!res)
		return -1;
	if (PQntuples(res) == 1) {
		paused = PQgetvalue(res, 0, 0)[0] == 't';
		if (atomic_exchange(&k->c->paused, paused) != paused)
			pr_log(PR_WARN, paused ? "paused" : "resumed", KS("by", PQgetvalue(res, 0, 1)));
		atomic_store(&k->c->request, (uint64_t)cell(res, 0, 2, 0));
	}
	lanes_order(k->c, PQntuples(res) == 1 ? cell(res, 0, 3, 0) : 0);
	PQclear(res);
	atomic_store(&k->c->ready, 1);
	return 0;
}

/* ---------------------------------------------------------------- counts */

static void tell_parked(struct consumer *c, const PGresult *res)
{
	int64_t oldest;

	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++) {
		oldest = 0;
		for (int row = 0; row < PQntuples(res); row++)
			if (strcmp(PQgetvalue(res, row, 0), c->parts[i]->topic) == 0 &&
				cell(res, row, 1, -1) == c->parts[i]->partition)
				oldest = cell(res, row, 2, 0);
		atomic_store(&c->parts[i]->parked_oldest_us, oldest);
	}
	(void)pthread_mutex_unlock(&c->mutex);
}

static int count_parked(struct keeper *k, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(k->pg, sql_keeper_parked, 1, (const char *const[]){ k->c->conf->group }, err);

	if (!res)
		return -1;
	tell_parked(k->c, res);
	PQclear(res);
	return 0;
}

static int stats(struct keeper *k, struct pr_err *err)
{
	struct consumer *c = k->c;
	int64_t began = pr_mono_us(), took;
	PGresult *res = pr_pg_exec(k->pg, sql_keeper_stats, 1, (const char *const[]){ c->conf->group }, err);

	if (!res)
		return -1;
	atomic_store(&c->group_parked_events, (uint64_t)cell(res, 0, 0, 0));
	atomic_store(&c->group_parked_keys, (uint64_t)cell(res, 0, 1, 0));
	atomic_store(&c->group_parked_oldest_us, cell(res, 0, 2, INT64_MAX));
	atomic_store(&c->retrying, (uint64_t)cell(res, 0, 3, 0));
	atomic_store(&c->dead_letters, (uint64_t)cell(res, 0, 4, 0));
	atomic_store(&c->replays, (uint64_t)cell(res, 0, 5, 0));
	PQclear(res);
	if (count_parked(k, err) < 0)
		return -1;
	atomic_store(&c->counted, 1);
	took = SHARE * (pr_mono_us() - began);
	k->next_stats_us = pr_mono_us() + (took > STATS_US ? took : STATS_US);
	return 0;
}

/* Remembers when each part was last seen with nothing to do: what is not yet read is younger than that. */
void keeper_watch(struct consumer *c)
{
	int64_t now = pr_wall_us();

	if (atomic_load(&c->kafka_up))
		atomic_store(&c->kafka_contact_us, pr_mono_us());
	(void)pthread_mutex_lock(&c->mutex);
	for (size_t i = 0; i < c->parts_n; i++)
		if (health_part_events(c->parts[i]) == 0 || atomic_load(&c->parts[i]->level_us) == 0)
			atomic_store(&c->parts[i]->level_us, now);
	(void)pthread_mutex_unlock(&c->mutex);
}

/* ---------------------------------------------------------------- rotation */

/* Several times in the life of a slot, though not all day long. */
static int64_t rotate_every_us(int64_t keep_us)
{
	int64_t us = keep_us / 16;

	return us < PR_SEC / 2 ? PR_SEC / 2 : us > 60 * PR_SEC ? 60 * PR_SEC : us;
}

/* Takes res. */
static int rotated(PGresult *res, const char *says, const struct pr_err *err)
{
	if (!res) /* in use: next time it waits longer for its turn */
		return strcmp(err->code, "55P03") == 0 ? 0 : -1;
	if (cell(res, 0, 0, 0) > 0)
		pr_log(PR_INFO, says, KI("slots", cell(res, 0, 0, 0)));
	PQclear(res);
	return 0;
}

static int rotate(struct keeper *k, struct pr_err *err)
{
	int64_t keep = pr_setting(&k->c->conf->inbox.keep_us);
	char text[24];
	PGresult *res;

	k->next_rotate_us = pr_mono_us() + rotate_every_us(keep);
	(void)snprintf(text, sizeof(text), "%" PRId64, keep);
	res = pr_pg_exec(k->pg, sql_keeper_rotate, 1, (const char *const[]){ text }, err);
	return rotated(res, "remembered ids rotated", err);
}

/* 1: schema saga is here, it is ours, and we may rotate it. */
static int has_sagas(struct keeper *k, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(k->pg, sql_keeper_has_sagas, 0, NULL, err);
	int has;

	if (!res)
		return -1;
	has = PQntuples(res) > 0;
	PQclear(res);
	return has;
}

/* The engine's clock rotates for itself. Nobody else does for those who only take part. */
static int rotate_sagas(struct keeper *k, struct pr_err *err)
{
	int64_t keep = k->c->conf->inbox.sagas_us;
	char text[24];
	PGresult *res;
	int has = has_sagas(k, err);

	k->next_sagas_us = pr_mono_us() + rotate_every_us(keep);
	if (has <= 0)
		return has;
	(void)snprintf(text, sizeof(text), "%" PRId64, keep);
	res = pr_pg_exec(
		k->pg, sql_keeper_rotate_sagas, 2, (const char *const[]){ text, k->c->conf->group }, err);
	return rotated(res, "what steps of sagas did rotated", err);
}

/* What sinks remember of ranges. */
static int prune(struct keeper *k, struct pr_err *err)
{
	int more = k->c->store->prune(k->c->conf, k->pg, err);

	k->next_prune_us = pr_mono_us();
	k->next_prune_us += more ? PR_SEC : rotate_every_us(pr_sink_cut_of(&k->c->conf->sink)->keep_us);
	return more < 0 ? -1 : 0;
}

/* ---------------------------------------------------------------- members that stand still */

/* A member that stops, or whose machine goes, in the middle of sending a batch: its backend has the ids of
 * the batch and waits for the rest, and whoever takes over waits for it. No timeout of the server runs then:
 * none of its statements does, and it is not idle. Past the time that a batch may take, its own deadline has
 * passed too. */
static int end_frozen(struct keeper *k, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = k->c->conf;
	char lanes[120], most[24];
	PGresult *res;

	k->next_frozen_us = pr_mono_us() + FROZEN_US;
	(void)snprintf(lanes, sizeof(lanes), "postrider-consumer %.32s lane ", conf->group);
	(void)snprintf(most, sizeof(most), "%" PRId64, conf->handler.timeout_us + conf->database.timeout_us);
	res = pr_pg_exec(k->pg, sql_keeper_frozen, 2, (const char *const[]){ lanes, most }, err);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		pr_log(PR_WARN, "ended a session that had sent half of a batch",
			KI("pid", cell(res, i, 0, 0)));
	PQclear(res);
	return 0;
}

/* ---------------------------------------------------------------- the thread */

static int round_of_work(struct keeper *k, struct pr_err *err)
{
	struct consumer *c = k->c;

	if (!atomic_load(&c->ready) && begin(k, err) < 0)
		return -1;
	if (orders(k, err) < 0)
		return -1;
	atomic_store(&c->postgres_contact_us, pr_mono_us());
	if (pr_mono_us() >= k->next_stats_us && stats(k, err) < 0)
		return -1;
	if (c->conf->dedupe == PR_DEDUPE_INBOX && pr_mono_us() >= k->next_rotate_us && rotate(k, err) < 0)
		return -1;
	if (c->conf->handler.kind != PR_HANDLER_SAGA && pr_mono_us() >= k->next_sagas_us &&
		rotate_sagas(k, err) < 0)
		return -1;
	if (c->store->prune && pr_mono_us() >= k->next_prune_us && prune(k, err) < 0)
		return -1;
	if (pr_mono_us() >= k->next_frozen_us && end_frozen(k, err) < 0)
		return -1;
	if (k->dead_letters && dead_letters_round(k->dead_letters, k->pg, err) < 0)
		return -1;
	atomic_store(&c->postgres_contact_us, pr_mono_us());
	return 0;
}

/* Before anything runs it is the only one who could tell that Postgres is away. */
static void failed(struct keeper *k, const struct pr_err *err)
{
	struct consumer *c = k->c;
	int ready = atomic_load(&c->ready);

	if (!ready && err->kind == PR_STOP && err->exit != PR_EX_FAILED) {
		health_trouble(c, TROUBLE_REFUSED, err);
		consumer_stop(c, err->exit);
	} else if (!ready || k->failures > 1) {
		health_trouble(c, ready ? TROUBLE_KEEPER : TROUBLE_POSTGRES, err);
	}
}

static void well(struct keeper *k)
{
	if (k->failures > 0 && atomic_load(&k->c->broken_lanes) == 0)
		health_trouble(k->c, TROUBLE_POSTGRES, NULL);
	k->failures = 0;
	health_trouble(k->c, TROUBLE_KEEPER, NULL);
}

void *keeper_thread(void *arg)
{
	struct consumer *c = arg;
	struct keeper k = { .c = c, .dead_letters = dead_letters_new(c) };
	struct pollfd wake = { .fd = c->wake_fd, .events = POLLIN };
	int64_t wait_us;
	struct pr_err err;

	while (!atomic_load(&c->stopping)) {
		pr_pulse("keeper", 4 * c->conf->kafka.timeout_us); /* dead letters go to Kafka */
		wait_us = ORDERS_US;
		if (session_open(&k.pg, c, "keeper", c->wake_fd, &err) == 0 && round_of_work(&k, &err) == 0) {
			well(&k);
		} else if (!atomic_load(&c->stopping)) {
			wait_us = pr_backoff_us(k.failures++, 100 * PR_MS, 2 * PR_SEC);
			failed(&k, &err);
		}
		keeper_watch(c);
		(void)poll(&wake, 1, (int)(wait_us / PR_MS));
	}
	dead_letters_free(k.dead_letters);
	pr_pg_close(k.pg);
	return NULL;
}
