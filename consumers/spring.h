/* consumers/spring.h -- the headers that Spring Kafka and Kafka Connect write on records that failed, as
 * bytes: theirs are read, and ours are readable to them. Spring writes a partition as 4 and an offset or a
 * timestamp of dead letters as 8 big-endian bytes, attempts as 4 (once it was 1), and the timestamps of retry
 * topics as Java's BigInteger does: as few as hold the number. */
#ifndef CONSUMERS_SPRING_H
#define CONSUMERS_SPRING_H

#include "consumers/message.h"

#include "lib/err.h"

#define SPRING_ATTEMPTS "retry_topic-attempts" /* which try this will be: the first one is 1 */
#define SPRING_DUE      "retry_topic-backoff-timestamp"
#define SPRING_TIME     "retry_topic-original-timestamp"

/* A failure as it stands in headers; all borrowed. */
struct failure {
	const char *group, *handler;
	struct origin from; /* the record that failed first */
	const char *cause;  /* "class:code" */
	const char *reason;
	unsigned attempts;
};

void spring_put_failure(rd_kafka_headers_t *h, const struct failure *f);  /* kafka_dlt-* */
void connect_put_failure(rd_kafka_headers_t *h, const struct failure *f); /* __connect.errors.* */

/* retry_topic-*: handled for the attempt-th time, not before due_us. */
void spring_put_retry(rd_kafka_headers_t *h, unsigned attempt, int64_t due_us, int64_t time_us);

/* Whether a header of this name is one of those above (or postrider-attempts): of an older failure. */
int spring_is_failure(const char *name);

/* Of a record from Kafka, before message_decode: fills due_us, and when it stands in another topic than it
 * first did, attempts and origin. What makes no sense is as if it were missing. */
void spring_read(struct message *m);

/* 1 to 8 big-endian bytes, the first one signed. -1: it is nothing of the kind. */
int spring_number(const void *bytes, size_t n, int64_t *ret) PR_MUSTCHECK;

#endif
