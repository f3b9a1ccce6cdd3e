/* tests/unit/relay_conf_test.c -- the relay's table: its defaults are the contract's, the
 * committed sample and reference are what the table prints, and the sample says the truth
 * about the defaults. What is refused stands in conf_test.c. Runs from the root of the tree. */
#include "lib/relay_conf.h"

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

	print(pr_relay_options, "postrider-relay", f);
	(void)fclose(f);
	return s;
}

static void load(const char *text, struct pr_relay_conf *c, struct pr_conf **conf)
{
	struct pr_err err = { 0 };

	if (pr_conf_load_text("t.cfg", text, strlen(text), pr_relay_options, c, NULL, 0, conf, &err) < 0 ||
		pr_relay_conf_validate(c, *conf, &err) < 0)
		fail_msg("%s", err.text);
}

static void expect_committed(const char *path, void (*print)(const struct pr_opt *, const char *, FILE *))
{
	char *is = slurp(path), *should = printed(print);

	if (strcmp(is, should) != 0)
		fail_msg("%s is stale: write it anew with postrider-relay --print-%s", path,
			print == pr_conf_sample ? "sample" : "reference");
	free(is);
	free(should);
}

static void test_committed_files(void **state)
{
	(void)state;
	expect_committed("etc/relay.cfg", pr_conf_sample);
	expect_committed("docs/reference/relay-config.md", pr_conf_reference);
}

static void expect_defaults(const struct pr_relay_conf *c)
{
	assert_string_equal(c->name, "orders");
	assert_int_equal(c->source.layout, 0);
	assert_int_equal(c->source.engine, PR_ENGINE_TABLE);
	assert_int_equal(c->source.timeout_us, 5 * PR_SEC);
	assert_int_equal(c->kafka.timeout_us, 10 * PR_SEC);
	assert_int_equal(c->delivery, PR_EXACTLY_ONCE);
	assert_string_equal(c->route.topic, "outbox.event.${aggregatetype}");
	assert_int_equal(c->limits.batch_events, 10000);
	assert_int_equal(c->limits.batch_bytes, 8 << 20);
	assert_int_equal(c->limits.poll_min_us, PR_MS);
	assert_int_equal(c->limits.poll_max_us, 10 * PR_MS);
	assert_int_equal(c->limits.gather_us, 0);
	assert_int_equal(c->limits.parked_keys, 10000);
	assert_int_equal(c->limits.waiting_topics, 1000);
	assert_int_equal(c->limits.topics, 10000);
	assert_int_equal(c->retention.keep_us, 7 * 86400 * PR_SEC);
	assert_int_equal(c->retention.partition_events, 5000000);
	assert_int_equal(c->retention.ahead, 16);
	assert_int_equal(c->retention.every_us, 5 * PR_SEC);
	assert_string_equal(c->http.listen, "127.0.0.1:9470");
	assert_string_equal(c->log_level, "info");
	assert_int_equal(c->drain_us, 10 * PR_SEC);
}

static void test_defaults(void **state)
{
	struct pr_relay_conf c;
	struct pr_conf *conf;

	(void)state;
	memset(&c, 0xa5, sizeof(c));
	load("name = \"orders\"; source: { conninfo = \"dbname=o\"; }; kafka: { brokers = \"b\"; };", &c,
		&conf);
	expect_defaults(&c);
	assert_null(c.http.token);
	assert_int_equal(c.kafka.properties.n, 0);
	pr_conf_free(conf);
}

/* "#key = value;" -> "key = value;", comments stay. */
static void uncomment(char *s)
{
	for (char *p = s; (p = strchr(p, '#')); p++)
		if (p[1] != ' ' && p[1] != '\n' && (p == s || isspace((unsigned char)p[-1])))
			*p = ' ';
}

