/* bench/latency_main.c -- commit -> visible to a read_committed consumer, measured from
 * outside: writers insert one row per transaction on an open-loop schedule (a slow answer
 * does not slow the schedule down), a consumer notes when each event arrives. Knows the
 * relay only by its contract, so that any other relay can stand in its place. With
 * --direct the same events go straight to Kafka instead: the floor under every relay.
 * Refuses to repair: lost and duplicated events are counted and printed.
 * Prints one JSON line on stdout. Called by bench/run.py. */
#include "lib/clock.h"
#include "lib/err.h"

#include <getopt.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct opts {
	const char *conninfo, *brokers, *topic, *table, *aggregatetype;
	long rate, connections, payload, keys;
	double seconds, warmup, patience, gap_ms;
	int publish;        /* through outbox.publish, not a plain INSERT */
	const char *direct; /* no outbox at all: "transactional" or "idempotent" */
};

struct event {
	_Atomic int64_t commit_us;  /* COMMIT returned; 0 = not committed */
	_Atomic int64_t arrived_us; /* first seen by the consumer */
	int64_t took_us;            /* the transaction's own time */
	unsigned seen;              /* by the consumer thread only */
};

struct run {
	struct opts o;
	uint64_t nonce; /* upper half of this run's ids */
	long n, warm;   /* events, of which the first warm are not counted */
	struct event *events;
	char *payload;
	rd_kafka_t *producer; /* with --direct */
	_Atomic int64_t start_us;
	_Atomic long next, failed, distinct;
	_Atomic int64_t behind_us; /* latest start of a transaction against the schedule */
	_Atomic int writers_done;
	int64_t gap_us; /* longest silence between two new arrivals */
};

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "latency: %s: %s\n", what, why);
	exit(PR_EX_FAILED);
}

static void wait_until(int64_t us)
{
	struct timespec ts = { .tv_sec = (time_t)(us / PR_SEC), .tv_nsec = (long)(us % PR_SEC) * 1000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL))
		;
}

static void prepare(const struct run *r, PGconn *pg)
{
	char *sql =
		r->o.publish
			? pr_asprintf(
				  "SELECT outbox.publish($2, $3, 'bench', $4::jsonb, '{}', NULL, $1::uuid)")
			: pr_asprintf("INSERT INTO %s (id, aggregatetype, aggregateid, type, payload) "
				      "VALUES ($1::uuid, $2, $3, 'bench', $4::jsonb)",
				  r->o.table);
	PGresult *res = PQprepare(pg, "w", sql, 4, NULL);

	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		die("prepare", PQerrorMessage(pg));
	PQclear(res);
	free(sql);
}

static void event_id(const struct run *r, long i, char id[40])
{
	(void)snprintf(id, 40, "%08" PRIx64 "-%04" PRIx64 "-7%03" PRIx64 "-8000-%012lx", r->nonce >> 28,
		(r->nonce >> 12) & 0xffff, r->nonce & 0xfff, (unsigned long)i);
}

static void write_one(struct run *r, PGconn *pg, long i)
{
	struct event *e = &r->events[i];
	char id[40], key[24];
	const char *params[4] = { id, r->o.aggregatetype, key, r->payload };
	int64_t began = pr_mono_us();
	PGresult *res;
	ExecStatusType st;

	event_id(r, i, id);
	(void)snprintf(key, sizeof(key), "k%ld", i % r->o.keys);
	res = PQexecPrepared(pg, "w", 4, params, NULL, NULL, 0);
	st = PQresultStatus(res);
	if (st == PGRES_COMMAND_OK || st == PGRES_TUPLES_OK)
		e->commit_us = pr_mono_us();
	else if (atomic_fetch_add(&r->failed, 1) == 0)
		(void)fprintf(stderr, "latency: insert: %s", PQerrorMessage(pg));
	e->took_us = pr_mono_us() - began;
	PQclear(res);
}

