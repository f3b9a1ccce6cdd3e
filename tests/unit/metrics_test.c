/* tests/unit/metrics_test.c -- what a scrape says, what it refuses to say, and that
 * updates, new series and renders may all happen at once. */
#include "lib/metrics.h"

#include "lib/clock.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VALUES(...) ((const char *const[]){ __VA_ARGS__ })

static const double bounds[] = { 0.5, 1, 20 };

/* Renders, compares and frees. */
static void expect(struct pr_metrics *m, const char *constant, int openmetrics, const char *text)
{
	size_t len;
	char *got = pr_metrics_render(m, constant, openmetrics, &len);

	assert_string_equal(got, text);
	assert_int_equal(len, strlen(text));
	free(got);
}

static void expect_part(struct pr_metrics *m, const char *part)
{
	char *got = pr_metrics_render(m, NULL, 0, NULL);

	if (!strstr(got, part))
		fail_msg("no \"%s\" in:\n%s", part, got);
	free(got);
}

static size_t count_of(struct pr_metrics *m, const char *part)
{
	char *got = pr_metrics_render(m, NULL, 0, NULL);
	size_t n = 0;

	for (const char *p = got; (p = strstr(p, part)); p += strlen(part))
		n++;
	free(got);
	return n;
}

static struct pr_metrics *sample(void)
{
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *sent =
		pr_family_new(m, PR_COUNTER, "sent_total", "topic,partition", 0, "Sent \\ \"x\"\n.");
	struct pr_family *lag = pr_family_new(m, PR_GAUGE, "lag_seconds", "", 0, "Lag.");
	struct pr_family *took = pr_histogram_new(m, "took_seconds", "", bounds, 3, "Took.");

	(void)pr_family_new(m, PR_COUNTER, "lost_bytes_total", "reason", 0, "Lost.");
	pr_counter_add(pr_series_get(sent, VALUES("a", "0")), 3);
	pr_counter_add(pr_series_get(sent, VALUES("b", "1")), UINT64_MAX);
	pr_counter_add(pr_series_get(sent, VALUES("a", "0")), 4);
	pr_gauge_set(pr_series_one(lag), 0.25);
	pr_observe(pr_series_one(took), 0.5);
	pr_observe_n(pr_series_one(took), 0.75, 2);
	pr_observe(pr_series_one(took), 100);
	return m;
}

static void test_text(void **state)
{
	struct pr_metrics *m = sample();

	(void)state;
	expect(m, "outbox=\"orders\"", 0,
		"# HELP sent_total Sent \\\\ \"x\"\\n.\n"
		"# TYPE sent_total counter\n"
		"sent_total{outbox=\"orders\",topic=\"a\",partition=\"0\"} 7\n"
		"sent_total{outbox=\"orders\",topic=\"b\",partition=\"1\"} 18446744073709551615\n"
		"# HELP lag_seconds Lag.\n"
		"# TYPE lag_seconds gauge\n"
		"lag_seconds{outbox=\"orders\"} 0.25\n"
		"# HELP took_seconds Took.\n"
		"# TYPE took_seconds histogram\n"
		"took_seconds_bucket{outbox=\"orders\",le=\"0.5\"} 1\n"
		"took_seconds_bucket{outbox=\"orders\",le=\"1.0\"} 3\n"
		"took_seconds_bucket{outbox=\"orders\",le=\"20.0\"} 3\n"
		"took_seconds_bucket{outbox=\"orders\",le=\"+Inf\"} 4\n"
		"took_seconds_sum{outbox=\"orders\"} 102\n"
		"took_seconds_count{outbox=\"orders\"} 4\n"
		"# HELP lost_bytes_total Lost.\n"
		"# TYPE lost_bytes_total counter\n");
	pr_metrics_free(m);
}

