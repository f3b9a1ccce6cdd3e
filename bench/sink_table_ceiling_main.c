/* bench/sink_table_ceiling_main.c -- the raw ceiling of a sink into a table: bare loops, each a librdkafka
 * consumer of its share of the partitions and a session, that write the very rows that the sink writes (COPY
 * in binary into its table) and how far they are, in one transaction for each batch. No group, no fence, no
 * cuts, no checks of what is in a record: the events are ours, their strings need no escapes. Refuses to go
 * on after any error: a ceiling that lost something is no ceiling. Prints one JSON line on stdout.
 *
 *   sink-table-ceiling --conninfo C --brokers B --topic T --messages N [--partitions 3] [--workers 2] ... */
#include "lib/clock.h"
#include "lib/err.h"

#include <endian.h>
#include <getopt.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define EPOCH_US 946684800000000LL
#define HOUR_US  (3600 * PR_SEC)
#define ROW_MOST 4096 /* of one event of ours */
#define READ     1000

struct options {
	const char *conninfo, *brokers, *topic, *table;
	int workers, batch, partitions;
	long messages;
};

struct worker {
	const struct options *o;
	int number;
	PGconn *pg;
	rd_kafka_t *rk;
	rd_kafka_queue_t *queue;
	char *rows, *at;
	int n;
	int64_t next[256];
};

static atomic_long done;
static _Atomic int64_t low_us, high_us; /* at 10 % and 90 % */
static _Atomic long low_n, high_n;

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "sink-table-ceiling: %s: %s\n", what, why);
	exit(PR_EX_FAILED);
}

/* ---------------------------------------------------------------- rows */

static char *w32(char *p, int32_t v)
{
	uint32_t be = htobe32((uint32_t)v);

	memcpy(p, &be, 4);
	return p + 4;
}

static char *w64(char *p, int64_t v)
{
	uint64_t be = htobe64((uint64_t)v);

	memcpy(p, &be, 8);
	return p + 8;
}

static char *bytes(char *p, const void *v, size_t n)
{
	p = w32(p, (int32_t)n);
	memcpy(p, v, n);
	return p + n;
}

static char *jsonb(char *p, const void *v, size_t n)
{
	p = w32(p, (int32_t)n + 1);
	*p++ = 1; /* version of jsonb's format */
	memcpy(p, v, n);
	return p + n;
}

/* All headers as an object; id and type are found on the way. */
static char *put_headers(char *p, rd_kafka_headers_t *headers, const void **id, size_t *id_n,
	const void **type, size_t *type_n)
{
	const char *name;
	const void *value;
	size_t n;
	char *start = p;

	*p++ = 1;
	*p++ = '{';
	for (size_t i = 0;
		rd_kafka_header_get_all(headers, i, &name, &value, &n) == RD_KAFKA_RESP_ERR_NO_ERROR; i++) {
		if (strcmp(name, "id") == 0)
			*id = value, *id_n = n;
		else if (strcmp(name, "type") == 0)
			*type = value, *type_n = n;
		p += sprintf(p, "%s\"%s\":\"", i ? "," : "", name);
		memcpy(p, value, n);
		p += n;
		*p++ = '"';
	}
	*p++ = '}';
	(void)w32(start - 4, (int32_t)(p - start));
	return p;
}

