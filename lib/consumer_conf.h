/* lib/consumer_conf.h -- the consumer's options as one table and one struct. The consumer and
 * the operator's CLI (explain-error, dlq, replay) read the same file through it. */
#ifndef PR_CONSUMER_CONF_H
#define PR_CONSUMER_CONF_H

#include "lib/conf.h"
#include "lib/policy.h"

enum pr_handler_kind { PR_HANDLER_SQL, PR_HANDLER_C, PR_HANDLER_HTTP, PR_HANDLER_EXEC };
enum pr_dedupe { PR_DEDUPE_INBOX, PR_DEDUPE_OFFSET };

struct pr_consumer_conf {
	char *group; /* [A-Za-z0-9._-]{1,100}: Kafka group, first column of every inbox table, metric label */
	char *member; /* group.instance.id; NULL: "<host>-<port of http.listen>" (none when that port is 0) */
	struct {
		char *conninfo;
		int64_t timeout_us; /* connecting, and every call that is not a handler's */
	} database;
	struct {
		char *brokers;
		struct pr_strs topics; /* names; one that begins with ^ is a regular expression */
		struct pr_strs properties;
		int64_t timeout_us;
	} kafka;
	int64_t lanes; /* workers, each with its own connection: parallel across keys, strict within one */
	struct {
		int kind;               /* enum pr_handler_kind */
		int64_t timeout_us;     /* of one call: a statement, a request, a message of a subprocess */
		char *function;         /* sql: schema.name(inbox.message) or schema.name(inbox.message[]) */
		char *undo_function;    /* sql: run in the transaction that buries the message */
		char *library;          /* c: path of the shared object */
		char *options;          /* c: text for its open() */
		char *url;              /* http */
		char *secret;           /* http: Standard Webhooks key "whsec_..."; NULL: unsigned */
		struct pr_strs headers; /* http: "Name: value" */
		int64_t response_bytes; /* http, exec: most bytes of one answer */
		int64_t concurrency;    /* http: requests of different keys at once, per lane; exec: messages
					   sent ahead */
		struct pr_strs command; /* exec: program and its arguments, one process per lane */
		int undo;               /* c, http, exec: the handler takes op = undo */
		char *undo_event; /* type of an event published to the outbox instead of a handler's undo */
	} handler;
	int dedupe; /* enum pr_dedupe */
	char *id; /* "header:NAME" (default header:id), "json:path.to.id" or "offset" (topic-partition-offset)
		   */
	struct {
		struct pr_strs types;   /* empty: all; trailing * matches any end */
		struct pr_strs headers; /* "name=value", all must match */
	} filter;                       /* what does not match counts as filtered and is stepped over */
	struct pr_groups errors;        /* struct pr_rule, first match wins; then pr_default_rules */
	struct {
		int64_t batch_events; /* most messages of one transaction */
		int64_t batch_bytes;
		int64_t buffer_bytes;   /* of messages read and not yet committed, all lanes together */
		int64_t prefetch_bytes; /* librdkafka's own queue, per partition */
		int64_t parked_keys;    /* most keys held back per process; past it reading stops */
		int64_t crashes; /* a message that took the process along this often is handled as "crash" */
	} limits;
	struct {
		int64_t keep_us;    /* message ids are remembered this long at least */
		int64_t horizon_us; /* how old a message may come again (replay, restored offsets); <= keep */
	} inbox;
	struct {
		char *topic; /* dead letters also go here; NULL: only the table */
	} dead_letter;
	char *on_gap; /* records lost to retention before we read them: "stop" or "skip" */
	struct {
		char *listen;
		char *token;
	} http;
	char *log_level;
	int64_t drain_us;
};

extern const struct pr_opt pr_consumer_options[];

/* What the table cannot say: names, contradictions, handler kinds and what they need, librdkafka's
 * properties (isolation.level, enable.auto.commit, group.id, auto.offset.reset, ... are refused by name).
 * Contacts nothing. */
int pr_consumer_conf_validate(
	const void *target, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

/* Whether the http handler sets a header of this name itself, or it frames the message: handler.headers may
 * not name it. */
int pr_consumer_header_reserved(const char *name, size_t n);

#endif
