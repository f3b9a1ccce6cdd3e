/* bench/consumer_ceiling_main.c -- the raw ceiling of a consumer with a SQL handler: a bare loop that calls
 * the same function with the same array of messages, remembers the ids and moves the positions of all
 * partitions, in one round trip. The events are those of `topic fill`, made in memory: no Kafka, no parked
 * keys, no count of attempts. Workers share the keys out between them, as lanes do. Refuses to go on after
 * any error: a ceiling that lost something is no ceiling. Prints one JSON line on stdout. Called by
 * bench/run.py.
 *
 *   consumer-ceiling --conninfo C --function schema.name [--row] [--offset] [--keep] ... */
#include "bench/event.h"

#include "lib/clock.h"
#include "lib/err.h"

#include <arpa/inet.h>
#include <endian.h>
#include <getopt.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define TOPIC "bench"
#define GROUP "ceiling"

struct options {
	const char *conninfo, *function;
	int workers, batch, partitions, row, offset;
	int keep; /* the backend keeps its memory between batches: consumers/lane.c says why */
	long messages, keys;
};

struct worker {
	const struct options *o;
	int number;
	PGconn *pg;
	Oid message;
	char *array; /* inbox.message[] in binary */
	size_t array_len;
	char *ids, *hashes;
	size_t ids_len, hashes_len;
	long next; /* event to look at: its key may be another worker's */
	int64_t position;
};

static atomic_long done;
static _Atomic int64_t low_us, high_us; /* at 10 % and 90 % */
static _Atomic long low_n, high_n;
static int64_t ids_us;

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "consumer-ceiling: %s: %s\n", what, why);
	exit(PR_EX_FAILED);
}

/* ---------------------------------------------------------------- binary */

static char *w32(char *p, uint32_t v)
{
	v = htonl(v);
	memcpy(p, &v, 4);
	return p + 4;
}

static char *w64(char *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, 8);
	return p + 8;
}

static char *field(char *p, Oid type, const void *v, size_t n)
{
	p = w32(w32(p, type), (uint32_t)n);
	memcpy(p, v, n);
	return p + n;
}

static char *jsonb(char *p, const char *v, size_t n)
{
	p = w32(w32(p, 3802), (uint32_t)n + 1);
	*p++ = 1; /* version of jsonb's format */
	memcpy(p, v, n);
	return p + n;
}

static char *array_head(char *p, Oid type, int n)
{
	return w32(w32(w32(w32(w32(p, 1), 0), type), (uint32_t)n), 1);
}

static char *put_headers(char *p, const struct event *e)
{
	char json[400];
	int n = 0;

	for (int i = 0; i < EVENT_HEADERS; i++)
		n += snprintf(json + n, sizeof(json) - (size_t)n, "%c\"%s\":\"%s\"", i ? ',' : '{',
			e->header[i].name, e->header[i].value);
	json[n++] = '}';
	return jsonb(p, json, (size_t)n);
}

static char *put_message(char *p, const struct worker *w, const struct event *e)
{
	char *len = p;

	p = w32(p + 4, 10);
	p = field(p, 2950, e->id, 16);
	p = field(p, 25, TOPIC, strlen(TOPIC));
	p = w32(w32(w32(p, 23), 4), (uint32_t)(e->n % w->o->partitions));
	p = w64(w32(w32(p, 20), 8), (uint64_t)e->n);
	p = field(p, 25, e->key, e->key_len);
	p = field(p, 25, EVENT_TYPE, strlen(EVENT_TYPE));
	p = jsonb(p, e->payload, e->payload_len);
	p = w32(w32(p, 17), (uint32_t)-1);
	p = put_headers(p, e);
	p = w64(w32(w32(p, 1184), 8), (uint64_t)(e->created_us - 946684800LL * PR_SEC));
	(void)w32(len, (uint32_t)(p - len - 4));
	return p;
}

/* Up to a batch of this worker's events; returns how many. The heads are written when that is known. */
static int make_batch(struct worker *w)
{
	char *p = w->array + 20, *ids = w->ids + 20, *hashes = w->hashes + 20;
	struct event e;
	int n = 0;

	for (; n < w->o->batch && w->next < w->o->messages; w->next++) {
		if (event_key(w->next, w->o->keys) % w->o->workers != w->number)
			continue;
		event_make(&e, w->next, w->o->keys, ids_us);
		p = put_message(p, w, &e);
		memcpy(ids = w32(ids, 16), e.id, 16);
		ids += 16;
		hashes = w64(w32(hashes, 8), (uint64_t)w->next);
		n++;
	}
	(void)array_head(w->array, w->message, n);
	(void)array_head(w->ids, 2950, n);
	(void)array_head(w->hashes, 20, n);
	w->array_len = (size_t)(p - w->array);
	w->ids_len = (size_t)(ids - w->ids);
	w->hashes_len = (size_t)(hashes - w->hashes);
	return n;
}