static void test_openmetrics(void **state)
{
	struct pr_metrics *m = sample();

	(void)state;
	expect(m, NULL, 1,
		"# HELP sent Sent \\\\ \\\"x\\\"\\n.\n"
		"# TYPE sent counter\n"
		"sent_total{topic=\"a\",partition=\"0\"} 7\n"
		"sent_total{topic=\"b\",partition=\"1\"} 18446744073709551615\n"
		"# HELP lag_seconds Lag.\n"
		"# TYPE lag_seconds gauge\n"
		"# UNIT lag_seconds seconds\n"
		"lag_seconds 0.25\n"
		"# HELP took_seconds Took.\n"
		"# TYPE took_seconds histogram\n"
		"# UNIT took_seconds seconds\n"
		"took_seconds_bucket{le=\"0.5\"} 1\n"
		"took_seconds_bucket{le=\"1.0\"} 3\n"
		"took_seconds_bucket{le=\"20.0\"} 3\n"
		"took_seconds_bucket{le=\"+Inf\"} 4\n"
		"took_seconds_sum 102\n"
		"took_seconds_count 4\n"
		"# HELP lost_bytes Lost.\n"
		"# TYPE lost_bytes counter\n"
		"# UNIT lost_bytes bytes\n"
		"# EOF\n");
	pr_metrics_free(m);
}

static void test_empty_registry(void **state)
{
	struct pr_metrics *m = pr_metrics_new();

	(void)state;
	expect(m, NULL, 0, "");
	expect(m, "a=\"b\"", 1, "# EOF\n");
	pr_metrics_free(m);
	pr_metrics_free(NULL);
}

static void test_numbers(void **state)
{
	static const struct {
		double v;
		const char *text;
	} table[] = { { 0, "g 0\n" }, { -0.0, "g -0\n" }, { 0.1, "g 0.1\n" }, { 1e15, "g 1e+15\n" },
		{ 999999999999999, "g 999999999999999\n" }, { -3, "g -3\n" },
		{ 1.0 / 3, "g 0.3333333333333333\n" }, { 5e-324, "g 4.94065645841247e-324\n" },
		{ NAN, "g NaN\n" }, { INFINITY, "g +Inf\n" }, { -INFINITY, "g -Inf\n" },
		{ 1795264617.9620264, "g 1795264617.9620264\n" } };
	struct pr_metrics *m = pr_metrics_new();
	struct pr_series *g = pr_series_one(pr_family_new(m, PR_GAUGE, "g", "", 0, "G."));

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		pr_gauge_set(g, table[i].v);
		assert_true(isnan(table[i].v) || pr_gauge_value(g) == table[i].v);
		expect_part(m, table[i].text);
	}
	pr_metrics_free(m);
}

static void test_values_are_escaped(void **state)
{
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *f = pr_family_new(m, PR_COUNTER, "n_total", "v", 0, "N.");

	(void)state;
	pr_counter_add(pr_series_get(f, VALUES("\\ \" \n {}=, \xc3\xa9")), 1);
	expect_part(m, "n_total{v=\"\\\\ \\\" \\n {}=, \xc3\xa9\"} 1\n");
	pr_metrics_free(m);
}

/* A scrape with one byte that is no UTF-8, or with one series twice, is dropped whole by
 * Prometheus: then every alert goes blind because of one strange topic. */
static void test_strange_values_cannot_break_a_scrape(void **state)
{
	static const char *const same[] = { "a\xff"
					    "b",
		"a\x80"
		"b",
		"a\xc0"
		"b",
		"a?b" };
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *f = pr_family_new(m, PR_COUNTER, "n_total", "v", 0, "N.");
	char long1[1000], long2[2000];

	(void)state;
	for (size_t i = 0; i < 4; i++)
		pr_counter_add(pr_series_get(f, &same[i]), 1);
	expect_part(m, "n_total{v=\"a?b\"} 4\n");
	pr_counter_add(pr_series_get(f, VALUES("\xed\xa0\x80")), 1); /* a surrogate */
	expect_part(m, "n_total{v=\"???\"} 1\n");
	pr_counter_add(pr_series_get(f, VALUES("\xf0\x9f\x98\x80")), 1);
	expect_part(m, "n_total{v=\"\xf0\x9f\x98\x80\"} 1\n");
	pr_counter_add(pr_series_get(f, VALUES("\xf0\x9f")), 1); /* cut short */
	expect_part(m, "n_total{v=\"??\"} 1\n");

	memset(long1, 'x', sizeof(long1));
	memset(long2, 'x', sizeof(long2));
	long1[sizeof(long1) - 1] = long2[sizeof(long2) - 1] = '\0';
	assert_ptr_equal(pr_series_get(f, VALUES(long1)), pr_series_get(f, VALUES(long2)));
	pr_counter_add(pr_series_get(f, VALUES(NULL)), 5);
	expect_part(m, "n_total{v=\"\"} 5\n");
	assert_int_equal(count_of(m, "n_total{"), 6);
	pr_metrics_free(m);
}

