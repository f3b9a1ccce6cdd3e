/* cli/dlq_retry.c -- `postrider dlq retry`: gives dead letters back to their group, at a rate, one
 * before all others as a canary, and watches what becomes of them. The group does the work: this
 * program may end at any time, and another run goes on with what is still dead. */
#include "cli/dlq.h"
#include "lib/clock.h"
#include "sql.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define IN_FLIGHT 1000 /* given back and not yet ended */
#define SHOWN     20   /* failures by name */

struct failure {
	char *entry, *now, *what, *reason;
};

/* What one run has come to. */
struct run {
	struct dlq_scan scan;
	const char *by; /* NULL: the database's user */
	int64_t *named; /* the operands, or NULL: what the filter finds */
	int n_named, at;
	int64_t last; /* highest entry at the start: failures come behind it */
	int64_t flight[IN_FLIGHT];
	int n_flight;
	int64_t chosen, given, retried, failed, dropped;
	int64_t moved_us;             /* when something ended last */
	int64_t credit_us, filled_us; /* time that was not used for giving back yet, one second at most */
	struct failure failures[SHOWN];
	int n_failures;
	struct cli_progress progress;
};

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
	(void)sig;
	stopped = 1;
}

static void run_release(struct run *r)
{
	for (int i = 0; i < r->n_failures; i++) {
		free(r->failures[i].entry);
		free(r->failures[i].now);
		free(r->failures[i].what);
		free(r->failures[i].reason);
	}
	dlq_scan_end(&r->scan);
	free(r->named);
	free(r);
}

/* ---- which ones ---- */

static int newest(struct pr_pg *pg, int64_t *ret, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(pg, "SELECT coalesce(max(d.entry), 0) FROM inbox.dead_letter AS d", 0, NULL, err);

	if (!res)
		return -1;
	*ret = cli_cell_int(res, 0, 0);
	PQclear(res);
	return 0;
}

/* The next dead letter to give back: 1, 0 at the end, -1. */
static int next(struct run *r, int64_t *ret, struct pr_err *err)
{
	int rc;

	if (r->named) {
		if (r->at == r->n_named)
			return 0;
		*ret = r->named[r->at++];
		return 1;
	}
	rc = dlq_next(&r->scan, err);
	if (rc == 1)
		*ret = cli_cell_int(r->scan.res, r->scan.row, D_ENTRY);
	return rc;
}

/* A sink looks at its topics and nowhere else: what is given back to it would wait for ever. */
static int refuse_sink(struct pr_pg *pg, const char *group, struct pr_err *err)
{
	return cli_refuse_sink(pg, group,
		"once what refused it is mended, publish the event anew; `postrider dlq show` has it, "
		"`postrider "
		"dlq drop` settles the dead letter",
		err);
}

static int named_of_no_sink(struct run *r, struct pr_pg *pg, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	PGresult *res;
	int rc = 0;

	dlq_put_array(&b, r->named, r->n_named);
	res = pr_pg_exec(pg,
		"SELECT DISTINCT d.\"group\" FROM inbox.dead_letter AS d WHERE d.entry = ANY ($1::bigint[])",
		1, (const char *const[]){ b.s }, err);
	pr_buf_free(&b);
	for (int i = 0; res && i < PQntuples(res) && rc == 0; i++)
		rc = refuse_sink(pg, PQgetvalue(res, i, 0), err);
	PQclear(res);
	return res ? rc : -1;
}

static int of_no_sink(struct run *r, const struct dlq_causes *causes, struct pr_pg *pg, struct pr_err *err)
{
	const char *group = "", *before;
	int rc = 0;

	if (r->named)
		return named_of_no_sink(r, pg, err);
	for (int i = 0; i < dlq_causes_count(causes) && rc == 0; i++) {
		before = group;
		group = dlq_causes_group(causes, i);
		if (strcmp(group, before) != 0)
			rc = refuse_sink(pg, group, err);
	}
	return rc;
}

/* ---- giving back and watching ---- */

