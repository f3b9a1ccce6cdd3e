/* lib/saga_def_files.c -- the definitions of a list of files and patterns. Refuses two that have the same
 * name and version. */
#include "lib/saga_def.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>

static int twice(const char *file, const struct saga_def *def, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "%s: saga %s version %d is defined in another file too", file, def->name,
		def->version);
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int load_file(const char *file, struct saga_defs *to, struct pr_err *err)
{
	struct saga_def *def;

	if (saga_def_load(file, &def, err) < 0)
		return -1;
	to->v = pr_realloc(to->v, (to->n + 1) * sizeof(struct saga_def *));
	to->v[to->n++] = def;
	for (size_t i = 0; i + 1 < to->n; i++)
		if (strcmp(to->v[i]->name, def->name) == 0 && to->v[i]->version == def->version)
			return twice(file, def, err);
	return 0;
}

static int load_pattern(const char *pattern, struct saga_defs *to, struct pr_err *err)
{
	glob_t g;
	int rc = 0;

	if (glob(pattern, 0, NULL, &g) != 0) {
		(void)pr_fail(err, PR_STOP, "handler.definitions: no file matches \"%s\"", pattern);
		err->exit = PR_EX_CONFIG;
		return -1;
	}
	for (size_t i = 0; rc == 0 && i < g.gl_pathc; i++)
		rc = load_file(g.gl_pathv[i], to, err);
	globfree(&g);
	return rc;
}

int saga_defs_load(const struct pr_strs *patterns, struct saga_defs *ret, struct pr_err *err)
{
	struct saga_defs defs = { 0 };

	for (size_t i = 0; i < patterns->n; i++)
		if (load_pattern(patterns->v[i], &defs, err) < 0) {
			saga_defs_free(&defs);
			return -1;
		}
	*ret = defs;
	return 0;
}

void saga_defs_free(struct saga_defs *defs)
{
	for (size_t i = 0; i < defs->n; i++)
		saga_def_free(defs->v[i]);
	free(defs->v);
	*defs = (struct saga_defs){ 0 };
}
