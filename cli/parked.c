/* cli/parked.c -- `postrider parked`: what the relay holds back, and the operator's three answers.
 * An answer is a request, a word in the key's first row: the relay acts on it at its next
 * turn, this program only watches. Refuses to move, publish or delete a row itself: the
 * order of a key is the relay's business. */
#include "cli/parked.h"
#include "lib/clock.h"
#include "lib/json.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define UTC(column) "to_char(" column " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

/* One row per key: its first event speaks for it. $1: a topic or NULL, $2: a key or NULL, $3: limit. */
static const char keys_sql[] =
	"SELECT p.topic, p.key, count(*), (array_agg(p.reason ORDER BY p.seq))[1], "
	"(array_agg(p.code ORDER BY p.seq))[1], " UTC(
		"min(p.parked_at)") ", "
				    "extract(epoch FROM clock_timestamp() - min(p.parked_at))::bigint, "
				    "(array_agg(p.id ORDER BY p.seq))[1], min(p.seq), (array_agg(p.attempts "
				    "ORDER BY p.seq))[1], "
				    "(array_agg(p.head ORDER BY p.seq))[1], (array_agg(p.request ORDER BY "
				    "p.seq))[1] FROM outbox.parked AS p "
				    "WHERE ($1::text IS NULL OR p.topic = $1) AND ($2::text IS NULL OR p.key "
				    "= $2) "
				    "GROUP BY p.topic, p.key ORDER BY min(p.parked_at), p.topic, p.key LIMIT "
				    "$3::bigint";
enum {
	K_TOPIC,
	K_KEY,
	K_EVENTS,
	K_REASON,
	K_CODE,
	K_SINCE,
	K_AGE,
	K_ID,
	K_SEQ,
	K_ATTEMPTS,
	K_HEAD,
	K_REQUEST
};

static PGresult *read_keys(
	struct pr_pg *pg, const char *topic, const char *key, int64_t limit, struct pr_err *err)
{
	char most[24];
	const char *params[3] = { topic, key, most };

	(void)snprintf(most, sizeof(most), "%lld", (long long)limit);
	return pr_pg_exec(pg, keys_sql, 3, params, err);
}

static void add_str(cJSON *o, const char *name, const char *s)
{
	(void)cJSON_AddItemToObject(o, name, s ? cJSON_CreateString(s) : cJSON_CreateNull());
}

static const char *or_dash(const char *s)
{
	return s && *s ? s : "-";
}

/* Rows to show: one more was asked for, to know whether there is more. */
static int shown(const PGresult *res, int64_t limit)
{
	return PQntuples(res) > limit ? (int)limit : PQntuples(res);
}

static void print_keys_json(const PGresult *res, int n)
{
	for (int i = 0; i < n; i++) {
		cJSON *o = cJSON_CreateObject();

		add_str(o, "topic", cli_cell(res, i, K_TOPIC));
		add_str(o, "key", cli_cell(res, i, K_KEY));
		cli_json_int(o, "events", cli_cell_int(res, i, K_EVENTS));
		add_str(o, "reason", cli_cell(res, i, K_REASON));
		add_str(o, "code", cli_cell(res, i, K_CODE));
		add_str(o, "since", cli_cell(res, i, K_SINCE));
		cli_json_int(o, "age_seconds", cli_cell_int(res, i, K_AGE));
		add_str(o, "first_id", cli_cell(res, i, K_ID));
		cli_json_int(o, "first_seq", cli_cell_int(res, i, K_SEQ));
		cli_json_int(o, "attempts", cli_cell_int(res, i, K_ATTEMPTS));
		add_str(o, "request", cli_cell(res, i, K_REQUEST));
		cli_json_free_line(o);
	}
}

static void print_keys(const PGresult *res, int n)
{
	static const char *const heads[] = { "=TOPIC", "KEY", ">EVENTS", ">HELD FOR", "~REASON" };
	struct cli_table t = { .ncols = 5, .heads = heads };

	for (int i = 0; i < n; i++) {
		const char *request = cli_cell(res, i, K_REQUEST);
		char age[48], count[32];
		char *reason = pr_asprintf("%s%s%s", request ? request : "", request ? " asked for; " : "",
			or_dash(cli_cell(res, i, K_REASON)));
		const char *const cells[] = { cli_cell(res, i, K_TOPIC), cli_cell(res, i, K_KEY),
			cli_count(cli_cell_int(res, i, K_EVENTS), count),
			cli_span((double)cli_cell_int(res, i, K_AGE), age), reason };

		cli_table_add(&t, cells);
		free(reason);
	}
	cli_table_print(&t, stdout);
}