static void put_row(struct worker *w, const rd_kafka_message_t *m)
{
	char text[ROW_MOST], *end;
	const void *id = "", *type = "";
	size_t id_n = 0, type_n = 0;
	rd_kafka_headers_t *headers;
	rd_kafka_timestamp_type_t kind;
	int64_t us = rd_kafka_message_timestamp(m, &kind) * PR_MS;
	char *p = w->at;

	if (rd_kafka_message_headers(m, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("record", "it has no headers");
	end = put_headers(text + 4, headers, &id, &id_n, &type, &type_n);
	*p++ = 0;
	*p++ = 11;
	p = bytes(p, id, id_n);
	p = bytes(p, type, type_n);
	p = bytes(p, w->o->topic, strlen(w->o->topic));
	p = w32(w32(p, 4), m->partition);
	p = w64(w32(p, 8), m->offset);
	p = bytes(p, m->key, m->key_len);
	p = w64(w32(p, 8), us - EPOCH_US);
	p = w64(w32(p, 8), us / HOUR_US * HOUR_US - EPOCH_US);
	memcpy(p, text, (size_t)(end - text));
	p += end - text;
	p = jsonb(p, m->payload, m->len);
	w->at = w32(p, -1);
	w->next[m->partition] = m->offset + 1;
	w->n++;
}

/* ---------------------------------------------------------------- batches */

static void run(struct worker *w, const char *sql, ExecStatusType wanted)
{
	PGresult *res = PQexec(w->pg, sql);

	if (PQresultStatus(res) != wanted)
		die(sql, PQerrorMessage(w->pg));
	PQclear(res);
}

static void begin(struct worker *w)
{
	w->at = w->rows;
	memcpy(w->at, "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0", 19);
	w->at += 19;
	w->n = 0;
}

static void count(long n, long all)
{
	long before = atomic_fetch_add(&done, n), now = before + n;

	if (before < all / 10 && now >= all / 10) {
		atomic_store(&low_n, now);
		atomic_store(&low_us, pr_mono_us());
	}
	if (before < all / 10 * 9 && now >= all / 10 * 9) {
		atomic_store(&high_n, now);
		atomic_store(&high_us, pr_mono_us());
	}
}

static void commit(struct worker *w)
{
	char sql[300];
	PGresult *res;

	if (w->n == 0)
		return;
	*w->at++ = '\377';
	*w->at++ = '\377';
	run(w, "BEGIN", PGRES_COMMAND_OK);
	(void)snprintf(sql, sizeof(sql), "COPY %s FROM STDIN (FORMAT binary)", w->o->table);
	run(w, sql, PGRES_COPY_IN);
	if (PQputCopyData(w->pg, w->rows, (int)(w->at - w->rows)) != 1 || PQputCopyEnd(w->pg, NULL) != 1)
		die("COPY", PQerrorMessage(w->pg));
	while ((res = PQgetResult(w->pg))) {
		if (PQresultStatus(res) != PGRES_COMMAND_OK)
			die("COPY", PQerrorMessage(w->pg));
		PQclear(res);
	}
	for (int p = w->number; p < w->o->partitions; p += w->o->workers) {
		(void)snprintf(sql, sizeof(sql),
			"UPDATE ceiling_position SET next_offset = %" PRId64 " WHERE partition = %d",
			w->next[p], p);
		run(w, sql, PGRES_COMMAND_OK);
	}
	run(w, "COMMIT", PGRES_COMMAND_OK);
	count(w->n, w->o->messages);
	begin(w);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	rd_kafka_message_t *m[READ];
	int64_t idle_us = 0;

	begin(w);
	while (atomic_load(&done) + w->n < w->o->messages) {
		ssize_t n = rd_kafka_consume_batch_queue(w->queue, 50, m, READ);

		for (ssize_t i = 0; i < n; i++) {
			if (m[i]->err)
				die("consume", rd_kafka_message_errstr(m[i]));
			put_row(w, m[i]);
			if (w->n == w->o->batch)
				commit(w);
			rd_kafka_message_destroy(m[i]);
		}
		if (n == 0)
			commit(w);
		idle_us = n > 0 ? 0 : idle_us ? idle_us : pr_mono_us();
		if (idle_us && pr_mono_us() - idle_us > 60 * PR_SEC)
			die("topic", "it has fewer messages");
		if (n == 0 && atomic_load(&done) >= w->o->messages)
			break;
	}
	commit(w);
	return NULL;
}

/* ---------------------------------------------------------------- begin and end */

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char why[300];

	if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
		die(name, why);
}

static void open_kafka(struct worker *w)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(w->o->partitions);
	char why[300];

	set(conf, "bootstrap.servers", w->o->brokers);
	set(conf, "group.id", "ceiling");
	set(conf, "enable.auto.commit", "false");
	set(conf, "isolation.level", "read_committed");
	w->rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof(why));
	if (!w->rk)
		die("consumer", why);
	(void)rd_kafka_poll_set_consumer(w->rk);
	for (int p = w->number; p < w->o->partitions; p += w->o->workers)
		rd_kafka_topic_partition_list_add(list, w->o->topic, p)->offset = 0;
	if (rd_kafka_assign(w->rk, list))
		die("assign", w->o->topic);
	rd_kafka_topic_partition_list_destroy(list);
	w->queue = rd_kafka_queue_get_consumer(w->rk);
}

