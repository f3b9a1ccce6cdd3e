/* cli/topic.c -- a topic read by a person: its bounds, its offsets by time, and a pass over
 * a range of it. Joins no group and commits nothing. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/kafka.h"

#include <stdlib.h>
#include <string.h>

static int timeout_ms(const struct cli *c)
{
	return (int)(cli_timeout(c) / PR_MS);
}

rd_kafka_t *cli_reader(struct cli *c, const char *reset, const char *wait_ms, struct pr_err *err)
{
	const struct pr_kafka_prop ours[] = {
		{ "group.id", "postrider.cli" }, /* required by the library, never joined */
		{ "isolation.level", "read_committed" },
		{ "enable.auto.commit", "false" },
		{ "enable.auto.offset.store", "false" },
		{ "enable.partition.eof", "true" },
		{ "auto.offset.reset", reset },
		{ "fetch.wait.max.ms", wait_ms },
		{ "queued.max.messages.kbytes", "16384" },
		{ "allow.auto.create.topics", "false" },
		{ NULL, NULL },
	};

	if (!cli_brokers(c)) {
		(void)cli_usage(err, "which Kafka? give --brokers, or -c");
		return NULL;
	}
	return cli_kafka(c, RD_KAFKA_CONSUMER, ours, err);
}

static int read_bounds(const struct cli *c, struct cli_topic *t, struct pr_err *err)
{
	t->lo = pr_calloc((size_t)t->partitions, sizeof(*t->lo));
	t->hi = pr_calloc((size_t)t->partitions, sizeof(*t->hi));
	for (int i = 0; i < t->partitions; i++) {
		rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(
			t->rk, t->name, i, &t->lo[i], &t->hi[i], timeout_ms(c));

		if (code)
			return pr_kafka_fail(err, code, t->name);
	}
	return 0;
}

int cli_topic_open(struct cli *c, const char *name, struct cli_topic *t, struct pr_err *err)
{
	struct pr_topic_info info = { 0 };

	*t = (struct cli_topic){ .name = name };
	t->rk = cli_reader(c, "error", "10", err);
	if (!t->rk)
		return -1;
	if (pr_kafka_topic_info(t->rk, name, timeout_ms(c), &info, err) < 0)
		goto failed;
	if (!info.exists) {
		(void)pr_fail(err, PR_REJECT, "there is no topic \"%s\"", name);
		err->exit = PR_EX_NOT_FOUND;
		goto failed;
	}
	t->partitions = info.partitions;
	if (read_bounds(c, t, err) == 0)
		return 0;
failed:
	cli_topic_close(t);
	return -1;
}

void cli_topic_close(struct cli_topic *t)
{
	if (t->rk)
		rd_kafka_destroy(t->rk);
	free(t->lo);
	free(t->hi);
	*t = (struct cli_topic){ 0 };
}

int cli_topic_names(struct cli *c, void (*each)(void *ctx, const char *name), void *ctx, struct pr_err *err)
{
	const struct rd_kafka_metadata *md = NULL;
	rd_kafka_t *rk = cli_reader(c, "error", "10", err);
	rd_kafka_resp_err_t code;
	int rc = 0;

	if (!rk)
		return -1;
	code = rd_kafka_metadata(rk, 1, NULL, &md, timeout_ms(c));
	if (code)
		rc = pr_kafka_fail(err, code, "cannot list the topics");
	for (int i = 0; rc == 0 && i < md->topic_cnt; i++)
		if (pr_kafka_topic_valid(md->topics[i].topic, strlen(md->topics[i].topic)))
			each(ctx, md->topics[i].topic);
	if (md)
		rd_kafka_metadata_destroy(md);
	rd_kafka_destroy(rk);
	return rc;
}

/* Whether the relay may write to a topic of that name: its route, with anything for ${aggregatetype}. */
static int is_routed(const struct cli *c, const char *name)
{
	const char *route = c->loaded ? c->conf.route.topic : "outbox.event.${aggregatetype}";
	const char *var = strstr(route, "${"), *rest = var ? strchr(var, '}') + 1 : "";
	size_t n = strlen(name), before = var ? (size_t)(var - route) : 0, after = strlen(rest);

	if (!var)
		return strcmp(route, name) == 0;
	return n > before + after && strncmp(name, route, before) == 0 && strcmp(name + n - after, rest) == 0;
}

