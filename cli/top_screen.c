/* cli/top_screen.c -- the terminal of `postrider top`: alternate screen, keys one by one, a frame that fits.
 * What a program says is made harmless before it is shown. Refuses a terminal that it could not put back. */
#include "cli/top.h"

#include "lib/clock.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static struct termios before;
static int entered;

static void put(const char *s, size_t n)
{
	while (n > 0) {
		ssize_t w = write(STDOUT_FILENO, s, n);

		if (w < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (w > 0) {
			s += w;
			n -= (size_t)w;
		}
	}
}

int top_enter(struct pr_err *err)
{
	static const char on[] = "\033[?1049h\033[?25l";
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &before) < 0)
		return pr_fail(
			err, PR_REJECT, "the terminal does not tell its settings: %s", strerror(errno));
	raw = before;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO); /* Ctrl-C stays a signal */
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 0;
	if (tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw) < 0)
		return pr_fail(err, PR_REJECT, "the terminal cannot be set: %s", strerror(errno));
	entered = 1;
	put(on, sizeof(on) - 1);
	return 0;
}

void top_leave(void)
{
	static const char off[] = "\033[0m\033[?25h\033[?1049l";

	if (!entered)
		return;
	entered = 0;
	put(off, sizeof(off) - 1);
	(void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
}

void top_measure(struct top *t)
{
	struct winsize ws;

	t->columns = 80;
	t->lines = 24;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0 && ws.ws_row > 0) {
		t->columns = ws.ws_col;
		t->lines = ws.ws_row;
	}
}

/* ---------------------------------------------------------------- a frame */

struct frame {
	const struct top *t;
	struct pr_buf b;
	int lines;
};

/* One line, cut to the width; beyond the last line of the screen nothing. */
static void put_line(struct frame *f, enum cli_colour colour, const char *fmt, ...) PR_PRINTF(3, 4);
static void put_line(struct frame *f, enum cli_colour colour, const char *fmt, ...)
{
	char text[1200], *safe;
	size_t cells, n;
	va_list ap;

	if (f->lines >= f->t->lines)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	safe = cli_safe_str(text);
	n = cli_fit(safe, (size_t)f->t->columns, &cells);
	pr_buf_printf(&f->b, "%s%s", f->lines++ ? "\r\n" : "", cli_on(stdout, colour));
	pr_buf_put(&f->b, safe, n);
	pr_buf_printf(&f->b, "%s\033[K", cli_off(stdout));
	free(safe);
}

static void number(double n, char *cell)
{
	char buf[48];

	(void)snprintf(cell, 80, "%s", isnan(n) ? "-" : cli_count((int64_t)n, buf));
}

static void seconds(double s, char *cell)
{
	char buf[48];

	(void)snprintf(cell, 80, "%s", isnan(s) ? "-" : cli_span(s, buf));
}

/* name, kind, state, lag, behind, events/s, parked, dead */
void top_row(const struct top_program *p, char cells[8][80])
{
	const char *group = top_text(p, "group"), *name = group ? group : top_text(p, "name");
	const char *host = strstr(p->url, "://");
	const cJSON *rates = p->root ? cJSON_GetObjectItemCaseSensitive(p->root, "rates") : NULL;
	const cJSON *rate = cJSON_GetObjectItemCaseSensitive(rates, "events_per_second");

	/* Cut, "http://127.0.0." would be any of them. */
	(void)snprintf(cells[0], 80, "%.79s", name ? name : host ? host + 3 : p->url);
	(void)snprintf(cells[1], 80, "%s", !p->root ? "-" : group ? "consumer" : "relay");
	(void)snprintf(cells[2], 80, "%.79s", top_state(p));
	seconds(top_number(p, "lag_seconds"), cells[3]);
	number(top_number(p, group ? "lag_events" : "pending_events"), cells[4]);
	if (cJSON_IsNumber(rate))
		(void)snprintf(cells[5], 80, "%.1f", rate->valuedouble);
	else
		(void)snprintf(cells[5], 80, "-");
	number(top_number(p, "parked_events"), cells[6]);
	number(top_number(p, "dead_letters"), cells[7]);
}

int top_matches(const struct top *t, const char *name)
{
	return !*t->filter || strstr(name, t->filter) != NULL;
}

static enum cli_colour colour_of(const struct top_program *p)
{
	const char *state = top_state(p);

	if (top_healthy(p))
		return CLI_PLAIN;
	return strcmp(state, "error") == 0 || strcmp(state, "away") == 0 ? CLI_RED : CLI_YELLOW;
}

