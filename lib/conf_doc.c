/* lib/conf_doc.c -- the option table written out for people: the commented sample in
 * etc/ and the reference page in docs/. Both are committed and a test compares them with
 * the table, so they cannot go stale. Refuses to show hidden options. */
#include "lib/conf.h"
#include "lib/conf_value.h"

#include <stdlib.h>
#include <string.h>

#define WIDTH 92

static int is_shown(const struct pr_opt *o)
{
	return !(o->flags & PR_OPT_HIDDEN);
}

/* "limits" of "limits.batch_events"; 0 for a key outside of groups. */
static size_t group_len(const char *path)
{
	const char *dot = strrchr(path, '.');

	return dot ? (size_t)(dot - path) : 0;
}

static const char *leaf_of(const char *path)
{
	return path + group_len(path) + (group_len(path) > 0);
}

static int is_plain_number(const char *s)
{
	return *s && strspn(s, "-0123456789") == strlen(s);
}

/* The value as a config file has it; malloc'd. */
static char *literal(const struct pr_opt *o, const char *value)
{
	char *quoted, *list;

	if (o->type == PR_OPT_BOOL || o->type == PR_OPT_RATIO ||
		(o->type == PR_OPT_INT && is_plain_number(value)))
		return pr_strdup(value);
	quoted = pr_conf_quote(value);
	if (o->type != PR_OPT_STRS)
		return quoted;
	list = pr_asprintf("( %s )", quoted);
	free(quoted);
	return list;
}

static char *group_literal(const struct pr_opt *o)
{
	struct pr_buf b = { 0 };

	pr_buf_puts(&b, "( {");
	for (const struct pr_opt *sub = o->sub; sub->path; sub++) {
		const char *value = sub->def ? sub->def : sub->example;
		char *text = is_shown(sub) && value ? literal(sub, value) : NULL;

		if (text)
			pr_buf_printf(&b, " %s = %s;", sub->path, text);
		free(text);
	}
	pr_buf_puts(&b, " } )");
	return b.s;
}

static char *sample_value(const struct pr_opt *o)
{
	const char *value = o->def ? o->def : o->example;

	if (o->type == PR_OPT_GROUPS)
		return group_literal(o);
	if (value)
		return literal(o, value);
	return pr_strdup(o->type == PR_OPT_STRS ? "()" : "\"\"");
}

/* "duration, 1ms to 10m, restart to change" */
static char *facts(const struct pr_opt *o)
{
	static const char *const names[] = { "string", "secret", "connection string", "true or false",
		"number", "size", "duration", "one of", "list of strings", "0.0 to 1.0", "list of groups" };
	char *range = pr_conf_range_str(o), *s;
	int required = o->flags & PR_OPT_REQUIRED;

	s = pr_asprintf("%s%s%s%s%s%s%s", names[o->type], o->choices ? ": " : "",
		o->choices ? o->choices : "", range ? ", " : "", range ? range : "",
		required ? ", required"
		: o->def ? ""
			 : ", none by default",
		o->flags & PR_OPT_NO_RELOAD ? ", a change needs a restart" : "");
	free(range);
	for (char *p = strchr(s, '|'); p && o->choices; p = strchr(p, '|'))
		*p = '/';
	return s;
}

static void comment(FILE *out, const char *indent, const char *text)
{
	size_t room = WIDTH - 8 * strlen(indent), col = 0;

	while (*text) {
		size_t n = strcspn(text, " ");

		if (col > 0 && col + n + 1 > room) {
			(void)fputc('\n', out);
			col = 0;
		}
		if (col == 0)
			col = (size_t)fprintf(out, "%s#", indent);
		col += (size_t)fprintf(out, " %.*s", (int)n, text);
		text += n + (text[n] == ' ');
	}
	(void)fputc('\n', out);
}

static size_t depth_of(const char *path)
{
	size_t n = 0;

	for (; *path; path++)
		n += *path == '.';
	return n;
}

