/* cli/position.c -- `postrider position`: reads a relay's position and writes another one.
 * Writing is done as a relay would do it: under the outbox's lock, in a Kafka transaction
 * with the relay's own transactional id, so that one that still lives is fenced and stops.
 * Refuses while a relay holds the lock: fencing is for the one we cannot see. */
#include "lib/position.h"

#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/kafka.h"
#include "sql.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What the database says about itself, read in a relay's order: bound, next xid, snapshot, flush. */
struct now {
	char system_id[24];
	int64_t timeline;
	struct pr_mark mark;
	uint64_t lsn;
	int64_t first_seq; /* oldest event still there; 0 none */
	char *relay;       /* name in outbox.relay; NULL when no relay has started here */
};

static void now_release(struct now *n)
{
	pr_mark_release(&n->mark);
	free(n->relay);
}

static int refused(struct pr_err *err)
{
	err->exit = PR_EX_REFUSED;
	return -1;
}

static int read_identity(struct pr_pg *pg, struct now *n, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, "SELECT pg_catalog.pg_is_in_recovery()", 0, NULL, err);
	int standby = res && *PQgetvalue(res, 0, 0) == 't';

	PQclear(res);
	if (!res)
		return -1;
	if (standby) {
		(void)pr_fail(err, PR_REJECT, "this server is a standby");
		(void)pr_hint(err, "name the primary, or add target_session_attrs=read-write");
		return refused(err);
	}
	res = pr_pg_exec(pg, sql_relay_identity, 0, NULL, err);
	if (!res)
		return -1;
	(void)snprintf(n->system_id, sizeof(n->system_id), "%s", PQgetvalue(res, 0, 0));
	n->timeline = cli_cell_int(res, 0, 1);
	if (cli_cell(res, 0, 2))
		n->relay = pr_strdup(cli_cell(res, 0, 2));
	PQclear(res);
	return 0;
}

/* One value of a statement without parameters, malloc'd; NULL on failure. */
static char *ask_value(struct pr_pg *pg, const char *sql, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql, 0, NULL, err);
	const char *s = res ? cli_cell(res, 0, 0) : NULL;
	char *copy = res ? pr_strdup(s ? s : "") : NULL;

	PQclear(res);
	return copy;
}

static int ask_number(struct pr_pg *pg, const char *sql, int64_t *ret, struct pr_err *err)
{
	char *s = ask_value(pg, sql, err);

	if (!s)
		return -1;
	*ret = strtoll(s, NULL, 10);
	free(s);
	return 0;
}

/* Low 32 bits of the next xid, widened by one read a moment later: they are less than 2^31 apart. */
static int read_next_xid(struct pr_pg *pg, uint64_t *ret, struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql_turn_next_xid, 0, NULL, err);
	uint32_t low;
	uint64_t near;

	if (!res)
		return -1;
	low = (uint32_t)cli_cell_int(res, 0, 0) + 3;
	near = strtoull(PQgetvalue(res, 0, 1), NULL, 10);
	*ret = near + (uint64_t)(int64_t)(int32_t)(low - (uint32_t)near);
	PQclear(res);
	return 0;
}

/* The flush makes the sequence's value durable: after a crash it never goes below it. */
static int read_now(struct pr_pg *pg, struct now *n, int flush, struct pr_err *err)
{
	int64_t lsn = 0;

	if (read_identity(pg, n, err) < 0 || ask_number(pg, sql_turn_bound, &n->mark.l, err) < 0 ||
		read_next_xid(pg, &n->mark.n, err) < 0)
		return -1;
	n->mark.snapshot = ask_value(pg, sql_turn_snapshot, err);
	if (!n->mark.snapshot)
		return -1;
	if (flush && (pr_pg_run(pg, "SET synchronous_commit = local", 0, NULL, err) < 0 ||
			     pr_pg_run(pg, sql_turn_force_flush, 0, NULL, err) < 0))
		return -1;
	if (ask_number(pg, sql_turn_flushed, &lsn, err) < 0 ||
		ask_number(pg, "SELECT coalesce(min(seq), 0) FROM outbox.event", &n->first_seq, err) < 0)
		return -1;
	n->lsn = (uint64_t)lsn;
	return 0;
}

