/* lib/position.c -- encodes, decodes, and reads back a relay's position. Refuses
 * unknown versions, malformed records and a position topic with the wrong settings;
 * never creates a position out of nothing. */
#include "lib/position.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/json.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1

void pr_mark_release(struct pr_mark *m)
{
	free(m->snapshot);
	memset(m, 0, sizeof(*m));
}

void pr_mark_copy(struct pr_mark *to, const struct pr_mark *from)
{
	char *snapshot = from->snapshot ? pr_strdup(from->snapshot) : NULL;

	pr_mark_release(to);
	*to = *from;
	to->snapshot = snapshot;
}

void pr_position_release(struct pr_position *p)
{
	pr_mark_release(&p->from);
	pr_mark_release(&p->to);
	free(p->released);
	free(p->released_topic);
	memset(p, 0, sizeof(*p));
}

void pr_position_copy(struct pr_position *to, const struct pr_position *from)
{
	struct pr_position fresh = *from;

	fresh.from.snapshot = fresh.to.snapshot = NULL;
	pr_mark_copy(&fresh.from, &from->from);
	pr_mark_copy(&fresh.to, &from->to);
	fresh.released_topic = from->released_topic ? pr_strdup(from->released_topic) : NULL;
	fresh.released = NULL;
	if (from->released_n > 0) {
		fresh.released = pr_calloc(from->released_n, sizeof(*fresh.released));
		memcpy(fresh.released, from->released, from->released_n * sizeof(*fresh.released));
	}
	pr_position_release(to);
	*to = fresh;
}

void pr_position_forget_released(struct pr_position *p)
{
	p->released_n = 0;
	free(p->released_topic);
	p->released_topic = NULL;
}

/* 64-bit numbers travel as strings: JSON readers keep 53 bits. */
static void put_mark(struct pr_buf *b, const char *name, const struct pr_mark *m)
{
	pr_buf_printf(b, ",\"%s\":{\"snapshot\":", name);
	pr_buf_json(b, m->snapshot, strlen(m->snapshot));
	pr_buf_printf(b, ",\"l\":\"%" PRId64 "\",\"n\":\"%" PRIu64 "\",\"low\":\"%" PRId64 "\"}", m->l, m->n,
		m->low);
}

char *pr_position_encode(const struct pr_position *p)
{
	struct pr_buf b = { 0 };

	pr_buf_printf(&b, "{\"v\":%d,\"system\":", VERSION);
	pr_buf_json(&b, p->system_id, strlen(p->system_id));
	pr_buf_printf(&b, ",\"timeline\":%" PRId64, p->timeline);
	if (p->from.snapshot)
		put_mark(&b, "from", &p->from);
	if (p->to.snapshot)
		put_mark(&b, "to", &p->to);
	pr_buf_printf(&b, ",\"seq\":\"%" PRId64 "\",\"top\":\"%" PRId64 "\",\"lsn\":\"%" PRIu64 "\"", p->seq,
		p->top, p->lsn);
	if (p->released_n > 0) {
		pr_buf_puts(&b, ",\"released\":[");
		for (size_t i = 0; i < p->released_n; i++)
			pr_buf_printf(&b, "%s\"%" PRId64 "\"", i ? "," : "", p->released[i]);
		pr_buf_puts(&b, "]");
	}
	if (p->released_topic) {
		pr_buf_puts(&b, ",\"released_topic\":");
		pr_buf_json(&b, p->released_topic, strlen(p->released_topic));
		pr_buf_printf(&b, ",\"released_entry\":\"%" PRId64 "\",\"released_seq\":\"%" PRId64 "\"",
			p->released_entry, p->released_seq);
	}
	pr_buf_puts(&b, "}");
	return b.s;
}

static int item_i64(const cJSON *item, int64_t *ret)
{
	char *end;

	if (!cJSON_IsString(item) || !item->valuestring[0])
		return -1;
	errno = 0;
	*ret = strtoll(item->valuestring, &end, 10);
	return errno || *end ? -1 : 0;
}

