/* consumers/sink/table.c -- target: rows of a table, by COPY. When the table lies in the consumer's database,
 * rows and position are one transaction (sink_table). When it lies in another one (sink_table_away), how far
 * its rows go stands beside them, in sink_rows.position of that database, and a cut that is brought in again,
 * after a crash or by the next owner, finds that it was.
 *
 * A table of our shape takes COPY directly; else, and when a place is taken already (records are read again
 * from the beginning), rows go into a temporary table first and from there by what the mode says:
 * table_sql.c.
 *
 * A cut that the database refuses for its content (a CHECK, a trigger, a type that is too narrow) is halved
 * down to the one row that it refuses: that one is a dead letter. Refuses a record without a key where the
 * key says which row it is about, and one whose payload was left out where a row is what its key came to be.
 */
#include "consumers/outcome.h"
#include "consumers/sink/batch.h"
#include "consumers/sink/table_row.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN_US (50 * PR_MS) /* two lanes met at one key */
#define TRIES    5            /* of that, before it is the row's own fault */
#define MAKE_US  (60 * PR_SEC)
#define NONE     INT64_MIN

static const char positions[] =
	"SELECT pg_catalog.pg_advisory_xact_lock(77, 0); CREATE SCHEMA IF NOT EXISTS sink_rows; "
	"COMMENT ON SCHEMA sink_rows IS 'how far consumers of kind sink have written tables of this "
	"database'; "
	"CREATE TABLE IF NOT EXISTS sink_rows.position (\"group\" text COLLATE \"C\" NOT NULL, "
	"topic text COLLATE \"C\" NOT NULL, partition integer NOT NULL, next_offset bigint NOT NULL, "
	"updated_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(), "
	"PRIMARY KEY (\"group\", topic, partition))";

/* Rows of a cut, encoded. */
struct batch {
	struct sink_batch rows;  /* first */
	int64_t misfit;          /* offset of the first that no row can be made of; NONE */
	const char *misfit_code; /* "key", "json" */
	int sends[COLUMN_COUNT];
};

/* A lane's. */
struct writer {
	struct table_sql sql;
	int made;         /* sql is what the table looks like */
	int seen;         /* it was there */
	struct pr_pg *pg; /* away: ours; NULL: the lane's own */
	struct pr_pg *on; /* where it was made; only compared */
};

/* ---------------------------------------------------------------- rows */

static struct batch *batch_new(const int sends[COLUMN_COUNT])
{
	struct batch *b = pr_calloc(1, sizeof(*b));

	b->misfit = NONE;
	memcpy(b->sends, sends, sizeof(b->sends));
	return b;
}

/* Why no row can be made of it; NULL: one can. With NULL in a column of the key no row is equal to it; and
 * what a key came to be is not known by a payload that was left out. */
static const char *misfit_of(const struct table_sql *t, const struct sink_row *row)
{
	if ((t->key[COLUMN_KEY] && !row->key) || (t->key[COLUMN_ID] && !row->id))
		return "key";
	return row->withheld && t->mode != PR_SINK_APPEND ? "json" : NULL;
}

static int table_put(struct sink_part *sp, const struct sink_row *row, struct pr_err *err)
{
	const struct writer *w = sp->lane->target;
	struct batch *b = sp->target;
	size_t before;

	(void)err;
	if (!b)
		sp->target = b = batch_new(w->sql.sends);
	if (b->misfit == NONE && misfit_of(&w->sql, row)) {
		b->misfit = row->offset;
		b->misfit_code = misfit_of(&w->sql, row);
	}
	before = b->rows.bytes.len;
	sink_batch_add(&b->rows, row->offset);
	table_row_put(&b->rows.bytes, row, b->sends);
	sp->open->bytes += (int64_t)(b->rows.bytes.len - before);
	return 0;
}

/* The rows from split_at on. */
static int table_split(
	struct sink_part *sp, struct sink_cut *cut, struct sink_cut *second, struct pr_err *err)
{
	struct batch *b = cut->batch, *rest = batch_new(b->sends);

	(void)sp;
	(void)err;
	sink_batch_split(cut, second, &rest->rows);
	rest->misfit = b->misfit;
	rest->misfit_code = b->misfit_code;
	b->misfit = b->misfit >= cut->split_at ? NONE : b->misfit;
	return 0;
}

/* ---------------------------------------------------------------- open and close */

static void table_close(struct sink_lane *sl)
{
	struct writer *w = sl->target;

	if (!w)
		return;
	pr_pg_close(w->pg);
	table_sql_free(&w->sql);
	free(w);
	sl->target = NULL;
}

static struct pr_pg *session(const struct sink_lane *sl)
{
	const struct writer *w = sl->target;

