/* lib/page_spark.c -- the last hour of a program's numbers as small curves. Of two samples the higher one is
 * drawn: a peak is never lost. Refuses to draw over a gap: nobody looked then. */
#include "lib/page_inner.h"

#include <stdio.h>
#include <string.h>

#define POINTS (PR_HISTORY_SAMPLES / 2)
#define HIGH   44

enum unit { SECONDS, EVENTS, RATE };

struct curve {
	const char *name, *title;
	enum unit unit;
};

static const struct curve of_relay[] = { { "lag_seconds", "Lag", SECONDS },
	{ "created_per_second", "Written to the outbox", RATE },
	{ "published_per_second", "Published to Kafka", RATE },
	{ "pending_events", "Pending events", EVENTS }, { "held_events", "Events held back", EVENTS } };
static const struct curve of_consumer[] = { { "lag_seconds", "Lag", SECONDS },
	{ "handled_per_second", "Done with", RATE }, { "lag_events", "Events behind", EVENTS },
	{ "parked_events", "Parked events", EVENTS }, { "dead_letters", "Dead letters", EVENTS } };

static const char *say(double v, enum unit unit, char *buf)
{
	return unit == SECONDS ? page_span(v, buf)
	       : unit == RATE  ? page_per_second(v, buf)
			       : page_count(v, buf);
}

/* Samples into points, the newest at the right; gives the greatest. */
static double points_of(const cJSON *series, double *point)
{
	int at = POINTS * 2 - cJSON_GetArraySize(series);
	double most = 0, v;
	const cJSON *s;

	for (int i = 0; i < POINTS; i++)
		point[i] = NAN;
	cJSON_ArrayForEach(s, series)
	{
		v = cJSON_IsNumber(s) ? s->valuedouble : NAN;
		if (at >= 0 && at / 2 < POINTS)
			point[at / 2] = fmax(point[at / 2], v); /* the number, when the other is NaN */
		most = fmax(most, v);
		at++;
	}
	return most;
}

static void put_curve(struct pr_buf *b, const double *point, double most)
{
	int open = 0;

	pr_buf_printf(b,
		"<svg viewBox=\"0 0 %d %d\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
		"<path class=\"g\" d=\"M0 %d.5H%d\"/><path d=\"",
		POINTS, HIGH + 4, HIGH + 2, POINTS);
	for (int i = 0; i < POINTS; i++) {
		if (isnan(point[i])) {
			open = 0;
			continue;
		}
		pr_buf_printf(b, "%s%d %.3g", open ? "L" : "M", i,
			HIGH + 1 - (most > 0 ? point[i] / most : 0) * (HIGH - 2));
		if (!open)
			pr_buf_puts(b, "h.1");
		open = 1;
	}
	pr_buf_puts(b, "\"/></svg>");
}

static void put_figure(struct pr_buf *b, const struct curve *c, const cJSON *series)
{
	int n = cJSON_GetArraySize(series);
	double point[POINTS], most = points_of(series, point), last = NAN;
	const cJSON *newest = cJSON_GetArrayItem(series, n - 1);
	char now[32], top[32];

	if (cJSON_IsNumber(newest))
		last = newest->valuedouble;
	pr_buf_printf(b,
		"<figure><figcaption><span>%s</span> <b>%s</b><small>most in the last hour: "
		"%s</small></figcaption>",
		c->title, say(last, c->unit, now), say(most, c->unit, top));
	put_curve(b, point, most);
	pr_buf_puts(b, "</figure>");
}

void page_sparks(struct pr_buf *b, const struct pr_part *p)
{
	const struct curve *curve = p->relay ? of_relay : of_consumer;
	const cJSON *all = page_at(p->history, "series");

	if (!all)
		return;
	pr_buf_puts(b, "<div class=\"sparks\">");
	for (int i = 0; i < 5; i++) {
		const cJSON *series = page_at(all, curve[i].name);

		if (series && cJSON_GetArraySize(series) > 0)
			put_figure(b, &curve[i], series);
	}
	pr_buf_puts(b, "</div>");
}
