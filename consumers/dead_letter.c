/* consumers/dead_letter.c -- inbox.dead_letter -> dead_letter.topic, for those who look there: the record as
 * it was, with the headers that Spring (kafka_dlt-*) and Kafka Connect (__connect.errors.*) write. The table
 * stays the truth; a row counts as published once Kafka has acknowledged it, so a crash may publish it twice.
 * Refuses to hold up anything: what the topic does not take stays in the table and is tried again. */
#include "consumers/dead_letter.h"
#include "consumers/spring.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/kafka.h"
#include "lib/log.h"
#include "lib/pg.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ROUND_EVENTS 100
#define ROUND_BYTES  (8 * 1024 * 1024)
#define LOOK_US      (500 * PR_MS)
#define TURN_US      (100 * PR_MS) /* of the keeper's time at once */
#define RETRY_US     PR_SEC
#define RETRY_MAX_US (30 * PR_SEC)

struct dead_letters {
	struct consumer *c;
	rd_kafka_t *rk;
	int locked_pid;    /* backend that holds the group's lock for us; 0: none */
	int64_t after;     /* entry: those up to it were tried in this pass */
	int64_t next_us;   /* monotonic: nothing before that */
	unsigned failures; /* passes in a row with one refused */
	int refused;       /* of this pass */

	/* on their way */
	int64_t entry[ROUND_EVENTS];
	rd_kafka_resp_err_t result[ROUND_EVENTS];
	int n, settled;
};

/* Index into entry and result, +1: NULL would be no opaque. */
static void report(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
	struct dead_letters *d = opaque;
	intptr_t i = (intptr_t)m->_private - 1;

	(void)rk;
	if (i < 0 || i >= d->n)
		return;
	d->result[i] = m->err;
	d->settled++;
}

struct dead_letters *dead_letters_new(struct consumer *c)
{
	struct dead_letters *d;

	if (!c->conf->dead_letter.topic)
		return NULL;
	d = pr_calloc(1, sizeof(*d));
	d->c = c;
	return d;
}

