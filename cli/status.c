/* cli/status.c -- `postrider status`: what the relay or a consumer says about itself, on one
 * screen or as JSON; what the database says when the relay is silent. Reads defensively: one of
 * another version may say less, or more. Never calls anything healthy that it cannot see. */
#include "cli/cli.h"
#include "lib/clock.h"

#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* What is shown; NULL or NAN or -1: not known. Text is borrowed from root. */
struct health {
	cJSON *root;             /* the answer; owned */
	const char *url, *group; /* group: it is a consumer of this one */
	const char *state, *sentence, *hint;
	int ready, healthy;
	char why[300]; /* failing checks of /readyz */
};

static const cJSON *get(const cJSON *o, const char *name)
{
	return o ? cJSON_GetObjectItemCaseSensitive(o, name) : NULL;
}

/* The first item of a list, NULL when there is none; the others follow by ->next. */
static const cJSON *first(const cJSON *list)
{
	return list ? list->child : NULL;
}

static const char *get_str(const cJSON *o, const char *name)
{
	const cJSON *item = get(o, name);

	return item && cJSON_IsString(item) && item->valuestring[0] ? item->valuestring : NULL;
}

static double get_num(const cJSON *o, const char *name)
{
	const cJSON *item = get(o, name);

	if (cJSON_IsString(item)) /* 64-bit numbers travel as strings */
		return strtod(item->valuestring, NULL);
	return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static int is_true(const cJSON *o, const char *name)
{
	return cJSON_IsTrue(get(o, name));
}

/* What a check of /readyz complains about: {"kafka": "no broker answers"}, {"kafka": {"ok": false, "text":
 * ...}}; NULL when it is fine, or only a number or a switch. */
static const char *complaint(const cJSON *check)
{
	const char *text;

	if (cJSON_IsString(check))
		return strcmp(check->valuestring, "ok") == 0 ? NULL : check->valuestring;
	if (!cJSON_IsObject(check) || !cJSON_IsFalse(get(check, "ok")))
		return NULL;
	text = get_str(check, "text");
	return text ? text : "failed";
}

static void failing_checks(const cJSON *readyz, char *why, size_t size)
{
	const char *sentence = get_str(readyz, "sentence");
	const cJSON *check;

	why[0] = '\0';
	for (check = first(get(readyz, "checks")); check; check = check->next)
		if (complaint(check))
			(void)snprintf(why + strlen(why), size - strlen(why), "%s%s: %s", *why ? ", " : "",
				check->string ? check->string : "check", complaint(check));
	if (!*why)
		(void)snprintf(why, size, "%s", sentence ? sentence : "it does not say why");
}

static int one_of(const char *word, const char *a, const char *b)
{
	return word && (strcmp(word, a) == 0 || strcmp(word, b) == 0);
}

/* "postrider_saga_instances{saga="pay",state="STUCK"} 3" -> counts by state, over all names. */
static void add_sagas(cJSON *counts, const char *line)
{
	const char *word = strstr(line, "state=\""), *number = strstr(line, "} ");
	size_t n = word ? strcspn(word + 7, "\"\n") : 0;
	cJSON *was;
	char *state;

	if (!n || !number || number < word)
		return;
	state = pr_asprintf("%.*s", (int)n, word + 7);
	was = cJSON_GetObjectItemCaseSensitive(counts, state);
	if (was)
		cJSON_SetNumberValue(was, was->valuedouble + strtod(number + 2, NULL));
	else
		(void)cJSON_AddNumberToObject(counts, state, strtod(number + 2, NULL));
	free(state);
}

/* Of an engine, what it counts of its sagas, among its metrics; without them the page is as good. */
static void ask_sagas(struct cli *c, const char *url, struct health *h)
{
	static const char name[] = "postrider_saga_instances{";
	struct pr_err ignored;
	char *body = NULL;
	int status = 0;
	cJSON *counts;

	if (cli_fetch(c, url, "/metrics", &status, &body, &ignored) < 0)
		return;
	counts = cJSON_AddObjectToObject(h->root, "sagas");
	for (const char *line = body; status == 200 && line && *line;
		line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
		if (strncmp(line, name, sizeof(name) - 1) == 0)
			add_sagas(counts, line);
	free(body);
}

/* Both pages. 0, or -1 with exit 69 when it does not answer. */
static int ask(struct cli *c, const char *url, struct health *h, struct pr_err *err)
{
	char *body = NULL;
	cJSON *readyz;
	int status = 0;

	if (cli_fetch(c, url, "/readyz", &status, &body, err) < 0)
		return -1;
	readyz = cJSON_Parse(body);
	failing_checks(readyz, h->why, sizeof(h->why));
	cJSON_Delete(readyz);
	free(body);
	body = NULL;
	h->ready = status == 200;
	if (cli_fetch(c, url, "/status.json", &status, &body, err) < 0)
		return -1;
	h->root = status == 200 ? cJSON_Parse(body) : NULL;
	free(body);
	if (!cJSON_IsObject(h->root) || !get_str(h->root, "state")) {
		(void)pr_fail(err, PR_RETRY, "%s answers, but not as a relay or a consumer does (status %d)",
			url, status);
		if (status == 401)
			(void)pr_hint(err, "it wants a token: give its -c or set POSTRIDER_TOKEN");
		return -1;
	}
	h->url = url;
	h->group = get_str(h->root, "group");
	h->state = get_str(h->root, "state");
	h->sentence = get_str(h->root, "sentence");
	h->hint = get_str(h->root, "hint");
	if (get_str(h->root, "handler") && strcmp(get_str(h->root, "handler"), "saga") == 0)
		ask_sagas(c, url, h);
	/* A standby is not ready to publish, and should not be: its partner is. */
	h->healthy = strcmp(h->state, "standby") == 0 || (strcmp(h->state, "ok") == 0 && h->ready);
	return 0;
}

static enum cli_colour colour_of(const struct health *h)
{
	if (h->healthy)
		return CLI_GREEN;
	return one_of(h->state, "error", "?") || (strcmp(h->state, "ok") == 0 && !h->ready) ? CLI_RED
											    : CLI_YELLOW;
}

static void put_line(const char *name, const char *fmt, ...) PR_PRINTF(2, 3);
static void put_line(const char *name, const char *fmt, ...)
{
	char text[600];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text, 11, 13);
}

static void put_fix(const char *hint)
{
	if (!hint)
		return;
	(void)printf("  %sfix:%s", cli_on(stdout, CLI_BOLD), cli_off(stdout));
	cli_text(stdout, hint, 6, 7);
}

static void put_first_line(const struct health *h)
{
	const char *name = h->group ? h->group : get_str(h->root, "name"), *word = h->state,
		   *text = h->sentence;
	char *safe = cli_safe_str(name ? name : "relay");
	int at;

	if (strcmp(word, "ok") == 0 && !h->ready) {
		word = "not ready";
		text = h->why;
	}
	(void)printf("%s%s%s  %s%s%s", cli_on(stdout, CLI_BOLD), safe, cli_off(stdout),
		cli_on(stdout, colour_of(h)), word, cli_off(stdout));
	at = (int)(cli_cells(safe) + 2 + strlen(word));
	cli_text(stdout, text ? text : "", at, at + 2);
	put_fix(h->hint);
	free(safe);
}

/* The problems behind the worst one, which the first line has told. */
static void put_problems(const struct health *h)
{
	const cJSON *p;
	int n = 0;

	for (p = first(get(h->root, "problems")); p; p = p->next) {
		const char *text = get_str(p, "text"), *severity = get_str(p, "severity");

		if (!text || (h->sentence && strcmp(text, h->sentence) == 0))
			continue;
		if (n++ == 0)
			(void)putchar('\n');
		if (!severity)
			severity = "warn";
		(void)printf("  %s%.20s%s",
			cli_on(stdout, one_of(severity, "error", "stop") ? CLI_RED : CLI_YELLOW), severity,
			cli_off(stdout));
		cli_text(stdout, text, 2 + (int)strnlen(severity, 20), 4 + (int)strnlen(severity, 20));
		put_fix(get_str(p, "hint"));
	}
}

static void put_waiting(const struct health *h)
{
	const cJSON *list = get(h->root, "waiting"), *w;
	char count[64];
	int n = 0;

	for (w = first(list); w; w = w->next) {
		const char *topic = get_str(w, "topic"), *reason = get_str(w, "reason");

		if (n++ >= 5)
			break;
		put_line(n == 1 ? "waiting" : "", "%s: %s, %s", topic ? topic : "?",
			cli_number((int64_t)get_num(w, "events"), "event", count),
			reason ? reason : "no reason given");
	}
	if (cJSON_GetArraySize(list) > 5)
		put_line("", "and %s", cli_number(cJSON_GetArraySize(list) - 5, "more topic", count));
}

/* "12 events", and what follows. */
static void put_events(const char *name, double n, const char *rest)
{
	char buf[64];

	if (isnan(n))
		put_line(name, "unknown");
	else
		put_line(name, "%s%s", cli_number((int64_t)n, "event", buf), rest);
}

static const char *connected(const cJSON *side)
{
	return is_true(side, "connected") ? "connected" : "not connected";
}

static void put_servers(const struct health *h)
{
	const cJSON *pg = get(h->root, "postgres");
	const char *system = get_str(pg, "system_id");
	double timeline = get_num(pg, "timeline");

	if (system && !isnan(timeline))
		put_line("Postgres", "%s, system %s, timeline %.0f", connected(pg), system, timeline);
	else
		put_line("Postgres", "%s", connected(pg));
	put_line("Kafka", "%s", connected(get(h->root, "kafka")));
}

static void put_relay(const struct health *h)
{
	const char *delivery = get_str(h->root, "delivery"), *version = get_str(h->root, "version");
	double up = get_num(h->root, "uptime_seconds");
	char span[48];

	put_line("relay", "%s%s%s%s%s%s%s", is_true(h->root, "leader") ? "leader" : "not the leader",
		delivery ? ", " : "", delivery ? delivery : "", version ? ", version " : "",
		version ? version : "", isnan(up) ? "" : ", up for ", isnan(up) ? "" : cli_span(up, span));
}

static const char *outcome_word(const char *name)
{
	return strcmp(name, "dead_letter") == 0 ? "dead"
	       : strcmp(name, "duplicate") == 0 ? "known already"
						: name;
}

/* "5 handled, 1 dead": what became of messages, without what never happened. */
static void put_outcomes(const cJSON *handled)
{
	struct pr_buf b = { 0 };
	const cJSON *item;
	char n[48];

	for (item = first(handled); item; item = item->next)
		if (item->string && cJSON_IsNumber(item) &&
			(item->valuedouble > 0 || strcmp(item->string, "handled") == 0))
			pr_buf_printf(&b, "%s%s %s", b.len ? ", " : "",
				cli_count((int64_t)item->valuedouble, n), outcome_word(item->string));
	put_line("messages", "%s%s", b.len ? b.s : "unknown", b.len ? " since it started" : "");
	pr_buf_free(&b);
}

/* "12 running, 1 stuck": those that have not ended. */
static void put_sagas(const struct health *h)
{
	static const char *const states[] = { "RUNNING", "COMPENSATING", "STUCK", NULL };
	static const char *const words[] = { "running", "compensating", "stuck" };
	const cJSON *counts = get(h->root, "sagas");
	struct pr_buf b = { 0 };
	char n[48];

	for (int i = 0; states[i]; i++)
		if (get_num(counts, states[i]) >= 1)
			pr_buf_printf(&b, "%s%s %s", b.len ? ", " : "",
				cli_count((int64_t)get_num(counts, states[i]), n), words[i]);
	if (counts)
		put_line("sagas", "%s", b.len ? b.s : "none");
	pr_buf_free(&b);
}

static void put_parked(double events, double keys)
{
	char a[64], b[64];

	if (isnan(events))
		put_line("parked", "unknown");
	else if (events < 1)
		put_line("parked", "none");
	else
		put_line("parked", "%s behind %s", cli_number((int64_t)events, "event", a),
			cli_number(isnan(keys) ? 0 : (int64_t)keys, "key", b));
}

static void put_lag(const struct health *h)
{
	double lag = get_num(h->root, "lag_seconds"), behind = get_num(h->root, "lag_events");
	char span[48], n[64];

	put_line("lag", "%s%s%s", isnan(lag) ? "unknown" : cli_span(lag, span), isnan(behind) ? "" : ", ",
		isnan(behind) ? "" : cli_number((int64_t)behind, "record", n));
}

static void put_rate(const struct health *h)
{
	double rate = get_num(get(h->root, "rates"), "events_per_second");
	char buf[48];

	if (rate >= 100)
		put_line("rate", "%s events/s", cli_count((int64_t)rate, buf));
	else if (!isnan(rate))
		put_line("rate", "%.1f events/s", rate);
}

/* A line only where there is something. */
static void put_some(const char *name, const struct health *h, const char *field, const char *what)
{
	double n = get_num(h->root, field);
	char buf[64];

	if (n >= 1)
		put_line(name, "%s", cli_number((int64_t)n, what, buf));
}

static void put_consumer(const struct health *h)
{
	const char *handler = get_str(h->root, "handler"), *version = get_str(h->root, "version");
	double partitions = get_num(h->root, "assigned_partitions"), lanes = get_num(h->root, "lanes");
	double up = get_num(h->root, "uptime_seconds");
	char a[64], b[64], span[48];

	if (!isnan(partitions) && !isnan(lanes))
		put_line("reads", "%s, with %s", cli_number((int64_t)partitions, "partition", a),
			cli_number((int64_t)lanes, "lane", b));
	put_servers(h);
	put_line("consumer", "handler %s%s%s%s%s", handler ? handler : "unknown", version ? ", version " : "",
		version ? version : "", isnan(up) ? "" : ", up for ", isnan(up) ? "" : cli_span(up, span));
}

static void put_consumer_screen(const struct health *h)
{
	put_first_line(h);
	put_problems(h);
	(void)putchar('\n');
	put_lag(h);
	put_rate(h);
	put_outcomes(get(h->root, "handled"));
	put_sagas(h);
	put_parked(get_num(h->root, "parked_events"), get_num(h->root, "parked_keys"));
	put_some("dead", h, "dead_letters", "dead letter");
	put_some("retrying", h, "retrying", "dead letter");
	put_some("replay", h, "replays", "job");
	put_consumer(h);
}

static void put_screen(const struct health *h)
{
	put_first_line(h);
	put_problems(h);
	(void)putchar('\n');
	put_lag(h);
	put_events("pending", get_num(h->root, "pending_events"), "");
	put_rate(h);
	put_events("published", get_num(h->root, "published_total"), " since it started");
	put_parked(get_num(h->root, "parked_events"), get_num(h->root, "parked_keys"));
	put_waiting(h);
	put_servers(h);
	put_relay(h);
}

/* ---- JSON ---- */

static void copy(cJSON *to, const char *name, const cJSON *item)
{
	(void)cJSON_AddItemToObject(to, name, item ? cJSON_Duplicate(item, 1) : cJSON_CreateNull());
}

static cJSON *as_json(const struct health *h)
{
	static const char *const relay[] = { "name", "version", "state", "sentence", "hint", "leader",
		"delivery", "lag_seconds", "pending_events", "published_total", "parked_events",
		"parked_keys", "waiting", "problems", "postgres", "kafka", "uptime_seconds", NULL };
	static const char *const consumer[] = { "group", "version", "state", "sentence", "hint", "handler",
		"dedupe", "lanes", "assigned_partitions", "lag_seconds", "lag_events", "handled", "sagas",
		"parked_events", "parked_keys", "dead_letters", "retrying", "replays", "breaker", "problems",
		"postgres", "kafka", "uptime_seconds", NULL };
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "source", h->group ? "consumer" : "relay");
	(void)cJSON_AddStringToObject(o, "url", h->url);
	(void)cJSON_AddBoolToObject(o, "healthy", h->healthy);
	(void)cJSON_AddBoolToObject(o, "ready", h->ready);
	for (const char *const *name = h->group ? consumer : relay; *name; name++)
		copy(o, *name, get(h->root, *name));
	copy(o, "events_per_second", get(get(h->root, "rates"), "events_per_second"));
	if (!h->group)
		copy(o, "position_seq", get(get(h->root, "position"), "seq"));
	return o;
}