static int get_i64(const cJSON *object, const char *name, int64_t *ret)
{
	return item_i64(cJSON_GetObjectItemCaseSensitive(object, name), ret);
}

static int get_u64(const cJSON *object, const char *name, uint64_t *ret)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
	char *end;

	if (!cJSON_IsString(item) || item->valuestring[0] < '0' || item->valuestring[0] > '9')
		return -1;
	errno = 0;
	*ret = strtoull(item->valuestring, &end, 10);
	return errno || *end ? -1 : 0;
}

/* Goes into SQL as a literal, so only what a pg_snapshot is made of. */
static int is_snapshot(const char *s)
{
	return *s && s[strspn(s, "0123456789:,")] == '\0';
}

/* An absent mark is fine: nothing seen yet, or not inside a batch. */
static int get_mark(const cJSON *object, const char *name, struct pr_mark *ret)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name), *snapshot;

	if (!item)
		return 0;
	snapshot = cJSON_GetObjectItemCaseSensitive(item, "snapshot");
	if (!cJSON_IsString(snapshot) || !is_snapshot(snapshot->valuestring))
		return -1;
	ret->snapshot = pr_strdup(snapshot->valuestring);
	if (get_i64(item, "l", &ret->l) < 0 || get_u64(item, "n", &ret->n) < 0)
		return -1;
	return get_i64(item, "low", &ret->low);
}

static int get_released(const cJSON *root, struct pr_position *ret)
{
	const cJSON *list = cJSON_GetObjectItemCaseSensitive(root, "released"), *item;
	const cJSON *topic = cJSON_GetObjectItemCaseSensitive(root, "released_topic");

	if (list) {
		if (!cJSON_IsArray(list))
			return -1;
		ret->released = pr_calloc((size_t)cJSON_GetArraySize(list), sizeof(*ret->released));
		cJSON_ArrayForEach(item, list)
		{
			if (item_i64(item, &ret->released[ret->released_n]) < 0)
				return -1;
			ret->released_n++;
		}
	}
	if (!topic)
		return 0;
	if (!cJSON_IsString(topic))
		return -1;
	ret->released_topic = pr_strdup(topic->valuestring);
	if (get_i64(root, "released_entry", &ret->released_entry) < 0)
		return -1;
	return get_i64(root, "released_seq", &ret->released_seq);
}

static int decode(const cJSON *root, struct pr_position *ret)
{
	const cJSON *system = cJSON_GetObjectItemCaseSensitive(root, "system");
	const cJSON *timeline = cJSON_GetObjectItemCaseSensitive(root, "timeline");

	if (!cJSON_IsString(system) || strlen(system->valuestring) >= sizeof(ret->system_id) ||
		!cJSON_IsNumber(timeline) ||
		!(timeline->valuedouble >= 0 && timeline->valuedouble <= UINT32_MAX))
		return -1;
	(void)snprintf(ret->system_id, sizeof(ret->system_id), "%s", system->valuestring);
	ret->timeline = (int64_t)timeline->valuedouble;
	if (get_mark(root, "from", &ret->from) < 0 || get_mark(root, "to", &ret->to) < 0)
		return -1;
	if (get_i64(root, "seq", &ret->seq) < 0 || get_i64(root, "top", &ret->top) < 0 ||
		get_u64(root, "lsn", &ret->lsn) < 0)
		return -1;
	return get_released(root, ret);
}

int pr_position_decode(const char *text, size_t len, struct pr_position *ret, struct pr_err *err)
{
	struct pr_position p = { 0 };
	cJSON *root = cJSON_ParseWithLength(text, len);
	const cJSON *version = cJSON_GetObjectItemCaseSensitive(root, "v");
	int rc = -1;

	if (!cJSON_IsObject(root) || !cJSON_IsNumber(version)) {
		(void)pr_fail(err, PR_STOP, "the position record is not one of ours");
	} else if (version->valueint != VERSION) {
		(void)pr_fail(err, PR_STOP, "the position record has version %d, this program knows %d",
			version->valueint, VERSION);
		(void)pr_hint(err, "run the version of postrider that wrote it, or a newer one");
	} else if (decode(root, &p) < 0) {
		(void)pr_fail(err, PR_STOP, "the position record is malformed");
	} else {
		pr_position_release(ret);
		*ret = p;
		memset(&p, 0, sizeof(p));
		rc = 0;
	}
	if (rc < 0 && err)
		err->exit = PR_EX_CONFIG;
	pr_position_release(&p);
	cJSON_Delete(root);
	return rc;
}

