/* cli/doctor_kafka.c -- the checks of the brokers: who they are, what their settings and our topics' settings
 * cost, transactions that hang. Asks for metadata, settings and offsets; reads one record of a partition
 * whose transaction seems to hang. Refuses to fence: whether the relay's own id is, only the relay can tell.
 */
#include "cli/doctor.h"
#include "lib/clock.h"
#include "lib/position.h"

#include <stdlib.h>
#include <string.h>

#define MOST_NAMES   5  /* topics named in one line */
#define MOST_HANGING 20 /* partitions of which the transaction's age is looked up */

/* ---------------------------------------------------------------- client library and brokers */

/* Known of versions of librdkafka, from its changelog. */
static const struct {
	int before;
	const char *what;
} traps[] = {
	{ 0x02030000, "after a lost answer the idempotent producer fails for good (librdkafka 4438): the "
		      "relay makes "
		      "a new one and goes on, at the cost of some seconds" },
	{ 0x02060100, "members with kafka.assignment = \"sticky\" may never agree who reads what: \"auto\" "
		      "avoids it" },
};

void doctor_library(struct doctor *d)
{
	int version = rd_kafka_version(), n = 0;

	for (size_t i = 0; i < sizeof(traps) / sizeof(*traps); i++)
		if (version < traps[i].before && n++ == 0) {
			doctor_say(
				d, DOCTOR_WARN, "librdkafka %s: %s", rd_kafka_version_str(), traps[i].what);
			doctor_fix(d,
				"librdkafka %d.%d.%d or newer, where the system has it; what is here is "
				"lived with",
				traps[i].before >> 24, traps[i].before >> 16 & 0xff,
				traps[i].before >> 8 & 0xff);
		}
	if (n == 0)
		doctor_say(d, DOCTOR_OK, "librdkafka %s", rd_kafka_version_str());
}

static rd_kafka_t *reader(struct doctor *d, const char *isolation, struct pr_err *err)
{
	const struct pr_kafka_prop ours[] = {
		{ "group.id", "postrider.doctor" }, /* required by the library, never joined */
		{ "isolation.level", isolation },
		{ "enable.auto.commit", "false" },
		{ "auto.offset.reset", "earliest" },
		{ "fetch.wait.max.ms", "10" },
		{ "allow.auto.create.topics", "false" },
		{ NULL, NULL },
	};

	return cli_kafka(d->c, RD_KAFKA_CONSUMER, ours, err);
}

static void keep_topics(struct doctor *d)
{
	d->topics = pr_calloc((size_t)d->md->topic_cnt + 1, sizeof(*d->topics));
	for (int i = 0; i < d->md->topic_cnt; i++)
		if (cli_is_topic_of(d->c, d->md->topics[i].topic))
			d->topics[d->ntopics++] = (struct doctor_topic){ .name = d->md->topics[i].topic,
				.md = &d->md->topics[i],
				.max_message_bytes = -1,
				.retention_ms = -1,
				.min_insync = -1 };
}

static void say_away(struct doctor *d, const char *why)
{
	char last[256];

	pr_kafka_last_words(last, sizeof(last));
	doctor_say(d, DOCTOR_FAIL, "no broker answers at %s: %s", cli_brokers(d->c), *last ? last : why);
	doctor_fix(d,
		"are the brokers up, and is kafka.brokers right? kafka-broker-api-versions.sh "
		"--bootstrap-server %s",
		cli_brokers(d->c));
}

void doctor_brokers(struct doctor *d)
{
	struct pr_err err = { 0 };
	rd_kafka_resp_err_t code;
	char n[64];

	if (!cli_brokers(d->c)) {
		doctor_say(d, DOCTOR_OK, "not asked: no brokers are known (-c or --brokers)");
		return;
	}
	d->rk = reader(d, "read_committed", &err);
	if (!d->rk) {
		doctor_err(d, DOCTOR_FAIL, &err);
		return;
	}
	code = rd_kafka_metadata(d->rk, 1, NULL, &d->md, doctor_ms(d));
	if (code) {
		say_away(d, rd_kafka_err2str(code));
		return;
	}
	d->have |= DOCTOR_KAFKA;
	keep_topics(d);
	doctor_say(d, DOCTOR_OK, "%s at %s", cli_number(d->md->broker_cnt, "broker", n), cli_brokers(d->c));
	if (d->md->broker_cnt > 1)
		return;
	doctor_say(d, DOCTOR_WARN,
		"one broker: while it is away nothing is published, and what it loses is lost");
	doctor_fix(d, "three brokers or more, replication factor 3, min.insync.replicas 2");
}