static int kafka_ms(const struct cli *c)
{
	return (int)(cli_timeout(c) / PR_MS);
}

static int check_topic(struct cli *c, struct pr_err *err)
{
	rd_kafka_t *rk = cli_kafka(c, RD_KAFKA_PRODUCER, NULL, err);
	int rc;

	if (!rk)
		return -1;
	rc = pr_position_topic_check(rk, cli_name(c), kafka_ms(c), err);
	rd_kafka_destroy(rk);
	return rc;
}

/* ---- show ---- */

static uint64_t snapshot_xmax(const char *snapshot)
{
	const char *colon = snapshot ? strchr(snapshot, ':') : NULL;

	return colon ? strtoull(colon + 1, NULL, 10) : 0;
}

/* Why a relay would refuse this database; 0 when it would not. */
static int mismatch(const struct pr_position *p, const struct now *n, char *why, size_t size)
{
	const struct pr_mark *newest = p->to.snapshot ? &p->to : &p->from;
	uint64_t seen = snapshot_xmax(newest->snapshot);
	int64_t last = newest->l > p->top ? newest->l : p->top;

	if (strcmp(p->system_id, n->system_id) != 0)
		(void)snprintf(why, size,
			"it is of another database: its system identifier is %s, this one's is %s",
			p->system_id, n->system_id);
	else if (p->timeline != n->timeline)
		(void)snprintf(why, size,
			"it is of timeline %lld, this database is on %lld: a restore or failover",
			(long long)p->timeline, (long long)n->timeline);
	else if (last > n->mark.l || p->lsn > n->lsn || seen > n->mark.n)
		(void)snprintf(why, size,
			"it is ahead of this database (event %lld, the database's last is %lld): an older "
			"copy",
			(long long)last, (long long)n->mark.l);
	else
		return 0;
	return 1;
}

static void add_raw(cJSON *o, const char *name, char *json)
{
	if (json)
		(void)cJSON_AddRawToObject(o, name, json);
	else
		(void)cJSON_AddNullToObject(o, name);
	free(json);
}

static cJSON *now_json(const struct now *n)
{
	cJSON *o = cJSON_CreateObject();
	char *xid = pr_asprintf("%" PRIu64, n->mark.n), *lsn = pr_asprintf("%" PRIu64, n->lsn);

	(void)cJSON_AddStringToObject(o, "system_id", n->system_id);
	cli_json_int(o, "timeline", n->timeline);
	cli_json_int(o, "last_seq", n->mark.l);
	add_raw(o, "next_xid", xid);
	add_raw(o, "lsn", lsn);
	return o;
}

static void show_json(
	const struct cli *c, const struct pr_position *p, int found, const char *why, const struct now *n)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "name", cli_name(c));
	(void)cJSON_AddBoolToObject(o, "found", found);
	(void)cJSON_AddBoolToObject(o, "matches", found && !*why);
	(void)cJSON_AddItemToObject(o, "problem", *why ? cJSON_CreateString(why) : cJSON_CreateNull());
	(void)cJSON_AddItemToObject(o, "database", now_json(n));
	add_raw(o, "position", found ? pr_position_encode(p) : NULL);
	cli_json_free_line(o);
}

static char *lsn_str(uint64_t lsn, char *buf)
{
	(void)snprintf(buf, 24, "%" PRIX64 "/%" PRIX64, lsn >> 32, lsn & 0xffffffff);
	return buf;
}

