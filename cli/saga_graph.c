/* cli/saga_graph.c -- a definition as Mermaid or DOT; SVG is saga_svg.c's. Forward what is done, dashed what
 * is undone. Draws what the definition says, not what an instance did. */
#include "cli/saga_graph.h"

#include "lib/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const formats[] = { "mermaid", "dot", "svg" };

const char *saga_graph_format_str(enum saga_graph_format f)
{
	return formats[f];
}

int saga_graph_format_parse(const char *word)
{
	for (int i = 0; i < SAGA_GRAPH_FORMATS; i++)
		if (strcmp(formats[i], word) == 0)
			return i;
	return -1;
}

int saga_graph_is_undone(const struct saga_def *def, const struct saga_step *s)
{
	return s->kind == SAGA_COMPENSATABLE || (def->undo_held && s->kind == SAGA_PIVOT);
}

int saga_graph_may_refuse(const struct saga_def *def, const struct saga_step *s)
{
	return s->kind != SAGA_RETRIABLE &&
	       (def->style == SAGA_ORCHESTRATION || s->fails || def->emit_undo || def->undo_held);
}

/* ---------------------------------------------------------------- words */

static char *duration(int64_t us)
{
	static const struct {
		int64_t us;
		const char *unit;
	} units[] = { { 86400 * PR_SEC, "d" }, { 3600 * PR_SEC, "h" }, { 60 * PR_SEC, "m" }, { PR_SEC, "s" },
		{ PR_MS, "ms" }, { 1, "us" } };
	size_t i = 0;

	while (us % units[i].us)
		i++;
	return pr_asprintf("%lld%s", (long long)(us / units[i].us), units[i].unit);
}

static void add_line(struct saga_lines *l, enum saga_line_kind kind, char *text)
{
	l->line[l->n++] = (struct saga_line){ kind, text };
}

void saga_lines_free(struct saga_lines *l)
{
	while (l->n > 0)
		free(l->line[--l->n].text);
}

static char *tries(const struct saga_action *a, const char *then)
{
	char *timeout = duration(a->timeout_us), *s;

	s = a->retry.attempts == 1
		    ? pr_asprintf("1 try of %s%s", timeout, then)
		    : pr_asprintf("%lld tries of %s%s", (long long)a->retry.attempts, timeout, then);
	free(timeout);
	return s;
}

static void lines_of_events(const struct saga_step *s, struct saga_lines *l)
{
	char *timeout = duration(s->act[SAGA_DO].timeout_us);

	add_line(l, SAGA_LINE_WHAT, pr_asprintf("emits %s", s->emits));
	add_line(l, SAGA_LINE_WHERE, pr_asprintf("on %s", s->emits_topic));
	if (s->fails)
		add_line(l, SAGA_LINE_MORE, pr_asprintf("or %s; within %s", s->fails, timeout));
	else
		add_line(l, SAGA_LINE_MORE, pr_asprintf("within %s", timeout));
	free(timeout);
}

void saga_lines_of(const struct saga_def *def, const struct saga_step *s, struct saga_lines *ret)
{
	const struct saga_action *a = &s->act[SAGA_DO];

	ret->n = 0;
	if (def->style == SAGA_CHOREOGRAPHY) {
		lines_of_events(s, ret);
	} else {
		add_line(ret, SAGA_LINE_WHAT, pr_strdup(a->command));
		add_line(ret, SAGA_LINE_WHERE, pr_asprintf("to %s", a->topic));
		add_line(ret, SAGA_LINE_MORE, tries(a, s->kind == SAGA_RETRIABLE ? ", then STUCK" : ""));
	}
	if (s->when_text)
		add_line(ret, SAGA_LINE_MORE, pr_asprintf("when %s", s->when_text));
	if (!saga_graph_is_undone(def, s) && s->act[SAGA_UNDO].command)
		add_line(ret, SAGA_LINE_MORE,
			pr_asprintf("%s by an operator's order", s->act[SAGA_UNDO].command));
}

static char *when_held(const struct saga_def *def)
{
	char *after = def->undo_after_us ? duration(def->undo_after_us) : NULL, *text;

	text = pr_asprintf("by order%s%s", after ? ", or after " : "", after ? after : "");
	free(after);
	return text;
}

