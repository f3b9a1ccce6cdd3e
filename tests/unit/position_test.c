/* tests/unit/position_test.c -- lib/position.c: a record that was written reads back the same, anything else
 * is refused by name; the newest record of a topic on librdkafka's mock cluster. That a start reads past
 * open transactions needs a real broker: tests/fault/test_sabotage.py. */
#include "lib/position.h"

#include <librdkafka/rdkafka_mock.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char *const whole =
	"{\"v\":1,\"system\":\"7710602021586260245\",\"timeline\":2,"
	"\"from\":{\"snapshot\":\"10:15:11,12\",\"l\":\"-1\",\"n\":\"18446744073709551615\",\"low\":\"5\"},"
	"\"to\":{\"snapshot\":\"20:20:\",\"l\":\"9223372036854775807\",\"n\":\"21\",\"low\":\"6\"},"
	"\"seq\":\"7\",\"top\":\"8\",\"lsn\":\"12345678901234567890\",\"released\":[\"1\","
	"\"9007199254740993\"],"
	"\"released_topic\":\"a.\\\"b\",\"released_entry\":\"3\",\"released_seq\":\"-1\"}";

static int decode(const char *text, struct pr_position *p, struct pr_err *err)
{
	char *copy = malloc(strlen(text) ? strlen(text) : 1); /* no NUL behind it */
	int rc;

	assert_non_null(copy);
	memcpy(copy, text, strlen(text));
	rc = pr_position_decode(copy, strlen(text), p, err);
	free(copy);
	return rc;
}

static void reads_every_field(void **state)
{
	struct pr_position p = { 0 };
	struct pr_err err;

	(void)state;
	assert_int_equal(decode(whole, &p, &err), 0);
	assert_string_equal(p.system_id, "7710602021586260245");
	assert_int_equal(p.timeline, 2);
	assert_string_equal(p.from.snapshot, "10:15:11,12");
	assert_true(p.from.l == -1 && p.from.n == UINT64_MAX && p.from.low == 5);
	assert_string_equal(p.to.snapshot, "20:20:");
	assert_true(p.to.l == INT64_MAX && p.to.n == 21 && p.to.low == 6);
	assert_true(p.seq == 7 && p.top == 8 && p.lsn == 12345678901234567890ULL);
	assert_int_equal(p.released_n, 2);
	assert_true(p.released[0] == 1 && p.released[1] == 9007199254740993);
	assert_string_equal(p.released_topic, "a.\"b");
	assert_true(p.released_entry == 3 && p.released_seq == -1);
	pr_position_release(&p);
}

static void writes_what_it_read(void **state)
{
	static const char *const t[] = {
		"{\"v\":1,\"system\":\"7\",\"timeline\":1,\"seq\":\"0\",\"top\":\"0\",\"lsn\":\"0\"}",
		"{\"v\":1,\"system\":\"\",\"timeline\":0,\"from\":{\"snapshot\":\"3:3:\",\"l\":\"0\",\"n\":"
		"\"3\","
		"\"low\":\"0\"},\"seq\":\"0\",\"top\":\"1\",\"lsn\":\"1\"}",
	};
	struct pr_position p = { 0 }, copy = { 0 };
	struct pr_err err;
	char *text;

	(void)state;
	for (size_t i = 0; i <= sizeof(t) / sizeof(*t); i++) {
		const char *given = i < sizeof(t) / sizeof(*t) ? t[i] : whole;

		/* Over the old value, which is freed. */
		assert_int_equal(decode(given, &p, &err), 0);
		text = pr_position_encode(&p);
		assert_string_equal(text, given);
		free(text);
		pr_position_copy(&copy, &p);
		text = pr_position_encode(&copy);
		assert_string_equal(text, given);
		free(text);
	}
	pr_position_release(&p);
	text = pr_position_encode(&copy); /* shares nothing with what was released */
	assert_string_equal(text, whole);
	free(text);
	pr_position_release(&copy);
	pr_position_release(&copy); /* twice is once */
	assert_true(copy.from.snapshot == NULL && copy.released_n == 0);
}

/* whole with the first `from` replaced by `to`. */
static char *replaced(const char *from, const char *to)
{
	const char *at = strstr(whole, from);

	if (!at)
		fail_msg("\"%s\" is not in the record", from);
	return pr_asprintf("%.*s%s%s", (int)(at - whole), whole, to, at + strlen(from));
}

