/* lib/conf.c -- a config file, the command line's overrides and the table's defaults
 * -> the caller's struct. The text comes checked from conf_text.c, libconfig parses it,
 * a field is filled by conf_set.c,
 * single values are conf_value.c's, sample and reference conf_doc.c's.
 * Refuses unknown keys, wrong types and values out of range, each by file, line and key;
 * refuses a secret written into a file that everybody may read. Never prints a secret. */
#include "lib/conf_inner.h"

#include <stdlib.h>
#include <string.h>

#ifdef __has_feature /* clang; gcc 12 has only the macro */
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
/* libconfig 1.5 loses the string it was holding at a syntax error: once for a start that fails, once for
 * a reload of a broken file. The sanitizer's builds would end with that instead of our exit code. */
const char *__lsan_default_suppressions(void);

const char *__lsan_default_suppressions(void)
{
	return "leak:strbuf_append\nleak:libconfig_yylex\n";
}
#endif

void pr_conf_free(struct pr_conf *conf)
{
	if (!conf)
		return;
	for (size_t i = 0; i < conf->nowned; i++)
		free(conf->owned[i]);
	for (size_t i = 0; i < conf->n; i++) {
		free(conf->entries[i].path);
		free(conf->entries[i].shown);
		free(conf->entries[i].where);
	}
	free(conf->entries);
	free(conf->owned);
	free(conf->file);
	free(conf);
}

static char *where_str(const struct load *l, int line)
{
	const struct pr_conf_line *at = pr_conf_text_line(l->text, line);

	return pr_asprintf("%s:%d", l->text->files[at->file].name, at->line);
}

/* ---- tables ---- */

static void remember(const struct load *l, struct slot *s)
{
	struct pr_conf *conf = l->conf;

	if (conf->n == conf->cap) {
		conf->cap = conf->cap ? conf->cap * 2 : 32;
		conf->entries = pr_realloc(conf->entries, conf->cap * sizeof(*conf->entries));
	}
	conf->entries[conf->n++] = (struct entry){ .path = s->path,
		.shown = s->shown,
		.where = s->where,
		.from = s->given->from,
		.unread = s->unread };
}

static char *slot_where(const struct load *l, const struct level *v, const struct given *g)
{
	if (g->from == FROM_COMMAND_LINE)
		return pr_strdup("command line");
	if (g->from == FROM_FILE)
		return where_str(l, (int)config_setting_source_line(g->setting));
	return v->line ? where_str(l, v->line) : pr_strdup(l->conf->file);
}

static int fill(const struct load *l, const struct level *v)
{
	for (size_t i = 0; v->table[i].path; i++) {
		struct slot s = { .o = &v->table[i], .given = &v->given[i] };

		s.field = v->base + s.o->offset;
		s.path = pr_asprintf("%s%s", v->prefix, s.o->path);
		s.where = slot_where(l, v, s.given);
		if (conf_set_slot(l, &s) < 0) {
			free(s.path);
			free(s.where);
			free(s.shown);
			return -1;
		}
		remember(l, &s);
	}
	return 0;
}

size_t conf_find(const struct pr_opt *table, const char *path)
{
	size_t i = 0;

	while (table[i].path && strcmp(table[i].path, path) != 0)
		i++;
	return i;
}

static int is_group_of(const struct pr_opt *table, const char *path)
{
	size_t n = strlen(path);

	for (; table->path; table++)
		if (strncmp(table->path, path, n) == 0 && table->path[n] == '.')
			return 1;
	return 0;
}

static const char *leaf_of(const char *path)
{
	const char *dot = strrchr(path, '.');

	return dot ? dot + 1 : path;
}

/* The key the user may have meant: the same name in another group, or one that is near; malloc'd or NULL. */
static char *meant(const struct pr_opt *table, const char *path)
{
	char **names = pr_calloc(2 * conf_find(table, "") + 1, sizeof(*names)), *ret = NULL;
	const char *near;
	size_t k = 0;

	for (const struct pr_opt *o = table; o->path; o++) {
		const char *dot = strchr(o->path, '.');

		if (o->flags & PR_OPT_HIDDEN)
			continue;
		if (!ret && strcmp(leaf_of(o->path), leaf_of(path)) == 0)
			ret = pr_strdup(o->path);
		names[k++] = pr_strdup(o->path);
		if (dot)
			names[k++] = pr_asprintf("%.*s", (int)(dot - o->path), o->path);
	}
	near = ret ? NULL : pr_nearest(path, (const char *const *)names);
	if (near)
		ret = pr_strdup(near);
	while (k > 0)
		free(names[--k]);
	free(names);
	return ret;
}

static int fail_unknown(const struct load *l, const struct level *v, const char *where, const char *path)
{
	char *near = meant(v->table, path), *shown = pr_asprintf("%s%s", v->prefix, path);

	if (near)
		(void)pr_conf_error(l->err, where, shown, "unknown key, did you mean \"%s\"?", near);
	else
		(void)pr_conf_error(l->err, where, shown, "unknown key");
	free(shown);
	free(near);
	return -1;
}

static int walk(const struct load *l, struct level *v, const config_setting_t *group, const char *above);

/* One member of a group: an option's value, a group that holds options, or nothing we know. */
static int visit(const struct load *l, struct level *v, const config_setting_t *s, const char *path)
{
	size_t i = conf_find(v->table, path);
	char *where, *shown;
	int rc = -1;

	if (v->table[i].path) {
		v->given[i] = (struct given){ .from = FROM_FILE, .setting = s };
		return 0;
	}
	if (config_setting_is_group(s) && is_group_of(v->table, path))
		return walk(l, v, s, path);
	where = where_str(l, (int)config_setting_source_line(s));
	shown = pr_asprintf("%s%s", v->prefix, path);
	if (is_group_of(v->table, path))
		rc = pr_conf_error(l->err, where, shown, "must be a group { ... }, is %s", conf_type_name(s));
	else
		rc = fail_unknown(l, v, where, path);
	free(shown);
	free(where);
	return rc;
}

