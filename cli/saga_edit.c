/* cli/saga_edit.c -- `postrider saga edit-data`: the data of a saga exchanged, which its later commands are
 * made of. Shows what changes before it asks the engine to do it. */
#include "cli/saga.h"
#include "lib/json.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

/* Columns of db/queries/saga_show.sql that are used here. */
enum { S_ID, S_NAME, S_VERSION, S_STATE, S_TURNED, S_GRANTED, S_DATA };

static PGresult *read_saga(struct pr_pg *pg, const char *id, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql_saga_show, 1, &id, err);

	if (res && PQntuples(res) == 0) {
		PQclear(res);
		(void)saga_not_found(err, id);
		return NULL;
	}
	return res;
}

static char *indented(const char *json)
{
	struct pr_buf b = { 0 };

	cli_json_indent(&b, json, strlen(json), 0);
	return b.s ? b.s : pr_strdup("");
}

/* The diff shows control bytes and the like made visible, line by line. */
static char *page(const char *json)
{
	char *text = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&text, &n);

	if (!f)
		return pr_strdup("");
	cli_lines(f, json, strlen(json), 0);
	(void)fclose(f);
	return text;
}

/* *ret: the new data, malloc'd. */
static int by_editor(const char *was, char **ret, struct pr_err *err)
{
	size_t n = 0, at = 0;

	if (cli_edit(was, strlen(was), ".json", ret, &n, err) < 0)
		return -1;
	while (at < n && strchr(" \t\r\n", (*ret)[at]))
		at++;
	if (at < n && (*ret)[at] == '{' && pr_json_text(*ret, n))
		return 0;
	free(*ret);
	*ret = NULL;
	(void)pr_fail(err, PR_REJECT, "nothing was done: the new data is not one JSON object");
	err->exit = PR_EX_REFUSED;
	return -1;
}

static int new_data(const struct cli *c, const char *was, char **ret, int *ret_by_hand, struct pr_err *err)
{
	*ret_by_hand = 0;
	if (cli_has(c, "data"))
		return saga_data_option(c, ret, err);
	if (!cli_tty(stdin) || !cli_tty(stdout)) {
		(void)cli_usage(err, "what shall the data be?");
		return pr_hint(err, "give --data JSON, @file or @-; on a terminal an editor opens");
	}
	*ret_by_hand = 1;
	return by_editor(was, ret, err);
}

/* 1 when something is different. */
static int show_diff(const struct cli *c, const char *was, const char *is)
{
	char *a = page(was), *b = page(is);
	int differ = strcmp(was, is) != 0;

	if (differ && !cli_has(c, "json"))
		cli_diff(stdout, a, b);
	free(a);
	free(b);
	return differ;
}

/* The engine would refuse it for reasons of its own. */
static int refused(struct pr_pg *pg, const char *id, const char *data, struct pr_err *err)
{
	char *ids = pr_asprintf("{%s}", id);
	const char *params[1] = { ids };
	PGresult *res = pr_pg_exec(pg, sql_saga_instances, 1, params, err);
	struct saga_copy s = { 0 };
	struct pr_buf words = { 0 };
	int rc = -1;

	if (res && PQntuples(res) == 0)
		(void)saga_not_found(err, id);
	else if (res && saga_copy_read(res, 0, &s, err) == 0)
		rc = saga_rehearse(&s, ORDER_EDIT, NULL, data, NULL, &words, err);
	saga_copy_release(&s);
	pr_buf_free(&words);
	PQclear(res);
	free(ids);
	return rc;
}

static void say_moving(const PGresult *res)
{
	const char *state = PQgetvalue(res, 0, S_STATE);

	if (strcmp(state, "STUCK") != 0)
		cli_warn("it is %s: what a reply has put into the data meanwhile is lost", state);
}

static int agreed(const struct cli *c, const PGresult *res, int by_hand, struct pr_err *err)
{
	if (by_hand && !cli_has(c, "yes")) {
		if (cli_agreed("replace the data by this?"))
			return 0;
		(void)pr_fail(err, PR_REJECT, "nothing was done");
		err->exit = PR_EX_REFUSED;
		return -1;
	}
	return cli_confirmed(c, err, "replace the data of %s %s by this", PQgetvalue(res, 0, S_NAME),
		PQgetvalue(res, 0, S_ID));
}

static int edit(const struct cli *c, struct pr_pg *pg, const PGresult *res, struct pr_err *err)
{
	char *was = indented(PQgetvalue(res, 0, S_DATA)), *data = NULL, *is = NULL;
	const char *id = PQgetvalue(res, 0, S_ID);
	int by_hand = 0, rc;

	if (new_data(c, was, &data, &by_hand, err) < 0) {
		rc = cli_failed(c, err);
		goto out;
	}
	is = indented(data);
	if (!show_diff(c, was, is)) {
		cli_say("nothing is different: nothing was done");
		rc = PR_EX_OK;
	} else if (refused(pg, id, data, err) < 0) {
		rc = cli_fail(err);
	} else if (cli_has(c, "dry-run")) {
		rc = PR_EX_OK;
	} else {
		say_moving(res);
		rc = agreed(c, res, by_hand, err) < 0
			     ? cli_fail(err)
			     : saga_order_one(c, pg, ORDER_EDIT, id, PQgetvalue(res, 0, S_NAME), data, err);
	}
out:
	free(was);
	free(data);
	free(is);
	return rc;
}

int verb_saga_edit_data(struct cli *c)
{
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc;

	if (saga_check_id(c->args[0], &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = read_saga(pg, c->args[0], &err)))
		rc = cli_failed(c, &err);
	else
		rc = edit(c, pg, res, &err);
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}