/* ---- the database's own word, when the relay is silent ---- */

static const char lag_sql[] = "SELECT lag_seconds, pending_events + due_events, parked_events, parked_keys, "
			      "waiting_events, paused, "
			      "current_database() FROM outbox.lag";
enum { L_LAG, L_PENDING, L_PARKED, L_KEYS, L_WAITING, L_PAUSED, L_DATABASE };

static cJSON *database_json(const PGresult *res, const char *url, const char *sentence)
{
	const char *lag = cli_cell(res, 0, L_LAG);
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "source", "database");
	(void)cJSON_AddStringToObject(o, "url", url);
	(void)cJSON_AddFalseToObject(o, "healthy");
	(void)cJSON_AddFalseToObject(o, "ready");
	(void)cJSON_AddStringToObject(o, "state", "error");
	(void)cJSON_AddStringToObject(o, "sentence", sentence);
	(void)cJSON_AddNumberToObject(o, "lag_seconds", lag ? strtod(lag, NULL) : 0);
	cli_json_int(o, "pending_events", cli_cell_int(res, 0, L_PENDING));
	cli_json_int(o, "parked_events", cli_cell_int(res, 0, L_PARKED));
	cli_json_int(o, "parked_keys", cli_cell_int(res, 0, L_KEYS));
	cli_json_int(o, "waiting_events", cli_cell_int(res, 0, L_WAITING));
	(void)cJSON_AddBoolToObject(o, "paused", *PQgetvalue(res, 0, L_PAUSED) == 't');
	return o;
}

