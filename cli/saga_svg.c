/* cli/saga_svg.c -- a definition as SVG by a layout of our own: a row for each stage, on the left what is
 * done from top to bottom, on the right what is undone from bottom to top. No script, no font and no link of
 * anybody else's: the file can be put into any page. Text that does not fit is cut, and whole in its tooltip.
 */
#include "cli/saga_graph.h"

#include <stdlib.h>
#include <string.h>

#define CARD_W  300
#define PAD     10 /* inside a card */
#define LINE_H  16
#define GAP_X   24
#define GAP_Y   46
#define FRAME   9   /* around steps that run side by side */
#define LANE    150 /* between the sides */
#define MARGIN  24
#define TITLE_H 34
#define PILL_W  140
#define PILL_H  28

struct place {
	int x, y; /* upper left corner */
};

struct svg {
	struct pr_buf *b;
	const struct saga_def *def;
	struct saga_lines lines[SAGA_STEPS_MOST], undo[SAGA_STEPS_MOST];
	struct place at[SAGA_STEPS_MOST], undo_at[SAGA_STEPS_MOST];
	int row_y[SAGA_STEPS_MOST], row_h[SAGA_STEPS_MOST];
	int left_w, right_w; /* 0: nothing is ever undone */
	int width, height;
};

/* ---------------------------------------------------------------- text */

void saga_put_xml(struct pr_buf *b, const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)s[i];

		if (c == '<')
			pr_buf_puts(b, "&lt;");
		else if (c == '>')
			pr_buf_puts(b, "&gt;");
		else if (c == '&')
			pr_buf_puts(b, "&amp;");
		else if (c == '"')
			pr_buf_puts(b, "&quot;");
		else
			pr_buf_put(b, c < ' ' || c == 0x7f ? " " : s + i, 1);
	}
}

/* Bytes of s that fill at most max cells; East Asian characters fill two. */
static size_t fit(const char *s, int max)
{
	size_t n = 0;

	while (s[n]) {
		unsigned char c = (unsigned char)s[n];
		size_t len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;

		max -= len > 2 ? 2 : 1;
		if (max < 0)
			break;
		while (len > 0 && s[n]) {
			n++;
			len--;
		}
	}
	return n;
}

static void text(struct svg *v, int x, int y, const char *class, const char *s, int cells)
{
	size_t n = fit(s, cells);

	pr_buf_printf(v->b, "<text x=\"%d\" y=\"%d\" class=\"%s\">", x, y, class);
	if (s[n]) {
		pr_buf_puts(v->b, "<title>");
		saga_put_xml(v->b, s, strlen(s));
		pr_buf_puts(v->b, "</title>");
		n = fit(s, cells - 1);
	}
	saga_put_xml(v->b, s, n);
	pr_buf_puts(v->b, s[n] ? "\xe2\x80\xa6</text>\n" : "</text>\n");
}

/* ---------------------------------------------------------------- layout */

static int card_h(const struct saga_lines *l)
{
	return PAD + 20 + l->n * LINE_H + PAD;
}

/* Steps of a stage; undone: those of them that are undone. */
static int count(const struct svg *v, int stage, int undone)
{
	int n = 0;

	for (size_t i = 0; i < v->def->step_n; i++)
		n += v->def->step[i].stage == stage &&
		     (!undone || saga_graph_is_undone(v->def, &v->def->step[i]));
	return n;
}

static int width_of(int cards)
{
	return cards ? cards * CARD_W + (cards - 1) * GAP_X : 0;
}

static int may_fail(const struct saga_def *def)
{
	for (size_t i = 0; i < def->step_n; i++)
		if (saga_graph_may_refuse(def, &def->step[i]) || saga_graph_is_undone(def, &def->step[i]))
			return 1;
	return 0;
}

static int left_mid(const struct svg *v)
{
	return MARGIN + v->left_w / 2;
}

static int right_x(const struct svg *v)
{
	return MARGIN + v->left_w + LANE;
}

static int right_mid(const struct svg *v)
{
	return right_x(v) + v->right_w / 2;
}

