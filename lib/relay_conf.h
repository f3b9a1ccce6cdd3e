/* lib/relay_conf.h -- the relay's options as one table and one struct. The relay and
 * the operator's CLI read the same file through it. */
#ifndef PR_RELAY_CONF_H
#define PR_RELAY_CONF_H

#include "lib/conf.h"
#include "lib/http.h"
#include "lib/otlp.h"

enum pr_delivery { PR_EXACTLY_ONCE, PR_AT_LEAST_ONCE };
enum pr_engine { PR_ENGINE_TABLE, PR_ENGINE_NULL };

struct pr_relay_conf {
	char *name; /* [a-z0-9_-]{1,60}: position topic, transactional id, metric label */
	struct {
		char *conninfo;
		int layout; /* "native" */
		int engine; /* enum pr_engine; null: rows invented in memory, to measure the rest */
		int64_t timeout_us;
	} source;
	struct {
		char *brokers;
		struct pr_strs properties;
		int64_t timeout_us; /* give up on one broker call, then start over with a new producer */
	} kafka;
	int delivery; /* enum pr_delivery */
	struct {
		char *topic; /* template with ${aggregatetype} */
	} route;
	struct {
		int64_t batch_events; /* most events in one Kafka transaction, and in flight */
		int64_t batch_bytes;
		int64_t poll_min_us, poll_max_us, gather_us;
		int64_t parked_keys;    /* most keys held back; past it the relay stops */
		int64_t waiting_topics; /* most topics waited for */
		int64_t topics;         /* most topics one relay writes to */
	} limits;
	struct {
		int64_t keep_us;
		int64_t partition_events;
		int64_t ahead; /* least ranges kept ready ahead of the sequence */
		int64_t every_us;
	} retention;
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
	int64_t drain_us; /* how long SIGTERM waits for what is in flight */
};

extern const struct pr_opt pr_relay_options[];

/* What the table cannot say: names, contradictions, librdkafka's properties. Contacts nothing. */
int pr_relay_conf_validate(const void *target, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

#endif
