/* lib/page_picture.c -- the pipeline as a picture: Postgres, relay, Kafka, who reads, with numbers; colour,
 * word and shape by state, thickness by rate. Lying for a wide window, standing for a narrow one: of the two,
 * the style shows one. Refuses to guess: what no part of the page knows is dashed and says so. */
#include "lib/page_inner.h"

#include <stdio.h>
#include <string.h>

#define MOST 8
#define W    188
#define H    92
#define GAP  92
#define ROW  (H + 22)

struct box {
	const char *title, *state; /* state NULL: not known here */
	char name[32], line[2][40];
	double rate; /* of what flows into it */
};

struct picture {
	struct box chain[3]; /* Postgres, relay, Kafka; or Kafka alone */
	struct box branch[MOST];
	int chain_n, branch_n;
};

/* ---------------------------------------------------------------- what is in it */

static void worse(struct box *box, const char *state)
{
	if (!box->state || page_weight(state) > page_weight(box->state))
		box->state = state;
}

static void add_rate(struct box *box, double rate)
{
	if (!isnan(rate))
		box->rate += rate;
}

/* Of one program its name, of several how many. */
static void name_box(struct box *box, const struct pr_part *first, int n, const char *many)
{
	const char *name = page_name(first);

	if (n == 1)
		(void)snprintf(
			box->name, sizeof(box->name), strlen(name) > 24 ? "%.23s\xe2\x80\xa6" : "%s", name);
	else
		(void)snprintf(box->name, sizeof(box->name), "%d %s", n, many);
}

/* "ok", or "error" when one of them has no connection; NULL: nobody said. */
static void server_box(
	struct box *box, const struct pr_page *page, const char *title, const char *member, int relays)
{
	*box = (struct box){ .title = title };
	for (size_t i = 0; i < page->n; i++) {
		const cJSON *connected = page_at(page_at(page->parts[i].status, member), "connected");

		if (connected && (!relays || page->parts[i].relay))
			worse(box, cJSON_IsTrue(connected) ? "ok" : "error");
	}
	(void)snprintf(box->line[0], sizeof(box->line[0]), "%s",
		!box->state                     ? "not known here"
		: strcmp(box->state, "ok") == 0 ? "connected"
						: "no connection");
}

/* What one of them does not know, nobody does. */
static double most(double a, double b)
{
	return isnan(a) || isnan(b) ? NAN : fmax(a, b);
}

static double waiting_events(const struct pr_part *p)
{
	const cJSON *list = page_at(p->status, "waiting"), *topic;
	double n = 0;

	cJSON_ArrayForEach(topic, list)
	{
		n += fmax(0, page_num(topic, "events"));
	}
	return n;
}

/* A standby beside its leader is no trouble of the pipeline, and has no numbers of its own. */
static void relay_box(struct box *box, const struct pr_page *page)
{
	const struct pr_part *first = NULL;
	double lag = 0, pending = 0, held = 0;
	char text[32];
	int n = 0;

	*box = (struct box){ .title = "Relay" };
	for (size_t i = 0; i < page->n; i++) {
		const struct pr_part *p = &page->parts[i];

		if (!p->relay)
			continue;
		first = first ? first : p;
		n++;
		if (!page_is_spare(page, p))
			worse(box, page_state(p));
		add_rate(box, page_rate(p));
		lag = most(lag, page_num(p->status, "lag_seconds"));
		if (strcmp(page_state(p), "standby") != 0)
			pending += page_num(p->status, "pending_events");
		held += fmax(0, page_num(p->status, "parked_events"));
		held += waiting_events(p);
	}
	name_box(box, first, n, "relays");
	(void)snprintf(box->line[0], sizeof(box->line[0]), "lag %s", page_span(lag, text));
	if (held > 0)
		(void)snprintf(box->line[1], sizeof(box->line[1]), "%s held back", page_count(held, text));
	else if (isnan(pending))
		(void)snprintf(box->line[1], sizeof(box->line[1]), "pending not known");
	else
		(void)snprintf(box->line[1], sizeof(box->line[1]), "%s pending", page_count(pending, text));
}

static int is_plain(const struct pr_part *p)
{
	return !p->relay && !page_handles(p, "saga") && !page_handles(p, "sink");
}

static int is_saga(const struct pr_part *p)
{
	return page_handles(p, "saga");
}

static int is_sink(const struct pr_part *p)
{
	return page_handles(p, "sink");
}

static void held_line(struct box *box, double parked, double dead)
{
	char a[32], b[32];

	if (strcmp(box->state, "away") == 0)
		box->line[1][0] = '\0';
	else if (dead > 0)
		(void)snprintf(box->line[1], sizeof(box->line[1]), "%s dead, %s parked", page_count(dead, a),
			page_count(parked, b));
	else if (parked > 0)
		(void)snprintf(box->line[1], sizeof(box->line[1]), "%s parked", page_count(parked, b));
	else
		(void)snprintf(box->line[1], sizeof(box->line[1]), "nothing held back");
}

