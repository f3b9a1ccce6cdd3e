/* tests/unit/consumer_conf_test.c -- the consumer's table: defaults, the committed sample and reference are
 * what it prints, and every contradiction is refused with file, line, key and what was meant. Runs from the
 * root of the tree. */
#include "lib/consumer_conf.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEN(a) (sizeof(a) / sizeof(*(a)))
#define BASE                                                                                                 \
	"group = \"seat\";\ndatabase: { conninfo = \"dbname=seat\"; };\n"                                    \
	"kafka: { brokers = \"b\"; topics = [ \"t\" ]; };\n"
#define SQL BASE "handler: { kind = \"sql\"; function = \"seat.on_event\"; };\n"

static char *slurp(const char *path)
{
	FILE *f = fopen(path, "r");
	char *s = pr_malloc(1 << 20);
	size_t n;

	if (!f)
		fail_msg("%s is missing", path);
	n = fread(s, 1, (1 << 20) - 1, f);
	s[n] = '\0';
	(void)fclose(f);
	return s;
}

static char *printed(void (*print)(const struct pr_opt *, const char *, FILE *))
{
	char *s;
	size_t n;
	FILE *f = open_memstream(&s, &n);

	print(pr_consumer_options, "postrider-consumer", f);
	(void)fclose(f);
	return s;
}

/* 0, or -1 and err. */
static int try(const char *text, const char *over, struct pr_consumer_conf *c, struct pr_conf **conf,
	struct pr_err *err)
{
	memset(err, 0, sizeof(*err));
	memset(c, 0xa5, sizeof(*c));
	if (pr_conf_load_text(
		    "t.cfg", text, strlen(text), pr_consumer_options, c, &over, over != NULL, conf, err) < 0)
		return -1;
	if (pr_consumer_conf_validate(c, *conf, err) == 0)
		return 0;
	pr_conf_free(*conf);
	return -1;
}

static void load(const char *text, struct pr_consumer_conf *c, struct pr_conf **conf)
{
	struct pr_err err;

	if (try(text, NULL, c, conf, &err) < 0)
		fail_msg("%s", err.text);
}

static void expect_committed(const char *path, void (*print)(const struct pr_opt *, const char *, FILE *))
{
	char *is = slurp(path), *should = printed(print);

	if (strcmp(is, should) != 0)
		fail_msg("%s is stale: write it anew with postrider-consumer --print-%s", path,
			print == pr_conf_sample ? "sample" : "reference");
	free(is);
	free(should);
}

static void test_committed_files(void **state)
{
	(void)state;
	expect_committed("etc/consumer.cfg", pr_conf_sample);
	expect_committed("docs/reference/consumer-config.md", pr_conf_reference);
}

static void expect_defaults(const struct pr_consumer_conf *c)
{
	assert_string_equal(c->group, "seat");
	assert_int_equal(c->database.timeout_us, 5 * PR_SEC);
	assert_int_equal(c->kafka.topics.n, 1);
	assert_int_equal(c->kafka.timeout_us, 10 * PR_SEC);
	assert_int_equal(c->lanes, 2);
	assert_int_equal(c->handler.kind, PR_HANDLER_SQL);
	assert_int_equal(c->handler.timeout_us, 30 * PR_SEC);
	assert_string_equal(c->handler.function, "seat.on_event");
	assert_int_equal(c->handler.response_bytes, 64 << 10);
	assert_int_equal(c->handler.concurrency, 8);
	assert_int_equal(c->handler.undo, 0);
	assert_int_equal(c->dedupe, PR_DEDUPE_INBOX);
	assert_string_equal(c->id, "header:id");
	assert_int_equal(c->limits.batch_events, 2000);
	assert_int_equal(c->limits.batch_bytes, 4 << 20);
	assert_int_equal(c->limits.buffer_bytes, 16 << 20);
	assert_int_equal(c->limits.prefetch_bytes, 1 << 20);
	assert_int_equal(c->limits.parked_keys, 10000);
	assert_int_equal(c->limits.crashes, 3);
	assert_int_equal(c->inbox.keep_us, 7 * 86400 * PR_SEC);
	assert_int_equal(c->inbox.horizon_us, 7 * 86400 * PR_SEC);
	assert_string_equal(c->on_gap, "stop");
	assert_string_equal(c->http.listen, "127.0.0.1:9471");
	assert_string_equal(c->log_level, "info");
	assert_int_equal(c->drain_us, 10 * PR_SEC);
}

