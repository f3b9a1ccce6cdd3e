/* cli/alerts.c -- `postrider alerts`: what administrators are to see to, and who does. Refuses nothing that
 * has been done already: to acknowledge twice is to have acknowledged. */
#include "cli/cli.h"

#include "sql.h"

#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	A_ID,
	A_STATE,
	A_TIMES,
	A_SENT,
	A_AGE,
	A_FIRST,
	A_LAST,
	A_CAUSE,
	A_COMMAND,
	A_SENT_AT,
	A_ERROR,
	A_DETAIL
};
enum { H_AT, H_WHAT, H_BY, H_NOTE };

static int reach(struct cli *c, struct pr_pg **pg, struct pr_err *err)
{
	return cli_connect_outbox(c, pg, err) < 0
		       ? -1
		       : cli_need(*pg, "push.admin_alert", "alerts", "push", "push-consumer.cfg", err);
}

static int number(const char *text, struct pr_err *err)
{
	char *end;

	errno = 0;
	if (strtoll(text, &end, 10) < 1 || errno || *end || *text < '0' || *text > '9')
		return cli_usage(err, "\"%.80s\" is not the number of an alert", text);
	return 0;
}

static int not_found(const char *id, struct pr_err *err)
{
	(void)pr_fail(err, PR_REJECT, "there is no alert %s", id);
	err->exit = PR_EX_NOT_FOUND;
	return pr_hint(err, "postrider alerts list --all shows those there are");
}

static void put_alert(cJSON *o, const PGresult *res, int i)
{
	static const struct {
		const char *name;
		int column, number;
	} f[] = { { "alert", A_ID, 1 }, { "state", A_STATE, 0 }, { "times", A_TIMES, 1 },
		{ "sent", A_SENT, 1 }, { "first_at", A_FIRST, 0 }, { "last_at", A_LAST, 0 },
		{ "sent_at", A_SENT_AT, 0 }, { "cause", A_CAUSE, 0 }, { "command", A_COMMAND, 0 },
		{ "last_error", A_ERROR, 0 } };

	for (size_t k = 0; k < sizeof(f) / sizeof(*f); k++)
		cli_json_cell(o, f[k].name, res, i, f[k].column, f[k].number);
	(void)cJSON_AddRawToObject(o, "detail", PQgetvalue(res, i, A_DETAIL));
}

/* ---- list ---- */

static const char *states(const struct cli *c, struct pr_buf *b)
{
	if (!cli_has(c, "state"))
		return cli_has(c, "all") ? "{PENDING,SENT,FAILED,ACKED,RESOLVED}"
					 : "{PENDING,SENT,FAILED,ACKED}";
	pr_buf_puts(b, "{");
	for (int i = 0; cli_nth(c, "state", i); i++)
		pr_buf_printf(b, "%s%s", i ? "," : "", cli_nth(c, "state", i));
	pr_buf_puts(b, "}");
	return b->s;
}

static void add_row(struct cli_table *t, const PGresult *res, int i)
{
	char age[48];
	const char *const cells[] = { cli_cell(res, i, A_ID), cli_cell(res, i, A_STATE),
		cli_cell(res, i, A_TIMES), cli_span(strtod(PQgetvalue(res, i, A_AGE), NULL), age),
		cli_cell(res, i, A_CAUSE) };

	cli_table_add(t, cells);
}

static void put_list(const struct cli *c, const PGresult *res, int64_t limit)
{
	static const char *const heads[] = { "!ALERT", "STATE", ">TIMES", ">AGE", "~CAUSE" };
	struct cli_table t = { .ncols = 5, .heads = heads };
	int n = PQntuples(res);

	for (int i = 0; i < n && i < limit; i++) {
		if (cli_has(c, "json")) {
			cJSON *o = cJSON_CreateObject();

			put_alert(o, res, i);
			cli_json_free_line(o);
		} else {
			add_row(&t, res, i);
		}
	}
	if (t.nrows)
		cli_table_print(&t, stdout);
	if (n > limit)
		cli_say("there are more: --limit shows them");
	else if (n == 0)
		cli_say(cli_has(c, "all") || cli_has(c, "state") ? "no alerts like that"
								 : "nothing to see to");
	else if (!cli_has(c, "json"))
		cli_say("`postrider alerts show ALERT` has the command that resolves it");
}

int verb_alerts_list(struct cli *c)
{
	int64_t limit = cli_int(c, "limit", 100);
	struct pr_buf words = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	char most[24];
	int rc = PR_EX_OK;

	(void)snprintf(most, sizeof(most), "%lld", (long long)limit + 1);
	if (reach(c, &pg, &err) < 0 || !(res = pr_pg_exec(pg, sql_cli_alerts_list, 2,
						 (const char *const[]){ states(c, &words), most }, &err)))
		rc = cli_failed(c, &err);
	else
		put_list(c, res, limit);
	PQclear(res);
	pr_buf_free(&words);
	pr_pg_close(pg);
	return rc;
}

/* ---- show ---- */

static void line(const char *name, const char *text)
{
	if (!text || !*text)
		return;
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text, 11, 13);
}

static void show_json(const PGresult *res, const PGresult *log)
{
	cJSON *o = cJSON_CreateObject(), *acts;

	put_alert(o, res, 0);
	acts = cJSON_AddArrayToObject(o, "history");
	for (int i = 0; i < PQntuples(log); i++) {
		cJSON *act = cJSON_CreateObject();

		cli_json_cell(act, "at", log, i, H_AT, 0);
		cli_json_cell(act, "what", log, i, H_WHAT, 0);
		cli_json_cell(act, "by", log, i, H_BY, 0);
		cli_json_cell(act, "note", log, i, H_NOTE, 0);
		(void)cJSON_AddItemToArray(acts, act);
	}
	cli_json_free_line(o);
}

