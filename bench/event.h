/* bench/event.h -- the event that consumers are measured with: the contract's record, made from its number,
 * so that a topic and a loop without Kafka hold the same bytes. */
#ifndef BENCH_EVENT_H
#define BENCH_EVENT_H

#include <stddef.h>
#include <stdint.h>

#define EVENT_HEADERS 5
#define EVENT_TYPE    "Transferred"

struct event_header {
	const char *name, *value;
	size_t len;
};

struct event {
	long n;
	unsigned char id[16];
	char key[24], payload[200], id_text[40], seq[24], created[40];
	size_t key_len, payload_len;
	int64_t created_us;                        /* wall */
	struct event_header header[EVENT_HEADERS]; /* borrows from this struct */
};

/* Which of keys event n has: as if drawn by lot, always the same. */
long event_key(long n, long keys);

/* ids: all events of one topic were made with the same; wall time. */
void event_make(struct event *ret, long n, long keys, int64_t ids_us);

#endif