/* Each writer takes the next event of the schedule, so one slow commit delays only its own. */
static void *writer(void *arg)
{
	struct run *r = arg;
	PGconn *pg = PQconnectdb(r->o.conninfo);
	long i;

	if (PQstatus(pg) != CONNECTION_OK)
		die("connect", PQerrorMessage(pg));
	prepare(r, pg);
	while ((i = atomic_fetch_add(&r->next, 1)) < r->n) {
		int64_t due = r->start_us + i * PR_SEC / r->o.rate, late;

		wait_until(due);
		late = pr_mono_us() - due;
		if (late > r->behind_us)
			r->behind_us = late;
		write_one(r, pg, i);
	}
	PQfinish(pg);
	return NULL;
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char why[256];

	if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
		die(name, why);
}

static rd_kafka_t *open_producer(const struct run *r)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_error_t *e;
	rd_kafka_t *rk;
	char why[256];

	set(conf, "bootstrap.servers", r->o.brokers);
	set(conf, "enable.idempotence", "true");
	set(conf, "linger.ms", "0");
	set(conf, "compression.codec", "lz4");
	set(conf, "partitioner", "murmur2_random");
	if (strcmp(r->o.direct, "transactional") == 0)
		set(conf, "transactional.id", "postrider-bench-floor");
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
	if (!rk)
		die("kafka", why);
	if (strcmp(r->o.direct, "transactional") == 0 && (e = rd_kafka_init_transactions(rk, 30000)))
		die("init_transactions", rd_kafka_error_string(e));
	return rk;
}

static void produce_one(struct run *r, rd_kafka_t *rk, long i)
{
	rd_kafka_resp_err_t e;
	char id[40], key[24];

	event_id(r, i, id);
	(void)snprintf(key, sizeof(key), "k%ld", i % r->o.keys);
	e = rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(r->o.topic), RD_KAFKA_V_MSGFLAGS(0),
		RD_KAFKA_V_KEY(key, strlen(key)), RD_KAFKA_V_VALUE(r->payload, (size_t)r->o.payload),
		RD_KAFKA_V_HEADER("id", id, 36), RD_KAFKA_V_END);
	if (e)
		die("produce", rd_kafka_err2str(e));
}

static long due_now(const struct run *r)
{
	int64_t n = (pr_mono_us() - r->start_us) * r->o.rate / PR_SEC + 1;

	return n < r->n ? (long)n : r->n;
}

/* The floor: what is due goes out at once, in one transaction after the other, with a gap
 * between them if asked (the broker refuses a transaction that follows too closely). An event
 * counts as committed when it was due, not when we came to it. */
static void *producer(void *arg)
{
	struct run *r = arg;
	rd_kafka_t *rk = r->producer;
	int txn = strcmp(r->o.direct, "transactional") == 0;
	rd_kafka_error_t *e = NULL;

	for (long i = 0, end; i < r->n; i = end) {
		wait_until(r->start_us + i * PR_SEC / r->o.rate);
		end = due_now(r);
		if (txn && (e = rd_kafka_begin_transaction(rk)))
			die("begin", rd_kafka_error_string(e));
		for (long k = i; k < end; k++) {
			produce_one(r, rk, k);
			r->events[k].commit_us = r->start_us + k * PR_SEC / r->o.rate;
		}
		if (txn && (e = rd_kafka_commit_transaction(rk, -1)))
			die("commit", rd_kafka_error_string(e));
		rd_kafka_poll(rk, 0);
		if (r->o.gap_ms > 0)
			wait_until(pr_mono_us() + (int64_t)(r->o.gap_ms * 1000));
	}
	if (rd_kafka_flush(rk, 30000))
		die("flush", "not all delivered in 30 s");
	return NULL;
}

