/* lib/err.c -- fills errors and wraps allocation. Refuses to log: whoever decides, logs. */
#include "lib/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void trim_newline(char *s)
{
	size_t n = strlen(s);

	while (n > 0 && (s[n - 1] == '\n' || s[n - 1] == '\r'))
		s[--n] = '\0';
}

int pr_fail(struct pr_err *err, enum pr_kind kind, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	va_list ap;

	if (!err)
		return -1;
	/* Formatted aside first: an argument may point into *err. */
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	trim_newline(text);
	memset(err, 0, sizeof(*err));
	err->kind = kind;
	err->exit = kind == PR_RETRY ? PR_EX_UNAVAILABLE : PR_EX_FAILED;
	memcpy(err->text, text, sizeof(text));
	return -1;
}

int pr_hint(struct pr_err *err, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return -1;
	va_start(ap, fmt);
	(void)vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
	va_end(ap);
	trim_newline(err->hint);
	return -1;
}

int pr_wrap(struct pr_err *err, const char *fmt, ...)
{
	char context[sizeof(err->text)], old[sizeof(err->text)];
	size_t room;
	va_list ap;

	if (!err)
		return -1;
	va_start(ap, fmt);
	(void)vsnprintf(context, sizeof(context) / 2, fmt, ap);
	va_end(ap);
	memcpy(old, err->text, sizeof(old));
	room = sizeof(err->text) - strlen(context) - 3;
	(void)snprintf(err->text, sizeof(err->text), "%s: %.*s", context, (int)room, old);
	return -1;
}

const char *pr_kind_str(enum pr_kind kind)
{
	switch (kind) {
	case PR_RETRY:
		return "retry";
	case PR_REJECT:
		return "reject";
	case PR_STOP:
		return "stop";
	}
	return "?";
}

static void *or_die(void *p)
{
	if (!p) {
		(void)fputs("level=fatal msg=\"out of memory\"\n", stderr);
		abort();
	}
	return p;
}

void *pr_malloc(size_t n)
{
	return or_die(malloc(n ? n : 1));
}

void *pr_calloc(size_t n, size_t size)
{
	return or_die(calloc(n ? n : 1, size ? size : 1));
}

void *pr_realloc(void *p, size_t n)
{
	return or_die(realloc(p, n ? n : 1));
}

char *pr_strdup(const char *s)
{
	return or_die(strdup(s));
}

char *pr_asprintf(const char *fmt, ...)
{
	char *s = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	return or_die(n < 0 ? NULL : s);
}
