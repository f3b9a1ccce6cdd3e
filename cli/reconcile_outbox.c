/* cli/reconcile_outbox.c -- the outbox against its topics: rows made in the window, by their numbers, and
 * records that carry one. A row may have been published long after it was made, and dropped after that. */
#include "cli/reconcile.h"

#include <stdlib.h>
#include <string.h>

static const char rows[] =
	"SELECT %s FROM outbox.event AS e WHERE e.created_at >= pg_catalog.to_timestamp(%.6f) AND "
	"e.created_at < pg_catalog.to_timestamp(%.6f) AND coalesce(e.topic, pg_catalog.replace(%s, "
	"'${aggregatetype}', e.aggregatetype)) = ANY (ARRAY[%s]::text[])";

static const char *route(const struct reconcile *r)
{
	return r->relay_loaded ? r->relay.route.topic : "outbox.event.${aggregatetype}";
}

/* what: the columns; malloc'd. */
static char *query(struct reconcile *r, const char *what)
{
	PGconn *conn = pr_pg_conn(r->out.pg);
	char *template = PQescapeLiteral(conn, route(r), strlen(route(r))), *sql;
	struct pr_buf topics = { 0 };

	for (size_t i = 0; i < r->topics_n; i++) {
		char *t = PQescapeLiteral(conn, r->topics[i], strlen(r->topics[i]));

		pr_buf_printf(&topics, "%s%s", i ? "," : "", t);
		PQfreemem(t);
	}
	sql = pr_asprintf(rows, what, r->windowed ? (double)r->from_us / 1e6 : 0.0,
		r->windowed ? (double)r->to_us / 1e6 : 9e9, template, topics.s);
	PQfreemem(template);
	pr_buf_free(&topics);
	return sql;
}

static int bounds(struct reconcile *r, struct pr_err *err)
{
	char *sql = query(r, "min(seq), max(seq), (SELECT min(o.seq) FROM outbox.event AS o)");
	PGresult *res = pr_pg_exec(r->out.pg, sql, 0, NULL, err);

	free(sql);
	if (!res)
		return -1;
	r->out.from = cli_cell_int(res, 0, 0);
	r->out.to = cli_cell(res, 0, 1) ? cli_cell_int(res, 0, 1) + 1 : r->out.from;
	r->out.oldest = cli_cell(res, 0, 2) ? cli_cell_int(res, 0, 2) : INT64_MAX;
	PQclear(res);
	if (r->out.to - r->out.from <= MOST_SEQS)
		return 0;
	(void)pr_fail(
		err, PR_REJECT, "the outbox has more than %lld numbers in this window", (long long)MOST_SEQS);
	return pr_hint(err, "a shorter one: --hour, or --from and --to");
}

static int64_t seq_of(const char *row, int len)
{
	int64_t v = 0;

	if (len < 14)
		return -1;
	for (int i = 0; i < 8; i++)
		v = (int64_t)((uint64_t)v << 8 | (unsigned char)row[6 + i]);
	return v;
}

int rec_outbox_begin(struct reconcile *r, struct pr_err *err)
{
	char *sql, *row;
	int rc, len;

	if (!r->out.pg)
		return 0;
	r->out.looked = 1;
	if (bounds(r, err) < 0)
		return -1;
	r->out.seqs = pr_calloc((size_t)(r->out.to - r->out.from) + 1, 1);
	sql = query(r, "seq");
	rc = pr_pg_copy_begin(r->out.pg, sql, err);
	free(sql);
	while (rc == 0 && (rc = pr_pg_copy_row(r->out.pg, &row, &len, err)) > 0) {
		int64_t seq = seq_of(row, len);

		PQfreemem(row);
		if (seq >= r->out.from && seq < r->out.to) {
			r->out.seqs[seq - r->out.from] |= Q_ROW;
			r->out.rows++;
		}
		rc = 0;
	}
	return rc;
}

int64_t rec_outbox_left(const struct reconcile *r)
{
	int64_t left = 0;

	for (int64_t i = 0; r->out.looked && i < r->out.to - r->out.from; i++)
		left += r->out.seqs[i] == Q_ROW;
	return left;
}

static int header(rd_kafka_headers_t *h, const char *name, char *text, size_t size)
{
	const void *value = NULL;
	size_t n = 0;

	if (!h || rd_kafka_header_get_last(h, name, &value, &n) || !value || n >= size)
		return -1;
	memcpy(text, value, n);
	text[n] = '\0';
	return 0;
}