	return w->pg ? w->pg : sl->l->pg;
}

/* The table as it is now. One that was there and is gone is not made anew: somebody took it away. */
static int make(struct sink_lane *sl, struct pr_err *err)
{
	struct writer *w = sl->target;
	struct pr_sink_conf conf = *sl->conf;

	conf.table.create = conf.table.create && !w->seen;
	w->made = 0;
	table_sql_free(&w->sql);
	if (table_sql_make(&w->sql, session(sl), &conf, err) < 0) {
		if (w->seen && err->exit == PR_EX_CONFIG) {
			err->kind = PR_RETRY;
			err->exit = PR_EX_UNAVAILABLE;
		}
		return -1;
	}
	w->made = w->seen = 1;
	w->on = session(sl);
	return 0;
}

static int table_open(struct sink_lane *sl, struct pr_err *err)
{
	if (!sl->target)
		sl->target = pr_calloc(1, sizeof(struct writer));
	return make(sl, err);
}

static int make_positions(struct pr_pg *pg, struct pr_err *err)
{
	static const char there[] = "SELECT pg_catalog.to_regclass('sink_rows.position') IS NOT NULL";
	PGresult *res = pr_pg_exec(pg, there, 0, NULL, err);
	int has;

	if (!res)
		return -1;
	has = PQgetvalue(res, 0, 0)[0] == 't';
	PQclear(res);
	if (has)
		return 0;
	pr_pg_timeout(pg, MAKE_US);
	if (pr_pg_run(pg, positions, 0, NULL, err) == 0)
		return 0;
	if (strcmp(err->code, "42501") == 0) {
		(void)pr_hint(
			err, "the login of handler.table.conninfo may create a schema, or owns sink_rows");
		err->kind = PR_STOP;
		err->exit = PR_EX_CONFIG;
	}
	return pr_wrap(err, "sink_rows.position");
}

static int away_connect(struct sink_lane *sl, struct pr_err *err)
{
	struct writer *w = sl->target;
	const struct pr_consumer_conf *conf = sl->l->c->conf;
	char name[120];
	struct pr_pg_opts opts = { sl->conf->table.conninfo, name, conf->database.timeout_us, -1 };

	if (w->pg && pr_pg_ok(w->pg))
		return w->made ? 0 : make(sl, err);
	pr_pg_close(w->pg);
	w->pg = NULL;
	(void)snprintf(name, sizeof(name), "postrider-consumer %.32s rows %d", conf->group, sl->l->number);
	if (pr_pg_open(&opts, &w->pg, err) < 0 || make_positions(w->pg, err) < 0)
		return pr_wrap(err, "handler.table.conninfo");
	return make(sl, err);
}

static int away_open(struct sink_lane *sl, struct pr_err *err)
{
	if (!sl->target)
		sl->target = pr_calloc(1, sizeof(struct writer));
	return away_connect(sl, err);
}

/* ---------------------------------------------------------------- bringing rows in */

static int copy_rows(struct pr_pg *pg, const struct batch *b, const char *sql, struct pr_err *err)
{
	struct pr_buf edge = { 0 };
	PGresult *res = NULL;
	size_t head;

	table_row_head(&edge);
	head = edge.len;
	table_row_tail(&edge);
	if (pr_pg_copy_in_begin(pg, sql, err) == 0 && pr_pg_copy_in_put(pg, edge.s, head, err) == 0 &&
		pr_pg_copy_in_put(pg, b->rows.bytes.s, b->rows.bytes.len, err) == 0 &&
		pr_pg_copy_in_put(pg, edge.s + head, edge.len - head, err) == 0)
		res = pr_pg_copy_in_end(pg, err);
	pr_buf_free(&edge);
	PQclear(res);
	return res ? 0 : -1;
}

/* One query: what comes before it in the transaction stays when it fails. merge NULL: straight into the
 * table.
 */
static int bring(struct pr_pg *pg, const struct table_sql *t, const struct batch *b, const char *merge,
	struct pr_err *err)
{
	char *sql = merge ? pr_asprintf("SAVEPOINT sink; DELETE FROM pg_temp.sink_row; %s; %sRELEASE sink",
				    t->copy_aside, merge)
			  : pr_asprintf("SAVEPOINT sink; %s; RELEASE sink", t->copy);
	int rc = copy_rows(pg, b, sql, err);

	free(sql);
	if (rc < 0 && pr_pg_ok(pg) && pr_pg_run(pg, "ROLLBACK TO sink", 0, NULL, NULL) < 0)
		return -1;
	return rc;
}

static int is_code(const struct pr_err *err, const char *code)
{
	return strcmp(err->code, code) == 0;
}

