/* consumers/session.c -- connections to the database, named so that people find them in pg_stat_activity. */
#include "consumers/consumer.h"

#include "lib/pg.h"

#include <stdlib.h>

int session_open(struct pr_pg **pg, struct consumer *c, const char *role, int wake_fd, struct pr_err *err)
{
	struct pr_pg_opts opts;
	char *appname;
	int rc;

	if (*pg && pr_pg_ok(*pg))
		return 0;
	if (*pg)
		atomic_fetch_add(&c->reconnects, 1);
	pr_pg_close(*pg);
	*pg = NULL;
	appname = pr_asprintf("postrider-consumer %s %s", c->conf->group, role);
	opts = (struct pr_pg_opts){ c->conf->database.conninfo, appname, c->conf->database.timeout_us,
		wake_fd };
	rc = pr_pg_open(&opts, pg, err);
	free(appname);
	return rc;
}