static void finding(struct reconcile *r, const rd_kafka_message_t *m, rd_kafka_headers_t *h, const char *what,
	const char *detail)
{
	char id[128] = "";

	(void)header(h, "id", id, sizeof(id));
	rec_find(r, &(struct finding){ .what = what,
			    .source = "outbox",
			    .id = id,
			    .topic = (char *)(uintptr_t)r->topic.name,
			    .partition = m->partition,
			    .offset = m->offset,
			    .detail = (char *)(uintptr_t)detail });
}

void rec_outbox_saw(struct reconcile *r, const rd_kafka_message_t *m, rd_kafka_headers_t *h)
{
	char text[64];
	int64_t seq, at = 0;
	uint8_t *q;

	if (header(h, "outbox-seq", text, sizeof(text)) < 0)
		return;
	seq = strtoll(text, NULL, 10);
	q = seq >= r->out.from && seq < r->out.to ? &r->out.seqs[seq - r->out.from] : NULL;
	if (q && (*q & Q_ROW)) {
		if (*q & Q_TWICE)
			return;
		*q |= *q & Q_ONCE ? Q_TWICE : Q_ONCE;
		if (*q & Q_TWICE) {
			r->out.twice++;
			finding(r, m, h, "published_twice", "the topic has the event's number twice");
		}
		return;
	}
	if (seq < r->out.oldest || header(h, "outbox-created-at", text, sizeof(text)) < 0 ||
		cli_parse_time(text, &at, NULL) < 0 || at < r->from_us || at >= r->to_us)
		return;
	r->out.extra++;
	finding(r, m, h, "no_row", "the outbox has no row of it, and has older ones");
}

/* ---- rows of which there is no record ---- */

enum { O_SEQ, O_ID, O_TOPIC, O_STATE };

static const char left_behind[] =
	"SELECT e.seq, e.id, coalesce(e.topic, pg_catalog.replace($2, '${aggregatetype}', e.aggregatetype)), "
	"CASE WHEN p.seq IS NOT NULL THEN 'parked' "
	"WHEN s.seq IS NOT NULL THEN 'skipped' ELSE 'unpublished' END FROM outbox.event AS e "
	"LEFT JOIN outbox.parked AS p ON p.seq = e.seq LEFT JOIN outbox.skipped AS s ON s.seq = e.seq "
	"WHERE e.seq = ANY ($1::bigint[]) ORDER BY 1";

static void on_left(struct reconcile *r, const PGresult *res, int i)
{
	const char *state = PQgetvalue(res, i, O_STATE);
	struct finding f = { .what = "unpublished",
		.source = "outbox",
		.id = PQgetvalue(res, i, O_ID),
		.topic = PQgetvalue(res, i, O_TOPIC),
		.partition = -1,
		.offset = -1 };
	char *detail;

	if (*state == 's') {
		r->out.skipped++;
		return;
	}
	r->out.missing++;
	r->out.parked += *state == 'p';
	f.what = *state == 'p' ? "parked" : "unpublished";
	detail = pr_asprintf("event number %s %s", PQgetvalue(res, i, O_SEQ),
		*state == 'p' ? "is held back: postrider parked list" : "is in the outbox only");
	f.detail = detail;
	rec_find(r, &f);
	free(detail);
}

/* A thousand numbers at a time. */
static int look(struct reconcile *r, const char *numbers, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(r->out.pg, left_behind, 2, (const char *const[]){ numbers, route(r) }, err);

	if (!res)
		return -1;
	for (int i = 0; i < PQntuples(res); i++)
		on_left(r, res, i);
	PQclear(res);
	return 0;
}

int rec_outbox_end(struct reconcile *r, struct pr_err *err)
{
	struct pr_buf list = { 0 };
	int n = 0, rc = 0;

	for (int64_t i = 0; r->out.looked && rc == 0 && i < r->out.to - r->out.from; i++) {
		if (r->out.seqs[i] != Q_ROW)
			continue;
		pr_buf_printf(&list, "%s%lld", n++ ? "," : "{", (long long)(r->out.from + i));
		if (n == 1000) {
			pr_buf_puts(&list, "}");
			rc = look(r, list.s, err);
			list.len = 0;
			n = 0;
		}
	}
	if (n && rc == 0) {
		pr_buf_puts(&list, "}");
		rc = look(r, list.s, err);
	}
	pr_buf_free(&list);
	return rc;
}
