/* cli/ui_saga.c -- how far a saga has come, as a picture: its steps from the first to the last, each with
 * what was done, undone, or is left to do. By the page's own classes, so that its policy and its dark look
 * hold. Judges nothing: states and what is left are what `postrider saga show --json` says. */
#include "cli/ui.h"

#include <string.h>

#define WIDE 360
#define HIGH 64
#define GAP  26

enum fate { DONE, UNDONE, STANDS, AT_WORK, STUCK, LEFT, NOTHING };

static const struct {
	const char *word, *class, *icon;
} fates[] = {
	[DONE] = { "done", "ok", "M6 12l4 4 8-9" },
	[UNDONE] = { "undone", "paused", "M18 12H6m5-5-5 5 5 5" },
	[STANDS] = { "done, to be undone", "warn", "M6 12l4 4 8-9" },
	[AT_WORK] = { "at work", "starting", "M12 5v7l5 3" },
	[STUCK] = { "stuck", "error", "M7 7l10 10m0-10L7 17" },
	[LEFT] = { "to do", "none", "M6 12h.1M12 12h.1M18 12h.1" },
	[NOTHING] = { "not done", "none", "M7 12h10" },
};

static int is(const char *state, const char *word)
{
	return strcmp(state, word) == 0;
}

static int is_left(const cJSON *o, const char *step)
{
	const cJSON *left;

	cJSON_ArrayForEach(left, cJSON_GetObjectItem(o, "left"))
	{
		if (cJSON_IsString(left) && is(left->valuestring, step))
			return 1;
	}
	return 0;
}

static enum fate fate_of(const cJSON *o, const char *step, const char *state)
{
	int turned = cJSON_IsTrue(cJSON_GetObjectItem(o, "turned"));

	if (is(state, "STUCK"))
		return STUCK;
	if (is(state, "DOING") || is(state, "UNDOING"))
		return AT_WORK;
	if (is(state, "DONE") || is(state, "SKIPPED"))
		return turned && is_left(o, step) ? STANDS : DONE;
	if (is(state, "UNDONE"))
		return UNDONE;
	return is_left(o, step) ? LEFT : NOTHING;
}

static const char *str(const cJSON *o, const char *name)
{
	const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, name));

	return s ? s : "";
}

static void put_step(struct pr_buf *b, const cJSON *o, const cJSON *step, int i)
{
	enum fate f = fate_of(o, str(step, "step"), str(step, "state"));
	int y = 4 + i * (HIGH + GAP);

	if (i > 0)
		pr_buf_printf(b, "<g class=\"flow s-%s\"><path d=\"M%d %dv%d\" stroke-width=\"3\"/></g>",
			fates[f].class, WIDE / 2, y - GAP, GAP);
	pr_buf_printf(b,
		"<g class=\"box s-%s\"><rect x=\"4\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"10\"/>"
		"<svg class=\"ic s-%s\" x=\"16\" y=\"%d\" width=\"30\" height=\"30\" viewBox=\"0 0 24 24\">"
		"<path d=\"%s\"/></svg><text class=\"t\" x=\"60\" y=\"%d\">",
		fates[f].class, y, WIDE - 8, HIGH, fates[f].class, y + 16, fates[f].icon, y + 27);
	pr_html_text(b, str(step, "step"));
	pr_buf_printf(b, "</text><text class=\"w\" x=\"60\" y=\"%d\">%s</text></g>", y + 48, fates[f].word);
}

static void put_words(struct pr_buf *b, const cJSON *o, const cJSON *steps)
{
	const cJSON *step;

	cJSON_ArrayForEach(step, steps)
	{
		pr_html_text(b, str(step, "step"));
		pr_buf_printf(b, ": %s; ", fates[fate_of(o, str(step, "step"), str(step, "state"))].word);
	}
}

void ui_put_saga(struct pr_buf *b, const cJSON *o)
{
	const cJSON *steps = cJSON_GetObjectItem(o, "steps"), *step;
	int n = cJSON_GetArraySize(steps), i = 0;

	if (n == 0)
		return;
	pr_buf_printf(b,
		"<figure class=\"saga\"><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"saga-t "
		"saga-d\"><title id=\"saga-t\">How far it has come</title><desc id=\"saga-d\">",
		WIDE, n * (HIGH + GAP) - GAP + 8);
	put_words(b, o, steps);
	pr_buf_puts(b, "</desc>");
	cJSON_ArrayForEach(step, steps)
	{
		put_step(b, o, step, i++);
	}
	pr_buf_puts(b, "</svg></figure>");
}

const char *ui_stuck_step(const cJSON *o)
{
	const cJSON *step;

	cJSON_ArrayForEach(step, cJSON_GetObjectItem(o, "steps"))
	{
		if (is(str(step, "state"), "STUCK"))
			return str(step, "step");
	}
	return NULL;
}
