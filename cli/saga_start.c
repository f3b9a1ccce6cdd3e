/* cli/saga_start.c -- `postrider saga start`: asks the engine to start one, as any service does: by a row in
 * the outbox. Prints the id. Refuses a name that the engine of this database does not know. */
#include "cli/saga.h"
#include "lib/clock.h"
#include "sql.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* A service's database has no definitions: there the engine's word is not known. */
static int known(struct pr_pg *pg, const char *name, struct pr_err *err)
{
	static const char sql[] = "SELECT bool_or(name = $1), string_agg(DISTINCT name, ', ' ORDER BY name) "
				  "FROM saga.definition";
	PGresult *res = pr_pg_exec(pg, sql, 1, &name, err);
	const char *is_known;
	int rc = 0;

	if (!res) /* who may start need not have the right to read them */
		return strcmp(err->code, "42501") == 0 ? 0 : -1;
	is_known = cli_cell(res, 0, 0);
	if (is_known && *is_known != 't') {
		rc = pr_fail(err, PR_REJECT, "there is no saga \"%.80s\" in this database", name);
		err->exit = PR_EX_NOT_FOUND;
		(void)pr_hint(err, "it has: %.300s", cli_cell(res, 0, 1));
	}
	PQclear(res);
	return rc;
}

static char *start(const struct cli *c, struct pr_pg *pg, const char *data, struct pr_err *err)
{
	const char *params[3] = { c->args[0], data, cli_str(c, "id") };
	PGresult *res = pr_pg_exec(pg, sql_saga_start, 3, params, err);
	char *id = res ? pr_strdup(PQgetvalue(res, 0, 0)) : NULL;

	PQclear(res);
	return id;
}

/* NULL: the engine has not taken it yet. */
static char *state_of(struct pr_pg *pg, const char *id, char **ret_why, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg,
		"SELECT state, why FROM saga.instance WHERE id = $1::uuid ORDER BY slot LIMIT 1", 1, &id,
		err);
	char *state = NULL;

	if (!res)
		return NULL;
	if (PQntuples(res)) {
		state = pr_strdup(PQgetvalue(res, 0, 0));
		*ret_why = cli_cell(res, 0, 1) ? pr_strdup(cli_cell(res, 0, 1)) : NULL;
	}
	PQclear(res);
	return state;
}

static int is_end(const char *state)
{
	int s = state ? saga_state_parse(state, strlen(state)) : -1;

	return s == SAGA_STUCK || (s >= 0 && saga_is_final((enum saga_state)s));
}

/* Until it has ended, is stuck, or the time is over. */
static char *wait_for(
	const struct cli *c, struct pr_pg *pg, const char *id, char **ret_why, struct pr_err *err)
{
	int64_t until = pr_mono_us() + cli_int(c, "wait", 0);
	char *state;
	int pause = 20;

	for (;;) {
		err->exit = 0;
		state = state_of(pg, id, ret_why, err);
		if (err->exit || is_end(state) || pr_mono_us() >= until)
			return state;
		free(state);
		free(*ret_why);
		*ret_why = NULL;
		(void)poll(NULL, 0, pause);
		pause = pause < 200 ? pause * 2 : 200;
	}
}

static int exit_of(const struct cli *c, const char *state)
{
	if (!cli_int(c, "wait", 0) || (state && strcmp(state, "COMPLETED") == 0))
		return PR_EX_OK;
	if (!state)
		return PR_EX_UNAVAILABLE;
	return strcmp(state, "STUCK") == 0 ? PR_EX_UNHEALTHY
	       : is_end(state)             ? PR_EX_FAILED
					   : PR_EX_UNAVAILABLE;
}

static void report(const struct cli *c, const char *id, const char *state, const char *why)
{
	cJSON *o;

	if (!cli_has(c, "json")) {
		(void)printf("%s\n", id);
		if (state)
			cli_say("%s%s%s", state, why && *why ? ": " : "", why ? why : "");
		else if (cli_int(c, "wait", 0))
			cli_say("no engine has taken it yet: it stays in the outbox until a relay and an "
				"engine run");
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddStringToObject(o, "id", id);
	(void)cJSON_AddStringToObject(o, "name", c->args[0]);
	(void)cJSON_AddItemToObject(o, "state", state ? cJSON_CreateString(state) : cJSON_CreateNull());
	(void)cJSON_AddItemToObject(o, "why", why && *why ? cJSON_CreateString(why) : cJSON_CreateNull());
	cli_json_free_line(o);
}

int verb_saga_start(struct cli *c)
{
	char *data = NULL, *id = NULL, *state = NULL, *why = NULL;
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc;

	if ((cli_has(c, "data") && saga_data_option(c, &data, &err) < 0) ||
		cli_connect_outbox(c, &pg, &err) < 0 || known(pg, c->args[0], &err) < 0 ||
		!(id = start(c, pg, data ? data : "{}", &err))) {
		rc = cli_failed(c, &err);
		goto out;
	}
	err.exit = 0;
	if (cli_int(c, "wait", 0))
		state = wait_for(c, pg, id, &why, &err);
	report(c, id, state, why);
	rc = err.exit ? cli_fail(&err) : exit_of(c, state);
out:
	free(data);
	free(id);
	free(state);
	free(why);
	pr_pg_close(pg);
	return rc;
}