static int give_back(struct run *r, const int64_t *v, int n, int64_t rate, struct pr_err *err)
{
	char per_second[24];
	struct pr_buf b = { 0 };
	const char *params[3];
	int rc;

	dlq_put_array(&b, v, n);
	(void)snprintf(per_second, sizeof(per_second), "%lld", (long long)rate);
	params[0] = b.s;
	params[1] = per_second;
	params[2] = r->by;
	rc = pr_pg_run(r->scan.pg, "SELECT inbox.dlq_retry($1::bigint[], $2::numeric, " CLI_BY("$3") ")", 3,
		params, err);
	pr_buf_free(&b);
	return rc;
}

static char *text_at(const PGresult *res, int row, int column)
{
	const char *s = cli_cell(res, row, column);

	return pr_strdup(s ? s : "");
}

static void remember_failure(struct run *r, const PGresult *res, int i)
{
	const char *code = cli_cell(res, i, 4), *cls = cli_cell(res, i, 3);

	r->failed++;
	if (r->n_failures == SHOWN)
		return;
	r->failures[r->n_failures++] = (struct failure){
		.entry = text_at(res, i, 0),
		.now = text_at(res, i, 2),
		.what = pr_asprintf("%s%s%s", cls ? cls : "", code && *code ? ":" : "", code ? code : ""),
		.reason = text_at(res, i, 5),
	};
}

/* Reads the states of what is in flight; what has ended leaves it. */
static int look(struct run *r, struct pr_err *err)
{
	char last[24];
	struct pr_buf b = { 0 };
	const char *params[2] = { NULL, last };
	PGresult *res;
	int left = 0;

	if (r->n_flight == 0)
		return 0;
	(void)snprintf(last, sizeof(last), "%lld", (long long)r->last);
	dlq_put_array(&b, r->flight, r->n_flight);
	params[0] = b.s;
	res = pr_pg_exec(r->scan.pg, sql_cli_dlq_states, 2, params, err);
	pr_buf_free(&b);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		const char *state = cli_cell(res, i, 1);

		if (strcmp(state, "retrying") == 0)
			r->flight[left++] = cli_cell_int(res, i, 0);
		else if (cli_cell(res, i, 2))
			remember_failure(r, res, i);
		else if (strcmp(state, "retried") == 0)
			r->retried++;
		else
			r->dropped++;
	}
	if (left < r->n_flight)
		r->moved_us = pr_mono_us();
	r->n_flight = left;
	PQclear(res);
	r->progress.done = r->retried + r->failed + r->dropped;
	r->progress.failed = r->failed;
	cli_progress(&r->progress);
	return 0;
}

static int64_t allowed(struct run *r, int64_t rate)
{
	int64_t now = pr_mono_us();

	r->credit_us += now - r->filled_us;
	r->filled_us = now;
	if (r->credit_us > PR_SEC)
		r->credit_us = PR_SEC;
	return r->credit_us * rate / PR_SEC;
}

/* Gives back what the rate allows by now, at most so many, up to the bound of what may be in flight. 0 at the
 * end. */
static int feed(struct run *r, int64_t rate, int64_t most, struct pr_err *err)
{
	int64_t due = allowed(r, rate), v[IN_FLIGHT];
	int n = 0, rc = 1;

	if (due > most)
		due = most;
	while (rc == 1 && n < due && r->n_flight + n < IN_FLIGHT && (rc = next(r, &v[n], err)) == 1)
		n++;
	if (rc < 0 || (n && give_back(r, v, n, rate, err) < 0))
		return -1;
	r->credit_us -= n * PR_SEC / rate;
	memcpy(r->flight + r->n_flight, v, (size_t)n * sizeof(*v));
	if (n && r->n_flight == 0)
		r->moved_us = pr_mono_us();
	r->n_flight += n;
	r->given += n;
	return rc;
}