static void test_series_are_found_again(void **state)
{
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *f = pr_family_new(m, PR_GAUGE, "g", "a,b", 100000, "G.");
	struct pr_series *s[2000];
	char a[16], b[16];

	(void)state;
	for (int i = 0; i < 2000; i++) {
		(void)snprintf(a, sizeof(a), "%d", i / 40);
		(void)snprintf(b, sizeof(b), "%d", i % 40);
		s[i] = pr_series_get(f, VALUES(a, b));
		pr_gauge_set(s[i], i);
	}
	for (int i = 0; i < 2000; i++) {
		(void)snprintf(a, sizeof(a), "%d", i / 40);
		(void)snprintf(b, sizeof(b), "%d", i % 40);
		assert_ptr_equal(pr_series_get(f, VALUES(a, b)), s[i]);
		assert_true(pr_gauge_value(s[i]) == i);
	}
	/* The border between two values counts. */
	assert_ptr_not_equal(pr_series_get(f, VALUES("ab", "c")), pr_series_get(f, VALUES("a", "bc")));
	assert_ptr_not_equal(pr_series_get(f, VALUES("", "x")), pr_series_get(f, VALUES("x", "")));
	pr_metrics_free(m);
}

static void test_cap(void **state)
{
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *f = pr_family_new(m, PR_COUNTER, "n_total", "topic,reason", 3, "N.");
	char topic[16];

	(void)state;
	for (int i = 0; i < 500; i++) {
		(void)snprintf(topic, sizeof(topic), "t%d", i);
		pr_counter_add(pr_series_get(f, VALUES(topic, "r")), 1);
	}
	assert_int_equal(pr_counter_value(pr_series_get(f, VALUES("t0", "r"))), 1);
	assert_int_equal(pr_counter_value(pr_series_get(f, VALUES("t400", "r"))), 497);
	assert_ptr_equal(
		pr_series_get(f, VALUES("t400", "\xff")), pr_series_get(f, VALUES("other", "other")));
	/* What was made before the cap is found after it, also by a value that must be cleaned. */
	pr_metrics_free(m);
	m = pr_metrics_new();
	f = pr_family_new(m, PR_COUNTER, "n_total", "topic,reason", 3, "N.");
	pr_counter_add(pr_series_get(f, VALUES("\xff", "r")), 1);
	for (int i = 0; i < 500; i++) {
		(void)snprintf(topic, sizeof(topic), "t%d", i);
		pr_counter_add(pr_series_get(f, VALUES(topic, "r")), 1);
	}
	pr_counter_add(pr_series_get(f, VALUES("\x80", "r")), 1);
	expect_part(m, "n_total{topic=\"?\",reason=\"r\"} 2\n");
	expect_part(m, "n_total{topic=\"other\",reason=\"other\"} 498\n");
	assert_int_equal(count_of(m, "n_total{"), 4);
	pr_metrics_free(m);
}

static void test_buckets(void **state)
{
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *f = pr_histogram_new(m, "h", "", bounds, 3, "H.");

	(void)state;
	pr_observe(pr_series_one(f), 1);     /* a bound belongs to its own bucket */
	pr_observe(pr_series_one(f), 1.125); /* and what is past it to the next */
	pr_observe(pr_series_one(f), -5);    /* clocks of two hosts: counts as 0 */
	pr_observe(pr_series_one(f), NAN);
	pr_observe_n(pr_series_one(f), 9, 0);
	expect_part(m, "h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"20.0\"} 3\n"
		       "h_bucket{le=\"+Inf\"} 3\nh_sum 2.125\nh_count 3\n");
	pr_metrics_free(m);
}

static void test_shared_buckets(void **state)
{
	(void)state;
	assert_true(pr_seconds_buckets[0] == 0.001);
	assert_true(pr_seconds_buckets[pr_seconds_buckets_n - 1] == 300);
	for (size_t i = 1; i < pr_seconds_buckets_n; i++)
		assert_true(pr_seconds_buckets[i - 1] < pr_seconds_buckets[i]);
}