static void open_worker(struct worker *w, const struct options *o, int number)
{
	*w = (struct worker){ .o = o, .number = number };
	w->pg = PQconnectdb(o->conninfo);
	if (PQstatus(w->pg) != CONNECTION_OK)
		die("database", PQerrorMessage(w->pg));
	w->rows = pr_malloc((size_t)o->batch * ROW_MOST + 64);
	open_kafka(w);
}

/* The sink's own table, and a row for each position. */
static void make_tables(const struct options *o)
{
	struct worker w = { .pg = PQconnectdb(o->conninfo) };
	char sql[2000];

	(void)snprintf(sql, sizeof(sql),
		"SET client_min_messages = error; CREATE TABLE %s (id text, type text NOT NULL, topic text "
		"COLLATE \"C\" NOT NULL, "
		"partition integer NOT NULL, \"offset\" bigint NOT NULL, key text, \"time\" timestamptz, "
		"hour timestamptz, "
		"headers jsonb NOT NULL, payload jsonb, payload_base64 text, PRIMARY KEY (topic, partition, "
		"\"offset\")); "
		"CREATE TABLE ceiling_position (partition integer PRIMARY KEY, next_offset bigint); "
		"INSERT INTO ceiling_position SELECT g, 0 FROM generate_series(0, %d) AS g",
		o->table, o->partitions - 1);
	run(&w, sql, PGRES_COMMAND_OK);
	PQfinish(w.pg);
}

static void read_options(struct options *o, int argc, char **argv)
{
	static const struct option known[] = { { "conninfo", 1, NULL, 'c' }, { "brokers", 1, NULL, 'b' },
		{ "topic", 1, NULL, 't' }, { "messages", 1, NULL, 'm' }, { "partitions", 1, NULL, 'p' },
		{ "workers", 1, NULL, 'w' }, { "batch", 1, NULL, 'n' }, { "table", 1, NULL, 'T' }, { 0 } };
	int c;

	*o = (struct options){ .table = "ceiling_row", .workers = 2, .batch = 10000, .partitions = 3 };
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1)
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
		case 'm':
			o->messages = atol(optarg);
			break;
		case 'p':
			o->partitions = atoi(optarg);
			break;
		case 'w':
			o->workers = atoi(optarg);
			break;
		case 'n':
			o->batch = atoi(optarg);
			break;
		default:
			exit(PR_EX_USAGE);
		}
	if (!o->conninfo || !o->brokers || !o->topic || o->messages < 100 || o->partitions < 1 ||
		o->partitions > 256 || o->workers < 1 || o->workers > 16 || o->batch < 1)
		die("options", "conninfo, brokers, topic and messages are needed");
}

static double cpu_us(const struct rusage *use)
{
	return (double)(use->ru_utime.tv_sec + use->ru_stime.tv_sec) * 1e6 +
	       (double)(use->ru_utime.tv_usec + use->ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
	struct options o;
	struct worker w[16];
	pthread_t thread[16];
	struct rusage use;
	int64_t start;

	read_options(&o, argc, argv);
	make_tables(&o);
	for (int i = 0; i < o.workers; i++)
		open_worker(&w[i], &o, i);
	start = pr_mono_us();
	for (int i = 0; i < o.workers; i++)
		if (pthread_create(&thread[i], NULL, work, &w[i]) != 0)
			die("thread", "it does not start");
	for (int i = 0; i < o.workers; i++)
		(void)pthread_join(thread[i], NULL);
	(void)getrusage(RUSAGE_SELF, &use);
	(void)printf("{\"n\": %ld, \"seconds\": %.3f, \"rate\": %.0f, \"steady_events_per_second\": %.0f, "
		     "\"cpu_us_per_event\": %.3f, \"peak_rss_kb\": %ld}\n",
		atomic_load(&done), (double)(pr_mono_us() - start) / (double)PR_SEC,
		(double)atomic_load(&done) * (double)PR_SEC / (double)(pr_mono_us() - start),
		(double)(atomic_load(&high_n) - atomic_load(&low_n)) * (double)PR_SEC /
			(double)(atomic_load(&high_us) - atomic_load(&low_us)),
		cpu_us(&use) / (double)o.messages, use.ru_maxrss);
	return 0;
}
