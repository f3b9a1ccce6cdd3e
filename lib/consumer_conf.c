/* lib/consumer_conf.c -- the consumer's options and what they must fulfil together. The table is the one
 * place an option is named, bounded and explained; docs/reference and etc/ are printed from it. Contacts
 * nothing: Postgres, Kafka and the handler are asked at start. */
#include "lib/consumer_conf.h"

#include "lib/alert_template.h"
#include "lib/clock.h"
#include "lib/conf_check.h"
#include "lib/kafka.h"
#include "lib/page.h"
#include "lib/saga_def.h"

#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define AT(field)   offsetof(struct pr_consumer_conf, field)
#define PORT        "9471"
#define PROGRAM     "postrider-consumer"
#define RULE(field) offsetof(struct pr_rule, field)
#define KB          1024LL
#define MB          (1024 * KB)
#define DAY         (86400 * PR_SEC)
#define LETTERS     "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS      "0123456789"

static const struct pr_opt rule_options[] = {
	{ "match", PR_OPT_STR, RULE(match), .flags = PR_OPT_REQUIRED, .example = "sqlstate:23*",
		.doc = "What failed: sqlstate:23505, sqlstate:23*, http:503, http:5xx, http:connect (dns, "
		       "tls), "
		       "exit:1, exit:signal:9, reply:WORD, decode:id (altered, payload), timeout, crash, or "
		       "* "
		       "for everything." },
	{ "policy", PR_OPT_ENUM, RULE(policy), .choices = "retry|breaker|park|dead_letter|ignore|stop",
		.flags = PR_OPT_REQUIRED, .example = "park",
		.doc = "What follows: retry (in place, then dead letter), breaker (what is behind the "
		       "handler is "
		       "down: everything waits, one message probes), park (the key waits with all behind it "
		       "and "
		       "is tried again, then dead letter), dead_letter (at once), ignore (counts as "
		       "handled), "
		       "stop (the consumer ends)." },
	{ "attempts", PR_OPT_INT, RULE(attempts), "5", .max = 1000000,
		.doc = "Of retry and park: tries in all before the message becomes a dead letter. Of park, 0 "
		       "is "
		       "for ever." },
	{ "backoff", PR_OPT_DURATION, RULE(backoff_us), .min = PR_MS, .max = 30 * DAY, .example = "5s",
		.doc = "First delay before the next try; it doubles, with jitter. When not set: 100ms of "
		       "retry, "
		       "1s of breaker, 5s of park." },
	{ "backoff_max", PR_OPT_DURATION, RULE(backoff_max_us), .min = PR_MS, .max = 30 * DAY,
		.example = "10m",
		.doc = "Longest such delay. When not set: 5s of retry, 30s of breaker, 10m of park, and "
		       "never "
		       "less than backoff." },
	{ 0 },
};