void doctor_close_kafka(struct doctor *d)
{
	free(d->topics);
	if (d->md)
		rd_kafka_metadata_destroy(d->md);
	if (d->rk)
		rd_kafka_destroy(d->rk);
}

/* ---------------------------------------------------------------- settings, of brokers and topics */

static rd_kafka_event_t *wait_admin(
	struct doctor *d, rd_kafka_queue_t *queue, rd_kafka_AdminOptions_t *options, struct pr_err *err)
{
	rd_kafka_event_t *event = rd_kafka_queue_poll(queue, doctor_ms(d) + 1000);

	rd_kafka_AdminOptions_destroy(options);
	if (!event) {
		(void)pr_fail(err, PR_RETRY, "no answer within %d ms", doctor_ms(d));
	} else if (rd_kafka_event_error(event)) {
		(void)pr_fail(err, PR_RETRY, "%s", rd_kafka_event_error_string(event));
		rd_kafka_event_destroy(event);
		event = NULL;
	}
	return event;
}

static rd_kafka_AdminOptions_t *options(struct doctor *d, rd_kafka_admin_op_t op)
{
	rd_kafka_AdminOptions_t *o = rd_kafka_AdminOptions_new(d->rk, op);
	char why[128];

	(void)rd_kafka_AdminOptions_set_request_timeout(o, doctor_ms(d), why, sizeof(why));
	return o;
}

/* each is called for every setting of every resource that could be described; -1 when one could not: what
 * was not seen is not well. */
static int describe(struct doctor *d, rd_kafka_ConfigResource_t **want, size_t n,
	void (*each)(struct doctor *d, const char *resource, const char *name, const char *value),
	struct pr_err *err)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_new(d->rk);
	rd_kafka_AdminOptions_t *o = options(d, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
	const rd_kafka_ConfigResource_t **got;
	rd_kafka_event_t *event;
	size_t ngot = 0, nentries;
	int rc;

	rd_kafka_DescribeConfigs(d->rk, want, n, o, queue);
	event = wait_admin(d, queue, o, err);
	rc = event ? 0 : -1;
	got = event ? rd_kafka_DescribeConfigs_result_resources(
			      rd_kafka_event_DescribeConfigs_result(event), &ngot)
		    : NULL;
	for (size_t i = 0; i < ngot; i++) {
		const rd_kafka_ConfigEntry_t **entries = rd_kafka_ConfigResource_configs(got[i], &nentries);
		rd_kafka_resp_err_t code = rd_kafka_ConfigResource_error(got[i]);

		if (code)
			rc = pr_fail(err, PR_STOP, "%s: %s", rd_kafka_ConfigResource_name(got[i]),
				rd_kafka_err2str(code));
		for (size_t k = 0; !code && k < nentries; k++)
			if (rd_kafka_ConfigEntry_value(entries[k]))
				each(d, rd_kafka_ConfigResource_name(got[i]),
					rd_kafka_ConfigEntry_name(entries[k]),
					rd_kafka_ConfigEntry_value(entries[k]));
	}
	if (event)
		rd_kafka_event_destroy(event);
	rd_kafka_queue_destroy(queue);
	rd_kafka_ConfigResource_destroy_array(want, n);
	return rc;
}

static void say_describe(struct doctor *d, const char *what)
{
	doctor_fix(d,
		"if it is a right that lacks: kafka-acls.sh --bootstrap-server %s --add --allow-principal "
		"User:... --operation DescribeConfigs %s",
		cli_brokers(d->c), what);
}

/* "3.9-IV0" -> 3.9; brokers from 4.0 on do not say. */
static void judge_version(struct doctor *d, const char *id, const char *value)
{
	double version = strtod(value, NULL);

	if (version <= 0)
		return;
	if (version < 2.5) {
		doctor_say(d, DOCTOR_FAIL,
			"broker %s speaks protocol %s: a fenced producer is not told so safely", id, value);
		doctor_fix(d, "upgrade it to 3.6 or newer");
	} else if (version < 3.05 ||
		   (strchr(value, '.') && atoi(strchr(value, '.') + 1) < 6 && version < 4)) {
		doctor_say(d, DOCTOR_WARN,
			"broker %s speaks protocol %s: a late message may leave a transaction open for ever "
			"(KIP-890)",
			id, value);
		doctor_fix(d, "upgrade it to 3.6 or newer");
	}
}

