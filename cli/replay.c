/* cli/replay.c -- `postrider replay list|show|pause|resume|cancel`: jobs that read a range of a
 * topic again, for a group. The members of the group do the work; this program leaves the job in
 * the database and watches. */
#include "cli/replay.h"

#include "lib/clock.h"
#include "sql.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	int column, number;
} fields[] = { { "job", J_JOB, 1 }, { "group", J_GROUP, 0 }, { "topic", J_TOPIC, 0 }, { "state", J_STATE, 0 },
	{ "records", J_RECORDS, 1 }, { "done", J_DONE, 1 }, { "handled", J_HANDLED, 1 },
	{ "duplicates", J_DUPLICATES, 1 }, { "made_at", J_MADE_AT, 0 }, { "made_by", J_MADE_BY, 0 },
	{ "changed_at", J_CHANGED_AT, 0 }, { "changed_by", J_CHANGED_BY, 0 }, { "note", J_NOTE, 0 } };

static PGresult *read_jobs(struct pr_pg *pg, const char *job, const char *group, const char *state,
	int64_t limit, struct pr_err *err)
{
	char most[24];
	const char *params[4] = { job, group, state, most };

	(void)snprintf(most, sizeof(most), "%lld", (long long)limit);
	return pr_pg_exec(pg, sql_cli_replay_jobs, 4, params, err);
}

static cJSON *as_json(const PGresult *res, int i)
{
	cJSON *o = cJSON_CreateObject();

	for (size_t n = 0; n < sizeof(fields) / sizeof(*fields); n++)
		cli_json_cell(o, fields[n].name, res, i, fields[n].column, fields[n].number);
	return o;
}

static char *percent(int64_t done, int64_t records)
{
	return pr_asprintf("%lld %%", (long long)(records ? done * 100 / records : 100));
}

static void add_row(struct cli_table *t, const PGresult *res, int i)
{
	int64_t records = cli_cell_int(res, i, J_RECORDS);
	char *done = percent(cli_cell_int(res, i, J_DONE), records), a[32], b[32], d[32];
	const char *const cells[] = { cli_cell(res, i, J_JOB), cli_cell(res, i, J_GROUP),
		cli_cell(res, i, J_TOPIC), cli_cell(res, i, J_STATE), cli_count(records, a), done,
		cli_count(cli_cell_int(res, i, J_HANDLED), b),
		cli_count(cli_cell_int(res, i, J_DUPLICATES), d), cli_cell(res, i, J_MADE_BY),
		cli_cell(res, i, J_NOTE) };

	cli_table_add(t, cells);
	free(done);
}

int verb_replay_list(struct cli *c)
{
	static const char *const heads[] = { ">JOB", "=GROUP", "=TOPIC", "STATE", ">RECORDS", ">DONE",
		">HANDLED", ">DUPLICATES", "=BY", "~NOTE" };
	struct cli_table t = { .ncols = 10, .heads = heads };
	int64_t limit = cli_int(c, "limit", 100);
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = PR_EX_OK;

	if (cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = read_jobs(pg, NULL, cli_group(c), cli_str(c, "state"), limit + 1, &err))) {
		rc = cli_failed(c, &err);
		goto out;
	}
	for (int i = 0; i < PQntuples(res) && i < limit; i++) {
		if (cli_has(c, "json"))
			cli_json_free_line(as_json(res, i));
		else
			add_row(&t, res, i);
	}
	if (t.nrows)
		cli_table_print(&t, stdout);
	if (PQntuples(res) == 0)
		cli_say("no replay jobs");
	else if (PQntuples(res) > limit)
		cli_say("there are more: --limit shows them");
out:
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}

/* ---- show ---- */

static int check_job(const char *text, struct pr_err *err)
{
	char *end;

	errno = 0;
	if (strtoll(text, &end, 10) < 1 || errno || *end || *text < '0' || *text > '9')
		return cli_usage(err, "\"%.80s\" is not the number of a replay", text);
	return 0;
}

