/* consumers/message.h -- one record on its way to a handler, whatever it came from: Kafka, inbox.parked
 * or a replay. Payload and key stay in the buffer that librdkafka (or Postgres) gave us. */
#ifndef CONSUMERS_MESSAGE_H
#define CONSUMERS_MESSAGE_H

#include "lib/consumer_conf.h"
#include "lib/json.h"

#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>
#include <stdint.h>

struct outcome;
struct message_trace;
struct part;
struct replay;
struct pr_pg;

struct header {
	const char *name;
	const char *value; /* NULL: null */
	size_t len;
};

/* Where a record stood first, when it came through a retry topic: what handlers and dead letters tell of it.
 */
struct origin {
	const char *topic;
	int64_t offset;
	int64_t time_us; /* -1 unknown */
	int32_t partition;
	char name[250]; /* topic, when it is not borrowed */
};

enum id_state { ID_OK, ID_MISSING, ID_MALFORMED };

/* It is written by one thread and read by another, and thousands are in work: what is asked for together lies
 * in one line of the cache (64 bytes). */
struct message {
	/* the queue */
	struct message *next;  /* of the list that holds it */
	struct part *part;     /* counted reference; NULL: from inbox.parked */
	struct replay *replay; /* NULL: live. A replayed message moves no position */
	int64_t after; /* its lane's position is this at least once what came before it is done with */
	int64_t offset;
	int64_t time_us; /* of the record, since 1970; -1 unknown */
	int32_t partition;
	int lane;     /* of part->lane_count */
	size_t bytes; /* what it counts for in every bound: payload, key, headers and this struct */
	const char *topic;

	/* memory */
	rd_kafka_message_t *rkm; /* owner of the bytes, as row and buffer are */
	struct header *headers;  /* headers_n of them, in order; owned, as header_bytes is. Known after
				    message_decode */
	size_t headers_n;
	char *header_bytes;    /* message_read_headers */
	struct origin *origin; /* owned; NULL: it stands where it stood first. message_origin */
	struct outcome *why;   /* it last failed of; owned, NULL: it never did. message_failed, message_why */
	const char *key;       /* NULL: none */
	size_t key_len;

	/* identity; known after message_decode, but for parked and dead_letter */
	unsigned char
		id[16]; /* uuid; of a text that is none: the first 16 bytes of its SHA-256, as version 8 */
	int64_t hash;   /* XXH3 of the payload: the same id with another hash is not the same message */
	int64_t dead_letter; /* the dead letter this is another try of; 0: none */
	int64_t parked;      /* inbox.parked.entry it was read from; 0: none */
	enum id_state id_state;
	int json;            /* the payload is text that jsonb takes */
	const char *payload; /* NULL: tombstone */
	size_t payload_len;

	const char *type; /* header type; "" when missing; known after message_decode, as what follows */
	size_t type_len;
	const char *traceparent; /* what handlers get; NULL when missing */
	size_t traceparent_len;
	int64_t due_us;    /* wall: not to be handled before; of a retry topic, else 0 */
	int suspect;       /* parked because the breaker's probe failed with it, while others got through */
	unsigned attempts; /* failed tries so far, also before a restart */
	char id_text[100]; /* as it came, cut; of "offset": topic-partition-offset */
	struct message_trace *trace; /* owned; NULL: it makes no span. spans.c */
};

/* Takes the record. Knows key and place only: message_decode, on the lane's thread, does the rest. */
struct message *message_of_record(rd_kafka_message_t *rkm);

/* Headers, id, type, trace, hash and whether the payload is JSON. Once; never fails: what is wrong is in
 * id_state. */
void message_decode(struct message *m, const struct pr_consumer_conf *conf);
void message_free(struct message *m);        /* accepts NULL; drops the reference to the part */
void message_free_all(struct message *list); /* by next */

/* What it failed of, kept with it: few do, and thousands are in work. */
void message_failed(struct message *m, const struct outcome *why);
const struct outcome *message_why(const struct message *m); /* all zero when it never failed */

/* What a traced message has besides. */
struct message_trace {
	struct pr_trace parent; /* whose child its span is */
	unsigned char span[8];
	char traceparent[PR_TRACEPARENT_LEN + 1]; /* of its span: handlers see it instead of the record's */
	size_t headers_n;
	struct header headers[]; /* the record's, with that one */
};

/* The headers as handlers see them. */
const struct header *message_given_headers(const struct message *m, size_t *ret_n);

/* Where it stood first: here, or before it went through retry topics. */
struct origin message_origin(const struct message *m);

/* Whether conf.filter wants it (after decode). */
int message_wanted(const struct message *m, const struct pr_consumer_conf *conf);

/* Headers from what message_put_headers wrote (inbox.parked.headers), for a message that is no record of
 * Kafka; before message_decode. json NULL: none. */
void message_read_headers(struct message *m, const char *json);

/* Value of the last header of that name, NULL when missing. */
const struct header *message_header(const struct message *m, const char *name);

/* Type ids that a connection needs to send messages; read once per connection. */
struct message_types {
	Oid message, message_array;
};
int message_types_read(struct message_types *ret, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

/* Appends inbox.message[] in Postgres' binary format. Fields: id uuid, topic text, partition int,
 * message_offset bigint, key text, type text, payload jsonb, payload_bytes bytea, headers jsonb,
 * time timestamptz. payload is set when m->json; payload_bytes when not (both NULL: tombstone).
 * A key that is no UTF-8 (or holds a NUL) goes as "base64:..." of its bytes. */
void message_put_array(
	struct pr_buf *b, const struct message_types *types, struct message *const *m, size_t n);

/* The headers of the record as one JSON object (the last of a name wins; a value that is no UTF-8 is
 * {"base64": "..."}). */
void message_put_headers(struct pr_buf *b, const struct message *m);

/* The same as handlers see them. */
void message_put_given_headers(struct pr_buf *b, const struct message *m);

/* The same of any such list. */
void message_put_header_list(struct pr_buf *b, const struct header *headers, size_t n);

/* Base64 of the bytes; a JSON text with its line ends as blanks. */
void message_put_base64(struct pr_buf *b, const char *s, size_t n);
void message_put_on_one_line(struct pr_buf *b, const char *s, size_t n);

/* The JSON line that exec and http handlers get: {"op":"do","id","type","topic","partition","offset","key",
 * "time","attempt","headers":{},"payload":...} as the sink's line (contracts 2); no newline. */
void message_put_json(struct pr_buf *b, const struct message *m, const char *op);

/* Where among lanes a key belongs, 31 bits: murmur2 of the key, mixed once more, for all keys of one
 * partition have the same murmur2 modulo the number of partitions; without a key, the offset.
 * inbox.parked.lane_hash. */
int32_t message_lane_hash(const struct message *m);

/* The key as text, as inbox.message has it: "base64:..." of bytes that are no text. m->key must be there. */
void message_put_key(struct pr_buf *b, const struct message *m);

/* message_lane_hash % n. */
int message_lane(const struct message *m, int n);

#endif