/* At most so many. Until they have ended, or none of them has for --wait, or Ctrl-C. */
static int go(struct run *r, const struct cli *c, int64_t most, struct pr_err *err)
{
	int64_t rate = cli_int(c, "rate", 100), wait = cli_int(c, "wait", 30 * PR_SEC),
		end = most == INT64_MAX ? most : r->given + most;
	int pause = 10, more = 1;

	r->moved_us = r->filled_us = pr_mono_us();
	r->credit_us = PR_SEC / rate + 1;
	while (!stopped) {
		int64_t was = r->moved_us, given = r->given;

		if (more && r->given < end && (more = feed(r, rate, end - r->given, err)) < 0)
			return -1;
		if (look(r, err) < 0)
			return -1;
		if (r->n_flight ? pr_mono_us() - r->moved_us > wait : !more || r->given == end)
			return 0;
		pause = r->moved_us != was || r->given != given ? 10 : pause < 200 ? pause * 2 : 200;
		(void)poll(NULL, 0, pause);
	}
	return 0;
}

/* --wait 0s: all at once, due one after the other; nobody watches. */
static int leave_all(struct run *r, const struct cli *c, struct pr_err *err)
{
	int64_t *v = NULL, entry;
	int n = 0, rc;

	while ((rc = next(r, &entry, err)) == 1) {
		if ((n & (n - 1)) == 0)
			v = pr_realloc(v, sizeof(*v) * (size_t)(n ? 2 * n : 1));
		v[n++] = entry;
	}
	if (rc == 0 && n)
		rc = give_back(r, v, n, cli_int(c, "rate", 100), err);
	free(v);
	r->given = n;
	return rc;
}

/* ---- the report ---- */

static void report_json(const struct run *r, const char *canary)
{
	cJSON *o = cJSON_CreateObject(), *list = cJSON_CreateArray();

	cli_json_int(o, "chosen", r->chosen);
	cli_json_int(o, "retried", r->retried);
	cli_json_int(o, "failed", r->failed);
	cli_json_int(o, "dropped", r->dropped);
	cli_json_int(o, "waiting", r->given - r->retried - r->failed - r->dropped);
	cli_json_int(o, "left", r->chosen - r->given);
	(void)cJSON_AddItemToObject(o, "canary", canary ? cJSON_CreateString(canary) : cJSON_CreateNull());
	for (int i = 0; i < r->n_failures; i++) {
		cJSON *f = cJSON_CreateObject();

		(void)cJSON_AddRawToObject(f, "entry", r->failures[i].entry);
		(void)cJSON_AddRawToObject(f, "dead_letter", r->failures[i].now);
		(void)cJSON_AddStringToObject(f, "failure", r->failures[i].what);
		(void)cJSON_AddStringToObject(f, "reason", r->failures[i].reason);
		(void)cJSON_AddItemToArray(list, f);
	}
	(void)cJSON_AddItemToObject(o, "failures", list);
	cli_json_free_line(o);
}

static void report_text(const struct run *r)
{
	char a[64], b[32];

	if (r->given && r->progress.what == NULL) {
		(void)printf("gave back %s\n", cli_number(r->given, "dead letter", a));
		return;
	}
	(void)printf("retried %s", cli_number(r->retried, "dead letter", a));
	if (r->failed)
		(void)printf(", %s failed again", cli_count(r->failed, b));
	if (r->dropped)
		(void)printf(", %s dropped meanwhile", cli_count(r->dropped, b));
	(void)putchar('\n');
	for (int i = 0; i < r->n_failures; i++) {
		const struct failure *f = &r->failures[i];
		char *text = pr_asprintf(
			"%s failed again, now dead letter %s: %s: %s", f->entry, f->now, f->what, f->reason);

		(void)fputs("  ", stdout);
		cli_text(stdout, text, 2, 4);
		free(text);
	}
	if (r->failed > r->n_failures)
		(void)printf("  and %lld more\n", (long long)(r->failed - r->n_failures));
}