char *pr_position_topic(const char *name)
{
	return pr_asprintf("postrider.positions.%s", name);
}

int pr_position_topic_check(rd_kafka_t *rk, const char *name, int timeout_ms, struct pr_err *err)
{
	char *topic = pr_position_topic(name);
	struct pr_topic_info info;
	int rc = pr_kafka_topic_info(rk, topic, timeout_ms, &info, err);

	if (rc < 0)
		goto out;
	if (!info.exists) {
		rc = pr_fail(err, PR_STOP, "the position topic \"%s\" does not exist", topic);
		(void)pr_hint(err, "run: postrider init --conninfo ... --brokers ... --name %s", name);
	} else if (info.partitions != 1) {
		rc = pr_fail(err, PR_STOP, "the position topic \"%s\" has %d partitions, it must have 1",
			topic, info.partitions);
		(void)pr_hint(err, "copy its newest record with `postrider position show`, make the topic "
				   "anew with one partition, then `postrider position set`");
	} else if (info.cleanup_policy[0] && strcmp(info.cleanup_policy, "compact") != 0) {
		rc = pr_fail(err, PR_STOP,
			"the position topic \"%s\" has cleanup.policy=%s, it must be compact", topic,
			info.cleanup_policy);
		(void)pr_hint(err,
			"set it: kafka-configs --alter --entity-type topics --entity-name %s "
			"--add-config cleanup.policy=compact",
			topic);
	}
	if (rc < 0 && err)
		err->exit = PR_EX_CONFIG;
out:
	free(topic);
	return rc;
}

int pr_position_topic_make(
	rd_kafka_t *rk, const char *name, int timeout_ms, int *ret_created, struct pr_err *err)
{
	/* Small segments: only closed ones are compacted, and a start reads what is left. */
	static const char *const configs[] = { "cleanup.policy=compact", "segment.bytes=1048576",
		"segment.ms=600000", "min.cleanable.dirty.ratio=0.01", NULL };
	char *topic = pr_position_topic(name);
	int rc = pr_kafka_create_topic(rk, topic, 1, -1, configs, timeout_ms, ret_created, err);
	int64_t give_up = pr_mono_us() + timeout_ms * PR_MS;

	free(topic);
	if (rc < 0)
		return -1;
	/* A topic just made is not yet known to every broker's metadata. */
	do
		rc = pr_position_topic_check(rk, name, timeout_ms, err);
	while (rc < 0 && *ret_created && pr_mono_us() < give_up);
	return rc;
}

static rd_kafka_t *reader(
	const char *brokers, const struct pr_strs *properties, const char *isolation, struct pr_err *err)
{
	const struct pr_kafka_prop ours[] = {
		{ "group.id", "postrider.position.reader" }, /* required by the library, never joined */
		{ "isolation.level", isolation },
		{ "enable.auto.commit", "false" },
		{ "enable.auto.offset.store", "false" },
		{ "enable.partition.eof", "true" },
		{ "auto.offset.reset", "earliest" },
		{ "fetch.wait.max.ms", "10" },
		{ "allow.auto.create.topics", "false" },
		{ NULL, NULL },
	};

	return pr_kafka_new(RD_KAFKA_CONSUMER, brokers, properties, ours, NULL, NULL, err);
}

/* The read_uncommitted high watermark: a read_committed one would be the last stable offset, and
 * stop before the records of a transaction that is just being decided. */
