/* cli/progress.c -- how far long work has come: a bar on a terminal, JSON lines with
 * --progress=json, silence otherwise. Refuses to draw a bar without a total. */
#include "cli/cli.h"
#include "lib/clock.h"

#include <stdlib.h>
#include <string.h>

#define BAR_CELLS 24

void cli_progress_begin(const struct cli *c, struct cli_progress *p, const char *what, int64_t total)
{
	*p = (struct cli_progress){ .what = what, .total = total, .started_us = pr_mono_us() };
	p->json = cli_str(c, "progress") != NULL;
	p->bar = !p->json && cli_tty(stderr);
}

/* Three digits behind the point: more is noise, and would be written as 1e-06. */
static void add_rounded(cJSON *o, const char *name, double n)
{
	char buf[48];

	(void)snprintf(buf, sizeof(buf), "%.3f", n);
	(void)cJSON_AddRawToObject(o, name, buf);
}

static double rate(const struct cli_progress *p, int64_t now)
{
	double seconds = (double)(now - p->started_us) / PR_SEC;

	return seconds > 0.001 ? (double)p->done / seconds : 0;
}

static void put_json(const struct cli_progress *p, int64_t now)
{
	double per_second = rate(p, now);
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "progress", p->what);
	if (p->total >= 0)
		cli_json_int(o, "total", p->total);
	else
		(void)cJSON_AddNullToObject(o, "total");
	cli_json_int(o, "done", p->done);
	cli_json_int(o, "failed", p->failed);
	add_rounded(o, "seconds", (double)(now - p->started_us) / PR_SEC);
	add_rounded(o, "per_second", per_second);
	if (p->total >= 0 && per_second > 0)
		add_rounded(o, "eta_seconds", (double)(p->total - p->done) / per_second);
	else
		(void)cJSON_AddNullToObject(o, "eta_seconds");
	cli_json_free_line(o);
	(void)fflush(stdout);
}

static void put_bar(const struct cli_progress *p, int64_t now)
{
	double per_second = rate(p, now);
	char done[32], total[32], eta[48];

	(void)fprintf(stderr, "\r\033[K%s ", p->what);
	if (p->total > 0) {
		int full = (int)(p->done * BAR_CELLS / p->total);

		for (int i = 0; i < BAR_CELLS; i++)
			(void)fputs(i < full ? "█" : "░", stderr);
		(void)fprintf(stderr, " %3d %%  %s/%s", (int)(p->done * 100 / p->total),
			cli_count(p->done, done), cli_count(p->total, total));
	} else {
		(void)fputs(cli_count(p->done, done), stderr);
	}
	(void)fprintf(stderr, per_second < 100 ? "  %.1f/s" : "  %.0f/s", per_second);
	if (p->total > p->done && per_second > 0)
		(void)fprintf(stderr, "  %s left", cli_span((double)(p->total - p->done) / per_second, eta));
	if (p->failed)
		(void)fprintf(stderr, "  %sfailed %s%s", cli_on(stderr, CLI_RED), cli_count(p->failed, done),
			cli_off(stderr));
	(void)fflush(stderr);
}

/* Ten times a second on a terminal, once a second as JSON. */
void cli_progress(struct cli_progress *p)
{
	int64_t now = pr_mono_us();

	if (now - p->shown_us < (p->json ? PR_SEC : 100 * PR_MS))
		return;
	p->shown_us = now;
	if (p->json)
		put_json(p, now);
	else if (p->bar)
		put_bar(p, now);
}

/* The last word: as JSON one more line, on a terminal the bar makes room. */
void cli_progress_end(struct cli_progress *p)
{
	if (p->json)
		put_json(p, pr_mono_us());
	else if (p->bar && p->shown_us)
		(void)fputs("\r\033[K", stderr);
	p->bar = p->json = 0;
}
