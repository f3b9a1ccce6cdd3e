/* lib/conf_set.c -- one option's field, filled from the file's setting, the command line's text or the
 * default. Refuses wrong types and values out of range; a secret that everybody may read in the file. Never
 * prints one. */
#include "lib/conf_inner.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_SECRET_BYTES (64 * 1024)
#define MAX_GROUPS       1000
#define MAX_STRS         10000
#define MASK             "\"********\""

static void *own(struct pr_conf *conf, void *p)
{
	if (conf->nowned == conf->capowned) {
		conf->capowned = conf->capowned ? conf->capowned * 2 : 32;
		conf->owned = pr_realloc(conf->owned, conf->capowned * sizeof(*conf->owned));
	}
	conf->owned[conf->nowned++] = p;
	return p;
}

/* ---- errors ---- */

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

const char *conf_type_name(const config_setting_t *s)
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
	return fail_slot(l, s, "must be %s, is %s", pr_conf_type_str(s->o->type), conf_type_name(is));
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

/* "${CREDENTIALS_DIRECTORY}/name": where systemd's LoadCredential= puts it. NULL: there is none. */
static char *credential_path(const char *path)
{
	static const char word[] = "${CREDENTIALS_DIRECTORY}";
	const char *dir = getenv("CREDENTIALS_DIRECTORY");

	if (strncmp(path, word, sizeof(word) - 1) != 0)
		return pr_strdup(path);
	return dir ? pr_asprintf("%s%s", dir, path + sizeof(word) - 1) : NULL;
}

static int secret_of_file(const struct load *l, const struct slot *s, const char *named, char **ret)
{
	char *path = credential_path(named), *v;
	struct pr_err why;
	size_t n;

	if (!path) {
		(void)fail_slot(l, s, "file:%.200s: CREDENTIALS_DIRECTORY is not set", named);
		return pr_hint(l->err, "systemd sets it for the units' LoadCredential=; by hand: "
				       "CREDENTIALS_DIRECTORY=/etc/postrider/credentials/...");
	}
	own(l->conf, path);
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
static int resolve(const struct load *l, struct slot *s, const char *text, char **ret, int *ret_literal)
{
	int env = strncmp(text, "env:", 4) == 0, reference = env || strncmp(text, "file:", 5) == 0;

	*ret_literal = !reference;
	if (reference && !l->unread)
		return env ? secret_of_env(l, s, text + 4, ret) : secret_of_file(l, s, text + 5, ret);
	s->unread |= reference;
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
	if (s->unread) {
		*(char **)s->field = v;
		s->shown = pr_conf_quote(v);
		return 0;
	}
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

static int set_ratio(const struct load *l, struct slot *s, double v)
{
	if (!(v >= 0 && v <= 1))
		return fail_slot(l, s, "must be from 0.0 to 1.0");
	*(int64_t *)s->field = llround(v * 1e6);
	s->shown = pr_asprintf("%.*g", 6, v);
	return 0;
}

static int set_ratio_text(const struct load *l, struct slot *s, const char *text)
{
	size_t n = strspn(text, "0123456789.");

	if (n == 0 || text[n] || n > 20 || *text == '.' || strchr(text, '.') != strrchr(text, '.'))
		return fail_slot(l, s, "is not %s", pr_conf_type_str(PR_OPT_RATIO));
	return set_ratio(l, s, strtod(text, NULL));
}

static int set_enum(const struct load *l, struct slot *s, const char *text)
{
	int i = pr_conf_choice(s->o->choices, text);
	char *word;

	if (i < 0) {
		word = pr_conf_quote(text);
		(void)fail_slot(l, s, "%.90s is not one of: %s", word, s->o->choices);
		if (s->o->refused && l->err)
			(void)pr_hint(l->err, "%s", s->o->refused);
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
	const char *secret = s->o->flags & PR_OPT_PLAIN ? NULL : pr_conf_secret_part(text);
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
			return fail_slot(
				l, s, "element %d must be a string, is %s", i + 1, conf_type_name(e));
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
				l, s, "element %zu must be a group { ... }, is %s", i + 1, conf_type_name(e));
		else
			rc = conf_load_level(l, &sub, e);
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
	case PR_OPT_RATIO:
		return set_ratio_text(l, s, text);
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
	if (s->o->type == PR_OPT_RATIO && (type == CONFIG_TYPE_FLOAT || type == CONFIG_TYPE_INT))
		return set_ratio(l, s,
			type == CONFIG_TYPE_INT ? config_setting_get_int(is) : config_setting_get_float(is));
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

int conf_set_slot(const struct load *l, struct slot *s)
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

/* ---- references left as they were ---- */

static int follow_strs(const struct load *l, struct slot *s)
{
	const struct pr_strs *was = s->field;
	struct pr_strs strs = { .v = own(l->conf, pr_calloc(was->n, sizeof(*strs.v))) };

	for (size_t i = 0; i < was->n; i++)
		if (set_element(l, s, was->v[i], &strs) < 0)
			return -1;
	close_list(s);
	*(struct pr_strs *)s->field = strs;
	return 0;
}

int pr_conf_follow(
	struct pr_conf *conf, const struct pr_opt *table, void *target, const char *path, struct pr_err *err)
{
	/* Not from the file: a literal beside a reference was looked at when the file was read. */
	const struct given given = { .from = FROM_DEFAULT };
	struct load l = { .conf = conf, .err = err };
	struct entry *e = conf_entry(conf, path);
	struct slot s = { .o = &table[conf_find(table, path)], .given = &given };
	int rc;

	if (!e || !e->unread)
		return 0;
	s.field = (char *)target + s.o->offset;
	s.path = e->path;
	s.where = e->where;
	rc = s.o->type == PR_OPT_STRS ? follow_strs(&l, &s) : set_text(&l, &s, *(char **)s.field);
	if (rc < 0) {
		free(s.shown);
		return -1;
	}
	free(e->shown);
	e->shown = s.shown;
	e->unread = 0;
	return 0;
}
