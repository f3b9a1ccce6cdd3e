/* cli/args.c -- argv against the table of verbs: every value is checked before a verb
 * runs, so a bad command line has done nothing. Refuses to guess: what it does not
 * know is a usage error that names the nearest thing it does know. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/conf.h"
#include "lib/kafka.h"

#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_NAMES 128 /* candidates for the nearest name: more than verbs or options there are */

int cli_usage(struct pr_err *err, const char *fmt, ...)
{
	char text[sizeof(err->text)];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)pr_fail(err, PR_REJECT, "%s", text);
	err->exit = PR_EX_USAGE;
	return -1;
}

const struct cli_verb *cli_find(const char *name)
{
	for (const struct cli_verb *v = cli_verbs; v->name; v++)
		if (strcmp(v->name, name) == 0)
			return v;
	return NULL;
}

static int starts_word(const char *name, const char *word)
{
	size_t n = strlen(word);

	return strncmp(name, word, n) == 0 && name[n] == ' ';
}

int cli_is_prefix(const char *word)
{
	for (const struct cli_verb *v = cli_verbs; v->name; v++)
		if (starts_word(v->name, word))
			return 1;
	return 0;
}

/* "did you mean" among the verbs; under is "parked" for the second word, else NULL. */
static void hint_verb(struct pr_err *err, const char *word, const char *under)
{
	const char *names[MAX_NAMES] = { NULL };
	char list[300] = "";
	const char *near;
	int n = 0;

	for (const struct cli_verb *v = cli_verbs; v->name && n < MAX_NAMES - 1; v++) {
		if (!under)
			names[n++] = v->name;
		else if (starts_word(v->name, under))
			names[n++] = v->name + strlen(under) + 1;
	}
	near = word ? pr_nearest(word, names) : NULL;
	if (near) {
		(void)pr_hint(err, "did you mean \"%s%s%s\"?", under ? under : "", under ? " " : "", near);
		return;
	}
	if (!under) {
		(void)pr_hint(err, "\"postrider help\" lists the verbs");
		return;
	}
	for (int i = 0; i < n; i++) {
		strncat(list, i ? ", " : "", sizeof(list) - strlen(list) - 1);
		strncat(list, names[i], sizeof(list) - strlen(list) - 1);
	}
	(void)pr_hint(err, "one of: %s", list);
}

static int unknown_option(const struct cli_verb *v, const char *arg, struct pr_err *err)
{
	const char *names[MAX_NAMES] = { NULL };
	size_t len = strcspn(arg, "=");
	char *word = pr_asprintf("%.*s", (int)len, arg[0] == '-' && arg[1] == '-' ? arg + 2 : arg);
	const char *near;
	int n = 0;

	for (const struct cli_opt *o = v->opts; o->name && n < MAX_NAMES - 1; o++)
		names[n++] = o->name;
	if (arg[1] == '-')
		word[len >= 2 ? len - 2 : 0] = '\0';
	near = arg[1] == '-' ? pr_nearest(word, names) : NULL;
	free(word);
	(void)cli_usage(err, "unknown option \"%.*s\"", (int)(len > 80 ? 80 : len), arg);
	if (near)
		(void)pr_hint(err, "did you mean \"--%s\"?", near);
	return -1;
}

int cli_is_uuid(const char *s)
{
	for (int i = 0; i < 36; i++) {
		int dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? s[i] != '-' : !isxdigit((unsigned char)s[i]))
			return 0;
	}
	return s[36] == '\0';
}

/* n digits, or -1. */
static int digits(const char **s, int n)
{
	int value = 0;

	for (; n > 0; n--, (*s)++) {
		if (!isdigit((unsigned char)**s))
			return -1;
		value = value * 10 + (**s - '0');
	}
	return value;
}

/* Z, +09:00, +0900 or -05; seconds east of UTC. */
static int parse_zone(const char *s, int *ret)
{
	int sign = *s == '-' ? -1 : 1, h, m = 0;

	if ((*s == 'Z' || *s == 'z') && !s[1]) {
		*ret = 0;
		return 0;
	}
	if (*s != '+' && *s != '-')
		return -1;
	s++;
	h = digits(&s, 2);
	if (*s == ':')
		s++;
	if (*s)
		m = digits(&s, 2);
	if (h < 0 || h > 15 || m < 0 || m > 59 || *s)
		return -1;
	*ret = sign * (h * 3600 + m * 60);
	return 0;
}