static void put_database(const PGresult *res, const char *sentence)
{
	const char *lag = cli_cell(res, 0, L_LAG);
	char *name = cli_safe_str(PQgetvalue(res, 0, L_DATABASE));
	char buf[64];

	(void)printf("%s%s%s  %serror%s", cli_on(stdout, CLI_BOLD), name, cli_off(stdout),
		cli_on(stdout, CLI_RED), cli_off(stdout));
	cli_text(stdout, sentence, (int)cli_cells(name) + 7, (int)cli_cells(name) + 9);
	put_fix("start it: postrider-relay -c relay.cfg; if it runs elsewhere: postrider status --url ...");
	(void)printf("\n  what the database says:\n");
	put_line("lag", "%s", cli_span(lag ? strtod(lag, NULL) : 0, buf));
	put_events("pending", (double)cli_cell_int(res, 0, L_PENDING), "");
	put_parked((double)cli_cell_int(res, 0, L_PARKED), (double)cli_cell_int(res, 0, L_KEYS));
	if (cli_cell_int(res, 0, L_WAITING))
		put_line("waiting", "%s for topics that do not exist",
			cli_number(cli_cell_int(res, 0, L_WAITING), "event", buf));
	if (*PQgetvalue(res, 0, L_PAUSED) == 't')
		put_line("paused", "yes");
	free(name);
}