/* Options that mean something of a consumer group only. */
static int only_of_a_group(const struct cli *c)
{
	static const char *const names[] = { "partition", "no-key", "offset", "class", "code" };
	int release = strcmp(c->verb->name, "parked release") == 0;
	struct pr_err err = { 0 };
	const char *found = NULL;

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (cli_given(c, names[i]))
			found = names[i];
	if (!release && cli_given(c, "all"))
		found = "all";
	if (!found)
		return PR_EX_OK;
	(void)cli_usage(&err, "--%s is for what a consumer group holds back: which one?", found);
	(void)pr_hint(&err, "give --group, or the -c of a consumer; without, the relay is meant");
	return cli_failed(c, &err);
}

/* Where groups have run too, the heading says whose these are; what groups hold back is said as well. A role
 * that may not look there is told nothing. */
static int heading(const struct cli *c, struct pr_pg *pg, int print, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg,
		"SELECT CASE WHEN has_schema_privilege('inbox', 'USAGE') THEN "
		"has_table_privilege('inbox.consumer', "
		"'SELECT') AND has_table_privilege('inbox.parked', 'SELECT') ELSE false END",
		0, NULL, err);
	int may = res && *PQgetvalue(res, 0, 0) == 't', rc = res ? 0 : -1;

	PQclear(res);
	if (!may)
		return rc;
	res = pr_pg_exec(pg,
		"SELECT c.\"group\", EXISTS (SELECT FROM inbox.parked AS p WHERE p.\"group\" = c.\"group\" "
		"AND "
		"p.blocking AND p.due_at IS NOT NULL) FROM inbox.consumer AS c ORDER BY 2 DESC, 1 LIMIT 1",
		0, NULL, err);
	if (!res)
		return -1;
	if (PQntuples(res) && print)
		(void)printf("%sthe relay's outbox%s\n", cli_on(stdout, CLI_BOLD), cli_off(stdout));
	if (PQntuples(res) && *PQgetvalue(res, 0, 1) == 't' && !cli_has(c, "json"))
		cli_say("consumer groups hold keys back too: `postrider parked list --group %s`",
			PQgetvalue(res, 0, 0));
	PQclear(res);
	return 0;
}

static int list(struct cli *c)
{
	int64_t limit = cli_int(c, "limit", 100);
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int rc = PR_EX_OK;

	if (cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = read_keys(pg, cli_str(c, "topic"), NULL, limit + 1, &err)) ||
		heading(c, pg, PQntuples(res) > 0 && !cli_has(c, "json"), &err) < 0)
		rc = cli_fail(&err);
	else if (cli_has(c, "json"))
		print_keys_json(res, shown(res, limit));
	else if (PQntuples(res) == 0)
		cli_say("no key is held back");
	else
		print_keys(res, shown(res, limit));
	if (rc == PR_EX_OK && PQntuples(res) > limit)
		cli_say("there are more: --limit shows them");
	PQclear(res);
	pr_pg_close(pg);
	return rc;
}

int verb_parked_list(struct cli *c)
{
	int rc = PR_EX_OK;

	if (cli_group(c))
		return parked_group_list(c);
	rc = only_of_a_group(c);
	return rc == PR_EX_OK ? list(c) : rc;
}

/* ---- show ---- */

static const char show_sql[] =
	"SELECT p.id, p.seq, p.topic, p.key, p.type, p.reason, p.code, p.attempts, p.request, " UTC(
		"p.created_at") ", " UTC("p.parked_at") ", coalesce(octet_length(e.payload::text), "
							"octet_length(e.payload_bytes)), "
							"CASE WHEN $5::boolean THEN e.payload::text END, "
							"CASE WHEN $5::boolean THEN "
							"translate(encode(e.payload_bytes, 'base64'), "
							"E'\\n', '') END "
							"FROM outbox.parked AS p LEFT JOIN outbox.event AS e "
							"ON e.seq = p.seq "
							"WHERE ($1::text IS NULL OR p.topic = $1) AND "
							"($2::text IS NULL OR p.key = $2) "
							"AND ($3::uuid IS NULL OR p.id = $3) ORDER BY "
							"p.topic, p.key, p.seq LIMIT $4::bigint";
