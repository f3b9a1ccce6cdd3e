/* lib/conf.c -- a config file, the command line's overrides and the table's defaults
 * -> the caller's struct. The text comes checked from conf_text.c, libconfig parses it,
 * single values are conf_value.c's, sample and reference conf_doc.c's.
 * Refuses unknown keys, wrong types and values out of range, each by file, line and key;
 * refuses a secret written into a file that everybody may read. Never prints a secret. */
#include "lib/conf.h"

#include "lib/conf_text.h"
#include "lib/conf_value.h"

#include <libconfig.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_SECRET_BYTES (64 * 1024)
#define MAX_GROUPS       1000
#define MAX_STRS         10000
#define MASK             "\"********\""

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

enum from { FROM_DEFAULT, FROM_FILE, FROM_COMMAND_LINE };

/* What one option became, for --print-config and for errors found later. */
struct entry {
	char *path;
	char *shown; /* value as printed, secrets masked; NULL: not set */
	char *where; /* "relay.cfg:12", "command line", "default" */
	enum from from;
};

/* Holds no pointer into the caller's struct: a reload may copy that one elsewhere. */
struct pr_conf {
	char *file;
	struct entry *entries;
	size_t n, cap;
	void **owned; /* what the caller's struct points to */
	size_t nowned, capowned;
};

/* Where the value of one option comes from; setting (FROM_FILE) or text (the others). */
struct given {
	enum from from;
	const config_setting_t *setting;
	const char *text;
};

/* One load, passed down. */
struct load {
	struct pr_conf *conf;
	const struct pr_conf_text *text;
	const char *const *overrides;
	size_t n;
	struct pr_err *err;
};

/* One table being filled: the file's, or an element of GROUPS. */
struct level {
	const struct pr_opt *table;
	char *base;          /* struct the offsets speak of */
	const char *prefix;  /* "" or "errors[0]." */
	struct given *given; /* one for each option of the table */
	int line;            /* flat line of the group; 0: the file as a whole */
};

/* One option being filled. */
struct slot {
	const struct pr_opt *o;
	const struct given *given;
	void *field;
	char *path;
	char *where;
	char *shown;
};

static void *own(struct pr_conf *conf, void *p)
{
	if (conf->nowned == conf->capowned) {
		conf->capowned = conf->capowned ? conf->capowned * 2 : 32;
		conf->owned = pr_realloc(conf->owned, conf->capowned * sizeof(*conf->owned));
	}
	conf->owned[conf->nowned++] = p;
	return p;
}

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

/* ---- errors ---- */

static char *where_str(const struct load *l, int line)
{
	const struct pr_conf_line *at = pr_conf_text_line(l->text, line);

	return pr_asprintf("%s:%d", l->text->files[at->file].name, at->line);
}

static int fail_slot(const struct load *l, const struct slot *s, const char *fmt, ...) PR_PRINTF(3, 4);