static int walk(const struct load *l, struct level *v, const config_setting_t *group, const char *above)
{
	int n = config_setting_length(group), rc = 0;

	for (int i = 0; rc == 0 && i < n; i++) {
		const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
		char *path = pr_asprintf("%s%s%s", above, *above ? "." : "", config_setting_name(s));

		rc = visit(l, v, s, path);
		free(path);
	}
	return rc;
}

static int take_override(const struct load *l, struct level *v, const char *o)
{
	const char *eq = strchr(o, '=');
	char *path;
	size_t i;
	int rc = 0;

	if (!eq || eq == o)
		return pr_conf_error(l->err, "command line", NULL, "\"%.100s\" is not key=value", o);
	path = pr_asprintf("%.*s", (int)(eq - o), o);
	i = conf_find(v->table, path);
	if (v->table[i].path && v->table[i].type == PR_OPT_GROUPS)
		rc = pr_conf_error(l->err, "command line", path, "can be set in the file only");
	else if (v->table[i].path)
		v->given[i] = (struct given){ .from = FROM_COMMAND_LINE, .text = eq + 1 };
	else if (is_group_of(v->table, path))
		rc = pr_conf_error(l->err, "command line", path, "is a group, name one of its keys");
	else
		rc = fail_unknown(l, v, "command line", path);
	free(path);
	return rc;
}

int conf_load_level(const struct load *l, struct level *v, const config_setting_t *group)
{
	size_t n = conf_find(v->table, "");
	int rc;

	v->given = pr_calloc(n, sizeof(*v->given));
	for (size_t i = 0; i < n; i++)
		v->given[i].text = v->table[i].def;
	rc = walk(l, v, group, "");
	for (size_t i = 0; rc == 0 && !*v->prefix && i < l->n; i++)
		rc = take_override(l, v, l->overrides[i]);
	if (rc == 0)
		rc = fill(l, v);
	free(v->given);
	return rc;
}

/* ---- loading ---- */

/* libconfig names the line of a key that was set before; the mark that has a twin is the one. */
static int fail_twice(const struct pr_conf_text *text, int line, struct pr_err *err)
{
	const struct pr_conf_line *first;

	for (size_t i = text->nmarks; i-- > 0;)
		for (size_t j = 0; text->marks[i].line <= line && j < i; j++) {
			if (strcmp(text->marks[i].path, text->marks[j].path) != 0)
				continue;
			first = pr_conf_text_line(text, text->marks[j].line);
			return pr_conf_error_at(text, text->marks[i].line, text->marks[i].path, err,
				"is set twice, first at %s:%d", text->files[first->file].name, first->line);
		}
	return 0;
}

static int parse(const struct pr_conf_text *text, config_t *config, struct pr_err *err)
{
	const char *why;
	int line;

	/* The scanner left no @include; if it ever did, this directory holds nothing to read. */
	config_set_include_dir(config, "/dev/null");
	if (config_read_string(config, text->s) == CONFIG_TRUE)
		return 0;
	why = config_error_text(config);
	line = config_error_line(config);
	if (why && strstr(why, "duplicate") && fail_twice(text, line, err) < 0)
		return -1;
	(void)pr_conf_error_at(
		text, line, pr_conf_text_key(text, line), err, "%s here or just before", why ? why : "error");
	return pr_hint(err, "a missing quote, bracket or \"=\"; strings, sizes and durations need quotes");
}

static int load(const struct pr_conf_text *text, const struct pr_opt *table, void *target,
	const char *const *overrides, size_t n, int unread, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf *conf = pr_calloc(1, sizeof(*conf));
	struct load l = {
		.conf = conf, .text = text, .overrides = overrides, .n = n, .unread = unread, .err = err
	};
	struct level top = { .table = table, .base = target, .prefix = "" };
	config_t config;
	int rc;

	conf->file = pr_strdup(text->files[0].name);
	config_init(&config);
	rc = parse(text, &config, err);
	if (rc == 0)
		rc = conf_load_level(&l, &top, config_root_setting(&config));
	config_destroy(&config);
	if (rc == 0)
		*ret = conf;
	else
		pr_conf_free(conf);
	return rc;
}

static int load_file(const char *file, const struct pr_opt *table, void *target, const char *const *overrides,
	size_t n, int unread, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf_text text = { 0 };
	int rc = pr_conf_text_read(file, &text, err);

	if (rc == 0)
		rc = load(&text, table, target, overrides, n, unread, ret, err);
	pr_conf_text_free(&text);
	return rc;
}

int pr_conf_load(const char *file, const struct pr_opt *table, void *target, const char *const *overrides,
	size_t n, struct pr_conf **ret, struct pr_err *err)
{
	return load_file(file, table, target, overrides, n, 0, ret, err);
}

int pr_conf_load_unread(const char *file, const struct pr_opt *table, void *target,
	const char *const *overrides, size_t n, struct pr_conf **ret, struct pr_err *err)
{
	return load_file(file, table, target, overrides, n, 1, ret, err);
}

int pr_conf_load_text(const char *name, const char *s, size_t len, const struct pr_opt *table, void *target,
	const char *const *overrides, size_t n, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf_text text = { 0 };
	int rc = pr_conf_text_memory(name, s, len, &text, err);

	if (rc == 0)
		rc = load(&text, table, target, overrides, n, 0, ret, err);
	pr_conf_text_free(&text);
	return rc;
}
