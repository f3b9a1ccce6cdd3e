/* lib/form.c -- fields of a form, and cookies, as a browser writes them. Refuses to guess what was meant. */
#include "lib/form.h"

#include "lib/err.h"
#include "lib/json.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int hex(char c)
{
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
				      : -1;
}

/* In place: what is decoded is never longer. The end, NULL: a broken escape or a NUL. */
static char *decode(char *from, const char *end)
{
	char *to = from;

	for (const char *s = from; s < end; s++) {
		int c = *s == '+' ? ' ' : (unsigned char)*s;

		if (*s == '%') {
			if (end - s < 3 || hex(s[1]) < 0 || hex(s[2]) < 0)
				return NULL;
			c = hex(s[1]) * 16 + hex(s[2]);
			s += 2;
		}
		if (c == 0)
			return NULL;
		*to++ = (char)c;
	}
	return to;
}

/* s[0..n), with room for a NUL behind it. */
static int add(struct pr_form *f, char *s, size_t n)
{
	char *equals = memchr(s, '=', n), *name_end, *value_end;

	if (!equals || f->n == PR_FORM_FIELDS)
		return -1;
	name_end = decode(s, equals);
	value_end = decode(equals + 1, s + n);
	if (!name_end || !value_end || name_end == s || !pr_utf8_text(s, (size_t)(name_end - s)) ||
		!pr_utf8_text(equals + 1, (size_t)(value_end - equals - 1)))
		return -1;
	*name_end = *value_end = '\0';
	if (pr_form_get(f, s, NULL))
		return -1;
	f->field[f->n].name = s;
	f->field[f->n].value = equals + 1;
	f->field[f->n++].len = (size_t)(value_end - equals - 1);
	return 0;
}

int pr_form_parse(struct pr_form *f, const char *body, size_t len)
{
	char *end;

	memset(f, 0, sizeof(*f));
	f->bytes = pr_malloc(len + 1);
	memcpy(f->bytes, body, len);
	f->bytes[len] = '\0';
	end = f->bytes + len;
	for (char *s = f->bytes; s < end;) {
		char *next = memchr(s, '&', (size_t)(end - s));

		if (!next)
			next = end;
		if (add(f, s, (size_t)(next - s)) < 0) {
			pr_form_free(f);
			return -1;
		}
		s = next + 1;
	}
	return 0;
}

void pr_form_free(struct pr_form *f)
{
	free(f->bytes);
	memset(f, 0, sizeof(*f));
}

const char *pr_form_get(const struct pr_form *f, const char *name, size_t *ret_len)
{
	for (int i = 0; i < f->n; i++) {
		if (strcmp(f->field[i].name, name) != 0)
			continue;
		if (ret_len)
			*ret_len = f->field[i].len;
		return f->field[i].value;
	}
	return NULL;
}

int pr_form_cookie(const char *header, const char *name, char *buf, size_t size)
{
	size_t n = strlen(name), len;
	int found = 0;

	for (const char *s = header; s && *s;) {
		s += strspn(s, " \t;");
		len = strcspn(s, ";");
		if (strncmp(s, name, n) == 0 && s[n] == '=') {
			if (found++ || len - n - 1 >= size)
				return -1;
			memcpy(buf, s + n + 1, len - n - 1);
			buf[len - n - 1] = '\0';
		}
		s += len;
	}
	return found ? 0 : -1;
}

char *pr_form_escape(const char *s)
{
	struct pr_buf b = { 0 };

	for (; *s; s++) {
		if (isalnum((unsigned char)*s) || strchr("-._~", *s))
			pr_buf_put(&b, s, 1);
		else
			pr_buf_printf(&b, "%%%02X", (unsigned char)*s);
	}
	return b.s ? b.s : pr_strdup("");
}