static void test_defaults(void **state)
{
	struct pr_consumer_conf c;
	struct pr_conf *conf;

	(void)state;
	load(SQL, &c, &conf);
	expect_defaults(&c);
	assert_null(c.member);
	assert_null(c.handler.undo_function);
	assert_null(c.dead_letter.topic);
	assert_null(c.http.token);
	assert_int_equal(c.kafka.properties.n + c.filter.types.n + c.filter.headers.n + c.errors.n, 0);
	pr_conf_free(conf);
}

/* "#key = value;" -> "key = value;", comments stay. */
static void uncomment(char *s)
{
	for (char *p = s; (p = strchr(p, '#')); p++)
		if (p[1] != ' ' && p[1] != '\n' && (p == s || isspace((unsigned char)p[-1])))
			*p = ' ';
}

/* The sample as it stands is accepted; with every line of it set, it names no other default than there is
 * (what only another kind of handler takes is then refused, so validation ends there). */
static void test_sample_tells_the_truth(void **state)
{
	char *sample = printed(pr_conf_sample);
	struct pr_consumer_conf c;
	struct pr_conf *conf;
	struct pr_err err;

	(void)state;
	load(sample, &c, &conf);
	expect_defaults(&c);
	pr_conf_free(conf);
	uncomment(sample);
	assert_int_equal(setenv("POSTRIDER_TOKEN", "t", 1) + setenv("COLLECTOR_TOKEN", "t", 1) +
				 setenv("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1) +
				 setenv("SINK_HASH_KEY", "k", 1) + setenv("S3_ACCESS_KEY", "a", 1) +
				 setenv("S3_SECRET_KEY", "s", 1),
		0);
	if (pr_conf_load_text("t.cfg", sample, strlen(sample), pr_consumer_options, &c, NULL, 0, &conf, &err))
		fail_msg("%s", err.text);
	expect_defaults(&c);
	assert_int_equal(c.errors.n, 1);
	assert_string_equal(c.http.token, "t");
	pr_conf_free(conf);
	free(sample);
}

static void expect_sound(const struct pr_opt *table)
{
	for (const struct pr_opt *o = table; o->path; o++) {
		if (!o->doc || !*o->doc || o->doc[strlen(o->doc) - 1] != '.')
			fail_msg("%s: a sentence is missing", o->path);
		if ((o->flags & PR_OPT_REQUIRED) && (o->def || !o->example))
			fail_msg("%s: required, with an example and no default", o->path);
		for (const struct pr_opt *p = o + 1; p->path; p++)
			assert_string_not_equal(o->path, p->path);
		if (o->sub)
			expect_sound(o->sub);
	}
}

static void test_table(void **state)
{
	(void)state;
	expect_sound(pr_consumer_options);
}

struct row {
	const char *text;
	const char *says; /* NULL: accepted */
};

static void expect_rows(const char *base, const struct row *rows, size_t n)
{
	struct pr_consumer_conf c;
	struct pr_conf *conf;
	struct pr_err err;

	for (size_t i = 0; i < n; i++) {
		char *text = pr_asprintf("%s%s", base, rows[i].text);
		int rc = try(text, NULL, &c, &conf, &err);

		if ((rc == 0) != !rows[i].says)
			fail_msg("%s: %s", rows[i].text, rc < 0 ? err.text : "accepted");
		if (rc < 0) {
			assert_int_equal(err.exit, PR_EX_CONFIG);
			if (!strstr(err.text, rows[i].says))
				fail_msg("%s: %s", rows[i].text, err.text);
		} else {
			pr_conf_free(conf);
		}
		free(text);
	}
}

static void test_handlers(void **state)
{
	static const struct row rows[] = {
		{ "handler: { kind = \"sql\"; function = \"seat.on_event\"; };", NULL },
		{ "handler: { kind = \"sql\"; function = \"\\\"Seat\\\".\\\"on event\\\"\"; };", NULL },
		{ "handler: { kind = \"sql\"; };",
			"handler.function: is required by handler.kind = \"sql\"" },
		{ "handler: { kind = \"sql\"; function = \"on_event\"; };", "t.cfg:4: handler.function:" },
		{ "handler: { kind = \"sql\"; function = \"seat.on_event()\"; };", "is not schema.name" },
		{ "handler: { kind = \"sql\"; function = \"a.b; DROP TABLE x\"; };", "is not schema.name" },
		{ "handler: { kind = \"sql\"; function = \"a.b\"; url = \"http://h\"; };",
			"handler.url: is not taken by handler.kind = \"sql\"" },
		{ "handler: { kind = \"sql\"; function = \"a.b\"; undo = true; };",
			"handler.undo: is not taken" },
		{ "handler: { kind = \"sql\"; function = \"a.b\"; undo_function = \"a.c\"; };", NULL },
		{ "handler: { kind = \"sql\"; function = \"a.b\"; undo_function = \"c\"; };",
			"handler.undo_function:" },
		{ "handler: { kind = \"sql\"; function = \"a.b\"; undo_event = \"Undone\"; };", NULL },
		{ "handler: { kind = \"sql\"; function = \"a.b\"; undo_function = \"a.c\"; undo_event = "
		  "\"U\"; };",
			"set one of the two" },
		{ "handler: { kind = \"c\"; library = \"/bin/sh\"; options = \"o\"; undo = true; };", NULL },
		{ "handler: { kind = \"c\"; };", "handler.library: is required" },
		{ "handler: { kind = \"scheduler\"; install = false; keep = \"1d\"; };", NULL },
		{ "handler: { kind = \"scheduler\"; function = \"a.b\"; };",
			"handler.function: is not taken by handler.kind = \"scheduler\"" },
		{ "handler: { kind = \"c\"; library = \"\"; };", "names no file" },
		{ "handler: { kind = \"c\"; library = \"x.so\"; };",
			"t.cfg:4: handler.library: \"x.so\" is no path" },
		{ "handler: { kind = \"c\"; library = \"/no/x.so\"; };",
			"t.cfg:4: handler.library: \"/no/x.so\": No such file or directory" },
		{ "handler: { kind = \"http\"; url = \"http://127.0.0.1:1/e\"; };", NULL },
		{ "handler: { kind = \"http\"; };", "handler.url: is required" },
		{ "handler: { kind = \"http\"; url = \"ftp://h\"; };", "must begin with http://" },
		{ "handler: { kind = \"http\"; url = \"http:///x\"; };", "has no host" },
		{ "handler: { kind = \"http\"; url = \"http://u:p@h/x\"; };", "user or password" },
		{ "handler: { kind = \"http\"; url = \"http://h/a@b\"; };", NULL },
		{ "handler: { kind = \"http\"; url = \"http://h/a b\"; };", "no URL has" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; secret = \"abc\"; };", "whsec_" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; secret = \"whsec_abc\"; };",
			"24 to 64 bytes" },
		{ "handler: { kind = \"http\"; url = \"http://h#x\"; };", "fragment" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; headers = ( \"CONTENT-length: 1\" ); };",
			"CONTENT-length is set by the consumer itself" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; headers = ( \"webhook-x: 1\" ); };",
			"is set by the consumer itself" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; headers = ( \"X: a\x01\" ); };",
			"element 1" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; headers = [ \"X-A: b\" ]; };", NULL },
		{ "handler: { kind = \"http\"; url = \"http://h\"; headers = [ \"X-A b\" ]; };",
			"element 1 is not of the form" },
		{ "handler: { kind = \"http\"; url = \"http://h\"; headers = [ \"A: b\\r\\nC: d\" ]; };",
			"element 1 is not of the form" },
		{ "handler: { kind = \"exec\"; command = [ \"/bin/sh\", \"-x\" ]; };", NULL },
		{ "handler: { kind = \"exec\"; command = [ \"sh\" ]; };", NULL },
		{ "handler: { kind = \"exec\"; command = [ \"/no/h\" ]; };",
			"t.cfg:4: handler.command: \"/no/h\": No such file or directory" },
		{ "handler: { kind = \"exec\"; command = [ \"/etc/passwd\" ]; };", "Permission denied" },
		{ "handler: { kind = \"exec\"; command = [ \"no-such-program\" ]; };",
			"\"no-such-program\": there is no such program in PATH" },
		{ "handler: { kind = \"exec\"; };", "handler.command: is required" },
		{ "handler: { kind = \"exec\"; command = [ \"\" ]; };", "names no program" },
		{ "handler: { kind = \"snk\"; };", "t.cfg:4: handler.kind: \"snk\" is not one of: sql" },
		{ "handler: { kind = \"sink\"; files: { directory = \"/no\"; }; };", NULL },
		{ "handler: { kind = \"sink\"; };", "t.cfg:4: handler.kind: \"sink\" needs a target" },
		{ "handler: { kind = \"sink\"; files: { directory = \"/d\"; };\nhttp: { url = \"http://h\"; "
		  "}; };",
			"t.cfg:5: handler.http.url: is set beside handler.files.directory" },
		{ "handler: { kind = \"sink\"; files: { direktory = \"/d\"; }; };",
			"did you mean \"handler.files.directory\"" },
		{ "handler: { kind = \"sink\"; files: { directory = \"/d\"; compression = \"gzip\"; level = "
		  "12; }; };",
			"t.cfg:4: handler.files.level: is more than gzip has" },
		{ "handler: { kind = \"sink\"; http: { url = \"ftp://h\"; }; };", "must begin with http://" },
		{ "handler: { kind = \"sink\"; http: { url = \"http://h\"; secret = \"abc\"; }; };",
			"whsec_" },
		{ "handler: { kind = \"sink\"; s3: { bucket = \"b\"; }; };",
			"handler.s3.endpoint: is required" },
		{ "handler: { kind = \"sink\"; table: { table = \"a.b\"; }; fields = ( { path = \"key\"; "
		  "action = \"hash\"; } ); };",
			"handler.hash_key: is required" },
		{ "handler: { kind = \"sink\"; table: { table = \"a.b\"; }; fields = ( { path = \"key\"; "
		  "action = \"rename\"; } ); };",
			"handler.fields[0].to: is required" },
		{ "handler: { kind = \"scheduler\"; files: { directory = \"/d\"; }; };",
			"handler.files.directory: is taken by handler.kind = \"sink\" only" },
		{ "handler: { function = \"a.b\"; };", "handler.kind: is required" },
	};

	(void)state;
	expect_rows(BASE, rows, LEN(rows));
}

static void test_rules(void **state)
{
	static const struct row rows[] = {
		{ "errors = ( { match = \"sqlstate:23*\"; policy = \"park\"; attempts = 0; } );", NULL },
		{ "errors = ( { match = \"http:5xx\"; policy = \"retry\"; attempts = 5; backoff = \"1s\"; "
		  "},\n"
		  "{ match = \"*\"; policy = \"stop\"; } );",
			NULL },
		{ "errors = ( { match = \"timeout\"; policy = \"retry\"; },\n"
		  "{ match = \"sqlstat:23*\"; policy = \"park\"; } );",
			"t.cfg:6: errors[1].match: \"sqlstat:23*\": did you mean \"sqlstate:...\"?" },
		{ "errors = ( { match = \"23505\"; policy = \"park\"; } );", "names no class" },
		{ "errors = ( { match = \"timeout\"; } );", "errors[0].policy: is required" },
		{ "errors = ( { policy = \"park\"; } );", "errors[0].match: is required" },
		{ "errors = ( { match = \"timeout\"; policy = \"dlq\"; } );",
			"t.cfg:5: errors[0].policy: \"dlq\" is not one of: retry|breaker|park|dead_letter" },
		{ "errors = ( { match = \"timeout\"; policy = \"retry\"; attempts = 0; } );",
			"errors[0].attempts: must be 1 or more" },
		{ "errors = ( { match = \"timeout\"; policy = \"retry\"; attempt = 3; } );",
			"did you mean \"attempts\"" },
		{ "errors = ( { match = \"timeout\"; policy = \"retry\"; backoff = \"2s\"; backoff_max = "
		  "\"1s\"; } );",
			"errors[0].backoff: must not be more" },
		{ "errors = ( { match = \"*\"; policy = \"park\"; }, { match = \"crash\"; policy = \"stop\"; "
		  "} );",
			"errors[1].match: never decides" },
		{ "errors = ( { match = \"crash\"; policy = \"park\"; }, { match = \"crash\"; policy = "
		  "\"stop\"; } );",
			"errors[1].match: never decides" },
	};

	(void)state;
	expect_rows(SQL, rows, LEN(rows));
}

/* What a rule does not say is its policy's; what it says stays. */
static void test_rule_delays(void **state)
{
	static const char text[] =
		SQL "errors = ( { match = \"timeout\"; policy = \"retry\"; }, { match = \"crash\"; policy = "
		    "\"park\"; },"
		    "{ match = \"exit\"; policy = \"retry\"; backoff = \"20s\"; },"
		    "{ match = \"http\"; policy = \"breaker\"; backoff_max = \"100ms\"; } );";
	struct pr_consumer_conf c;
	const struct pr_rule *r;
	struct pr_conf *conf;

	(void)state;
	load(text, &c, &conf);
	r = c.errors.v;
	assert_int_equal(c.errors.n, 4);
	assert_true(
		r[0].attempts == 5 && r[0].backoff_us == 100 * PR_MS && r[0].backoff_max_us == 5 * PR_SEC);
	assert_true(r[1].backoff_us == 5 * PR_SEC && r[1].backoff_max_us == 600 * PR_SEC);
	assert_true(r[2].backoff_us == 20 * PR_SEC && r[2].backoff_max_us == 20 * PR_SEC);
	assert_true(r[3].backoff_us == 100 * PR_MS && r[3].backoff_max_us == 100 * PR_MS);
	assert_ptr_equal(pr_policy_of(r, c.errors.n, PR_FAIL_HTTP, "503"), &r[3]);
	pr_conf_free(conf);
}

static void expect_accepted(const char *key, const char *value, const char *says)
{
	char *over = pr_asprintf("%s=%s", key, value);
	struct pr_consumer_conf c;
	struct pr_conf *conf;
	struct pr_err err;
	int rc = try(SQL, over, &c, &conf, &err);

	if ((rc == 0) != !says)
		fail_msg("%s: %s", over, rc < 0 ? err.text : "accepted");
	if (rc == 0)
		pr_conf_free(conf);
	else if (!strstr(err.text, says) || !strstr(err.text, key))
		fail_msg("%s: %s", over, err.text);
	free(over);
}

/* What auto comes to; what a library can is told by its version. */
static void test_assignment(void **state)
{
	static const struct {
		int wanted, version, is;
	} rows[] = {
		{ PR_ASSIGN_AUTO, 0x020002ff, PR_ASSIGN_RANGE },
		{ PR_ASSIGN_AUTO, 0x020600ff, PR_ASSIGN_RANGE },
		{ PR_ASSIGN_AUTO, 0x02060101, PR_ASSIGN_RANGE }, /* a release candidate */
		{ PR_ASSIGN_AUTO, 0x020601ff, PR_ASSIGN_STICKY },
		{ PR_ASSIGN_AUTO, 0x021000ff, PR_ASSIGN_STICKY },
		{ PR_ASSIGN_RANGE, 0x021000ff, PR_ASSIGN_RANGE },
		{ PR_ASSIGN_CONSUMER, 0x021000ff, PR_ASSIGN_CONSUMER },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		assert_int_equal(pr_assignment_of(rows[i].wanted, rows[i].version), rows[i].is);
	assert_int_equal(pr_assignment_needs(PR_ASSIGN_RANGE), 0);
	assert_true(pr_assignment_needs(PR_ASSIGN_CONSUMER) > pr_assignment_needs(PR_ASSIGN_STICKY));
	assert_string_equal(pr_assignment_str(PR_ASSIGN_STICKY), "cooperative-sticky");
}

static void test_semantics(void **state)
{
	static const struct {
		const char *key, *value, *says;
	} rows[] = {
		{ "group", "a.B-9_", NULL },
		{ "group", "a b", "may hold letters" },
		{ "group", "", "must not be empty" },
		{ "member", "seat-1", NULL },
		{ "member", "seat 1", "must be 1 to 200" },
		{ "kafka.topics", "^outbox\\.event\\..*", NULL },
		{ "kafka.topics", "^outbox[", "no regular expression" },
		{ "kafka.topics", "a b", "no name for a topic" },
		{ "kafka.topics", "__consumer_offsets", "no name for a topic" },
		{ "kafka.topics", "", "at least one" },
		{ "kafka.brokers", "a:1\nb:2", "no address" },
		{ "kafka.properties", "client.rack=a", NULL },
		{ "kafka.properties", "session.timeout.ms=45000", NULL },
		{ "kafka.properties", "heartbeat.interval.ms=3000", "the consumer sets it" },
		{ "kafka.properties", "max.poll.interval.ms=60000", NULL },
		{ "kafka.properties", "group.id=x", "set group instead" },
		{ "kafka.properties", "group.instance.id=x", "set member instead" },
		{ "kafka.properties", "isolation.level=read_uncommitted", "rolled back" },
		{ "kafka.properties", "enable.auto.commit=true", "the database is the truth" },
		{ "kafka.properties", "enable.auto.offset.store=true", "the database is the truth" },
		{ "kafka.properties", "auto.offset.reset=latest", "skip or repeat" },
		{ "kafka.properties", "enable.partition.eof=false", "where a partition ends" },
		{ "kafka.properties", "partition.assignment.strategy=roundrobin", "set kafka.assignment" },
		{ "kafka.properties", "group.protocol=consumer", "set kafka.assignment" },
		{ "kafka.assignment", "range", NULL },
		{ "kafka.assignment", "sticky", "not one of" },
		{ "kafka.properties", "queued.max.messages.kbytes=1", "set limits.prefetch_bytes" },
		{ "kafka.properties", "plugin.library.paths=x.so", "loads code" },
		{ "kafka.properties", "fetch.min.bites=1", "fetch.min.bites" },
		{ "lanes", "0", "1 to 64" },
		{ "lanes", "64", NULL },
		{ "dedupe", "offset", NULL },
		{ "dedupe", "none", "not one of" },
		{ "id", "header:event-id", NULL },
		{ "id", "json:meta.id", NULL },
		{ "id", "offset", NULL },
		{ "id", "header:", "is not header:NAME" },
		{ "id", "json:a..b", "is not header:NAME" },
		{ "id", "headers:id", "is not header:NAME" },
		{ "filter.types", "Seat*", NULL },
		{ "filter.types", "*Seat", "at the end only" },
		{ "filter.headers", "region=eu", NULL },
		{ "filter.headers", "region", "name=value" },
		{ "limits.batch_bytes", "32MB", "limits.buffer_bytes" },
		{ "inbox.keep", "1d", "inbox.horizon" },
		{ "inbox.horizon", "1d", NULL },
		{ "dead_letter.topic", "seat.dead", NULL },
		{ "dead_letter.topic", "t", "handled again" },
		{ "dead_letter.topic", "a b", "no name for a topic" },
		{ "on_gap", "skip", NULL },
		{ "on_gap", "sklp", "stop, skip" },
		{ "http.listen", "*:9471", "http.token" },
		{ "log.level", "INFO", "debug, info" },
	};

	(void)state;
	for (size_t i = 0; i < LEN(rows); i++)
		expect_accepted(rows[i].key, rows[i].value, rows[i].says);
}

/* A dead-letter topic that a regular expression reads is a loop too; and what is not deduplicated by id does
 * not care how long ids are kept. */
static void test_contradictions(void **state)
{
	struct pr_consumer_conf c;
	struct pr_conf *conf;
	struct pr_err err;

	(void)state;
	assert_int_equal(try("group = \"g\"; database: { conninfo = \"dbname=d\"; };\n"
			     "kafka: { brokers = \"b\"; topics = [ \"^seat\\\\..*\" ]; };\n"
			     "handler: { kind = \"sql\"; function = \"a.b\"; };\n"
			     "dead_letter: { topic = \"seat.dead\"; };",
				 NULL, &c, &conf, &err),
		-1);
	assert_non_null(strstr(err.text, "t.cfg:4: dead_letter.topic: is one of kafka.topics"));
	load(SQL "dedupe = \"offset\"; inbox: { keep = \"1d\"; };", &c, &conf);
	pr_conf_free(conf);
}

/* What --print-config shows must not hold what only the other side may know. */
static void test_secrets_are_masked(void **state)
{
	static const char text[] =
		BASE "handler: { kind = \"http\"; url = \"http://h\"; secret = \"env:T_SIGN\"; headers = ( "
		     "\"Authorization: env:T_AUTH\", \"X-A: plain\" ); };";
	struct pr_consumer_conf c;
	struct pr_conf *conf;
	size_t n;
	FILE *f;
	char *s;

	(void)state;
	assert_int_equal(setenv("T_SIGN", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1) +
				 setenv("T_AUTH", "Bearer s3cret", 1),
		0);
	load(text, &c, &conf);
	assert_string_equal(c.handler.headers.v[0], "Authorization: Bearer s3cret");
	f = open_memstream(&s, &n);
	pr_conf_print(conf, f);
	(void)fclose(f);
	assert_null(strstr(s, "s3cret"));
	assert_null(strstr(s, "MfKQ9r8"));
	assert_non_null(strstr(s, "X-A: plain"));
	free(s);
	pr_conf_free(conf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_committed_files),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_sample_tells_the_truth),
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_handlers),
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_rule_delays),
		cmocka_unit_test(test_assignment),
		cmocka_unit_test(test_semantics),
		cmocka_unit_test(test_contradictions),
		cmocka_unit_test(test_secrets_are_masked),
	};

	(void)alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
