/* cli/dlq_edit.c -- `postrider dlq edit`: a dead letter's payload, headers or key exchanged. The
 * result is a new dead letter with an id of its own, linked to the old one, which is given up;
 * nothing is handled before somebody retries it. Shows what changes before it does it. */
#include "cli/dlq.h"
#include "lib/json.h"

#include <stdlib.h>
#include <string.h>

#define DIFF_BYTES (4 << 20)

struct text {
	char *s; /* NULL: null */
	size_t n;
};

struct edit {
	PGresult *old;
	struct text was, is;
	cJSON *headers_was, *headers;
	const char *key; /* NULL: none */
	int by_hand;     /* in an editor: somebody can be asked */
};

static void edit_release(struct edit *e)
{
	PQclear(e->old);
	free(e->was.s);
	free(e->is.s);
	cJSON_Delete(e->headers_was);
	cJSON_Delete(e->headers);
}

static int refused(struct pr_err *err)
{
	err->exit = PR_EX_REFUSED;
	return -1;
}

static int begin(struct pr_pg *pg, int64_t entry, struct edit *e, struct pr_err *err)
{
	const char *headers, *state;

	e->old = dlq_read(pg, entry, err);
	if (!e->old)
		return -1;
	state = cli_cell(e->old, 0, L_STATE);
	if (strcmp(state, "dead") != 0) {
		(void)pr_fail(err, PR_REJECT, "dead letter %lld is %s: only a dead one can be edited",
			(long long)entry, state);
		if (cli_cell(e->old, 0, L_EDITED_TO))
			(void)pr_hint(err, "it was edited already: see dead letter %s",
				cli_cell(e->old, 0, L_EDITED_TO));
		return refused(err);
	}
	headers = cli_cell(e->old, 0, L_HEADERS);
	e->headers_was = cJSON_Parse(headers ? headers : "{}");
	e->headers = cJSON_Duplicate(e->headers_was, 1);
	e->was.s = dlq_bytes(e->old, L_PAYLOAD, &e->was.n);
	e->is.n = e->was.n;
	if (e->was.s) {
		e->is.s = pr_malloc(e->was.n + 1);
		memcpy(e->is.s, e->was.s, e->was.n + 1);
	}
	return 0;
}

static int take_headers(const struct cli *c, struct edit *e, struct pr_err *err)
{
	const char *pair, *name;

	for (int i = 0; (name = cli_nth(c, "no-header", i)); i++) {
		if (!cJSON_GetObjectItemCaseSensitive(e->headers, name))
			return cli_usage(err, "there is no header \"%.80s\"", name);
		cJSON_DeleteItemFromObjectCaseSensitive(e->headers, name);
	}
	for (int i = 0; (pair = cli_nth(c, "header", i)); i++) {
		size_t n = strcspn(pair, "=");
		char *word = pr_asprintf("%.*s", (int)n, pair);

		if (strcmp(word, "id") == 0) {
			free(word);
			(void)cli_usage(err, "the id cannot be chosen");
			return pr_hint(err, "an edited message is another one: it gets an id of its own");
		}
		cJSON_DeleteItemFromObjectCaseSensitive(e->headers, word);
		(void)cJSON_AddStringToObject(e->headers, word, pair + n + 1);
		free(word);
	}
	return 0;
}

static char *indented(const struct text *t, int compact, size_t *ret_len)
{
	struct pr_buf b = { 0 };

	cli_json_indent(&b, t->s, t->n, compact);
	*ret_len = b.len;
	return b.s ? b.s : pr_strdup("");
}

static int same(const struct text *a, const struct text *b)
{
	return (a->s != NULL) == (b->s != NULL) && a->n == b->n && (!a->s || memcmp(a->s, b->s, a->n) == 0);
}

/* JSON that was one line becomes one line again. Takes t, gives the result. */
static struct text written_as(const struct text *was, struct text t)
{
	struct text flat = { 0 }, line;

	if (!pr_json_text(t.s, t.n))
		return t;
	flat.s = indented(was, 1, &flat.n);
	if (same(&flat, was)) {
		line.s = indented(&t, 1, &line.n);
		free(t.s);
		t = line;
	}
	free(flat.s);
	return t;
}

