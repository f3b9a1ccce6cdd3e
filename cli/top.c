/* cli/top.c -- `postrider top`: a live screen of relays and consumers. Signals and keys come by the same poll
 * as the answers, so that nothing leaves the terminal spoilt: each way out goes by top_leave. A pipe gets one
 * plain listing. Shows what the programs say of themselves, and judges nothing. */
#include "cli/top.h"

#include "lib/clock.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static int add_program(struct top *t, char *url, struct pr_err *err)
{
	if (t->n == TOP_MOST) {
		free(url);
		return cli_usage(err, "more than %d programs", TOP_MOST);
	}
	while (*url && url[strlen(url) - 1] == '/')
		url[strlen(url) - 1] = '\0';
	t->programs[t->n++] = (struct top_program){ .url = url };
	return 0;
}

/* The operands, and what -c or --url say; without any of them the default. */
static int add_programs(struct top *t, struct pr_err *err)
{
	struct cli *c = t->c;

	for (int i = 0; i < c->nargs; i++) {
		if (strncmp(c->args[i], "http://", 7) != 0 && strncmp(c->args[i], "https://", 8) != 0)
			return cli_usage(err, "\"%.80s\" is no URL: http://host:port", c->args[i]);
		if (add_program(t, pr_strdup(c->args[i]), err) < 0)
			return -1;
	}
	if (t->n && !cli_given(c, "config") && !cli_given(c, "url"))
		return 0;
	return add_program(t, cli_url(c), err);
}

/* ---------------------------------------------------------------- one listing */

static int all_answered(const struct top *t)
{
	for (int i = 0; i < t->n; i++)
		if (!t->programs[i].answered || t->programs[i].busy)
			return 0;
	return 1;
}

static void put_json(const struct top_program *p)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "url", p->url);
	(void)cJSON_AddStringToObject(o, "state", top_state(p));
	(void)cJSON_AddItemToObject(o, "problem", p->root ? cJSON_CreateNull() : cJSON_CreateString(p->why));
	(void)cJSON_AddItemToObject(o, "status", p->root ? cJSON_Duplicate(p->root, 1) : cJSON_CreateNull());
	cli_json_free_line(o);
}

static void put_listing(const struct top *t)
{
	static const char *const heads[] = { "NAME", "KIND", "STATE", ">LAG", ">BEHIND", ">EVENTS/S",
		">PARKED", ">DEAD", "~SENTENCE" };
	struct cli_table table = { .ncols = 9, .heads = heads };

	for (int i = 0; i < t->n; i++) {
		const struct top_program *p = &t->programs[i];
		char cells[8][80];
		const char *row[9];

		if (cli_has(t->c, "json")) {
			put_json(p);
			continue;
		}
		top_row(p, cells);
		for (int k = 0; k < 8; k++)
			row[k] = cells[k];
		row[8] = p->root ? top_text(p, "sentence") : p->why;
		cli_table_add(&table, row);
	}
	if (table.nrows)
		cli_table_print(&table, stdout);
}

static int verdict(const struct top *t)
{
	int rc = PR_EX_OK;

	for (int i = 0; i < t->n; i++)
		if (!t->programs[i].root)
			return PR_EX_UNAVAILABLE;
		else if (!top_healthy(&t->programs[i]))
			rc = PR_EX_UNHEALTHY;
	return rc;
}

static int snapshot(struct top *t)
{
	top_begin(t, pr_mono_us());
	while (!all_answered(t)) {
		(void)curl_multi_poll(t->multi, NULL, 0, 100, NULL);
		(void)top_take(t, pr_mono_us());
	}
	put_listing(t);
	return verdict(t);
}

/* ---------------------------------------------------------------- keys */

static void type(struct top *t, char c)
{
	size_t n = strlen(t->filter);

	if (c == '\r' || c == '\n') {
		t->typing = 0;
	} else if (c == '\033') {
		t->typing = 0;
		t->filter[0] = '\0';
	} else if (c == 127 || c == '\b') {
		t->filter[n ? n - 1 : 0] = '\0';
	} else if (c >= ' ' && n + 1 < sizeof(t->filter)) {
		t->filter[n] = c;
		t->filter[n + 1] = '\0';
	}
}

