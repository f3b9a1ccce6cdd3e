/* lib/relay_conf.c -- the relay's options and what they must fulfil together. The table is
 * the one place an option is named, bounded and explained; docs/reference and etc/ are
 * printed from it. Contacts nothing: Postgres and Kafka are asked at start. */
#include "lib/relay_conf.h"

#include "lib/clock.h"
#include "lib/conf_check.h"
#include "lib/kafka.h"
#include "lib/page.h"

#include <ctype.h>
#include <string.h>

#define AT(field) offsetof(struct pr_relay_conf, field)
#define PORT      "9470"
#define PROGRAM   "postrider-relay"
#define KB        1024LL
#define MB        (1024 * KB)
#define DAY       (86400 * PR_SEC)

const struct pr_opt pr_relay_options[] = {
	{ "name", PR_OPT_STR, AT(name), .flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD, .example = "orders",
		.doc = "The outbox's name, 1 to 60 of a-z, 0-9, _ and -. It names the position topic "
		       "(postrider.positions.NAME), the transactional id and the metrics' label; "
		       "never change it for an outbox that was published." },
	{ "source.conninfo", PR_OPT_CONNINFO, AT(source.conninfo),
		.flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD,
		.example = "host=127.0.0.1 dbname=orders user=outbox_relay",
		.doc = "The database with the outbox, as libpq takes it; PG* variables, ~/.pgpass and "
		       "service files work." },
	{ "source.layout", PR_OPT_ENUM, AT(source.layout), "native", .choices = "native",
		.flags = PR_OPT_NO_RELOAD,
		.refused = "the relay reads outbox.event only; for an outbox table of another kind: "
			   "postrider adopt TABLE",
		.doc = "How the outbox's tables look: native is the schema of postrider init. Other "
		       "tables are connected to it by postrider adopt." },
	{ "source.engine", PR_OPT_ENUM, AT(source.engine), "table", .choices = "table|null",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Where rows come from: table reads outbox.event; null invents rows in memory, "
		       "to measure the rest." },
	{ "source.timeout", PR_OPT_DURATION, AT(source.timeout_us), "5s", .min = 100 * PR_MS,
		.max = 600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Deadline of connecting to Postgres and of each statement; past it the "
		       "connection is closed and opened anew." },
	{ "kafka.brokers", PR_OPT_STR, AT(kafka.brokers), .flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD,
		.example = "127.0.0.1:9092",
		.doc = "The first brokers to ask, host:port, separated by commas." },
	{ "kafka.properties", PR_OPT_STRS, AT(kafka.properties), .flags = PR_OPT_NO_RELOAD,
		.example = "compression.codec=lz4",
		.doc = "Further librdkafka properties, \"name=value\" each. Those that would break "
		       "the guarantee are refused by name. Secret ones may be "
		       "\"sasl.password=env:NAME\" or \"sasl.password=file:/path\"." },
	{ "kafka.timeout", PR_OPT_DURATION, AT(kafka.timeout_us), "10s", .min = PR_SEC, .max = 600 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long one broker call may take before the relay starts over with a new "
		       "producer." },
	{ "delivery", PR_OPT_ENUM, AT(delivery), "exactly_once", .choices = "exactly_once|at_least_once",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "exactly_once writes events and position in one Kafka transaction; "
		       "at_least_once is faster to arrive (no transaction to wait for) and repeats "
		       "events after a crash." },
	{ "route.topic", PR_OPT_STR, AT(route.topic), "outbox.event.${aggregatetype}",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "The topic of an event that names none itself; ${aggregatetype} is the row's." },
	{ "limits.batch_events", PR_OPT_INT, AT(limits.batch_events), "10000", .min = 1, .max = 1000000,
		.doc = "Most events in one Kafka transaction, and most in flight." },
	{ "limits.batch_bytes", PR_OPT_SIZE, AT(limits.batch_bytes), "8MB", .min = 64 * KB, .max = 1024 * MB,
		.doc = "Most bytes of payload in one Kafka transaction, and most in flight. One event "
		       "that is larger goes alone." },
	{ "limits.poll_min", PR_OPT_DURATION, AT(limits.poll_min_us), "1ms", .min = 100, .max = 60 * PR_SEC,
		.doc = "Shortest wait before the database is asked again when there was nothing to do." },
	{ "limits.poll_max", PR_OPT_DURATION, AT(limits.poll_max_us), "10ms", .min = 100, .max = 60 * PR_SEC,
		.doc = "Longest such wait, reached when idle: what a lone event may wait for." },
	{ "limits.gather", PR_OPT_DURATION, AT(limits.gather_us), "0", .min = 0, .max = 10 * PR_SEC,
		.doc = "While events keep coming: least time from one look at the database that finds some "
		       "to the next. A Kafka transaction costs relay, broker and readers the same CPU "
		       "whatever is in it, so fewer and larger ones are cheaper; a backlog and a lone event "
		       "do not wait. 0: none." },
	{ "limits.parked_keys", PR_OPT_INT, AT(limits.parked_keys), "10000", .min = 1, .max = 10000000,
		.doc = "Most keys held back at a time because one of their events cannot be "
		       "published; past it the relay stops." },
	{ "limits.waiting_topics", PR_OPT_INT, AT(limits.waiting_topics), "1000", .min = 1, .max = 100000,
		.doc = "Most topics waited for at a time because the brokers do not have them yet." },
	{ "limits.topics", PR_OPT_INT, AT(limits.topics), "10000", .min = 1, .max = 1000000,
		.doc = "Most topics one relay writes to." },
	{ "retention.keep", PR_OPT_DURATION, AT(retention.keep_us), "7d", .max = 3650 * DAY,
		.doc = "How long published events stay in the outbox, at least: whole ranges are "
		       "dropped." },
	{ "retention.partition_events", PR_OPT_INT, AT(retention.partition_events), "5M", .min = 1000,
		.max = 1000000000, .doc = "Events in one range (partition) of outbox.event." },
	{ "retention.ahead", PR_OPT_INT, AT(retention.ahead), "16", .min = 2, .max = 1000,
		.doc = "Least number of empty ranges kept ready ahead, so that writers never wait for "
		       "the relay, also when it is down for days." },
	{ "retention.every", PR_OPT_DURATION, AT(retention.every_us), "5s", .min = 100 * PR_MS, .max = DAY,
		.doc = "How often ranges are made and dropped." },
#define PR_PROGRAM_OPTIONS_HERE
#include "lib/program_conf_table.h"
	{ "shutdown.drain", PR_OPT_DURATION, AT(drain_us), "10s", .max = 3600 * PR_SEC,
		.doc = "How long SIGTERM and SIGINT wait for what is in flight; what is not done by "
		       "then is published after the next start." },
	{ 0 },
};