static void split_at(struct sink_cut *cut, int64_t offset)
{
	cut->said = SINK_SPLIT;
	cut->split_at = offset;
}

/* Its content: halves, or a dead letter. */
static void refused(struct sink_cut *cut, const char *code, const char *text)
{
	const struct batch *b = cut->batch;

	if (b->rows.n > 1) {
		split_at(cut, b->rows.record[b->rows.n / 2].offset);
		return;
	}
	cut->said = SINK_REFUSED;
	(void)snprintf(cut->code, sizeof(cut->code), "%s", code);
	outcome_text(cut->answer, sizeof(cut->answer), text);
}

/* Alone, whatever is beside it. */
static void refuse_misfit(struct sink_cut *cut)
{
	const struct batch *b = cut->batch;

	if (b->rows.n > 1 && b->rows.record[0].offset == b->misfit)
		split_at(cut, b->rows.record[1].offset);
	else if (b->rows.n > 1)
		split_at(cut, b->misfit);
	else
		refused(cut, b->misfit_code,
			*b->misfit_code == 'k'
				? "the record has no key, which says what row it is about"
				: "handler.fields is about a payload that it cannot look into: what the row "
				  "came to be is not known");
}

/* Two lanes began the same key at the same time: the next time one of them sees the other's row. */
static int is_meeting(const struct writer *w, const struct sink_cut *cut, const struct pr_err *err)
{
	return w->sql.mode != PR_SINK_APPEND && (is_code(err, "23505") || is_code(err, "23514")) &&
	       cut->tries < TRIES;
}

/* -1: about the database, and not about this cut. */
static int failed(struct writer *w, struct sink_cut *cut, struct pr_pg *pg, const struct pr_err *err)
{
	if (!pr_pg_ok(pg))
		return -1;
	cut->tries++;
	if (is_meeting(w, cut, err)) {
		cut->said = SINK_AGAIN;
		cut->again_us = pr_mono_us() + AGAIN_US;
		cut->why = *err;
		return 0;
	}
	if (err->kind == PR_STOP)
		w->made = 0; /* it is not what it was */
	if (err->kind != PR_REJECT)
		return -1;
	refused(cut, err->code, err->text);
	return 0;
}

static int bring_cut(struct sink_lane *sl, struct sink_cut *cut, struct pr_err *err)
{
	struct writer *w = sl->target;
	struct pr_pg *pg = session(sl);
	const struct batch *b = cut->batch;
	int rc;

	cut->said = SINK_PUBLISHED;
	if (!b || b->rows.n == 0)
		return 0;
	if (b->misfit != NONE) {
		refuse_misfit(cut);
		return 0;
	}
	if (memcmp(b->sends, w->sql.sends, sizeof(b->sends)) != 0) {
		cut->said = SINK_REREAD; /* the table has other columns now */
		return 0;
	}
	rc = bring(pg, &w->sql, b, w->sql.copy ? NULL : w->sql.merge, err);
	if (rc < 0 && (w->sql.copy || w->sql.merge_again) && is_code(err, "23505") && pr_pg_ok(pg))
		rc = bring(pg, &w->sql, b, w->sql.merge_again ? w->sql.merge_again : w->sql.merge, err);
	if (rc < 0)
		return failed(w, cut, pg, err);
	(void)snprintf(cut->answer, sizeof(cut->answer), "%zu records", b->rows.n); /* what was there stays */
	return 0;
}

/* ---------------------------------------------------------------- partitions that are added */

/* One of a topic that we had for a while already: keys that were in other partitions may be in this one from
 * now on, and order holds within a partition. Told once, for nobody can tell which keys these are. */
static void table_taken_over(struct sink_part *sp)
{
	static const char sql[] = "SELECT FROM sink.cut WHERE group_name = $1 AND topic = $2 AND recorded_at "
				  "< pg_catalog.now() - interval '10 minutes' LIMIT 1";
	const struct sink_lane *sl = sp->lane;
	const char *const params[] = { sl->l->c->conf->group, sp->part->topic };
	PGresult *res;

	if (sp->part->epoch > 1 || sl->conf->table.mode == PR_SINK_APPEND ||
		sl->conf->table.tombstones == PR_SINK_KEEP_ROW)
		return;
	res = pr_pg_exec(sl->l->pg, sql, 2, params, NULL);
	if (res && PQntuples(res) > 0)
		pr_log(PR_WARN, "a partition was added: keys that are in two of them may be out of order",
			KS("topic", sp->part->topic), KI("partition", sp->part->partition),
			KS("hint", "see handler.table.tombstones"));
	PQclear(res);
}

