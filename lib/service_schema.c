/* lib/service_schema.c -- brings a service's database to what its program knows: outbox, inbox and saga by
 * their migrations, then the schema service and the service's own texts, each run whole when it has changed.
 * One installer at a time; refuses nothing that the texts themselves do not refuse. */
#include "lib/service_inner.h"

#include "lib/clock.h"
#include "lib/migrate.h"
#include "sql.h"

#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#define STEP_US (60 * PR_SEC)

static void sum_of(const char *text, char hex[65])
{
	unsigned char sum[SHA256_DIGEST_LENGTH];

	(void)SHA256((const unsigned char *)text, strlen(text), sum);
	for (size_t i = 0; i < sizeof(sum); i++)
		(void)sprintf(hex + 2 * i, "%02x", sum[i]);
}

/* Whether this text was run last under its number: 1 or 0. */
static int has(struct pr_pg *pg, const char *number, const char *sum, struct pr_err *err)
{
	const char *const params[] = { number, sum };
	PGresult *res = pr_pg_exec(pg, sql_service_has, 2, params, err);
	int found;

	if (!res)
		return -1;
	found = *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	return found;
}

static int bring(struct pr_pg *pg, int i, const char *text, struct pr_err *err)
{
	char number[12], sum[65];
	const char *const params[] = { number, sum };
	int there;

	sum_of(text, sum);
	(void)snprintf(number, sizeof(number), "%d", i);
	there = has(pg, number, sum, err);
	if (there != 0)
		return there < 0 ? -1 : 0;
	pr_pg_timeout(pg, STEP_US);
	if (pr_pg_run(pg, text, 0, NULL, err) < 0)
		return pr_wrap(err, i ? "the service's schema" : "schema service");
	return pr_pg_run(pg, sql_service_installed, 2, params, err);
}

/* The table that says what was run is part of the first text. */
static int first(struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(pg, "SELECT pg_catalog.to_regclass('service.installed') IS NULL", 0, NULL, err);
	int missing;

	if (!res)
		return -1;
	missing = *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	pr_pg_timeout(pg, STEP_US);
	return missing ? pr_pg_run(pg, sql_service_schema, 0, NULL, err) : 0;
}

static int all(const struct pr_service *service, struct pr_pg *pg, struct pr_err *err)
{
	pr_pg_timeout(pg, STEP_US);
	if (pr_pg_run(pg, sql_schema_lock, 0, NULL, err) < 0 || first(pg, err) < 0 ||
		bring(pg, 0, sql_service_schema, err) < 0)
		return -1;
	for (int i = 0; service->schema && service->schema[i]; i++)
		if (bring(pg, i + 1, service->schema[i], err) < 0)
			return -1;
	return 0;
}

/* One transaction: another version's half is never seen. */
int service_install(const struct pr_service *service, struct pr_pg *pg, struct pr_err *err)
{
	if (!service->conf->install)
		return pr_schema_check(pg, err);
	if (pr_migrate(pg, NULL, err) < 0 || pr_pg_run(pg, "BEGIN", 0, NULL, err) < 0)
		return -1;
	if (all(service, pg, err) == 0)
		return pr_pg_run(pg, "COMMIT", 0, NULL, err);
	if (pr_pg_ok(pg) && pr_pg_run(pg, "ROLLBACK", 0, NULL, NULL) < 0)
		return -1;
	return -1;
}
