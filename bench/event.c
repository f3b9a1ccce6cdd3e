/* bench/event.c -- the one event of the consumer's measures. Refuses nothing: numbers are the caller's. */
#include "bench/event.h"

#include "lib/clock.h"
#include "lib/uuid.h"

#include <stdio.h>
#include <string.h>

/* Source: splitmix64 (Vigna), public domain. */
static uint64_t mix(uint64_t v)
{
	v += 0x9e3779b97f4a7c15ULL;
	v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ULL;
	v = (v ^ v >> 27) * 0x94d049bb133111ebULL;
	return v ^ v >> 31;
}

long event_key(long n, long keys)
{
	return (long)(mix((uint64_t)n) % (uint64_t)keys);
}

/* As outbox.uuid7() gives them: time first (100 events a millisecond), then chance. */
static void make_id(unsigned char id[16], long n, int64_t ids_us)
{
	uint64_t ms = (uint64_t)(ids_us / 1000 + n / 100), a = mix((uint64_t)n), b = mix(a);

	for (int i = 0; i < 6; i++)
		id[i] = (unsigned char)(ms >> (40 - 8 * i));
	memcpy(id + 6, &a, 2);
	memcpy(id + 8, &b, 8);
	id[6] = (unsigned char)(0x70 | (id[6] & 0x0f));
	id[8] = (unsigned char)(0x80 | (id[8] & 0x3f));
}

static struct event_header text(const char *name, const char *value)
{
	return (struct event_header){ name, value, strlen(value) };
}

void event_make(struct event *e, long n, long keys, int64_t ids_us)
{
	e->n = n;
	make_id(e->id, n, ids_us);
	(void)pr_uuid_print(e->id, e->id_text);
	e->created_us = ids_us + n * 10;
	(void)pr_rfc3339(e->created_us, e->created);
	(void)snprintf(e->seq, sizeof(e->seq), "%ld", n);
	e->key_len = (size_t)snprintf(e->key, sizeof(e->key), "key-%ld", event_key(n, keys));
	e->payload_len = (size_t)snprintf(e->payload, sizeof(e->payload),
		"{\"n\": %ld, \"amount\": %ld, \"pad\": \"%0100d\"}", n, n % 97, 0);
	e->header[0] = text("id", e->id_text);
	e->header[1] = text("type", EVENT_TYPE);
	e->header[2] = text("content-type", "application/json");
	e->header[3] = text("outbox-seq", e->seq);
	e->header[4] = text("outbox-created-at", e->created);
}
