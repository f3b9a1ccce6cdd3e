/* cli/dlq_show.c -- `postrider dlq show`: one dead letter with all that is known of it, and
 * what was done with it. */
#include "cli/dlq.h"
#include "lib/json.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	int number;
} fields[] = { { "entry", 1 }, { "group", 0 }, { "topic", 0 }, { "partition", 1 }, { "offset", 1 },
	{ "key", 0 }, { "id", 0 }, { "message_id", 0 }, { "type", 0 }, { "class", 0 }, { "code", 0 },
	{ "reason", 0 }, { "attempts", 1 }, { "state", 0 }, { "edited_from", 1 }, { "edited_to", 1 },
	{ "note", 0 }, { "time", 0 }, { "first_failed_at", 0 }, { "buried_at", 0 }, { "published_at", 0 } };
enum { N_FIELDS = sizeof(fields) / sizeof(*fields) };

enum { H_AT, H_BY, H_WHAT, H_DETAIL };

PGresult *dlq_read(struct pr_pg *pg, int64_t entry, struct pr_err *err)
{
	char number[24];
	const char *params[1] = { number };
	PGresult *res;

	(void)snprintf(number, sizeof(number), "%lld", (long long)entry);
	res = pr_pg_exec(pg, sql_cli_dlq_show, 1, params, err);
	if (res && PQntuples(res) == 0) {
		PQclear(res);
		(void)dlq_not_found(err, entry);
		return NULL;
	}
	return res;
}

char *dlq_bytes(const PGresult *res, int column, size_t *ret_len)
{
	return cli_cell_bytes(res, 0, column, ret_len);
}

/* ---- JSON ---- */

static void show_json(const PGresult *res, const PGresult *history, const char *payload, size_t n)
{
	cJSON *o = cJSON_CreateObject(), *acts = cJSON_CreateArray();
	const char *headers = cli_cell(res, 0, L_HEADERS);

	for (int i = 0; i < N_FIELDS; i++)
		cli_json_cell(o, fields[i].name, res, 0, i, fields[i].number);
	(void)cJSON_AddRawToObject(o, "headers", headers ? headers : "{}");
	cli_json_payload(o, payload, n);
	for (int i = 0; i < PQntuples(history); i++) {
		cJSON *act = cJSON_CreateObject();
		const char *detail = cli_cell(history, i, H_DETAIL);

		cli_json_cell(act, "at", history, i, H_AT, 0);
		cli_json_cell(act, "by", history, i, H_BY, 0);
		cli_json_cell(act, "what", history, i, H_WHAT, 0);
		(void)cJSON_AddRawToObject(act, "detail", detail ? detail : "null");
		(void)cJSON_AddItemToArray(acts, act);
	}
	(void)cJSON_AddItemToObject(o, "history", acts);
	cli_json_free_line(o);
}

/* ---- text ---- */

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

static const char *or_dash(const PGresult *res, int column)
{
	const char *s = cli_cell(res, 0, column);

	return s && *s ? s : "-";
}

static void put_links(const PGresult *res)
{
	if (cli_cell(res, 0, L_EDITED_FROM))
		line("edited", "from dead letter %s", cli_cell(res, 0, L_EDITED_FROM));
	if (cli_cell(res, 0, L_EDITED_TO))
		line("edited", "to dead letter %s", cli_cell(res, 0, L_EDITED_TO));
	if (cli_cell(res, 0, L_PUBLISHED))
		line("published", "to the dead-letter topic, %s", cli_cell(res, 0, L_PUBLISHED));
	if (cli_cell(res, 0, L_NOTE))
		line("note", "%s", cli_cell(res, 0, L_NOTE));
}

