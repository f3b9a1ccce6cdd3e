/* bench/ceiling_main.c -- the raw ceiling the relay is measured against: COPY BINARY
 * of outbox.event straight into librdkafka, the same bytes and headers, the same queue
 * limits, and nothing else: no position, no snapshot, no parking, no retry. Refuses to
 * go on after any error: a ceiling that lost something is no ceiling.
 * Prints one JSON line on stdout. Called by bench/run.py. */
#include "lib/clock.h"
#include "lib/err.h"

#include <arpa/inet.h>
#include <endian.h>
#include <getopt.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum mode { COPY_ONLY, IDEMPOTENT, TRANSACTIONAL };

struct opts {
	enum mode mode;
	const char *conninfo, *brokers, *topic, *table, *compression, *linger_ms, *queue_kb;
	double gap_ms; /* pause after a commit: the broker refuses a transaction that follows too closely */
	long batch;    /* events per transaction; messages in flight */
	long events;   /* expected rows: the marks of 10 % and 90 % */
};

struct run {
	struct opts o;
	PGconn *pg;
	rd_kafka_t *rk;
	rd_kafka_topic_t *topic;
	char **rows; /* of the open transaction: freed when it is committed */
	long in_txn;
	long events, bytes;
	int64_t start_us, first_us, low_us, high_us, end_us; /* low, high: at 10 % and 90 % */
	long low_events, high_events;
};

/* One row of the COPY; pointers into it. */
struct row {
	const char *f[6];
	int len[6];
};
enum { SEQ, ID, KEY, TYPE, PAYLOAD, CREATED };

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "ceiling: %s: %s\n", what, why);
	exit(PR_EX_FAILED);
}

static uint64_t be64(const char *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return be64toh(v);
}

static int be32(const char *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return (int)ntohl(v);
}

/* 0 at the trailer. */
static int row_parse(const char *p, struct row *r)
{
	int16_t n;

	memcpy(&n, p, 2);
	n = (int16_t)ntohs((uint16_t)n);
	if (n < 0)
		return 0;
	if (n != 6)
		die("copy", "not our six columns");
	p += 2;
	for (int i = 0; i < 6; i++) {
		r->len[i] = be32(p);
		r->f[i] = p + 4;
		p += 4 + (r->len[i] > 0 ? r->len[i] : 0);
	}
	return 1;
}

static void uuid_text(const char *b, char *out)
{
	static const char hex[] = "0123456789abcdef";

	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = hex[(unsigned char)b[i] >> 4];
		*out++ = hex[(unsigned char)b[i] & 15];
	}
}

static int digits(uint64_t v, char *out)
{
	char tmp[20];
	int n = 0;

	do {
		tmp[n++] = (char)('0' + v % 10);
		v /= 10;
	} while (v > 0);
	for (int i = 0; i < n; i++)
		out[i] = tmp[n - 1 - i];
	return n;
}

/* Microseconds since 2000 -> RFC 3339, 27 bytes; the second's text is kept between rows. */
static void created_text(int64_t pg_us, char *out)
{
	static int64_t last_sec = -1;
	static char text[32];
	int64_t us = pg_us + 946684800 * PR_SEC;
	int32_t frac = (int32_t)(us % PR_SEC);

	if (us / PR_SEC != last_sec) {
		last_sec = us / PR_SEC;
		pr_rfc3339(us, text);
	}
	memcpy(out, text, 20);
	for (int i = 25; i >= 20; i--, frac /= 10)
		out[i] = (char)('0' + frac % 10);
	out[26] = 'Z';
}

static rd_kafka_headers_t *headers_of(const struct row *r)
{
	rd_kafka_headers_t *h = rd_kafka_headers_new(5);
	char id[36], seq[20], created[27];

	uuid_text(r->f[ID], id);
	created_text((int64_t)be64(r->f[CREATED]), created);
	rd_kafka_header_add(h, "id", 2, id, sizeof(id));
	rd_kafka_header_add(h, "type", 4, r->f[TYPE], r->len[TYPE]);
	rd_kafka_header_add(h, "content-type", 12, "application/json", 16);
	rd_kafka_header_add(h, "outbox-seq", 10, seq, digits(be64(r->f[SEQ]), seq));
	rd_kafka_header_add(h, "outbox-created-at", 17, created, sizeof(created));
	return h;
}

static void check(rd_kafka_error_t *e, const char *what)
{
	if (e)
		die(what, rd_kafka_error_string(e));
}

static void mark(struct run *r, long done)
{
	if (!r->low_us && done >= r->o.events / 10) {
		r->low_us = pr_mono_us();
		r->low_events = done;
	}
	if (!r->high_us && done >= r->o.events * 9 / 10) {
		r->high_us = pr_mono_us();
		r->high_events = done;
	}
}

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
	struct run *r = opaque;

	(void)rk;
	PQfreemem(m->_private);
	if (m->err)
		die("delivery", rd_kafka_err2str(m->err));
	if (r->events++ == 0)
		r->first_us = pr_mono_us();
	mark(r, r->events);
}

