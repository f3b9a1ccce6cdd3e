/* cli/doctor.c -- `postrider doctor`: goes through the table of checks and prints what each says, worst word
 * first in mind: the exit status is that of the worst line. Refuses to call anything well that it could not
 * look at: a server that is away is one failure, and the checks that need it are counted as not made. */
#include "cli/doctor.h"

#include "lib/clock.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

static const struct doctor_check checks[] = {
	{ "server", "Postgres", 0, doctor_server, NULL },
	{ "pooler", "Postgres", DOCTOR_PG, doctor_pooler, NULL },
	{ "clock", "Postgres", DOCTOR_PG, doctor_clock, NULL },
	{ "settings", "Postgres", DOCTOR_PG, NULL, sql_doctor_settings },
	{ "transactions", "Postgres", DOCTOR_PG, doctor_transactions, NULL },
	{ "schema", "Postgres", DOCTOR_PG, doctor_schema, NULL },
	{ "room", "Postgres", DOCTOR_SCHEMA, NULL, sql_doctor_room },
	{ "rights", "Postgres", DOCTOR_SCHEMA, doctor_rights, NULL },
	{ "table", "outbox", DOCTOR_SCHEMA | DOCTOR_RELAY, NULL, sql_doctor_table },
	{ "ranges", "outbox", DOCTOR_SCHEMA | DOCTOR_RELAY, doctor_ranges, NULL },
	{ "rows", "outbox", DOCTOR_SCHEMA | DOCTOR_RELAY, doctor_rows, NULL },
	{ "held", "outbox", DOCTOR_SCHEMA | DOCTOR_RELAY, doctor_held, NULL },
	{ "relay", "outbox", DOCTOR_SCHEMA | DOCTOR_RELAY, doctor_relay, NULL },
	{ "group", "consumer", DOCTOR_SCHEMA | DOCTOR_CONSUMER, doctor_group, NULL },
	{ "librdkafka", "Kafka", 0, doctor_library, NULL },
	{ "brokers", "Kafka", 0, doctor_brokers, NULL },
	{ "broker settings", "Kafka", DOCTOR_KAFKA, doctor_settings, NULL },
	{ "topics", "Kafka", DOCTOR_KAFKA, doctor_topics, NULL },
	{ "transactions", "Kafka", DOCTOR_KAFKA, doctor_hanging, NULL },
	{ "rights", "Kafka", DOCTOR_KAFKA, doctor_acls, NULL },
	{ "positions topic", "Kafka", DOCTOR_KAFKA | DOCTOR_RELAY, doctor_positions, NULL },
	{ "position", "outbox", DOCTOR_SCHEMA | DOCTOR_KAFKA | DOCTOR_RELAY, doctor_position, NULL },
	{ "members", "consumer", DOCTOR_KAFKA | DOCTOR_CONSUMER, doctor_members, NULL },
	{ "lanes", "consumer", DOCTOR_KAFKA | DOCTOR_SCHEMA | DOCTOR_CONSUMER, doctor_lanes, NULL },
	{ "handler", "consumer", DOCTOR_CONSUMER, doctor_handler, NULL },
	{ "program", "program", 0, doctor_program, NULL },
};

static const char *const words[] = { "ok", "warn", "fail" };

void doctor_say(struct doctor *d, enum doctor_word word, const char *fmt, ...)
{
	char text[1200];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	d->lines = pr_realloc(d->lines, sizeof(*d->lines) * (size_t)(d->nlines + 1));
	d->lines[d->nlines++] = (struct doctor_line){ .word = word, .text = pr_strdup(text) };
	d->said[word]++;
}

void doctor_fix(struct doctor *d, const char *fmt, ...)
{
	struct doctor_line *line = &d->lines[d->nlines - 1];
	char text[1200];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	free(line->fix);
	line->fix = pr_strdup(text);
}

void doctor_err(struct doctor *d, enum doctor_word word, const struct pr_err *err)
{
	doctor_say(d, word, "%s", err->text);
	if (*err->hint)
		doctor_fix(d, "%s", err->hint);
}

int doctor_ms(const struct doctor *d)
{
	return (int)(cli_timeout(d->c) / PR_MS);
}

static enum doctor_word word_of(const char *word)
{
	return strcmp(word, "ok") == 0 ? DOCTOR_OK : strcmp(word, "warn") == 0 ? DOCTOR_WARN : DOCTOR_FAIL;
}

