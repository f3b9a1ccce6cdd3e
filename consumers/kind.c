/* consumers/kind.c -- the schema of a handler kind that has one of its own: installed where that kind runs
 * and nowhere else, as the services do theirs, so that `postrider init` gives no database timers that it has
 * no use for. Refuses a schema of the same name that somebody else made. */
#include "consumers/kind.h"

#include "lib/clock.h"
#include "lib/log.h"
#include "sql.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

#define STEP_US (60 * PR_SEC)
#define MARK    "made by postrider-consumer, sha256 "

static struct {
	pthread_mutex_t mutex;
	int done;
} schema_of = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static void mark_of(const char *text, char mark[120])
{
	unsigned char sum[SHA256_DIGEST_LENGTH];
	size_t n = strlen(MARK);

	(void)SHA256((const unsigned char *)text, strlen(text), sum);
	memcpy(mark, MARK, n);
	for (size_t i = 0; i < sizeof(sum); i++)
		(void)snprintf(mark + n + 2 * i, 3, "%02x", sum[i]);
}

/* The schema's comment: 1 it is this text's, 0 it is another one's or there is no schema. */
static int has(struct pr_pg *pg, const char *schema, const char *mark, struct pr_err *err)
{
	static const char sql[] = "SELECT pg_catalog.obj_description(n.oid, 'pg_namespace') "
				  "FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1";
	PGresult *res = pr_pg_exec(pg, sql, 1, (const char *const[]){ schema }, err);
	int rc = 0;

	if (!res)
		return -1;
	if (PQntuples(res) == 1 && strncmp(PQgetvalue(res, 0, 0), MARK, strlen(MARK)) != 0) {
		(void)pr_fail(
			err, PR_STOP, "the schema \"%s\" is not ours: its comment does not say so", schema);
		(void)pr_hint(
			err, "rename it (ALTER SCHEMA %s RENAME TO ...) or use another database", schema);
		err->exit = PR_EX_CONFIG;
		rc = -1;
	} else if (PQntuples(res) == 1) {
		rc = strcmp(PQgetvalue(res, 0, 0), mark) == 0;
	}
	PQclear(res);
	return rc;
}

static int run(struct pr_pg *pg, const char *schema, const char *text, const char *mark, struct pr_err *err)
{
	char comment[300];

	(void)snprintf(comment, sizeof(comment), "COMMENT ON SCHEMA %s IS '%s'", schema, mark);
	pr_pg_timeout(pg, STEP_US);
	if (pr_pg_run(pg, text, 0, NULL, err) == 0 && pr_pg_run(pg, comment, 0, NULL, err) == 0)
		return 0;
	if (strcmp(err->code, "42501") == 0) {
		(void)pr_hint(err,
			"the login that installs it owns schema %s, or may create it (GRANT CREATE ON "
			"DATABASE)",
			schema);
		err->kind = PR_STOP;
		err->exit = PR_EX_CONFIG;
	}
	return pr_wrap(err, "schema %s", schema);
}

static int bring(struct pr_pg *pg, const char *schema, const char *text, const char *mark, struct pr_err *err)
{
	int there, rc = -1;

	if (pr_pg_run(pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	pr_pg_timeout(pg, STEP_US);
	if (pr_pg_run(pg, sql_schema_lock, 0, NULL, err) == 0) {
		there = has(pg, schema, mark, err); /* another member may have been first */
		rc = there == 0 ? run(pg, schema, text, mark, err) : there < 0 ? -1 : 0;
	}
	if (rc == 0)
		return pr_pg_run(pg, "COMMIT", 0, NULL, err);
	if (pr_pg_ok(pg) && pr_pg_run(pg, "ROLLBACK", 0, NULL, NULL) < 0)
		return -1;
	return -1;
}

static int refuse_old(const char *schema, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "the schema \"%s\" is not what this program knows", schema);
	(void)pr_hint(err, "handler.install is false: start once with -o handler.install=true as its owner");
	err->exit = PR_EX_CONFIG;
	return -1;
}

int kind_schema(const struct pr_consumer_conf *conf, struct pr_pg *pg, const char *schema, const char *text,
	struct pr_err *err)
{
	char mark[120];
	int rc = 0;

	mark_of(text, mark);
	(void)pthread_mutex_lock(&schema_of.mutex);
	if (!schema_of.done) {
		rc = has(pg, schema, mark, err);
		if (rc == 0)
			rc = conf->handler.install ? bring(pg, schema, text, mark, err)
						   : refuse_old(schema, err);
		schema_of.done = rc >= 0;
	}
	(void)pthread_mutex_unlock(&schema_of.mutex);
	return rc < 0 ? -1 : 0;
}