/* The record is untrusted: its text is made safe. */
static void show_text(const struct cli *c, const struct pr_position *p, const char *why, const struct now *n)
{
	char *system = cli_safe_str(p->system_id);
	char a[32], b[32];

	(void)printf("%s%s%s  %s%s%s", cli_on(stdout, CLI_BOLD), cli_name(c), cli_off(stdout),
		cli_on(stdout, *why ? CLI_RED : CLI_GREEN), *why ? "does not match" : "matches this database",
		cli_off(stdout));
	cli_text(stdout, why, (int)strlen(cli_name(c)) + 16, (int)strlen(cli_name(c)) + 18);
	(void)printf("\n             position                  database\n");
	(void)printf("  system     %-24s  %s\n", system, n->system_id);
	(void)printf("  timeline   %-24lld  %lld\n", (long long)p->timeline, (long long)n->timeline);
	(void)printf("  event      %-24s  %s\n", cli_count(p->top, a), cli_count(n->mark.l, b));
	(void)printf("  WAL        %-24s  %s\n", lsn_str(p->lsn, a), lsn_str(n->lsn, b));
	if (p->to.snapshot)
		(void)printf("  batch      read to event %s\n", cli_count(p->seq, a));
	(void)printf(
		"  snapshot   %s\n", p->from.snapshot ? p->from.snapshot : "none: from the first event on");
	free(system);
}

static int nothing_found(const struct cli *c, const struct now *n)
{
	char *topic = pr_position_topic(cli_name(c));

	cli_say("topic %s holds no position", topic);
	if (n->relay)
		cli_hint("relay \"%s\" has run here, so one was written: the topic was lost or made "
			 "anew. "
			 "`postrider position adopt --help` says how to go on",
			n->relay);
	else
		cli_hint("no relay has run on this outbox yet: its first start writes one");
	free(topic);
	return PR_EX_NOT_FOUND;
}

int verb_position_show(struct cli *c)
{
	struct pr_position p = { 0 };
	struct now n = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	char why[300] = "";
	int found = 0, rc;

	/* The position first: what is read later is never behind it. */
	if (cli_need_kafka(c, &err) < 0 || check_topic(c, &err) < 0 ||
		pr_position_read(
			cli_brokers(c), cli_properties(c), cli_name(c), kafka_ms(c), &p, &found, &err) < 0 ||
		cli_connect_outbox(c, &pg, &err) < 0 || read_now(pg, &n, 0, &err) < 0) {
		rc = cli_failed(c, &err);
		goto out;
	}
	rc = !found ? PR_EX_NOT_FOUND : mismatch(&p, &n, why, sizeof(why)) ? PR_EX_UNHEALTHY : PR_EX_OK;
	if (cli_has(c, "json"))
		show_json(c, &p, found, why, &n);
	else if (found)
		show_text(c, &p, why, &n);
	if (!found)
		(void)nothing_found(c, &n);
	else if (*why)
		cli_hint("if this is the right database, `postrider position adopt --help` says how to "
			 "go on");
out:
	pr_pg_close(pg);
	pr_position_release(&p);
	now_release(&n);
	return rc;
}

/* Not found, though a relay has run here: that is a problem too. */
int cli_position_judge(
	struct cli *c, struct pr_pg *pg, int *ret_found, char *why, size_t size, struct pr_err *err)
{
	struct pr_position p = { 0 };
	struct now n = { 0 };
	int rc = -1;

	*why = '\0';
	if (pr_position_read(
		    cli_brokers(c), cli_properties(c), cli_name(c), kafka_ms(c), &p, ret_found, err) == 0 &&
		read_now(pg, &n, 0, err) == 0)
		rc = 0;
	if (rc == 0 && *ret_found)
		(void)mismatch(&p, &n, why, size);
	else if (rc == 0 && n.relay)
		(void)snprintf(
			why, size, "the topic holds no position, though relay \"%s\" has run here", n.relay);
	pr_position_release(&p);
	now_release(&n);
	return rc;
}

/* ---- set, adopt ---- */

/* Held until the connection closes. Tells who has it. */
static int lock(struct pr_pg *pg, struct pr_err *err)
{
	char *got = ask_value(pg, sql_relay_lock, err), *who;

	if (!got)
		return -1;
	if (*got == 't') {
		free(got);
		return 0;
	}
	free(got);
	who = ask_value(pg,
		"SELECT coalesce((SELECT format('process %s, \"%s\"%s', a.pid, a.application_name, "
		"coalesce(' from ' || host(a.client_addr), '')) FROM pg_catalog.pg_locks AS l "
		"JOIN pg_catalog.pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND "
		"l.granted "
		"AND l.classid = 1347375956 AND l.objid = 1 AND l.objsubid = 2 AND a.datname = "
		"current_database() "
		"LIMIT 1), 'somebody')",
		err);
	(void)pr_fail(err, PR_REJECT, "a relay holds this outbox: %s", who ? who : "somebody");
	(void)pr_hint(err, "stop it first, and the standby relays too");
	free(who);
	return refused(err);
}