static void test_sample_tells_the_truth(void **state)
{
	char *sample = printed(pr_conf_sample);
	struct pr_relay_conf c;
	struct pr_conf *conf;

	(void)state;
	load(sample, &c, &conf);
	expect_defaults(&c);
	pr_conf_free(conf);
	uncomment(sample);
	assert_int_equal(setenv("POSTRIDER_TOKEN", "t", 1), 0);
	assert_int_equal(setenv("COLLECTOR_TOKEN", "t", 1), 0);
	load(sample, &c, &conf);
	expect_defaults(&c);
	assert_string_equal(c.http.token, "t");
	assert_int_equal(c.kafka.properties.n, 1);
	pr_conf_free(conf);
	free(sample);
}

/* Every option has a doc of sentences and a default inside its own range (loading checks that). */
static void test_table(void **state)
{
	(void)state;
	for (const struct pr_opt *o = pr_relay_options; o->path; o++) {
		if (!o->doc || !*o->doc || o->doc[strlen(o->doc) - 1] != '.')
			fail_msg("%s: a sentence is missing", o->path);
		if ((o->flags & PR_OPT_REQUIRED) && (o->def || !o->example))
			fail_msg("%s: required, with an example and no default", o->path);
		for (const struct pr_opt *p = o + 1; p->path; p++)
			assert_string_not_equal(o->path, p->path);
	}
}

static void expect_accepted(const char *key, const char *value, int ok)
{
	static const char base[] =
		"name = \"orders\"; source: { conninfo = \"dbname=o\"; }; kafka: { brokers = \"b\"; };";
	char *over = pr_asprintf("%s=%s", key, value);
	const char *const overrides[] = { over };
	struct pr_relay_conf c;
	struct pr_conf *conf;
	struct pr_err err = { 0 };

	assert_int_equal(pr_conf_load_text("t.cfg", base, sizeof(base) - 1, pr_relay_options, &c, overrides,
				 1, &conf, &err),
		0);
	if (pr_relay_conf_validate(&c, conf, &err) != (ok ? 0 : -1))
		fail_msg("%s=%s: %s", key, value, ok ? err.text : "accepted");
	if (!ok) {
		assert_int_equal(err.exit, PR_EX_CONFIG);
		assert_non_null(strstr(err.text, key));
	}
	pr_conf_free(conf);
	free(over);
}

static void test_semantics(void **state)
{
	static const struct {
		const char *key, *value;
		int ok;
	} rows[] = {
		{ "http.listen", "127.0.0.1:0", 1 },
		{ "http.listen", "127.9.9.9:9470", 1 },
		{ "http.listen", "[::1]:9470", 1 },
		{ "http.listen", "localhost:9470", 1 },
		{ "http.listen", "[::]:9470", 0 },
		{ "http.listen", "*:9470", 0 },
		{ "http.listen", "10.0.0.1:9470", 0 },
		{ "http.listen", "localhost.example:9470", 0 },
		{ "http.listen", "127.0.0.1.example:9470", 0 },
		{ "http.listen", "::1:9470", 0 },
		{ "http.listen", "127.0.0.1:", 0 },
		{ "http.listen", "127.0.0.1:65536", 0 },
		{ "http.listen", "127.0.0.1:+1", 0 },
		{ "http.listen", "127.0.0.1:000001", 0 },
		{ "http.listen", ":9470", 0 },
		{ "http.listen", "", 0 },
		{ "name", "a-b_9", 1 },
		{ "name", "a.b", 0 },
		{ "name", "a b", 0 },
		{ "name", "é", 0 },
		{ "route.topic", "${aggregatetype}", 1 },
		{ "route.topic", "a.${aggregatetype}-${aggregatetype}_b", 1 },
		{ "route.topic", "orders", 1 },
		{ "route.topic", "${aggregatetype", 0 },
		{ "route.topic", "$aggregatetype", 0 },
		{ "route.topic", "${AggregateType}", 0 },
		{ "route.topic", "a\nb", 0 },
		{ "route.topic", "bücher", 0 },
		{ "route.topic", ".", 0 },
		{ "route.topic", "", 0 },
		{ "kafka.brokers", "a:1, b:2", 1 },
		{ "kafka.brokers", "a:1\nb:2", 0 },
		{ "kafka.properties", "linger.ms=5", 1 },
		{ "kafka.properties", "enable.idempotence=false", 0 },
		{ "limits.poll_max", "500us", 0 },
		{ "limits.poll_max", "1ms", 1 },
		{ "tracing.endpoint", "https://collector.example:4318/v1/traces", 1 },
		{ "tracing.endpoint", "ftp://collector.example", 0 },
		{ "tracing.endpoint", "http://user:secret@collector.example/", 0 },
		{ "tracing.endpoint", "collector.example:4318", 0 },
		{ "log.level", "debug", 1 },
		{ "log.level", "INFO", 0 },
	};
	char topic[300];

	(void)state;
	for (size_t i = 0; i < LEN(rows); i++)
		expect_accepted(rows[i].key, rows[i].value, rows[i].ok);
	memset(topic, 'x', sizeof(topic));
	topic[249] = '\0';
	expect_accepted("route.topic", topic, 1);
	topic[249] = 'x';
	topic[250] = '\0';
	expect_accepted("route.topic", topic, 0);
}

