/* cli/pause.c -- `postrider pause` and `resume`: sets the word in outbox.relay, or in
 * inbox.consumer for a group, that the relay or the consumers read at each turn. Speaks to the
 * database only, so it works while they are away. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#define SINCE "to_char(paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), paused_by "

static void report(const struct cli *c, int changed, const char *since, const char *by)
{
	cJSON *o;

	if (!cli_has(c, "json")) {
		if (since) {
			char *safe = cli_safe_str(by ? by : "unknown");

			(void)printf("%s since %s, by %s\n", changed ? "paused" : "was paused already,",
				since, safe);
			free(safe);
		} else {
			(void)printf("%s\n", changed ? "resumed" : "was not paused");
		}
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddBoolToObject(o, "paused", since != NULL);
	(void)cJSON_AddItemToObject(o, "since", since ? cJSON_CreateString(since) : cJSON_CreateNull());
	(void)cJSON_AddBoolToObject(o, "changed", changed);
	if (cli_group(c))
		(void)cJSON_AddStringToObject(o, "group", cli_group(c));
	cli_json_free_line(o);
}

static int switch_to(struct cli *c, const char *function)
{
	const char *group = cli_group(c), *now_sql;
	char *sql = pr_asprintf("SELECT %s.%s(%s)", group ? "inbox" : "outbox", function, group ? "$1" : "");
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *done = NULL, *now = NULL;
	int rc, n = group != NULL;

	now_sql = group ? "SELECT " SINCE "FROM inbox.consumer WHERE \"group\" = $1"
			: "SELECT " SINCE "FROM outbox.relay";
	if (cli_connect_outbox(c, &pg, &err) < 0 || !(done = pr_pg_exec(pg, sql, n, &group, &err)) ||
		!(now = pr_pg_exec(pg, now_sql, n, &group, &err))) {
		if (strcmp(err.code, "55000") ==
			0) /* no relay, or no consumer of the group, has run here yet */
			err.exit = group ? PR_EX_NOT_FOUND : PR_EX_REFUSED;
		if (strcmp(err.code, "55000") == 0 && group)
			(void)pr_hint(&err, "postrider show consumers says which have");
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
