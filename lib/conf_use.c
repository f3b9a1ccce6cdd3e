/* lib/conf_use.c -- about a configuration that was loaded: what it says, where it says it, and what of it may
 * not change while we run. */
#include "lib/conf_inner.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct entry *conf_entry(const struct pr_conf *conf, const char *path)
{
	for (size_t i = 0; i < conf->n; i++)
		if (strcmp(conf->entries[i].path, path) == 0)
			return &conf->entries[i];
	return NULL;
}

int pr_conf_unread(const struct pr_conf *conf, const char *path)
{
	const struct entry *e = conf_entry(conf, path);

	return e && e->unread;
}

int pr_conf_fail(const struct pr_conf *conf, const char *path, struct pr_err *err, const char *fmt, ...)
{
	const char *where = conf->file;
	char reason[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	for (size_t i = 0; i < conf->n; i++)
		if (strcmp(conf->entries[i].path, path) == 0)
			where = conf->entries[i].where;
	return pr_conf_error(err, where, path, "%s", reason);
}

int pr_conf_line(const struct pr_conf *conf, const char *path)
{
	const char *colon;

	for (size_t i = 0; i < conf->n; i++)
		if (strcmp(conf->entries[i].path, path) == 0 && conf->entries[i].from == FROM_FILE) {
			colon = strrchr(conf->entries[i].where, ':');
			return colon ? (int)strtol(colon + 1, NULL, 10) : 0;
		}
	return 0;
}

void pr_conf_print(const struct pr_conf *conf, FILE *out)
{
	for (size_t i = 0; i < conf->n; i++) {
		const struct entry *e = &conf->entries[i];
		int n = fprintf(out, "%s = %s", e->path, e->shown ? e->shown : "(not set)");

		(void)fprintf(out, "%*s# %s\n", n < 56 ? 56 - n : 1, "",
			e->from == FROM_DEFAULT ? "default" : e->where);
	}
}

static int same_string(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

static int same_strs(const struct pr_strs *a, const struct pr_strs *b)
{
	if (a->n != b->n)
		return 0;
	for (size_t i = 0; i < a->n; i++)
		if (strcmp(a->v[i], b->v[i]) != 0)
			return 0;
	return 1;
}

static int same_option(const struct pr_opt *o, const char *a, const char *b);

static int same_groups(const struct pr_opt *o, const struct pr_groups *a, const struct pr_groups *b)
{
	if (a->n != b->n)
		return 0;
	for (size_t i = 0; i < a->n; i++)
		for (const struct pr_opt *sub = o->sub; sub->path; sub++)
			if (!same_option(sub, (const char *)a->v + i * o->sub_size,
				    (const char *)b->v + i * o->sub_size))
				return 0;
	return 1;
}

static int same_option(const struct pr_opt *o, const char *a, const char *b)
{
	const void *x = a + o->offset, *y = b + o->offset;

	switch (o->type) {
	case PR_OPT_STR:
	case PR_OPT_SECRET:
	case PR_OPT_CONNINFO:
		return same_string(*(char *const *)x, *(char *const *)y);
	case PR_OPT_BOOL:
	case PR_OPT_ENUM:
		return *(const int *)x == *(const int *)y;
	case PR_OPT_STRS:
		return same_strs(x, y);
	case PR_OPT_GROUPS:
		return same_groups(o, x, y);
	default:
		return *(const int64_t *)x == *(const int64_t *)y;
	}
}

const char *pr_conf_frozen_change(const struct pr_opt *table, const void *was, const void *is)
{
	for (; table->path; table++)
		if ((table->flags & PR_OPT_NO_RELOAD) && !same_option(table, was, is))
			return table->path;
	return NULL;
}
