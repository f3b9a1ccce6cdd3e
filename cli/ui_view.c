/* cli/ui_view.c -- what our verbs say as JSON, as a person reads it: one object as facts, objects of one kind
 * as a table. Refuses to show payloads, headers and data unless it is told that whoever looks may see them.
 */
#include "cli/ui.h"

#include "lib/form.h"

#include <stdlib.h>
#include <string.h>

static const char *const private[] = { "payload", "payload_base64", "data", "headers", "detail", NULL };

static int is_hidden(const struct ui_view *v, const char *name)
{
	for (int i = 0; private[i]; i++)
		if (strcmp(private[i], name) == 0)
			return !v->open;
	return 0;
}

static void put_words(struct pr_buf *b, const char *name)
{
	char *words = pr_strdup(name);

	for (char *c = words; *c; c++)
		*c = *c == '_' ? ' ' : *c;
	pr_html_text(b, words);
	free(words);
}

static char *text_of(const cJSON *v)
{
	return !v || cJSON_IsNull(v) ? pr_strdup("")
	       : cJSON_IsString(v)   ? pr_strdup(v->valuestring)
				     : cJSON_PrintUnformatted(v);
}

void ui_put_parameter(struct pr_buf *b, const char *name, const char *value)
{
	char *escaped = pr_form_escape(value);

	pr_buf_printf(b, "%s%s=%s", b->s[b->len - 1] == '?' ? "" : "&amp;", name, escaped);
	free(escaped);
}

static void put_link(struct pr_buf *b, const struct ui_link *l, const struct ui_view *v, const cJSON *row,
	const char *text)
{
	char number[16];

	pr_buf_printf(b, "<a href=\"%s", l->path);
	(void)snprintf(number, sizeof(number), "%d", v->db);
	ui_put_parameter(b, "db", number);
	for (int i = 0; l->with[i].as; i++) {
		const cJSON *m = cJSON_GetObjectItemCaseSensitive(row, l->with[i].member);
		char *value = text_of(m);

		if (m && !cJSON_IsNull(m))
			ui_put_parameter(b, l->with[i].as, value);
		free(value);
	}
	pr_buf_puts(b, "\">");
	pr_html_text(b, text);
	pr_buf_puts(b, "</a>");
}

static const struct ui_link *link_of(const struct ui_view *v, const char *column)
{
	for (int i = 0; i < v->links_n; i++)
		if (v->links[i].column && strcmp(v->links[i].column, column) == 0)
			return &v->links[i];
	return NULL;
}

static void put_cell(struct pr_buf *b, const cJSON *v, const struct ui_view *view, const cJSON *row)
{
	const struct ui_link *l = link_of(view, v->string);
	char *text = text_of(v);

	if (l && *text)
		put_link(b, l, view, row, text);
	else
		pr_html_text(b, text);
	free(text);
}

static int has_deeds(const struct ui_view *v)
{
	for (int i = 0; i < v->links_n; i++)
		if (!v->links[i].column)
			return 1;
	return 0;
}

static void put_head(struct pr_buf *b, const cJSON *first, const struct ui_view *v)
{
	const cJSON *col;

	pr_buf_puts(b, "<thead><tr>");
	cJSON_ArrayForEach(col, first)
	{
		if (is_hidden(v, col->string))
			continue;
		pr_buf_puts(b, "<th scope=\"col\">");
		put_words(b, col->string);
		pr_buf_puts(b, "</th>");
	}
	if (has_deeds(v))
		pr_buf_puts(b, "<th scope=\"col\">to do</th>");
	pr_buf_puts(b, "</tr></thead>");
}

static void put_row(struct pr_buf *b, const cJSON *first, const cJSON *row, const struct ui_view *v)
{
	const cJSON *col;

	pr_buf_puts(b, "<tr>");
	cJSON_ArrayForEach(col, first)
	{
		const cJSON *value = cJSON_GetObjectItemCaseSensitive(row, col->string);

		if (is_hidden(v, col->string))
			continue;
		pr_buf_puts(b, cJSON_IsNumber(value) ? "<td class=\"num\">" : "<td>");
		if (value)
			put_cell(b, value, v, row);
		pr_buf_puts(b, "</td>");
	}
	if (has_deeds(v)) {
		pr_buf_puts(b, "<td class=\"links\">");
		for (int i = 0; i < v->links_n; i++)
			if (!v->links[i].column)
				put_link(b, &v->links[i], v, row, v->links[i].text);
		pr_buf_puts(b, "</td>");
	}
	pr_buf_puts(b, "</tr>");
}

/* The first one's members are the columns. */
void ui_put_table(struct pr_buf *b, const char *caption, const cJSON *list, const struct ui_view *v)
{
	const cJSON *row, *first = cJSON_GetArrayItem(list, 0);

	pr_buf_puts(b, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"");
	put_words(b, caption);
	pr_buf_puts(b, "\"><table><caption>");
	put_words(b, caption);
	pr_buf_puts(b, "</caption>");
	put_head(b, first, v);
	pr_buf_puts(b, "<tbody>");
	cJSON_ArrayForEach(row, list)
	{
		put_row(b, first, row, v);
	}
	pr_buf_puts(b, "</tbody></table></div>");
}

static void put_facts(struct pr_buf *b, const char *of, const cJSON *o, const struct ui_view *view)
{
	const cJSON *v;

	cJSON_ArrayForEach(v, o)
	{
		if (is_hidden(view, v->string) || cJSON_IsNull(v) || cJSON_IsArray(v))
			continue;
		if (!cJSON_IsObject(v)) {
			pr_buf_puts(b, "<div><dt>");
			put_words(b, of);
			pr_buf_puts(b, *of ? " " : "");
			put_words(b, v->string);
			pr_buf_puts(b, "</dt><dd>");
			put_cell(b, v, view, o);
			pr_buf_puts(b, "</dd></div>");
		} else if (!*of) {
			put_facts(b, v->string, v, view);
		}
	}
}

/* What is simple as facts, lists of objects as tables. */
void ui_put_object(struct pr_buf *b, const cJSON *o, const struct ui_view *v)
{
	const cJSON *m;

	pr_buf_puts(b, "<dl>");
	put_facts(b, "", o, v);
	pr_buf_puts(b, "</dl>");
	cJSON_ArrayForEach(m, o)
	{
		if (!is_hidden(v, m->string) && cJSON_IsArray(m) && cJSON_IsObject(cJSON_GetArrayItem(m, 0)))
			ui_put_table(b, m->string, m, &(struct ui_view){ .open = v->open, .db = v->db });
	}
}

/* As it is typed in a shell; of many operands the first. */
void ui_put_command(struct pr_buf *b, const char *const *argv)
{
	pr_buf_puts(b, "<p>In the terminal: <code>postrider");
	for (int i = 0; argv[i]; i++) {
		int plain =
			argv[i][strspn(argv[i],
				"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=.:/@")] ==
			'\0';

		if (i == 20) {
			pr_buf_puts(b, " ...");
			break;
		}
		pr_buf_puts(b, plain && *argv[i] ? " " : " '");
		for (const char *s = argv[i]; *s;) {
			size_t n = strcspn(s, "'");
			char *part = pr_asprintf("%.*s%s", (int)n, s, s[n] ? "'\\''" : "");

			pr_html_text(b, part);
			free(part);
			s += n + (s[n] != '\0');
		}
		pr_buf_puts(b, plain && *argv[i] ? "" : "'");
	}
	pr_buf_puts(b, "</code></p>");
}
