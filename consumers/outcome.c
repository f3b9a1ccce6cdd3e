/* consumers/outcome.c -- makes foreign words storable. Refuses to judge them: what follows from a
 * failure is lib/policy. */
#include "consumers/outcome.h"

#include "lib/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Cuts between two characters. When any byte is no UTF-8, all that is not ASCII becomes '?'. */
static void put_text(char *to, size_t size, const char *from)
{
	size_t len = strlen(from);
	int text;

	if (len >= size)
		for (len = size - 1; len > 0 && ((unsigned char)from[len] & 0xc0) == 0x80;)
			len--;
	text = pr_utf8_text(from, len);
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)from[i];

		to[i] = c >= 0x80 && !text ? '?' : c < ' ' || c == 127 ? ' ' : (char)c;
	}
	to[len] = '\0';
}

void outcome_fail(struct outcome *o, enum pr_fail_class cls, const char *code, const char *fmt, ...)
{
	char text[2 * sizeof(o->text)];
	size_t i;
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	*o = (struct outcome){ .cls = cls };
	for (i = 0; code[i] && i < sizeof(o->code) - 1; i++)
		o->code[i] = code[i] > ' ' && code[i] < 127 ? code[i] : '_';
	put_text(o->text, sizeof(o->text), text);
}

void outcome_behind(struct outcome *o)
{
	outcome_fail(o, PR_FAIL_REPLY, "behind", "not tried: it waits behind one that was not handled");
}