static int check_name(const struct pr_relay_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	size_t n = strspn(c->name, "abcdefghijklmnopqrstuvwxyz0123456789_-");

	if (n == 0 || c->name[n] != '\0')
		return pr_conf_fail(conf, "name", err, "may hold a-z, 0-9, _ and - only");
	if (n > 60)
		return pr_conf_fail(conf, "name", err, "is %zu characters long, at most 60", n);
	return 0;
}

/* Every part but ${aggregatetype} must be fit for a topic, and leave room for what replaces it. */
static int check_topic(const struct pr_relay_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	static const char var[] = "${aggregatetype}";
	const char *t = c->route.topic, *key = "route.topic";
	int vars = 0;
	size_t n = 0;

	while (*t) {
		if (strncmp(t, var, sizeof(var) - 1) == 0) {
			t += sizeof(var) - 1;
			vars++;
		} else if (*t == '$') {
			return pr_conf_fail(conf, key, err, "knows no variable but %s", var);
		} else if (!isascii(*t) || (!isalnum((unsigned char)*t) && !strchr("._-", *t))) {
			return pr_conf_fail(conf, key, err,
				"may hold letters, digits, \".\", \"_\", \"-\" and %s only", var);
		} else {
			t++;
			n++;
		}
	}
	if (n + (size_t)vars > 249 || n + (size_t)vars == 0)
		return pr_conf_fail(conf, key, err, "must be 1 to 249 characters");
	if (strncmp(c->route.topic, "__", 2) == 0)
		return pr_conf_fail(conf, key, err, "topics that begin with __ are Kafka's own");
	if (vars == 0 && !pr_kafka_topic_valid(c->route.topic, strlen(c->route.topic)))
		return pr_conf_fail(conf, key, err, "is no name for a topic");
	return 0;
}

static int check_polling(const struct pr_relay_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (c->limits.poll_min_us > c->limits.poll_max_us)
		return pr_conf_fail(conf, "limits.poll_min", err, "must not be more than limits.poll_max");
	return 0;
}

static int check_common(const struct pr_relay_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (pr_check_brokers(c->kafka.brokers, conf, err) < 0 ||
		pr_check_properties(&c->kafka.properties, 0, conf, err) < 0 ||
		pr_check_listen(c->http.listen, c->http.token, &c->http.tls, conf, err) < 0 ||
		pr_tracing_check(&c->tracing, conf, err) < 0)
		return -1;
	return pr_check_log_level(c->log_level, conf, err);
}

int pr_relay_conf_validate(const void *target, const struct pr_conf *conf, struct pr_err *err)
{
	static int (*const checks[])(const struct pr_relay_conf *, const struct pr_conf *,
		struct pr_err *) = { check_name, check_topic, check_polling, check_common };

	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (checks[i](target, conf, err) < 0)
			return -1;
	return 0;
}
