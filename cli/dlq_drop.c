/* cli/dlq_drop.c -- `postrider dlq drop` and `note`: gives dead letters up for good, or writes
 * beside one what is known of it. A dropped one stays to be read, with who did it and why. */
#include "cli/dlq.h"
#include "lib/json.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK 1000

static int drop_chunk(
	const struct cli *c, struct pr_pg *pg, const int64_t *v, int n, int64_t *dropped, struct pr_err *err)
{
	const char *params[3] = { NULL, cli_str(c, "note"), cli_str(c, "by") };
	struct pr_buf b = { 0 };
	PGresult *res;

	dlq_put_array(&b, v, n);
	params[0] = b.s;
	res = pr_pg_exec(pg, "SELECT inbox.dlq_drop($1::bigint[], $2, " CLI_BY("$3") ")", 3, params, err);
	pr_buf_free(&b);
	if (!res)
		return -1;
	*dropped += cli_cell_int(res, 0, 0);
	PQclear(res);
	return 0;
}

static int drop_found(
	const struct cli *c, struct pr_pg *pg, int64_t total, int64_t *dropped, struct pr_err *err)
{
	struct cli_progress p;
	struct dlq_scan s;
	int64_t v[CHUNK];
	int n = 0, rc;

	cli_progress_begin(c, &p, "drop", total);
	dlq_scan_begin(&s, c, pg, "dead");
	while ((rc = dlq_next(&s, err)) == 1) {
		v[n++] = cli_cell_int(s.res, s.row, D_ENTRY);
		if (n == CHUNK) {
			rc = drop_chunk(c, pg, v, n, dropped, err);
			n = 0;
			p.done = *dropped;
			cli_progress(&p);
			if (rc < 0)
				break;
		}
	}
	if (rc == 0 && n)
		rc = drop_chunk(c, pg, v, n, dropped, err);
	p.done = *dropped;
	cli_progress_end(&p);
	dlq_scan_end(&s);
	return rc;
}

static int report(const struct cli *c, int64_t dropped)
{
	cJSON *o;
	char n[64];

	if (!cli_has(c, "json")) {
		(void)printf("dropped %s\n", cli_number(dropped, "dead letter", n));
		return PR_EX_OK;
	}
	o = cJSON_CreateObject();
	cli_json_int(o, "dropped", dropped);
	cli_json_free_line(o);
	return PR_EX_OK;
}

static int drop(struct cli *c, struct pr_pg *pg, const int64_t *named, int n_named, struct dlq_causes *causes,
	struct pr_err *err)
{
	int64_t total = named ? n_named : dlq_causes_total(causes), dropped = 0;
	char n[64];
	int rc;

	if (cli_has(c, "dry-run")) {
		if (dlq_causes_count(causes))
			dlq_causes_print(causes, cli_has(c, "json"));
		cli_say("would drop %s", cli_number(total, "dead letter", n));
		return PR_EX_OK;
	}
	if (total && cli_confirmed(c, err, "drop %s for good", cli_number(total, "dead letter", n)) < 0)
		return cli_fail(err);
	rc = named ? drop_chunk(c, pg, named, n_named, &dropped, err)
		   : drop_found(c, pg, total, &dropped, err);
	return rc < 0 ? cli_fail(err) : report(c, dropped);
}

int verb_dlq_drop(struct cli *c)
{
	struct dlq_causes *causes = dlq_causes_new();
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int64_t *named = NULL;
	int n = 0, rc;

	if (dlq_which(c, 0, &named, &n, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		(named ? dlq_all_dead(pg, named, n, &err) : dlq_count(c, pg, INT64_MAX, causes, &err)) < 0)
		rc = cli_failed(c, &err);
	else
		rc = drop(c, pg, named, n, causes, &err);
	dlq_causes_free(causes);
	free(named);
	pr_pg_close(pg);
	return rc;
}

int verb_dlq_note(struct cli *c)
{
	const char *params[3] = { c->args[0], c->args[1], cli_str(c, "by") };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int64_t entry = 0;
	int rc = PR_EX_OK;

	if (dlq_entry(c->args[0], &entry, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = pr_pg_exec(pg, "SELECT inbox.dlq_note($1::bigint, nullif($2, ''), " CLI_BY("$3") ")",
			  3, params, &err)) ||
		(*PQgetvalue(res, 0, 0) != 't' && dlq_not_found(&err, entry) < 0))
		rc = cli_failed(c, &err);
	else if (cli_has(c, "json"))
		(void)printf("{\"entry\":%lld}\n", (long long)entry);
	else
		(void)printf("noted\n");
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}