static void commit(struct run *r)
{
	check(rd_kafka_commit_transaction(r->rk, -1), "commit");
	for (long i = 0; i < r->in_txn; i++)
		PQfreemem(r->rows[i]);
	if (r->events == 0)
		r->first_us = pr_mono_us();
	r->events += r->in_txn;
	r->in_txn = 0;
	if (r->o.gap_ms > 0)
		(void)usleep((useconds_t)(r->o.gap_ms * 1000));
	mark(r, r->events);
}

/* Takes buf: the payload stays in it until it is delivered. */
static void produce(struct run *r, char *buf, const struct row *row)
{
	rd_kafka_headers_t *h = headers_of(row);
	rd_kafka_resp_err_t code;

	if (r->o.mode == TRANSACTIONAL && r->in_txn == 0)
		check(rd_kafka_begin_transaction(r->rk), "begin");
	/* jsonb travels as a version byte and the text. */
	while ((code = rd_kafka_producev(r->rk, RD_KAFKA_V_RKT(r->topic), RD_KAFKA_V_MSGFLAGS(0),
			RD_KAFKA_V_KEY(row->f[KEY], row->len[KEY]),
			RD_KAFKA_V_VALUE((void *)(uintptr_t)(row->f[PAYLOAD] + 1), row->len[PAYLOAD] - 1),
			RD_KAFKA_V_HEADERS(h), RD_KAFKA_V_OPAQUE(buf), RD_KAFKA_V_END)) ==
		RD_KAFKA_RESP_ERR__QUEUE_FULL)
		rd_kafka_poll(r->rk, 1);
	if (code)
		die("produce", rd_kafka_err2str(code));
	r->bytes += row->len[PAYLOAD] - 1;
	if (r->o.mode == TRANSACTIONAL) {
		r->rows[r->in_txn++] = buf;
		if (r->in_txn == r->o.batch)
			commit(r);
	}
}

static void take(struct run *r, char *buf, const struct row *row)
{
	static unsigned turn;

	if (r->o.mode == COPY_ONLY) {
		if (r->events++ == 0)
			r->first_us = pr_mono_us();
		r->bytes += row->len[PAYLOAD] - 1;
		mark(r, r->events);
		PQfreemem(buf);
		return;
	}
	produce(r, buf, row);
	if ((++turn & 63) == 0)
		rd_kafka_poll(r->rk, 0);
}

static void copy_all(struct run *r)
{
	static const char signature[] = "PGCOPY\n\377\r\n";
	char *buf;
	int n, first = 1;

	while ((n = PQgetCopyData(r->pg, &buf, 0)) > 0) {
		const char *p = buf;
		struct row row;

		if (first && n >= 19 && memcmp(p, signature, 11) == 0)
			p += 19 + be32(p + 15);
		first = 0;
		if (p < buf + n && row_parse(p, &row))
			take(r, buf, &row);
		else
			PQfreemem(buf);
	}
	if (n == -2)
		die("copy", PQerrorMessage(r->pg));
}

static void finish(struct run *r)
{
	PGresult *res = PQgetResult(r->pg);

	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		die("copy", PQerrorMessage(r->pg));
	PQclear(res);
	if (r->o.mode == TRANSACTIONAL && r->in_txn > 0)
		commit(r);
	if (r->o.mode == IDEMPOTENT && rd_kafka_flush(r->rk, 60000))
		die("flush", "not all delivered in 60 s");
}

static void open_postgres(struct run *r)
{
	char *query;
	PGresult *res;

	r->pg = PQconnectdb(r->o.conninfo);
	if (PQstatus(r->pg) != CONNECTION_OK)
		die("connect", PQerrorMessage(r->pg));
	/* The relay's session settings: the index on seq streams in order. */
	PQclear(PQexec(r->pg, "SET jit = off; SET max_parallel_workers_per_gather = 0; "
			      "SET enable_seqscan = off; SET enable_bitmapscan = off"));
	query = pr_asprintf("COPY (SELECT seq, id, aggregateid, type, payload, created_at FROM %s "
			    "ORDER BY seq) TO STDOUT (FORMAT binary)",
		r->o.table);
	r->start_us = pr_mono_us();
	res = PQexec(r->pg, query);
	if (PQresultStatus(res) != PGRES_COPY_OUT)
		die("copy", PQerrorMessage(r->pg));
	PQclear(res);
	free(query);
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char why[256];

	if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
		die(name, why);
}

