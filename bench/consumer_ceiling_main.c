/* bench/consumer_ceiling_main.c -- the raw ceiling of a consumer with a set-based SQL handler: a bare loop
 * that calls the same function with the same array of messages, remembers ids and moves one position, in the
 * same round trip; messages are made in memory, no Kafka. Prints one JSON line. Refuses to be anything else.
 *
 *   consumer-ceiling --conninfo C --function schema.name --workers 2 --batch 2000 --messages 1000000
 * */
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

struct options {
	const char *conninfo, *function;
	int workers, batch;
	long messages, keys;
};

struct worker {
	const struct options *o;
	int number;
	PGconn *pg;
	Oid message;
	char *array; /* inbox.message[] in binary */
	size_t array_len, array_cap;
	char *ids, *hashes;
	size_t ids_len, hashes_len;
};

static atomic_long taken;
static int64_t began_us; /* wall */

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

static char *array_head(char *p, Oid type, int n)
{
	return w32(w32(w32(w32(w32(p, 1), 0), type), (uint32_t)n), 1);
}

static void make_id(unsigned char id[16], long n)
{
	int64_t ms = began_us / 1000;

	for (int i = 0; i < 6; i++)
		id[i] = (unsigned char)(ms >> (40 - 8 * i));
	(void)w64((char *)id + 8, 0x8000000000000000ULL | (uint64_t)n * 2654435761u);
	id[6] = 0x70;
	id[7] = (unsigned char)n;
}

static char *put_message(char *p, const struct worker *w, long n)
{
	static const char headers[] =
		"\1{\"id\":\"00000000-0000-0000-0000-000000000000\",\"type\":\"Created\"}";
	unsigned char id[16];
	char key[24], payload[240], *len = p;
	size_t key_len = (size_t)snprintf(key, sizeof(key), "key-%ld", n % w->o->keys);
	size_t payload_len;

	payload_len = (size_t)snprintf(payload, sizeof(payload),
		"\1{\"n\": %ld, \"amount\": %ld, \"pad\": \"%0100d\"}", n, n % 97, 0);
	make_id(id, n);
	p = w32(p + 4, 10);
	p = field(p, 2950, id, 16);
	p = field(p, 25, "bench", 5);
	p = w32(w32(w32(p, 23), 4), 0);
	p = w64(w32(w32(p, 20), 8), (uint64_t)n);
	p = field(p, 25, key, key_len);
	p = field(p, 25, "Created", 7);
	p = field(p, 3802, payload, payload_len);
	p = w32(w32(p, 17), (uint32_t)-1);
	p = field(p, 3802, headers, sizeof(headers) - 1);
	p = w64(w32(w32(p, 1184), 8), (uint64_t)(pr_wall_us() - 946684800LL * PR_SEC));
	(void)w32(len, (uint32_t)(p - len - 4));
	return p;
}