static double value_of(struct pr_metrics *m, const char *name)
{
	char *got = pr_metrics_render(m, NULL, 0, NULL), start[80];
	const char *p;
	double v;

	(void)snprintf(start, sizeof(start), "\n%s ", name);
	p = strstr(got, start);
	if (!p)
		fail_msg("no %s in:\n%s", name, got);
	v = strtod(p + strlen(start), NULL);
	free(got);
	return v;
}

static void *wait_for_end(void *lock)
{
	pthread_mutex_lock(lock);
	pthread_mutex_unlock(lock);
	return NULL;
}

static void test_process(void **state)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct pr_metrics *m = pr_metrics_new();
	double fds, cpu, threads, now = (double)pr_wall_us() / 1e6;
	pthread_t thread;
	int fd[3];

	(void)state;
	pr_metrics_process(m);
	fds = value_of(m, "process_open_fds");
	for (int i = 0; i < 3; i++)
		fd[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(value_of(m, "process_open_fds") == fds + 3);
	for (int i = 0; i < 3; i++)
		close(fd[i]);
	assert_true(value_of(m, "process_max_fds") >= fds);
	assert_true(value_of(m, "process_resident_memory_bytes") > 256 * 1024);
	assert_true(fabs(value_of(m, "process_start_time_seconds") - now) < 60);

	cpu = value_of(m, "process_cpu_seconds_total");
	while (value_of(m, "process_cpu_seconds_total") < cpu + 0.005)
		;
	/* A sanitizer starts a thread of its own beside the first. */
	assert_int_equal(pthread_create(&thread, NULL, wait_for_end, &lock), 0);
	pthread_join(thread, NULL);
	threads = value_of(m, "process_threads");
	pthread_mutex_lock(&lock);
	assert_int_equal(pthread_create(&thread, NULL, wait_for_end, &lock), 0);
	assert_true(value_of(m, "process_threads") == threads + 1);
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
	pr_metrics_free(m);
}

static void promtool(const char *text)
{
	char path[] = "/tmp/postrider-metrics-XXXXXX", command[120];
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	(void)snprintf(command, sizeof(command), "/usr/bin/promtool check metrics <%s", path);
	if (system(command) != 0)
		fail_msg("promtool does not like:\n%s", text);
	unlink(path);
}

static void test_promtool(void **state)
{
	struct pr_metrics *m = sample();
	char *text;

	(void)state;
	if (access("/usr/bin/promtool", X_OK) != 0) {
		pr_metrics_free(m);
		print_message("promtool is not installed\n");
		skip();
	}
	pr_metrics_process(m);
	text = pr_metrics_render(m, "outbox=\"orders\"", 0, NULL);
	promtool(text);
	free(text);
	pr_metrics_free(m);
}

/* ---- at once ---- */

#define WRITERS 4
#define ROUNDS  20000

struct crowd {
	struct pr_metrics *m;
	struct pr_family *count, *took;
	struct pr_series *one, *hist;
	_Atomic int writing;
};

static void *write_all(void *arg)
{
	struct crowd *c = arg;
	char v[16];

	for (int i = 0; i < ROUNDS; i++) {
		(void)snprintf(v, sizeof(v), "%d", i % 300);
		pr_counter_add(c->one, 1);
		pr_counter_add(pr_series_get(c->count, VALUES(v)), 1);
		pr_observe(c->hist, 0.25);
		if (i % 100 == 0)
			pr_observe(pr_series_get(c->took, VALUES(v)), i);
	}
	atomic_fetch_sub(&c->writing, 1);
	return NULL;
}

static uint64_t number_after(const char *text, const char *start)
{
	const char *p = strstr(text, start);

	if (!p)
		fail_msg("no %s in:\n%s", start, text);
	return strtoull(p + strlen(start), NULL, 10);
}

