/* cli/doctor_consumer.c -- the checks of a consumer group: who is in it, whether records were lost to
 * retention, what its handler needs. Joins nothing, calls no handler: of one behind a URL it is
 * seen whether somebody listens there. */
#include "cli/doctor.h"
#include "lib/saga_def.h"
#include "sql.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int partitions_of(const struct doctor *d)
{
	int n = 0;

	for (int i = 0; i < d->ntopics; i++)
		n += d->topics[i].md->partition_cnt;
	return n;
}

static void say_members(struct doctor *d, const struct rd_kafka_group_info *group)
{
	int n = group->member_cnt, partitions = partitions_of(d);
	char a[64], b[64];

	if (n == 0) {
		doctor_say(d, DOCTOR_WARN, "nobody is in the group: nothing is handled");
		doctor_fix(d, "postrider-consumer %s", d->target);
		return;
	}
	doctor_say(d, strcmp(group->state, "Stable") == 0 ? DOCTOR_OK : DOCTOR_WARN, "%s, state %s, for %s",
		cli_number(n, "member", a), group->state, cli_number(partitions, "partition", b));
	if (n > partitions) {
		doctor_say(d, DOCTOR_WARN,
			"%d of the members have nothing to do: there are more of them than partitions",
			n - partitions);
		doctor_fix(d, "fewer members, more partitions, or more lanes in each: postrider lanes 8 %s",
			d->target);
	}
}

void doctor_members(struct doctor *d)
{
	const struct rd_kafka_group_list *list = NULL;
	rd_kafka_resp_err_t code = rd_kafka_list_groups(d->rk, cli_group(d->c), &list, doctor_ms(d));
	const struct rd_kafka_group_info none = { .member_cnt = 0 };

	if (code)
		doctor_say(d, DOCTOR_WARN, "the brokers do not tell who is in the group: %s",
			rd_kafka_err2str(code));
	else
		say_members(d, list->group_cnt ? &list->groups[0] : &none);
	if (list)
		rd_kafka_group_list_destroy(list);
}

/* ---------------------------------------------------------------- where it stands */

static const struct doctor_topic *find(const struct doctor *d, const char *name)
{
	for (int i = 0; i < d->ntopics; i++)
		if (strcmp(d->topics[i].name, name) == 0)
			return &d->topics[i];
	return NULL;
}

static void judge_place(struct doctor *d, const char *name, int64_t partition, int64_t next)
{
	const struct doctor_topic *t = find(d, name);
	int64_t *first, lost = 0;
	char n[64];

	if (!t || partition >= t->md->partition_cnt) {
		doctor_say(d, DOCTOR_WARN,
			"the group stands on partition %lld of %s, which is not there (any more)",
			(long long)partition, name);
		doctor_fix(d, "was the topic made anew? its offsets begin again: postrider show consumers %s",
			d->target);
		return;
	}
	first = pr_calloc((size_t)t->md->partition_cnt, sizeof(*first));
	if (doctor_ends(d, d->rk, t, RD_KAFKA_OFFSET_BEGINNING, first) < 0 || first[partition] < 0)
		doctor_say(d, DOCTOR_WARN, "Kafka does not tell where partition %lld of %s begins",
			(long long)partition, name);
	else
		lost = next >= 0 ? first[partition] - next : 0;
	free(first);
	if (lost <= 0)
		return;
	doctor_say(d, DOCTOR_FAIL, "%s of partition %lld of %s went by retention before they were handled",
		cli_number(lost, "record", n), (long long)partition, name);
	doctor_fix(d, "they are in the outbox for retention.keep: postrider replay; on_gap = \"skip\" goes "
		      "on without");
}

void doctor_lanes(struct doctor *d)
{
	const char *group = cli_group(d->c);
	struct pr_err err = { 0 };
	PGresult *res = pr_pg_exec(d->pg, sql_doctor_lanes, 1, &group, &err);
	int64_t lanes = 0;
	char n[64];

	if (!res) {
		doctor_err(d, DOCTOR_WARN, &err);
		return;
	}
	for (int i = 0; i < PQntuples(res); i++) {
		judge_place(d, cli_cell(res, i, 0), cli_cell_int(res, i, 1), cli_cell_int(res, i, 3));
		lanes += cli_cell_int(res, i, 2);
	}
	doctor_say(d, DOCTOR_OK, "%s in use on %d of %d partitions", cli_number(lanes, "lane", n),
		PQntuples(res), partitions_of(d));
	PQclear(res);
}

/* ---------------------------------------------------------------- the handler */

static void judge_function(struct doctor *d, const char *name)
{
	const char *params[2] = { name, cli_login() };

	if (d->have & DOCTOR_SCHEMA)
		doctor_ask(d, sql_doctor_function, 2, params);
}

static int in_path(const char *program)
{
	const char *path = getenv("PATH");
	int found = 0;

	for (const char *at = path ? path : ""; !found && *at; at += strcspn(at, ":"), at += *at == ':') {
		char *file = pr_asprintf("%.*s/%s", (int)strcspn(at, ":"), at, program);

		found = access(file, X_OK) == 0;
		free(file);
	}
	return found;
}

