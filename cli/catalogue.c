/* cli/catalogue.c -- `postrider catalogue`: what sinks have learnt of payloads, and what has changed in them.
 */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

enum { K_TOPIC, K_TYPE, K_PATH, K_KINDS, K_SEEN, K_FIRST, K_LAST, K_SAMPLE, K_PII };
enum { D_TOPIC, D_TYPE, D_PATH, D_KIND, D_WHAT, D_SEEN, D_FOUND };

static int reach(struct cli *c, struct pr_pg **pg, struct pr_err *err)
{
	return cli_connect(c, pg, err) < 0
		       ? -1
		       : cli_need(*pg, "sink.drift", "catalogue", "sink", "sink.cfg", err);
}

static const char places[] =
	"SELECT topic, type, path, pg_catalog.array_to_string(kinds, ','), seen, "
	"pg_catalog.to_char(first_seen, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
	"pg_catalog.to_char(last_seen, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), sample, pii FROM sink.catalogue "
	"WHERE ($1::text IS NULL OR topic = $1) AND ($2::text IS NULL OR type = $2) AND (NOT $3::boolean OR "
	"pii IS NOT NULL) "
	"ORDER BY topic COLLATE \"C\", type COLLATE \"C\", path COLLATE \"C\" LIMIT $4";

static const char drifts[] =
	"SELECT topic, type, path, kind, what, pg_catalog.to_char(seen_at, "
	"'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
	"pg_catalog.to_char(found_at, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM sink.drift "
	"WHERE ($1::text IS NULL OR topic = $1) AND ($2::text IS NULL OR type = $2) AND NOT $3::boolean "
	"ORDER BY found_at DESC, topic, type, path, kind LIMIT $4";

/* "email,key" as a list. */
static void add_words(cJSON *o, const char *name, const char *words)
{
	cJSON *list = cJSON_AddArrayToObject(o, name);

	while (words && *words) {
		size_t n = strcspn(words, ",");
		char *word = pr_asprintf("%.*s", (int)n, words);

		(void)cJSON_AddItemToArray(list, cJSON_CreateString(word));
		free(word);
		words += n + (words[n] == ',');
	}
}

static void place_json(const PGresult *res, int i)
{
	cJSON *o = cJSON_CreateObject();

	cli_json_cell(o, "topic", res, i, K_TOPIC, 0);
	cli_json_cell(o, "type", res, i, K_TYPE, 0);
	cli_json_cell(o, "path", res, i, K_PATH, 0);
	add_words(o, "kinds", cli_cell(res, i, K_KINDS));
	cli_json_cell(o, "seen", res, i, K_SEEN, 1);
	cli_json_cell(o, "first_seen", res, i, K_FIRST, 0);
	cli_json_cell(o, "last_seen", res, i, K_LAST, 0);
	cli_json_cell(o, "sample", res, i, K_SAMPLE, 0);
	add_words(o, "pii", cli_cell(res, i, K_PII));
	cli_json_free_line(o);
}

static void drift_json(const PGresult *res, int i)
{
	static const char *const names[] = { "topic", "type", "path", "kind", "what", "seen_at", "found_at" };
	cJSON *o = cJSON_CreateObject();

	for (int k = 0; k < 7; k++)
		cli_json_cell(o, names[k], res, i, k, 0);
	cli_json_free_line(o);
}

static void place_row(struct cli_table *t, const PGresult *res, int i)
{
	char seen[32];
	const char *const cells[] = { cli_cell(res, i, K_TOPIC), cli_cell(res, i, K_TYPE),
		cli_cell(res, i, K_PATH), cli_cell(res, i, K_KINDS),
		cli_count(cli_cell_int(res, i, K_SEEN), seen), cli_cell(res, i, K_LAST),
		cli_cell(res, i, K_PII), cli_cell(res, i, K_SAMPLE) };

	cli_table_add(t, cells);
}

static void drift_row(struct cli_table *t, const PGresult *res, int i)
{
	const char *const cells[] = { cli_cell(res, i, D_FOUND), cli_cell(res, i, D_TOPIC),
		cli_cell(res, i, D_TYPE), *PQgetvalue(res, i, D_WHAT) == 'p' ? "new place" : "new kind",
		cli_cell(res, i, D_KIND), cli_cell(res, i, D_SEEN), cli_cell(res, i, D_PATH) };

	cli_table_add(t, cells);
}

static void print(const struct cli *c, const PGresult *res, int drift, int64_t limit)
{
	static const char *const of_places[] = { "=TOPIC", "=TYPE", "!PATH", "KINDS", ">SEEN", "LAST", "PII",
		"~SAMPLE" };
	static const char *const of_drift[] = { "FOUND", "=TOPIC", "=TYPE", "WHAT", "KIND", "FIRST RECORD",
		"~PATH" };
	struct cli_table t = { .ncols = drift ? 7 : 8, .heads = drift ? of_drift : of_places };
	int n = PQntuples(res);

	for (int i = 0; i < n && i < limit; i++) {
		if (cli_has(c, "json"))
			(drift ? drift_json : place_json)(res, i);
		else
			(drift ? drift_row : place_row)(&t, res, i);
	}
	if (t.nrows)
		cli_table_print(&t, stdout);
	if (n > limit)
		cli_say("there are more: --limit shows them");
	else if (n == 0)
		cli_say(drift ? "nothing has changed in payloads" : "nothing is known of such payloads");
}

int verb_catalogue(struct cli *c)
{
	int64_t limit = cli_int(c, "limit", 10000);
	int drift = cli_has(c, "drift");
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = PR_EX_OK;
	char most[24];

	(void)snprintf(most, sizeof(most), "%lld", (long long)limit + 1);
	if (reach(c, &pg, &err) < 0 ||
		!(res = pr_pg_exec(pg, drift ? drifts : places, 4,
			  (const char *const[]){ cli_str(c, "topic"), cli_str(c, "type"),
				  cli_has(c, "pii") ? "true" : "false", most },
			  &err)))
		rc = cli_failed(c, &err);
	else
		print(c, res, drift, limit);
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}