static void put_headers(const PGresult *res)
{
	cJSON *all = cli_cell(res, 0, L_HEADERS) ? cJSON_Parse(cli_cell(res, 0, L_HEADERS)) : NULL;
	const cJSON *h;

	if (all && all->child)
		(void)printf("\n  %sheaders%s\n", cli_on(stdout, CLI_DIM), cli_off(stdout));
	for (h = all ? all->child : NULL; h; h = h->next) {
		char *value = cJSON_IsString(h) ? pr_strdup(h->valuestring) : cJSON_PrintUnformatted(h);
		char *text = pr_asprintf("%s: %s", h->string, value);

		(void)fputs("    ", stdout);
		cli_text(stdout, text, 4, 6);
		free(text);
		free(value);
	}
	cJSON_Delete(all);
}

static void put_history(const PGresult *history)
{
	if (PQntuples(history))
		(void)printf("\n  %shistory%s\n", cli_on(stdout, CLI_DIM), cli_off(stdout));
	for (int i = 0; i < PQntuples(history); i++) {
		const char *detail = cli_cell(history, i, H_DETAIL);
		int some = detail && strcmp(detail, "{}") != 0;
		char *text = pr_asprintf("%s %s by %s%s%.1000s", PQgetvalue(history, i, H_AT),
			PQgetvalue(history, i, H_WHAT), PQgetvalue(history, i, H_BY), some ? ": " : "",
			some ? detail : "");

		(void)fputs("    ", stdout);
		cli_text(stdout, text, 4, 6);
		free(text);
	}
}

static void show_text(const PGresult *res, const PGresult *history, const char *payload, size_t n)
{
	const char *code = cli_cell(res, 0, L_CODE), *tries = or_dash(res, L_ATTEMPTS);
	char *state = cli_safe_str(or_dash(res, L_STATE)), cause[9];

	dlq_cause_id(cli_cell(res, 0, L_CLASS), code, cli_cell(res, 0, L_REASON), cause);
	(void)printf("%sdead letter %s%s  %s%s%s\n", cli_on(stdout, CLI_BOLD), or_dash(res, L_ENTRY),
		cli_off(stdout), cli_on(stdout, strcmp(state, "dead") == 0 ? CLI_RED : CLI_YELLOW), state,
		cli_off(stdout));
	line("group", "%s", or_dash(res, L_GROUP));
	line("record", "%s, partition %s, offset %s, key %s", or_dash(res, L_TOPIC),
		or_dash(res, L_PARTITION), or_dash(res, L_OFFSET), or_dash(res, L_KEY));
	line("type", "%s", or_dash(res, L_TYPE));
	line("id", "%s", or_dash(res, L_ID));
	line("failure", "%s%s%s, %s attempt%s, cause %s", or_dash(res, L_CLASS), code && *code ? ":" : "",
		code ? code : "", tries, strcmp(tries, "1") == 0 ? "" : "s", cause);
	line("reason", "%s", or_dash(res, L_REASON));
	line("when", "record %s, first failed %s, buried %s", or_dash(res, L_TIME),
		or_dash(res, L_FIRST_FAILED), or_dash(res, L_BURIED));
	put_links(res);
	put_headers(res);
	(void)printf("\n  %spayload%s\n", cli_on(stdout, CLI_DIM), cli_off(stdout));
	cli_payload(stdout, payload, n, DLQ_SHOWN_BYTES, 4);
	put_history(history);
	free(state);
}

int verb_dlq_show(struct cli *c)
{
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL, *history = NULL;
	char *payload = NULL;
	const char *params[1] = { c->args[0] };
	int64_t entry;
	size_t n = 0;
	int rc = PR_EX_OK;

	if (cli_has(c, "from-topic"))
		return dlq_show_topic(c);
	if (dlq_entry(c->args[0], &entry, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = dlq_read(pg, entry, &err)) ||
		!(history = pr_pg_exec(pg, sql_cli_dlq_history, 1, params, &err))) {
		rc = cli_failed(c, &err);
		goto out;
	}
	payload = dlq_bytes(res, L_PAYLOAD, &n);
	if (cli_has(c, "raw"))
		(void)fwrite(payload ? payload : "", 1, n, stdout);
	else if (cli_has(c, "json"))
		show_json(res, history, payload, n);
	else
		show_text(res, history, payload, n);
out:
	free(payload);
	PQclear(res);
	PQclear(history);
	pr_pg_close(pg);
	return rc;
}
