/* lib/form.h -- what a browser sends: the fields of a form, a cookie. Pure: bytes in, text out. Refuses what
 * could be read in two ways: a field twice, a broken escape, a NUL, text that is no UTF-8. */
#ifndef PR_FORM_H
#define PR_FORM_H

#include <stddef.h>

#define PR_FORM_FIELDS 16

struct pr_form {
	char *bytes; /* owned: names and values stand in it */
	struct {
		const char *name, *value;
		size_t len;
	} field[PR_FORM_FIELDS];
	int n;
};

/* application/x-www-form-urlencoded. -1: refused, and f is empty. */
int pr_form_parse(struct pr_form *f, const char *body, size_t len);
void pr_form_free(struct pr_form *f);

/* NULL: there is no such field. Borrowed, NUL behind it; ret_len may be NULL. */
const char *pr_form_get(const struct pr_form *f, const char *name, size_t *ret_len);

/* Of the header Cookie (NULL is fine), into buf. -1: it is not there, is there twice, or is too long. */
int pr_form_cookie(const char *header, const char *name, char *buf, size_t size);

/* s as it stands in a query. malloc'd */
char *pr_form_escape(const char *s);

#endif