static int fail_slot(const struct load *l, const struct slot *s, const char *fmt, ...)
{
	char reason[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	return pr_conf_error(l->err, s->where, s->path, "%s", reason);
}

static const char *type_name(const config_setting_t *s)
{
	switch (config_setting_type(s)) {
	case CONFIG_TYPE_GROUP:
		return "a group { ... }";
	case CONFIG_TYPE_INT:
	case CONFIG_TYPE_INT64:
		return "a number";
	case CONFIG_TYPE_FLOAT:
		return "a number with a fraction";
	case CONFIG_TYPE_STRING:
		return "a string";
	case CONFIG_TYPE_BOOL:
		return "a boolean";
	case CONFIG_TYPE_ARRAY:
		return "an array [ ... ]";
	case CONFIG_TYPE_LIST:
		return "a list ( ... )";
	default:
		return "nothing";
	}
}

static int fail_type(const struct load *l, const struct slot *s, const config_setting_t *is)
{
	return fail_slot(l, s, "must be %s, is %s", pr_conf_type_str(s->o->type), type_name(is));
}

/* ---- values ---- */

static const char *string_of(const config_setting_t *s)
{
	const char *v = config_setting_get_string(s);

	return v ? v : "";
}

static int mode_of(const struct load *l, const struct given *g)
{
	const struct pr_conf_line *at;

	if (g->from != FROM_FILE)
		return 0;
	at = pr_conf_text_line(l->text, (int)config_setting_source_line(g->setting));
	return (int)l->text->files[at->file].st.st_mode;
}

static int secret_of_env(const struct load *l, const struct slot *s, const char *name, char **ret)
{
	const char *v = getenv(name);

	if (!v || !*v)
		return fail_slot(l, s, "environment variable %.100s is %s", name, v ? "empty" : "not set");
	*ret = own(l->conf, pr_strdup(v));
	return 0;
}

static int secret_of_file(const struct load *l, const struct slot *s, const char *path, char **ret)
{
	struct pr_err why;
	size_t n;
	char *v;

	if (*path != '/')
		return fail_slot(l, s, "file:%.200s: must be an absolute path", path);
	if (pr_conf_slurp(path, MAX_SECRET_BYTES, &v, &n, NULL, &why) < 0)
		return fail_slot(l, s, "file:%.200s: %s", path, why.text);
	own(l->conf, v);
	if (strlen(v) != n)
		return fail_slot(l, s, "file:%.200s: holds a NUL byte", path);
	if (n > 0 && v[n - 1] == '\n')
		v[--n] = '\0';
	if (n > 0 && v[n - 1] == '\r')
		v[--n] = '\0';
	if (n == 0)
		return fail_slot(l, s, "file:%.200s: is empty", path);
	*ret = v;
	return 0;
}

/* "env:NAME" and "file:/path" -> what they name; *ret_literal = 1 for any other text. */
static int resolve(const struct load *l, const struct slot *s, const char *text, char **ret, int *ret_literal)
{
	*ret_literal = 0;
	if (strncmp(text, "env:", 4) == 0)
		return secret_of_env(l, s, text + 4, ret);
	if (strncmp(text, "file:", 5) == 0)
		return secret_of_file(l, s, text + 5, ret);
	*ret_literal = 1;
	*ret = own(l->conf, pr_strdup(text));
	return 0;
}

/* ssh's rule: what everybody can read is no secret. */
static int check_exposed(const struct load *l, const struct slot *s, int literal)
{
	if (!literal || !(mode_of(l, s->given) & 004))
		return 0;
	(void)fail_slot(l, s, "a secret in a file that everybody may read");
	return pr_hint(l->err, "chmod o= the file, or write \"env:NAME\" or \"file:/path\" instead");
}

static int set_secret(const struct load *l, struct slot *s, const char *text)
{
	char *v;
	int literal;

	if (resolve(l, s, text, &v, &literal) < 0 || check_exposed(l, s, literal) < 0)
		return -1;
	*(char **)s->field = v;
	s->shown = pr_strdup(MASK);
	return 0;
}

static int set_conninfo(const struct load *l, struct slot *s, const char *text)
{
	int literal, secret;
	struct pr_err why;
	char *v, *masked;

	if (resolve(l, s, text, &v, &literal) < 0)
		return -1;
	masked = pr_conf_conninfo_mask(v, &secret, &why);
	if (!masked)
		return fail_slot(l, s, "%s", why.text);
	s->shown = pr_conf_quote(secret ? masked : v);
	free(masked);
	*(char **)s->field = v;
	return check_exposed(l, s, literal && secret);
}

static int set_bool(const struct load *l, struct slot *s, const char *text)
{
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return fail_slot(l, s, "must be true or false");
	*(int *)s->field = *text == 't';
	s->shown = pr_strdup(text);
	return 0;
}

static int set_number(const struct load *l, struct slot *s, const char *text)
{
	struct pr_err why;
	int64_t v;
	char *str;

	if (pr_conf_number(s->o, text, &v, &why) < 0)
		return fail_slot(l, s, "%s", why.text);
	*(int64_t *)s->field = v;
	str = pr_conf_number_str(s->o->type, v);
	s->shown = s->o->type == PR_OPT_INT && strspn(str, "-0123456789") == strlen(str) ? pr_strdup(str)
											 : pr_conf_quote(str);
	free(str);
	return 0;
}

static int set_enum(const struct load *l, struct slot *s, const char *text)
{
	int i = pr_conf_choice(s->o->choices, text);
	char *word;

	if (i < 0) {
		word = pr_conf_quote(text);
		(void)fail_slot(l, s, "%.90s is not one of: %s", word, s->o->choices);
		free(word);
		return -1;
	}
	*(int *)s->field = i;
	s->shown = pr_conf_quote(text);
	return 0;
}

/* One string of a list: a property that is secret by its name ("sasl.password=env:NAME") is resolved
 * and masked like a secret of its own. */
static int set_element(const struct load *l, struct slot *s, const char *text, struct pr_strs *strs)
{
	const char *secret = pr_conf_secret_part(text);
	char *v = NULL, *full, *shown, *quoted;
	int literal = 0, head = secret ? (int)(secret - text) : 0;

	if (secret && (resolve(l, s, secret, &v, &literal) < 0 || check_exposed(l, s, literal) < 0))
		return -1;
	full = secret ? pr_asprintf("%.*s%s", head, text, v) : pr_strdup(text);
	strs->v[strs->n++] = own(l->conf, full);
	shown = secret ? pr_asprintf("%.*s********", head, text) : pr_strdup(text);
	quoted = pr_conf_quote(shown);
	full = s->shown;
	s->shown = full ? pr_asprintf("%s, %s", full, quoted) : pr_asprintf("%s", quoted);
	free(full);
	free(quoted);
	free(shown);
	return 0;
}

static void close_list(struct slot *s)
{
	char *inner = s->shown;

	s->shown = inner ? pr_asprintf("( %s )", inner) : pr_strdup("()");
	free(inner);
}

static int set_strs_setting(const struct load *l, struct slot *s, const config_setting_t *list)
{
	int n = config_setting_length(list);
	struct pr_strs strs = { 0 };

	if (!config_setting_is_list(list) && !config_setting_is_array(list))
		return fail_type(l, s, list);
	if (n > MAX_STRS)
		return fail_slot(l, s, "more than %d elements", MAX_STRS);
	strs.v = own(l->conf, pr_calloc((size_t)n, sizeof(*strs.v)));
	for (int i = 0; i < n; i++) {
		const config_setting_t *e = config_setting_get_elem(list, (unsigned)i);

		if (config_setting_type(e) != CONFIG_TYPE_STRING)
			return fail_slot(l, s, "element %d must be a string, is %s", i + 1, type_name(e));
		if (set_element(l, s, string_of(e), &strs) < 0)
			return -1;
	}
	close_list(s);
	*(struct pr_strs *)s->field = strs;
	return 0;
}

/* -o key=a -o key=b replaces the file's list by ( "a", "b" ); -o key= makes it empty. */
static int set_strs_overrides(const struct load *l, struct slot *s)
{
	struct pr_strs strs = { .v = own(l->conf, pr_calloc(l->n, sizeof(*strs.v))) };
	size_t n = strlen(s->path);

	for (size_t i = 0; i < l->n; i++) {
		const char *o = l->overrides[i];

		if (strncmp(o, s->path, n) != 0 || o[n] != '=' || o[n + 1] == '\0')
			continue;
		if (set_element(l, s, o + n + 1, &strs) < 0)
			return -1;
	}
	close_list(s);
	*(struct pr_strs *)s->field = strs;
	return 0;
}

static int set_strs_default(const struct load *l, struct slot *s)
{
	struct pr_strs strs = { 0 };

	if (s->o->def) {
		strs.v = own(l->conf, pr_calloc(1, sizeof(*strs.v)));
		if (set_element(l, s, s->o->def, &strs) < 0)
			return -1;
	}
	close_list(s);
	*(struct pr_strs *)s->field = strs;
	return 0;
}

static int set_strs(const struct load *l, struct slot *s)
{
	if (s->given->from == FROM_FILE)
		return set_strs_setting(l, s, s->given->setting);
	return s->given->from == FROM_COMMAND_LINE ? set_strs_overrides(l, s) : set_strs_default(l, s);
}

static int load_level(const struct load *l, struct level *v, const config_setting_t *group);

static int set_groups(const struct load *l, struct slot *s)
{
	const config_setting_t *list = s->given->setting, *e;
	struct pr_groups groups = { 0 };
	int rc = 0;

	*(struct pr_groups *)s->field = groups;
	s->shown = pr_strdup("()");
	if (!list)
		return 0;
	if (!config_setting_is_list(list))
		return fail_type(l, s, list);
	if (config_setting_length(list) > MAX_GROUPS)
		return fail_slot(l, s, "more than %d elements", MAX_GROUPS);
	groups.n = (size_t)config_setting_length(list);
	groups.v = own(l->conf, pr_calloc(groups.n, s->o->sub_size));
	for (size_t i = 0; rc == 0 && i < groups.n; i++) {
		char *prefix = pr_asprintf("%s[%zu].", s->path, i);
		struct level sub = {
			.table = s->o->sub, .base = (char *)groups.v + i * s->o->sub_size, .prefix = prefix
		};

		e = config_setting_get_elem(list, (unsigned)i);
		sub.line = (int)config_setting_source_line(e);
		if (!config_setting_is_group(e))
			rc = fail_slot(
				l, s, "element %zu must be a group { ... }, is %s", i + 1, type_name(e));
		else
			rc = load_level(l, &sub, e);
		free(prefix);
	}
	free(s->shown);
	s->shown = pr_asprintf("( %zu below )", groups.n);
	*(struct pr_groups *)s->field = groups;
	return rc;
}

static int set_text(const struct load *l, struct slot *s, const char *text)
{
	if (!*text && (s->o->flags & PR_OPT_REQUIRED))
		return fail_slot(l, s, "must not be empty");
	switch (s->o->type) {
	case PR_OPT_SECRET:
		return set_secret(l, s, text);
	case PR_OPT_CONNINFO:
		return set_conninfo(l, s, text);
	case PR_OPT_BOOL:
		return set_bool(l, s, text);
	case PR_OPT_ENUM:
		return set_enum(l, s, text);
	case PR_OPT_INT:
	case PR_OPT_SIZE:
	case PR_OPT_DURATION:
		return set_number(l, s, text);
	default:
		*(char **)s->field = own(l->conf, pr_strdup(text));
		s->shown = pr_conf_quote(text);
		return 0;
	}
}

static int set_setting(const struct load *l, struct slot *s, const config_setting_t *is)
{
	int type = config_setting_type(is), rc;
	char *text;

	if (type == CONFIG_TYPE_STRING && s->o->type != PR_OPT_BOOL)
		return set_text(l, s, string_of(is));
	if (type == CONFIG_TYPE_BOOL && s->o->type == PR_OPT_BOOL)
		return set_bool(l, s, config_setting_get_bool(is) ? "true" : "false");
	if ((type != CONFIG_TYPE_INT && type != CONFIG_TYPE_INT64) || s->o->type != PR_OPT_INT)
		return fail_type(l, s, is);
	text = pr_asprintf(
		"%lld", type == CONFIG_TYPE_INT ? config_setting_get_int(is) : config_setting_get_int64(is));
	rc = set_number(l, s, text);
	free(text);
	return rc;
}

static void clear_field(const struct slot *s)
{
	switch (s->o->type) {
	case PR_OPT_STR:
	case PR_OPT_SECRET:
	case PR_OPT_CONNINFO:
		*(char **)s->field = NULL;
		return;
	case PR_OPT_BOOL:
	case PR_OPT_ENUM:
		*(int *)s->field = 0;
		return;
	default:
		*(int64_t *)s->field = 0;
	}
}

static int set_slot(const struct load *l, struct slot *s)
{
	const struct given *g = s->given;

	if (g->from == FROM_DEFAULT && (s->o->flags & PR_OPT_REQUIRED))
		return fail_slot(l, s, "is required");
	if (s->o->type == PR_OPT_STRS)
		return set_strs(l, s);
	if (s->o->type == PR_OPT_GROUPS)
		return set_groups(l, s);
	if (g->from == FROM_FILE)
		return set_setting(l, s, g->setting);
	if (g->text)
		return set_text(l, s, g->text);
	clear_field(s);
	return 0;
}

/* ---- tables ---- */

static void remember(const struct load *l, struct slot *s)
{
	struct pr_conf *conf = l->conf;

	if (conf->n == conf->cap) {
		conf->cap = conf->cap ? conf->cap * 2 : 32;
		conf->entries = pr_realloc(conf->entries, conf->cap * sizeof(*conf->entries));
	}
	conf->entries[conf->n++] = (struct entry){
		.path = s->path, .shown = s->shown, .where = s->where, .from = s->given->from
	};
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
		if (set_slot(l, &s) < 0) {
			free(s.path);
			free(s.where);
			free(s.shown);
			return -1;
		}
		remember(l, &s);
	}
	return 0;
}

