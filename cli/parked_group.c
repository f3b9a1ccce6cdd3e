/* cli/parked_group.c -- `postrider parked list` and `show` of a consumer group: the keys that its
 * handler could not do, and what waits behind them. Only reads. Dead letters on another try
 * hold nothing back: they are left to `postrider dlq`, unless an id names one. */
#include "cli/parked.h"
#include "lib/json.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define SHOWN_BYTES 65536 /* of a payload on the screen */

/* A whole number of the command line as Postgres reads it: "1k" is 1000. */
static const char *number(const struct cli *c, const char *name, char *buf /* [24] */)
{
	if (!cli_option(c, name))
		return NULL;
	(void)snprintf(buf, 24, "%lld", (long long)cli_int(c, name, 0));
	return buf;
}

PGresult *parked_keys(const struct cli *c, struct pr_pg *pg, int64_t limit, struct pr_err *err)
{
	char most[24], partition[24];
	const char *params[8] = { cli_group(c), cli_option(c, "topic"), number(c, "partition", partition),
		cli_option(c, "key"), cli_given(c, "no-key") ? "t" : "f", cli_option(c, "class"),
		cli_option(c, "code"), most };

	(void)snprintf(most, sizeof(most), "%lld", (long long)limit);
	return pr_pg_exec(pg, sql_cli_parked_keys, 8, params, err);
}

PGresult *parked_messages(
	const struct cli *c, struct pr_pg *pg, int payloads, int64_t limit, struct pr_err *err)
{
	char most[24], partition[24], offset[24];
	const char *params[9] = { cli_group(c), cli_option(c, "topic"), number(c, "partition", partition),
		cli_option(c, "key"), cli_given(c, "no-key") ? "t" : "f", cli_option(c, "id"),
		number(c, "offset", offset), payloads ? "t" : "f", most };

	(void)snprintf(most, sizeof(most), "%lld", (long long)limit);
	return pr_pg_exec(pg, sql_cli_parked_messages, 9, params, err);
}

int parked_nothing(const struct cli *c, struct pr_pg *pg, struct pr_err *err)
{
	const char *group = cli_group(c);
	PGresult *res = pr_pg_exec(pg, "SELECT FROM inbox.consumer WHERE \"group\" = $1", 1, &group, err);
	int known = res && PQntuples(res) > 0;

	if (!res)
		return -1;
	PQclear(res);
	if (known) {
		(void)pr_fail(
			err, PR_REJECT, "nothing like that is held back by consumer group %.100s", group);
		(void)pr_hint(err, "`postrider parked list --group ...` shows what is");
	} else {
		(void)pr_fail(err, PR_REJECT, "no consumer of group %.100s has run on this database", group);
		(void)pr_hint(err, "`postrider show consumers` names those that have");
	}
	err->exit = PR_EX_NOT_FOUND;
	return known ? 0 : -1;
}

void parked_heading(const struct cli *c)
{
	char *group = cli_safe_str(cli_group(c));

	(void)printf("%sconsumer group %s%s\n", cli_on(stdout, CLI_BOLD), group, cli_off(stdout));
	free(group);
}

char *parked_failure(const char *cls, const char *code)
{
	int both = cls && *cls && code && *code;

	return pr_asprintf("%s%s%s", cls ? cls : "", both ? ":" : "", code ? code : "");
}

/* Rows to show: one more was asked for, to know whether there is more. */
static int shown(const PGresult *res, int64_t limit)
{
	return PQntuples(res) > limit ? (int)limit : PQntuples(res);
}

struct field {
	const char *name;
	int column, number;
};

static cJSON *as_json(const struct cli *c, const struct field *fields, size_t n, const PGresult *res, int row)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "group", cli_group(c));
	for (size_t i = 0; i < n; i++)
		cli_json_cell(o, fields[i].name, res, row, fields[i].column, fields[i].number);
	return o;
}

/* ---- list ---- */