static void refuses(void **state)
{
	static const struct {
		const char *from, *to;
	} t[] = {
		{ "\"system\":\"7710602021586260245\"", "\"system\":7" },
		{ "\"system\":\"7710602021586260245\",", "" },
		{ "7710602021586260245", "012345678901234567890123" },
		{ "\"timeline\":2", "\"timeline\":\"2\"" },
		{ "\"timeline\":2,", "" },
		{ "10:15:11,12", "10:15:11,12'; DROP TABLE outbox.event; --" },
		{ "10:15:11,12", "" },
		{ "10:15:11,12", "a" },
		{ "\"snapshot\":\"10:15:11,12\"", "\"snapshot\":null" },
		{ "\"snapshot\":\"10:15:11,12\",", "" },
		{ "\"l\":\"-1\"", "\"l\":-1" },
		{ "\"l\":\"-1\"", "\"l\":\"\"" },
		{ "\"l\":\"-1\"", "\"l\":\"1x\"" },
		{ "\"l\":\"-1\"", "\"l\":\"9223372036854775808\"" },
		{ "\"n\":\"18446744073709551615\"", "\"n\":\"18446744073709551616\"" },
		{ "\"n\":\"18446744073709551615\"", "\"n\":\"-1\"" },
		{ "\"low\":\"5\"", "\"low\":null" },
		{ "\"from\":{", "\"from\":[], \"was\":{" },
		{ "\"seq\":\"7\",", "" },
		{ "\"top\":\"8\"", "\"top\":8" },
		{ "\"lsn\":\"12345678901234567890\"", "\"lsn\":\" 1\"" },
		{ "[\"1\"", "[1" },
		{ "\"released\":[\"1\",\"9007199254740993\"]", "\"released\":{}" },
		{ "\"released_topic\":\"a.\\\"b\"", "\"released_topic\":1" },
		{ ",\"released_entry\":\"3\"", "" },
		{ ",\"released_seq\":\"-1\"", "" },
		{ "{\"v\":1,", "" },
		{ "{\"v\":1,", "{" },
		{ "{\"v\":1,", "{\"v\":\"1\"," },
		{ "-1\"}", "-1\"" },
	};
	struct pr_position p = { .timeline = 77 };
	struct pr_err err;

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		char *text = replaced(t[i].from, t[i].to);

		memset(&err, 0, sizeof(err));
		if (decode(text, &p, &err) == 0)
			fail_msg("case %zu was read: %s", i, text);
		assert_int_equal(err.kind, PR_STOP);
		assert_int_equal(err.exit, PR_EX_CONFIG);
		assert_true(p.timeline == 77 && !p.from.snapshot); /* untouched */
		free(text);
	}
}

static void refuses_what_is_no_record(void **state)
{
	static const char *const t[] = { "", "x", "null", "[]", "1", "\"v\"", "{}", "{\"v\":null}",
		"[{\"v\":1}]" };
	struct pr_position p = { 0 };
	struct pr_err err;

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		assert_int_equal(decode(t[i], &p, &err), -1);
		assert_string_equal(err.text, "the position record is not one of ours");
	}
	for (size_t i = 0; i < strlen(whole); i++)
		assert_int_equal(pr_position_decode(whole, i, &p, &err), -1);
	assert_int_equal(decode("{\"v\":2}", &p, &err), -1);
	assert_non_null(strstr(err.text, "version 2, this program knows 1"));
	assert_non_null(strstr(err.hint, "version of postrider"));
}

static void topic_name(void **state)
{
	char *topic = pr_position_topic("orders");

	(void)state;
	assert_string_equal(topic, "postrider.positions.orders");
	free(topic);
}

/* --- on a mock cluster --- */

struct cluster {
	rd_kafka_t *rk;
	rd_kafka_mock_cluster_t *mock;
	char brokers[200];
};
static struct cluster mock;
static const struct pr_strs none;

static int start_cluster(void **state)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char reason[200];

	(void)state;
	(void)rd_kafka_conf_set(conf, "log_level", "0", reason, sizeof(reason));
	mock.rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof(reason));
	if (!mock.rk)
		return -1;
	mock.mock = rd_kafka_mock_cluster_new(mock.rk, 1);
	if (!mock.mock)
		return -1;
	(void)snprintf(mock.brokers, sizeof(mock.brokers), "%s", rd_kafka_mock_cluster_bootstraps(mock.mock));
	return 0;
}

static int stop_cluster(void **state)
{
	(void)state;
	rd_kafka_mock_cluster_destroy(mock.mock);
	rd_kafka_destroy(mock.rk);
	return 0;
}

static void make_topic(const char *name, int partitions)
{
	char *topic = pr_position_topic(name);

	assert_int_equal(rd_kafka_mock_topic_create(mock.mock, topic, partitions, 1), 0);
	free(topic);
}

