/* consumers/outcome.c -- makes foreign words storable. Refuses to judge them: what follows from a
 * failure is lib/policy. */
#include "consumers/outcome.h"

#include "lib/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* n without a character at the end that was cut off. */
static size_t whole(const char *s, size_t n)
{
	size_t at = n;
	unsigned char lead;

	while (at > 0 && n - at < 3 && ((unsigned char)s[at - 1] & 0xc0) == 0x80)
		at--;
	if (at == 0)
		return n;
	lead = (unsigned char)s[--at];
	return lead >= 0xc0 && lead < 0xf8 && n - at < (lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2) ? at : n;
}

/* When any byte is no UTF-8, all that is not ASCII becomes '?'. */
void outcome_text(char *to, size_t size, const char *from)
{
	size_t len = whole(from, strnlen(from, size - 1));
	int text = pr_utf8_text(from, len);

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
	outcome_text(o->text, sizeof(o->text), text);
}

void outcome_behind(struct outcome *o)
{
	outcome_fail(o, PR_FAIL_REPLY, "behind", "not tried: it waits behind one that was not handled");
}