void saga_lines_of_undo(const struct saga_def *def, const struct saga_step *s, struct saga_lines *ret)
{
	const struct saga_action *a = &s->act[SAGA_UNDO];

	ret->n = 0;
	if (a->command) {
		add_line(ret, SAGA_LINE_WHAT, pr_strdup(a->command));
		add_line(ret, SAGA_LINE_WHERE, pr_asprintf("to %s", a->topic));
		add_line(ret, SAGA_LINE_MORE, tries(a, ", then STUCK"));
		if (def->undo_held)
			add_line(ret, SAGA_LINE_MORE, when_held(def));
	} else {
		add_line(ret, SAGA_LINE_WHAT, pr_asprintf("emits %s", s->undone));
		add_line(ret, SAGA_LINE_WHERE, pr_asprintf("on %s", s->emits_topic));
		add_line(ret, SAGA_LINE_MORE, pr_strdup("by its service itself"));
	}
}

char *saga_graph_title(const struct saga_def *def)
{
	char *deadline = def->deadline_us ? duration(def->deadline_us) : NULL, *title;

	title = pr_asprintf("%s, version %d: %s%s%s", def->name, def->version, saga_style_str(def->style),
		deadline ? ", deadline " : "", deadline ? deadline : "");
	free(deadline);
	return title;
}

/* ---------------------------------------------------------------- edges */

/* One way of drawing: how the two languages write the same nodes and edges. */
struct pen {
	struct pr_buf *b;
	const struct saga_def *def;
	void (*edge)(struct pen *p, const char *from, const char *to, const char *label, int back);
};

static void name_of(char buf[16], const char *letter, int step)
{
	(void)snprintf(buf, 16, "%s%d", letter, step);
}

/* To what is undone first of the stages before this one, or to the end. */
static void edges_back(struct pen *p, const char *from, int stage, const char *label)
{
	char to[16];
	int found = 0;

	for (int k = stage - 1; k >= 0 && !found; k--)
		for (size_t i = 0; i < p->def->step_n; i++)
			if (p->def->step[i].stage == k && saga_graph_is_undone(p->def, &p->def->step[i])) {
				name_of(to, "u", (int)i);
				p->edge(p, from, to, label, 1);
				found = 1;
			}
	if (!found)
		p->edge(p, from, "compensated", label, 1);
}

/* A step that is refused: what runs beside it is undone, then what is before it. */
static void edges_of_refusal(struct pen *p, int i)
{
	const struct saga_step *s = &p->def->step[i];
	char from[16], to[16];
	int beside = 0;

	name_of(from, "s", i);
	for (size_t k = 0; k < p->def->step_n; k++)
		if ((int)k != i && p->def->step[k].stage == s->stage &&
			saga_graph_is_undone(p->def, &p->def->step[k])) {
			name_of(to, "u", (int)k);
			p->edge(p, from, to, s->fails ? s->fails : "refused", 1);
			beside = 1;
		}
	if (!beside)
		edges_back(p, from, s->stage, s->fails ? s->fails : "refused");
}

static int follows(const struct saga_def *def, size_t k, size_t i)
{
	if (def->style == SAGA_CHOREOGRAPHY)
		return (int)(def->step[k].after >> i & 1);
	return def->step[k].stage == def->step[i].stage + 1;
}

static int begins(const struct saga_def *def, size_t i)
{
	return def->style == SAGA_CHOREOGRAPHY ? !def->step[i].after : def->step[i].stage == 0;
}

static void edges_forward(struct pen *p, size_t i)
{
	const struct saga_step *s = &p->def->step[i];
	char from[16], to[16];
	int last = 1;

	name_of(from, "s", (int)i);
	if (begins(p->def, i))
		p->edge(p, "start", from, s->on ? s->on : "", 0);
	for (size_t k = 0; k < p->def->step_n; k++)
		if (follows(p->def, k, i)) {
			name_of(to, "s", (int)k);
			p->edge(p, from, to, p->def->step[k].on ? p->def->step[k].on : "", 0);
			last = 0;
		}
	if (last)
		p->edge(p, from, "completed", "", 0);
}

