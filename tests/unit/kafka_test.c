/* tests/unit/kafka_test.c -- lib/kafka.c on librdkafka's mock cluster: what a member reads may be changed as
 * often and as fast as it likes. */
#include "lib/kafka.h"

#include <librdkafka/rdkafka_mock.h>
#include <stdint.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define PARTITIONS 4
#define ROUNDS     300

static rd_kafka_t *new_member(void)
{
	static const struct pr_kafka_prop props[] = {
		{ "test.mock.num.brokers", "1" },
		{ "group.id", "g" },
		{ "enable.auto.commit", "false" },
		{ NULL, NULL },
	};
	struct pr_strs none = { 0 };
	struct pr_err err;
	rd_kafka_t *rk = pr_kafka_new(RD_KAFKA_CONSUMER, "none:1", &none, props, NULL, NULL, &err);

	assert_non_null(rk);
	(void)rd_kafka_poll_set_consumer(rk);
	return rk;
}

static rd_kafka_topic_partition_list_t *some(int n)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);

	for (int i = 0; i < n; i++)
		rd_kafka_topic_partition_list_add(list, "t", i)->offset = 0;
	return list;
}

/* A sink gave two partitions back in the same moment: the second claim told librdkafka to read anew while it
 * was still ending what it had read, and its assertion rktp_started in rd_kafka_assignment_partition_stopped
 * ended the process. Half a second of waiting before each claim had made it rare. */
static void reads_anew_at_once(void **state)
{
	rd_kafka_t *rk = new_member();
	rd_kafka_topic_partition_list_t *all = some(PARTITIONS);
	struct pr_err err;

	(void)state;
	for (int i = 0; i < ROUNDS; i++)
		assert_int_equal(pr_kafka_assign(rk, all, &err), 0);
	assert_int_equal(pr_kafka_assign(rk, NULL, &err), 0);
	rd_kafka_topic_partition_list_destroy(all);
	rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
}

static void reads_anew_at_once_bit_by_bit(void **state)
{
	rd_kafka_t *rk = new_member();
	rd_kafka_topic_partition_list_t *all = some(PARTITIONS), *one = some(1);
	struct pr_err err;

	(void)state;
	assert_int_equal(pr_kafka_assign_more(rk, all, &err), 0);
	for (int i = 0; i < ROUNDS; i++) {
		assert_int_equal(pr_kafka_assign_less(rk, one, &err), 0);
		assert_int_equal(pr_kafka_assign_more(rk, one, &err), 0);
	}
	assert_int_equal(pr_kafka_assign_less(rk, all, &err), 0);
	rd_kafka_topic_partition_list_destroy(all);
	rd_kafka_topic_partition_list_destroy(one);
	rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_anew_at_once),
		cmocka_unit_test(reads_anew_at_once_bit_by_bit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
