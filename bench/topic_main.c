/* bench/topic_main.c -- a topic full of the consumer's events, and the least that reading it costs.
 * fill: an idempotent producer writes events 0..n with the contract's headers; at a rate, or as fast as it
 * goes. read: a bare librdkafka consumer of one group, everything at its default, that throws away what it
 * gets. Refuses to go on after any error. Prints one JSON line on stdout. Called by bench/run.py. */
#include "bench/event.h"

#include "lib/clock.h"
#include "lib/err.h"

#include <getopt.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

struct opts {
	const char *brokers, *topic, *group;
	long messages, keys, rate;
	long hours;     /* record times in so many hours before now, in turns; 0: now */
	int64_t ids_us; /* with the same, the same events are written once more */
	double patience;
};

struct run {
	struct opts o;
	rd_kafka_t *rk;
	int64_t start_us, first_us, low_us, high_us, end_us; /* low, high: at 10 % and 90 % */
	long n, low_n, high_n;
};

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "topic: %s: %s\n", what, why);
	exit(PR_EX_FAILED);
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char why[300];

	if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
		die(name, why);
}

static void sleep_until(int64_t mono_us)
{
	struct timespec ts = { .tv_sec = (time_t)(mono_us / PR_SEC),
		.tv_nsec = (long)(mono_us % PR_SEC) * 1000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0)
		;
}

static void report(const struct run *r)
{
	double seconds = (double)(r->end_us - r->start_us) / (double)PR_SEC;
	double steady = (double)(r->high_us - r->low_us) / (double)PR_SEC;
	struct rusage use;
	double cpu;

	(void)getrusage(RUSAGE_SELF, &use);
	cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1e6 +
	      (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
	(void)printf(
		"{\"events\": %ld, \"seconds\": %.3f, \"first_seen\": %.3f, \"events_per_second\": %.0f, "
		"\"steady_events_per_second\": %.0f, \"cpu_us_per_event\": %.3f, \"peak_rss_kb\": %ld}\n",
		r->n, seconds, (double)(r->first_us - r->start_us) / (double)PR_SEC, (double)r->n / seconds,
		steady > 0 ? (double)(r->high_n - r->low_n) / steady : 0.0, cpu / (double)r->n,
		use.ru_maxrss);
}

static void mark(struct run *r)
{
	r->n++;
	if (r->n == 1)
		r->first_us = pr_mono_us();
	if (!r->low_us && r->n >= r->o.messages / 10) {
		r->low_us = pr_mono_us();
		r->low_n = r->n;
	}
	if (!r->high_us && r->n >= r->o.messages / 10 * 9) {
		r->high_us = pr_mono_us();
		r->high_n = r->n;
	}
}

/* ---------------------------------------------------------------- fill */

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
	struct run *r = opaque;

	(void)rk;
	if (m->err)
		die("delivery", rd_kafka_err2str(m->err));
	mark(r);
}

static rd_kafka_t *producer(struct run *r)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char why[300];
	rd_kafka_t *rk;

	set(conf, "bootstrap.servers", r->o.brokers);
	set(conf, "enable.idempotence", "true");
	set(conf, "compression.codec", "lz4");
	set(conf, "linger.ms", r->o.rate ? "5" : "50");
	set(conf, "partitioner", "murmur2_random");
	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	rd_kafka_conf_set_opaque(conf, r);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
	if (!rk)
		die("producer", why);
	return rk;
}

/* In milliseconds; 0 is now. */
static int64_t time_of(const struct run *r, long n)
{
	return r->o.hours ? (r->o.ids_us / PR_SEC - n * 7 % r->o.hours * 3600) * 1000 : 0;
}

static void produce(struct run *r, const struct event *e)
{
	rd_kafka_headers_t *h = rd_kafka_headers_new(EVENT_HEADERS);
	rd_kafka_resp_err_t code;

	for (int i = 0; i < EVENT_HEADERS; i++)
		(void)rd_kafka_header_add(
			h, e->header[i].name, -1, e->header[i].value, (ssize_t)e->header[i].len);
	do {
		code = rd_kafka_producev(r->rk, RD_KAFKA_V_TOPIC(r->o.topic),
			RD_KAFKA_V_KEY(e->key, e->key_len),
			RD_KAFKA_V_VALUE((void *)(uintptr_t)e->payload, e->payload_len),
			RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_HEADERS(h),
			RD_KAFKA_V_TIMESTAMP(time_of(r, e->n)), RD_KAFKA_V_END);
		if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL)
			rd_kafka_poll(r->rk, 20);
	} while (code == RD_KAFKA_RESP_ERR__QUEUE_FULL);
	if (code)
		die("produce", rd_kafka_err2str(code));
}

