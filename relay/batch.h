/* relay/batch.h -- events on their way from a COPY row to a Kafka record.
 *
 * An event points into the row that libpq gave us; nothing is copied until librdkafka
 * writes it to a socket. A batch owns its rows, and its turn by a reference; it lives
 * until the broker has acknowledged every one of its events. */
#ifndef RELAY_BATCH_H
#define RELAY_BATCH_H

#include "lib/position.h"

#include <stdatomic.h>
#include <stdint.h>

/* A piece of a row; s == NULL for SQL NULL. Not NUL-terminated. */
struct span {
	const char *s;
	uint32_t n;
};

struct event {
	char *row; /* PQfreemem */
	int64_t seq;
	uint64_t xid;
	int64_t created_us; /* wall clock, since 1970 */
	unsigned char id[16];
	struct span aggregatetype, key, type, headers, topic, trace, payload;
	int32_t partition;    /* -1: by key */
	int32_t opens;        /* 1 + the partition whose first record of this producer it is; 0 none */
	unsigned is_json : 1; /* payload came from jsonb */
	unsigned foreign : 1; /* xid that this server has not assigned yet: never published */
	unsigned held : 1;    /* parked or waiting: not on its topic yet */
	unsigned traced : 1;  /* its delivery makes a span */
	struct topic *on;     /* the topic it was produced to; NULL not yet */
	struct batch *batch;  /* the one it belongs to */
};

/* One difference of two snapshots, shared by the batches cut from it. */
struct turn {
	atomic_int refs;
	struct pr_mark from, to;
	uint64_t lsn;
};

struct batch {
	struct turn *turn;
	struct event *ev;
	size_t n, cap;
	size_t bytes;        /* of rows */
	int ends_turn;       /* its last event is the last of the difference */
	int64_t oldest_us;   /* smallest created_us; INT64_MAX when empty */
	int64_t before;      /* highest seq of everything before it */
	int64_t top;         /* highest seq of its rows, foreign ones too; 0 when empty */
	uint64_t generation; /* of the pipe when it was read */
	size_t outstanding;  /* at_least_once: delivery reports still owed */
	size_t counted;      /* events from the first on that the metrics know as acknowledged */
	struct batch *next;
};

struct turn *turn_new(void);
struct turn *turn_hold(struct turn *t);
void turn_drop(struct turn *t); /* accepts NULL */

struct batch *batch_new(struct turn *t, size_t cap); /* holds t */
void batch_free(struct batch *b);                    /* frees the rows; accepts NULL */

/* Decodes one COPY BINARY row of the chunk queries (columns in the order of source_table.c) into the next
 * slot of b, which takes the row. -1 when it is not such a row; then the row is still the caller's. */
int batch_add_row(struct batch *b, char *row, size_t len, struct pr_err *err) PR_MUSTCHECK;

/* The position after the first k events of b are published: fills from, to, seq, top and lsn of *p and leaves
 * the identity alone. *p's old marks are freed. */
void batch_position(const struct batch *b, size_t k, struct pr_position *p);

/* Columns of a chunk, for the SQL and for whoever makes test rows. */
/* '{}' takes 5 bytes and is not worth writing out for most rows. */
#define ROW_COLUMNS                                                                                          \
	"seq, xid, id, created_at, aggregatetype, aggregateid, type, "                                       \
	"CASE WHEN pg_catalog.pg_column_size(headers) > 5 THEN headers END, topic, \"partition\", "          \
	"tracingspancontext, payload, payload_bytes"
#define ROW_FIELDS 14 /* and whether the xid is foreign */

#endif