static int parse_rfc3339(const char *s, int64_t *ret)
{
	struct tm tm = { 0 }, back;
	int64_t us = 0, unit = 100000;
	int zone;
	time_t t;

	tm.tm_year = digits(&s, 4) - 1900;
	tm.tm_mon = *s++ == '-' ? digits(&s, 2) - 1 : -2;
	if (tm.tm_mon < 0 || *s++ != '-' || (tm.tm_mday = digits(&s, 2)) < 1)
		return -1;
	if ((*s != 'T' && *s != 't' && *s != ' ') || (s++, (tm.tm_hour = digits(&s, 2)) < 0) || *s++ != ':' ||
		(tm.tm_min = digits(&s, 2)) < 0)
		return -1;
	if (*s == ':' && (s++, (tm.tm_sec = digits(&s, 2)) < 0))
		return -1;
	if (*s == '.')
		for (s++; isdigit((unsigned char)*s); s++, unit /= 10)
			us += (*s - '0') * unit;
	while (*s == ' ')
		s++;
	if (parse_zone(s, &zone) < 0 || tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 59)
		return -1;
	back = tm;
	t = timegm(&back); /* normalises: the 31st of February comes back as another day */
	if (back.tm_mday != tm.tm_mday || back.tm_mon != tm.tm_mon || tm.tm_year < 70)
		return -1;
	*ret = ((int64_t)t - zone) * PR_SEC + us;
	return 0;
}

int cli_parse_time(const char *s, int64_t *ret_wall_us, struct pr_err *err)
{
	int64_t span;

	if (*s == '+' && pr_parse_duration(s + 1, &span, NULL) == 0) {
		*ret_wall_us = pr_wall_us() + span;
		return 0;
	}
	if (strlen(s) >= 16 && parse_rfc3339(s, ret_wall_us) == 0)
		return 0;
	(void)cli_usage(err, "\"%.80s\" is not a time", s);
	return pr_hint(err, "RFC 3339 with a zone, \"2026-01-31T09:00:00Z\", or from now: \"+10m\"");
}

/* Of a filter: a moment that has been. */
static int parse_past(const char *s, int64_t *ret_wall_us, struct pr_err *err)
{
	int64_t span;

	if (*s == '-' && pr_parse_duration(s + 1, &span, NULL) == 0) {
		*ret_wall_us = pr_wall_us() - span;
		return 0;
	}
	if (strlen(s) >= 16 && parse_rfc3339(s, ret_wall_us) == 0)
		return 0;
	(void)cli_usage(err, "\"%.80s\" is not a time", s);
	return pr_hint(err, "RFC 3339 with a zone, \"2026-01-31T09:00:00Z\", or before now: \"-10m\"");
}

static int check_range(const struct cli_opt *o, int64_t n, const char *text, struct pr_err *err)
{
	char lo[32], hi[32];

	if (n >= o->min && (o->max == 0 || n <= o->max))
		return 0;
	if (o->type == CLI_DURATION)
		return cli_usage(err, "\"%.40s\" is not between %lldms and %llds", text,
			(long long)(o->min / PR_MS), (long long)(o->max / PR_SEC));
	return cli_usage(err, "\"%.40s\" is not between %s and %s", text, cli_count(o->min, lo),
		cli_count(o->max, hi));
}

static int check_conninfo(const char *s, struct pr_err *err)
{
	char *why = NULL;
	PQconninfoOption *opts = PQconninfoParse(s, &why);
	int rc = 0;

	if (!opts) /* libpq's text may quote the string, and so a password: only its kind is told */
		rc = cli_usage(err, "not a connection string%s",
			strchr(s, '=') || strstr(s, "://") ? "" : ": write \"dbname=orders\"");
	for (PQconninfoOption *o = opts; o && o->keyword; o++)
		if (strcmp(o->keyword, "password") == 0 && o->val && *o->val)
			cli_warn("a password on the command line can be read by every user of this machine; "
				 "use ~/.pgpass, PGPASSWORD or -c");
	PQconninfoFree(opts);
	PQfreemem(why);
	return rc;
}