static rd_kafka_t *producer(struct cli *c, struct pr_err *err)
{
	char *id = pr_asprintf("postrider.%s", cli_name(c));
	const struct pr_kafka_prop ours[] = { { "transactional.id", id }, { "enable.idempotence", "true" },
		{ NULL, NULL } };
	rd_kafka_t *rk = cli_kafka(c, RD_KAFKA_PRODUCER, ours, err);

	free(id);
	return rk;
}

/* A commit whose answer was lost may be called again; the deadline bounds it. */
static int commit(rd_kafka_t *rk, int64_t deadline, struct pr_err *err)
{
	for (;;) {
		rd_kafka_error_t *e = rd_kafka_commit_transaction(rk, pr_until_ms(deadline));
		int again = e && rd_kafka_error_is_retriable(e) && pr_mono_us() < deadline;

		if (!again)
			return pr_kafka_take(e, err, "committing the position");
		rd_kafka_error_destroy(e);
	}
}

static int produce(struct cli *c, const char *record, struct pr_err *err)
{
	char *topic = pr_position_topic(cli_name(c));
	int64_t deadline = pr_mono_us() + cli_timeout(c);
	rd_kafka_t *rk = producer(c, err);
	rd_kafka_resp_err_t code;
	int rc = -1;

	if (!rk)
		goto out;
	if (pr_kafka_take(rd_kafka_init_transactions(rk, kafka_ms(c)), err, "fencing the relay") < 0 ||
		pr_kafka_take(rd_kafka_begin_transaction(rk), err, "beginning the transaction") < 0)
		goto out;
	code = rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(0),
		RD_KAFKA_V_KEY(cli_name(c), strlen(cli_name(c))),
		RD_KAFKA_V_VALUE((void *)(uintptr_t)record, strlen(record)),
		RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
	if (code)
		(void)pr_fail(err, pr_kafka_kind(code), "writing the position: %s", rd_kafka_err2str(code));
	else
		rc = commit(rk, deadline, err);
out:
	if (rk)
		rd_kafka_destroy(rk);
	free(topic);
	return rc;
}

/* outbox.relay says that a position exists and, for people, how far it is. */
static int record_relay(
	struct pr_pg *pg, const struct cli *c, const struct pr_position *p, struct pr_err *err)
{
	char timeline[24], seq[24];
	const char *params[3] = { cli_name(c), p->system_id, timeline }, *published[1] = { seq };

	(void)snprintf(timeline, sizeof(timeline), "%lld", (long long)p->timeline);
	(void)snprintf(seq, sizeof(seq), "%lld", (long long)p->top);
	if (pr_pg_run(pg, sql_relay_first_start, 3, params, err) < 0 ||
		pr_pg_run(pg, "UPDATE outbox.relay SET published_seq = $1::bigint", 1, published, err) < 0)
		return pr_wrap(err, "the position is written, but outbox.relay is not");
	return 0;
}

static void written(const struct cli *c, const struct pr_position *p, int done, const char *what)
{
	char *record = pr_position_encode(p);
	cJSON *o;

	if (cli_has(c, "json")) {
		o = cJSON_CreateObject();
		(void)cJSON_AddStringToObject(o, "name", cli_name(c));
		(void)cJSON_AddBoolToObject(o, "written", done);
		(void)cJSON_AddRawToObject(o, "position", record);
		cli_json_free_line(o);
	} else {
		(void)printf("%s\n", record);
		cli_say(done ? "written: a relay started now will %s" : "nothing was done: this would %s",
			what);
	}
	free(record);
}

