/* lib/log.c -- one logfmt line per call, one write(2) per line. Refuses to block on
 * memory, to buffer, or to fail: a line that cannot be written is counted and gone. */
#include "lib/log.h"

#include "lib/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define VALUE_MAX_BYTES 768
#define LINE_MAX_BYTES  4096

static _Atomic int min_level = PR_INFO;
static _Atomic uint64_t dropped;

struct line {
	size_t len;
	char text[LINE_MAX_BYTES];
};

static void put(struct line *l, const char *s, size_t n)
{
	if (n > sizeof(l->text) - 1 - l->len)
		n = sizeof(l->text) - 1 - l->len;
	memcpy(l->text + l->len, s, n);
	l->len += n;
}

static int needs_quotes(const char *s)
{
	if (!*s)
		return 1;
	for (; *s; s++)
		if ((unsigned char)*s <= ' ' || *s == '"' || *s == '=' || *s == '\\' || *s == 127)
			return 1;
	return 0;
}

static void put_escaped(struct line *l, unsigned char c)
{
	char buf[8];

	if (c == '"' || c == '\\')
		(void)snprintf(buf, sizeof(buf), "\\%c", c);
	else if (c == '\n')
		(void)snprintf(buf, sizeof(buf), "\\n");
	else if (c < ' ' || c == 127)
		(void)snprintf(buf, sizeof(buf), "\\x%02x", c);
	else
		(void)snprintf(buf, sizeof(buf), "%c", c);
	put(l, buf, strlen(buf));
}

static void put_value(struct line *l, const char *s)
{
	size_t n = strlen(s), i;
	int quoted = needs_quotes(s);

	if (quoted)
		put(l, "\"", 1);
	for (i = 0; i < n && i < VALUE_MAX_BYTES; i++)
		put_escaped(l, (unsigned char)s[i]);
	if (i < n)
		put(l, "...", 3);
	if (quoted)
		put(l, "\"", 1);
}

static void put_pair(struct line *l, const char *key, const char *value)
{
	if (l->len > 0)
		put(l, " ", 1);
	put(l, key, strlen(key));
	put(l, "=", 1);
	put_value(l, value);
}

static const char *level_str(enum pr_level level)
{
	static const char *const names[] = { "debug", "info", "warn", "error" };

	return names[level];
}

void pr_log_kv(enum pr_level level, const char *msg, const struct pr_kv *kv)
{
	struct line l = { .len = 0 };
	char buf[32];

	if ((int)level < atomic_load_explicit(&min_level, memory_order_relaxed))
		return;
	put_pair(&l, "ts", pr_rfc3339(pr_wall_us(), buf));
	put_pair(&l, "level", level_str(level));
	put_pair(&l, "msg", msg);
	for (; kv->key; kv++) {
		if (!kv->s)
			(void)snprintf(buf, sizeof(buf), "%lld", (long long)kv->i);
		put_pair(&l, kv->key, kv->s ? kv->s : buf);
	}
	l.text[l.len++] = '\n';
	if (write(STDERR_FILENO, l.text, l.len) != (ssize_t)l.len)
		atomic_fetch_add_explicit(&dropped, 1, memory_order_relaxed);
}

void pr_log_err(enum pr_level level, const char *msg, const struct pr_err *err)
{
	struct pr_kv kv[4] = { KS("err", err->text) };
	int n = 1;

	if (err->code[0])
		kv[n++] = KS("code", err->code);
	if (err->hint[0])
		kv[n++] = KS("hint", err->hint);
	pr_log_kv(level, msg, kv);
}

void pr_log_level(enum pr_level level)
{
	atomic_store(&min_level, (int)level);
}

int pr_level_parse(const char *name, enum pr_level *ret)
{
	for (int i = PR_DEBUG; i <= PR_ERROR; i++) {
		if (strcmp(name, level_str((enum pr_level)i)) == 0) {
			*ret = (enum pr_level)i;
			return 0;
		}
	}
	return -1;
}

int pr_log_due(int64_t *last, int64_t period_us)
{
	int64_t now = pr_mono_us();

	if (*last != 0 && now - *last < period_us)
		return 0;
	*last = now;
	return 1;
}

uint64_t pr_log_dropped(void)
{
	return atomic_load(&dropped);
}