static int report(const struct cli *c, struct run *r, const char *canary)
{
	int64_t left = r->chosen - r->given;
	char n[64];

	cli_progress_end(&r->progress);
	if (cli_has(c, "json"))
		report_json(r, canary);
	else
		report_text(r);
	if (left > 0 && canary && strcmp(canary, "retried") != 0)
		cli_say("the canary did not get through: %s not touched", cli_number(left, "dead letter", n));
	else if (left > 0)
		cli_say("%s still dead: the same command goes on with them",
			cli_number(left, "dead letter", n));
	if (r->n_flight) {
		cli_say("%s given back and not ended: it failed again and waits for another try, or the "
			"group "
			"does not run or is paused; see `postrider parked list` and `postrider show "
			"consumers`",
			cli_number(r->n_flight, "dead letter", n));
		return PR_EX_UNAVAILABLE;
	}
	return r->failed || (left > 0) ? PR_EX_FAILED : PR_EX_OK;
}

/* ---- the verb ---- */

static const char *send_canary(struct run *r, const struct cli *c, struct pr_err *err)
{
	if (go(r, c, 1, err) < 0)
		return NULL;
	return r->n_flight ? "waiting" : r->retried ? "retried" : "failed";
}

static int retry(struct cli *c, struct run *r, struct pr_err *err)
{
	const struct sigaction act = { .sa_handler = on_signal };
	const char *canary = NULL;

	if (cli_int(c, "wait", 1) == 0)
		return leave_all(r, c, err) < 0 ? cli_fail(err) : report(c, r, NULL);
	(void)sigaction(SIGINT, &act, NULL);
	(void)sigaction(SIGTERM, &act, NULL);
	cli_progress_begin(c, &r->progress, "retry", r->chosen);
	if (cli_has(c, "canary") && !(canary = send_canary(r, c, err)))
		return cli_fail(err);
	if ((!canary || strcmp(canary, "retried") == 0) && go(r, c, INT64_MAX, err) < 0)
		return cli_fail(err);
	return report(c, r, canary);
}

static int show_plan(const struct cli *c, const struct run *r, struct dlq_causes *causes)
{
	int64_t rate = cli_int(c, "rate", 100);
	char n[64], span[48];

	if (dlq_causes_count(causes))
		dlq_causes_print(causes, cli_has(c, "json"));
	cli_say("would retry %s at %lld per second: %s%s", cli_number(r->chosen, "dead letter", n),
		(long long)rate, cli_span((double)r->chosen / (double)rate, span),
		cli_has(c, "canary") ? ", after one canary" : "");
	return PR_EX_OK;
}

static int check(const struct cli *c, struct pr_err *err)
{
	if (cli_has(c, "canary") && cli_int(c, "wait", 1) == 0)
		return cli_usage(err, "--canary waits for its canary: --wait must not be 0s");
	return 0;
}

int verb_dlq_retry(struct cli *c)
{
	struct run *r = pr_calloc(1, sizeof(*r));
	struct dlq_causes *causes = dlq_causes_new();
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc;

	if (dlq_which(c, cli_has(c, "canary"), &r->named, &r->n_named, &err) < 0 || check(c, &err) < 0 ||
		cli_connect_outbox(c, &pg, &err) < 0 || newest(pg, &r->last, &err) < 0 ||
		dlq_all_dead(pg, r->named, r->n_named, &err) < 0) {
		rc = cli_failed(c, &err);
		goto out;
	}
	dlq_scan_begin(&r->scan, c, pg, "dead");
	r->by = cli_str(c, "by");
	r->scan.through = r->last;
	if ((!r->named && dlq_count(c, pg, r->last, causes, &err) < 0) ||
		of_no_sink(r, causes, pg, &err) < 0) {
		rc = cli_fail(&err);
		goto out;
	}
	r->chosen = r->named ? r->n_named : dlq_causes_total(causes);
	if (cli_has(c, "dry-run"))
		rc = show_plan(c, r, causes);
	else
		rc = retry(c, r, &err);
out:
	dlq_causes_free(causes);
	run_release(r);
	pr_pg_close(pg);
	return rc;
}