static void list_json(const struct cli *c, const PGresult *res, int n)
{
	static const struct field fields[] = { { "topic", PK_TOPIC, 0 }, { "partition", PK_PARTITION, 1 },
		{ "key", PK_KEY, 0 }, { "events", PK_EVENTS, 1 }, { "class", PK_CLASS, 0 },
		{ "code", PK_CODE, 0 }, { "reason", PK_REASON, 0 }, { "attempts", PK_ATTEMPTS, 1 },
		{ "next_try", PK_DUE, 0 }, { "since", PK_SINCE, 0 }, { "age_seconds", PK_AGE, 1 },
		{ "first_id", PK_ID, 0 }, { "first_offset", PK_OFFSET, 1 }, { "request", PK_REQUEST, 0 } };

	for (int i = 0; i < n; i++)
		cli_json_free_line(as_json(c, fields, sizeof(fields) / sizeof(*fields), res, i));
}

static const char *next_try(const PGresult *res, int i, char *buf, size_t size)
{
	const char *request = cli_cell(res, i, PK_REQUEST);
	double in = strtod(PQgetvalue(res, i, PK_DUE_IN), NULL);
	char span[48];

	if (request)
		(void)snprintf(buf, size, "%s asked for", request);
	else if (in > 0)
		(void)snprintf(buf, size, "in %s", cli_span(in, span));
	else
		return "now";
	return buf;
}

static void list_text(const struct cli *c, const PGresult *res, int n)
{
	static const char *const heads[] = { "=TOPIC", ">PARTITION", "KEY", ">EVENTS", "=FAILURE", ">TRIES",
		"NEXT TRY", ">HELD FOR", "~REASON" };
	struct cli_table t = { .ncols = 9, .heads = heads };

	parked_heading(c);
	for (int i = 0; i < n; i++) {
		const char *key = cli_cell(res, i, PK_KEY);
		char *failure = parked_failure(cli_cell(res, i, PK_CLASS), cli_cell(res, i, PK_CODE));
		char count[32], next[80], age[48];
		const char *const cells[] = { cli_cell(res, i, PK_TOPIC), cli_cell(res, i, PK_PARTITION),
			key ? key : "(none)", cli_count(cli_cell_int(res, i, PK_EVENTS), count), failure,
			cli_cell(res, i, PK_ATTEMPTS), next_try(res, i, next, sizeof(next)),
			cli_span((double)cli_cell_int(res, i, PK_AGE), age), cli_cell(res, i, PK_REASON) };

		cli_table_add(&t, cells);
		free(failure);
	}
	cli_table_print(&t, stdout);
}

int parked_group_list(struct cli *c)
{
	int64_t limit = cli_int(c, "limit", 100);
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = PR_EX_OK;

	if (cli_connect_outbox(c, &pg, &err) < 0 || !(res = parked_keys(c, pg, limit + 1, &err)) ||
		(PQntuples(res) == 0 && parked_nothing(c, pg, &err) < 0))
		rc = cli_fail(&err);
	else if (cli_has(c, "json"))
		list_json(c, res, shown(res, limit));
	else if (PQntuples(res) == 0)
		cli_say("no key is held back by consumer group %s", cli_group(c));
	else
		list_text(c, res, shown(res, limit));
	if (rc == PR_EX_OK && PQntuples(res) > limit)
		cli_say("there are more: --limit shows them");
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}

/* ---- show ---- */

static void show_json(const struct cli *c, const PGresult *res, int i)
{
	static const struct field fields[] = { { "topic", PM_TOPIC, 0 }, { "partition", PM_PARTITION, 1 },
		{ "offset", PM_OFFSET, 1 }, { "key", PM_KEY, 0 }, { "id", PM_ID, 0 }, { "type", PM_TYPE, 0 },
		{ "behind", PM_BEHIND, 1 }, { "class", PM_CLASS, 0 }, { "code", PM_CODE, 0 },
		{ "reason", PM_REASON, 0 }, { "attempts", PM_ATTEMPTS, 1 }, { "next_try", PM_DUE, 0 },
		{ "time", PM_TIME, 0 }, { "parked_at", PM_SINCE, 0 }, { "request", PM_REQUEST, 0 },
		{ "dead_letter", PM_DEAD_LETTER, 1 }, { "payload_bytes", PM_BYTES, 1 } };
	cJSON *o = as_json(c, fields, sizeof(fields) / sizeof(*fields), res, i);
	size_t n = 0;
	char *payload;

	if (cli_has(c, "payload")) {
		payload = cli_cell_bytes(res, i, PM_PAYLOAD, &n);
		cli_json_payload(o, payload, n);
		free(payload);
	}
	cli_json_free_line(o);
}