/* The editor gets JSON indented. */
static int by_editor(struct edit *e, struct pr_err *err)
{
	int json = e->was.s && pr_json_text(e->was.s, e->was.n), rc;
	struct text given = { 0 }, taken = { 0 };

	if (!json && e->was.s && !pr_utf8_text(e->was.s, e->was.n)) {
		(void)pr_fail(err, PR_REJECT, "the payload is no text");
		(void)pr_hint(
			err, "write it to a file by `postrider dlq show --raw`, and give that by --payload");
		return refused(err);
	}
	if (json)
		given.s = indented(&e->was, 0, &given.n);
	else
		given = (struct text){ .s = pr_strdup(e->was.s ? e->was.s : ""), .n = e->was.n };
	rc = cli_edit(given.s, given.n, json ? ".json" : ".txt", &taken.s, &taken.n, err);
	e->by_hand = rc == 0;
	if (rc == 0 && taken.n && taken.s[taken.n - 1] == '\n') /* editors end the last line */
		taken.s[--taken.n] = '\0';
	if (rc < 0 || same(&taken, &given)) {
		free(taken.s);
	} else {
		free(e->is.s);
		e->is = json ? written_as(&e->was, taken) : taken;
	}
	free(given.s);
	return rc;
}

static int change(const struct cli *c, struct edit *e, struct pr_err *err)
{
	const char *key = cli_str(c, "key");

	if ((key && cli_has(c, "no-key")) || (cli_has(c, "payload") && cli_has(c, "tombstone")))
		return cli_usage(err, "either a new one or none, not both");
	e->key = key ? key : cli_has(c, "no-key") ? NULL : cli_cell(e->old, 0, L_KEY);
	if (take_headers(c, e, err) < 0)
		return -1;
	if (cli_has(c, "payload") || cli_has(c, "tombstone")) {
		free(e->is.s);
		e->is = (struct text){ 0 };
		return cli_has(c, "tombstone")
			       ? 0
			       : cli_read_file(cli_str(c, "payload"), &e->is.s, &e->is.n, err);
	}
	if (key || cli_has(c, "no-key") || cli_has(c, "header") || cli_has(c, "no-header"))
		return 0;
	if (cli_tty(stdin) && cli_tty(stdout))
		return by_editor(e, err);
	(void)cli_usage(err, "what shall be changed?");
	return pr_hint(err, "give --payload, --tombstone, --header, --no-header, --key or --no-key; "
			    "on a terminal an editor opens");
}

/* A handler that expects JSON would bury it at once. */
static int check(const struct cli *c, const struct edit *e, struct pr_err *err)
{
	if (cli_has(c, "bytes") || cli_has(c, "tombstone") || !e->was.s ||
		!pr_json_text(e->was.s, e->was.n) || (e->is.s && pr_json_text(e->is.s, e->is.n)))
		return 0;
	(void)pr_fail(err, PR_REJECT, "nothing was done: the payload was JSON, the new one is not");
	(void)pr_hint(err, "--bytes takes it all the same");
	return refused(err);
}

/* What is compared: key, headers and payload as the screen shows them. */
static char *page(const char *key, const cJSON *headers, const struct text *payload)
{
	char *text = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&text, &n);

	if (!f)
		return pr_strdup("");
	(void)fputs(key ? "key: " : "no key", f);
	cli_safe(f, key ? key : "", key ? strlen(key) : 0);
	(void)fputc('\n', f);
	for (const cJSON *h = headers ? headers->child : NULL; h; h = h->next) {
		char *value = cJSON_PrintUnformatted(h);

		(void)fputs("header ", f);
		cli_safe(f, h->string, strlen(h->string));
		(void)fputs(": ", f);
		cli_safe(f, value, strlen(value));
		(void)fputc('\n', f);
		free(value);
	}
	cli_payload(f, payload->s, payload->n, DIFF_BYTES, 0);
	(void)fclose(f);
	return text;
}