/* A consumer that is silent: its database is `show consumers`' to tell of. */
static int silent_consumer(const char *url, const struct pr_err *why)
{
	size_t n = strlen(url);

	(void)cli_fail(why);
	if (n > 2 && strcmp(url + n - 2, ":0") == 0)
		cli_hint("http.listen takes a free port, its log names it (http_port): postrider status "
			 "--url ...");
	else
		cli_hint("start it: postrider-consumer -c ...; if it runs elsewhere: postrider status --url "
			 "...");
	cli_hint("postrider show consumers -c ... says what its database knows");
	return PR_EX_UNAVAILABLE;
}

/* Shows the view outbox.lag when a database is known. Returns 69 in any case: the relay is not there. */
static int ask_database(struct cli *c, const char *url, const struct pr_err *why)
{
	struct pr_pg *pg = NULL;
	struct pr_err err = { 0 };
	PGresult *res = NULL;

	if (c->consumer_loaded)
		return silent_consumer(url, why);
	if (!cli_conninfo_given(c))
		return cli_fail(why);
	if (cli_connect_outbox(c, &pg, &err) < 0 || !(res = pr_pg_exec(pg, lag_sql, 0, NULL, &err))) {
		(void)cli_fail(why);
		(void)cli_fail(&err);
	} else if (cli_has(c, "json")) {
		cli_json_free_line(database_json(res, url, why->text));
	} else {
		put_database(res, why->text);
	}
	PQclear(res);
	pr_pg_close(pg);
	return PR_EX_UNAVAILABLE;
}