/* ---------------------------------------------------------------- the consumer's database */

static int table_publish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	struct writer *w = sl->target;

	if ((!w->made || w->on != session(sl)) && make(sl, err) < 0)
		return -1;
	for (size_t i = 0; i < n; i++)
		if (bring_cut(sl, cuts[i], err) < 0)
			return -1;
	return 0;
}

/* ---------------------------------------------------------------- another database */

static void put_number(char text[24], int64_t v)
{
	(void)snprintf(text, 24, "%" PRId64, v);
}

/* Moves the position there from cut->first or before to cut->next; 1: done. 0: it stands further, at
 * *ret_next. */
static int away_advance(
	struct sink_lane *sl, const struct sink_cut *cut, int64_t *ret_next, struct pr_err *err)
{
	static const char sql[] =
		"WITH moved AS (INSERT INTO sink_rows.position AS p (\"group\", topic, partition, "
		"next_offset) "
		"VALUES ($1, $2, $3::integer, $5::bigint) ON CONFLICT (\"group\", topic, partition) DO "
		"UPDATE SET "
		"next_offset = excluded.next_offset, updated_at = pg_catalog.clock_timestamp() "
		"WHERE p.next_offset <= $4::bigint RETURNING -1::bigint AS next_offset) "
		"SELECT next_offset FROM moved UNION ALL SELECT p.next_offset FROM sink_rows.position AS p "
		"WHERE NOT EXISTS (SELECT FROM moved) AND p.\"group\" = $1 AND p.topic = $2 AND p.partition "
		"= $3::integer";
	char partition[24], first[24], next[24];
	const char *const params[] = { sl->l->c->conf->group, cut->part->part->topic, partition, first,
		next };
	PGresult *res;
	int rows;

	put_number(partition, cut->part->part->partition);
	put_number(first, cut->first);
	put_number(next, cut->next);
	res = pr_pg_exec(session(sl), sql, 5, params, err);
	if (!res)
		return -1;
	rows = PQntuples(res);
	*ret_next = rows == 1 ? strtoll(PQgetvalue(res, 0, 0), NULL, 10) : 0;
	PQclear(res);
	if (rows != 1) /* somebody made or moved it while we looked */
		return pr_fail(err, PR_RETRY, "the position of %s is being moved by another member",
			cut->part->part->topic);
	return *ret_next < 0;
}

static int away_in(struct sink_lane *sl, struct sink_cut *cut, struct pr_err *err)
{
	int64_t next = 0;
	int moved = away_advance(sl, cut, &next, err);

	if (moved < 0)
		return -1;
	if (moved)
		return bring_cut(sl, cut, err);
	cut->said = SINK_PUBLISHED;
	if (next < cut->next)
		split_at(cut, next); /* its first part is there */
	return 0;
}

static int away_one(struct sink_lane *sl, struct sink_cut *cut, struct pr_err *err)
{
	struct pr_pg *pg = session(sl);
	int rc;

	if (pr_pg_run(pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	rc = away_in(sl, cut, err);
	if (rc == 0 && cut->said == SINK_PUBLISHED) {
		/* If we die here, nothing of it is there: the recorded cut is brought in again. */
		FAULT(sink_rows_before_commit);
		rc = pr_pg_run(pg, "COMMIT", 0, NULL, err);
		/* If we die here, rows and their position are there, and the consumer's position is behind:
		 * the recorded cut is brought in again, and found to be there. */
		FAULT(sink_rows_committed_before_position);
		return rc;
	}
	if (pr_pg_ok(pg) && pr_pg_run(pg, "ROLLBACK", 0, NULL, NULL) < 0)
		return rc < 0 ? rc : pr_fail(err, PR_RETRY, "the table's database does not take ROLLBACK");
	return rc;
}

static int away_publish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	int rc = away_connect(sl, err);

	for (size_t i = 0; i < n && rc == 0; i++)
		rc = away_one(sl, cuts[i], err);
	return rc;
}

const struct sink_target_ops sink_table = { .name = "table",
	.one_transaction = 1,
	.open = table_open,
	.close = table_close,
	.put = table_put,
	.seal = sink_batch_seal,
	.publish = table_publish,
	.taken_over = table_taken_over,
	.split = table_split,
	.forget = sink_batch_forget,
	.forget_cut = sink_batch_forget_cut };

const struct sink_target_ops sink_table_away = { .name = "table",
	.open = away_open,
	.close = table_close,
	.put = table_put,
	.seal = sink_batch_seal,
	.publish = away_publish,
	.taken_over = table_taken_over,
	.split = table_split,
	.forget = sink_batch_forget,
	.forget_cut = sink_batch_forget_cut };
