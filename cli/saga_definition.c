/* cli/saga_definition.c -- a definition by its file, or by name from the engine's database, where the text of
 * every version is kept. Changes nothing. */
#include "cli/saga_definition.h"

#include <stdlib.h>
#include <string.h>

#define NAME_SET "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

/* NAME or NAME:VERSION; *ret_name is malloc'd, *ret_version borrowed, NULL: the newest. 0: it is a file. */
static int is_name(const char *operand, char **ret_name, const char **ret_version)
{
	size_t n = strspn(operand, NAME_SET), digits;

	*ret_version = NULL;
	if (n == 0 || (operand[n] && operand[n] != ':'))
		return 0;
	if (operand[n] == ':') {
		digits = strspn(operand + n + 1, "0123456789");
		if (digits == 0 || digits > 7 || operand[n + 1 + digits])
			return 0;
		*ret_version = operand + n + 1;
	}
	*ret_name = pr_asprintf("%.*s", (int)n, operand);
	return 1;
}

static int not_found(const char *operand, struct pr_err *err)
{
	(void)pr_fail(err, PR_REJECT, "no definition \"%.80s\" is registered in this database", operand);
	(void)pr_hint(err,
		"the engine registers its definitions when it starts; a file is named with its path, "
		"like ./%.60s.cfg",
		operand);
	err->exit = PR_EX_NOT_FOUND;
	return -1;
}

static PGresult *text_of(struct cli *c, const char *name, const char *version, struct pr_err *err)
{
	const char *params[2] = { name, version };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;

	if (cli_connect(c, &pg, err) == 0)
		res = pr_pg_exec(pg,
			"SELECT text FROM saga.definition WHERE name = $1 AND ($2::integer IS NULL OR "
			"version = $2::integer) "
			"ORDER BY version DESC LIMIT 1",
			2, params, err);
	if (!res && strcmp(err->code, "42P01") == 0)
		(void)pr_hint(err, "postrider init installs schema saga in the engine's database");
	pr_pg_close(pg);
	return res;
}

int cli_saga_definition(struct cli *c, const char *operand, struct saga_def **ret, struct pr_err *err)
{
	const char *version, *text;
	char *name = NULL;
	PGresult *res;
	int rc = -1;

	if (!is_name(operand, &name, &version))
		return saga_def_load(operand, ret, err);
	res = text_of(c, name, version, err);
	text = res && PQntuples(res) > 0 ? cli_cell(res, 0, 0) : NULL;
	if (text)
		rc = saga_def_parse(operand, text, strlen(text), ret, err);
	else if (res)
		rc = not_found(operand, err);
	PQclear(res);
	free(name);
	return rc;
}