static void put_programs(struct frame *f)
{
	const struct top *t = f->t;
	int rest = t->columns - 65 > 12 ? t->columns - 65 : 12;

	put_line(f, CLI_DIM, "  %-*s %-8s %-8s %9s %9s %9s %7s %5s", rest > 40 ? 40 : rest, "NAME", "KIND",
		"STATE", "LAG", "BEHIND", "EVENTS/S", "PARKED", "DEAD");
	for (int i = 0; i < t->n; i++) {
		char cells[8][80];

		top_row(&t->programs[i], cells);
		if (top_matches(t, cells[0]) || i == t->selected)
			put_line(f, colour_of(&t->programs[i]), "%s %-*.*s %-8.8s %-8.8s %9s %9s %9s %7s %5s",
				i == t->selected ? ">" : " ", rest > 40 ? 40 : rest, rest > 40 ? 40 : rest,
				cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6],
				cells[7]);
	}
}

static void put_partition(struct frame *f, const cJSON *part)
{
	const cJSON *topic = cJSON_GetObjectItemCaseSensitive(part, "topic");
	const char *name = cJSON_IsString(topic) ? topic->valuestring : "?";
	static const char *const fields[] = { "partition", "lag_events", "lag_seconds", "lanes" };
	char cells[4][80];

	for (int i = 0; i < 4; i++) {
		const cJSON *item = cJSON_GetObjectItemCaseSensitive(part, fields[i]);
		double v = cJSON_IsNumber(item) ? item->valuedouble : NAN;

		if (i == 2)
			seconds(v, cells[i]);
		else
			number(v, cells[i]);
	}
	if (top_matches(f->t, name))
		put_line(f, CLI_PLAIN, "  %-42.42s %9s %9s %9s %5s", name, cells[0], cells[1], cells[2],
			cells[3]);
}

static void put_topic(struct frame *f, const struct top_topic *topic)
{
	char total[80], rate[40] = "-";

	number(topic->total, total);
	if (!isnan(topic->rate))
		(void)snprintf(rate, sizeof(rate), "%.1f", topic->rate);
	if (top_matches(f->t, topic->name))
		put_line(f, CLI_PLAIN, "  %-44.44s %14s %14s", topic->name, total, rate);
}

static void put_problems(struct frame *f, const struct top_program *p)
{
	const char *sentence = top_text(p, "sentence"), *hint = top_text(p, "hint");

	put_line(f, colour_of(p), "%s: %s", p->url,
		p->root       ? sentence ? sentence : ""
		: p->answered ? p->why
			      : "asking");
	if (hint)
		put_line(f, CLI_BOLD, "  fix: %s", hint);
}

static void put_selected(struct frame *f)
{
	const struct top_program *p = &f->t->programs[f->t->selected];
	const cJSON *parts = p->root ? cJSON_GetObjectItemCaseSensitive(p->root, "partitions") : NULL;

	put_line(f, CLI_PLAIN, "%s", "");
	put_problems(f, p);
	put_line(f, CLI_PLAIN, "%s", "");
	if (cJSON_IsArray(parts) && parts->child) {
		put_line(f, CLI_DIM, "  %-42s %9s %9s %9s %5s", "TOPIC", "PARTITION", "BEHIND", "LAG",
			"LANES");
		for (const cJSON *part = parts->child; part; part = part->next)
			put_partition(f, part);
	} else if (p->ntopics) {
		put_line(f, CLI_DIM, "  %-44s %14s %14s", "TOPIC", "PUBLISHED", "EVENTS/S");
		for (int i = 0; i < p->ntopics; i++)
			put_topic(f, &p->topics[i]);
	}
}

static void put_head(struct frame *f)
{
	const struct top *t = f->t;
	time_t now = time(NULL);
	char at[16], every[48];
	struct tm tm;

	(void)localtime_r(&now, &tm);
	(void)strftime(at, sizeof(at), "%H:%M:%S", &tm);
	if (t->typing)
		put_line(f, CLI_BOLD, "filter: %s_  (Enter: take it, Esc: none)", t->filter);
	else
		put_line(f, CLI_BOLD, "postrider top  %s  every %s%s%s%s  q quit, p pause, / filter, arrows",
			at, cli_span((double)t->every_us / (double)PR_SEC, every),
			t->paused ? "  PAUSED" : "", *t->filter ? "  only " : "", t->filter);
	put_line(f, CLI_PLAIN, "%s", "");
}

void top_draw(const struct top *t)
{
	struct frame f = { .t = t };

	pr_buf_puts(&f.b, "\033[H");
	put_head(&f);
	put_programs(&f);
	put_selected(&f);
	pr_buf_puts(&f.b, "\033[J");
	put(f.b.s, f.b.len);
	pr_buf_free(&f.b);
}