/* ---------------------------------------------------------------- the loop */

static void check(struct worker *w, PGresult *res)
{
	ExecStatusType st = PQresultStatus(res);

	if (st != PGRES_TUPLES_OK && st != PGRES_COMMAND_OK && st != PGRES_PIPELINE_SYNC)
		die("statement", res ? PQresultErrorMessage(res) : PQerrorMessage(w->pg));
	PQclear(res);
}

static void prepare(struct worker *w, const char *name, const char *sql, int n, const Oid *types)
{
	check(w, PQprepare(w->pg, name, sql, n, types));
}

static void send_batch(struct worker *w)
{
	char at[24], next[24], lane[24];
	const char *remember[3] = { GROUP, w->ids, w->hashes };
	const int remember_len[3] = { 0, (int)w->ids_len, (int)w->hashes_len }, binary3[3] = { 0, 1, 1 };
	const char *array[1] = { w->array }, *advance[3] = { lane, at, next };
	const int array_len[1] = { (int)w->array_len }, binary[1] = { 1 };

	(void)snprintf(at, sizeof(at), "%lld", (long long)w->position);
	(void)snprintf(next, sizeof(next), "%lld", (long long)w->position + 1);
	(void)snprintf(lane, sizeof(lane), "%d", w->number);
	if (!PQenterPipelineMode(w->pg) ||
		(!w->o->offset &&
			!PQsendQueryPrepared(w->pg, "remember", 3, remember, remember_len, binary3, 0)) ||
		!PQsendQueryPrepared(w->pg, "handle", 1, array, array_len, binary, 0) ||
		!PQsendQueryPrepared(w->pg, "advance", 3, advance, NULL, NULL, 0) || !PQpipelineSync(w->pg))
		die("send", PQerrorMessage(w->pg));
}

static void run_batch(struct worker *w)
{
	PGresult *res;
	int synced = 0;

	send_batch(w);
	while (!synced) {
		res = PQgetResult(w->pg);
		if (!res)
			continue;
		synced = PQresultStatus(res) == PGRES_PIPELINE_SYNC;
		check(w, res);
	}
	if (!PQexitPipelineMode(w->pg))
		die("pipeline", PQerrorMessage(w->pg));
	w->position++;
}

static void read_types(struct worker *w, Oid *array)
{
	PGresult *res =
		PQexec(w->pg, "SELECT 'inbox.message'::regtype::oid, 'inbox.message[]'::regtype::oid");

	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		die("types", PQerrorMessage(w->pg));
	w->message = (Oid)strtoul(PQgetvalue(res, 0, 0), NULL, 10);
	*array = (Oid)strtoul(PQgetvalue(res, 0, 1), NULL, 10);
	PQclear(res);
}

/* What a lane has: a position in every partition, each with its epoch. */
static void make_positions(struct worker *w)
{
	char sql[600];

	(void)snprintf(sql, sizeof(sql),
		"INSERT INTO inbox.position (\"group\", topic, partition, lane, lane_count, next_offset, "
		"epoch)"
		" SELECT '" GROUP "', '" TOPIC "', p, %d, %d, 0, 1 FROM generate_series(0, %d) AS p",
		w->number, w->o->workers, w->o->partitions - 1);
	check(w, PQexec(w->pg, sql));
	(void)snprintf(sql, sizeof(sql),
		"SELECT inbox.advance('" GROUP "', array_agg('" TOPIC
		"'::text), array_agg(p), array_agg($1::int),"
		" array_agg(1::bigint), array_agg($2::bigint), array_agg($3::bigint))"
		" FROM generate_series(0, %d) AS p",
		w->o->partitions - 1);
	prepare(w, "advance", sql, 3, NULL);
}

static void open_worker(struct worker *w)
{
	static const Oid ids[3] = { 25, 2951, 1016 };
	char sql[256];
	Oid array;

	w->pg = PQconnectdb(w->o->conninfo);
	if (PQstatus(w->pg) != CONNECTION_OK)
		die("connect", PQerrorMessage(w->pg));
	read_types(w, &array);
	prepare(w, "remember", "SELECT inbox.remember($1, $2, $3)", 3, ids);
	(void)snprintf(sql, sizeof(sql), w->o->row ? "SELECT %s(m) FROM unnest($1) AS m" : "SELECT %s($1)",
		w->o->function);
	prepare(w, "handle", sql, 1, &array);
	make_positions(w);
	w->array = pr_malloc((size_t)w->o->batch * 900 + 64);
	w->ids = pr_malloc((size_t)w->o->batch * 20 + 64);
	w->hashes = pr_malloc((size_t)w->o->batch * 12 + 64);
}

