/* cli/lanes.c -- `postrider lanes`: how many lanes a consumer group shall have, kept in inbox.consumer, which
 * its members read. Speaks to the database only, so it works while they are away. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#define MOST 64 /* of a member: the bound of the config's option */

static int parse(const struct cli *c, const char **ret, struct pr_err *err)
{
	struct pr_err why;
	int64_t n;

	*ret = NULL;
	if (strcmp(c->args[0], "default") == 0)
		return 0;
	*ret = c->args[0];
	if (pr_parse_int(c->args[0], &n, &why) == 0 && n >= 1 && n <= MOST)
		return 0;
	return cli_usage(err, "\"%.80s\" is neither a number from 1 to %d nor \"default\"", c->args[0], MOST);
}

/* was and is: NULL is the config's. */
static void report(const struct cli *c, const char *was, const char *is)
{
	int changed = strcmp(was ? was : "", is ? is : "") != 0;
	cJSON *o;

	if (!cli_has(c, "json")) {
		(void)printf("lanes: %s", is ? is : "as each member's config says");
		if (c->nargs > 0 && !changed)
			(void)printf(", as before");
		else if (c->nargs > 0)
			(void)printf(", before: %s", was ? was : "as each member's config says");
		(void)printf("\n");
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddStringToObject(o, "group", cli_group(c));
	if (is)
		cli_json_int(o, "lanes", strtoll(is, NULL, 10));
	else
		(void)cJSON_AddNullToObject(o, "lanes");
	(void)cJSON_AddBoolToObject(o, "changed", changed);
	cli_json_free_line(o);
}

/* No consumer of the group has run here yet. */
static void not_found(struct pr_err *err)
{
	(void)pr_hint(err, "postrider show consumers says which have");
	err->exit = PR_EX_NOT_FOUND;
}

/* What was wanted before, and what is now. */
static PGresult *set(const struct cli *c, struct pr_pg *pg, const char *lanes, struct pr_err *err)
{
	const char *params[2] = { cli_group(c), lanes };
	PGresult *res = pr_pg_exec(pg,
		"SELECT (SELECT lanes FROM inbox.consumer WHERE \"group\" = $1), $2::integer,"
		" inbox.set_lanes($1, $2::integer)",
		2, params, err);

	if (!res && strcmp(err->code, "55000") == 0)
		not_found(err);
	return res;
}

static PGresult *look(const struct cli *c, struct pr_pg *pg, struct pr_err *err)
{
	const char *group = cli_group(c);
	PGresult *res = pr_pg_exec(
		pg, "SELECT lanes, lanes FROM inbox.consumer WHERE \"group\" = $1", 1, &group, err);

	if (!res || PQntuples(res) > 0)
		return res;
	PQclear(res);
	(void)pr_fail(err, PR_STOP, "no consumer of group \"%.100s\" has run on this database yet", group);
	not_found(err);
	return NULL;
}

int verb_lanes(struct cli *c)
{
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	const char *lanes = NULL;
	PGresult *res = NULL;
	int rc;

	if (c->nargs > 0 && parse(c, &lanes, &err) < 0)
		return cli_failed(c, &err);
	if (!cli_group(c)) {
		(void)cli_usage(&err, "give the group: --group, or -c of a consumer");
		return cli_failed(c, &err);
	}
	if (cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = c->nargs > 0 ? set(c, pg, lanes, &err) : look(c, pg, &err))) {
		rc = cli_fail(&err);
		goto out;
	}
	report(c, cli_cell(res, 0, 0), cli_cell(res, 0, 1));
	rc = PR_EX_OK;
out:
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}