static int end_offset(const char *brokers, const struct pr_strs *properties, const char *topic,
	int timeout_ms, int64_t *ret_lo, int64_t *ret_hi, struct pr_err *err)
{
	const char *isolation = SABOTAGE(position_read_to_lso) ? "read_committed" : "read_uncommitted";
	rd_kafka_t *rk = reader(brokers, properties, isolation, err);
	rd_kafka_resp_err_t code;

	if (!rk)
		return -1;
	code = rd_kafka_query_watermark_offsets(rk, topic, 0, ret_lo, ret_hi, timeout_ms);
	rd_kafka_destroy(rk);
	if (code)
		return pr_kafka_fail(err, code, topic);
	return 0;
}

static int decode_record(const rd_kafka_message_t *m, const char *topic, struct pr_position *ret,
	int *ret_found, struct pr_err *err)
{
	if (!m)
		return 0;
	if (pr_position_decode(m->payload, m->len, ret, err) < 0)
		return pr_wrap(err, "%s offset %" PRId64, topic, m->offset);
	*ret_found = 1;
	return 0;
}

/* Reads [start, end) and decodes the newest record: what stands before it does not matter any more, also
 * when it is not one of ours. 0 when the end was reached. */
static int read_newest(rd_kafka_t *rk, const char *topic, int64_t start, int64_t end, int timeout_ms,
	struct pr_position *ret, int *ret_found, struct pr_err *err)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	int64_t give_up = pr_mono_us() + timeout_ms * PR_MS;
	rd_kafka_message_t *m = NULL, *newest = NULL;
	int rc = -1;

	rd_kafka_topic_partition_list_add(list, topic, 0)->offset = start;
	if (rd_kafka_assign(rk, list)) {
		(void)pr_fail(err, PR_RETRY, "cannot read topic \"%s\"", topic);
		goto out;
	}
	while (pr_mono_us() < give_up) {
		if (m)
			rd_kafka_message_destroy(m);
		m = rd_kafka_consumer_poll(rk, 100);
		if (!m)
			continue;
		if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
			if (m->offset >= end) {
				rc = decode_record(newest, topic, ret, ret_found, err);
				goto out;
			}
		} else if (m->err) {
			if (pr_kafka_kind(m->err) != PR_RETRY) {
				(void)pr_kafka_fail(err, m->err, topic);
				goto out;
			}
		} else if (m->payload) {
			if (newest)
				rd_kafka_message_destroy(newest);
			newest = m;
			m = NULL;
		}
	}
	(void)pr_fail(err, PR_RETRY, "topic \"%s\" could not be read to offset %" PRId64 " within %d ms",
		topic, end, timeout_ms);
	(void)pr_hint(err, "an open transaction of another producer on this topic holds its readers back");
out:
	if (newest)
		rd_kafka_message_destroy(newest);
	if (m)
		rd_kafka_message_destroy(m);
	rd_kafka_topic_partition_list_destroy(list);
	return rc;
}

int pr_position_read(const char *brokers, const struct pr_strs *properties, const char *name, int timeout_ms,
	struct pr_position *ret, int *ret_found, struct pr_err *err)
{
	char *topic = pr_position_topic(name);
	rd_kafka_t *rk = NULL;
	int64_t lo, hi, start;
	int rc = -1;

	*ret_found = 0;
	if (end_offset(brokers, properties, topic, timeout_ms, &lo, &hi, err) < 0)
		goto out;
	rk = reader(brokers, properties, "read_committed", err);
	if (!rk)
		goto out;
	/* Each transaction leaves a record and a marker; the newest is near the end, so look there
	 * first and go back only when everything there was aborted. */
	start = hi - 64 > lo ? hi - 64 : lo;
	rc = read_newest(rk, topic, start, hi, timeout_ms, ret, ret_found, err);
	if (rc == 0 && !*ret_found && start > lo)
		rc = read_newest(rk, topic, lo, hi, timeout_ms, ret, ret_found, err);
out:
	if (rk)
		rd_kafka_destroy(rk);
	free(topic);
	return rc;
}