/* position and what it means are decided by the caller's fill(). */
static int change(struct cli *c, int (*fill)(const struct cli *c, struct now *n, struct pr_position *p,
					 char *what, size_t size, struct pr_err *err))
{
	struct pr_position p = { 0 };
	struct now n = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	char what[300] = "", *record = NULL;
	int rc, dry = cli_has(c, "dry-run");

	if (cli_need_kafka(c, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0 ||
		(!dry && lock(pg, &err) < 0) || read_now(pg, &n, !dry, &err) < 0 ||
		fill(c, &n, &p, what, sizeof(what), &err) < 0 ||
		(!dry && cli_confirmed(c, &err, "%s", what) < 0) || check_topic(c, &err) < 0) {
		rc = cli_failed(c, &err);
		goto out;
	}
	record = pr_position_encode(&p);
	if (!dry && (produce(c, record, &err) < 0 || record_relay(pg, c, &p, &err) < 0)) {
		rc = cli_fail(&err);
		goto out;
	}
	written(c, &p, !dry, what);
	rc = PR_EX_OK;
out:
	free(record);
	pr_pg_close(pg);
	pr_position_release(&p);
	now_release(&n);
	return rc;
}

static void identify(const struct now *n, struct pr_position *p)
{
	memcpy(p->system_id, n->system_id, sizeof(p->system_id));
	p->timeline = n->timeline;
	p->lsn = n->lsn;
}

static void fill_now(const struct now *n, struct pr_position *p, char *what, size_t size)
{
	identify(n, p);
	pr_mark_copy(&p->from, &n->mark);
	p->top = n->mark.l;
	(void)snprintf(what, size, "count everything committed so far, through event %lld, as published",
		(long long)n->mark.l);
}

/* Inside a batch from nothing to now, whose events below `seq` are done. */
static void fill_from(const struct now *n, int64_t seq, struct pr_position *p, char *what, size_t size)
{
	identify(n, p);
	pr_mark_copy(&p->to, &n->mark);
	p->seq = p->top = seq - 1;
	(void)snprintf(what, size, "publish again from event %lld on (the last is %lld)", (long long)seq,
		(long long)n->mark.l);
}

static int fill_given(const char *text, const struct now *n, struct pr_position *p, char *what, size_t size,
	struct pr_err *err)
{
	char why[300];

	if (pr_position_decode(text, strlen(text), p, err) < 0) {
		err->exit = PR_EX_USAGE;
		return -1;
	}
	if (mismatch(p, n, why, sizeof(why))) {
		(void)pr_fail(err, PR_REJECT, "no relay would take this position: %s", why);
		return refused(err);
	}
	(void)snprintf(what, size, "go on from the position given (event %lld)", (long long)p->top);
	return 0;
}

static int fill_set(const struct cli *c, struct now *n, struct pr_position *p, char *what, size_t size,
	struct pr_err *err)
{
	if (c->nargs)
		return fill_given(c->args[0], n, p, what, size, err);
	if (cli_has(c, "now")) {
		fill_now(n, p, what, size);
		return 0;
	}
	identify(n, p);
	(void)snprintf(what, size, "publish again every event the database has, from event %lld on",
		(long long)n->first_seq);
	return 0;
}

static int fill_adopt(const struct cli *c, struct now *n, struct pr_position *p, char *what, size_t size,
	struct pr_err *err)
{
	int64_t seq = cli_int(c, "from-seq", 0);

	if (!cli_has(c, "from-seq")) {
		fill_now(n, p, what, size);
		return 0;
	}
	if (seq > n->mark.l + 1) {
		(void)pr_fail(err, PR_REJECT, "there is no event %lld: the last is %lld", (long long)seq,
			(long long)n->mark.l);
		return refused(err);
	}
	fill_from(n, seq, p, what, size);
	return 0;
}

int verb_position_set(struct cli *c)
{
	struct pr_err err = { 0 };

	if (c->nargs + cli_has(c, "earliest") + cli_has(c, "now") == 1)
		return change(c, fill_set);
	(void)cli_usage(&err, "which position? give one of: JSON, --earliest, --now");
	return cli_failed(c, &err);
}

int verb_position_adopt(struct cli *c)
{
	return change(c, fill_adopt);
}
