/* consumers/saga/book.c -- the definitions this process knows: those of its files, and older versions that
 * instances in flight still follow, from the database. Refuses a file that differs from what the database has
 * under the same version: instances would change their course under way. */
#include "consumers/saga/saga.h"

#include "lib/log.h"
#include "sql.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Definitions are added and never removed: readers hold pointers. */
static struct {
	pthread_mutex_t mutex;
	int open;
	struct saga_def **def;
	size_t n;
	const struct saga_def **newest; /* of the files, one a name */
	size_t newest_n;
} book = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static void add(struct saga_def *def)
{
	book.def = pr_realloc(book.def, (book.n + 1) * sizeof(*book.def));
	book.def[book.n++] = def;
}

static struct saga_def *find(const char *name, size_t n, int version)
{
	for (size_t i = 0; i < book.n; i++)
		if (strlen(book.def[i]->name) == n && memcmp(book.def[i]->name, name, n) == 0 &&
			book.def[i]->version == version)
			return book.def[i];
	return NULL;
}

/* ---------------------------------------------------------------- files */

static void note_newest(const struct saga_def *def)
{
	for (size_t i = 0; i < book.newest_n; i++) {
		if (strcmp(book.newest[i]->name, def->name) != 0)
			continue;
		if (book.newest[i]->version < def->version)
			book.newest[i] = def;
		return;
	}
	book.newest = pr_realloc(book.newest, (book.newest_n + 1) * sizeof(*book.newest));
	book.newest[book.newest_n++] = def;
}

static int load_files(const struct pr_strs *patterns, struct pr_err *err)
{
	struct saga_defs defs;

	if (saga_defs_load(patterns, &defs, err) < 0)
		return -1;
	for (size_t i = 0; i < defs.n; i++) {
		add(defs.v[i]);
		note_newest(defs.v[i]);
	}
	free(defs.v);
	return 0;
}

/* ---------------------------------------------------------------- the database */

static int differs(const struct saga_def *def, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP,
		"saga %s version %d differs from what the database has under that version", def->name,
		def->version);
	(void)pr_hint(err,
		"instances in flight stay on their version: give the changed definition version = %d",
		def->version + 1);
	err->exit = PR_EX_CONFIG;
	return -1;
}

/* For saga.late. */
static void put_slas(const struct saga_def *def, struct pr_buf *b)
{
	pr_buf_puts(b, "[");
	for (size_t i = 0; i < def->step_n; i++)
		pr_buf_printf(b, "%s{\"step\": \"%s\", \"sla\": %" PRId64 "}", i ? ", " : "",
			def->step[i].name, def->step[i].sla_us);
	pr_buf_puts(b, "]");
}

static int tell(const struct saga_def *def, struct pr_pg *pg, struct pr_err *err)
{
	char version[16], hash[67] = "\\x";
	struct pr_buf steps = { 0 };
	PGresult *res;
	int rc = 0;

	(void)snprintf(version, sizeof(version), "%d", def->version);
	for (size_t i = 0; i < sizeof(def->hash); i++)
		(void)snprintf(hash + 2 + 2 * i, 3, "%02x", def->hash[i]);
	put_slas(def, &steps);
	res = pr_pg_exec(pg, sql_engine_register, 6,
		(const char *const[]){
			def->name, version, saga_style_str(def->style), def->text, hash, steps.s },
		err);
	pr_buf_free(&steps);
	if (!res)
		return -1;
	if (strcmp(PQgetvalue(res, 0, 0), "other") == 0)
		rc = differs(def, err);
	PQclear(res);
	return rc;
}

int book_open(const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err)
{
	int rc = 0;

	(void)pthread_mutex_lock(&book.mutex);
	if (!book.open) {
		if (book.n == 0)
			rc = load_files(&conf->handler.definitions, err);
		for (size_t i = 0; rc == 0 && i < book.n; i++)
			rc = tell(book.def[i], pg, err);
		book.open = rc == 0;
		for (size_t i = 0; book.open && i < book.newest_n; i++)
			pr_log(PR_INFO, "saga defined", KS("saga", book.newest[i]->name),
				KI("version", book.newest[i]->version), KI("steps", book.newest[i]->step_n));
	}
	(void)pthread_mutex_unlock(&book.mutex);
	return rc;
}

static int from_database(
	struct pr_pg *pg, const char *name, int version, struct saga_def **ret, struct pr_err *err)
{
	char v[16], file[120];
	PGresult *res;
	int rc = -1;

	(void)snprintf(v, sizeof(v), "%d", version);
	res = pr_pg_exec(pg, sql_engine_definition, 2, (const char *const[]){ name, v }, err);
	if (!res)
		return -1;
	(void)snprintf(file, sizeof(file), "saga.definition %s version %d", name, version);
	if (PQntuples(res) != 1)
		(void)pr_fail(
			err, PR_STOP, "saga %s version %d is in use and nowhere defined", name, version);
	else
		rc = saga_def_parse(file, PQgetvalue(res, 0, 0), (size_t)PQgetlength(res, 0, 0), ret, err);
	PQclear(res);
	return rc;
}

int book_version(
	struct pr_pg *pg, const char *name, int version, const struct saga_def **ret, struct pr_err *err)
{
	struct saga_def *def;
	int rc = 0;

	(void)pthread_mutex_lock(&book.mutex);
	def = find(name, strlen(name), version);
	if (!def) {
		rc = from_database(pg, name, version, &def, err);
		if (rc == 0)
			add(def);
	}
	(void)pthread_mutex_unlock(&book.mutex);
	if (rc == 0)
		*ret = def;
	return rc;
}

const struct saga_def *book_newest(const char *name, size_t n)
{
	for (size_t i = 0; i < book.newest_n; i++)
		if (strlen(book.newest[i]->name) == n && memcmp(book.newest[i]->name, name, n) == 0)
			return book.newest[i];
	return NULL;
}

size_t book_all(const struct saga_def *const **ret)
{
	*ret = book.newest;
	return book.newest_n;
}
