/* lib/consumer_conf.c -- the consumer's options and what they must fulfil together. The table is the one
 * place an option is named, bounded and explained; docs/reference and etc/ are printed from it. Contacts
 * nothing: Postgres, Kafka and the handler are asked at start. */
#include "lib/consumer_conf.h"

#include "lib/clock.h"
#include "lib/conf_check.h"
#include "lib/kafka.h"

#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define AT(field)   offsetof(struct pr_consumer_conf, field)
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
		.flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD,
		.example = "host=127.0.0.1 dbname=seat user=inbox_consumer",
		.doc = "The database with the schema inbox, where a handler of kind sql has its tables, as "
		       "libpq "
		       "takes it; PG* variables, ~/.pgpass and service files work." },
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
	{ "handler.kind", PR_OPT_ENUM, AT(handler.kind), .choices = "sql|c|http|exec",
		.flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD, .example = "sql",
		.doc = "sql calls a function in the transaction that records the message: its effects are "
		       "applied exactly once. c calls a shared object, http posts to a URL, exec feeds a "
		       "subprocess; their effects lie outside, a crash may repeat the last of them, and the "
		       "message id goes along." },
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
	{ "handler.undo", PR_OPT_BOOL, AT(handler.undo), "false", .flags = PR_OPT_NO_RELOAD,
		.doc = "Of c, http and exec: the handler also takes op = undo, called before a message "
		       "becomes a "
		       "dead letter." },
	{ "handler.undo_event", PR_OPT_STR, AT(handler.undo_event), .flags = PR_OPT_NO_RELOAD,
		.example = "SeatReleased",
		.doc = "Type of an event that is published to the outbox in the transaction that makes a "
		       "message "
		       "a dead letter, instead of an undo of the handler." },
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
		       "over; * at the end matches any rest. When empty: all." },
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
	{ "dead_letter.topic", PR_OPT_STR, AT(dead_letter.topic), .flags = PR_OPT_NO_RELOAD,
		.example = "seat.dead-letter",
		.doc = "Dead letters are published there too, with the headers that Spring and Kafka Connect "
		       "write. When not set they are in inbox.dead_letter only." },
	{ "on_gap", PR_OPT_STR, AT(on_gap), "stop", .flags = PR_OPT_NO_RELOAD,
		.doc = "When records were deleted before they were read: stop holds the partition and says "
		       "so, "
		       "skip goes on with the earliest there is." },
	{ "http.listen", PR_OPT_STR, AT(http.listen), "127.0.0.1:9471", .flags = PR_OPT_NO_RELOAD,
		.doc = "Address and port of health, metrics and status: 127.0.0.1:9471, [::1]:9471 or "
		       "*:9471; "
		       "port 0 takes a free one. Off loopback it needs http.token." },
	{ "http.token", PR_OPT_SECRET, AT(http.token), .flags = PR_OPT_NO_RELOAD,
		.example = "env:POSTRIDER_TOKEN", .doc = "Bearer token that HTTP clients must show." },
	{ "log.level", PR_OPT_STR, AT(log_level), "info",
		.doc = "Least level of log lines: debug, info, warn or error." },
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

static int is_read(const struct pr_strs *topics, const char *name)
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

static int check_dead_letter(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const char *topic = c->dead_letter.topic, *key = "dead_letter.topic";

	if (!topic)
		return 0;
	if (!pr_kafka_topic_valid(topic, strlen(topic)))
		return pr_conf_fail(conf, key, err, "is no name for a topic");
	if (is_read(&c->kafka.topics, topic))
		return pr_conf_fail(
			conf, key, err, "is one of kafka.topics: dead letters would be handled again");
	return 0;
}

static int check_common(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (pr_check_brokers(c->kafka.brokers, conf, err) < 0 ||
		pr_check_properties(&c->kafka.properties, 1, conf, err) < 0 ||
		pr_check_listen(c->http.listen, c->http.token, conf, err) < 0)
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

static int check_url(const char *url, const struct pr_conf *conf, struct pr_err *err)
{
	const char *key = "handler.url", *host;
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
	return pr_hint(err, "set handler.headers to ( \"Authorization: env:NAME\" )");
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
	const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const struct pr_strs *h = &c->handler.headers;

	for (size_t i = 0; i < h->n; i++) {
		size_t n = strcspn(h->v[i], ":");

		/* Not the text: it may be a secret. */
		if (h->v[i][n] != ':' || !is_header_name(h->v[i], n) || has_control(h->v[i]))
			return pr_conf_fail(conf, "handler.headers", err,
				"element %zu is not of the form \"Name: value\"", i + 1);
		if (pr_consumer_header_reserved(h->v[i], n))
			return pr_conf_fail(conf, "handler.headers", err,
				"%.*s is set by the consumer itself", (int)n, h->v[i]);
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

static int check_http_handler(
	const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (check_url(c->handler.url, conf, err) < 0 || check_http_headers(c, conf, err) < 0)
		return -1;
	if (!c->handler.secret || is_signing_secret(c->handler.secret))
		return 0;
	(void)pr_conf_fail(
		conf, "handler.secret", err, "must be whsec_ followed by the base64 of 24 to 64 bytes");
	return pr_hint(err, "make one: echo whsec_$(openssl rand -base64 32)");
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
	static const char *const kinds[] = { "sql", "c", "http", "exec" };
	const unsigned sql = 1 << PR_HANDLER_SQL, lib = 1 << PR_HANDLER_C, http = 1 << PR_HANDLER_HTTP,
		       exec = 1 << PR_HANDLER_EXEC, mine = 1U << c->handler.kind;
	const struct taken options[] = {
		{ "handler.function", c->handler.function != NULL, sql, 1 },
		{ "handler.undo_function", c->handler.undo_function != NULL, sql, 0 },
		{ "handler.library", c->handler.library != NULL, lib, 1 },
		{ "handler.options", c->handler.options != NULL, lib, 0 },
		{ "handler.url", c->handler.url != NULL, http, 1 },
		{ "handler.secret", c->handler.secret != NULL, http, 0 },
		{ "handler.headers", c->handler.headers.n > 0, http, 0 },
		{ "handler.command", c->handler.command.n > 0, exec, 1 },
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
	if (c->handler.undo_event && (c->handler.undo || c->handler.undo_function))
		return pr_conf_fail(conf, "handler.undo_event", err,
			"is instead of an undo of the handler: set one of the two");
	return 0;
}

static int check_handler(const struct pr_consumer_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (check_taken(c, conf, err) < 0)
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
		return *c->handler.command.v[0]
			       ? 0
			       : pr_conf_fail(conf, "handler.command", err, "names no program");
	default:
		return *c->handler.library ? 0 : pr_conf_fail(conf, "handler.library", err, "names no file");
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
	static int (*const checks[])(const struct pr_consumer_conf *, const struct pr_conf *,
		struct pr_err *) = { check_names, check_topics, check_dead_letter, check_common,
		check_handler, check_id, check_filters, check_rules, check_numbers };

	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (checks[i](target, conf, err) < 0)
			return -1;
	return 0;
}
