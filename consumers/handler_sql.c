/* consumers/handler_sql.c -- a function in the database: f(inbox.message) for each, or f(inbox.message[])
 * once a batch. Refuses what could end the lane's transaction: procedures. */
#include "consumers/handler.h"

#include "lib/rights.h"

#include <stdlib.h>
#include <string.h>

struct handler {
	char *statement[2]; /* by enum op; undo NULL: none */
};

/* The login may not look into the schema, or not call the function: what to grant. */
static int no_right(struct pr_pg *pg, const char *object, const char *grant, struct pr_err *err)
{
	const char *login = PQuser(pr_pg_conn(pg));
	char to[140];

	(void)pr_fail(err, PR_STOP, "\"%s\" may not call %s", login, object);
	(void)pr_hint(err, "GRANT %s %s TO %s", grant, object,
		pr_quote_ident(login, strlen(login), to, sizeof(to)));
	(void)snprintf(err->code, sizeof(err->code), "42501");
	err->exit = PR_EX_NOPERM;
	return -1;
}

/* The one function of that name. NULL: there is none, or two, or we may not look. */
static PGresult *look_up(struct pr_pg *pg, const char *function, struct pr_err *err)
{
	static const char sql[] =
		"SELECT p.oid::pg_catalog.regproc, t.typname = '_message', p.prokind::text,"
		" pg_catalog.has_function_privilege(p.oid, 'EXECUTE'), p.oid::pg_catalog.regprocedure"
		" FROM pg_catalog.pg_proc AS p"
		" JOIN pg_catalog.pg_type AS t ON t.oid = p.proargtypes[0]"
		" JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace"
		" WHERE p.oid IN (pg_catalog.to_regprocedure($1 || '(inbox.message[])')::pg_catalog.oid,"
		"  pg_catalog.to_regprocedure($1 || '(inbox.message)')::pg_catalog.oid) AND n.nspname = "
		"'inbox'";
	PGresult *res = pr_pg_exec(pg, sql, 1, (const char *const[]){ function }, err);
	int n = res ? PQntuples(res) : 0;
	char mend[300];

	if (n == 1)
		return res;
	if (!res) {
		pr_rights_hint(err->code, err->text, PQuser(pr_pg_conn(pg)), mend, sizeof(mend));
		if (*mend)
			(void)pr_hint(err, "%s", mend);
		return NULL;
	}
	PQclear(res);
	(void)pr_fail(err, PR_STOP,
		n == 0 ? "there is no function %s(inbox.message) or %s(inbox.message[])"
		       : "both %s(inbox.message) and %s(inbox.message[]) are there",
		function, function);
	(void)pr_hint(err, n == 0 ? "create it, or correct handler.function; it is looked up as schema.name"
				  : "drop one of them, or give them different names");
	err->exit = PR_EX_CONFIG;
	return NULL;
}

/* schema.name as the user wrote it, found and quoted by the server. The row function sees the trace of its
 * message, so that what it publishes carries it on. */
static int make_statement(struct pr_pg *pg, const char *function, char **ret, struct pr_err *err)
{
	PGresult *res = look_up(pg, function, err);
	int rc = -1;

	if (!res)
		return -1;
	if (PQgetvalue(res, 0, 2)[0] != 'f') {
		(void)pr_fail(err, PR_STOP, "%s is not a plain function", function);
		(void)pr_hint(err, "a procedure could commit: write CREATE FUNCTION ... RETURNS void");
		err->exit = PR_EX_CONFIG;
	} else if (PQgetvalue(res, 0, 3)[0] != 't') {
		(void)no_right(pg, PQgetvalue(res, 0, 4), "EXECUTE ON FUNCTION", err);
	} else if (PQgetvalue(res, 0, 1)[0] == 't') {
		*ret = pr_asprintf("SELECT %s($1::inbox.message[])", PQgetvalue(res, 0, 0));
		rc = 0;
	} else {
		*ret = pr_asprintf("SELECT inbox.carry(m), %s(m) FROM pg_catalog.unnest($1) AS m",
			PQgetvalue(res, 0, 0));
		rc = 0;
	}
	PQclear(res);
	return rc;
}

static void sql_close(struct handler *h)
{
	if (!h)
		return;
	free(h->statement[OP_DO]);
	free(h->statement[OP_UNDO]);
	free(h);
}

static int sql_open(const struct handler_env *env, struct pr_pg *pg, struct handler **ret, struct pr_err *err)
{
	struct handler *h = pr_calloc(1, sizeof(*h));

	if (make_statement(pg, env->conf->handler.function, &h->statement[OP_DO], err) < 0 ||
		(env->conf->handler.undo_function && make_statement(pg, env->conf->handler.undo_function,
							     &h->statement[OP_UNDO], err) < 0)) {
		sql_close(h);
		return -1;
	}
	*ret = h;
	return 0;
}

static const char *sql_statement(const struct handler *h, enum op op)
{
	return h->statement[op];
}

const struct handler_ops handler_sql = {
	.kind = "sql", .in_transaction = 1, .open = sql_open, .close = sql_close, .statement = sql_statement
};