/* What we may not look at is a warning: it may be well. Without an answer all that follows is left out. */
static void could_not_ask(struct doctor *d, const struct pr_err *err)
{
	doctor_say(d, pr_pg_ok(d->pg) ? DOCTOR_WARN : DOCTOR_FAIL, "cannot be looked at: %s", err->text);
	if (strcmp(err->code, "42501") == 0)
		doctor_fix(d, "GRANT outbox_operator, inbox_operator TO %s;", cli_login());
	if (!pr_pg_ok(d->pg))
		d->have &= ~(DOCTOR_PG | DOCTOR_SCHEMA);
}

void doctor_ask(struct doctor *d, const char *sql, int n, const char *const *params)
{
	struct pr_err err = { 0 };
	PGresult *res = pr_pg_exec(d->pg, sql, n, params, &err);

	if (!res) {
		could_not_ask(d, &err);
		return;
	}
	for (int i = 0; i < PQntuples(res); i++) {
		doctor_say(d, word_of(PQgetvalue(res, i, 0)), "%s", PQgetvalue(res, i, 1));
		if (cli_cell(res, i, 2))
			doctor_fix(d, "%s", cli_cell(res, i, 2));
	}
	PQclear(res);
}

/* ---------------------------------------------------------------- one line */

static void put_json(const struct doctor_check *check, const struct doctor_line *line)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "check", check->name);
	(void)cJSON_AddStringToObject(o, "where", check->where);
	(void)cJSON_AddStringToObject(o, "state", words[line->word]);
	(void)cJSON_AddStringToObject(o, "text", line->text);
	(void)cJSON_AddItemToObject(o, "fix", line->fix ? cJSON_CreateString(line->fix) : cJSON_CreateNull());
	cli_json_free_line(o);
}

static void put_text(const struct doctor_check *check, const struct doctor_line *line)
{
	static const enum cli_colour colours[] = { CLI_GREEN, CLI_YELLOW, CLI_RED };
	static const char *const shown[] = { "ok", "warn", "FAIL" };
	char *text = pr_asprintf("%s, %s: %s", check->where, check->name, line->text);

	(void)printf("%s%-4s%s", cli_on(stdout, colours[line->word]), shown[line->word], cli_off(stdout));
	cli_text(stdout, text, 4, 6);
	if (line->fix) {
		(void)printf("      %sfix:%s", cli_on(stdout, CLI_BOLD), cli_off(stdout));
		cli_text(stdout, line->fix, 10, 11);
	}
	free(text);
}

/* A check that found nothing to say looked at everything and found nothing wrong. */
static void put(struct doctor *d, const struct doctor_check *check)
{
	if (d->nlines == 0)
		doctor_say(d, DOCTOR_OK, "nothing wrong");
	for (int i = 0; i < d->nlines; i++) {
		if (cli_has(d->c, "json"))
			put_json(check, &d->lines[i]);
		else
			put_text(check, &d->lines[i]);
		free(d->lines[i].text);
		free(d->lines[i].fix);
	}
	d->nlines = 0;
	(void)fflush(stdout);
}

/* ---------------------------------------------------------------- the verb */

static void run_check(struct doctor *d, const struct doctor_check *check)
{
	int kinds = DOCTOR_RELAY | DOCTOR_CONSUMER;

	if (check->needs & kinds & ~d->have)
		return; /* of the other kind of program */
	if (check->needs & ~d->have) {
		d->left_out++;
		return;
	}
	if (check->run)
		check->run(d);
	else
		doctor_ask(d, check->sql, 0, NULL);
	put(d, check);
}

static void conclude(const struct doctor *d)
{
	char n[64];

	if (d->left_out)
		cli_say("%s not made: mend the failures above, and run this again",
			cli_number(d->left_out, "check", n));
	if (!cli_has(d->c, "json"))
		cli_say("%lld ok, %lld warn, %lld FAIL", (long long)d->said[DOCTOR_OK],
			(long long)d->said[DOCTOR_WARN], (long long)d->said[DOCTOR_FAIL]);
}

int verb_doctor(struct cli *c)
{
	struct doctor d = { .c = c, .have = c->consumer_loaded ? DOCTOR_CONSUMER : DOCTOR_RELAY };

	doctor_name_target(&d);
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks) && !cli_gone(); i++)
		run_check(&d, &checks[i]);
	conclude(&d);
	doctor_close_kafka(&d);
	pr_pg_close(d.pg);
	free(d.lines);
	free(d.target);
	free(d.file);
	if (d.said[DOCTOR_FAIL] || (cli_has(c, "strict") && d.said[DOCTOR_WARN]))
		return PR_EX_UNHEALTHY;
	return PR_EX_OK;
}