static void make_batch(struct worker *w, long first, int n)
{
	char *p = array_head(w->array, w->message, n), *ids = array_head(w->ids, 2950, n);
	char *hashes = array_head(w->hashes, 20, n);
	unsigned char id[16];

	for (int i = 0; i < n; i++) {
		p = put_message(p, w, first + i);
		make_id(id, first + i);
		memcpy(ids = w32(ids, 16), id, 16);
		ids += 16;
		hashes = w64(w32(hashes, 8), (uint64_t)(first + i));
	}
	w->array_len = (size_t)(p - w->array);
	w->ids_len = (size_t)(ids - w->ids);
	w->hashes_len = (size_t)(hashes - w->hashes);
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

static void run_batch(struct worker *w, int64_t position)
{
	char at[24], next[24], lane[24];
	const char *remember[3] = { "ceiling", w->ids, w->hashes };
	const int remember_len[3] = { 0, (int)w->ids_len, (int)w->hashes_len }, binary3[3] = { 0, 1, 1 };
	const char *array[1] = { w->array }, *advance[3] = { lane, at, next };
	const int array_len[1] = { (int)w->array_len }, binary[1] = { 1 };
	PGresult *res;
	int syncs = 0;

	(void)snprintf(at, sizeof(at), "%lld", (long long)position);
	(void)snprintf(next, sizeof(next), "%lld", (long long)position + 1);
	(void)snprintf(lane, sizeof(lane), "%d", w->number);
	if (!PQenterPipelineMode(w->pg) ||
		!PQsendQueryPrepared(w->pg, "remember", 3, remember, remember_len, binary3, 0) ||
		!PQsendQueryPrepared(w->pg, "handle", 1, array, array_len, binary, 0) ||
		!PQsendQueryPrepared(w->pg, "advance", 3, advance, NULL, NULL, 0) || !PQpipelineSync(w->pg))
		die("send", PQerrorMessage(w->pg));
	while (!syncs) {
		res = PQgetResult(w->pg);
		if (!res)
			continue;
		syncs = PQresultStatus(res) == PGRES_PIPELINE_SYNC;
		check(w, res);
	}
	if (!PQexitPipelineMode(w->pg))
		die("pipeline", PQerrorMessage(w->pg));
}

static void open_worker(struct worker *w)
{
	static const Oid ids[3] = { 25, 2951, 1016 };
	char sql[256];
	PGresult *res;
	Oid array;

	w->pg = PQconnectdb(w->o->conninfo);
	if (PQstatus(w->pg) != CONNECTION_OK)
		die("connect", PQerrorMessage(w->pg));
	res = PQexec(w->pg, "SELECT 'inbox.message'::regtype::oid, 'inbox.message[]'::regtype::oid");
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		die("types", PQerrorMessage(w->pg));
	w->message = (Oid)strtoul(PQgetvalue(res, 0, 0), NULL, 10);
	array = (Oid)strtoul(PQgetvalue(res, 0, 1), NULL, 10);
	PQclear(res);
	prepare(w, "remember", "SELECT inbox.remember($1, $2, $3)", 3, ids);
	(void)snprintf(sql, sizeof(sql), "SELECT %s($1)", w->o->function);
	prepare(w, "handle", sql, 1, &array);
	prepare(w, "advance",
		"UPDATE inbox.position SET next_offset = $3::bigint WHERE \"group\" = 'ceiling' AND topic = "
		"'bench' AND"
		" partition = 0 AND lane = $1::int AND epoch = 1 AND next_offset = $2::bigint",
		3, NULL);
	(void)snprintf(sql, sizeof(sql),
		"INSERT INTO inbox.position VALUES ('ceiling', 'bench', 0, %d, %d, 0, 1)", w->number,
		w->o->workers);
	check(w, PQexec(w->pg, sql));
	w->array = pr_malloc((size_t)w->o->batch * 700 + 64);
	w->ids = pr_malloc((size_t)w->o->batch * 20 + 64);
	w->hashes = pr_malloc((size_t)w->o->batch * 12 + 64);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	int64_t position = 0;
	long first;

	while ((first = atomic_fetch_add(&taken, w->o->batch)) < w->o->messages) {
		long left = w->o->messages - first;

		make_batch(w, first, left < w->o->batch ? (int)left : w->o->batch);
		run_batch(w, position++);
	}
	return NULL;
}

static void parse(int argc, char **argv, struct options *o)
{
	static const struct option options[] = { { "conninfo", 1, 0, 'c' }, { "function", 1, 0, 'f' },
		{ "workers", 1, 0, 'w' }, { "batch", 1, 0, 'b' }, { "messages", 1, 0, 'n' },
		{ "keys", 1, 0, 'k' }, { 0, 0, 0, 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'c':
			o->conninfo = optarg;
			break;
		case 'f':
			o->function = optarg;
			break;
		case 'w':
			o->workers = atoi(optarg);
			break;
		case 'b':
			o->batch = atoi(optarg);
			break;
		case 'n':
			o->messages = atol(optarg);
			break;
		case 'k':
			o->keys = atol(optarg);
			break;
		default:
			exit(PR_EX_USAGE);
		}
	}
	if (!o->conninfo || !o->function || o->workers < 1 || o->batch < 1 || o->messages < 1 ||
		o->keys < 1) {
		(void)fputs("usage: consumer-ceiling --conninfo C --function schema.name [--workers 2] "
			    "[--batch 2000] "
			    "[--messages 1000000] [--keys 10000]\n",
			stderr);
		exit(PR_EX_USAGE);
	}
}

int main(int argc, char **argv)
{
	struct options o = { .workers = 2, .batch = 2000, .messages = 1000000, .keys = 10000 };
	struct worker *w;
	pthread_t *threads;
	int64_t began;
	double seconds;

	parse(argc, argv, &o);
	began_us = pr_wall_us();
	w = pr_calloc((size_t)o.workers, sizeof(*w));
	threads = pr_calloc((size_t)o.workers, sizeof(*threads));
	for (int i = 0; i < o.workers; i++) {
		w[i].o = &o;
		w[i].number = i;
		open_worker(&w[i]);
	}
	began = pr_mono_us();
	for (int i = 0; i < o.workers; i++)
		if (pthread_create(&threads[i], NULL, work, &w[i]))
			die("thread", "cannot start");
	for (int i = 0; i < o.workers; i++)
		(void)pthread_join(threads[i], NULL);
	seconds = (double)(pr_mono_us() - began) / (double)PR_SEC;
	(void)printf("{\"messages\": %ld, \"seconds\": %.3f, \"events_per_second\": %.0f}\n", o.messages,
		seconds, (double)o.messages / seconds);
	for (int i = 0; i < o.workers; i++)
		PQfinish(w[i].pg);
	return 0;
}