static void close_producer(struct dead_letters *d)
{
	if (!d->rk)
		return;
	(void)rd_kafka_purge(d->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
	(void)rd_kafka_poll(d->rk, 0);
	rd_kafka_destroy(d->rk);
	d->rk = NULL;
}

void dead_letters_free(struct dead_letters *d)
{
	if (!d)
		return;
	close_producer(d);
	free(d);
}

/* A message is given up after kafka.timeout: the report says so, and the row stays. */
static int open_producer(struct dead_letters *d, struct pr_err *err)
{
	const struct pr_consumer_conf *conf = d->c->conf;
	char timeout[24];
	const struct pr_kafka_prop ours[] = { { "enable.idempotence", "true" },
		{ "partitioner", "murmur2_random" }, { "linger.ms", "0" },
		{ "message.max.bytes", "104857600" }, { "message.timeout.ms", timeout },
		{ "topic.metadata.propagation.max.ms", "2000" }, { NULL, NULL } };

	(void)snprintf(timeout, sizeof(timeout), "%" PRId64, (int64_t)(conf->kafka.timeout_us / PR_MS));
	if (!d->rk)
		d->rk = pr_kafka_new(RD_KAFKA_PRODUCER, conf->kafka.brokers, &conf->kafka.properties, ours,
			report, d, err);
	return d->rk ? 0 : -1;
}

/* ---------------------------------------------------------------- headers */

/* One row of dead_letter_next.sql. */
struct row {
	const char *topic, *cls, *code, *reason;
	unsigned attempts;
	char cause[64];
	int32_t partition;
	int64_t offset, time_ms;
};

static rd_kafka_headers_t *headers_of(const struct dead_letters *d, const struct row *r, const char *json)
{
	rd_kafka_headers_t *h = rd_kafka_headers_new(32);
	struct message m = { .partition = 0 };
	struct failure f = { .group = d->c->conf->group,
		.handler = d->c->ops->kind,
		.from = { .topic = r->topic,
			.partition = r->partition,
			.offset = r->offset,
			.time_us = r->time_ms >= 0 ? r->time_ms * PR_MS : -1 },
		.cause = r->cause,
		.reason = r->reason,
		.attempts = r->attempts };

	message_read_headers(&m, json);
	for (size_t i = 0; i < m.headers_n; i++)
		(void)rd_kafka_header_add(
			h, m.headers[i].name, -1, m.headers[i].value, (ssize_t)m.headers[i].len);
	free(m.headers);
	free(m.header_bytes);
	spring_put_failure(h, &f);
	connect_put_failure(h, &f);
	return h;
}

/* ---------------------------------------------------------------- one round */

struct bytes {
	unsigned char *v; /* NULL: null */
	size_t n;
};

static struct bytes bytes_of(const PGresult *res, int row, int col)
{
	struct bytes b = { NULL, 0 };

	if (PQgetisnull(res, row, col))
		return b;
	b.v = PQunescapeBytea((const unsigned char *)PQgetvalue(res, row, col), &b.n);
	if (!b.v)
		abort(); /* out of memory */
	return b;
}

static struct row row_of(const PGresult *res, int i)
{
	struct row r = { .topic = PQgetvalue(res, i, 1),
		.partition = (int32_t)strtol(PQgetvalue(res, i, 2), NULL, 10),
		.offset = strtoll(PQgetvalue(res, i, 3), NULL, 10),
		.cls = PQgetvalue(res, i, 8),
		.code = PQgetvalue(res, i, 9),
		.reason = PQgetvalue(res, i, 10),
		.attempts = (unsigned)strtoul(PQgetvalue(res, i, 11), NULL, 10),
		.time_ms = strtoll(PQgetvalue(res, i, 12), NULL, 10) };

	(void)snprintf(r.cause, sizeof(r.cause), "%s%s%s", r.cls, *r.code ? ":" : "", r.code);
	return r;
}

/* What the queue itself refuses is a result like any other. */
static void produce(struct dead_letters *d, const PGresult *res, int i)
{
	struct bytes key = bytes_of(res, i, 4), payload = bytes_of(res, i, 6);
	struct row r = row_of(res, i);
	rd_kafka_headers_t *h = headers_of(d, &r, PQgetisnull(res, i, 5) ? NULL : PQgetvalue(res, i, 5));
	int at = d->n++;

	d->entry[at] = strtoll(PQgetvalue(res, i, 0), NULL, 10);
	d->result[at] = rd_kafka_producev(d->rk, RD_KAFKA_V_TOPIC(d->c->conf->dead_letter.topic),
		RD_KAFKA_V_KEY(key.v, key.n), RD_KAFKA_V_VALUE(payload.v, payload.n), RD_KAFKA_V_HEADERS(h),
		RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_OPAQUE((void *)(intptr_t)(at + 1)),
		RD_KAFKA_V_END);
	if (d->result[at]) {
		rd_kafka_headers_destroy(h);
		d->settled++;
	}
	if (key.v)
		PQfreemem(key.v);
	if (payload.v)
		PQfreemem(payload.v);
}

static void refused(struct dead_letters *d, rd_kafka_resp_err_t code)
{
	struct pr_err err;
	char last[256];

	(void)pr_kafka_fail(&err, code, d->c->conf->dead_letter.topic);
	(void)pr_wrap(&err, "dead letters stay in the table: cannot publish to dead_letter.topic");
	pr_kafka_last_words(last, sizeof(last));
	if (code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE)
		(void)pr_hint(&err, "raise max.message.bytes of the topic");
	else if (code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC || code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART)
		(void)pr_hint(&err, "create the topic");
	else if (last[0])
		(void)pr_hint(&err, "last word of the client: %s", last);
	health_trouble(d->c, TROUBLE_DEAD_LETTER_TOPIC, &err);
	d->refused = 1;
}

static int mark_published(struct dead_letters *d, struct pr_pg *pg, struct pr_err *err)
{
	struct pr_buf b = { 0 };
	int rc = 0, n = 0;

	for (int i = 0; i < d->n; i++)
		if (!d->result[i])
			pr_buf_printf(&b, "%c%" PRId64, n++ ? ',' : '{', d->entry[i]);
	if (n > 0) {
		pr_buf_puts(&b, "}");
		/* If we die here, Kafka has them and the table does not know it: they are published once more
		 * after the next start. The other way round they would never be. */
		FAULT(dead_letter_published_before_row);
		rc = pr_pg_run(pg, sql_dead_letter_published, 1, (const char *const[]){ b.s }, err);
	}
	pr_buf_free(&b);
	return rc;
}

/* Everything that waits was tried once: the next pass begins at the oldest again. */
static void end_pass(struct dead_letters *d)
{
	d->after = 0;
	d->next_us = pr_mono_us() + LOOK_US;
	if (d->refused)
		d->next_us = pr_mono_us() + pr_backoff_us(d->failures++, RETRY_US, RETRY_MAX_US);
	else
		d->failures = 0;
	if (!d->refused)
		health_trouble(d->c, TROUBLE_DEAD_LETTER_TOPIC, NULL);
	d->refused = 0;
}

/* A broker refuses the batch that holds the message, so all of it is refused: next time one by one. */
static int about_message(rd_kafka_resp_err_t code)
{
	return code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE || code == RD_KAFKA_RESP_ERR_INVALID_MSG ||
	       code == RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE || code == RD_KAFKA_RESP_ERR_INVALID_RECORD;
}

/* All have been answered. */
static int finish(struct dead_letters *d, struct pr_pg *pg, struct pr_err *err)
{
	int rc, fatal = 0, others_too = 0;

	for (int i = 0; i < d->n; i++) {
		if (!d->result[i])
			continue;
		refused(d, d->result[i]);
		fatal |= d->result[i] == RD_KAFKA_RESP_ERR__FATAL;
		others_too |= !about_message(d->result[i]);
	}
	rc = mark_published(d, pg, err);
	d->after = d->entry[d->n - 1];
	d->n = d->settled = 0;
	if (fatal)
		close_producer(d); /* a new one is a new sequence */
	if (others_too)
		end_pass(d);
	return rc;
}

/* One member of the group does it: two would publish everything twice. */
static int is_ours(struct dead_letters *d, struct pr_pg *pg, struct pr_err *err)
{
	int pid = PQbackendPID(pr_pg_conn(pg));
	PGresult *res;

	if (d->locked_pid == pid)
		return 1;
	d->locked_pid = 0;
	res = pr_pg_exec(pg, sql_dead_letter_lock, 1, (const char *const[]){ d->c->conf->group }, err);
	if (!res)
		return -1;
	if (PQgetvalue(res, 0, 0)[0] == 't')
		d->locked_pid = pid;
	PQclear(res);
	return d->locked_pid != 0;
}

static PGresult *waiting(const struct dead_letters *d, struct pr_pg *pg, struct pr_err *err)
{
	char after[24], most[24], bytes[24];

	(void)snprintf(after, sizeof(after), "%" PRId64, d->after);
	(void)snprintf(most, sizeof(most), "%d", d->failures ? 1 : ROUND_EVENTS);
	(void)snprintf(bytes, sizeof(bytes), "%d", ROUND_BYTES);
	return pr_pg_exec(pg, sql_dead_letter_next, 4,
		(const char *const[]){ d->c->conf->group, after, most, bytes }, err);
}

/* 1: some are on their way, 0: there is nothing to do now, -1: the database. */
static int send_some(struct dead_letters *d, struct pr_pg *pg, struct pr_err *err)
{
	struct pr_err why;
	PGresult *res;
	int rc = is_ours(d, pg, err);

	d->next_us = pr_mono_us() + LOOK_US;
	if (rc <= 0)
		return rc;
	res = waiting(d, pg, err);
	if (!res)
		return -1;
	if (PQntuples(res) == 0) {
		end_pass(d);
	} else if (open_producer(d, &why) < 0) {
		health_trouble(d->c, TROUBLE_DEAD_LETTER_TOPIC, &why);
		d->next_us = pr_mono_us() + RETRY_MAX_US;
	} else {
		d->next_us = 0; /* the pass goes on until nothing is left */
		for (int i = 0; i < PQntuples(res) && i < ROUND_EVENTS; i++)
			produce(d, res, i);
	}
	PQclear(res);
	return d->n > 0;
}

int dead_letters_round(struct dead_letters *d, struct pr_pg *pg, struct pr_err *err)
{
	int64_t until = pr_mono_us() + TURN_US;
	int rc = 1;

	while (rc > 0 && pr_mono_us() < until) {
		if (d->n == 0) {
			rc = pr_mono_us() < d->next_us ? 0 : send_some(d, pg, err);
		} else {
			if (d->settled < d->n)
				(void)rd_kafka_poll(d->rk, 20);
			if (d->settled == d->n)
				rc = finish(d, pg, err) < 0 ? -1 : 1;
		}
	}
	return rc < 0 ? -1 : 0;
}