static void sample_option(const struct pr_opt *o, FILE *out)
{
	const char *indent = &"\t\t\t"[3 - depth_of(o->path)];
	char *fact = facts(o), *value = sample_value(o);

	comment(out, indent, o->doc);
	(void)fprintf(out, "%s# (%s)\n", indent, fact);
	(void)fprintf(out, "%s%s%s = %s;\n", indent, o->flags & (PR_OPT_REQUIRED | PR_OPT_SHOWN) ? "" : "#",
		leaf_of(o->path), value);
	if (o->type == PR_OPT_GROUPS)
		for (const struct pr_opt *sub = o->sub; sub->path; sub++) {
			char *text = pr_asprintf("  %s: %s", sub->path, sub->doc);

			if (is_shown(sub))
				comment(out, indent, text);
			free(text);
		}
	free(value);
	free(fact);
}

/* Bytes of the groups that both stand in. */
static size_t common_groups(const char *a, const char *b)
{
	size_t n = 0, same = 0;

	for (; a[n] && a[n] == b[n]; n++)
		if (a[n] == '.')
			same = n + 1;
	return same;
}

/* Ends the groups of last that path does not stand in, begins those that last does not. */
static void sample_groups(const char *last, const char *path, FILE *out)
{
	size_t same = common_groups(last, path), depth = depth_of(last);
	const char *dot;

	for (; depth > depth_of(path) - depth_of(path + same); depth--)
		(void)fprintf(out, "%s};\n", &"\t\t\t"[4 - depth]);
	(void)fputc('\n', out);
	for (const char *p = path + same; (dot = strchr(p, '.')); p = dot + 1, depth++)
		(void)fprintf(out, "%s%.*s: {\n", &"\t\t\t"[3 - depth], (int)(dot - p), p);
}

void pr_conf_sample(const struct pr_opt *table, const char *title, FILE *out)
{
	const char *last = "";

	(void)fprintf(out,
		"# %s: every option, its meaning and its default.\n"
		"# A line \"#key = value;\" shows a default, or an example where there is none. Sizes "
		"(\"8MB\") and\n"
		"# durations (\"5s\") are strings with units. Secrets may be \"env:NAME\" or "
		"\"file:/path\".\n"
		"# Check a changed file with --check, see what is in effect with --print-config.\n",
		title);
	for (; table->path; table++) {
		if (!is_shown(table))
			continue;
		sample_groups(last, table->path, out);
		sample_option(table, out);
		last = table->path;
	}
	for (size_t depth = depth_of(last); depth > 0; depth--)
		(void)fprintf(out, "%s};\n", &"\t\t\t"[4 - depth]);
}

static void reference_option(const struct pr_opt *o, const char *prefix, FILE *out)
{
	char *fact = facts(o), *value = o->def ? literal(o, o->def) : NULL;

	(void)fprintf(out, "### `%s%s`\n\n%s\n\n- %s\n", prefix, o->path, o->doc, fact);
	if (value)
		(void)fprintf(out, "- default: `%s`\n", value);
	if (!o->def && o->example && o->type != PR_OPT_GROUPS) {
		free(value);
		value = literal(o, o->example);
		(void)fprintf(out, "- example: `%s`\n", value);
	}
	(void)fputc('\n', out);
	free(value);
	free(fact);
}

static void reference_table(const struct pr_opt *table, const char *prefix, FILE *out)
{
	for (; table->path; table++) {
		if (!is_shown(table))
			continue;
		reference_option(table, prefix, out);
		if (table->type == PR_OPT_GROUPS) {
			char *below = pr_asprintf("%s%s[].", prefix, table->path);

			reference_table(table->sub, below, out);
			free(below);
		}
	}
}

void pr_conf_reference(const struct pr_opt *table, const char *title, FILE *out)
{
	(void)fprintf(out,
		"# %s: configuration\n\n"
		"Written by `%s --print-reference`; do not edit. The file is libconfig syntax: `key = "
		"value;`,\n"
		"`group: { ... };`, comments with `#`. A dotted name below is a key in a group, and what\n"
		"`-o name=value` takes on the command line (it wins over the file). Sizes (`\"8MB\"`: B, kB, "
		"MB,\n"
		"GB, TB, powers of 1024) and durations (`\"5s\"`: us, ms, s, m, h, d) are strings with "
		"units.\n"
		"Secrets, connection strings and the secret ones of a list's properties may be "
		"`\"env:NAME\"` or\n"
		"`\"file:/path\"`. Unknown keys are errors. `@include \"file\"` reads a file of the same "
		"directory\n"
		"or below.\n\n",
		title, title);
	reference_table(table, "", out);
}