/* All groups of one kind. */
static void reader_box(struct picture *pic, const struct pr_page *page, int (*is)(const struct pr_part *),
	const char *title, const char *many)
{
	struct box *box = &pic->branch[pic->branch_n];
	double lag = 0, dead = 0, parked = 0;
	const struct pr_part *first = NULL;
	char text[32];
	int n = 0;

	*box = (struct box){ .title = title };
	for (size_t i = 0; i < page->n; i++) {
		const struct pr_part *p = &page->parts[i];

		if (!is(p))
			continue;
		first = first ? first : p;
		n++;
		worse(box, page_state(p));
		add_rate(box, page_rate(p));
		lag = most(lag, page_num(p->status, "lag_seconds"));
		dead += fmax(0, page_num(p->status, "dead_letters"));
		parked += fmax(0, page_num(p->status, "parked_events"));
	}
	if (!n)
		return;
	name_box(box, first, n, many);
	(void)snprintf(box->line[0], sizeof(box->line[0]), "lag %s", page_span(lag, text));
	held_line(box, parked, dead);
	pic->branch_n++;
}

static void fill(struct picture *pic, const struct pr_page *page)
{
	int relays = 0, stores = 0;

	memset(pic, 0, sizeof(*pic));
	for (size_t i = 0; i < page->n; i++) {
		relays += page->parts[i].relay;
		stores += !page->parts[i].relay && cJSON_IsObject(page_at(page->parts[i].status, "postgres"));
	}
	if (relays) {
		server_box(&pic->chain[0], page, "Postgres", "postgres", 1);
		relay_box(&pic->chain[1], page);
		pic->chain[0].rate = pic->chain[1].rate;
		pic->chain_n = 2;
	}
	server_box(&pic->chain[pic->chain_n], page, "Kafka", "kafka", 0);
	pic->chain[pic->chain_n].rate = relays ? pic->chain[1].rate : 0;
	pic->chain_n++;
	reader_box(pic, page, is_plain, "Consumer", "consumers");
	reader_box(pic, page, is_saga, "Sagas", "saga engines");
	reader_box(pic, page, is_sink, "Sink", "sinks");
	if (!relays && stores && pic->branch_n == 1) {
		pic->chain[pic->chain_n++] = pic->branch[0];
		pic->branch_n = 0;
		server_box(&pic->branch[pic->branch_n], page, "Postgres", "postgres", 0);
		(void)snprintf(
			pic->branch[pic->branch_n].name, sizeof(pic->branch[0].name), "positions, effects");
		pic->branch[0].rate = pic->chain[pic->chain_n - 1].rate;
		pic->branch_n++;
	}
	if (pic->branch_n == 0)
		pic->branch[pic->branch_n++] = (struct box){ .title = "Consumers",
			.line = { "see their own pages,", "or postrider ui" } };
}

/* ---------------------------------------------------------------- how it is drawn */

static const char *word_of(const struct box *box)
{
	return box->state ? box->state : "";
}

static void put_line(struct pr_buf *b, int x, int y, const char *class, const char *text)
{
	pr_buf_printf(b, "<text x=\"%d\" y=\"%d\" class=\"%s\">", x, y, class);
	pr_html_text(b, text);
	pr_buf_puts(b, "</text>");
}

static void put_box(struct pr_buf *b, const struct box *box, int x, int y, int w)
{
	char head[64];

	pr_buf_printf(b,
		"<g class=\"box s-%s\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"10\"/>",
		box->state ? box->state : "none", x, y, w, H);
	(void)snprintf(head, sizeof(head), "%s", word_of(box));
	put_line(b, x + 14, y + 24, "t", box->title);
	pr_buf_printf(b, "<text x=\"%d\" y=\"%d\" class=\"w\" text-anchor=\"end\">%s</text>", x + w - 14,
		y + 24, head);
	put_line(b, x + 14, y + 43, "n", box->name);
	put_line(b, x + 14, y + (box->line[1][0] ? 64 : 70), "l", box->line[0]);
	put_line(b, x + 14, y + 81, "l", box->line[1]);
	pr_buf_puts(b, "</g>");
}

/* From 2 for nothing to 12 for a hundred thousand a second. */
static double thickness(double rate)
{
	double t = 2 + 2 * log10(1 + (rate > 0 ? rate : 0));

	return t > 12 ? 12 : t;
}

static const char *flow_class(const struct box *to)
{
	if (to->state && page_weight(to->state) > page_weight("standby"))
		return to->state;
	return to->state && to->rate > 0 ? "ok" : "none";
}