static size_t find(const struct pr_opt *table, const char *path)
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
	char **names = pr_calloc(2 * find(table, "") + 1, sizeof(*names)), *ret = NULL;
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
	size_t i = find(v->table, path);
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
		rc = pr_conf_error(l->err, where, shown, "must be a group { ... }, is %s", type_name(s));
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
	i = find(v->table, path);
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

static int load_level(const struct load *l, struct level *v, const config_setting_t *group)
{
	size_t n = find(v->table, "");
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
	const char *const *overrides, size_t n, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf *conf = pr_calloc(1, sizeof(*conf));
	struct load l = { .conf = conf, .text = text, .overrides = overrides, .n = n, .err = err };
	struct level top = { .table = table, .base = target, .prefix = "" };
	config_t config;
	int rc;

	conf->file = pr_strdup(text->files[0].name);
	config_init(&config);
	rc = parse(text, &config, err);
	if (rc == 0)
		rc = load_level(&l, &top, config_root_setting(&config));
	config_destroy(&config);
	if (rc == 0)
		*ret = conf;
	else
		pr_conf_free(conf);
	return rc;
}

int pr_conf_load(const char *file, const struct pr_opt *table, void *target, const char *const *overrides,
	size_t n, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf_text text = { 0 };
	int rc = pr_conf_text_read(file, &text, err);

	if (rc == 0)
		rc = load(&text, table, target, overrides, n, ret, err);
	pr_conf_text_free(&text);
	return rc;
}

int pr_conf_load_text(const char *name, const char *s, size_t len, const struct pr_opt *table, void *target,
	const char *const *overrides, size_t n, struct pr_conf **ret, struct pr_err *err)
{
	struct pr_conf_text text = { 0 };
	int rc = pr_conf_text_memory(name, s, len, &text, err);

	if (rc == 0)
		rc = load(&text, table, target, overrides, n, ret, err);
	pr_conf_text_free(&text);
	return rc;
}

/* ---- afterwards ---- */

int pr_conf_fail(const struct pr_conf *conf, const char *path, struct pr_err *err, const char *fmt, ...)
{
	const char *where = conf->file;
	char reason[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	for (size_t i = 0; i < conf->n; i++)
		if (strcmp(conf->entries[i].path, path) == 0 && conf->entries[i].from != FROM_DEFAULT)
			where = conf->entries[i].where;
	return pr_conf_error(err, where, path, "%s", reason);
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
