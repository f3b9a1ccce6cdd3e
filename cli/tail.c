/* cli/tail.c -- `postrider tail`: the newest published events of some topics, and with --follow those that
 * come. Reads committed records, joins no group. Shows a payload only to a login that may read the tables it
 * came from: Kafka alone would not know. */
#include "cli/cli.h"

#include "lib/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One record; owned. */
struct row {
	char *topic, *key, *id, *type, *payload;
	size_t payload_n;
	int32_t partition;
	int64_t offset, time_ms;
};

struct tail {
	struct cli *c;
	rd_kafka_t *rk;
	struct pr_strs names; /* topics wanted; empty: those of the config */
	rd_kafka_topic_partition_list_t *parts;
	int64_t *ends;    /* of parts, when it began; -1: it has been seen */
	int behind;       /* partitions whose end has not been seen yet */
	struct row *rows; /* the newest, the oldest first; at most limit */
	int64_t nrows, limit;
	int payload;
};

/* ---------------------------------------------------------------- one record */

static void row_release(struct row *r)
{
	free(r->topic);
	free(r->key);
	free(r->id);
	free(r->type);
	free(r->payload);
}

static char *copy(const void *s, size_t n)
{
	char *to = pr_malloc(n + 1);

	if (n)
		memcpy(to, s, n);
	to[n] = '\0';
	return to;
}

static char *header(const rd_kafka_message_t *m, const char *name)
{
	rd_kafka_headers_t *headers;
	const void *value;
	size_t n;

	if (rd_kafka_message_headers(m, &headers) || rd_kafka_header_get_last(headers, name, &value, &n) ||
		!value)
		return NULL;
	return copy(value, n);
}

static struct row row_of(const struct tail *t, const rd_kafka_message_t *m)
{
	struct row r = {
		.partition = m->partition, .offset = m->offset, .time_ms = rd_kafka_message_timestamp(m, NULL)
	};

	r.topic = pr_strdup(rd_kafka_topic_name(m->rkt));
	r.key = m->key ? copy(m->key, m->key_len) : NULL;
	r.id = header(m, "id");
	r.type = header(m, "type");
	if (t->payload && m->payload) {
		r.payload = copy(m->payload, m->len);
		r.payload_n = m->len;
	}
	return r;
}

static double age_of(const struct row *r)
{
	return r->time_ms < 0 ? NAN : fmax(0, (double)(pr_wall_us() / 1000 - r->time_ms) / 1000);
}

static void add(cJSON *o, const char *name, const char *value)
{
	(void)cJSON_AddItemToObject(o, name, value ? cJSON_CreateString(value) : cJSON_CreateNull());
}

static void put_json(const struct tail *t, const struct row *r)
{
	cJSON *o = cJSON_CreateObject();

	add(o, "topic", r->topic);
	cli_json_int(o, "partition", r->partition);
	cli_json_int(o, "offset", r->offset);
	add(o, "key", r->key);
	add(o, "id", r->id);
	add(o, "type", r->type);
	cli_json_int(o, "time_ms", r->time_ms);
	(void)cJSON_AddItemToObject(
		o, "age_seconds", isnan(age_of(r)) ? cJSON_CreateNull() : cJSON_CreateNumber(age_of(r)));
	if (t->payload)
		cli_json_payload(o, r->payload, r->payload_n);
	cli_json_free_line(o);
}

static void put_text(const struct tail *t, const struct row *r)
{
	time_t s = (time_t)(r->time_ms / 1000);
	char at[32] = "-", span[48], *text;
	struct tm tm;

	if (r->time_ms >= 0 && gmtime_r(&s, &tm))
		(void)strftime(at, sizeof(at), "%Y-%m-%dT%H:%M:%SZ", &tm);
	text = pr_asprintf("%s ago  %s %d:%lld  key %s  %s  %s",
		isnan(age_of(r)) ? "?" : cli_span(age_of(r), span), r->topic, (int)r->partition,
		(long long)r->offset, r->key ? r->key : "-", r->type ? r->type : "-", r->id ? r->id : "-");
	(void)printf("%s%s%s", cli_on(stdout, CLI_DIM), at, cli_off(stdout));
	cli_text(stdout, text, (int)strlen(at), (int)strlen(at) + 1);
	if (t->payload)
		cli_payload(stdout, r->payload, r->payload_n, 4096, 4);
	free(text);
}

static void put(const struct tail *t, const struct row *r)
{
	if (cli_has(t->c, "json"))
		put_json(t, r);
	else
		put_text(t, r);
}