/* The one job, or NULL with exit 4. */
static PGresult *read_job(struct pr_pg *pg, const char *job, struct pr_err *err)
{
	PGresult *res = read_jobs(pg, job, NULL, NULL, 1, err);

	if (res && PQntuples(res) == 0) {
		PQclear(res);
		(void)pr_fail(err, PR_REJECT, "there is no replay %s", job);
		err->exit = PR_EX_NOT_FOUND;
		(void)pr_hint(err, "`postrider replay list` shows what there is");
		return NULL;
	}
	return res;
}

static void show_json(const PGresult *res, const PGresult *parts)
{
	static const char *const names[] = { "topic", "partition", "from_offset", "to_offset", "next_offset",
		"handled", "duplicates" };
	cJSON *o = as_json(res, 0), *list = cJSON_CreateArray();

	for (int i = 0; i < PQntuples(parts); i++) {
		cJSON *p = cJSON_CreateObject();

		for (int n = 0; n < 7; n++)
			cli_json_cell(p, names[n], parts, i, n, n > 0);
		(void)cJSON_AddItemToArray(list, p);
	}
	(void)cJSON_AddItemToObject(o, "partitions", list);
	cli_json_free_line(o);
}

static enum cli_colour colour_of(const char *state)
{
	return strcmp(state, "failed") == 0 ? CLI_RED : strcmp(state, "done") == 0 ? CLI_GREEN : CLI_YELLOW;
}

static void show_text(const PGresult *res, const PGresult *parts)
{
	static const char *const heads[] = { "=TOPIC", ">PARTITION", ">FROM", ">TO", ">NEXT", ">DONE",
		">HANDLED", ">DUPLICATES" };
	struct cli_table t = { .ncols = 8, .heads = heads };
	const char *state = cli_cell(res, 0, J_STATE), *note = cli_cell(res, 0, J_NOTE);
	char *group = cli_safe_str(cli_cell(res, 0, J_GROUP));

	(void)printf("%sreplay %s%s  group %s  %s%s%s\n", cli_on(stdout, CLI_BOLD), cli_cell(res, 0, J_JOB),
		cli_off(stdout), group, cli_on(stdout, colour_of(state)), state, cli_off(stdout));
	if (note && *note)
		cli_text(stdout, note, 0, 2);
	for (int i = 0; i < PQntuples(parts); i++) {
		int64_t from = cli_cell_int(parts, i, 2), to = cli_cell_int(parts, i, 3);
		char *done = percent(cli_cell_int(parts, i, 4) - from, to - from);
		const char *const cells[] = { cli_cell(parts, i, 0), cli_cell(parts, i, 1),
			cli_cell(parts, i, 2), cli_cell(parts, i, 3), cli_cell(parts, i, 4), done,
			cli_cell(parts, i, 5), cli_cell(parts, i, 6) };

		cli_table_add(&t, cells);
		free(done);
	}
	cli_table_print(&t, stdout);
	free(group);
}

static int has_ended(const char *state)
{
	return strcmp(state, "done") == 0 || strcmp(state, "cancelled") == 0;
}

static int exit_of(const char *state)
{
	return strcmp(state, "failed") == 0 || strcmp(state, "cancelled") == 0 ? PR_EX_FAILED : PR_EX_OK;
}

static int show(struct cli *c, struct pr_pg *pg, const char *job, struct pr_err *err)
{
	PGresult *res = read_job(pg, job, err), *parts = NULL;
	int rc;

	if (!res || !(parts = pr_pg_exec(pg, sql_cli_replay_parts, 1, &job, err))) {
		rc = cli_failed(c, err);
	} else {
		if (cli_has(c, "json"))
			show_json(res, parts);
		else
			show_text(res, parts);
		rc = exit_of(cli_cell(res, 0, J_STATE));
	}
	PQclear(res);
	PQclear(parts);
	return rc;
}

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
	(void)sig;
	stopped = 1;
}