enum {
	S_ID,
	S_SEQ,
	S_TOPIC,
	S_KEY,
	S_TYPE,
	S_REASON,
	S_CODE,
	S_ATTEMPTS,
	S_REQUEST,
	S_CREATED,
	S_PARKED,
	S_BYTES,
	S_JSON,
	S_BASE64
};

static void show_json(const PGresult *res, int i, int payload)
{
	static const struct {
		const char *name;
		int column;
	} texts[] = { { "topic", S_TOPIC }, { "key", S_KEY }, { "type", S_TYPE }, { "reason", S_REASON },
		{ "code", S_CODE }, { "request", S_REQUEST }, { "created_at", S_CREATED },
		{ "parked_at", S_PARKED } };
	const char *json = cli_cell(res, i, S_JSON);
	cJSON *o = cJSON_CreateObject();

	add_str(o, "id", cli_cell(res, i, S_ID));
	cli_json_int(o, "seq", cli_cell_int(res, i, S_SEQ));
	for (size_t n = 0; n < sizeof(texts) / sizeof(*texts); n++)
		add_str(o, texts[n].name, cli_cell(res, i, texts[n].column));
	cli_json_int(o, "attempts", cli_cell_int(res, i, S_ATTEMPTS));
	if (cli_cell(res, i, S_BYTES))
		cli_json_int(o, "payload_bytes", cli_cell_int(res, i, S_BYTES));
	else
		(void)cJSON_AddNullToObject(o, "payload_bytes");
	if (payload && json)
		(void)cJSON_AddRawToObject(o, "payload", json);
	if (payload && cli_cell(res, i, S_BASE64))
		add_str(o, "payload_base64", cli_cell(res, i, S_BASE64));
	cli_json_free_line(o);
}

static void show_line(const char *name, const char *text)
{
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, or_dash(text), 11, 13);
}

static void show_text(const PGresult *res, int i, int payload)
{
	const char *reason = cli_cell(res, i, S_REASON), *bytes = cli_cell(res, i, S_BYTES);
	char *where = pr_asprintf(
		"%s, key %s", or_dash(cli_cell(res, i, S_TOPIC)), or_dash(cli_cell(res, i, S_KEY)));
	char *size = bytes ? pr_asprintf("%s byte%s", bytes, strcmp(bytes, "1") == 0 ? "" : "s")
			   : pr_strdup("none (a tombstone)");
	char *tries = pr_asprintf("%s, attempts: %s", or_dash(cli_cell(res, i, S_PARKED)),
		or_dash(cli_cell(res, i, S_ATTEMPTS)));

	(void)printf("%s%s%s  seq %s\n", cli_on(stdout, CLI_BOLD), cli_cell(res, i, S_ID), cli_off(stdout),
		cli_cell(res, i, S_SEQ));
	show_line("topic", where);
	show_line("type", cli_cell(res, i, S_TYPE));
	show_line("reason", reason ? reason : "waits behind the first event of its key");
	show_line("created", cli_cell(res, i, S_CREATED));
	show_line("held", tries);
	if (cli_cell(res, i, S_REQUEST))
		show_line("request", cli_cell(res, i, S_REQUEST));
	show_line("payload", !payload                   ? size
			     : cli_cell(res, i, S_JSON) ? cli_cell(res, i, S_JSON)
							: cli_cell(res, i, S_BASE64));
	free(where);
	free(size);
	free(tries);
}

static int show(struct cli *c)
{
	int payload = cli_has(c, "payload"), rc = PR_EX_OK;
	int64_t limit = cli_int(c, "limit", 100);
	char *most = pr_asprintf("%lld", (long long)limit + 1);
	const char *params[5] = { cli_str(c, "topic"), cli_str(c, "key"), cli_str(c, "id"), most,
		payload ? "t" : "f" };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;

	if (!params[1] && !params[2]) {
		(void)cli_usage(&err, "which events? give --key (and --topic), or --id");
		rc = cli_failed(c, &err);
	} else if (cli_connect_outbox(c, &pg, &err) < 0 ||
		   !(res = pr_pg_exec(pg, show_sql, 5, params, &err)) ||
		   heading(c, pg, PQntuples(res) > 0 && !cli_has(c, "json"), &err) < 0) {
		rc = cli_fail(&err);
	} else if (PQntuples(res) == 0) {
		cli_say("nothing like that is held back");
		rc = PR_EX_NOT_FOUND;
	}
	for (int i = 0; rc == PR_EX_OK && i < shown(res, limit); i++) {
		if (cli_has(c, "json"))
			show_json(res, i, payload);
		else
			show_text(res, i, payload);
	}
	if (rc == PR_EX_OK && PQntuples(res) > limit)
		cli_say("there are more: --limit shows them");
	PQclear(res);
	pr_pg_close(pg);
	free(most);
	return rc;
}