static enum cli_colour colour_of(const char *state)
{
	return strcmp(state, "RESOLVED") == 0 ? CLI_GREEN
	       : strcmp(state, "ACKED") == 0  ? CLI_YELLOW
					      : CLI_RED;
}

static void put_detail(const char *json)
{
	cJSON *all = cJSON_Parse(json);
	const cJSON *m;

	for (m = all ? all->child : NULL; m; m = m->next) {
		char *value = cJSON_IsString(m) ? pr_strdup(m->valuestring) : cJSON_PrintUnformatted(m);

		if (!cJSON_IsNull(m)) {
			char *text = pr_asprintf("%s: %.600s", m->string, value);

			line("", text);
			free(text);
		}
		free(value);
	}
	cJSON_Delete(all);
}

static void show_text(const PGresult *res, const PGresult *log)
{
	const char *state = PQgetvalue(res, 0, A_STATE);
	char *times = pr_asprintf("%s, first %s, last %s", PQgetvalue(res, 0, A_TIMES),
		PQgetvalue(res, 0, A_FIRST), PQgetvalue(res, 0, A_LAST));
	char *sent = cli_cell(res, 0, A_SENT_AT) ? pr_asprintf("%s, last %s", PQgetvalue(res, 0, A_SENT),
							   PQgetvalue(res, 0, A_SENT_AT))
						 : pr_strdup("not sent");

	(void)printf("%salert %s%s  %s%s%s\n", cli_on(stdout, CLI_BOLD), PQgetvalue(res, 0, A_ID),
		cli_off(stdout), cli_on(stdout, colour_of(state)), state, cli_off(stdout));
	line("cause", cli_cell(res, 0, A_CAUSE));
	line("times", times);
	line("sent", sent);
	line("error", cli_cell(res, 0, A_ERROR));
	line("resolve", cli_cell(res, 0, A_COMMAND));
	put_detail(PQgetvalue(res, 0, A_DETAIL));
	for (int i = 0; i < PQntuples(log); i++) {
		const char *note = cli_cell(log, i, H_NOTE);
		char *text =
			pr_asprintf("%s %s by %s%s%s", PQgetvalue(log, i, H_AT), PQgetvalue(log, i, H_WHAT),
				PQgetvalue(log, i, H_BY), note ? ": " : "", note ? note : "");

		line(i ? "" : "history", text);
		free(text);
	}
	free(times);
	free(sent);
}

int verb_alerts_show(struct cli *c)
{
	const char *const id[] = { c->args[0] };
	PGresult *res = NULL, *log = NULL;
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc = PR_EX_OK;

	if (number(id[0], &err) < 0 || reach(c, &pg, &err) < 0 ||
		!(res = pr_pg_exec(pg, sql_cli_alerts_show, 1, id, &err)) ||
		(PQntuples(res) == 0 && not_found(id[0], &err) < 0) ||
		!(log = pr_pg_exec(pg, sql_cli_alerts_log, 1, id, &err)))
		rc = cli_failed(c, &err);
	else if (cli_has(c, "json"))
		show_json(res, log);
	else
		show_text(res, log);
	PQclear(res);
	PQclear(log);
	pr_pg_close(pg);
	return rc;
}

/* ---- ack and resolve ---- */

/* Several people use one login of the database. */
static char *who(const struct cli *c, struct pr_pg *pg)
{
	const char *by = cli_option(c, "by"), *sudo = getenv("SUDO_USER"), *db = PQuser(pr_pg_conn(pg));
	const struct passwd *pw = getpwuid(getuid());
	const char *os = sudo && *sudo ? sudo : pw ? pw->pw_name : NULL;

	if (by)
		return pr_strdup(by);
	return os && strcmp(os, db) != 0 ? pr_asprintf("%s as %s", os, db) : pr_strdup(db);
}

static int act_on(struct cli *c, struct pr_pg *pg, const char *id, const char *what, struct pr_err *err)
{
	char *by = who(c, pg);
	PGresult *res = pr_pg_exec(pg, "SELECT push.alert_act($1, $2, $3, $4)", 4,
		(const char *const[]){ id, what, by, cli_option(c, "note") }, err);
	int rc = res ? 0 : -1;

	if (res && PQgetisnull(res, 0, 0))
		rc = not_found(id, err);
	else if (res && cli_has(c, "json"))
		(void)printf("{\"alert\":%s,\"what\":\"%s\",\"changed\":%s}\n", id, what,
			*PQgetvalue(res, 0, 0) == 't' ? "true" : "false");
	else if (res)
		(void)printf("alert %s %s%s\n", id, strcmp(what, "ack") == 0 ? "acknowledged" : "resolved",
			*PQgetvalue(res, 0, 0) == 't' ? "" : " already");
	PQclear(res);
	free(by);
	return rc;
}

static int act(struct cli *c, const char *what)
{
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc = 0;

	for (int i = 0; rc == 0 && i < c->nargs; i++)
		rc = number(c->args[i], &err);
	if (rc == 0)
		rc = reach(c, &pg, &err);
	for (int i = 0; rc == 0 && i < c->nargs; i++)
		rc = act_on(c, pg, c->args[i], what, &err);
	pr_pg_close(pg);
	return rc < 0 ? cli_failed(c, &err) : PR_EX_OK;
}

int verb_alerts_ack(struct cli *c)
{
	return act(c, "ack");
}

int verb_alerts_resolve(struct cli *c)
{
	return act(c, "resolve");
}