static void edges(struct pen *p)
{
	char from[16];

	for (size_t i = 0; i < p->def->step_n; i++)
		edges_forward(p, i);
	for (size_t i = 0; i < p->def->step_n; i++) {
		const struct saga_step *s = &p->def->step[i];

		if (saga_graph_may_refuse(p->def, s))
			edges_of_refusal(p, (int)i);
		name_of(from, "u", (int)i);
		if (saga_graph_is_undone(p->def, s))
			edges_back(p, from, s->stage, "");
	}
}

static int is_refused_anywhere(const struct saga_def *def)
{
	for (size_t i = 0; i < def->step_n; i++)
		if (saga_graph_may_refuse(def, &def->step[i]) || saga_graph_is_undone(def, &def->step[i]))
			return 1;
	return 0;
}

/* Number of steps of the stage. */
static int width_of(const struct saga_def *def, int stage)
{
	int n = 0;

	for (size_t i = 0; i < def->step_n; i++)
		n += def->step[i].stage == stage;
	return n;
}

/* ---------------------------------------------------------------- mermaid */

/* Inside of "...": what Mermaid or HTML would read is written by number. */
static void put_mermaid(struct pr_buf *b, const char *s)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c < ' ' || c == 0x7f)
			pr_buf_puts(b, " ");
		else if (strchr("\"<>&#;`", c))
			pr_buf_printf(b, "#%d;", c);
		else
			pr_buf_put(b, s, 1);
	}
}

static void mermaid_edge(struct pen *p, const char *from, const char *to, const char *label, int back)
{
	pr_buf_printf(p->b, "  %s %s", from, back ? "-.->" : "-->");
	if (*label) {
		pr_buf_puts(p->b, "|\"");
		put_mermaid(p->b, label);
		pr_buf_puts(p->b, "\"|");
	}
	pr_buf_printf(p->b, " %s\n", to);
}

static void mermaid_node(struct pr_buf *b, const char *id, const char *name, const char *kind,
	struct saga_lines *lines, const char *class)
{
	pr_buf_printf(b, "  %s[\"<b>%s</b> %s", id, name, kind);
	for (int i = 0; i < lines->n; i++) {
		pr_buf_puts(b, "<br/>");
		put_mermaid(b, lines->line[i].text);
	}
	pr_buf_printf(b, "\"]:::%s\n", class);
	saga_lines_free(lines);
}

static void mermaid_steps(const struct saga_def *def, int stage, struct pr_buf *b)
{
	int beside = width_of(def, stage) > 1;
	struct saga_lines lines;
	char id[16];

	if (beside)
		pr_buf_printf(b, "  subgraph stage%d [\"side by side\"]\n", stage);
	for (size_t i = 0; i < def->step_n; i++) {
		if (def->step[i].stage != stage)
			continue;
		name_of(id, "s", (int)i);
		saga_lines_of(def, &def->step[i], &lines);
		mermaid_node(b, id, def->step[i].name, saga_kind_str(def->step[i].kind), &lines,
			saga_kind_str(def->step[i].kind));
	}
	if (beside)
		pr_buf_puts(b, "  end\n");
}

static void mermaid(const struct saga_def *def, struct pr_buf *b)
{
	struct pen p = { .b = b, .def = def, .edge = mermaid_edge };
	char *title = saga_graph_title(def), id[16];
	struct saga_lines lines;

	pr_buf_printf(b, "---\ntitle: \"%s\"\n---\nflowchart TD\n  start([\"start\"])\n", title);
	for (int stage = 0; stage < def->stages; stage++)
		mermaid_steps(def, stage, b);
	for (size_t i = 0; i < def->step_n; i++) {
		if (!saga_graph_is_undone(def, &def->step[i]))
			continue;
		name_of(id, "u", (int)i);
		saga_lines_of_undo(def, &def->step[i], &lines);
		mermaid_node(b, id, def->step[i].name, "undo", &lines, "undo");
	}
	pr_buf_puts(b, "  completed([\"COMPLETED\"])\n");
	if (is_refused_anywhere(def))
		pr_buf_puts(b, "  compensated([\"COMPENSATED\"])\n");
	edges(&p);
	pr_buf_puts(b, "  classDef compensatable stroke:#3266ad\n"
		       "  classDef pivot stroke:#a86200,stroke-width:3px\n"
		       "  classDef retriable stroke:#2c7a43\n"
		       "  classDef undo stroke:#b3372f,stroke-dasharray:4 3\n");
	free(title);
}