/* The event's number, or -1 when the record is not of this run. */
static long number_of(const struct run *r, const rd_kafka_message_t *m)
{
	rd_kafka_headers_t *h;
	const void *v;
	size_t len;
	char id[37];
	unsigned long a, b, c, n;

	if (rd_kafka_message_headers(m, &h) || rd_kafka_header_get_last(h, "id", &v, &len) || len != 36)
		return -1;
	memcpy(id, v, 36);
	id[36] = '\0';
	if (sscanf(id, "%8lx-%4lx-7%3lx-8000-%12lx", &a, &b, &c, &n) != 4)
		return -1;
	if (((uint64_t)a << 28 | (uint64_t)b << 12 | c) != r->nonce || (long)n >= r->n)
		return -1;
	return (long)n;
}

static void arrived(struct run *r, const rd_kafka_message_t *m, int64_t now)
{
	static int64_t last;
	long i = number_of(r, m);

	if (i < 0)
		return;
	if (r->events[i].seen++ > 0)
		return;
	r->events[i].arrived_us = now;
	r->distinct++;
	if (last && i >= r->warm && now - last > r->gap_us)
		r->gap_us = now - last;
	last = now;
}

/* All partitions, from their present end. */
static rd_kafka_topic_partition_list_t *ends_of(rd_kafka_t *rk, const char *topic)
{
	const struct rd_kafka_metadata *md = NULL;
	rd_kafka_topic_t *t = rd_kafka_topic_new(rk, topic, NULL);
	rd_kafka_topic_partition_list_t *l = rd_kafka_topic_partition_list_new(6);
	rd_kafka_resp_err_t e = rd_kafka_metadata(rk, 0, t, &md, 10000);

	if (e || md->topic_cnt != 1 || md->topics[0].err)
		die(topic, rd_kafka_err2str(e ? e : md->topics[0].err));
	for (int p = 0; p < md->topics[0].partition_cnt; p++) {
		int64_t low, high;

		/* A topic made a moment ago may not have found its leader yet. */
		for (int64_t until = pr_mono_us() + 10 * PR_SEC;;) {
			e = rd_kafka_query_watermark_offsets(rk, topic, p, &low, &high, 10000);
			if (!e || pr_mono_us() > until)
				break;
			wait_until(pr_mono_us() + 100 * PR_MS);
		}
		if (e)
			die(topic, rd_kafka_err2str(e));
		rd_kafka_topic_partition_list_add(l, topic, p)->offset = high;
	}
	rd_kafka_metadata_destroy(md);
	rd_kafka_topic_destroy(t);
	return l;
}

static rd_kafka_t *open_consumer(const struct run *r)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *l;
	rd_kafka_t *rk;
	char why[256];

	set(conf, "bootstrap.servers", r->o.brokers);
	set(conf, "group.id", "bench-latency");
	set(conf, "enable.auto.commit", "false");
	set(conf, "isolation.level", "read_committed");
	set(conf, "fetch.wait.max.ms", "10");
	set(conf, "fetch.min.bytes", "1");
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
	if (!rk)
		die("kafka", why);
	rd_kafka_poll_set_consumer(rk);
	l = ends_of(rk, r->o.topic);
	if (rd_kafka_assign(rk, l))
		die(r->o.topic, "cannot assign");
	rd_kafka_topic_partition_list_destroy(l);
	return rk;
}

static long committed(const struct run *r)
{
	long n = 0;

	for (long i = 0; i < r->n; i++)
		n += r->events[i].commit_us != 0;
	return n;
}

static int finished(struct run *r, int64_t *deadline)
{
	if (!r->writers_done)
		return 0;
	if (!*deadline)
		*deadline = pr_mono_us() + (int64_t)(r->o.patience * 1e6);
	return r->distinct >= committed(r) || pr_mono_us() > *deadline;
}

