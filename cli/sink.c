/* cli/sink.c -- groups that copy (handler.kind "sink"): what they take is known by its offset and nothing
 * else, so nothing can be given to them a second time. Refuses to guess where the login may not look: a group
 * that it cannot see is none. */
#include "cli/cli.h"

#include <string.h>

static int ask(struct pr_pg *pg, const char *sql, int n, const char *const *params, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql, n, params, err);
	int yes = res && PQntuples(res) == 1 && strcmp(PQgetvalue(res, 0, 0), "t") == 0;

	PQclear(res);
	return res ? yes : -1;
}

int cli_is_sink(struct pr_pg *pg, const char *group, struct pr_err *err)
{
	int rc = ask(pg,
		"SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND "
		"pg_catalog.has_table_privilege(k.oid, 'SELECT') FROM pg_catalog.pg_class AS k "
		"JOIN pg_catalog.pg_namespace AS n ON n.oid = k.relnamespace "
		"WHERE n.nspname = 'sink' AND k.relname = 'cut'",
		0, NULL, err);

	if (rc <= 0)
		return rc;
	return ask(pg, "SELECT EXISTS (SELECT FROM sink.cut AS c WHERE c.group_name = $1)", 1,
		(const char *const[]){ group }, err);
}

int cli_refuse_sink(struct pr_pg *pg, const char *group, const char *hint, struct pr_err *err)
{
	int rc = cli_is_sink(pg, group, err);

	if (rc <= 0)
		return rc;
	(void)pr_fail(err, PR_REJECT,
		"nothing was done: group %s is a sink, it takes no record a second time", group);
	(void)pr_hint(err, "%s", hint);
	err->exit = PR_EX_REFUSED;
	return -1;
}