/* ---- the verb ---- */

static int show_once(struct cli *c, const char *url)
{
	struct health h = { 0 };
	struct pr_err err = { 0 };
	int rc;

	if (ask(c, url, &h, &err) < 0) {
		rc = err.exit == PR_EX_CONFIG ? cli_fail(&err) : ask_database(c, url, &err);
	} else {
		if (cli_has(c, "json"))
			cli_json_free_line(as_json(&h));
		else
			(h.group ? put_consumer_screen : put_screen)(&h);
		rc = h.healthy ? PR_EX_OK : PR_EX_UNHEALTHY;
	}
	cJSON_Delete(h.root);
	return rc;
}

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
	(void)sig;
	stopped = 1;
}

/* On a terminal each screen takes the place of the last one, on the alternate screen, so that what
 * was on the terminal before comes back; the last screen stays. */
static int watch(struct cli *c, const char *url)
{
	const struct sigaction act = { .sa_handler = on_signal };
	int64_t interval = cli_int(c, "interval", PR_SEC);
	int place = cli_tty(stdout) && !cli_has(c, "json"), rc;
	char now[32];

	(void)sigaction(SIGINT, &act, NULL);
	(void)sigaction(SIGTERM, &act, NULL);
	if (place)
		(void)fputs("\033[?1049h\033[?25l", stdout);
	do {
		if (place)
			(void)fputs("\033[H\033[2J", stdout);
		rc = show_once(c, url);
		if (place)
			(void)printf("\n  %s%.19sZ, every %.3g s; Ctrl-C ends%s\n", cli_on(stdout, CLI_DIM),
				pr_rfc3339(pr_wall_us(), now), (double)interval / PR_SEC, cli_off(stdout));
		else if (!cli_has(c, "json"))
			(void)putchar('\n');
	} while (!cli_gone() && !stopped && (poll(NULL, 0, (int)(interval / PR_MS)) == 0 && !stopped));
	if (place) {
		(void)fputs("\033[?25h\033[?1049l", stdout);
		rc = show_once(c, url);
	}
	return rc;
}

int verb_status(struct cli *c)
{
	char *url = cli_url(c);
	int rc;

	if (cli_has(c, "watch"))
		rc = watch(c, url);
	else
		rc = show_once(c, url);
	free(url);
	return rc;
}
