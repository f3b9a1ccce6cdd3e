/* consumers/postrider_handler.h -- the C handler's ABI: write a shared object that exports one symbol,
 *
 *     const struct postrider_handler postrider_handler = { POSTRIDER_HANDLER_V1, .handle = handle };
 *
 * and name it in the consumer's config: handler: { kind = "c"; library = "/path/to/it.so"; };
 *
 *     cc -shared -fPIC -o handler.so handler.c $(pkg-config --cflags --libs libpq)
 *
 * This file is complete in itself and stable: what stands in version 1 never changes its meaning or its
 * place; later releases add at the end of a struct only, and a library built with an older file goes on.
 *
 * Threads. There is one instance per lane, and each lane is a thread of its own: open, handle and close of
 * one ctx are called by one thread, those of different lanes at the same time. Global variables are shared.
 *
 * Memory. All that a message points to is borrowed until handle returns. Nothing but id, topic and the
 * names of headers ends in a NUL byte: use the sizes.
 *
 * Transaction. conn is inside an open transaction (read committed, the search_path of its role).
 * What the handler writes there, what it publishes to the outbox, the message ids and the offset commit as
 * one. So a handler never commits, rolls back or begins; SAVEPOINT and ROLLBACK TO are fine. One that ends
 * the transaction stops the consumer. Whatever it prepares, sets or creates for the session stays there;
 * the session may be another one at the next call.
 *
 * Without a database (a config that names none) conn is NULL, n is 1, and nothing is rolled back: effects lie
 * outside, a crash may repeat the last of them, and the id tells. Only a library that has the flag
 * POSTRIDER_NO_DATABASE is called so.
 *
 * Time. No deadline of ours reaches into a libpq call of yours. The server keeps one: the transaction's
 * statement_timeout is handler.timeout, and a statement that runs into it fails the call as class "timeout".
 * Against a server that has gone without a word, put tcp_user_timeout=... into database.conninfo. Whoever
 * waits for something else waits alone: the lane stands still meanwhile.
 *
 * A crash takes the whole consumer along. It is counted, and a message that did it limits.crashes times is
 * held back as class "crash". */
#ifndef POSTRIDER_HANDLER_H
#define POSTRIDER_HANDLER_H

#include <libpq-fe.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define POSTRIDER_HANDLER_ABI 1

struct postrider_header {
	const char *name;
	const char *value; /* NULL: a null header */
	size_t size;
};

enum {                          /* flags of a message */
	POSTRIDER_IS_JSON = 1,  /* the payload is text that jsonb takes */
	POSTRIDER_REPLAYED = 2, /* it comes from a replay that an operator asked for */
};

struct postrider_message {
	const char *id; /* text, as it came (cut at 99 bytes): the idempotency key */
	const char *topic;
	int64_t offset;
	int64_t time_us; /* of the record, since 1970; -1 unknown */
	const char *key; /* NULL: none */
	size_t key_size;
	const char *payload; /* NULL: a tombstone */
	size_t payload_size;
	const char *type; /* header type; size 0 when missing */
	size_t type_size;
	const struct postrider_header *headers; /* in the order of the record */
	size_t headers_count;
	int32_t partition;
	uint32_t attempts; /* failed tries before this one */
	uint32_t flags;
	unsigned char uuid[16]; /* id, as the inbox keeps it */
};

enum {                            /* status of a result */
	POSTRIDER_OK = 0,         /* handled */
	POSTRIDER_FAILED = 1,     /* code is a word of your own; rules match it as "reply:<code>" */
	POSTRIDER_FAILED_SQL = 2, /* code is a SQLSTATE; rules match it as "sqlstate:<code>" */
};

/* All zero when handle is called: handled. */
struct postrider_result {
	int32_t status;
	char code[32];          /* "" becomes "failed" */
	char text[512];         /* for people: it is kept with the message */
	int64_t retry_after_ms; /* not before; 0: whatever the policy says */
};

enum { POSTRIDER_DO = 0, POSTRIDER_UNDO = 1 }; /* op */

enum {                             /* flags of a handler */
	POSTRIDER_CAN_UNDO = 1,    /* handle takes POSTRIDER_UNDO; needed for handler.undo = true */
	POSTRIDER_NO_DATABASE = 2, /* handle works with conn = NULL; needed for a config without database */
};

enum { /* what open returns */
	POSTRIDER_OPENED = 0,
	POSTRIDER_OPEN_LATER = 1,   /* something it needs is away: asked again by and by */
	POSTRIDER_OPEN_REFUSED = 2, /* options make no sense: the consumer ends with status 78 */
};

struct postrider_handler {
	uint32_t abi;  /* POSTRIDER_HANDLER_ABI */
	uint32_t size; /* sizeof(struct postrider_handler) */
	uint64_t flags;
	const char *name; /* for the log; NULL: the file's */

	/* Optional. options: handler.options of the config, "" when not set. Sets *ctx, or fills error (a
	 * text of at most error_size bytes with its NUL). */
	int (*open)(const char *options, int lane, void **ctx, char *error, size_t error_size);

	/* Handles messages[0..n) in their order, n >= 1: do, or undo what do did. Those of one key keep their
	 * order. At the first that fails, fill its result and return: the transaction is rolled back, the
	 * good ones before it come again without it, and it is dealt with by itself. What is set for later
	 * ones is not looked at. Returns 0; anything else: failed as a whole, whatever results say about
	 * which one. A statement that failed and was told nothing about fails the call with that SQLSTATE: to
	 * pass PQexec's errors on, just return. */
	int (*handle)(void *ctx, PGconn *conn, int op, const struct postrider_message *const *messages,
		size_t n, struct postrider_result *const *results);

	/* Optional. Called once for each ctx that was opened. */
	void (*close)(void *ctx);
};

#define POSTRIDER_HANDLER_V1 .abi = POSTRIDER_HANDLER_ABI, .size = (uint32_t)sizeof(struct postrider_handler)

#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
extern const struct postrider_handler postrider_handler;

#ifdef __cplusplus
}
#endif

#endif
