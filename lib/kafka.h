/* lib/kafka.h -- librdkafka's handles, the properties we fix, and error -> decision.
 * Everything that may block takes a timeout. A handle is thread-safe as librdkafka says. */
#ifndef PR_KAFKA_H
#define PR_KAFKA_H

#include "lib/conf.h"
#include "lib/err.h"

#include <librdkafka/rdkafka.h>
#include <stdint.h>

/* "property=value" strings of a config's kafka.properties. The guarantee's own properties
 * (enable.idempotence, acks, isolation.level, transactional.id, partitioner, ...), and those that run
 * code or read files for an attacker (plugin.library.paths, ssl.engine.*, sasl.kerberos.kinit.cmd, ...)
 * are refused by name; an unknown or malformed one is refused with librdkafka's reason.
 * Contacts nothing. */
int pr_kafka_check_properties(const struct pr_strs *properties, struct pr_err *err) PR_MUSTCHECK;

/* The same for a member of a group: what we fix of group, fetching and assignment is refused too. */
int pr_kafka_check_consumer_properties(const struct pr_strs *properties, struct pr_err *err) PR_MUSTCHECK;

/* Whether the user's "property=value" strings set the property of that name. */
int pr_kafka_has(const struct pr_strs *properties, const char *name);

struct pr_kafka_prop {
	const char *name, *value; /* name NULL ends a list */
};

/* A producer or consumer: brokers, then the user's properties, then ours (list may be NULL), ours win.
 * Log lines of librdkafka are dropped; pr_kafka_last_words has the last error. opaque is rd_kafka_opaque.
 * dr_cb may be NULL. The caller destroys. */
rd_kafka_t *pr_kafka_new(rd_kafka_type_t type, const char *brokers, const struct pr_strs *properties,
	const struct pr_kafka_prop *ours,
	void (*dr_cb)(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque), void *opaque,
	struct pr_err *err) PR_MUSTCHECK;

/* A consumer of a group, read through its consumer queue: as pr_kafka_new, and rebalance_cb answers each
 * rebalance with rd_kafka_assign, or the incremental ones. */
rd_kafka_t *pr_kafka_new_member(const char *brokers, const struct pr_strs *properties,
	const struct pr_kafka_prop *ours,
	void (*rebalance_cb)(rd_kafka_t *rk, rd_kafka_resp_err_t code, rd_kafka_topic_partition_list_t *list,
		void *opaque),
	void *opaque, struct pr_err *err) PR_MUSTCHECK;

/* What to do about an error code: PR_RETRY (network, leader moving, queue full), PR_REJECT (this record or
 * this topic), PR_STOP (fenced, authorization of the transactional id, fatal configuration). */
enum pr_kind pr_kafka_kind(rd_kafka_resp_err_t code);

/* Fills *err from an error code: "doing: text"; returns -1. */
int pr_kafka_fail(struct pr_err *err, rd_kafka_resp_err_t code, const char *doing);

/* What the client library last complained about (connection refused, TLS, ...); "" when nothing. */
void pr_kafka_last_words(char *buf, size_t size);

/* When it did, of any handle; INT64_MIN: never. Monotonic. */
int64_t pr_kafka_last_words_us(void);

/* -1, and *err, when the last word since then was that TLS or a login was refused, by us or by a broker: no
 * waiting helps, somebody has to put it right. Else 0. Words come while the handle is polled. */
int pr_kafka_refusal(int64_t since_us, struct pr_err *err);

/* A call that began at since_us had no answer: the refusal, or "doing: code" with the last words; -1. */
int pr_kafka_silent(int64_t since_us, const char *doing, rd_kafka_resp_err_t code, struct pr_err *err);

/* Fills *err from a librdkafka error, destroys it; returns -1, or 0 when error is NULL. */
int pr_kafka_take(rd_kafka_error_t *error, struct pr_err *err, const char *doing) PR_MUSTCHECK;

/* What a member reads from now on: all of list (NULL: nothing), besides what it reads, without what it reads.
 * Return once librdkafka has ended what it read before: a partition that is taken away again while its last
 * end is under way ends the process (an assertion, 2.0.2 to 2.15.0). Not for the last word to a handle that
 * closes: it may never answer. */
int pr_kafka_assign(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *list, struct pr_err *err);
int pr_kafka_assign_more(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *list, struct pr_err *err);
int pr_kafka_assign_less(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *list, struct pr_err *err);

/* A topic as the cluster has it. exists = 0 when the broker does not know it. */
struct pr_topic_info {
	int exists;
	int partitions;
	int64_t max_message_bytes; /* -1 unknown (no right to describe) */
	char cleanup_policy[64];   /* "" unknown */
};
int pr_kafka_topic_info(rd_kafka_t *rk, const char *topic, int timeout_ms, struct pr_topic_info *ret,
	struct pr_err *err) PR_MUSTCHECK;

/* Creates a topic with "config=value" pairs (NULL-terminated); existing is not an error (*ret_created = 0).
 * replication -1: the broker's default. */
int pr_kafka_create_topic(rd_kafka_t *rk, const char *topic, int partitions, int replication,
	const char *const *configs, int timeout_ms, int *ret_created, struct pr_err *err) PR_MUSTCHECK;

/* A topic name Kafka accepts: [A-Za-z0-9._-]{1,249}, not "." or "..", not internal ("__..."). */
int pr_kafka_topic_valid(const char *name, size_t len);

#endif