/* ---------------------------------------------------------------- dot */

static void put_dot(struct pr_buf *b, const char *s)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			pr_buf_puts(b, "\\");
		pr_buf_put(b, c < ' ' || c == 0x7f ? " " : s, 1);
	}
}

static void dot_edge(struct pen *p, const char *from, const char *to, const char *label, int back)
{
	pr_buf_printf(p->b, "  %s -> %s [", from, to);
	if (*label) {
		pr_buf_puts(p->b, "label=\"");
		put_dot(p->b, label);
		pr_buf_puts(p->b, back ? "\", " : "\"");
	}
	pr_buf_puts(p->b,
		back ? "class=\"back\", style=dashed, color=\"#b3372f\", constraint=false];\n" : "];\n");
}

static void dot_node(struct pr_buf *b, const char *id, const char *name, const char *kind,
	struct saga_lines *lines, const char *style)
{
	pr_buf_printf(b, "  %s [label=\"%s (%s)", id, name, kind);
	for (int i = 0; i < lines->n; i++) {
		pr_buf_puts(b, "\\n");
		put_dot(b, lines->line[i].text);
	}
	pr_buf_printf(b, "\", %s];\n", style);
	saga_lines_free(lines);
}

static void dot_rank(const struct saga_def *def, int stage, struct pr_buf *b)
{
	pr_buf_puts(b, "  { rank=same;");
	for (size_t i = 0; i < def->step_n; i++) {
		if (def->step[i].stage != stage)
			continue;
		pr_buf_printf(b, " s%zu;", i);
		if (saga_graph_is_undone(def, &def->step[i]))
			pr_buf_printf(b, " u%zu;", i);
	}
	pr_buf_puts(b, " }\n");
}

static void dot(const struct saga_def *def, struct pr_buf *b)
{
	static const char *const styles[] = { "color=\"#3266ad\"", "color=\"#a86200\", penwidth=3",
		"color=\"#2c7a43\"" };
	struct pen p = { .b = b, .def = def, .edge = dot_edge };
	char *title = saga_graph_title(def), id[16];
	struct saga_lines lines;

	pr_buf_printf(b,
		"digraph saga {\n  label=\"%s\"; labelloc=t; rankdir=TB; fontname=\"sans-serif\";\n"
		"  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];\n"
		"  edge [fontname=\"sans-serif\", fontsize=10];\n  start [shape=oval];\n",
		title);
	for (size_t i = 0; i < def->step_n; i++) {
		const struct saga_step *s = &def->step[i];

		name_of(id, "s", (int)i);
		saga_lines_of(def, s, &lines);
		dot_node(b, id, s->name, saga_kind_str(s->kind), &lines, styles[s->kind]);
		if (!saga_graph_is_undone(def, s))
			continue;
		name_of(id, "u", (int)i);
		saga_lines_of_undo(def, s, &lines);
		dot_node(b, id, s->name, "undo", &lines, "color=\"#b3372f\", style=\"rounded,dashed\"");
	}
	pr_buf_puts(b, "  completed [shape=oval, label=\"COMPLETED\"];\n");
	if (is_refused_anywhere(def))
		pr_buf_puts(b, "  compensated [shape=oval, label=\"COMPENSATED\"];\n"
			       "  { rank=same; start; compensated; }\n");
	for (int stage = 0; stage < def->stages; stage++)
		dot_rank(def, stage, b);
	edges(&p);
	pr_buf_puts(b, "}\n");
	free(title);
}

void saga_graph(const struct saga_def *def, enum saga_graph_format format, struct pr_buf *b)
{
	if (format == SAGA_GRAPH_MERMAID)
		mermaid(def, b);
	else if (format == SAGA_GRAPH_DOT)
		dot(def, b);
	else
		saga_svg(def, b);
}