static void judge_timeout(struct doctor *d, const char *id, const char *value)
{
	int64_t most = strtoll(value, NULL, 10), ours = d->c->loaded ? d->c->conf.kafka.timeout_us / 1000 : 0;

	if (most >= ours)
		return;
	doctor_say(d, DOCTOR_FAIL, "broker %s allows transactions of %lld ms, kafka.timeout is %lld ms", id,
		(long long)most, (long long)ours);
	doctor_fix(d, "set kafka.timeout = \"%llds\", or raise transaction.max.timeout.ms",
		(long long)(most / 1000));
}

/* A setting of a broker that is dangerous when it has this value. */
static const struct {
	const char *name, *bad, *why, *good;
} dangers[] = {
	{ "unclean.leader.election.enable", "true", "a replica that lacks events may become leader",
		"false" },
	{ "auto.create.topics.enable", "true",
		"a mistyped aggregatetype makes a topic, with the default's partitions", "false" },
	{ "transaction.partition.verification.enable", "false",
		"a late message may leave a transaction open for ever (KIP-890)", "true" },
};

static void broker_setting(struct doctor *d, const char *id, const char *name, const char *value)
{
	if (strcmp(name, "inter.broker.protocol.version") == 0)
		judge_version(d, id, value);
	if (strcmp(name, "transaction.max.timeout.ms") == 0)
		judge_timeout(d, id, value);
	if (d->md->broker_cnt > 1 && strcmp(value, "1") == 0 &&
		(strcmp(name, "transaction.state.log.min.isr") == 0 ||
			strcmp(name, "transaction.state.log.replication.factor") == 0)) {
		doctor_say(d, DOCTOR_WARN,
			"broker %s: %s = 1: a lost broker loses what became of transactions", id, name);
		doctor_fix(d, "%s = %s in server.properties, before the first transaction", name,
			strstr(name, "isr") ? "2" : "3");
	}
	for (size_t i = 0; i < sizeof(dangers) / sizeof(*dangers); i++)
		if (strcmp(name, dangers[i].name) == 0 && strcmp(value, dangers[i].bad) == 0) {
			doctor_say(d, DOCTOR_WARN, "broker %s: %s = %s: %s", id, name, value, dangers[i].why);
			doctor_fix(d, "%s=%s in server.properties", name, dangers[i].good);
		}
}

void doctor_settings(struct doctor *d)
{
	struct pr_err err = { 0 };

	/* A broker answers for itself only. */
	for (int i = 0; i < d->md->broker_cnt; i++) {
		rd_kafka_ConfigResource_t *want[1];
		char id[16];

		(void)snprintf(id, sizeof(id), "%d", (int)d->md->brokers[i].id);
		want[0] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_BROKER, id);
		if (describe(d, want, 1, broker_setting, &err) < 0) {
			doctor_say(d, DOCTOR_WARN, "a broker's settings cannot be looked at: broker %s",
				err.text);
			say_describe(d, "--cluster");
			return;
		}
	}
}

static void topic_setting(struct doctor *d, const char *topic, const char *name, const char *value)
{
	for (int i = 0; i < d->ntopics; i++) {
		struct doctor_topic *t = &d->topics[i];

		if (strcmp(t->name, topic) != 0)
			continue;
		if (strcmp(name, "max.message.bytes") == 0)
			t->max_message_bytes = strtoll(value, NULL, 10);
		else if (strcmp(name, "retention.ms") == 0)
			t->retention_ms = strtoll(value, NULL, 10);
		else if (strcmp(name, "min.insync.replicas") == 0)
			t->min_insync = atoi(value);
		else if (strcmp(name, "unclean.leader.election.enable") == 0)
			t->unclean = strcmp(value, "true") == 0;
		else if (strcmp(name, "cleanup.policy") == 0)
			(void)snprintf(t->cleanup, sizeof(t->cleanup), "%s", value);
	}
}

/* ---------------------------------------------------------------- what is wrong with topics */