static rd_kafka_t *producer(void)
{
	struct pr_err err;
	rd_kafka_t *rk = pr_kafka_new(RD_KAFKA_PRODUCER, mock.brokers, &none, NULL, NULL, NULL, &err);

	assert_non_null(rk);
	return rk;
}

/* NULL: a tombstone. */
static void put(rd_kafka_t *rk, const char *name, const char *value)
{
	char *topic = pr_position_topic(name);

	assert_int_equal(rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
				 RD_KAFKA_V_KEY(name, strlen(name)),
				 RD_KAFKA_V_VALUE((void *)(uintptr_t)value, value ? strlen(value) : 0),
				 RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END),
		0);
	free(topic);
}

static void put_seqs(const char *name, int from, int to)
{
	rd_kafka_t *rk = producer();

	for (int i = from; i <= to; i++) {
		char *value = pr_asprintf("{\"v\":1,\"system\":\"7\",\"timeline\":1,\"seq\":\"%d\",\"top\":"
					  "\"0\",\"lsn\":\"0\"}",
			i);

		put(rk, name, value);
		free(value);
	}
	assert_int_equal(rd_kafka_flush(rk, 20000), 0);
	rd_kafka_destroy(rk);
}

static int read_back(const char *name, struct pr_position *p, int *found, struct pr_err *err)
{
	return pr_position_read(mock.brokers, &none, name, 20000, p, found, err);
}

static void newest(void **state)
{
	struct pr_position p = { 0 };
	struct pr_err err;
	rd_kafka_t *rk;
	int found;

	(void)state;
	make_topic("newest", 1);
	assert_int_equal(read_back("newest", &p, &found, &err), 0);
	assert_int_equal(found, 0);
	put_seqs("newest", 1, 1);
	assert_int_equal(read_back("newest", &p, &found, &err), 0);
	assert_true(found && p.seq == 1);
	put_seqs("newest", 2, 300); /* more than the end that is looked at first */
	assert_int_equal(read_back("newest", &p, &found, &err), 0);
	assert_true(found && p.seq == 300);
	rk = producer();
	for (int i = 0; i < 80; i++) /* nothing but tombstones at the end */
		put(rk, "newest", NULL);
	assert_int_equal(rd_kafka_flush(rk, 20000), 0);
	rd_kafka_destroy(rk);
	assert_int_equal(read_back("newest", &p, &found, &err), 0);
	assert_true(found && p.seq == 300);
	pr_position_release(&p);
}

/* A newest record of another making stops the relay: it must not be read over. One that a later record has
 * replaced does no harm: writing a good position is how an operator mends a bad one. */
static void not_ours(void **state)
{
	struct pr_position p = { 0 };
	struct pr_err err;
	rd_kafka_t *rk;
	int found;

	(void)state;
	make_topic("odd", 1);
	put_seqs("odd", 1, 3);
	rk = producer();
	put(rk, "odd", "hello");
	assert_int_equal(rd_kafka_flush(rk, 20000), 0);
	rd_kafka_destroy(rk);
	assert_int_equal(read_back("odd", &p, &found, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_string_equal(
		err.text, "postrider.positions.odd offset 3: the position record is not one of ours");
	put_seqs("odd", 4, 4);
	assert_int_equal(read_back("odd", &p, &found, &err), 0);
	assert_true(found && p.seq == 4);
	pr_position_release(&p);
}

static void checks_the_topic(void **state)
{
	struct pr_err err;
	rd_kafka_t *rk = producer();

	(void)state;
	make_topic("two", 2);
	assert_int_equal(pr_position_topic_check(rk, "two", 2000, &err), -1);
	assert_int_equal(err.kind, PR_STOP);
	assert_non_null(strstr(err.text, "has 2 partitions, it must have 1"));
	rd_kafka_destroy(rk);
}

/* No broker: given up at the deadline, to be tried again. */
static void nobody_answers(void **state)
{
	struct pr_position p = { 0 };
	struct pr_err err;
	int found = 1;

	(void)state;
	assert_int_equal(pr_position_read("127.0.0.1:1", &none, "orders", 300, &p, &found, &err), -1);
	assert_int_equal(err.kind, PR_RETRY);
	assert_int_equal(found, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_every_field),
		cmocka_unit_test(writes_what_it_read),
		cmocka_unit_test(refuses),
		cmocka_unit_test(refuses_what_is_no_record),
		cmocka_unit_test(topic_name),
		cmocka_unit_test(newest),
		cmocka_unit_test(not_ours),
		cmocka_unit_test(checks_the_topic),
		cmocka_unit_test(nobody_answers),
	};

	return cmocka_run_group_tests(tests, start_cluster, stop_cluster);
}
