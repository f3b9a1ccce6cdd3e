/* cli/trace_look.c -- one event looked up: on its topic, in what the consumer groups keep, in the sagas.
 * Reads one partition from the time of the row on, never the whole topic; shows no payload. */
#include "cli/trace.h"

#include "lib/clock.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

#define SKEW_US (300 * PR_SEC) /* clocks of database and relay may differ by so much */

/* The record with this id in its header. */
struct search {
	struct trace *t;
};

static int is_it(const rd_kafka_message_t *m, const char *id)
{
	rd_kafka_headers_t *headers;
	const void *value;
	size_t n;

	return rd_kafka_message_headers(m, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR &&
	       rd_kafka_header_get_last(headers, "id", &value, &n) == RD_KAFKA_RESP_ERR_NO_ERROR && value &&
	       n == strlen(id) && memcmp(value, id, n) == 0;
}

static int on_record(void *ctx, const rd_kafka_message_t *m)
{
	struct search *s = ctx;

	if (!is_it(m, s->t->id))
		return 0;
	s->t->partition = m->partition;
	s->t->offset = m->offset;
	s->t->time_ms = rd_kafka_message_timestamp(m, NULL);
	return 1;
}

/* The one partition that the key goes to, unless the row names another. */
static int32_t partition_of(const struct trace *t, int partitions)
{
	if (t->partition >= 0)
		return t->partition;
	return rd_kafka_msg_partitioner_murmur2(NULL, t->key, strlen(t->key), partitions, NULL, NULL);
}

static int search(struct cli *c, struct trace *t, const struct cli_topic *topic, struct pr_err *err)
{
	int64_t *from = pr_calloc((size_t)topic->partitions, sizeof(*from));
	struct search s = { .t = t };
	int32_t p = partition_of(t, topic->partitions);
	int rc = cli_topic_at(c, topic, t->created_us - SKEW_US, from, err);

	for (int i = 0; rc == 0 && i < topic->partitions; i++)
		if (i != p)
			from[i] = topic->hi[i];
	if (rc == 0)
		rc = cli_topic_read(c, topic, from, topic->hi, on_record, &s, err);
	free(from);
	return rc;
}

void trace_record(struct cli *c, struct trace *t)
{
	struct cli_topic topic = { 0 };
	struct pr_err err = { 0 };

	if (!cli_brokers(c))
		(void)snprintf(t->why, sizeof(t->why), "no brokers are known: give -c or --brokers");
	else if (!t->topic || cli_topic_open(c, t->topic, &topic, &err) < 0 || search(c, t, &topic, &err) < 0)
		(void)snprintf(
			t->why, sizeof(t->why), "%.280s", t->topic ? err.text : "its topic is not known");
	cli_topic_close(&topic);
}

/* ---------------------------------------------------------------- databases */

static cJSON *row(struct pr_pg *pg, const PGresult *res, int i)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "database", PQdb(pr_pg_conn(pg)));
	for (int k = 0; k < PQnfields(res); k++) {
		const char *name = PQfname(res, k);
		int number = strcmp(name, "attempts") == 0 || strcmp(name, "version") == 0 ||
			     strcmp(name, "dead_letter") == 0 || strcmp(name, "partition") == 0;

		if (strcmp(name, "message_offset") == 0)
			cli_json_cell(o, "offset", res, i, k, 1);
		else
			cli_json_cell(o, name, res, i, k, number);
	}
	return o;
}

int trace_groups(struct pr_pg *pg, struct trace *t, cJSON *list, struct pr_err *err)
{
	char partition[16], offset[24];
	const char *params[4] = { t->id, t->topic, t->offset < 0 ? NULL : partition,
		t->offset < 0 ? NULL : offset };
	PGresult *res;

	(void)snprintf(partition, sizeof(partition), "%d", (int)t->partition);
	(void)snprintf(offset, sizeof(offset), "%lld", (long long)t->offset);
	res = pr_pg_exec(pg, sql_trace_groups, 4, params, err);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		(void)cJSON_AddItemToArray(list, row(pg, res, i));
	PQclear(res);
	return 0;
}

int trace_saga(struct pr_pg *pg, const char *id, cJSON *list, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql_trace_saga, 1, &id, err);

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++) {
		cJSON *o = row(pg, res, i);

		(void)cJSON_AddStringToObject(o, "id", id);
		(void)cJSON_AddItemToArray(list, o);
	}
	PQclear(res);
	return 0;
}
