/* relay/worker.h -- what the janitor and retention threads have in common: a connection of their own, a
 * round of work every so often, and trouble that is told and ends. */
#ifndef RELAY_WORKER_H
#define RELAY_WORKER_H

#include "relay/relay.h"

#include "lib/pg.h"

struct worker {
	struct relay *r;
	const char *role; /* in application_name */
	int64_t every_us; /* between two rounds; a round may change it */
	struct pr_pg *pg;
	unsigned failures; /* rounds in a row */
};

/* A session of ours, opened when *pg is NULL or dead. */
int session_open(struct pr_pg **pg, const struct pr_relay_conf *conf, const char *role, int wake_fd,
	struct pr_err *err) PR_MUSTCHECK;

/* First column of the first row as a number; *ret = none when there is no row or it is NULL. */
int worker_ask(struct worker *w, const char *sql, int n, const char *const *params, int64_t none,
	int64_t *ret, struct pr_err *err) PR_MUSTCHECK;

/* Rounds until the relay stops; a second failure in a row is trouble. */
void worker_run(struct worker *w, int (*round)(struct worker *w, struct pr_err *err), enum trouble trouble);

/* Whether this relay leads, and if so what is committed; copies into *ret (release it), {0} when nothing is.
 */
int worker_leads(const struct worker *w);
void worker_committed(const struct worker *w, struct pr_mark *ret);

#endif
