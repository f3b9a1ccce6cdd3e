/* lib/alert_template.c -- reads, checks and fills the template of alerts. Refuses one that would not be JSON:
 * found out at the start, not when something is wrong. */
#include "lib/alert_template.h"

#include "sql.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MOST 65536

static const char *value_of(const struct pr_alert *a, const char *name, size_t n)
{
	const struct {
		const char *name, *value;
	} of[] = { { "alert_id", a->alert_id }, { "cause", a->cause }, { "command", a->command },
		{ "detail", a->detail }, { "times", a->times }, { "reminder", a->reminder },
		{ "first_at", a->first_at }, { "last_at", a->last_at } };

	for (size_t i = 0; i < sizeof(of) / sizeof(*of); i++)
		if (strlen(of[i].name) == n && memcmp(of[i].name, name, n) == 0)
			return of[i].value;
	return NULL;
}

/* As inside a string: without the quotes around it. */
static void put_escaped(struct pr_buf *b, const char *s)
{
	struct pr_buf quoted = { 0 };

	pr_buf_json(&quoted, s, strlen(s));
	pr_buf_put(b, quoted.s + 1, quoted.len - 2);
	pr_buf_free(&quoted);
}

int pr_alert_fill(struct pr_buf *b, const char *text, const struct pr_alert *alert, struct pr_err *err)
{
	const char *open, *close, *value;

	for (; (open = strstr(text, "{{")); text = close + 2) {
		close = strstr(open, "}}");
		/* "{{" of two objects, one in the other, has no "}}" as near. */
		value = close ? value_of(alert, open + 2, (size_t)(close - open) - 2) : NULL;
		if (!value) {
			(void)pr_fail(err, PR_REJECT, "{{%.*s is none of the names there are",
				(int)strcspn(open + 2, "}\n"), open + 2);
			return pr_hint(err, "they are {{alert_id}}, {{cause}}, {{command}}, {{detail}}, "
					    "{{times}}, {{reminder}}, "
					    "{{first_at}} and {{last_at}}; write \"{ {\" for two braces");
		}
		pr_buf_put(b, text, (size_t)(open - text));
		put_escaped(b, value);
	}
	pr_buf_puts(b, text);
	return 0;
}

static char *read_file(const char *file, struct pr_err *err)
{
	char *text = pr_malloc(MOST + 1);
	struct stat st;
	FILE *f;
	size_t n;

	/* Opening a FIFO would wait for its writer. */
	if (stat(file, &st) < 0 || !S_ISREG(st.st_mode) || !(f = fopen(file, "re"))) {
		(void)pr_fail(err, PR_REJECT, "cannot read \"%s\": %s", file,
			errno ? strerror(errno) : "not a file");
		free(text);
		return NULL;
	}
	n = fread(text, 1, MOST + 1, f);
	(void)fclose(f);
	if (n > MOST || memchr(text, '\0', n)) {
		(void)pr_fail(
			err, PR_REJECT, "\"%s\" is %s", file, n > MOST ? "larger than 64 kB" : "no text");
		free(text);
		return NULL;
	}
	text[n] = '\0';
	return text;
}

static int check(const char *text, const char *name, struct pr_err *err)
{
	const struct pr_alert sample = { "1", "\"x\"", "x", "{\"x\": 1}", "2030-01-01T00:00:00Z",
		"2030-01-01T00:00:00Z", "1", "0" };
	struct pr_buf b = { 0 };
	int rc = pr_alert_fill(&b, text, &sample, err);

	if (rc == 0 && !pr_json_text(b.s, b.len))
		rc = pr_fail(err, PR_REJECT, "is no JSON once it is filled");
	pr_buf_free(&b);
	return rc < 0 ? pr_wrap(err, "\"%s\"", name) : 0;
}

char *pr_alert_template(const char *file, struct pr_err *err)
{
	char *text = file ? read_file(file, err) : pr_strdup(json_etc_alert);

	if (text && check(text, file ? file : "etc/alert.json", err) < 0) {
		free(text);
		return NULL;
	}
	return text;
}