int verb_parked_show(struct cli *c)
{
	int rc;

	if (cli_group(c))
		return parked_group_show(c);
	rc = only_of_a_group(c);
	return rc == PR_EX_OK ? show(c) : rc;
}

/* ---- retry, skip, release ---- */

enum outcome { REQUESTED, RELEASED, STILL_PARKED, SKIPPED };
static const char *const outcome_str[] = { "requested", "released", "still_parked", "skipped" };

/* One key that was asked for, and what became of it. */
struct asked {
	char *topic, *key, *id, *reason;
	int64_t seq, events;
	enum outcome outcome;
};

struct work {
	const char *what; /* "retry" or "skip": the word in the table */
	struct asked *v;
	int n;
};

static void work_release(struct work *w)
{
	for (int i = 0; i < w->n; i++) {
		free(w->v[i].topic);
		free(w->v[i].key);
		free(w->v[i].id);
		free(w->v[i].reason);
	}
	free(w->v);
}

static char *cell_dup(const PGresult *res, int row, int col)
{
	const char *s = cli_cell(res, row, col);

	return s ? pr_strdup(s) : NULL;
}

static void add_asked(struct work *w, const PGresult *res, int i)
{
	w->v = pr_realloc(w->v, sizeof(*w->v) * (size_t)(w->n + 1));
	w->v[w->n++] = (struct asked){
		.topic = cell_dup(res, i, K_TOPIC),
		.key = cell_dup(res, i, K_KEY),
		.id = cell_dup(res, i, K_ID),
		.reason = cell_dup(res, i, K_REASON),
		.seq = cli_cell_int(res, i, K_SEQ),
		.events = cli_cell_int(res, i, K_EVENTS),
	};
}

/* The keys meant by -t, -k and --id. */
static int find_keys(struct pr_pg *pg, const char *id, const char *topic, const char *key, struct work *w,
	struct pr_err *err)
{
	const char *params[1] = { id };
	PGresult *row = NULL, *res = NULL;
	int rc = -1;

	if (id) {
		row = pr_pg_exec(
			pg, "SELECT topic, key FROM outbox.parked WHERE id = $1::uuid", 1, params, err);
		if (!row)
			return -1;
		if (PQntuples(row) > 1) { /* a caller's id need not be unique */
			(void)cli_usage(err, "%d events held back have id %s: say which by --key and --topic",
				PQntuples(row), id);
			goto out;
		}
		topic = PQntuples(row) ? PQgetvalue(row, 0, 0) : "";
		key = PQntuples(row) ? PQgetvalue(row, 0, 1) : "";
	}
	res = read_keys(pg, topic, key, 1000000, err);
	if (!res)
		goto out;
	for (int i = 0; i < PQntuples(res); i++)
		add_asked(w, res, i);
	if (w->n == 0) {
		(void)pr_fail(err, PR_REJECT,
			id ? "event %s is not held back" : "nothing is held back there%s", id ? id : "");
		err->exit = PR_EX_NOT_FOUND;
		(void)pr_hint(err, "`postrider parked list` shows what is");
	} else if (key && !id && w->n > 1) {
		(void)cli_usage(
			err, "key \"%.80s\" is held back in %d topics: say which with --topic", key, w->n);
	} else if (id && strcasecmp(id, w->v[0].id) != 0) {
		(void)pr_fail(err, PR_REJECT,
			"event %s waits behind %s: only the first of a key can be asked to %s", id,
			w->v[0].id, w->what);
		err->exit = PR_EX_REFUSED;
	} else {
		rc = 0;
	}
out:
	PQclear(row);
	PQclear(res);
	return rc;
}