/* Among those kept, by time; the oldest goes when there are too many. Takes r. */
static void keep(struct tail *t, struct row r)
{
	int64_t at = t->nrows;

	while (at > 0 && t->rows[at - 1].time_ms > r.time_ms)
		at--;
	if (t->nrows < t->limit) {
		memmove(&t->rows[at + 1], &t->rows[at], (size_t)(t->nrows - at) * sizeof(r));
		t->rows[at] = r;
		t->nrows++;
	} else if (at == 0) {
		row_release(&r);
	} else {
		row_release(&t->rows[0]);
		memmove(&t->rows[0], &t->rows[1], (size_t)(at - 1) * sizeof(r));
		t->rows[at - 1] = r;
	}
}

static void put_kept(struct tail *t)
{
	for (int64_t i = 0; i < t->nrows; i++) {
		put(t, &t->rows[i]);
		row_release(&t->rows[i]);
	}
	t->nrows = 0;
	(void)fflush(stdout);
}

/* ---------------------------------------------------------------- which topics */

static void add_name(struct tail *t, const char *name)
{
	t->names.v = pr_realloc(t->names.v, sizeof(*t->names.v) * (t->names.n + 1));
	t->names.v[t->names.n++] = pr_strdup(name);
}

static int of_group(struct tail *t, const char *group, struct pr_err *err)
{
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;

	if (cli_connect_outbox(t->c, &pg, err) == 0)
		res = pr_pg_exec(pg,
			"SELECT DISTINCT topic FROM inbox.position WHERE \"group\" = $1 ORDER BY 1", 1,
			&group, err);
	pr_pg_close(pg);
	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		add_name(t, cli_cell(res, i, 0));
	PQclear(res);
	if (t->names.n)
		return 0;
	(void)pr_fail(err, PR_REJECT, "no consumer of group \"%.100s\" has run on this database", group);
	err->exit = PR_EX_NOT_FOUND;
	return -1;
}

static int choose(struct tail *t, struct pr_err *err)
{
	const char *name;

	for (int i = 0; (name = cli_nth(t->c, "topic", i)); i++)
		add_name(t, name);
	if (t->names.n || !cli_option(t->c, "group"))
		return 0;
	return of_group(t, cli_option(t->c, "group"), err);
}

static int is_wanted(const struct tail *t, const char *name)
{
	if (!pr_kafka_topic_valid(name, strlen(name)))
		return 0;
	for (size_t i = 0; i < t->names.n; i++)
		if (strcmp(t->names.v[i], name) == 0)
			return 1;
	return !t->names.n && cli_is_topic_of(t->c, name);
}

/* From a little more than limit records before each partition's end: what ends transactions has offsets too.
 */
static int place(struct tail *t, struct pr_err *err)
{
	rd_kafka_resp_err_t code =
		rd_kafka_offsets_for_times(t->rk, t->parts, (int)(cli_timeout(t->c) / PR_MS));

	t->ends = pr_calloc((size_t)t->parts->cnt, sizeof(*t->ends));
	for (int i = 0; !code && i < t->parts->cnt; i++) {
		rd_kafka_topic_partition_t *p = &t->parts->elems[i];

		code = p->err;
		t->ends[i] = p->offset;
		p->offset = p->offset > 2 * t->limit + 10 ? p->offset - 2 * t->limit - 10
							  : RD_KAFKA_OFFSET_BEGINNING;
	}
	if (!code)
		code = rd_kafka_assign(t->rk, t->parts);
	t->behind = t->parts->cnt;
	return code ? pr_kafka_fail(err, code, "cannot begin to read") : 0;
}

static int find_parts(struct tail *t, struct pr_err *err)
{
	const struct rd_kafka_metadata *md = NULL;
	rd_kafka_resp_err_t code = rd_kafka_metadata(t->rk, 1, NULL, &md, (int)(cli_timeout(t->c) / PR_MS));

	if (code)
		return pr_kafka_fail(err, code, "cannot list the topics");
	t->parts = rd_kafka_topic_partition_list_new(16);
	for (int i = 0; i < md->topic_cnt; i++)
		for (int k = 0; is_wanted(t, md->topics[i].topic) && k < md->topics[i].partition_cnt; k++)
			rd_kafka_topic_partition_list_add(
				t->parts, md->topics[i].topic, md->topics[i].partitions[k].id)
				->offset = RD_KAFKA_OFFSET_END;
	rd_kafka_metadata_destroy(md);
	if (t->parts->cnt)
		return place(t, err);
	(void)pr_fail(err, PR_REJECT, "there is no such topic%s%s", t->names.n ? ": " : " yet",
		t->names.n ? t->names.v[0] : "");
	err->exit = PR_EX_NOT_FOUND;
	return -1;
}