static int least(const struct doctor_topic *t, int in_sync)
{
	int n = -1;

	for (int i = 0; i < t->md->partition_cnt; i++) {
		int have = in_sync ? t->md->partitions[i].isr_cnt : t->md->partitions[i].replica_cnt;

		n = n < 0 || have < n ? have : n;
	}
	return n;
}

static int is_denied(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return t->md->err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
}

static int has_no_leader(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	for (int i = 0; i < t->md->partition_cnt; i++)
		if (t->md->partitions[i].leader < 0)
			return 1;
	return 0;
}

static int takes_nothing(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return t->min_insync > 0 && least(t, 1) >= 0 && least(t, 1) < t->min_insync;
}

static int is_single(const struct doctor *d, const struct doctor_topic *t)
{
	return d->md->broker_cnt > 1 && least(t, 0) == 1;
}

static int is_loose(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return least(t, 0) > 1 && t->min_insync == 1;
}

static int is_tight(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return least(t, 0) > 1 && t->min_insync == least(t, 0);
}

static int is_compacted(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return strstr(t->cleanup, "compact") != NULL;
}

static int is_unclean(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return t->unclean;
}

static int is_small(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return t->max_message_bytes >= 0 && t->max_message_bytes < 1000000;
}

static int is_brief(const struct doctor *d, const struct doctor_topic *t)
{
	(void)d;
	return t->retention_ms >= 0 && t->retention_ms < 24 * 3600 * 1000LL;
}

#define ALTER "kafka-configs.sh", "--alter --entity-type topics --entity-name"
#define LOOK  "kafka-topics.sh", "--describe --topic"

/* The command that mends it, of the first topic: tool --bootstrap-server BROKERS args TOPIC rest. */
static const struct {
	int (*has)(const struct doctor *d, const struct doctor_topic *t);
	enum doctor_word word;
	const char *what, *tool, *args, *rest;
} problems[] = {
	{ is_denied, DOCTOR_FAIL, "may not be looked at by this user", "kafka-acls.sh", "--add --topic",
		"--allow-principal User:... --operation Describe --operation Write" },
	{ has_no_leader, DOCTOR_FAIL,
		"with partitions that have no leader: they are neither written nor read", LOOK,
		"and start the brokers that hold them" },
	{ takes_nothing, DOCTOR_FAIL,
		"with fewer replicas in sync than min.insync.replicas: no event is taken", LOOK,
		"and start the brokers that are away" },
	{ is_single, DOCTOR_WARN, "with one replica: a lost broker loses events", LOOK,
		"and kafka-reassign-partitions.sh, to three replicas" },
	{ is_loose, DOCTOR_WARN,
		"with min.insync.replicas = 1: an acknowledged event may be on one broker only", ALTER,
		"--add-config min.insync.replicas=2" },
	{ is_tight, DOCTOR_WARN,
		"with min.insync.replicas as many as there are replicas: one broker away stops it", ALTER,
		"--add-config min.insync.replicas=2" },
	{ is_compacted, DOCTOR_WARN, "with cleanup.policy compact: older events of a key are forgotten",
		ALTER, "--add-config cleanup.policy=delete" },
	{ is_unclean, DOCTOR_WARN,
		"with unclean.leader.election.enable: a replica that lacks events may lead", ALTER,
		"--add-config unclean.leader.election.enable=false" },
	{ is_small, DOCTOR_WARN, "with max.message.bytes below 1 MB: larger events are parked", ALTER,
		"--add-config max.message.bytes=1048588" },
	{ is_brief, DOCTOR_WARN, "that keep records for less than a day: who is away longer loses them",
		ALTER, "--add-config retention.ms=604800000" },
};

static void name_topic(struct pr_buf *b, int n, const char *name)
{
	if (n < MOST_NAMES)
		pr_buf_printf(b, "%s%s", n ? ", " : "", name);
}

static void judge_topics(struct doctor *d, size_t i)
{
	struct pr_buf names = { 0 };
	const char *first = NULL;
	char more[64] = "";
	int n = 0;

	for (int k = 0; k < d->ntopics; k++)
		if (problems[i].has(d, &d->topics[k])) {
			first = first ? first : d->topics[k].name;
			name_topic(&names, n++, d->topics[k].name);
		}
	if (n > MOST_NAMES)
		(void)snprintf(more, sizeof(more), " and %d more", n - MOST_NAMES);
	if (n) {
		doctor_say(d, problems[i].word, "%s %s: %s%s", n == 1 ? "a topic" : "topics",
			problems[i].what, names.s, more);
		doctor_fix(d, "%s --bootstrap-server %s %s %s %s", problems[i].tool, cli_brokers(d->c),
			problems[i].args, first, problems[i].rest);
	}
	pr_buf_free(&names);
}