static void measure(struct svg *v)
{
	int left = 0, right = 0;

	for (size_t i = 0; i < v->def->step_n; i++) {
		const struct saga_step *s = &v->def->step[i];

		saga_lines_of(v->def, s, &v->lines[i]);
		if (saga_graph_is_undone(v->def, s))
			saga_lines_of_undo(v->def, s, &v->undo[i]);
		if (card_h(&v->lines[i]) > v->row_h[s->stage])
			v->row_h[s->stage] = card_h(&v->lines[i]);
		if (card_h(&v->undo[i]) > v->row_h[s->stage])
			v->row_h[s->stage] = card_h(&v->undo[i]);
	}
	for (int stage = 0; stage < v->def->stages; stage++) {
		left = count(v, stage, 0) > left ? count(v, stage, 0) : left;
		right = count(v, stage, 1) > right ? count(v, stage, 1) : right;
	}
	v->left_w = width_of(left);
	v->right_w = right ? width_of(right) : may_fail(v->def) ? PILL_W : 0;
}

static void put_row(struct svg *v, int stage)
{
	int x = left_mid(v) - width_of(count(v, stage, 0)) / 2,
	    ux = right_mid(v) - width_of(count(v, stage, 1)) / 2;

	for (size_t i = 0; i < v->def->step_n; i++) {
		if (v->def->step[i].stage != stage)
			continue;
		v->at[i] = (struct place){ x, v->row_y[stage] };
		x += CARD_W + GAP_X;
		if (!saga_graph_is_undone(v->def, &v->def->step[i]))
			continue;
		v->undo_at[i] = (struct place){ ux, v->row_y[stage] };
		ux += CARD_W + GAP_X;
	}
}

static void lay_out(struct svg *v)
{
	int y = MARGIN + TITLE_H + PILL_H + GAP_Y;

	measure(v);
	for (int stage = 0; stage < v->def->stages; stage++) {
		v->row_y[stage] = y;
		put_row(v, stage);
		y += v->row_h[stage] + GAP_Y;
	}
	v->height = y + PILL_H + 34 + MARGIN;
	v->width = MARGIN + v->left_w + (v->right_w ? LANE + v->right_w : 0) + MARGIN;
}

/* ---------------------------------------------------------------- edges */

/* The middle of the gap above a row; the row behind the last is the end. */
static int gap_above(const struct svg *v, int stage)
{
	int y = stage < v->def->stages ? v->row_y[stage] : v->row_y[stage - 1] + v->row_h[stage - 1] + GAP_Y;

	return y - GAP_Y / 2;
}

static int row_bottom(const struct svg *v, int stage)
{
	return v->row_y[stage] + v->row_h[stage];
}

static void edge(struct svg *v, int back, int x1, int y1, int mid, int x2, int y2)
{
	pr_buf_printf(v->b, "<path class=\"%s\" d=\"M%d %d", back ? "back" : "edge", x1, y1);
	if (x1 != x2)
		pr_buf_printf(v->b, "V%dH%d", mid, x2);
	pr_buf_printf(v->b, "V%d\" marker-end=\"url(#%s)\"/>\n", y2, back ? "tip-back" : "tip");
}

static int centre(struct place p)
{
	return p.x + CARD_W / 2;
}

static void edge_to_step(struct svg *v, int x1, int y1, size_t k)
{
	const struct saga_step *s = &v->def->step[k];

	edge(v, 0, x1, y1, gap_above(v, s->stage), centre(v->at[k]), v->row_y[s->stage]);
	if (s->on)
		text(v, centre(v->at[k]) + 7, v->row_y[s->stage] - 8, "more", s->on, 24);
}

static int follows(const struct saga_def *def, size_t k, size_t i)
{
	if (def->style == SAGA_CHOREOGRAPHY)
		return (int)(def->step[k].after >> i & 1);
	return def->step[k].stage == def->step[i].stage + 1;
}

static void edge_to_end(struct svg *v, size_t i)
{
	int stage = v->def->step[i].stage, x = centre(v->at[i]), y = row_bottom(v, stage);

	if (stage == v->def->stages - 1) {
		edge(v, 0, x, y, gap_above(v, stage + 1), left_mid(v), gap_above(v, stage + 1) + GAP_Y / 2);
		return;
	}
	/* A branch of a choreography that ends before the others. */
	pr_buf_printf(v->b,
		"<path class=\"edge\" d=\"M%d %dv14\"/><circle class=\"dot\" cx=\"%d\" cy=\"%d\" r=\"4\"/>\n",
		x, y, x, y + 16);
}

static void edges_forward(struct svg *v)
{
	int last;

	for (size_t i = 0; i < v->def->step_n; i++) {
		if (v->def->style == SAGA_CHOREOGRAPHY ? !v->def->step[i].after : v->def->step[i].stage == 0)
			edge_to_step(v, left_mid(v), MARGIN + TITLE_H + PILL_H, i);
		last = 1;
		for (size_t k = 0; k < v->def->step_n; k++)
			if (follows(v->def, k, i)) {
				edge_to_step(v, centre(v->at[i]), row_bottom(v, v->def->step[i].stage), k);
				last = 0;
			}
		if (last)
			edge_to_end(v, i);
	}
}

