/* relay/worker.c -- threads beside the events' way. Refuses to work while the connection is not well. */
#include "relay/worker.h"

#include "lib/clock.h"
#include "lib/pulse.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define APPNAME_MAX 63

int session_open(struct pr_pg **pg, const struct pr_relay_conf *conf, const char *role, int wake_fd,
	struct pr_err *err)
{
	struct pr_pg_opts opts;
	char *appname;
	int room, rc;

	if (*pg && pr_pg_ok(*pg))
		return 0;
	pr_pg_close(*pg);
	*pg = NULL;
	/* Postgres cuts a name at 63 bytes: of a long one the role is what tells our sessions apart. */
	room = APPNAME_MAX - (int)(sizeof("postrider-relay  ") - 1 + strlen(role));
	appname = pr_asprintf("postrider-relay %.*s %s", room, conf->name, role);
	opts = (struct pr_pg_opts){ conf->source.conninfo, appname, conf->source.timeout_us, wake_fd };
	rc = pr_pg_open(&opts, pg, err);
	free(appname);
	return rc;
}

int worker_ask(struct worker *w, const char *sql, int n, const char *const *params, int64_t none,
	int64_t *ret, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(w->pg, sql, n, params, err);

	if (!res)
		return -1;
	*ret = PQntuples(res) > 0 && !PQgetisnull(res, 0, 0) ? strtoll(PQgetvalue(res, 0, 0), NULL, 10)
							     : none;
	PQclear(res);
	return 0;
}

int worker_leads(const struct worker *w)
{
	return pipe_state(&w->r->pipe) != PIPE_STANDBY;
}

void worker_committed(const struct worker *w, struct pr_mark *ret)
{
	(void)pthread_mutex_lock(&w->r->mutex);
	pr_mark_copy(ret, &w->r->committed.from);
	(void)pthread_mutex_unlock(&w->r->mutex);
}

void worker_run(struct worker *w, int (*round)(struct worker *w, struct pr_err *err), enum trouble trouble)
{
	struct pollfd wake = { .fd = w->r->wake_fd, .events = POLLIN };
	int64_t wait_us;
	struct pr_err err;

	while (!atomic_load(&w->r->stopping)) {
		pr_pulse(w->role, w->every_us);
		wait_us = 0;
		if (session_open(&w->pg, w->r->conf, w->role, w->r->wake_fd, &err) == 0 &&
			round(w, &err) == 0) {
			w->failures = 0;
			health_trouble(w->r, trouble, NULL);
			wait_us = w->every_us;
		} else if (!atomic_load(&w->r->stopping)) {
			wait_us = pr_backoff_us(w->failures++, 100 * PR_MS, 2 * PR_SEC);
			if (w->failures > 1)
				health_trouble(w->r, trouble, &err);
		}
		(void)poll(&wake, 1, (int)(wait_us / PR_MS));
	}
	pr_pg_close(w->pg);
}