/* Those that the consumer's file names and that are not there. */
static void say_missing(struct doctor *d)
{
	const struct pr_strs *wanted = &d->c->consumer.kafka.topics;

	for (size_t i = 0; d->c->consumer_loaded && i < wanted->n; i++) {
		int there = *wanted->v[i] == '^';

		for (int k = 0; k < d->ntopics; k++)
			there |= strcmp(d->topics[k].name, wanted->v[i]) == 0 &&
				 d->topics[k].md->err != RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
		if (there)
			continue;
		doctor_say(d, DOCTOR_FAIL, "topic %s is not there", wanted->v[i]);
		doctor_fix(d, "kafka-topics.sh --bootstrap-server %s --create --topic %s --partitions 12",
			cli_brokers(d->c), wanted->v[i]);
	}
}

void doctor_topics(struct doctor *d)
{
	rd_kafka_ConfigResource_t **want = pr_calloc((size_t)d->ntopics + 1, sizeof(*want));
	struct pr_err err = { 0 };
	int partitions = 0;
	char a[64], b[64];

	say_missing(d);
	for (int i = 0; i < d->ntopics; i++) {
		want[i] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, d->topics[i].name);
		partitions += d->topics[i].md->partition_cnt;
	}
	if (d->ntopics && describe(d, want, (size_t)d->ntopics, topic_setting, &err) < 0) {
		doctor_say(d, DOCTOR_WARN, "not all topics' settings can be looked at: %s", err.text);
		say_describe(d, "--topic '*'");
	}
	free(want);
	for (size_t i = 0; i < sizeof(problems) / sizeof(*problems); i++)
		judge_topics(d, i);
	doctor_say(d, DOCTOR_OK, "%s of %s, %s", cli_number(d->ntopics, "topic", a),
		d->c->consumer_loaded ? "this group" : "this outbox's route",
		cli_number(partitions, "partition", b));
}

void doctor_positions(struct doctor *d)
{
	struct pr_err err = { 0 };
	char *topic;

	if (!cli_name(d->c))
		return;
	topic = pr_position_topic(cli_name(d->c));
	if (pr_position_topic_check(d->rk, cli_name(d->c), doctor_ms(d), &err) < 0) {
		doctor_err(d, DOCTOR_FAIL, &err);
	} else {
		doctor_say(d, DOCTOR_OK, "%s is there, compacted, one partition", topic);
	}
	free(topic);
}

/* ---------------------------------------------------------------- transactions that hang */

int doctor_ends(struct doctor *d, rd_kafka_t *rk, const struct doctor_topic *t, int64_t time, int64_t *ret)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(t->md->partition_cnt);
	int rc = 0;

	for (int i = 0; i < t->md->partition_cnt; i++)
		rd_kafka_topic_partition_list_add(list, t->name, t->md->partitions[i].id)->offset = time;
	if (rd_kafka_offsets_for_times(rk, list, doctor_ms(d)))
		rc = -1;
	for (int i = 0; rc == 0 && i < list->cnt; i++)
		ret[i] = list->elems[i].err ? -1 : list->elems[i].offset;
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}

/* Seconds since the record at the offset was written; -1 when it cannot be had. */
static double age_of(struct doctor *d, rd_kafka_t *raw, const char *topic, int32_t partition, int64_t offset)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	int64_t deadline = pr_mono_us() + cli_timeout(d->c), ms = -1;

	rd_kafka_topic_partition_list_add(list, topic, partition)->offset = offset;
	if (rd_kafka_assign(raw, list) == RD_KAFKA_RESP_ERR_NO_ERROR)
		while (ms < 0 && pr_mono_us() < deadline) {
			rd_kafka_message_t *m = rd_kafka_consumer_poll(raw, 100);

			if (m && !m->err && m->partition == partition &&
				strcmp(rd_kafka_topic_name(m->rkt), topic) == 0)
				ms = rd_kafka_message_timestamp(m, NULL);
			if (m)
				rd_kafka_message_destroy(m);
		}
	(void)rd_kafka_assign(raw, NULL);
	rd_kafka_topic_partition_list_destroy(list);
	return ms < 0 ? -1 : (double)(pr_wall_us() / 1000 - ms) / 1000;
}