static void *consumer(void *arg)
{
	struct run *r = arg;
	rd_kafka_t *rk = open_consumer(r);
	int64_t deadline = 0;

	r->start_us = pr_mono_us() + PR_SEC / 5;
	while (!finished(r, &deadline)) {
		rd_kafka_message_t *m = rd_kafka_consumer_poll(rk, 100);

		if (m && !m->err)
			arrived(r, m, pr_mono_us());
		if (m)
			rd_kafka_message_destroy(m);
	}
	/* A little longer: duplicates of the last ones. */
	for (int64_t until = pr_mono_us() + PR_SEC / 2; pr_mono_us() < until;) {
		rd_kafka_message_t *m = rd_kafka_consumer_poll(rk, 50);

		if (m && !m->err)
			arrived(r, m, pr_mono_us());
		if (m)
			rd_kafka_message_destroy(m);
	}
	rd_kafka_consumer_close(rk);
	rd_kafka_destroy(rk);
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* "name": {p50, p95, p99, max} in milliseconds; sorts v. */
static void print_percentiles(const char *name, int64_t *v, long n)
{
	static const double at[] = { 0.50, 0.95, 0.99, 1.0 };
	static const char *const names[] = { "p50", "p95", "p99", "max" };

	qsort(v, (size_t)n, sizeof(*v), by_value);
	(void)printf(", \"%s\": {", name);
	for (int i = 0; i < 4; i++) {
		long k = (long)(at[i] * (double)n);

		(void)printf("%s\"%s\": %.3f", i ? ", " : "", names[i],
			n ? (double)v[k < n ? k : n - 1] / 1000.0 : -1.0);
	}
	(void)printf("}");
}

static void report(struct run *r)
{
	int64_t *lag = pr_calloc((size_t)r->n, sizeof(*lag)), *took = pr_calloc((size_t)r->n, sizeof(*took));
	long lags = 0, tooks = 0, ok = 0, lost = 0, dup = 0, invented = 0;
	int64_t last = r->start_us;

	for (long i = 0; i < r->n; i++) {
		const struct event *e = &r->events[i];

		ok += e->commit_us != 0;
		lost += e->commit_us && !e->arrived_us;
		invented += !e->commit_us && e->arrived_us;
		dup += e->seen > 1 ? (long)e->seen - 1 : 0;
		if (e->commit_us > last)
			last = e->commit_us;
		if (i < r->warm || !e->commit_us)
			continue;
		took[tooks++] = e->took_us;
		if (e->arrived_us)
			lag[lags++] = e->arrived_us > e->commit_us ? e->arrived_us - e->commit_us : 0;
	}
	(void)printf("{\"rate\": %ld, \"reached_rate\": %.0f, \"connections\": %ld, \"via\": \"%s\", "
		     "\"committed\": %ld, \"failed\": %ld, \"counted\": %ld, \"lost\": %ld, \"dup\": %ld, "
		     "\"invented\": %ld, \"schedule_behind_ms\": %.3f, \"longest_gap_ms\": %.3f",
		r->o.rate, (double)ok * 1e6 / (double)(last - r->start_us), r->o.connections,
		r->o.direct    ? r->o.direct
		: r->o.publish ? "outbox.publish"
			       : "insert",
		ok, r->failed, lags, lost, dup, invented, (double)r->behind_us / 1000.0,
		(double)r->gap_us / 1000.0);
	print_percentiles("latency_ms", lag, lags);
	print_percentiles("insert_ms", took, tooks);
	(void)printf("}\n");
	free(lag);
	free(took);
}

static char *make_payload(long n)
{
	static const char head[] = "{\"kind\": \"reservation\", \"state\": \"PENDING\", \"pad\": \"";
	size_t h = sizeof(head) - 1, len = (size_t)n > h + 2 ? (size_t)n : h + 2;
	char *p = pr_malloc(len + 1);

	memset(p, 'x', len);
	memcpy(p, head, h);
	memcpy(p + len - 2, "\"}", 3);
	return p;
}

static int usage(void)
{
	(void)fputs("usage: latency --conninfo C --brokers B --topic T --aggregatetype A [--rate 1000]\n"
		    "       [--seconds 15] [--warmup 3] [--patience 10] [--connections 8] [--payload 168]\n"
		    "       [--keys 10000] [--table outbox.event] [--publish]\n"
		    "       [--direct transactional|idempotent [--gap-ms 0]]\n",
		stderr);
	return PR_EX_USAGE;
}

static int parse(int argc, char **argv, struct opts *o)
{
	static const struct option table[] = { { "conninfo", 1, 0, 'c' }, { "brokers", 1, 0, 'b' },
		{ "topic", 1, 0, 't' }, { "table", 1, 0, 'T' }, { "aggregatetype", 1, 0, 'a' },
		{ "rate", 1, 0, 'r' }, { "seconds", 1, 0, 's' }, { "warmup", 1, 0, 'w' },
		{ "connections", 1, 0, 'k' }, { "patience", 1, 0, 'p' }, { "payload", 1, 0, 'y' },
		{ "keys", 1, 0, 'e' }, { "publish", 0, 0, 'P' }, { "direct", 1, 0, 'D' },
		{ "gap-ms", 1, 0, 'g' }, { 0, 0, 0, 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1)
		switch (c) {
		case 'c':
			o->conninfo = optarg;
			break;
		case 'b':
			o->brokers = optarg;
			break;
		case 't':
			o->topic = optarg;
			break;
		case 'T':
			o->table = optarg;
			break;
		case 'a':
			o->aggregatetype = optarg;
			break;
		case 'r':
			o->rate = strtol(optarg, NULL, 10);
			break;
		case 's':
			o->seconds = strtod(optarg, NULL);
			break;
		case 'w':
			o->warmup = strtod(optarg, NULL);
			break;
		case 'p':
			o->patience = strtod(optarg, NULL);
			break;
		case 'k':
			o->connections = strtol(optarg, NULL, 10);
			break;
		case 'y':
			o->payload = strtol(optarg, NULL, 10);
			break;
		case 'e':
			o->keys = strtol(optarg, NULL, 10);
			break;
		case 'D':
			o->direct = optarg;
			o->connections = 1;
			break;
		case 'g':
			o->gap_ms = strtod(optarg, NULL);
			break;
		case 'P':
			o->publish = 1;
			break;
		default:
			return -1;
		}
	if (optind != argc || !(o->conninfo || o->direct) || !o->brokers || !o->topic ||
		!(o->aggregatetype || o->direct))
		return -1;
	if (o->rate < 1 || o->connections < 1 || o->connections > 500 || o->keys < 1 || o->payload < 1)
		return -1;
	return o->seconds > 0 && o->warmup >= 0 ? 0 : -1;
}

static void run(struct run *r)
{
	pthread_t *threads = pr_calloc((size_t)r->o.connections, sizeof(*threads)), c;

	if (r->o.direct)
		r->producer = open_producer(r);
	if (pthread_create(&c, NULL, consumer, r))
		die("thread", "cannot start");
	while (!r->start_us)
		wait_until(pr_mono_us() + PR_MS);
	for (long i = 0; i < r->o.connections; i++)
		if (pthread_create(&threads[i], NULL, r->o.direct ? producer : writer, r))
			die("thread", "cannot start");
	for (long i = 0; i < r->o.connections; i++)
		(void)pthread_join(threads[i], NULL);
	r->writers_done = 1;
	(void)pthread_join(c, NULL);
	if (r->producer)
		rd_kafka_destroy(r->producer);
	free(threads);
}

int main(int argc, char **argv)
{
	struct run r = { .o = { .table = "outbox.event",
				 .rate = 1000,
				 .connections = 8,
				 .payload = 168,
				 .keys = 10000,
				 .seconds = 15,
				 .warmup = 3,
				 .patience = 10 } };

	if (parse(argc, argv, &r.o))
		return usage();
	r.nonce = (uint64_t)pr_wall_us() & ((1ULL << 60) - 1);
	r.warm = (long)(r.o.warmup * (double)r.o.rate);
	r.n = r.warm + (long)(r.o.seconds * (double)r.o.rate);
	r.events = pr_calloc((size_t)r.n, sizeof(*r.events));
	r.payload = make_payload(r.o.payload);
	run(&r);
	report(&r);
	free(r.events);
	free(r.payload);
	return PR_EX_OK;
}