/* 1 when something is different. */
static int show_diff(const struct edit *e, int quiet)
{
	const char *key = cli_cell(e->old, 0, L_KEY);
	char *was = page(key, e->headers_was, &e->was);
	char *is = page(e->key, e->headers, &e->is);
	int differ = strcmp(was, is) != 0 || !same(&e->was, &e->is);

	if (differ && !quiet)
		cli_diff(stdout, was, is);
	free(was);
	free(is);
	return differ;
}

static int save(const struct cli *c, struct pr_pg *pg, const char *entry, const struct edit *e,
	PGresult **ret, struct pr_err *err)
{
	char *headers = cJSON_PrintUnformatted(e->headers);
	unsigned char *payload = NULL;
	const char *key = cli_cell(e->old, 0, L_KEY), *made;
	const char *params[6] = { entry, NULL, headers, [5] = cli_str(c, "by") };
	PGresult *res;
	size_t n;

	if (e->is.s && !same(&e->was, &e->is)) {
		payload = PQescapeByteaConn(pr_pg_conn(pg), (const unsigned char *)e->is.s, e->is.n, &n);
		params[1] = (const char *)payload;
	}
	if (e->key && (!key || strcmp(key, e->key) != 0))
		params[3] = e->key;
	params[4] = !e->is.s && !e->key ? "{payload,key}" : !e->is.s ? "{payload}" : !e->key ? "{key}" : "{}";
	res = pr_pg_exec(pg,
		"SELECT inbox.dlq_edit($1::bigint, $2::bytea, $3::jsonb, $4, clear => $5::text[], by "
		"=> " CLI_BY("$6") ")",
		6, params, err);
	if (res) {
		made = PQgetvalue(res, 0, 0);
		*ret = pr_pg_exec(pg, "SELECT entry, id FROM inbox.dead_letter WHERE entry = $1::bigint", 1,
			&made, err);
	}
	PQclear(res);
	PQfreemem(payload);
	free(headers);
	return *ret ? 0 : -1;
}

static void report(const struct cli *c, const char *entry, const PGresult *made, int changed)
{
	cJSON *o;

	if (!cli_has(c, "json")) {
		if (made)
			(void)printf("dead letter %s was made of %s, with id %s\n", PQgetvalue(made, 0, 0),
				entry, PQgetvalue(made, 0, 1));
		if (made)
			cli_say("`postrider dlq retry %s` tries it", PQgetvalue(made, 0, 0));
		else
			cli_say(changed ? "nothing was done" : "nothing is different: nothing was done");
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddRawToObject(o, "entry", entry);
	(void)cJSON_AddBoolToObject(o, "changed", changed);
	if (made) {
		cli_json_cell(o, "made", made, 0, 0, 1);
		cli_json_cell(o, "id", made, 0, 1, 0);
	} else {
		(void)cJSON_AddNullToObject(o, "made");
		(void)cJSON_AddNullToObject(o, "id");
	}
	cli_json_free_line(o);
}

static int edit(struct cli *c, struct pr_pg *pg, int64_t entry, struct edit *e, PGresult **ret_made,
	int *ret_changed, struct pr_err *err)
{
	if (begin(pg, entry, e, err) < 0 || change(c, e, err) < 0 || check(c, e, err) < 0)
		return -1;
	*ret_changed = show_diff(e, cli_has(c, "json"));
	if (!*ret_changed || cli_has(c, "dry-run"))
		return 0;
	if (e->by_hand && !cli_has(c, "yes") && !cli_agreed("make a new dead letter of this?"))
		return 0;
	return save(c, pg, cli_cell(e->old, 0, L_ENTRY), e, ret_made, err);
}

int verb_dlq_edit(struct cli *c)
{
	struct edit e = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *made = NULL;
	int64_t entry;
	int changed = 0, rc = PR_EX_OK;

	if (dlq_entry(c->args[0], &entry, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		edit(c, pg, entry, &e, &made, &changed, &err) < 0)
		rc = cli_failed(c, &err);
	else
		report(c, cli_cell(e.old, 0, L_ENTRY), made, changed);
	edit_release(&e);
	PQclear(made);
	pr_pg_close(pg);
	return rc;
}
