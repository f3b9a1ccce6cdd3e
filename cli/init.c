/* cli/init.c -- `postrider init`: schema, first partitions, position topic, in this order:
 * each step may be repeated, so a run that broke off is repaired by the next one. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/migrate.h"
#include "lib/position.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct done {
	int migrations, topic_created;
	int64_t partitions_made, partitions, version;
	char *database, *topic;
	struct pr_schema_edit *edits; /* n_edits of them */
	int n_edits;
};

/* The function gives up after 50 ms rather than make a writer wait (55P03): asked again until the timeout. */
static int make_partitions(struct cli *c, struct pr_pg *pg, struct done *d, struct pr_err *err)
{
	int64_t deadline = pr_mono_us() + cli_timeout(c);
	char events[24] = "5000000", ahead[24] = "16";
	const char *params[2] = { events, ahead };
	PGresult *res;

	if (c->loaded) {
		(void)snprintf(events, sizeof(events), "%lld", (long long)c->conf.retention.partition_events);
		(void)snprintf(ahead, sizeof(ahead), "%lld", (long long)c->conf.retention.ahead);
	}
	for (;;) {
		res = pr_pg_exec(
			pg, "SELECT outbox.make_partitions($1::bigint, $2::integer)", 2, params, err);
		if (res || strcmp(err->code, "55P03") != 0 || pr_mono_us() > deadline)
			break;
		(void)poll(NULL, 0, 100);
	}
	if (!res)
		return pr_wrap(err, "could not make the first partitions");
	d->partitions_made = cli_cell_int(res, 0, 0);
	PQclear(res);
	return 0;
}

static int look(struct pr_pg *pg, struct done *d, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg,
		"SELECT current_database(), (SELECT max(number) FROM outbox.schema_version), "
		"(SELECT count(*) FROM outbox.partitions)",
		0, NULL, err);

	if (!res)
		return -1;
	d->database = pr_strdup(PQgetvalue(res, 0, 0));
	d->version = cli_cell_int(res, 0, 1);
	d->partitions = cli_cell_int(res, 0, 2);
	PQclear(res);
	return pr_schema_edited(pg, &d->edits, &d->n_edits, err);
}

static int install(struct cli *c, struct done *d, struct pr_err *err)
{
	struct pr_pg *pg = NULL;
	int rc = -1;

	if (cli_connect(c, &pg, err) == 0 && pr_migrate(pg, &d->migrations, err) == 0 &&
		make_partitions(c, pg, d, err) == 0 && look(pg, d, err) == 0)
		rc = 0;
	else if (strcmp(err->code, "42501") == 0 && !err->hint[0])
		(void)pr_hint(err, "init is for the owner of the schemas, or who may make them and roles");
	pr_pg_close(pg);
	return rc;
}

static int make_topic(struct cli *c, struct done *d, struct pr_err *err)
{
	rd_kafka_t *rk = cli_kafka(c, RD_KAFKA_PRODUCER, NULL, err);
	int rc;

	if (!rk)
		return -1;
	rc = pr_position_topic_make(rk, cli_name(c), (int)(cli_timeout(c) / PR_MS), &d->topic_created, err);
	if (rc == 0)
		d->topic = pr_position_topic(cli_name(c));
	rd_kafka_destroy(rk);
	return rc;
}

static void report_json(const struct done *d)
{
	cJSON *o = cJSON_CreateObject(), *edits;

	(void)cJSON_AddStringToObject(o, "database", d->database);
	cli_json_int(o, "migrations", d->migrations);
	cli_json_int(o, "schema_version", d->version);
	cli_json_int(o, "partitions", d->partitions);
	edits = cJSON_AddArrayToObject(o, "edited");
	for (int i = 0; i < d->n_edits; i++) {
		const struct pr_schema_edit *e = &d->edits[i];
		cJSON *edit = cJSON_CreateObject();

		(void)cJSON_AddStringToObject(edit, "migration", e->name);
		(void)cJSON_AddStringToObject(edit, "applied_at", e->applied_at);
		(void)cJSON_AddItemToObject(
			edit, "sha256", *e->theirs ? cJSON_CreateString(e->theirs) : cJSON_CreateNull());
		(void)cJSON_AddStringToObject(edit, "this_program", e->ours);
		(void)cJSON_AddItemToArray(edits, edit);
	}
	(void)cJSON_AddItemToObject(o, "topic", d->topic ? cJSON_CreateString(d->topic) : cJSON_CreateNull());
	(void)cJSON_AddBoolToObject(o, "topic_created", d->topic_created);
	cli_json_free_line(o);
}

/* Nothing is refused for it: it may be a comment that differs. But who meets a fault should know. */
static void tell_edits(const struct done *d)
{
	for (int i = 0; i < d->n_edits; i++) {
		const struct pr_schema_edit *e = &d->edits[i];

		if (*e->theirs)
			cli_say("note: %s was applied at %s from another text than this program's (sha256 "
				"%.12s..., here %.12s...)",
				e->name, e->applied_at, e->theirs, e->ours);
		else
			cli_say("note: %s was applied at %s by a program that kept no sum of its text",
				e->name, e->applied_at);
	}
	if (d->n_edits == 0)
		return;
	cli_hint("use the release that made the schema; or make the database anew; or compare it with "
		 "`postrider init --print`, apply by hand what differs, and say so:");
	for (int i = 0; i < d->n_edits; i++)
		(void)fprintf(stderr, "  UPDATE outbox.schema_version SET sha256 = '%s' WHERE number = %d;\n",
			d->edits[i].ours, d->edits[i].number);
}

static void report(const struct cli *c, const struct done *d)
{
	char *database = cli_safe_str(d->database), n[64];

	if (cli_has(c, "json")) {
		report_json(d);
	} else {
		(void)printf("database %s: schemas outbox, inbox and saga are %s (version %lld, %s ready)\n",
			database,
			d->migrations == 0            ? "up to date"
			: d->version == d->migrations ? "installed"
						      : "upgraded",
			(long long)d->version, cli_number(d->partitions, "partition", n));
		if (d->topic)
			(void)printf(
				"Kafka: topic %s %s\n", d->topic, d->topic_created ? "created" : "is there");
	}
	tell_edits(d);
	if (!d->topic)
		cli_say("no position topic was made; before a relay starts: postrider init -c relay.cfg "
			"(or --brokers and --name)");
	free(database);
}

int verb_init(struct cli *c)
{
	struct done d = { 0 };
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;

	if (cli_has(c, "print")) {
		pr_migrate_print(stdout);
		return PR_EX_OK;
	}
	if (cli_has(c, "brokers") && !cli_name(c))
		rc = cli_usage(&err, "--brokers needs --name: the position topic is called after it");
	else if (cli_name(c) && !cli_brokers(c))
		rc = cli_usage(&err, "--name needs --brokers");
	if (rc < 0) {
		rc = cli_failed(c, &err);
	} else if (install(c, &d, &err) < 0) {
		rc = cli_fail(&err);
	} else if (cli_name(c) && make_topic(c, &d, &err) < 0) {
		cli_say("the database is ready; the position topic is not: run this again");
		rc = cli_fail(&err);
	} else {
		report(c, &d);
	}
	free(d.database);
	free(d.topic);
	free(d.edits);
	return rc;
}