static void move(struct top *t, int by)
{
	t->selected = (t->selected + t->n + by) % t->n;
}

static void key(struct top *t, const char *keys, ssize_t n, ssize_t *i)
{
	char c = keys[*i];

	if (t->typing) {
		type(t, c);
	} else if (c == '\033' && *i + 2 < n && keys[*i + 1] == '[') {
		*i += 2;
		move(t, keys[*i] == 'A' ? -1 : keys[*i] == 'B' ? 1 : 0);
	} else if (c == 'q' || c == 4) {
		t->over = 1;
	} else if (c == 'p' || c == ' ') {
		t->paused = !t->paused;
	} else if (c == '/') {
		t->typing = 1;
	} else if (c == 'k' || c == 'j') {
		move(t, c == 'k' ? -1 : 1);
	}
}

/* 0 bytes, though there was something to read: the terminal is gone. */
static void keys(struct top *t)
{
	char buf[64];
	ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

	if (n <= 0)
		t->over = 1;
	for (ssize_t i = 0; i < n; i++)
		key(t, buf, n, &i);
}

/* ---------------------------------------------------------------- signals */

static int watched(sigset_t *set)
{
	(void)sigemptyset(set);
	(void)sigaddset(set, SIGTERM);
	(void)sigaddset(set, SIGINT);
	(void)sigaddset(set, SIGHUP);
	(void)sigaddset(set, SIGQUIT);
	(void)sigaddset(set, SIGTSTP);
	(void)sigaddset(set, SIGWINCH);
	(void)sigprocmask(SIG_BLOCK, set, NULL);
	return signalfd(-1, set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* Stopped by Ctrl-Z the shell has its terminal; back again we have ours. */
static void pause_here(struct top *t)
{
	struct pr_err err;

	top_leave();
	(void)raise(SIGSTOP);
	t->over |= top_enter(&err) < 0;
	top_measure(t);
}

/* The signal that ends us, 0: none. */
static int signals(struct top *t, int fd)
{
	struct signalfd_siginfo info;

	if (read(fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return 0;
	if (info.ssi_signo == SIGWINCH)
		top_measure(t);
	else if (info.ssi_signo == SIGTSTP)
		pause_here(t);
	else
		return (int)info.ssi_signo;
	return 0;
}

/* ---------------------------------------------------------------- the screen */

static int screen(struct top *t, struct pr_err *err)
{
	struct curl_waitfd fds[2] = { { .fd = STDIN_FILENO, .events = CURL_WAIT_POLLIN },
		{ .events = CURL_WAIT_POLLIN } };
	int64_t now = pr_mono_us();
	sigset_t set;
	int by = 0;

	fds[1].fd = watched(&set);
	if (fds[1].fd < 0 || top_enter(err) < 0)
		return -1;
	top_measure(t);
	while (!t->over && !by) {
		if (!t->paused)
			top_begin(t, now);
		top_draw(t);
		fds[0].revents = fds[1].revents = 0;
		(void)curl_multi_poll(
			t->multi, fds, 2, t->paused ? 1000 : (int)(top_wait_us(t, now) / PR_MS) + 1, NULL);
		now = pr_mono_us();
		(void)top_take(t, now);
		if (fds[1].revents)
			by = signals(t, fds[1].fd);
		if (fds[0].revents)
			keys(t);
	}
	top_leave();
	(void)close(fds[1].fd);
	return by ? 128 + by : PR_EX_OK;
}

int verb_top(struct cli *c)
{
	struct top t = { .c = c, .every_us = cli_int(c, "every", 2 * PR_SEC) };
	struct pr_err err = { 0 };
	int rc;

	if (add_programs(&t, &err) < 0 || top_open(&t, &err) < 0) {
		rc = cli_failed(c, &err);
	} else if (cli_has(c, "json") || !cli_tty(stdout) || !isatty(STDIN_FILENO)) {
		rc = snapshot(&t);
	} else {
		rc = screen(&t, &err);
		if (rc < 0)
			rc = cli_fail(&err);
	}
	top_close(&t);
	return rc;
}