static void line(const char *name, const char *fmt, ...) PR_PRINTF(2, 3);
static void line(const char *name, const char *fmt, ...)
{
	char text[2000];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text, 11, 13);
}

static const char *or_dash(const PGresult *res, int i, int column)
{
	const char *s = cli_cell(res, i, column);

	return s && *s ? s : "-";
}

static void show_why(const PGresult *res, int i)
{
	char *failure = parked_failure(cli_cell(res, i, PM_CLASS), cli_cell(res, i, PM_CODE));

	if (cli_cell(res, i, PM_BEHIND)) {
		line("waits", "behind the message at offset %s, the first of its key",
			cli_cell(res, i, PM_BEHIND));
	} else {
		line("failure", "%s, attempts: %s", *failure ? failure : "-", or_dash(res, i, PM_ATTEMPTS));
		line("reason", "%s", or_dash(res, i, PM_REASON));
		line("next try", "%s", or_dash(res, i, PM_DUE));
	}
	if (cli_cell(res, i, PM_DEAD_LETTER))
		line("retry", "another try of dead letter %s", cli_cell(res, i, PM_DEAD_LETTER));
	if (cli_cell(res, i, PM_REQUEST))
		line("request", "%s", cli_cell(res, i, PM_REQUEST));
	free(failure);
}

static void show_text(const struct cli *c, const PGresult *res, int i)
{
	const char *bytes = cli_cell(res, i, PM_BYTES), *key = cli_cell(res, i, PM_KEY);
	char *id = cli_safe_str(or_dash(res, i, PM_ID)), *payload;
	size_t n = 0;

	(void)printf("%s%s%s  offset %s\n", cli_on(stdout, CLI_BOLD), id, cli_off(stdout),
		cli_cell(res, i, PM_OFFSET));
	line("record", "%s, partition %s, %s%.1000s", or_dash(res, i, PM_TOPIC),
		or_dash(res, i, PM_PARTITION), key ? "key " : "without a key", key ? key : "");
	line("type", "%s", or_dash(res, i, PM_TYPE));
	show_why(res, i);
	line("when", "record %s, held back %s", or_dash(res, i, PM_TIME), or_dash(res, i, PM_SINCE));
	if (!cli_has(c, "payload")) {
		line("payload", "%s%s", bytes ? bytes : "none (a tombstone)",
			!bytes                    ? ""
			: strcmp(bytes, "1") == 0 ? " byte"
						  : " bytes");
	} else {
		payload = cli_cell_bytes(res, i, PM_PAYLOAD, &n);
		(void)printf("  %spayload%s\n", cli_on(stdout, CLI_DIM), cli_off(stdout));
		cli_payload(stdout, payload, n, SHOWN_BYTES, 4);
		free(payload);
	}
	free(id);
}

int parked_group_show(struct cli *c)
{
	int64_t limit = cli_int(c, "limit", 100);
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = PR_EX_OK;

	if (!cli_has(c, "key") && !cli_has(c, "no-key") && !cli_has(c, "id") && !cli_has(c, "offset")) {
		(void)cli_usage(&err,
			"which messages? give --key (and --topic, --partition), --no-key, --id or "
			"--offset");
		return cli_failed(c, &err);
	}
	if (cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = parked_messages(c, pg, cli_has(c, "payload"), limit + 1, &err))) {
		rc = cli_fail(&err);
	} else if (PQntuples(res) == 0) {
		(void)parked_nothing(c, pg, &err);
		rc = cli_fail(&err);
	} else if (!cli_has(c, "json")) {
		parked_heading(c);
	}
	for (int i = 0; rc == PR_EX_OK && i < shown(res, limit); i++) {
		if (cli_has(c, "json"))
			show_json(c, res, i);
		else
			show_text(c, res, i);
	}
	if (rc == PR_EX_OK && PQntuples(res) > limit)
		cli_say("there are more: --limit shows them");
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}
