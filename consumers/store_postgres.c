/* consumers/store_postgres.c -- a group with a database: its inbox keeps positions, ids and what is held
 * back. */
#include "consumers/store.h"

#include "lib/pg.h"

int store_postgres_claim(struct consumer *c, rd_kafka_t *rk, struct pr_pg **pg,
	const struct claim_wanted *wanted, size_t n, struct part **ret, struct pr_err *err)
{
	(void)rk;
	if (session_open(pg, c, "claim", c->wake_fd, err) < 0)
		return -1;
	if (claim_parts(c, *pg, wanted, n, ret, err) < 0)
		return pr_wrap(err, "cannot claim partitions");
	return 0;
}

static int usable(const struct lane *l)
{
	return l->pg && pr_pg_ok(l->pg);
}

static void end_session(struct lane *l)
{
	pr_pg_close(l->pg);
	l->pg = NULL;
	l->roomy = 0;
}

const struct store store_postgres = { .trouble = TROUBLE_POSTGRES,
	.claim = store_postgres_claim,
	.open = lane_connect,
	.usable = usable,
	.close = end_session,
	.load = held_load,
	.release = held_retry,
	.apply = apply,
	.move_idle = move_idle,
	.keeper = keeper_thread };
