/* cli/doctor_target.c -- how the commands that doctor shows name what it looked at, so that they can be typed
 * as they stand. Refuses to show a password: whoever has it has it in the environment or in ~/.pgpass. */
#include "cli/doctor.h"

#include "lib/json.h"

#include <stdlib.h>
#include <string.h>

static int is_plain(const char *s)
{
	return *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+.,:/@%=") ==
			     strlen(s);
}

/* In quotes where the shell would take it apart. */
static void put_word(struct pr_buf *b, const char *s)
{
	if (is_plain(s)) {
		pr_buf_puts(b, s);
		return;
	}
	pr_buf_puts(b, "'");
	for (; *s; s++)
		pr_buf_put(b, *s == '\'' ? "'\\''" : s, *s == '\'' ? 4 : 1);
	pr_buf_puts(b, "'");
}

static void put_value(struct pr_buf *b, const char *key, const char *value)
{
	pr_buf_printf(b, "%s%s=", b->len ? " " : "", key);
	if (is_plain(value)) {
		pr_buf_puts(b, value);
		return;
	}
	pr_buf_puts(b, "'");
	for (; *value; value++) {
		if (*value == '\'' || *value == '\\')
			pr_buf_puts(b, "\\");
		pr_buf_put(b, value, 1);
	}
	pr_buf_puts(b, "'");
}

/* libpq marks its passwords with a star. */
static void put_conninfo(struct pr_buf *b, const char *conninfo)
{
	PQconninfoOption *all = PQconninfoParse(conninfo, NULL);
	struct pr_buf shown = { 0 };

	for (const PQconninfoOption *o = all; o && o->keyword; o++)
		if (o->val && !strchr(o->dispchar, '*'))
			put_value(&shown, o->keyword, o->val);
	pr_buf_printf(b, "%s--conninfo ", b->len ? " " : "");
	put_word(b, shown.len ? shown.s : "");
	pr_buf_free(&shown);
	PQconninfoFree(all);
}

void doctor_name_target(struct doctor *d)
{
	const char *file = cli_str(d->c, "config"), *conninfo = cli_str(d->c, "conninfo");
	struct pr_buf target = { 0 }, own = { 0 };

	pr_buf_puts(&own, "-c ");
	put_word(&own, file ? file : d->c->consumer_loaded ? "consumer.cfg" : "relay.cfg");
	if (file)
		pr_buf_puts(&target, own.s);
	if (conninfo)
		put_conninfo(&target, conninfo);
	d->file = own.s;
	d->target = target.s ? target.s : pr_strdup("");
}
