/* consumers/sink/prune.c -- what bounds the ledger: a cut a second of each partition would be there for good.
 * How ranges were cut, and into which files, is kept for handler.*.keep; then those that touch become one
 * row, which says that they are published and nothing else. The keeper's work, and never the hot path's.
 * Refuses to touch what is not published, the newest range of a partition, and what the position does not
 * stand behind. */
#include "consumers/sink/prune.h"

#include "sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define AT_ONCE "2000" /* rows of one statement, of a partition */

struct pruning {
	char keep[24], after[24];
	int files;
};

/* 1: there are more of them. */
static int step(struct pr_pg *pg, const char *sql, const char *const params[6], struct pr_err *err)
{
	PGresult *res = pr_pg_exec(pg, sql, 6, params, err);
	int64_t n = res ? strtoll(PQgetvalue(res, 0, 0), NULL, 10) : -1;

	PQclear(res);
	return n < 0 ? -1 : n >= strtoll(AT_ONCE, NULL, 10);
}

static int partition(const struct pr_consumer_conf *conf, struct pr_pg *pg, const struct pruning *p,
	const char *topic, const char *number, struct pr_err *err)
{
	const char *files[] = { conf->group, topic, number, p->keep, AT_ONCE, p->after };
	const char *cuts[] = { conf->group, topic, number, p->keep, AT_ONCE, p->files ? "true" : "false" };
	int more = p->files ? step(pg, sql_sink_prune, files, err) : 0, rc;

	rc = more < 0 ? -1 : step(pg, sql_sink_fold, cuts, err);
	return rc < 0 ? -1 : more | rc;
}

int sink_prune(const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err)
{
	enum pr_sink_target target = pr_sink_target_of(&conf->sink);
	int s3 = target == PR_SINK_S3, more = 0, rc = 0;
	struct pruning p = { .files = s3 || target == PR_SINK_FILES };
	PGresult *parts = pr_pg_exec(pg, sql_sink_parts, 1, (const char *const[]){ conf->group }, err);

	if (!parts)
		return -1;
	(void)snprintf(p.keep, sizeof(p.keep), "%" PRId64, pr_sink_cut_of(&conf->sink)->keep_us);
	(void)snprintf(p.after, sizeof(p.after), "%" PRId64,
		!(s3 ? conf->sink.s3.manifest : conf->sink.files.manifest) ? -1
		: s3                                                       ? conf->sink.s3.late.after_us
									   : conf->sink.files.late.after_us);
	for (int i = 0; i < PQntuples(parts) && rc >= 0; i++) {
		rc = partition(conf, pg, &p, PQgetvalue(parts, i, 0), PQgetvalue(parts, i, 1), err);
		more |= rc > 0;
	}
	PQclear(parts);
	return rc < 0 ? -1 : more;
}