static void fill(struct run *r)
{
	struct event e;

	r->rk = producer(r);
	for (long i = 0; i < r->o.messages; i++) {
		if (r->o.rate)
			sleep_until(r->start_us + i * PR_SEC / r->o.rate);
		event_make(&e, i, r->o.keys, r->o.ids_us);
		produce(r, &e);
		if (r->o.rate || i % 1000 == 0)
			rd_kafka_poll(r->rk, 0);
	}
	if (rd_kafka_flush(r->rk, (int)(r->o.patience * 1000)) != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("flush", "not all events were acknowledged");
	r->end_us = pr_mono_us();
	rd_kafka_destroy(r->rk);
}

/* ---------------------------------------------------------------- read */

static rd_kafka_t *consumer(const struct run *r)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char why[300];
	rd_kafka_t *rk;

	set(conf, "bootstrap.servers", r->o.brokers);
	set(conf, "group.id", r->o.group);
	set(conf, "auto.offset.reset", "earliest");
	set(conf, "isolation.level", "read_committed");
	set(conf, "partition.assignment.strategy", "range");
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
	if (!rk)
		die("consumer", why);
	rd_kafka_poll_set_consumer(rk);
	rd_kafka_topic_partition_list_add(list, r->o.topic, RD_KAFKA_PARTITION_UA);
	if (rd_kafka_subscribe(rk, list) != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("subscribe", r->o.topic);
	rd_kafka_topic_partition_list_destroy(list);
	return rk;
}

static void drain(struct run *r)
{
	int64_t heard_us = pr_mono_us();
	rd_kafka_message_t *m;

	r->rk = consumer(r);
	while (r->n < r->o.messages) {
		m = rd_kafka_consumer_poll(r->rk, 100);
		if (!m) {
			if (pr_mono_us() - heard_us > (int64_t)(r->o.patience * (double)PR_SEC))
				die("read", "nothing comes any more");
			continue;
		}
		if (m->err)
			die("read", rd_kafka_message_errstr(m));
		rd_kafka_message_destroy(m);
		mark(r);
		if (r->n % 1000 == 0)
			heard_us = pr_mono_us();
	}
	r->end_us = pr_mono_us();
	(void)rd_kafka_consumer_close(r->rk);
	rd_kafka_destroy(r->rk);
}

/* ---------------------------------------------------------------- begin */

static void usage(void)
{
	(void)fputs("usage: topic fill|read --brokers B --topic T [--messages 1000000] [--keys 10000] "
		    "[--rate N] [--hours N]"
		    " [--group G] [--patience 60] [--ids-us NOW]\n",
		stderr);
	exit(PR_EX_USAGE);
}

static void parse(int argc, char **argv, struct opts *o)
{
	static const struct option options[] = { { "brokers", 1, 0, 'b' }, { "topic", 1, 0, 't' },
		{ "group", 1, 0, 'g' }, { "messages", 1, 0, 'n' }, { "keys", 1, 0, 'k' },
		{ "rate", 1, 0, 'r' }, { "hours", 1, 0, 'h' }, { "patience", 1, 0, 'p' },
		{ "ids-us", 1, 0, 'i' }, { 0, 0, 0, 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'b')
			o->brokers = optarg;
		else if (c == 't')
			o->topic = optarg;
		else if (c == 'g')
			o->group = optarg;
		else if (c == 'n')
			o->messages = atol(optarg);
		else if (c == 'k')
			o->keys = atol(optarg);
		else if (c == 'r')
			o->rate = atol(optarg);
		else if (c == 'h')
			o->hours = atol(optarg);
		else if (c == 'p')
			o->patience = atof(optarg);
		else if (c == 'i')
			o->ids_us = atoll(optarg);
		else
			usage();
	}
	if (optind != argc - 1 || !o->brokers || !o->topic || o->messages < 10 || o->keys < 1 ||
		o->rate < 0 || o->hours < 0)
		usage();
}

int main(int argc, char **argv)
{
	struct run r = { .o = { .messages = 1000000, .keys = 10000, .patience = 60 } };

	parse(argc, argv, &r.o);
	r.start_us = pr_mono_us();
	if (!r.o.ids_us)
		r.o.ids_us = pr_wall_us() - r.o.messages * 10;
	if (strcmp(argv[optind], "fill") == 0)
		fill(&r);
	else if (strcmp(argv[optind], "read") == 0 && r.o.group)
		drain(&r);
	else
		usage();
	report(&r);
	return 0;
}
