/* relay/record.h -- event -> Kafka record, as contracts give it: key, value, headers. */
#ifndef RELAY_RECORD_H
#define RELAY_RECORD_H

#include "relay/topics.h"

#include "lib/json.h"

struct record_maker {
	struct pr_buf scratch;
	int64_t second; /* of which stamp holds the text */
	char stamp[32];
	size_t stamp_len;
};
void record_maker_release(struct record_maker *m);

/* Hands the event to librdkafka without copying key or value: they must live until its delivery report, or
 * the end of the transaction. opaque comes back with the report. Returns 0, or librdkafka's error code
 * (QUEUE_FULL: poll and try again). */
rd_kafka_resp_err_t record_produce(
	struct record_maker *m, rd_kafka_t *rk, const struct topic *topic, struct event *e, void *opaque);

/* The row's traceparent, bare or in Debezium's properties; s NULL: it has none that is one. */
struct span record_traceparent(const struct event *e);

/* What a broker counts against max.message.bytes, about: payload, key, headers, framing. */
size_t record_size(const struct event *e);

#endif