/* Its head ends where the box begins. */
static void put_arrow(struct pr_buf *b, const struct box *to, const char *path, int x, int y, int down)
{
	double t = thickness(to->rate);

	pr_buf_printf(
		b, "<g class=\"flow s-%s\"><path d=\"%s\" stroke-width=\"%.1f\"/>", flow_class(to), path, t);
	if (down)
		pr_buf_printf(b, "<path class=\"h\" d=\"M%d %dl-8 -13h16z\"/></g>", x, y);
	else
		pr_buf_printf(b, "<path class=\"h\" d=\"M%d %dl-13 -8v16z\"/></g>", x, y);
}

static void put_rate(struct pr_buf *b, double rate, int x, int y, const char *anchor)
{
	char text[32];

	pr_buf_printf(b, "<text x=\"%d\" y=\"%d\" class=\"r\" text-anchor=\"%s\">%s</text>", x, y, anchor,
		page_per_second(rate, text));
}

static void put_words(struct pr_buf *b, const struct picture *pic)
{
	pr_buf_puts(b, "<title>The pipeline</title><desc>");
	for (int i = 0; i < pic->chain_n + pic->branch_n; i++) {
		const struct box *box = i < pic->chain_n ? &pic->chain[i] : &pic->branch[i - pic->chain_n];

		pr_buf_printf(b, "%s%s: %s", i ? "; " : "", box->title,
			box->state ? word_of(box) : "not known here");
		for (int k = 0; k < 2; k++) {
			if (box->line[k][0])
				pr_buf_printf(b, ", %s", box->line[k]);
		}
	}
	pr_buf_puts(b, "</desc>");
}

static void put_lying(struct pr_buf *b, const struct picture *pic)
{
	int wide = (pic->chain_n + 1) * W + pic->chain_n * GAP, high = pic->branch_n * ROW - (ROW - H);
	int middle = (high - H) / 2, x = 0, y;
	char path[100];

	pr_buf_printf(b, "<svg class=\"wide\" role=\"img\" viewBox=\"-2 -2 %d %d\" width=\"%d\">", wide + 4,
		high + 4, wide + 4);
	put_words(b, pic);
	for (int i = 0; i < pic->chain_n; i++, x += W + GAP) {
		if (i > 0) {
			(void)snprintf(path, sizeof(path), "M%d %dH%d", x - GAP + 4, middle + H / 2, x - 14);
			put_arrow(b, &pic->chain[i], path, x - 3, middle + H / 2, 0);
			put_rate(b, pic->chain[i].rate, x - GAP / 2, middle + H / 2 - 14, "middle");
		}
		put_box(b, &pic->chain[i], x, middle, W);
	}
	for (int i = 0; i < pic->branch_n; i++) {
		y = i * ROW + H / 2;
		(void)snprintf(path, sizeof(path), "M%d %dC%d %d %d %d %d %d", x - GAP + 4, middle + H / 2,
			x - GAP / 2, middle + H / 2, x - GAP / 2 - 10, y, x - 14, y);
		put_arrow(b, &pic->branch[i], path, x - 3, y, 0);
		if (pic->branch[i].state)
			put_rate(b, pic->branch[i].rate, x - 16, y - 14, "end");
		put_box(b, &pic->branch[i], x, i * ROW, W);
	}
	pr_buf_puts(b, "</svg>");
}

static void put_standing(struct pr_buf *b, const struct picture *pic)
{
	const int wide = 300, gap = 52, indent = pic->branch_n > 1 ? 34 : 0;
	int n = pic->chain_n + pic->branch_n, high = n * (H + gap) - gap, y = 0, from = 0;
	char path[100];

	pr_buf_printf(b, "<svg class=\"tall\" role=\"img\" viewBox=\"-2 -2 %d %d\">", wide + 4, high + 4);
	put_words(b, pic);
	for (int i = 0; i < n; i++, y += H + gap) {
		int branch = i - pic->chain_n, side = branch >= 0 && indent;
		const struct box *box = branch < 0 ? &pic->chain[i] : &pic->branch[branch];

		if (branch == 0)
			from = y - gap + 4;
		if (side)
			(void)snprintf(path, sizeof(path), "M14 %dV%dH%d", from, y + H / 2, indent - 12);
		else
			(void)snprintf(path, sizeof(path), "M150 %dV%d", y - gap + 4, y - 14);
		if (i > 0)
			put_arrow(b, box, path, side ? indent - 2 : 150, side ? y + H / 2 : y - 3, !side);
		if (i > 0 && box->state)
			put_rate(b, box->rate, side ? indent + 10 : 168, y - gap / 2 + (side ? 16 : 2),
				"start");
		put_box(b, box, side ? indent : 0, y, side ? wide - indent : wide);
	}
	pr_buf_puts(b, "</svg>");
}

void page_picture(struct pr_buf *b, const struct pr_page *page)
{
	struct picture pic;

	fill(&pic, page);
	pr_buf_puts(b, "<section id=\"pipeline\" aria-label=\"The pipeline\">");
	put_lying(b, &pic);
	put_standing(b, &pic);
	pr_buf_puts(b, "</section>");
}