static void judge_open(
	struct doctor *d, rd_kafka_t *raw, const char *topic, int32_t partition, int64_t stable, int64_t end)
{
	double age = age_of(d, raw, topic, partition, stable);
	char span[48];

	if (age < (double)cli_int(d->c, "older", 300 * PR_SEC) / (double)PR_SEC)
		return;
	doctor_say(d, DOCTOR_FAIL,
		"a transaction on partition %d of %s has been open for %s: nobody who reads committed "
		"records gets the %lld "
		"behind offset %lld",
		(int)partition, topic, cli_span(age, span), (long long)(end - stable), (long long)stable);
	doctor_fix(d,
		"kafka-transactions.sh --bootstrap-server %s abort --topic %s --partition %d --start-offset "
		"%lld",
		cli_brokers(d->c), topic, (int)partition, (long long)stable);
}

/* The last stable offset far behind the end, and for long. */
static int look_at(struct doctor *d, rd_kafka_t *raw, const struct doctor_topic *t, int *left)
{
	size_t n = (size_t)t->md->partition_cnt + 1;
	int64_t *stable = pr_calloc(n, sizeof(*stable)), *end = pr_calloc(n, sizeof(*end));
	int rc = doctor_ends(d, d->rk, t, RD_KAFKA_OFFSET_END, stable);

	if (rc == 0)
		rc = doctor_ends(d, raw, t, RD_KAFKA_OFFSET_END, end);
	for (int i = 0; rc == 0 && i<t->md->partition_cnt && * left> 0; i++)
		if (stable[i] >= 0 && stable[i] < end[i]) {
			(*left)--;
			judge_open(d, raw, t->name, t->md->partitions[i].id, stable[i], end[i]);
		}
	free(stable);
	free(end);
	return rc;
}

void doctor_hanging(struct doctor *d)
{
	int64_t deadline = pr_mono_us() + cli_timeout(d->c);
	struct pr_err err = { 0 };
	rd_kafka_t *raw = reader(d, "read_uncommitted", &err);
	int left = MOST_HANGING, unseen = 0;
	char n[64];

	if (!raw) {
		doctor_err(d, DOCTOR_WARN, &err);
		return;
	}
	for (int i = 0; i < d->ntopics; i++)
		unseen += left == 0 || pr_mono_us() > deadline || d->topics[i].md->partition_cnt == 0 ||
			  look_at(d, raw, &d->topics[i], &left) < 0;
	if (unseen)
		doctor_say(d, DOCTOR_WARN, "%s not looked at: no answer in time",
			cli_number(unseen, "topic", n));
	rd_kafka_destroy(raw);
}

/* ---------------------------------------------------------------- who may do what */

void doctor_acls(struct doctor *d)
{
	char why[256] = "";
	rd_kafka_AclBindingFilter_t *all = rd_kafka_AclBindingFilter_new(RD_KAFKA_RESOURCE_ANY, NULL,
		RD_KAFKA_RESOURCE_PATTERN_ANY, NULL, NULL, RD_KAFKA_ACL_OPERATION_ANY,
		RD_KAFKA_ACL_PERMISSION_TYPE_ANY, why, sizeof(why));
	rd_kafka_queue_t *queue = rd_kafka_queue_new(d->rk);
	rd_kafka_AdminOptions_t *o = options(d, RD_KAFKA_ADMIN_OP_DESCRIBEACLS);
	struct pr_err err = { 0 };
	rd_kafka_event_t *event;
	size_t n = 0;

	rd_kafka_DescribeAcls(d->rk, all, o, queue);
	event = wait_admin(d, queue, o, &err);
	if (event) {
		(void)rd_kafka_DescribeAcls_result_acls(rd_kafka_event_DescribeAcls_result(event), &n);
		doctor_say(d, DOCTOR_OK, "this user may see the access rules: %zu", n);
		rd_kafka_event_destroy(event);
	} else {
		doctor_say(d, DOCTOR_OK, "not looked at, access rules are not for this user: %s", err.text);
	}
	rd_kafka_queue_destroy(queue);
	rd_kafka_AclBinding_destroy(all);
}