static void open_kafka(struct run *r)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char why[256], number[24];

	set(conf, "bootstrap.servers", r->o.brokers);
	set(conf, "enable.idempotence", "true");
	set(conf, "acks", "all");
	set(conf, "partitioner", "murmur2_random");
	set(conf, "compression.codec", r->o.compression);
	set(conf, "linger.ms", r->o.linger_ms);
	set(conf, "queue.buffering.max.kbytes", r->o.queue_kb);
	(void)snprintf(number, sizeof(number), "%ld", r->o.batch);
	set(conf, "queue.buffering.max.messages", number);
	rd_kafka_conf_set_opaque(conf, r);
	if (r->o.mode == TRANSACTIONAL)
		set(conf, "transactional.id", "postrider-bench-ceiling");
	else
		rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	r->rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof(why));
	if (!r->rk)
		die("kafka", why);
	r->topic = rd_kafka_topic_new(r->rk, r->o.topic, NULL);
	if (r->o.mode == TRANSACTIONAL)
		check(rd_kafka_init_transactions(r->rk, 30000), "init_transactions");
}

static long peak_rss_kb(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	long kb = -1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmHWM: %ld", &kb) == 1)
			break;
	if (f)
		(void)fclose(f);
	return kb;
}

static double cpu_us(void)
{
	struct rusage u;

	(void)getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void report(const struct run *r)
{
	static const char *const names[] = { "copy", "idempotent", "transactional" };
	double seconds = (double)(r->end_us - r->start_us) / 1e6;
	double steady = r->high_us > r->low_us ? (double)(r->high_events - r->low_events) * 1e6 /
							 (double)(r->high_us - r->low_us)
					       : 0;

	(void)printf(
		"{\"mode\": \"%s\", \"batch\": %ld, \"events\": %ld, \"payload_bytes\": %ld, "
		"\"seconds\": %.4f, \"first_seconds\": %.4f, \"events_per_second\": %.0f, "
		"\"steady_events_per_second\": %.0f, \"cpu_us_per_event\": %.3f, \"peak_rss_kb\": %ld}\n",
		names[r->o.mode], r->o.batch, r->events, r->bytes, seconds,
		(double)(r->first_us - r->start_us) / 1e6, (double)r->events / seconds, steady,
		r->events ? cpu_us() / (double)r->events : 0, peak_rss_kb());
}

static int usage(void)
{
	(void)fputs("usage: ceiling copy|idempotent|transactional --conninfo C [--brokers B] [--topic T]\n"
		    "       [--table outbox.event] [--batch 10000] [--events 1000000] [--linger-ms 5]\n"
		    "       [--queue-kb 65536] [--compression lz4] [--gap-ms 0]\n",
		stderr);
	return PR_EX_USAGE;
}

static int parse(int argc, char **argv, struct opts *o)
{
	static const struct option table[] = { { "conninfo", 1, 0, 'c' }, { "brokers", 1, 0, 'b' },
		{ "topic", 1, 0, 't' }, { "table", 1, 0, 'T' }, { "batch", 1, 0, 'n' },
		{ "events", 1, 0, 'e' }, { "linger-ms", 1, 0, 'l' }, { "queue-kb", 1, 0, 'q' },
		{ "compression", 1, 0, 'z' }, { "gap-ms", 1, 0, 'g' }, { 0, 0, 0, 0 } };
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
		case 'n':
			o->batch = strtol(optarg, NULL, 10);
			break;
		case 'e':
			o->events = strtol(optarg, NULL, 10);
			break;
		case 'l':
			o->linger_ms = optarg;
			break;
		case 'q':
			o->queue_kb = optarg;
			break;
		case 'g':
			o->gap_ms = strtod(optarg, NULL);
			break;
		case 'z':
			o->compression = optarg;
			break;
		default:
			return -1;
		}
	if (optind != argc - 1 || !o->conninfo || o->batch < 1 || o->events < 1)
		return -1;
	if (strcmp(argv[optind], "copy") == 0)
		o->mode = COPY_ONLY;
	else if (strcmp(argv[optind], "idempotent") == 0)
		o->mode = IDEMPOTENT;
	else if (strcmp(argv[optind], "transactional") == 0)
		o->mode = TRANSACTIONAL;
	else
		return -1;
	return o->mode != COPY_ONLY && !o->brokers ? -1 : 0;
}

int main(int argc, char **argv)
{
	struct run r = { .o = { .topic = "outbox.event.bench",
				 .table = "outbox.event",
				 .compression = "lz4",
				 .linger_ms = "5",
				 .queue_kb = "65536",
				 .batch = 10000,
				 .events = 1000000 } };

	if (parse(argc, argv, &r.o))
		return usage();
	r.rows = pr_calloc((size_t)r.o.batch, sizeof(*r.rows));
	if (r.o.mode != COPY_ONLY)
		open_kafka(&r);
	open_postgres(&r);
	copy_all(&r);
	finish(&r);
	r.end_us = pr_mono_us();
	report(&r);
	if (r.rk) {
		rd_kafka_topic_destroy(r.topic);
		rd_kafka_destroy(r.rk);
	}
	PQfinish(r.pg);
	free(r.rows);
	return PR_EX_OK;
}