static void mark(long n, long all, long at, _Atomic int64_t *us, _Atomic long *count)
{
	int64_t unset = 0;

	if (n >= all / 10 * at && atomic_compare_exchange_strong(us, &unset, pr_mono_us()))
		atomic_store(count, n);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	long all = w->o->messages, n;

	while ((n = make_batch(w)) > 0) {
		run_batch(w);
		n += atomic_fetch_add(&done, n);
		mark(n, all, 1, &low_us, &low_n);
		mark(n, all, 9, &high_us, &high_n);
	}
	return NULL;
}

/* ---------------------------------------------------------------- begin and end */

static void usage(void)
{
	(void)fputs("usage: consumer-ceiling --conninfo C --function schema.name [--row] [--offset] [--keep] "
		    "[--workers 2]"
		    " [--batch 2000] [--messages 1000000] [--keys 10000] [--partitions 6]\n",
		stderr);
	exit(PR_EX_USAGE);
}

static void parse(int argc, char **argv, struct options *o)
{
	static const struct option options[] = { { "conninfo", 1, 0, 'c' }, { "function", 1, 0, 'f' },
		{ "workers", 1, 0, 'w' }, { "batch", 1, 0, 'b' }, { "messages", 1, 0, 'n' },
		{ "keys", 1, 0, 'k' }, { "partitions", 1, 0, 'p' }, { "row", 0, 0, 'r' },
		{ "offset", 0, 0, 'o' }, { "keep", 0, 0, 'K' }, { 0, 0, 0, 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'c')
			o->conninfo = optarg;
		else if (c == 'f')
			o->function = optarg;
		else if (c == 'w')
			o->workers = atoi(optarg);
		else if (c == 'b')
			o->batch = atoi(optarg);
		else if (c == 'n')
			o->messages = atol(optarg);
		else if (c == 'k')
			o->keys = atol(optarg);
		else if (c == 'p')
			o->partitions = atoi(optarg);
		else if (c == 'r')
			o->row = 1;
		else if (c == 'o')
			o->offset = 1;
		else if (c == 'K')
			o->keep = 1;
		else
			usage();
	}
	if (!o->conninfo || !o->function || o->workers < 1 || o->batch < 1 || o->messages < 10 ||
		o->keys < 1 || o->partitions < 1)
		usage();
}

static void report(const struct options *o, int64_t began_us)
{
	double seconds = (double)(pr_mono_us() - began_us) / (double)PR_SEC;
	double steady = (double)(high_us - low_us) / (double)PR_SEC;
	struct rusage use;
	double cpu;

	(void)getrusage(RUSAGE_SELF, &use);
	cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1e6 +
	      (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
	(void)printf(
		"{\"messages\": %ld, \"seconds\": %.3f, \"events_per_second\": %.0f, "
		"\"steady_events_per_second\": %.0f, \"cpu_us_per_event\": %.3f, \"peak_rss_kb\": %ld}\n",
		done, seconds, (double)o->messages / seconds,
		steady > 0 ? (double)(high_n - low_n) / steady : 0.0, cpu / (double)o->messages,
		use.ru_maxrss);
}

int main(int argc, char **argv)
{
	struct options o = {
		.workers = 2, .batch = 2000, .messages = 1000000, .keys = 10000, .partitions = 6
	};
	struct worker *w;
	pthread_t *threads;
	int64_t began_us;

	parse(argc, argv, &o);
	ids_us = pr_wall_us();
	w = pr_calloc((size_t)o.workers, sizeof(*w));
	threads = pr_calloc((size_t)o.workers, sizeof(*threads));
	for (int i = 0; i < o.workers; i++) {
		w[i].o = &o;
		w[i].number = i;
		open_worker(&w[i]);
	}
	began_us = pr_mono_us();
	for (int i = 0; i < o.workers; i++)
		if (pthread_create(&threads[i], NULL, work, &w[i]))
			die("thread", "cannot start");
	for (int i = 0; i < o.workers; i++)
		(void)pthread_join(threads[i], NULL);
	report(&o, began_us);
	for (int i = 0; i < o.workers; i++)
		PQfinish(w[i].pg);
	return done == o.messages ? 0 : PR_EX_FAILED;
}
