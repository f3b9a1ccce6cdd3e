/* cli/pause.c -- `postrider pause` and `resume`: sets the word in outbox.relay that the
 * relay reads at each turn. Speaks to the database only, so it works while the relay is away. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

static void report(const struct cli *c, int changed, const char *since, const char *by)
{
	cJSON *o;

	if (!cli_has(c, "json")) {
		if (since)
			(void)printf("%s since %s, by %s\n", changed ? "paused" : "was paused already,",
				since, by ? by : "unknown");
		else
			(void)printf("%s\n", changed ? "resumed" : "was not paused");
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddBoolToObject(o, "paused", since != NULL);
	(void)cJSON_AddItemToObject(o, "since", since ? cJSON_CreateString(since) : cJSON_CreateNull());
	(void)cJSON_AddBoolToObject(o, "changed", changed);
	cli_json_free_line(o);
}

static int switch_to(struct cli *c, const char *function)
{
	char *sql = pr_asprintf("SELECT outbox.%s()", function);
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *done = NULL, *now = NULL;
	int rc;

	if (cli_connect_outbox(c, &pg, &err) < 0 || !(done = pr_pg_exec(pg, sql, 0, NULL, &err)) ||
		!(now = pr_pg_exec(pg,
			  "SELECT to_char(paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
			  "paused_by "
			  "FROM outbox.relay",
			  0, NULL, &err))) {
		if (strcmp(err.code, "55000") == 0) /* no relay has run on this outbox yet */
			err.exit = PR_EX_REFUSED;
		rc = cli_fail(&err);
		goto out;
	}
	report(c, strcmp(PQgetvalue(done, 0, 0), "t") == 0, PQntuples(now) ? cli_cell(now, 0, 0) : NULL,
		PQntuples(now) ? cli_cell(now, 0, 1) : NULL);
	rc = PR_EX_OK;
out:
	PQclear(done);
	PQclear(now);
	pr_pg_close(pg);
	free(sql);
	return rc;
}

int verb_pause(struct cli *c)
{
	return switch_to(c, "pause");
}

int verb_resume(struct cli *c)
{
	return switch_to(c, "resume");
}