/* ---------------------------------------------------------------- reading */

/* A partition counts once: one that is written to comes to its end again and again, or never. */
static void came_to(struct tail *t, const rd_kafka_message_t *m, int64_t offset)
{
	const rd_kafka_topic_partition_t *p =
		rd_kafka_topic_partition_list_find(t->parts, rd_kafka_topic_name(m->rkt), m->partition);
	int64_t *end = p ? &t->ends[p - t->parts->elems] : NULL;

	if (!end || *end < 0 || offset < *end)
		return;
	*end = -1;
	if (--t->behind == 0)
		put_kept(t);
}

static int take(struct tail *t, const rd_kafka_message_t *m, struct pr_err *err)
{
	struct row r;

	if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
		came_to(t, m, INT64_MAX);
		return 0;
	}
	if (m->err)
		return pr_kafka_kind(m->err) == PR_RETRY
			       ? 0
			       : pr_kafka_fail(err, m->err, rd_kafka_topic_name(m->rkt));
	r = row_of(t, m);
	if (t->behind > 0) {
		keep(t, r);
		came_to(t, m, m->offset + 1);
		return 0;
	}
	put(t, &r);
	row_release(&r);
	(void)fflush(stdout);
	return 0;
}

/* Until the end of all partitions; following, until the reader leaves. */
static int follow(struct tail *t, struct pr_err *err)
{
	int64_t give_up = pr_mono_us() + cli_timeout(t->c);
	int rc = 0;

	while (rc == 0 && !cli_gone() && (t->behind > 0 || cli_has(t->c, "follow"))) {
		rd_kafka_message_t *m = rd_kafka_consumer_poll(t->rk, 100);

		if (m) {
			rc = take(t, m, err);
			give_up = pr_mono_us() + cli_timeout(t->c);
			rd_kafka_message_destroy(m);
		} else if (t->behind > 0 && pr_mono_us() > give_up) {
			put_kept(t);
			rc = pr_fail(err, PR_RETRY, "%d partitions do not answer", t->behind);
		}
	}
	return rc;
}

/* ---------------------------------------------------------------- payloads */

/* Who may read the tables that payloads come from, or are kept in, may see them. */
static int may_see(struct cli *c, struct pr_err *err)
{
	const char *table = c->consumer_loaded ? "inbox.dead_letter" : "outbox.event";
	const char *role = c->consumer_loaded ? "inbox_operator" : "outbox_operator";
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	int yes = 0;

	if (!cli_conninfo_given(c))
		return cli_usage(
			err, "--payload asks a database whether you may read: give -c or --conninfo");
	if (cli_connect_outbox(c, &pg, err) == 0)
		res = pr_pg_exec(pg, "SELECT pg_catalog.has_column_privilege($1::text, 'payload', 'SELECT')",
			1, &table, err);
	yes = res && *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	pr_pg_close(pg);
	if (!res || yes)
		return res ? 0 : -1;
	(void)pr_fail(err, PR_STOP, "\"%s\" may not read payloads: no SELECT on %s", cli_login(), table);
	err->exit = PR_EX_NOPERM;
	return pr_hint(err, "GRANT %s TO %s;", role, cli_login());
}

int verb_tail(struct cli *c)
{
	struct tail t = { .c = c, .limit = cli_int(c, "limit", 10), .payload = cli_has(c, "payload") };
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;

	t.rows = pr_calloc((size_t)t.limit + 1, sizeof(*t.rows));
	if ((t.payload && may_see(c, &err) < 0) || choose(&t, &err) < 0 ||
		!(t.rk = cli_reader(c, "earliest", "100", &err)) || find_parts(&t, &err) < 0)
		rc = cli_failed(c, &err);
	else if (follow(&t, &err) < 0)
		rc = cli_fail(&err);
	for (int64_t i = 0; i < t.nrows; i++)
		row_release(&t.rows[i]);
	free(t.rows);
	free(t.ends);
	for (size_t i = 0; i < t.names.n; i++)
		free(t.names.v[i]);
	free(t.names.v);
	if (t.parts)
		rd_kafka_topic_partition_list_destroy(t.parts);
	if (t.rk)
		rd_kafka_destroy(t.rk);
	return rc;
}