/* Where going back from a row leads: up to what is undone next, or to the pill of the end. */
static int back_y(const struct svg *v, int stage)
{
	if (stage == 0)
		return MARGIN + TITLE_H + PILL_H;
	return row_bottom(v, stage - 1) + (count(v, stage - 1, 1) > 1 ? FRAME : 0);
}

/* Out of the row's right side: into what runs beside it, or up the lane to what is before it. */
static void edge_of_refusal(struct svg *v, int stage, const char *label)
{
	int n = count(v, stage, 0), x = left_mid(v) + width_of(n) / 2 + (n > 1 ? FRAME : 0),
	    y = v->row_y[stage] + v->row_h[stage] / 2;

	pr_buf_printf(v->b, "<path class=\"back\" d=\"M%d %d", x, y);
	if (n > 1 && count(v, stage, 1) > 1)
		pr_buf_printf(v->b, "H%d", right_mid(v) - width_of(count(v, stage, 1)) / 2 - FRAME);
	else
		pr_buf_printf(v->b, "H%dV%dH%dV%d", right_x(v) - 18, gap_above(v, stage), right_mid(v),
			back_y(v, stage));
	pr_buf_puts(v->b, "\" marker-end=\"url(#tip-back)\"/>\n");
	text(v, x + 6, y - 6, "no", label, 19);
}

static void edges_back(struct svg *v)
{
	for (int stage = 0; stage < v->def->stages; stage++) {
		const char *label = NULL;
		int undone = count(v, stage, 1);

		for (size_t i = 0; i < v->def->step_n; i++) {
			const struct saga_step *s = &v->def->step[i];

			if (s->stage == stage && saga_graph_may_refuse(v->def, s))
				label = s->fails && count(v, stage, 0) == 1 ? s->fails : "refused";
		}
		if (label)
			edge_of_refusal(v, stage, label);
		if (undone)
			edge(v, 1, right_mid(v), v->row_y[stage] - (undone > 1 ? FRAME : 0), 0, right_mid(v),
				back_y(v, stage));
	}
}

/* ---------------------------------------------------------------- boxes */

static void pill(struct svg *v, int mid, int y, const char *class, const char *label)
{
	pr_buf_printf(v->b,
		"<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"14\"/>"
		"<text class=\"pill\" x=\"%d\" y=\"%d\">%s</text>\n",
		class, mid - PILL_W / 2, y, PILL_W, PILL_H, mid, y + 19, label);
}

static void card(struct svg *v, struct place at, int h, const char *class, const char *name, const char *kind,
	const struct saga_lines *l)
{
	static const char *const classes[] = { "what", "where", "more" };
	static const int cells[] = { 38, 42, 48 };
	int y = at.y + PAD + 14;

	pr_buf_printf(v->b,
		"<rect class=\"card %s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\"/>\n", class,
		at.x, at.y, CARD_W, h);
	text(v, at.x + PAD, y, "name", name, 20);
	pr_buf_printf(v->b, "<text class=\"kind %s\" x=\"%d\" y=\"%d\">%s</text>\n", class,
		at.x + CARD_W - PAD, y, kind);
	y += 4;
	for (int i = 0; i < l->n; i++)
		text(v, at.x + PAD, y += LINE_H, classes[l->line[i].kind], l->line[i].text,
			cells[l->line[i].kind]);
}

static void frame(struct svg *v, int stage, int mid, int cards)
{
	int w = width_of(cards) + 2 * FRAME;

	if (cards < 2)
		return;
	pr_buf_printf(v->b,
		"<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"10\"/>\n",
		mid - w / 2, v->row_y[stage] - FRAME, w, v->row_h[stage] + 2 * FRAME);
}

static void boxes(struct svg *v)
{
	int top = MARGIN + TITLE_H;

	pill(v, left_mid(v), top, "end", "start");
	pill(v, left_mid(v), gap_above(v, v->def->stages) + GAP_Y / 2, "end good", "COMPLETED");
	if (v->right_w)
		pill(v, right_mid(v), top, "end bad", "COMPENSATED");
	for (size_t i = 0; i < v->def->step_n; i++) {
		const struct saga_step *s = &v->def->step[i];
		const char *kind = saga_kind_str(s->kind);

		card(v, v->at[i], v->row_h[s->stage], kind, s->name, kind, &v->lines[i]);
		if (saga_graph_is_undone(v->def, s))
			card(v, v->undo_at[i], v->row_h[s->stage], "undo", s->name, "undo", &v->undo[i]);
	}
}