/* As relay_conf.c has it for the key "name". */
static int is_name(const char *s)
{
	size_t n = strlen(s);

	return n >= 1 && n <= 60 && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

static int check_number(struct cli_value *v, struct pr_err *err)
{
	int rc;

	if (v->opt->type == CLI_INT)
		rc = pr_parse_int(v->text, &v->number, err);
	else if (v->opt->type == CLI_SIZE)
		rc = pr_parse_size(v->text, &v->number, err);
	else
		rc = pr_parse_duration(v->text, &v->number, err);
	return rc < 0 ? -1 : check_range(v->opt, v->number, v->text, err);
}

static int check_word(const struct cli_opt *o, const char *s, struct pr_err *err)
{
	size_t n = strlen(s);

	for (const char *w = o->words; *w; w += strcspn(w, " "), w += *w == ' ')
		if (strcspn(w, " ") == n && strncmp(w, s, n) == 0)
			return 0;
	(void)cli_usage(err, "\"%.80s\" is not one of the words it knows", s);
	return pr_hint(err, "one of: %s", o->words);
}

static int check_value(struct cli_value *v, struct pr_err *err)
{
	switch (v->opt->type) {
	case CLI_FLAG:
		return 0;
	case CLI_INT:
	case CLI_SIZE:
	case CLI_DURATION:
		return check_number(v, err);
	case CLI_TIME:
		return cli_parse_time(v->text, &v->number, err);
	case CLI_PAST:
		return parse_past(v->text, &v->number, err);
	case CLI_UUID:
		return cli_is_uuid(v->text) ? 0 : cli_usage(err, "\"%.80s\" is not a UUID", v->text);
	case CLI_PAIR:
		return strchr(v->text, '=') && v->text[0] != '='
			       ? 0
			       : cli_usage(err, "\"%.80s\" is not name=value", v->text);
	case CLI_TOPIC:
		return pr_kafka_topic_valid(v->text, strlen(v->text))
			       ? 0
			       : cli_usage(err, "\"%.80s\" is not a topic name", v->text);
	case CLI_NAME:
		return is_name(v->text) ? 0
					: cli_usage(err, "\"%.80s\" is not 1 to 60 of a-z 0-9 _ -", v->text);
	case CLI_CONNINFO:
		return check_conninfo(v->text, err);
	case CLI_URL:
		return strncmp(v->text, "http://", 7) == 0 || strncmp(v->text, "https://", 8) == 0
			       ? 0
			       : cli_usage(err, "\"%.80s\" is not an http:// or https:// address", v->text);
	case CLI_STR:
		if (v->opt->words)
			return check_word(v->opt, v->text, err);
		return *v->text ? 0 : cli_usage(err, "empty");
	case CLI_FILE:
		return *v->text ? 0 : cli_usage(err, "empty");
	}
	return 0;
}

static int add_value(struct cli *c, const struct cli_opt *o, const char *text, struct pr_err *err)
{
	struct cli_value *v;

	if (!o->many && cli_has(c, o->name))
		return cli_usage(err, "--%s is given twice", o->name);
	c->values = pr_realloc(c->values, sizeof(*c->values) * (size_t)(c->nvalues + 1));
	v = &c->values[c->nvalues++];
	*v = (struct cli_value){ .opt = o, .text = text };
	if (check_value(v, err) == 0)
		return 0;
	(void)pr_wrap(err, "--%s", o->name);
	err->exit = PR_EX_USAGE;
	return -1;
}

static const struct cli_opt *find_option(const struct cli_verb *v, const char *arg, const char **ret_inline)
{
	size_t n;

	*ret_inline = NULL;
	for (const struct cli_opt *o = v->opts; o->name; o++) {
		if (arg[1] != '-') {
			if (o->letter && o->letter == arg[1]) {
				*ret_inline = arg[2] ? arg + 2 : NULL;
				return o;
			}
			continue;
		}
		n = strlen(o->name);
		if (strncmp(arg + 2, o->name, n) == 0 && (!arg[2 + n] || arg[2 + n] == '=')) {
			*ret_inline = arg[2 + n] ? arg + 3 + n : NULL;
			return o;
		}
	}
	return NULL;
}

/* The option at argv[*i], with its value; moves *i past them. */
static int take_option(struct cli *c, int argc, char **argv, int *i, struct pr_err *err)
{
	const char *arg = argv[*i], *value;
	const struct cli_opt *o = find_option(c->verb, arg, &value);

	if (!o)
		return unknown_option(c->verb, arg, err);
	if (o->type == CLI_FLAG)
		return value ? cli_usage(err, "--%s takes no value", o->name) : add_value(c, o, NULL, err);
	if (!value) {
		/* "--conninfo --json" is a forgotten value, not a database called --json. */
		if (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0)
			return cli_usage(err, "--%s needs a value: %s", o->name, o->arg);
		value = argv[++*i];
	}
	return add_value(c, o, value, err);
}

/* Finds the verb in argv[1..]; *ret_next is the first argument behind it. */
static int take_verb(struct cli *c, int argc, char **argv, int *ret_next, struct pr_err *err)
{
	char two[80];

	if (argc < 2) {
		(void)cli_usage(err, "which verb?");
		return pr_hint(err, "\"postrider help\" lists the verbs");
	}
	c->verb = cli_find(argv[1]);
	*ret_next = 2;
	if (c->verb)
		return 0;
	if (!cli_is_prefix(argv[1])) {
		(void)cli_usage(err, "unknown verb \"%.60s\"", argv[1]);
		hint_verb(err, argv[1], NULL);
		return -1;
	}
	if (argc > 2) {
		(void)snprintf(two, sizeof(two), "%.30s %.40s", argv[1], argv[2]);
		c->verb = cli_find(two);
		*ret_next = 3;
		if (c->verb)
			return 0;
		(void)cli_usage(err, "unknown verb \"%s\"", two);
	} else {
		(void)cli_usage(err, "\"%.30s\" needs a second word", argv[1]);
	}
	hint_verb(err, argc > 2 ? argv[2] : NULL, argv[1]);
	return -1;
}

static int check_operands(const struct cli *c, struct pr_err *err)
{
	if (c->nargs < c->verb->min_args)
		return cli_usage(err, "an operand is missing: %s", c->verb->args);
	if (c->nargs > c->verb->max_args)
		return cli_usage(err, "unexpected operand \"%.80s\"", c->args[c->verb->max_args]);
	return 0;
}

int cli_parse(struct cli *c, int argc, char **argv, struct pr_err *err)
{
	int i = 1, only_operands = 0;

	memset(c, 0, sizeof(*c));
	if (take_verb(c, argc, argv, &i, err) < 0)
		return -1;
	c->args = pr_calloc((size_t)argc, sizeof(*c->args));
	for (; i < argc; i++) {
		if (!only_operands && strcmp(argv[i], "--") == 0)
			only_operands = 1;
		else if (only_operands || argv[i][0] != '-' || !argv[i][1])
			c->args[c->nargs++] = argv[i];
		else if (take_option(c, argc, argv, &i, err) < 0)
			return -1;
	}
	return cli_has(c, "help") ? 0 : check_operands(c, err);
}

void cli_release(struct cli *c)
{
	pr_conf_free(c->loaded);
	pr_conf_free(c->consumer_loaded);
	free(c->values);
	free(c->args);
	memset(c, 0, sizeof(*c));
}

/* The n-th value of an option. Asking for one the verb does not have is our mistake. */
static const struct cli_value *value_of(const struct cli *c, const char *name, int n)
{
	const struct cli_opt *o = c->verb->opts;

	for (int i = 0; i < c->nvalues; i++)
		if (strcmp(c->values[i].opt->name, name) == 0 && n-- == 0)
			return &c->values[i];
	while (o->name && strcmp(o->name, name) != 0)
		o++;
	assert(o->name || strcmp(name, "help") == 0 || strcmp(name, "json") == 0);
	return NULL;
}

int cli_has(const struct cli *c, const char *name)
{
	return value_of(c, name, 0) != NULL;
}

const char *cli_nth(const struct cli *c, const char *name, int n)
{
	const struct cli_value *v = value_of(c, name, n);

	return v ? v->text : NULL;
}

const char *cli_str(const struct cli *c, const char *name)
{
	return cli_nth(c, name, 0);
}

int64_t cli_int(const struct cli *c, const char *name, int64_t otherwise)
{
	const struct cli_value *v = value_of(c, name, 0);

	return v ? v->number : otherwise;
}