/* All in one transaction: all keys are asked for, or none. */
static int request(struct pr_pg *pg, const struct work *w, const char *by, struct pr_err *err)
{
	if (pr_pg_run(pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	for (int i = 0; i < w->n; i++) {
		char seq[24];
		const char *params[3] = { seq, w->what, by };

		(void)snprintf(seq, sizeof(seq), "%lld", (long long)w->v[i].seq);
		if (pr_pg_run(pg, "SELECT outbox.parked_request($1::bigint, $2, " CLI_BY("$3") ")", 3, params,
			    err) < 0)
			return -1;
	}
	return pr_pg_run(pg, "COMMIT", 0, NULL, err);
}

static int by_topic_key(const void *a, const void *b)
{
	const struct asked *x = a, *y = b;
	int d = strcmp(x->topic, y->topic);

	return d ? d : strcmp(x->key, y->key);
}

/* What row i says about its key now. Undecided while a request stands on the first row, or while the
 * relay is under way: the old first row is gone and the new one has not failed. */
static void settle(struct asked *a, const char *what, const PGresult *res, int i)
{
	int64_t first = cli_cell_int(res, i, K_SEQ);
	int failed = *PQgetvalue(res, i, K_HEAD) == 't';

	a->events = cli_cell_int(res, i, K_EVENTS);
	if (cli_cell(res, i, K_REQUEST) || (first != a->seq && !failed))
		return;
	free(a->reason);
	a->reason = cell_dup(res, i, K_REASON);
	a->outcome = first != a->seq && strcmp(what, "skip") == 0 ? SKIPPED : STILL_PARKED;
}

/* Reads the table once more; returns how many keys are undecided, -1 on error. w is sorted. */
static int look(struct pr_pg *pg, const char *topic, struct work *w, struct pr_err *err)
{
	PGresult *res = read_keys(pg, topic, NULL, 10000000, err);
	char *seen = pr_calloc((size_t)w->n, 1);
	int open = 0;

	if (!res) {
		free(seen);
		return -1;
	}
	for (int i = 0; i < PQntuples(res); i++) {
		struct asked probe = { .topic = PQgetvalue(res, i, K_TOPIC),
			.key = PQgetvalue(res, i, K_KEY) };
		struct asked *a = bsearch(&probe, w->v, (size_t)w->n, sizeof(*w->v), by_topic_key);

		if (!a)
			continue;
		seen[a - w->v] = 1;
		if (a->outcome == REQUESTED)
			settle(a, w->what, res, i);
	}
	for (int i = 0; i < w->n; i++) {
		if (!seen[i] && w->v[i].outcome == REQUESTED) {
			w->v[i].outcome = RELEASED;
			w->v[i].events = 0;
		}
		open += w->v[i].outcome == REQUESTED;
	}
	PQclear(res);
	free(seen);
	return open;
}

static int wait_for_relay(const struct cli *c, struct pr_pg *pg, struct work *w, struct pr_err *err)
{
	int64_t deadline = pr_mono_us() + cli_int(c, "wait", 10 * PR_SEC);
	const char *topic = w->v[0].topic;
	int pause = 20, open;

	for (int i = 1; i < w->n; i++)
		if (strcmp(w->v[i].topic, w->v[0].topic) != 0)
			topic = NULL;
	if (cli_int(c, "wait", 1) == 0)
		return 0;
	for (;;) {
		open = look(pg, topic, w, err);
		if (open <= 0 || pr_mono_us() >= deadline)
			return open < 0 ? -1 : 0;
		(void)poll(NULL, 0, pause);
		pause = pause < 500 ? pause * 2 : 500;
	}
}

static void report_json(const struct work *w, const struct asked *a)
{
	cJSON *o = cJSON_CreateObject();

	add_str(o, "topic", a->topic);
	add_str(o, "key", a->key);
	add_str(o, "id", a->id);
	add_str(o, "request", w->what);
	add_str(o, "outcome", outcome_str[a->outcome]);
	cli_json_int(o, "events", a->events);
	add_str(o, "reason", a->outcome == RELEASED ? NULL : a->reason);
	cli_json_free_line(o);
}

static void report_text(const struct work *w, const struct asked *a)
{
	char *topic = cli_safe_str(a->topic), *key = cli_safe_str(a->key),
	     *reason = cli_safe_str(or_dash(a->reason));
	long long n = (long long)a->events;

	(void)printf("%s key %s: ", topic, key);
	switch (a->outcome) {
	case REQUESTED:
		(void)printf("%s requested; %lld event%s held back\n", w->what, n, n == 1 ? "" : "s");
		break;
	case RELEASED:
		(void)printf("released, nothing is held back any more\n");
		break;
	case SKIPPED:
		(void)printf("skipped %s; the next one is refused as well, %lld held back: %s\n", a->id, n,
			reason);
		break;
	case STILL_PARKED:
		(void)printf("still held back, %lld event%s: %s\n", n, n == 1 ? "" : "s", reason);
		break;
	}
	free(topic);
	free(key);
	free(reason);
}

static int report(const struct cli *c, const struct work *w)
{
	int count[4] = { 0 };

	for (int i = 0; i < w->n; i++) {
		count[w->v[i].outcome]++;
		if (cli_has(c, "json"))
			report_json(w, &w->v[i]);
		else
			report_text(w, &w->v[i]);
	}
	if (count[REQUESTED] && cli_int(c, "wait", 1) != 0) {
		cli_say("the relay has not acted on %d request%s yet; it will when it runs and is not "
			"paused: "
			"see `postrider status`",
			count[REQUESTED], count[REQUESTED] == 1 ? "" : "s");
		return PR_EX_UNAVAILABLE;
	}
	return count[STILL_PARKED] || count[SKIPPED] ? PR_EX_FAILED : PR_EX_OK;
}

static void show_plan(const struct work *w)
{
	for (int i = 0; i < w->n; i++) {
		const struct asked *a = &w->v[i];
		char *topic = cli_safe_str(a->topic), *key = cli_safe_str(a->key),
		     *reason = cli_safe_str(or_dash(a->reason));

		char *text = pr_asprintf("would %s %s key %s, event %s (%lld held back): %s", w->what, topic,
			key, a->id, (long long)a->events, reason);

		cli_text(stdout, text, 0, 0);
		free(text);
		free(topic);
		free(key);
		free(reason);
	}
}

/* The way of all three: find, show or ask, wait, report. */
static int ask_relay(struct cli *c, const char *what, const char *id, const char *topic, const char *key)
{
	struct work w = { .what = what };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	int rc;

	if (cli_connect_outbox(c, &pg, &err) < 0 || find_keys(pg, id, topic, key, &w, &err) < 0) {
		rc = cli_failed(c, &err);
	} else if (cli_has(c, "dry-run")) {
		show_plan(&w);
		rc = PR_EX_OK;
	} else if (strcmp(what, "skip") == 0 &&
		   cli_confirmed(c, &err, "give up event %s of key \"%.80s\" for ever", w.v[0].id,
			   w.v[0].key) < 0) {
		rc = cli_fail(&err);
	} else {
		qsort(w.v, (size_t)w.n, sizeof(*w.v), by_topic_key);
		rc = request(pg, &w, cli_str(c, "by"), &err) < 0 || wait_for_relay(c, pg, &w, &err) < 0
			     ? cli_fail(&err)
			     : report(c, &w);
	}
	work_release(&w);
	pr_pg_close(pg);
	return rc;
}

static int usage(struct cli *c, const char *text)
{
	struct pr_err err = { 0 };

	(void)cli_usage(&err, "%s", text);
	return cli_failed(c, &err);
}

int verb_parked_retry(struct cli *c)
{
	const char *id = cli_str(c, "id"), *key = cli_str(c, "key");
	int rc;

	if (cli_group(c))
		return parked_group_ask(c, "retry");
	rc = only_of_a_group(c);
	if (rc != PR_EX_OK)
		return rc;
	if ((id != NULL) == (key != NULL))
		return usage(c, "which key? give --key (and --topic), or --id of its first event; "
				"`postrider parked release` does many");
	return ask_relay(c, "retry", id, cli_str(c, "topic"), key);
}

int verb_parked_skip(struct cli *c)
{
	const char *id = cli_str(c, "id"), *key = cli_str(c, "key");
	int rc;

	if (cli_group(c))
		return parked_group_ask(c, "skip");
	rc = only_of_a_group(c);
	if (rc != PR_EX_OK)
		return rc;
	if ((id != NULL) == (key != NULL))
		return usage(c, "which event? give --id, or --key (and --topic) for the first of a key");
	return ask_relay(c, "skip", id, cli_str(c, "topic"), key);
}

int verb_parked_release(struct cli *c)
{
	int rc;

	if (cli_group(c))
		return parked_group_ask(c, "retry");
	rc = only_of_a_group(c);
	if (rc != PR_EX_OK)
		return rc;
	if (cli_has(c, "all") == cli_has(c, "topic"))
		return usage(c, "which keys? give --topic or --all");
	return ask_relay(c, "retry", NULL, cli_str(c, "topic"), NULL);
}