/* Until the job has ended, or Ctrl-C: it goes on without us. */
int replay_watch(struct cli *c, struct pr_pg *pg, const char *job, struct pr_err *err)
{
	const struct sigaction act = { .sa_handler = on_signal };
	struct cli_progress p = { 0 };
	int open = 1;

	(void)sigaction(SIGINT, &act, NULL);
	(void)sigaction(SIGTERM, &act, NULL);
	while (open && !stopped) {
		PGresult *res = read_job(pg, job, err);
		const char *state;

		if (!res)
			return cli_failed(c, err);
		if (!p.what)
			cli_progress_begin(c, &p, "replay", cli_cell_int(res, 0, J_RECORDS));
		p.done = cli_cell_int(res, 0, J_DONE);
		cli_progress(&p);
		state = cli_cell(res, 0, J_STATE);
		open = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
		PQclear(res);
		if (open && !stopped)
			(void)poll(NULL, 0, 200);
	}
	cli_progress_end(&p);
	if (stopped)
		cli_say("replay %s goes on without being watched", job);
	return show(c, pg, job, err);
}

int verb_replay_show(struct cli *c)
{
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc;

	if (check_job(c->args[0], &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0)
		rc = cli_failed(c, &err);
	else if (cli_has(c, "watch"))
		rc = replay_watch(c, pg, c->args[0], &err);
	else
		rc = show(c, pg, c->args[0], &err);
	pr_pg_close(pg);
	return rc;
}

/* ---- pause, resume, cancel ---- */

/* The job is not in a state that allows it. */
static int refuse(struct pr_pg *pg, const char *job, const char *what, struct pr_err *err)
{
	PGresult *res = read_job(pg, job, err);

	if (!res)
		return -1;
	(void)pr_fail(
		err, PR_REJECT, "replay %s is %s: it cannot be %s", job, cli_cell(res, 0, J_STATE), what);
	err->exit = PR_EX_REFUSED;
	PQclear(res);
	return -1;
}

static int change(struct cli *c, const char *function, const char *what)
{
	char *sql = pr_asprintf("SELECT inbox.%s($1::bigint)", function);
	const char *job = c->args[0];
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc;

	if (check_job(job, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = pr_pg_exec(pg, sql, 1, &job, &err)) ||
		(*PQgetvalue(res, 0, 0) != 't' && refuse(pg, job, what, &err) < 0)) {
		rc = cli_failed(c, &err);
	} else if (cli_has(c, "json")) {
		rc = show(c, pg, job, &err);
		rc = rc == PR_EX_FAILED ? PR_EX_OK : rc; /* cancelled is what was asked for */
	} else {
		(void)printf("replay %s is %s\n", job, what);
		rc = PR_EX_OK;
	}
	PQclear(res);
	pr_pg_close(pg);
	free(sql);
	return rc;
}

int verb_replay_pause(struct cli *c)
{
	return change(c, "replay_pause", "paused");
}

int verb_replay_resume(struct cli *c)
{
	return change(c, "replay_resume", "resumed");
}

/* What has ended already is refused with its own words, before anybody is asked for --yes. */
static int check_open(struct cli *c, const char *job, struct pr_err *err)
{
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = -1;

	if (check_job(job, err) == 0 && cli_connect_outbox(c, &pg, err) == 0 &&
		(res = read_job(pg, job, err)) != NULL)
		rc = has_ended(cli_cell(res, 0, J_STATE)) ? refuse(pg, job, "cancelled", err) : 0;
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}

int verb_replay_cancel(struct cli *c)
{
	const char *job = c->args[0];
	struct pr_err err = { 0 };

	if (check_open(c, job, &err) < 0)
		return cli_failed(c, &err);
	if (cli_has(c, "dry-run")) {
		cli_say("would cancel replay %.20s", job);
		return PR_EX_OK;
	}
	if (cli_confirmed(c, &err, "cancel replay %.20s: it cannot be resumed", job) < 0)
		return cli_failed(c, &err);
	return change(c, "replay_cancel", "cancelled");
}