int cli_is_topic_of(const struct cli *c, const char *name)
{
	if (!pr_kafka_topic_valid(name, strlen(name)))
		return 0;
	return c->consumer_loaded ? pr_consumer_reads(&c->consumer.kafka.topics, name) : is_routed(c, name);
}

int cli_topic_end(
	const struct cli *c, const struct cli_topic *t, int partition, int64_t *ret, struct pr_err *err)
{
	int64_t lo;
	rd_kafka_resp_err_t code =
		rd_kafka_query_watermark_offsets(t->rk, t->name, partition, &lo, ret, timeout_ms(c));

	return code ? pr_kafka_fail(err, code, t->name) : 0;
}

/* The first offset of each partition whose record is not older than the time; the end when there is none. */
int cli_topic_at(
	const struct cli *c, const struct cli_topic *t, int64_t wall_us, int64_t *ret, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(t->partitions);
	rd_kafka_resp_err_t code;
	int rc = 0;

	for (int i = 0; i < t->partitions; i++)
		rd_kafka_topic_partition_list_add(list, t->name, i)->offset = wall_us / 1000;
	code = rd_kafka_offsets_for_times(t->rk, list, timeout_ms(c));
	for (int i = 0; i < t->partitions && !code; i++) {
		const rd_kafka_topic_partition_t *p = rd_kafka_topic_partition_list_find(list, t->name, i);

		code = p->err;
		ret[i] = p->offset < 0 || p->offset > t->hi[i] ? t->hi[i] : p->offset;
	}
	if (code)
		rc = pr_kafka_fail(err, code, t->name);
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}

/* Partitions with something to read; 0: none. */
static int assign(const struct cli_topic *t, const int64_t *from, const int64_t *to, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(t->partitions);
	int n = 0;

	for (int i = 0; i < t->partitions; i++)
		if (from[i] < to[i]) {
			rd_kafka_topic_partition_list_add(list, t->name, i)->offset = from[i];
			n++;
		}
	if (n && rd_kafka_assign(t->rk, list))
		n = pr_fail(err, PR_RETRY, "cannot read topic \"%s\"", t->name);
	rd_kafka_topic_partition_list_destroy(list);
	return n;
}

/* A record, or the end of a partition. Returns 1 when its partition has come to its end, -1 on error. */
static int take(const struct cli_topic *t, const rd_kafka_message_t *m, const int64_t *to, char *ended,
	int (*each)(void *ctx, const rd_kafka_message_t *m), void *ctx, struct pr_err *err)
{
	int eof = m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF;

	if (m->err && !eof)
		return pr_kafka_kind(m->err) == PR_RETRY ? 0 : pr_kafka_fail(err, m->err, t->name);
	if (m->partition < 0 || m->partition >= t->partitions || ended[m->partition])
		return 0;
	if (!eof && m->offset < to[m->partition] && each(ctx, m) != 0)
		return 2;
	if (m->offset + !eof < to[m->partition])
		return 0;
	ended[m->partition] = 1;
	return 1;
}

int cli_topic_read(const struct cli *c, const struct cli_topic *t, const int64_t *from, const int64_t *to,
	int (*each)(void *ctx, const rd_kafka_message_t *m), void *ctx, struct pr_err *err)
{
	int open = assign(t, from, to, err), rc = open < 0 ? -1 : 0;
	int64_t give_up = pr_mono_us() + cli_timeout(c);
	char *ended = pr_calloc((size_t)t->partitions + 1, 1);

	/* The end of one that was read before may still arrive. */
	for (int i = 0; i < t->partitions; i++)
		ended[i] = from[i] >= to[i];
	while (rc == 0 && open > 0) {
		rd_kafka_message_t *m = rd_kafka_consumer_poll(t->rk, 100);
		int what = 0;

		if (m) {
			what = take(t, m, to, ended, each, ctx, err);
			if (!m->err)
				give_up = pr_mono_us() + cli_timeout(c);
			rd_kafka_message_destroy(m);
		} else if (pr_mono_us() > give_up) {
			what = pr_fail(err, PR_RETRY, "topic \"%s\" does not go on: no record for %lld s",
				t->name, (long long)(cli_timeout(c) / PR_SEC));
		}
		open -= what == 1;
		if (what == 2)
			break;
		rc = what < 0 ? -1 : 0;
	}
	free(ended);
	return rc;
}