static void judge_file(struct doctor *d, const char *file, int mode, const char *what)
{
	struct stat st;

	if (stat(file, &st) == 0 && S_ISDIR(st.st_mode)) {
		doctor_say(d, DOCTOR_FAIL, "%s %s is a directory", what, file);
		doctor_fix(d, "correct handler.%s", mode == X_OK ? "command" : "library");
		return;
	}
	if ((mode == X_OK && !strchr(file, '/')) ? in_path(file) : access(file, mode) == 0) {
		doctor_say(d, DOCTOR_OK, "%s %s is there", what, file);
		return;
	}
	doctor_say(
		d, DOCTOR_FAIL, "%s %s: %s", what, file, strchr(file, '/') ? strerror(errno) : "not in PATH");
	doctor_fix(d, "ls -l %s, as the user who runs the consumer", file);
}

static void judge_directory(struct doctor *d, const char *directory)
{
	struct statvfs fs;
	struct stat st;

	if (stat(directory, &st) < 0 || !S_ISDIR(st.st_mode)) {
		doctor_say(d, DOCTOR_FAIL, "the directory %s is not there", directory);
		doctor_fix(d, "mount it, or: install -d -o USER %s", directory);
	} else if (access(directory, W_OK | X_OK) < 0) {
		doctor_say(d, DOCTOR_FAIL, "the directory %s cannot be written to: %s", directory,
			strerror(errno));
		doctor_fix(d, "chown USER %s, or mount it for writing", directory);
	} else if (statvfs(directory, &fs) == 0 && fs.f_bavail < fs.f_blocks / 20) {
		doctor_say(d, DOCTOR_WARN, "the disk of %s is more than 95 %% full", directory);
		doctor_fix(d, "df -h %s", directory);
	} else {
		doctor_say(d, DOCTOR_OK, "the directory %s can be written to", directory);
	}
}

static void judge_definitions(struct doctor *d, const struct pr_strs *patterns)
{
	struct saga_defs defs = { 0 };
	struct pr_err err = { 0 };

	if (saga_defs_load(patterns, &defs, &err) < 0) {
		doctor_err(d, DOCTOR_FAIL, &err);
		return;
	}
	doctor_say(d, DOCTOR_OK, "%zu saga definitions are right", (size_t)defs.n);
	saga_defs_free(&defs);
}

/* Connects as the consumer does, and sends nothing. */
static CURLcode knock(const struct doctor *d, const char *url)
{
	CURL *c = curl_easy_init();
	CURLcode code = CURLE_OUT_OF_MEMORY;

	if (c && curl_easy_setopt(c, CURLOPT_URL, url) == CURLE_OK &&
		curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK &&
		curl_easy_setopt(c, CURLOPT_PROXY, "") == CURLE_OK &&
		curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
		curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)doctor_ms(d)) == CURLE_OK &&
		curl_easy_setopt(c, CURLOPT_CONNECT_ONLY, 1L) == CURLE_OK)
		code = curl_easy_perform(c);
	curl_easy_cleanup(c);
	return code;
}

static void judge_url(struct doctor *d, const char *url, const char *option)
{
	const char *host = strstr(url, "://");
	/* What follows the host may be a secret. */
	size_t n = host ? (size_t)(host + 3 - url) + strcspn(host + 3, "/?#") : 0;
	char *address = pr_asprintf("%.*s", (int)n, url);
	CURLcode code = knock(d, url);

	if (code == CURLE_OK) {
		doctor_say(d, DOCTOR_OK, "somebody listens at %s; no message was tried", address);
	} else {
		doctor_say(d, DOCTOR_FAIL, "%s at %s",
			code == CURLE_COULDNT_CONNECT      ? "nothing listens"
			: code == CURLE_OPERATION_TIMEDOUT ? "no connection in time"
							   : curl_easy_strerror(code),
			address);
		doctor_fix(d, "start what is there, or correct %s", option);
	}
	free(address);
}

static void judge_sink(struct doctor *d, const struct pr_sink_conf *sink)
{
	switch (pr_sink_target_of(sink)) {
	case PR_SINK_FILES:
		judge_directory(d, sink->files.directory);
		break;
	case PR_SINK_HTTP:
		judge_url(d, sink->http.url, "handler.http.url");
		break;
	case PR_SINK_S3:
		judge_url(d, sink->s3.endpoint, "handler.s3.endpoint");
		break;
	case PR_SINK_TABLE:
	case PR_SINK_NONE:
		doctor_say(d, DOCTOR_OK, "the table is not looked at: the consumer does when it starts");
		break;
	}
}

void doctor_handler(struct doctor *d)
{
	const struct pr_consumer_conf *conf = &d->c->consumer;

	switch ((enum pr_handler_kind)conf->handler.kind) {
	case PR_HANDLER_SQL:
		judge_function(d, conf->handler.function);
		break;
	case PR_HANDLER_C:
		judge_file(d, conf->handler.library, R_OK, "library");
		break;
	case PR_HANDLER_EXEC:
		judge_file(d, conf->handler.command.v[0], X_OK, "program");
		break;
	case PR_HANDLER_SAGA:
		judge_definitions(d, &conf->handler.definitions);
		break;
	case PR_HANDLER_SINK:
		judge_sink(d, &conf->sink);
		break;
	case PR_HANDLER_HTTP:
		judge_url(d, conf->handler.url, "handler.url");
		break;
	case PR_HANDLER_PUSH:
		if (conf->alerts.url)
			judge_url(d, conf->alerts.url, "alerts.url");
		break;
	case PR_HANDLER_SCHEDULER:
	case PR_HANDLER_CANARY:
		break;
	}
}
