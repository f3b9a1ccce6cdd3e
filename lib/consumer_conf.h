/* lib/consumer_conf.h -- the consumer's options as one table and one struct. The consumer and
 * the operator's CLI (explain-error, dlq, replay) read the same file through it. */
#ifndef PR_CONSUMER_CONF_H
#define PR_CONSUMER_CONF_H

#include "lib/conf.h"
#include "lib/http.h"
#include "lib/otlp.h"
#include "lib/policy.h"
#include "lib/sink_conf.h"

enum pr_handler_kind {
	PR_HANDLER_SQL,
	PR_HANDLER_C,
	PR_HANDLER_HTTP,
	PR_HANDLER_EXEC,
	PR_HANDLER_SAGA,
	PR_HANDLER_SCHEDULER,
	PR_HANDLER_PUSH,
	PR_HANDLER_SINK,
	PR_HANDLER_CANARY
};
enum pr_hang { PR_HANG_TELL, PR_HANG_RESTART };
enum pr_dedupe { PR_DEDUPE_INBOX, PR_DEDUPE_OFFSET };
enum pr_assignment { PR_ASSIGN_AUTO, PR_ASSIGN_RANGE, PR_ASSIGN_STICKY, PR_ASSIGN_CONSUMER };

struct pr_consumer_conf {
	char *group; /* [A-Za-z0-9._-]{1,100}: Kafka group, first column of every inbox table, metric label */
	char *member; /* group.instance.id; NULL: "<host>-<port of http.listen>" (none when that port is 0) */
	struct {
		char *conninfo;     /* NULL: none; positions are in Kafka, what fails goes to retry topics */
		int64_t timeout_us; /* connecting, and every call that is not a handler's */
	} database;
	struct {
		char *brokers;
		struct pr_strs topics; /* names; one that begins with ^ is a regular expression */
		int assignment;        /* enum pr_assignment */
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
		int hang;               /* c: enum pr_hang */
		char *url;              /* http */
		char *secret;           /* http: Standard Webhooks key "whsec_..."; NULL: unsigned */
		struct pr_strs headers; /* http: "Name: value" */
		int64_t response_bytes; /* http, exec: most bytes of one answer */
		int64_t concurrency;    /* http: requests of different keys at once, per lane; exec: messages
					   sent ahead */
		struct pr_strs command; /* exec: program and its arguments, one process per lane */
		struct pr_strs definitions; /* saga: files, or patterns of files */
		int64_t keep_us;  /* saga, scheduler: how long those that have ended are kept, at least */
		int install;      /* scheduler: the start brings its schema to what this program knows */
		int undo;         /* c, http, exec: the handler takes op = undo */
		char *undo_event; /* type of an event published to the outbox instead of a handler's undo */
	} handler;
	struct pr_sink_conf sink; /* kind sink */
	struct {                  /* kind push: users */
		char *listen;     /* of its API */
		struct pr_strs origins;
		char *jwks;
		int64_t streams, per_user; /* open at a time */
		int64_t heartbeat_us;
	} push;
	struct {           /* kind push: administrators */
		char *url; /* of the webhook; NULL: alerts are recorded only */
		struct pr_strs headers;
		char *template_file; /* NULL: our own */
		int64_t window_us;   /* the same cause counts as one so long */
		int64_t rate;        /* most a minute */
		int64_t repeat_us;   /* until somebody acknowledges it */
		int64_t timeout_us;
		char *configs; /* directory of the members' files, for commands */
	} alerts;
	struct {                           /* kind canary */
		int64_t every_us, late_us; /* one is written so often; it is missing after so long */
	} canary;
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
		int64_t sagas_us;   /* what steps of sagas did here is remembered this long at least */
	} inbox;
	struct {
		char *topic; /* dead letters also go here; NULL: only the table; without a database: see
				pr_consumer_dead_topic */
	} dead_letter;
	struct {
		struct pr_strs delays; /* without a database: a retry topic each */
	} retry;
	char *on_gap; /* records lost to retention before we read them: "stop" or "skip" */
	struct {
		char *listen;
		char *token;
		struct pr_http_tls tls;
	} http;
	struct {
		char *name; /* NULL: not said */
		int colour; /* index into PR_PAGE_COLOURS */
	} environment;
	struct pr_tracing_conf tracing;
	int64_t history_us;
	char *log_level;
	int64_t drain_us;
};

extern const struct pr_opt pr_consumer_options[];

/* What the table cannot say: names, contradictions, handler kinds and what they need, librdkafka's
 * properties (isolation.level, enable.auto.commit, group.id, auto.offset.reset, ... are refused by name).
 * Contacts nothing. */
int pr_consumer_conf_validate(
	const void *target, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

/* Whether one of kafka.topics names it, or is a pattern (^...) that matches. */
int pr_consumer_reads(const struct pr_strs *topics, const char *name);

/* Whether filter.types lets it pass: those with a ! exclude; of the others one must match, when there is any.
 */
int pr_consumer_wants(const struct pr_strs *types, const char *type, size_t len);

/* How partitions are shared out with a librdkafka of that version (rd_kafka_version): what auto comes to, the
 * rest as it is. */
enum pr_assignment pr_assignment_of(int wanted, int version);

/* Lowest version that has it right. */
int pr_assignment_needs(enum pr_assignment how);
const char *pr_assignment_str(enum pr_assignment how);

/* Without a database. Names, owned by the caller: <topic>.retry.<group>.<n>, n from 1; dead_letter.topic or
 * <topic>.dlt.<group>. */
char *pr_consumer_retry_topic(const struct pr_consumer_conf *conf, const char *topic, int n);
char *pr_consumer_dead_topic(const struct pr_consumer_conf *conf, const char *topic);

/* The rule for a failure, as pr_policy_of; but what takes the process along is a dead letter by the built-in
 * one: retry topics bring it back too soon. */
const struct pr_rule *pr_consumer_rule(
	const struct pr_consumer_conf *conf, enum pr_fail_class cls, const char *code);

/* Of the n-th retry topic, from 1. */
int64_t pr_consumer_delay_us(const struct pr_consumer_conf *conf, int n);

/* Whether the http handler sets a header of this name itself, or it frames the message: handler.headers may
 * not name it. */
int pr_consumer_header_reserved(const char *name, size_t n);

/* For the options of others that are the same: a URL that is posted to, headers and signing key. */
int pr_consumer_check_url(
	const char *url, const char *key, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;
int pr_consumer_check_webhook(const struct pr_strs *headers, const char *headers_key, const char *secret,
	const char *secret_key, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

#endif