static const char style[] =
	"<style>\n"
	"text{font:11px system-ui,-apple-system,\"Segoe UI\",\"DejaVu Sans\",sans-serif;fill:#1d2329}\n"
	".title{font-size:15px;font-weight:600}\n"
	".name{font-size:14px;font-weight:600}\n"
	".what{font:12px ui-monospace,\"DejaVu Sans Mono\",monospace}\n"
	".where,.more,.foot{fill:#55616d}\n"
	".kind{text-anchor:end}\n"
	".pill{text-anchor:middle;font-size:12px;font-weight:600}\n"
	".paper{fill:#fff}\n"
	".card{fill:#fff;stroke-width:1.5}\n"
	".end{fill:#eef1f4;stroke:#8b96a1}\n"
	".good{fill:#e4f3e8;stroke:#2c7a43}\n"
	".bad{fill:#fbe9e7;stroke:#b3372f}\n"
	".frame{fill:none;stroke:#8b96a1;stroke-dasharray:2 4}\n"
	".card.compensatable{stroke:#3266ad}\n"
	".card.pivot{stroke:#a86200;stroke-width:3}\n"
	".card.retriable{stroke:#2c7a43}\n"
	".card.undo{stroke:#b3372f;stroke-dasharray:5 3}\n"
	".kind.compensatable{fill:#3266ad}\n"
	".kind.pivot{fill:#a86200}\n"
	".kind.retriable{fill:#2c7a43}\n"
	".kind.undo,.no{fill:#b3372f}\n"
	".edge,.back{fill:none;stroke:#55616d;stroke-width:1.5}\n"
	".back{stroke:#b3372f;stroke-dasharray:5 3}\n"
	".dot,#tip path{fill:#55616d}\n"
	"#tip-back path{fill:#b3372f}\n"
	"@media (prefers-color-scheme:dark){\n"
	"text{fill:#e6eaee}\n"
	".where,.more,.foot{fill:#a3afbb}\n"
	".paper{fill:#15191d}\n"
	".card{fill:#1d2329}\n"
	".end{fill:#262d34}\n"
	".good{fill:#17331f}\n"
	".bad{fill:#3a1c19}\n"
	".kind.compensatable{fill:#8ab4f0}\n"
	".kind.pivot{fill:#f0b357}\n"
	".kind.retriable{fill:#7cc892}\n"
	".kind.undo,.no{fill:#f08b82}\n"
	".edge{stroke:#a3afbb}\n"
	".dot,#tip path{fill:#a3afbb}\n"
	".back{stroke:#f08b82}\n"
	"#tip-back path{fill:#f08b82}\n"
	"}\n"
	"</style>\n";

static void head(struct svg *v, const char *title)
{
	static const char tip[] =
		"<marker id=\"%s\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" "
		"markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path d=\"M0 0L8 4L0 "
		"8z\"/></marker>\n";

	pr_buf_printf(v->b,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
		"role=\"img\">\n"
		"<title>",
		v->width, v->height, v->width, v->height);
	saga_put_xml(v->b, title, strlen(title));
	pr_buf_puts(v->b, "</title>\n");
	pr_buf_puts(v->b, style);
	pr_buf_puts(v->b, "<defs>\n");
	pr_buf_printf(v->b, tip, "tip");
	pr_buf_printf(v->b, tip, "tip-back");
	pr_buf_puts(v->b, "</defs>\n<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n");
	text(v, MARGIN, MARGIN + 14, "title", title, (v->width - 2 * MARGIN) / 8);
}

void saga_svg(const struct saga_def *def, struct pr_buf *b)
{
	struct svg v = { .b = b, .def = def };
	char *title = saga_graph_title(def);

	lay_out(&v);
	head(&v, title);
	for (int stage = 0; stage < def->stages; stage++) {
		frame(&v, stage, left_mid(&v), count(&v, stage, 0));
		frame(&v, stage, right_mid(&v), count(&v, stage, 1));
	}
	edges_forward(&v);
	edges_back(&v);
	boxes(&v);
	text(&v, MARGIN, v.height - MARGIN + 4, "foot", "solid: what is done; dashed: what is undone", 80);
	pr_buf_puts(b, "</svg>\n");
	for (size_t i = 0; i < def->step_n; i++) {
		saga_lines_free(&v.lines[i]);
		saga_lines_free(&v.undo[i]);
	}
	free(title);
}