static void test_all_at_once(void **state)
{
	struct crowd c = { .m = pr_metrics_new(), .writing = WRITERS };
	pthread_t thread[WRITERS];
	uint64_t last = 0, now;
	int renders = 0;
	char *text;

	(void)state;
	c.count = pr_family_new(c.m, PR_COUNTER, "n_total", "v", 200, "N.");
	c.took = pr_histogram_new(c.m, "h_seconds", "v", pr_seconds_buckets, pr_seconds_buckets_n, "H.");
	c.one = pr_series_one(pr_family_new(c.m, PR_COUNTER, "one_total", "", 0, "One."));
	c.hist = pr_series_one(pr_histogram_new(c.m, "x", "", bounds, 3, "X."));
	for (int i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, write_all, &c), 0);
	while (atomic_load(&c.writing) > 0 || renders == 0) {
		text = pr_metrics_render(c.m, NULL, renders++ % 2, NULL);
		now = number_after(text, "\none_total ");
		assert_true(now >= last);
		last = now;
		assert_true(
			number_after(text, "\nx_bucket{le=\"+Inf\"} ") == number_after(text, "\nx_count "));
		free(text);
	}
	for (int i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);

	assert_int_equal(pr_counter_value(c.one), WRITERS * ROUNDS);
	text = pr_metrics_render(c.m, NULL, 0, NULL);
	assert_int_equal(number_after(text, "\nx_count "), WRITERS * ROUNDS);
	/* 0.25 adds up without rounding, so not one addition was lost. */
	assert_int_equal(number_after(text, "\nx_sum "), WRITERS * ROUNDS / 4);
	free(text);
	now = 0;
	for (int i = 0; i < 200; i++) {
		char v[16];

		(void)snprintf(v, sizeof(v), "%d", i);
		now += pr_counter_value(pr_series_get(c.count, VALUES(v)));
	}
	now += pr_counter_value(pr_series_get(c.count, VALUES("other")));
	assert_int_equal(now, WRITERS * ROUNDS);
	assert_int_equal(count_of(c.m, "n_total{"), 201);
	pr_metrics_free(c.m);
}

/* Two threads that meet over the same new value must get the same series, and no more than the cap. */
enum { MEETINGS = 5000, MEETINGS_CAP = 4000 };

struct meeting {
	struct pr_family *f;
	_Atomic int *arrived;
	struct pr_series *s[MEETINGS];
};

static void *make_all(void *arg)
{
	struct meeting *m = arg;
	char v[16];

	for (int i = 0; i < MEETINGS; i++) {
		(void)snprintf(v, sizeof(v), "%d", i);
		/* They spin, for a lock would wake one after the other. */
		atomic_fetch_add(m->arrived, 1);
		for (int spins = 0; atomic_load(m->arrived) < 2 * (i + 1); spins++)
			if (spins > 1000)
				sched_yield();
		m->s[i] = pr_series_get(m->f, VALUES(v));
		pr_counter_add(m->s[i], 1);
	}
	return NULL;
}

static void test_made_once(void **state)
{
	static struct meeting meeting[2];
	struct pr_metrics *m = pr_metrics_new();
	struct pr_family *f = pr_family_new(m, PR_COUNTER, "n_total", "v", MEETINGS_CAP, "N.");
	_Atomic int arrived = 0;
	pthread_t thread[2];

	(void)state;
	for (int i = 0; i < 2; i++) {
		meeting[i].f = f;
		meeting[i].arrived = &arrived;
		assert_int_equal(pthread_create(&thread[i], NULL, make_all, &meeting[i]), 0);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	for (int k = 0; k < MEETINGS; k++)
		assert_ptr_equal(meeting[0].s[k], meeting[1].s[k]);
	assert_int_equal(count_of(m, "n_total{"), MEETINGS_CAP + 1);
	assert_int_equal(pr_counter_value(meeting[0].s[0]), 2);
	assert_int_equal(pr_counter_value(meeting[0].s[MEETINGS - 1]), 2 * (MEETINGS - MEETINGS_CAP));
	pr_metrics_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_openmetrics),
		cmocka_unit_test(test_empty_registry),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_values_are_escaped),
		cmocka_unit_test(test_strange_values_cannot_break_a_scrape),
		cmocka_unit_test(test_series_are_found_again),
		cmocka_unit_test(test_cap),
		cmocka_unit_test(test_buckets),
		cmocka_unit_test(test_shared_buckets),
		cmocka_unit_test(test_process),
		cmocka_unit_test(test_promtool),
		cmocka_unit_test(test_all_at_once),
		cmocka_unit_test(test_made_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