/* -1: refused. */
static int64_t sample_of(const char *text, const char *override)
{
	char *all = pr_asprintf(
		"name = \"orders\"; source: { conninfo = \"dbname=o\"; }; kafka: { brokers = \"b\"; }; "
		"tracing: { %s };",
		text);
	struct pr_relay_conf c;
	struct pr_conf *conf;
	struct pr_err err = { 0 };
	int64_t sample = -1;

	if (pr_conf_load_text("t.cfg", all, strlen(all), pr_relay_options, &c, &override, override != NULL,
		    &conf, &err) == 0) {
		sample = c.tracing.sample;
		pr_conf_free(conf);
	} else if (!strstr(err.text, "tracing.sample")) {
		fail_msg("%s: %s", all, err.text);
	}
	free(all);
	return sample;
}

static void test_ratio(void **state)
{
	static const struct {
		const char *text;
		int64_t sample;
	} rows[] = { { "", 1000000 }, { "sample = 1.0;", 1000000 }, { "sample = 0;", 0 },
		{ "sample = 1;", 1000000 }, { "sample = 0.01;", 10000 }, { "sample = 1e-3;", 1000 },
		{ "sample = \"0.25\";", 250000 }, { "sample = 1.1;", -1 }, { "sample = -0.1;", -1 },
		{ "sample = 2;", -1 }, { "sample = 1e99;", -1 }, { "sample = \"\";", -1 },
		{ "sample = \"0.5x\";", -1 }, { "sample = \"nan\";", -1 }, { "sample = \"1.0.0\";", -1 },
		{ "sample = true;", -1 } };

	(void)state;
	for (size_t i = 0; i < LEN(rows); i++)
		if (sample_of(rows[i].text, NULL) != rows[i].sample)
			fail_msg("%s: %lld", rows[i].text, (long long)sample_of(rows[i].text, NULL));
	assert_int_equal(sample_of("sample = 1.0;", "tracing.sample=0.5"), 500000);
	assert_int_equal(sample_of("sample = 1.0;", "tracing.sample=5"), -1);
}

static void test_listens_anywhere_with_a_token(void **state)
{
	struct pr_relay_conf c;
	struct pr_conf *conf;

	(void)state;
	load("name = \"o\"; source: { conninfo = \"dbname=o\"; }; kafka: { brokers = \"b\"; };"
	     "http: { listen = \"*:9470\"; token = \"t\"; };",
		&c, &conf);
	assert_string_equal(c.http.listen, "*:9470");
	pr_conf_free(conf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_committed_files),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_sample_tells_the_truth),
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_semantics),
		cmocka_unit_test(test_ratio),
		cmocka_unit_test(test_listens_anywhere_with_a_token),
	};

	(void)alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