const struct pr_opt pr_consumer_options[] = {
	{ "group", PR_OPT_STR, AT(group), .flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD, .example = "seat",
		.doc = "The consumer group, 1 to 100 of letters, digits, \".\", \"_\" and \"-\": Kafka's "
		       "group, "
		       "the first column of every inbox table and the metrics' label. Another name starts "
		       "over "
		       "from the earliest record." },
	{ "member", PR_OPT_STR, AT(member), .flags = PR_OPT_NO_RELOAD, .example = "seat-1",
		.doc = "Name of this process in the group (group.instance.id): a restart under the same name "
		       "keeps its partitions. When not set: the host's name and the port of http.listen." },
	{ "database.conninfo", PR_OPT_CONNINFO, AT(database.conninfo),
		.flags = PR_OPT_SHOWN | PR_OPT_NO_RELOAD,
		.example = "host=127.0.0.1 dbname=seat user=inbox_consumer",
		.doc = "The database with the schema inbox, where a handler of kind sql has its tables, as "
		       "libpq "
		       "takes it; PG* variables, ~/.pgpass and service files work. When not set there is no "
		       "database: "
		       "positions are the group's offsets in Kafka, and what fails goes through retry topics "
		       "(docs/how-to/retry-topics.md)." },
	{ "database.timeout", PR_OPT_DURATION, AT(database.timeout_us), "5s", .min = 100 * PR_MS,
		.max = 600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Deadline of connecting to Postgres and of every statement that is not the handler's; "
		       "past it the connection is closed and opened anew." },
	{ "kafka.brokers", PR_OPT_STR, AT(kafka.brokers), .flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD,
		.example = "127.0.0.1:9092",
		.doc = "The first brokers to ask, host:port, separated by commas." },
	{ "kafka.topics", PR_OPT_STRS, AT(kafka.topics), .flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD,
		.example = "outbox.event.reservation",
		.doc = "What is read; a name that begins with ^ is a regular expression, and topics that are "
		       "made later and match are read too." },
	{ "kafka.assignment", PR_OPT_ENUM, AT(kafka.assignment), "auto",
		.choices = "auto|range|cooperative-sticky|consumer", .flags = PR_OPT_NO_RELOAD,
		.doc = "How the group shares out its partitions, the same for all its members. range takes "
		       "all from everybody whenever a member comes or goes. cooperative-sticky moves only "
		       "what "
		       "has to move; it needs librdkafka 2.6.1. consumer has the brokers do it (KIP-848); it "
		       "needs librdkafka 2.12.0 and Kafka 4.0, sessions are set there, and only who sets "
		       "member has a name. auto is cooperative-sticky where librdkafka has it right, else "
		       "range." },
	{ "kafka.properties", PR_OPT_STRS, AT(kafka.properties), .flags = PR_OPT_NO_RELOAD,
		.example = "client.rack=a",
		.doc = "Further librdkafka properties, \"name=value\" each. Those that would break the "
		       "guarantee "
		       "are refused by name. Secret ones may be \"sasl.password=env:NAME\" or "
		       "\"sasl.password=file:/path\"." },
	{ "kafka.timeout", PR_OPT_DURATION, AT(kafka.timeout_us), "10s", .min = PR_SEC, .max = 600 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD, .doc = "How long one call that waits for a broker may take." },
	{ "lanes", PR_OPT_INT, AT(lanes), "2", .min = 1, .max = 64,
		.doc = "Workers, each with its own connection and handler: messages of one key go one after "
		       "the "
		       "other, of different keys side by side. A partition changes to another number when "
		       "all "
		       "read of it is handled. `postrider lanes` sets another number for all members of the "
		       "group, while they run." },
	{ "handler.kind", PR_OPT_ENUM, AT(handler.kind),
		.choices = "sql|c|http|exec|saga|scheduler|push|sink|canary",
		.flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD, .example = "sql",
		.doc = "sql calls a function in the transaction that records the message, c a shared object "
		       "with the connection of that transaction: effects in the database are applied exactly "
		       "once. http posts to a URL, exec feeds a subprocess; their effects lie outside, a "
		       "crash may repeat the last of them, and the message id goes along. saga runs the "
		       "sagas "
		       "of its definitions. scheduler keeps timers, push tells users and administrators "
		       "(docs/how-to/timers-and-push.md). sink copies everything to files, an object "
		       "store, "
		       "an API or a table, each record once (docs/how-to/data-platform.md). canary writes "
		       "events to "
		       "the outbox and waits for them (docs/how-to/canary.md)." },
	{ "handler.timeout", PR_OPT_DURATION, AT(handler.timeout_us), "30s", .min = 10 * PR_MS,
		.max = 3600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Deadline of one call of the handler: a statement, a request, a subprocess's answer. "
		       "Past "
		       "it the message has failed with class timeout." },
	{ "handler.function", PR_OPT_STR, AT(handler.function), .flags = PR_OPT_SHOWN | PR_OPT_NO_RELOAD,
		.example = "seat.on_event",
		.doc = "Of sql: schema.name of a function that takes inbox.message (called once a message) "
		       "or "
		       "inbox.message[] (called once a batch), and returns void." },
	{ "handler.undo_function", PR_OPT_STR, AT(handler.undo_function), .flags = PR_OPT_NO_RELOAD,
		.example = "seat.undo_event",
		.doc = "Of sql: schema.name of a function called with the message in the transaction that "
		       "makes "
		       "it a dead letter." },
	{ "handler.library", PR_OPT_STR, AT(handler.library), .flags = PR_OPT_NO_RELOAD,
		.example = "/usr/lib/seat/handler.so", .doc = "Of c: the shared object." },
	{ "handler.options", PR_OPT_STR, AT(handler.options), .flags = PR_OPT_NO_RELOAD,
		.example = "table=seat", .doc = "Of c: text that its open function gets." },
	{ "handler.hang", PR_OPT_ENUM, AT(handler.hang), "tell", .choices = "tell|restart",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of c: what follows when a call has not come back after handler.timeout: nothing but "
		       "the end of the process ends it. tell: health is error and names the record. restart: "
		       "10 s later /healthz answers 503 too and the service manager hears no sign of life, "
		       "so "
		       "that either starts the process anew; the record is tried again, and one that hangs "
		       "each time fails with class crash after limits.crashes." },
	{ "handler.url", PR_OPT_STR, AT(handler.url), .flags = PR_OPT_NO_RELOAD,
		.example = "http://127.0.0.1:8080/events",
		.doc = "Of http: where each message is posted to. Redirects are not followed." },
	{ "handler.secret", PR_OPT_SECRET, AT(handler.secret), .flags = PR_OPT_NO_RELOAD,
		.example = "env:WEBHOOK_SECRET",
		.doc = "Of http: key \"whsec_...\" that signs each request as Standard Webhooks has it; "
		       "several "
		       "with spaces between them while one is being replaced; not signed when not set." },
	{ "handler.headers", PR_OPT_STRS, AT(handler.headers), .flags = PR_OPT_NO_RELOAD,
		.example = "X-Team: seat",
		.doc = "Of http: further headers, \"Name: value\" each. Secret ones may be \"Authorization: "
		       "env:NAME\" or \"Authorization: file:/path\". Those that the consumer sets or that "
		       "frame "
		       "the message are refused." },
	{ "handler.response_bytes", PR_OPT_SIZE, AT(handler.response_bytes), "64kB", .min = KB,
		.max = 64 * MB, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of http and exec: most bytes of one answer." },
	{ "handler.concurrency", PR_OPT_INT, AT(handler.concurrency), "8", .min = 1, .max = 1000,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Per lane, of http: requests of different keys at once; of exec: messages sent ahead "
		       "of "
		       "their answers." },
	{ "handler.command", PR_OPT_STRS, AT(handler.command), .flags = PR_OPT_NO_RELOAD,
		.example = "/usr/lib/seat/handler.py",
		.doc = "Of exec: the program and its arguments; it is started once a lane, without a "
		       "shell." },
	{ "handler.definitions", PR_OPT_STRS, AT(handler.definitions), .flags = PR_OPT_NO_RELOAD,
		.example = "/etc/postrider/sagas/*.cfg",
		.doc = "Of saga: the files that define them, or patterns of files. Instances in flight stay "
		       "on the version they were started with." },
	{ "handler.keep", PR_OPT_DURATION, AT(handler.keep_us), "7d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of saga: how long those that have ended are kept, at least, with their log. Of "
		       "scheduler: how long timers "
		       "that have fired or were cancelled are. Of push: notifications, and alerts that are "
		       "resolved." },
	{ "handler.install", PR_OPT_BOOL, AT(handler.install), "true", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of scheduler, push, sink and canary: whether the start brings the kind's schema to "
		       "what this "
		       "program knows. "
		       "When false it must "
		       "be there." },
	{ "handler.undo", PR_OPT_BOOL, AT(handler.undo), "false", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of c, http and exec: the handler also takes op = undo, called before a message "
		       "becomes a "
		       "dead letter." },
	{ "handler.undo_event", PR_OPT_STR, AT(handler.undo_event), .flags = PR_OPT_NO_RELOAD,
		.example = "SeatReleased",
		.doc = "Type of an event that is published to the outbox in the transaction that makes a "
		       "message "
		       "a dead letter, instead of an undo of the handler." },
#define PR_SINK_OPTIONS_HERE
#include "lib/sink_conf_table.h"
	{ "push.listen", PR_OPT_STR, AT(push.listen), "127.0.0.1:8087", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: address and port of the users' API, GET /notifications and GET "
		       "/notifications/stream. Users show "
		       "their own tokens. Put a proxy with TLS before it elsewhere." },
	{ "push.origins", PR_OPT_STRS, AT(push.origins), "http://127.0.0.1:8082", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: origins of pages that may use that API from a browser (CORS): where the box "
		       "office is." },
	{ "push.jwks", PR_OPT_STR, AT(push.jwks), "http://127.0.0.1:8081/.well-known/jwks.json",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: where the user service publishes the keys of its tokens." },
	{ "push.streams", PR_OPT_INT, AT(push.streams), "1000", .min = 1, .max = 50000,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: most streams open at a time; more are answered with 503." },
	{ "push.per_user", PR_OPT_INT, AT(push.per_user), "5", .min = 1, .max = 1000,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: most streams of one user; the oldest ends when another is opened." },
	{ "push.heartbeat", PR_OPT_DURATION, AT(push.heartbeat_us), "15s", .min = 100 * PR_MS,
		.max = 600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: a stream with nothing to say is sent a comment this often." },
	{ "alerts.url", PR_OPT_STR, AT(alerts.url), .flags = PR_OPT_NO_RELOAD,
		.example = "https://api.notion.com/v1/pages",
		.doc = "Of push: where alerts are posted to. When not set they are recorded only: postrider "
		       "alerts list." },
	{ "alerts.headers", PR_OPT_STRS, AT(alerts.headers), .flags = PR_OPT_NO_RELOAD,
		.example = "Notion-Version: 2022-06-28",
		.doc = "Of push: further headers of that request, \"Name: value\" each. Secret ones may be "
		       "\"Authorization: env:NAME\" or "
		       "\"Authorization: file:/path\"." },
	{ "alerts.template", PR_OPT_STR, AT(alerts.template_file), .flags = PR_OPT_NO_RELOAD,
		.example = "/etc/postrider/alert.json",
		.doc = "Of push: file with the JSON that is posted; {{cause}}, {{command}}, {{detail}}, "
		       "{{alert_id}}, {{times}}, {{reminder}}, "
		       "{{first_at}} and {{last_at}} are replaced. When not set: a page for Notion, as in "
		       "etc/alert.json." },
	{ "alerts.window", PR_OPT_DURATION, AT(alerts.window_us), "10m", .min = PR_SEC, .max = 30 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: a cause that comes again within this time of the last is counted, and not "
		       "sent again." },
	{ "alerts.rate", PR_OPT_INT, AT(alerts.rate), "20", .min = 1, .max = 10000, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: most requests to alerts.url in a minute, of all members together; the "
		       "others wait." },
	{ "alerts.repeat_after", PR_OPT_DURATION, AT(alerts.repeat_us), "30m", .min = PR_SEC, .max = 30 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: an alert that nobody has acknowledged (postrider alerts ack) is sent again "
		       "this long after." },
	{ "alerts.timeout", PR_OPT_DURATION, AT(alerts.timeout_us), "10s", .min = 100 * PR_MS,
		.max = 60 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: deadline of one such request." },
	{ "alerts.configs", PR_OPT_STR, AT(alerts.configs), "/usr/local/share/postrider/services",
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of push: directory of the consumers' files GROUP-consumer.cfg, which the commands in "
		       "alerts name." },
	{ "canary.every", PR_OPT_DURATION, AT(canary.every_us), "10s", .min = 100 * PR_MS,
		.max = 3600 * PR_SEC, .flags = PR_OPT_NO_RELOAD,
		.doc = "Of canary: one is written to the outbox this often, by one member of the group." },
	{ "canary.late", PR_OPT_DURATION, AT(canary.late_us), "1m", .min = PR_SEC, .max = DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of canary: one that has not come back after this long is missing: the state is "
		       "warn." },
	{ "dedupe", PR_OPT_ENUM, AT(dedupe), "inbox", .choices = "inbox|offset", .flags = PR_OPT_NO_RELOAD,
		.doc = "inbox remembers the ids of messages: what a producer sends twice is handled once. "
		       "offset "
		       "remembers only how far the partition was read: faster, for producers that are "
		       "exactly "
		       "once, as Postrider's relay is." },
	{ "id", PR_OPT_STR, AT(id), "header:id", .flags = PR_OPT_NO_RELOAD,
		.doc = "Where the id of a message stands: header:NAME, json:path.in.payload, or offset "
		       "(topic, "
		       "partition and offset; for topics whose records have none)." },
	{ "filter.types", PR_OPT_STRS, AT(filter.types), .flags = PR_OPT_NO_RELOAD, .example = "Seat*",
		.doc = "Only messages whose header type is one of these are handled, the others are stepped "
		       "over; * at the end matches any rest, ! before it excludes. When empty, or when all "
		       "exclude: all "
		       "others." },
	{ "filter.headers", PR_OPT_STRS, AT(filter.headers), .flags = PR_OPT_NO_RELOAD,
		.example = "region=eu",
		.doc = "Only messages that have all these headers, \"name=value\" each, are handled." },
	{ "errors", PR_OPT_GROUPS, AT(errors), .flags = PR_OPT_NO_RELOAD, .sub = rule_options,
		.sub_size = sizeof(struct pr_rule),
		.doc = "What follows from a failure: the first rule that matches decides, then the built-in "
		       "ones. "
		       "postrider explain-error says which does." },
	{ "limits.batch_events", PR_OPT_INT, AT(limits.batch_events), "2000", .min = 1, .max = 100000,
		.doc = "Most messages of one transaction." },
	{ "limits.batch_bytes", PR_OPT_SIZE, AT(limits.batch_bytes), "4MB", .min = 64 * KB, .max = 256 * MB,
		.doc = "Most bytes of messages of one transaction. One that is larger goes alone." },
	{ "limits.buffer_bytes", PR_OPT_SIZE, AT(limits.buffer_bytes), "16MB", .min = 256 * KB,
		.max = 16 * 1024 * MB,
		.doc = "Most bytes of messages read and not yet committed, of all lanes together; past it "
		       "partitions are not read until there is room." },
	{ "limits.prefetch_bytes", PR_OPT_SIZE, AT(limits.prefetch_bytes), "1MB", .min = 64 * KB,
		.max = 1024 * MB, .flags = PR_OPT_NO_RELOAD,
		.doc = "Bytes that librdkafka fetches ahead, for each partition." },
	{ "limits.parked_keys", PR_OPT_INT, AT(limits.parked_keys), "10000", .min = 1, .max = 1000000,
		.doc = "Most keys held back at a time; past it reading stops until some are free again." },
	{ "limits.crashes", PR_OPT_INT, AT(limits.crashes), "3", .min = 1, .max = 100,
		.doc = "A message that took the process along this often has failed with class crash, and is "
		       "not handled again before a rule says so." },
	{ "inbox.keep", PR_OPT_DURATION, AT(inbox.keep_us), "7d", .min = PR_SEC, .max = 3650 * DAY,
		.doc = "How long the ids of messages are remembered, at least." },
	{ "inbox.horizon", PR_OPT_DURATION, AT(inbox.horizon_us), "7d", .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How old a message may come again: the topics' retention, the oldest replay, offsets "
		       "restored. Not more than inbox.keep, or it would be applied twice." },
	{ "inbox.sagas", PR_OPT_DURATION, AT(inbox.sagas_us), "30d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long it is remembered, at least, what steps of sagas did in this database "
		       "(saga.barrier), for their undo. Longer than any saga takes, and whoever decides "
		       "about "
		       "one that is stuck. Not of kind saga." },
	{ "dead_letter.topic", PR_OPT_STR, AT(dead_letter.topic), .flags = PR_OPT_NO_RELOAD,
		.example = "seat.dead-letter",
		.doc = "Dead letters are published there too, with the headers that Spring and Kafka Connect "
		       "write. When not set they are in inbox.dead_letter only; without a database, in the "
		       "topic "
		       "TOPIC.dlt.GROUP." },
	{ "retry.delays", PR_OPT_STRS, AT(retry.delays), .flags = PR_OPT_NO_RELOAD, .example = "30s",
		.doc = "Without a database: a message that policy park holds back goes to the topic "
		       "TOPIC.retry.GROUP.1 and is tried again after the first delay, then to .2 with the "
		       "second, at most 16 of them, and after the last one to the dead letters. The topics "
		       "are "
		       "made when they are missing. The others of its key do not wait for it." },
	{ "on_gap", PR_OPT_STR, AT(on_gap), "stop", .flags = PR_OPT_NO_RELOAD,
		.doc = "When records were deleted before they were read: stop holds the partition and says "
		       "so, skip goes on with the earliest there is. A position past the end (the topic was "
		       "made anew) is for people in any case: what stands in the hint; of a sink see "
		       "sink.forget in docs/how-to/data-platform.md." },
#define PR_PROGRAM_OPTIONS_HERE
#include "lib/program_conf_table.h"
	{ "shutdown.drain", PR_OPT_DURATION, AT(drain_us), "10s", .max = 3600 * PR_SEC,
		.doc = "How long SIGTERM and SIGINT wait for the batches that are being handled; what is not "
		       "done by then is handled after the next start." },
	{ 0 },
};

/* ---------------------------------------------------------------- names and places */

static int check_names(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	static const char set[] = LETTERS DIGITS "._-";
	size_t n = strspn(c->group, set);

	if (c->group[n] != '\0')
		return pr_conf_fail(
			conf, "group", err, "may hold letters, digits, \".\", \"_\" and \"-\" only");
	if (n > 100)
		return pr_conf_fail(conf, "group", err, "is %zu characters long, at most 100", n);
	if (!c->member)
		return 0;
	n = strspn(c->member, set);
	if (c->member[n] != '\0' || n == 0 || n > 200)
		return pr_conf_fail(
			conf, "member", err, "must be 1 to 200 letters, digits, \".\", \"_\" and \"-\"");
	return 0;
}

static int check_topic(const char *topic, const struct pr_conf *conf, struct pr_err *err)
{
	char why[200];
	regex_t re;
	int rc;

	if (*topic != '^') {
		if (pr_kafka_topic_valid(topic, strlen(topic)))
			return 0;
		return pr_conf_fail(conf, "kafka.topics", err, "\"%.260s\" is no name for a topic", topic);
	}
	rc = regcomp(&re, topic, REG_EXTENDED | REG_NOSUB);
	if (rc == 0) {
		regfree(&re);
		return 0;
	}
	(void)regerror(rc, &re, why, sizeof(why));
	return pr_conf_fail(conf, "kafka.topics", err, "\"%.100s\" is no regular expression: %s", topic, why);
}

static int check_topics(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const struct pr_strs *t = &c->kafka.topics;

	if (t->n == 0)
		return pr_conf_fail(conf, "kafka.topics", err, "must name at least one topic");
	for (size_t i = 0; i < t->n; i++) {
		if (check_topic(t->v[i], conf, err) < 0)
			return -1;
		for (size_t j = 0; j < i; j++)
			if (strcmp(t->v[i], t->v[j]) == 0)
				return pr_conf_fail(
					conf, "kafka.topics", err, "\"%.260s\" is named twice", t->v[i]);
	}
	return 0;
}

int pr_consumer_reads(const struct pr_strs *topics, const char *name)
{
	regex_t re;
	int yes = 0;

	for (size_t i = 0; !yes && i < topics->n; i++) {
		if (*topics->v[i] != '^') {
			yes = strcmp(topics->v[i], name) == 0;
		} else if (regcomp(&re, topics->v[i], REG_EXTENDED | REG_NOSUB) == 0) {
			yes = regexec(&re, name, 0, NULL, 0) == 0;
			regfree(&re);
		}
	}
	return yes;
}

static int type_matches(const char *pattern, const char *type, size_t len)
{
	size_t n = strlen(pattern);

	if (n > 0 && pattern[n - 1] == '*')
		return len >= n - 1 && memcmp(type, pattern, n - 1) == 0;
	return len == n && memcmp(type, pattern, n) == 0;
}

int pr_consumer_wants(const struct pr_strs *types, const char *type, size_t len)
{
	int asked = 0, found = 0;

	for (size_t i = 0; i < types->n; i++) {
		const char *pattern = types->v[i];

		if (*pattern != '!') {
			asked = 1;
			found |= type_matches(pattern, type, len);
		} else if (type_matches(pattern + 1, type, len)) {
			return 0;
		}
	}
	return found || !asked;
}

static int check_dead_letter(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const char *topic = c->dead_letter.topic, *key = "dead_letter.topic";

	if (!topic)
		return 0;
	if (!pr_kafka_topic_valid(topic, strlen(topic)))
		return pr_conf_fail(conf, key, err, "is no name for a topic");
	if (pr_consumer_reads(&c->kafka.topics, topic))
		return pr_conf_fail(
			conf, key, err, "is one of kafka.topics: dead letters would be handled again");
	return 0;
}

/* ---------------------------------------------------------------- sharing out partitions */

/* cooperative-sticky: below 2.6.1 the leader of a group with fewer partitions than members goes round in
 * circles for ever. consumer: since 2.12.0 its authors call it fit for use (docs/decisions/0011). */
static const struct {
	const char *name, *version;
	int since;
} assignments[] = {
	[PR_ASSIGN_AUTO] = { "auto", "0", 0 },
	[PR_ASSIGN_RANGE] = { "range", "0", 0 },
	[PR_ASSIGN_STICKY] = { "cooperative-sticky", "2.6.1", 0x020601ff },
	[PR_ASSIGN_CONSUMER] = { "consumer", "2.12.0", 0x020c00ff },
};

int pr_assignment_needs(enum pr_assignment how)
{
	return assignments[how].since;
}

const char *pr_assignment_str(enum pr_assignment how)
{
	return assignments[how].name;
}

enum pr_assignment pr_assignment_of(int wanted, int version)
{
	if (wanted != PR_ASSIGN_AUTO)
		return (enum pr_assignment)wanted;
	return version >= pr_assignment_needs(PR_ASSIGN_STICKY) ? PR_ASSIGN_STICKY : PR_ASSIGN_RANGE;
}

static int check_assignment(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const char *key = "kafka.assignment";
	int how = c->kafka.assignment;

	if (rd_kafka_version() < pr_assignment_needs((enum pr_assignment)how)) {
		(void)pr_conf_fail(conf, key, err, "\"%s\" needs librdkafka %s or later, this is %s",
			assignments[how].name, assignments[how].version, rd_kafka_version_str());
		return pr_hint(err, "leave it at \"auto\": that takes what this librdkafka has right");
	}
	if (how != PR_ASSIGN_CONSUMER || !pr_kafka_has(&c->kafka.properties, "session.timeout.ms"))
		return 0;
	(void)pr_conf_fail(conf, "kafka.properties", err,
		"session.timeout.ms is the broker's to set with kafka.assignment = \"consumer\"");
	return pr_hint(err, "consumer.session.timeout.ms is a configuration of the group: kafka-configs"
			    " --entity-type groups");
}

/* ---------------------------------------------------------------- without a database */

#define DELAYS_MOST   16
#define DELAY_MOST_US (7 * DAY)

char *pr_consumer_retry_topic(const struct pr_consumer_conf *conf, const char *topic, int n)
{
	return pr_asprintf("%s.retry.%s.%d", topic, conf->group, n);
}

char *pr_consumer_dead_topic(const struct pr_consumer_conf *conf, const char *topic)
{
	return conf->dead_letter.topic ? pr_strdup(conf->dead_letter.topic)
				       : pr_asprintf("%s.dlt.%s", topic, conf->group);
}

int64_t pr_consumer_delay_us(const struct pr_consumer_conf *conf, int n)
{
	int64_t us;

	return pr_parse_duration(conf->retry.delays.v[n - 1], &us, NULL) == 0 ? us : 0;
}

const struct pr_rule *pr_consumer_rule(
	const struct pr_consumer_conf *conf, enum pr_fail_class cls, const char *code)
{
	static const struct pr_rule killer = { "crash", PR_POLICY_DEAD_LETTER, 1, 0, 0 };
	const struct pr_rule *own = conf->errors.v, *rule = pr_policy_of(own, conf->errors.n, cls, code);

	for (size_t i = 0; i < conf->errors.n; i++)
		if (&own[i] == rule)
			return rule;
	return cls == PR_FAIL_CRASH && !conf->database.conninfo ? &killer : rule;
}

static int check_delays(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const struct pr_strs *d = &c->retry.delays;
	struct pr_err why;
	int64_t us;

	if (d->n > DELAYS_MOST)
		return pr_conf_fail(
			conf, "retry.delays", err, "has %zu delays, at most %d", d->n, DELAYS_MOST);
	for (size_t i = 0; i < d->n; i++) {
		if (pr_parse_duration(d->v[i], &us, &why) < 0)
			return pr_conf_fail(conf, "retry.delays", err, "element %zu: %s", i + 1, why.text);
		if (us < PR_MS || us > DELAY_MOST_US)
			return pr_conf_fail(conf, "retry.delays", err,
				"element %zu: \"%.40s\" is not between 1ms and 7d", i + 1, d->v[i]);
	}
	return 0;
}

/* Takes name. */
static int check_made_topic(
	const struct pr_consumer_conf *c, char *name, const struct pr_conf *conf, struct pr_err *err)
{
	int rc = 0;

	if (!pr_kafka_topic_valid(name, strlen(name)))
		rc = pr_conf_fail(
			conf, "group", err, "makes the topic \"%.260s\", which is too long a name", name);
	else if (pr_consumer_reads(&c->kafka.topics, name))
		rc = pr_conf_fail(conf, "kafka.topics", err,
			"\"%.260s\" is a topic that this group writes what failed to", name);
	free(name);
	return rc;
}

static int check_made_topics(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	for (size_t i = 0; i < c->kafka.topics.n; i++) {
		const char *topic = c->kafka.topics.v[i];

		if (*topic == '^') {
			(void)pr_conf_fail(conf, "kafka.topics", err,
				"\"%.100s\": without a database topics are named one by one", topic);
			return pr_hint(err, "each has its retry topics, which are made at the start");
		}
		if (check_made_topic(c, pr_consumer_dead_topic(c, topic), conf, err) < 0)
			return -1;
		for (size_t n = 1; n <= c->retry.delays.n; n++)
			if (check_made_topic(c, pr_consumer_retry_topic(c, topic, (int)n), conf, err) < 0)
				return -1;
	}
	return 0;
}

static const char *const kinds[] = { "sql", "c", "http", "exec", "saga", "scheduler", "push", "sink",
	"canary" };

static int check_database(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (c->database.conninfo) {
		if (c->retry.delays.n == 0)
			return 0;
		(void)pr_conf_fail(conf, "retry.delays", err, "is for groups without a database");
		return pr_hint(err,
			"with one, policy park keeps the key in inbox.parked, in order, and backoff "
			"says how long");
	}
	if (c->handler.kind == PR_HANDLER_SQL || c->handler.kind >= PR_HANDLER_SAGA)
		return pr_conf_fail(conf, "database.conninfo", err, "is required by handler.kind = \"%s\"",
			kinds[c->handler.kind]);
	if (c->handler.undo_event)
		return pr_conf_fail(conf, "handler.undo_event", err,
			"needs database.conninfo: it is published to the outbox");
	if (c->dedupe == PR_DEDUPE_INBOX) {
		(void)pr_conf_fail(conf, "dedupe", err,
			"\"inbox\" needs database.conninfo: that is where ids are remembered");
		return pr_hint(err,
			"without a database set dedupe = \"offset\"; the handler tells a repetition by "
			"the message's id");
	}
	if (check_delays(c, conf, err) < 0)
		return -1;
	return check_made_topics(c, conf, err);
}

static int check_common(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (pr_check_brokers(c->kafka.brokers, conf, err) < 0 ||
		pr_check_properties(&c->kafka.properties, 1, conf, err) < 0 ||
		pr_check_listen(c->http.listen, c->http.token, &c->http.tls, conf, err) < 0 ||
		pr_tracing_check(&c->tracing, conf, err) < 0)
		return -1;
	return pr_check_log_level(c->log_level, conf, err);
}

/* ---------------------------------------------------------------- the handler */

/* Length of an identifier, as SQL has it unquoted or quoted; 0: none. */
static size_t identifier(const char *s)
{
	const char *end;

	if (*s == '"') {
		end = strchr(s + 1, '"');
		while (end && end[1] == '"')
			end = strchr(end + 2, '"');
		return end && end > s + 1 ? (size_t)(end - s) + 1 : 0;
	}
	return strspn(s, LETTERS "_") ? strspn(s, LETTERS DIGITS "_$") : 0;
}

static int check_function(const char *name, const char *key, const struct pr_conf *conf, struct pr_err *err)
{
	size_t schema = identifier(name), n;

	if (schema > 0 && name[schema] == '.') {
		n = identifier(name + schema + 1);
		if (n > 0 && name[schema + 1 + n] == '\0')
			return 0;
	}
	(void)pr_conf_fail(conf, key, err, "\"%.150s\" is not schema.name", name);
	return pr_hint(err, "as in seat.on_event: no arguments, and always with its schema");
}

int pr_consumer_check_url(const char *url, const char *key, const struct pr_conf *conf, struct pr_err *err)
{
	const char *host;
	size_t n;

	if (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)
		return pr_conf_fail(conf, key, err, "must begin with http:// or https://");
	host = strstr(url, "://") + 3;
	n = strcspn(host, "/?#");
	if (n == 0)
		return pr_conf_fail(conf, key, err, "has no host");
	for (const char *p = url; *p; p++)
		if (*p <= ' ' || *p > '~')
			return pr_conf_fail(conf, key, err, "holds a character that no URL has");
	if (strchr(url, '#'))
		return pr_conf_fail(conf, key, err, "may not have a fragment (#...)");
	if (!memchr(host, '@', n))
		return 0;
	(void)pr_conf_fail(conf, key, err, "may not hold a user or password");
	return pr_hint(
		err, "set %.*s.headers to ( \"Authorization: env:NAME\" )", (int)strcspn(key, "."), key);
}

static int is_header_name(const char *s, size_t n)
{
	return n > 0 && strspn(s, LETTERS DIGITS "!#$%&'*+-.^_`|~") >= n;
}

int pr_consumer_header_reserved(const char *name, size_t n)
{
	static const char *const names[] = { "accept-encoding", "connection", "content-encoding",
		"content-length", "content-type", "expect", "host", "idempotency-key", "keep-alive", "te",
		"traceparent", "trailer", "transfer-encoding", "upgrade", "user-agent", NULL };

	if ((n >= 8 && strncasecmp(name, "webhook-", 8) == 0) ||
		(n >= 6 && strncasecmp(name, "proxy-", 6) == 0))
		return 1;
	for (const char *const *s = names; *s; s++)
		if (strlen(*s) == n && strncasecmp(name, *s, n) == 0)
			return 1;
	return 0;
}

static int has_control(const char *s)
{
	for (; *s; s++)
		if (((unsigned char)*s < ' ' && *s != '\t') || *s == 0x7f)
			return 1;
	return 0;
}

static int check_http_headers(
	const struct pr_strs *h, const char *key, const struct pr_conf *conf, struct pr_err *err)
{
	for (size_t i = 0; i < h->n; i++) {
		size_t n = strcspn(h->v[i], ":");

		/* Not the text: it may be a secret. */
		if (h->v[i][n] != ':' || !is_header_name(h->v[i], n) || has_control(h->v[i]))
			return pr_conf_fail(
				conf, key, err, "element %zu is not of the form \"Name: value\"", i + 1);
		if (pr_consumer_header_reserved(h->v[i], n))
			return pr_conf_fail(
				conf, key, err, "%.*s is set by the consumer itself", (int)n, h->v[i]);
	}
	return 0;
}

/* "whsec_" and the base64, padded or not, of 24 to 64 bytes. */
static int is_signing_key(const char *s, size_t n)
{
	size_t bytes;

	if (n < 6 || strncmp(s, "whsec_", 6) != 0)
		return 0;
	while (n > 6 && s[n - 1] == '=')
		n--;
	bytes = (n - 6) * 3 / 4;
	return strspn(s + 6, LETTERS DIGITS "+/") >= n - 6 && (n - 6) % 4 != 1 && bytes >= 24 && bytes <= 64;
}

/* Several, with spaces between them, while one is being replaced. */
static int is_signing_secret(const char *s)
{
	int keys = 0;

	for (; *(s += strspn(s, " ")); s += strcspn(s, " "), keys++)
		if (!is_signing_key(s, strcspn(s, " ")))
			return 0;
	return keys > 0;
}

int pr_consumer_check_webhook(const struct pr_strs *headers, const char *headers_key, const char *secret,
	const char *secret_key, const struct pr_conf *conf, struct pr_err *err)
{
	if (check_http_headers(headers, headers_key, conf, err) < 0)
		return -1;
	if (!secret || pr_conf_unread(conf, secret_key) || is_signing_secret(secret))
		return 0;
	(void)pr_conf_fail(conf, secret_key, err, "must be whsec_ followed by the base64 of 24 to 64 bytes");
	return pr_hint(err, "make one: echo whsec_$(openssl rand -base64 32)");
}

static int check_http_handler(
	const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (pr_consumer_check_url(c->handler.url, "handler.url", conf, err) < 0)
		return -1;
	return pr_consumer_check_webhook(
		&c->handler.headers, "handler.headers", c->handler.secret, "handler.secret", conf, err);
}

/* An option that only some kinds of handler take: set is what the file says. */
struct taken {
	const char *key;
	int set;
	unsigned kinds; /* bits 1 << enum pr_handler_kind */
	int needed;
};

static int check_taken(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const unsigned sql = 1 << PR_HANDLER_SQL, lib = 1 << PR_HANDLER_C, http = 1 << PR_HANDLER_HTTP,
		       exec = 1 << PR_HANDLER_EXEC, saga = 1 << PR_HANDLER_SAGA, mine = 1U << c->handler.kind;
	const struct taken options[] = {
		{ "handler.function", c->handler.function != NULL, sql, 1 },
		{ "handler.undo_function", c->handler.undo_function != NULL, sql, 0 },
		{ "handler.library", c->handler.library != NULL, lib, 1 },
		{ "handler.options", c->handler.options != NULL, lib, 0 },
		{ "handler.url", c->handler.url != NULL, http, 1 },
		{ "handler.secret", c->handler.secret != NULL, http, 0 },
		{ "handler.headers", c->handler.headers.n > 0, http, 0 },
		{ "handler.command", c->handler.command.n > 0, exec, 1 },
		{ "handler.definitions", c->handler.definitions.n > 0, saga, 1 },
		{ "handler.undo", c->handler.undo, lib | http | exec, 0 },
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++) {
		const struct taken *o = &options[i];

		if (o->needed && o->kinds == mine && !o->set)
			return pr_conf_fail(conf, o->key, err, "is required by handler.kind = \"%s\"",
				kinds[c->handler.kind]);
		if (o->set && !(o->kinds & mine))
			return pr_conf_fail(conf, o->key, err, "is not taken by handler.kind = \"%s\"",
				kinds[c->handler.kind]);
	}
	if (c->handler.kind != PR_HANDLER_PUSH && (c->alerts.url || c->alerts.template_file))
		return pr_conf_fail(conf, c->alerts.url ? "alerts.url" : "alerts.template", err,
			"is not taken by handler.kind = \"%s\"", kinds[c->handler.kind]);
	if (c->handler.undo_event && (c->handler.undo || c->handler.undo_function))
		return pr_conf_fail(conf, "handler.undo_event", err,
			"is instead of an undo of the handler: set one of the two");
	return 0;
}

static int check_library(const char *path, const struct pr_conf *conf, struct pr_err *err)
{
	const char *key = "handler.library";

	if (!*path)
		return pr_conf_fail(conf, key, err, "names no file");
	if (strchr(path, '/'))
		return pr_check_file(key, path, R_OK, conf, err);
	(void)pr_conf_fail(conf, key, err, "\"%.150s\" is no path", path);
	return pr_hint(err, "write it with its directory: \"/usr/lib/postrider/%s\" or \"./%s\"", path, path);
}

static int check_command(const char *program, const struct pr_conf *conf, struct pr_err *err)
{
	const char *key = "handler.command";
	char *found;

	if (!*program)
		return pr_conf_fail(conf, key, err, "names no program");
	if (strchr(program, '/'))
		return pr_check_file(key, program, X_OK, conf, err);
	found = pr_find_program(program);
	if (!found)
		return pr_conf_fail(conf, key, err, "\"%.150s\": there is no such program in PATH", program);
	free(found);
	return 0;
}

/* Read again at the start: what the check has seen is what it was about. */
static int check_definitions(const struct pr_consumer_conf *c, struct pr_err *err)
{
	struct saga_defs defs;

	if (saga_defs_load(&c->handler.definitions, &defs, err) < 0)
		return -1;
	saga_defs_free(&defs);
	return 0;
}

/* The template is read again at the start. */
static int check_push(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	struct pr_err why;
	char *text;

	if (c->alerts.url && (pr_consumer_check_url(c->alerts.url, "alerts.url", conf, err) < 0 ||
				     check_http_headers(&c->alerts.headers, "alerts.headers", conf, err) < 0))
		return -1;
	text = pr_alert_template(c->alerts.template_file, &why);
	if (!text)
		return pr_conf_fail(conf, "alerts.template", err, "%s", why.text);
	free(text);
	return 0;
}

static int check_handler(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (check_taken(c, conf, err) < 0 ||
		pr_sink_conf_validate(&c->sink, c->handler.kind == PR_HANDLER_SINK, conf, err) < 0)
		return -1;
	switch (c->handler.kind) {
	case PR_HANDLER_SQL:
		if (check_function(c->handler.function, "handler.function", conf, err) < 0)
			return -1;
		return c->handler.undo_function
			       ? check_function(c->handler.undo_function, "handler.undo_function", conf, err)
			       : 0;
	case PR_HANDLER_HTTP:
		return check_http_handler(c, conf, err);
	case PR_HANDLER_EXEC:
		return check_command(c->handler.command.v[0], conf, err);
	case PR_HANDLER_SAGA:
		return check_definitions(c, err);
	case PR_HANDLER_SCHEDULER:
	case PR_HANDLER_SINK:
	case PR_HANDLER_CANARY:
		return 0;
	case PR_HANDLER_PUSH:
		return check_push(c, conf, err);
	default:
		return check_library(c->handler.library, conf, err);
	}
}

/* ---------------------------------------------------------------- ids and filters */

/* "a.b.c": no part is empty. */
static int is_path(const char *s)
{
	size_t n = strlen(s);

	return n > 0 && n < 200 && *s != '.' && s[n - 1] != '.' && !strstr(s, "..");
}

static int check_id(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (strcmp(c->id, "offset") == 0 || (strncmp(c->id, "header:", 7) == 0 && c->id[7]) ||
		(strncmp(c->id, "json:", 5) == 0 && is_path(c->id + 5)))
		return 0;
	(void)pr_conf_fail(conf, "id", err, "\"%.100s\" is not header:NAME, json:PATH or offset", c->id);
	return pr_hint(err, "as in header:id, json:meta.event_id or offset");
}

static int check_filters(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	for (size_t i = 0; i < c->filter.types.n; i++) {
		const char *star = strchr(c->filter.types.v[i], '*');

		if (star && star[1])
			return pr_conf_fail(conf, "filter.types", err,
				"\"%.100s\": a * may stand at the end only", c->filter.types.v[i]);
		if (!*c->filter.types.v[i])
			return pr_conf_fail(conf, "filter.types", err, "element %zu is empty", i + 1);
	}
	for (size_t i = 0; i < c->filter.headers.n; i++) {
		const char *eq = strchr(c->filter.headers.v[i], '=');

		if (!eq || eq == c->filter.headers.v[i])
			return pr_conf_fail(conf, "filter.headers", err,
				"element %zu is not of the form name=value", i + 1);
	}
	return 0;
}

/* ---------------------------------------------------------------- rules */

static int rule_fail(const struct pr_conf *conf, size_t i, const char *field, struct pr_err *err,
	const char *text, const char *arg)
{
	char *path = pr_asprintf("errors[%zu].%s", i, field);

	(void)pr_conf_fail(conf, path, err, "%s%s", text, arg);
	free(path);
	return -1;
}

static int check_rule(const struct pr_conf *conf, const struct pr_rule *rules, size_t i, struct pr_err *err)
{
	const struct pr_rule *r = &rules[i];
	const char *problem = pr_match_problem(r->match);
	char *text;

	if (problem) {
		text = pr_asprintf("\"%.60s\": ", r->match);
		(void)rule_fail(conf, i, "match", err, text, problem);
		free(text);
		return -1;
	}
	for (size_t j = 0; j < i; j++)
		if (strcmp(rules[j].match, "*") == 0 || strcmp(rules[j].match, r->match) == 0)
			return rule_fail(conf, i, "match", err,
				"never decides: a rule above matches the same: ", rules[j].match);
	if (r->attempts == 0 && r->policy == PR_POLICY_RETRY)
		return rule_fail(conf, i, "attempts", err, "must be 1 or more for policy retry", "");
	if (r->backoff_us > 0 && r->backoff_max_us > 0 && r->backoff_us > r->backoff_max_us)
		return rule_fail(conf, i, "backoff", err, "must not be more than backoff_max", "");
	return 0;
}

/* A delay that was not set is the policy's own: a retry holds up a lane, a parked key does not. */
static void complete_rule(struct pr_rule *r)
{
	static const int64_t first[] = { [PR_POLICY_RETRY] = 100 * PR_MS,
		[PR_POLICY_BREAKER] = PR_SEC,
		[PR_POLICY_PARK] = 5 * PR_SEC,
		[PR_POLICY_STOP] = 0 };
	static const int64_t most[] = { [PR_POLICY_RETRY] = 5 * PR_SEC,
		[PR_POLICY_BREAKER] = 30 * PR_SEC,
		[PR_POLICY_PARK] = 600 * PR_SEC,
		[PR_POLICY_STOP] = 0 };

	if (r->backoff_max_us == 0)
		r->backoff_max_us = most[r->policy] > r->backoff_us ? most[r->policy] : r->backoff_us;
	if (r->backoff_us == 0)
		r->backoff_us = first[r->policy] < r->backoff_max_us ? first[r->policy] : r->backoff_max_us;
}

static int check_rules(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	struct pr_rule *rules = c->errors.v; /* the conf's, made by the loading of it */

	for (size_t i = 0; i < c->errors.n; i++)
		if (check_rule(conf, rules, i, err) < 0)
			return -1;
	for (size_t i = 0; i < c->errors.n; i++)
		complete_rule(&rules[i]);
	return 0;
}

/* ---------------------------------------------------------------- numbers */

static int check_numbers(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (c->limits.batch_bytes > c->limits.buffer_bytes)
		return pr_conf_fail(
			conf, "limits.batch_bytes", err, "must not be more than limits.buffer_bytes");
	if (c->inbox.horizon_us > c->inbox.keep_us && c->dedupe == PR_DEDUPE_INBOX) {
		(void)pr_conf_fail(conf, "inbox.keep", err, "must not be less than inbox.horizon");
		return pr_hint(err, "a message that comes again after its id was forgotten is applied twice");
	}
	if (strcmp(c->on_gap, "stop") != 0 && strcmp(c->on_gap, "skip") != 0)
		return pr_conf_fail(conf, "on_gap", err, "\"%.60s\" is not one of: stop, skip", c->on_gap);
	return 0;
}

int pr_consumer_conf_validate(const void *target, const struct pr_conf *conf, struct pr_err *err)
{
	static int (*const checks[])(
		const struct pr_consumer_conf *, const struct pr_conf *, struct pr_err *) = { check_names,
		check_topics, check_dead_letter, check_common, check_database, check_assignment,
		check_handler, check_id, check_filters, check_rules, check_numbers };

	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (checks[i](target, conf, err) < 0)
			return -1;
	return 0;
}
