/* lib/conf_value.c -- numbers with units, ranges, words of a choice, edit distance, and
 * which texts are secret. Refuses what is almost a value: "8mb", "5 s", "1.5GB", "0x10". */
#include "lib/conf_value.h"

#include <ctype.h>
#include <libpq-fe.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MASK "********"

struct unit {
	const char *name; /* NULL ends a list */
	int64_t factor;
};

/* Longest factor first: printing takes the first that divides. */
static const struct unit plain_units[] = {
	{ "G", 1000000000 },
	{ "M", 1000000 },
	{ "K", 1000 },
	{ "", 1 },
	{ NULL, 0 },
};

static const struct unit size_units[] = {
	{ "TB", 1LL << 40 },
	{ "GB", 1LL << 30 },
	{ "MB", 1LL << 20 },
	{ "kB", 1LL << 10 },
	{ "B", 1 },
	{ NULL, 0 },
};

static const struct unit time_units[] = {
	{ "d", 86400000000 },
	{ "h", 3600000000 },
	{ "m", 60000000 },
	{ "s", 1000000 },
	{ "ms", 1000 },
	{ "us", 1 },
	{ NULL, 0 },
};

static const struct unit *units_of(enum pr_opt_type type)
{
	return type == PR_OPT_SIZE ? size_units : type == PR_OPT_DURATION ? time_units : plain_units;
}

/* Decimal digits at *s; moves *s behind them. */
static int parse_digits(const char **s, int64_t *ret)
{
	int64_t v = 0;

	if (!isdigit((unsigned char)**s))
		return -1;
	for (; isdigit((unsigned char)**s); (*s)++)
		if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, **s - '0', &v))
			return -1;
	*ret = v;
	return 0;
}

static int bad_value(struct pr_err *err, const char *s, const char *what)
{
	char *shown = pr_conf_quote(s);

	(void)pr_fail(err, PR_REJECT, "%.90s is not %s", shown, what);
	free(shown);
	return -1;
}

static int parse_with(
	const char *s, const struct unit *units, const char *what, int64_t *ret, struct pr_err *err)
{
	const char *p = s + (*s == '-' && units == plain_units);
	int64_t v;

	if (parse_digits(&p, &v) < 0)
		return bad_value(err, s, what);
	if (v == 0 && *p == '\0') {
		*ret = 0;
		return 0;
	}
	while (units->name && strcmp(units->name, p) != 0)
		units++;
	if (!units->name || __builtin_mul_overflow(v, units->factor, &v))
		return bad_value(err, s, what);
	*ret = *s == '-' ? -v : v;
	return 0;
}

int pr_parse_size(const char *s, int64_t *ret, struct pr_err *err)
{
	return parse_with(s, size_units, "a size: a whole number and B, kB, MB, GB or TB", ret, err);
}

int pr_parse_duration(const char *s, int64_t *ret_us, struct pr_err *err)
{
	return parse_with(s, time_units, "a duration: a whole number and us, ms, s, m, h or d", ret_us, err);
}

int pr_parse_int(const char *s, int64_t *ret, struct pr_err *err)
{
	return parse_with(s, plain_units, "a whole number (K, M and G may follow it)", ret, err);
}

static void limits_of(const struct pr_opt *o, int64_t *ret_min, int64_t *ret_max)
{
	*ret_min = o->min;
	*ret_max = o->min == 0 && o->max == 0 ? INT64_MAX : o->max;
}

char *pr_conf_range_str(const struct pr_opt *o)
{
	char *min, *max, *range;

	if (o->min == 0 && o->max == 0)
		return NULL;
	min = pr_conf_number_str(o->type, o->min);
	max = pr_conf_number_str(o->type, o->max);
	range = pr_asprintf("%s to %s", min, max);
	free(min);
	free(max);
	return range;
}

int pr_conf_range(const struct pr_opt *o, int64_t v, struct pr_err *err)
{
	char *is, *range;
	int64_t min, max;

	limits_of(o, &min, &max);
	if (v >= min && v <= max)
		return 0;
	is = pr_conf_number_str(o->type, v);
	range = pr_conf_range_str(o);
	(void)pr_fail(err, PR_REJECT, "%s is out of range: %s", is, range ? range : "not below 0");
	free(is);
	free(range);
	return -1;
}

int pr_conf_number(const struct pr_opt *o, const char *text, int64_t *ret, struct pr_err *err)
{
	int64_t v;
	int rc;

	if (o->type == PR_OPT_SIZE)
		rc = pr_parse_size(text, &v, err);
	else if (o->type == PR_OPT_DURATION)
		rc = pr_parse_duration(text, &v, err);
	else
		rc = pr_parse_int(text, &v, err);
	if (rc < 0 || pr_conf_range(o, v, err) < 0)
		return -1;
	*ret = v;
	return 0;
}

char *pr_conf_number_str(enum pr_opt_type type, int64_t v)
{
	const struct unit *u = units_of(type);

	if (v == 0)
		return pr_strdup("0");
	/* Plain numbers below ten million read best without a unit. */
	while (v % u->factor != 0 || (type == PR_OPT_INT && v < 10000000 && u->factor > 1))
		u++;
	return pr_asprintf("%lld%s", (long long)(v / u->factor), u->name);
}

int pr_conf_choice(const char *choices, const char *word)
{
	size_t n = strlen(word);
	int i = 0;

	for (const char *p = choices; p; p = strchr(p, '|'), i++) {
		p += *p == '|';
		if (strcspn(p, "|") == n && memcmp(p, word, n) == 0)
			return i;
	}
	return -1;
}

char *pr_conf_choice_str(const char *choices, int i)
{
	const char *p = choices;

	while (i-- > 0 && strchr(p, '|'))
		p = strchr(p, '|') + 1;
	return pr_asprintf("%.*s", (int)strcspn(p, "|"), p);
}

char *pr_conf_quote(const char *s)
{
	struct pr_buf b = { 0 };

	pr_buf_put(&b, "\"", 1);
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			pr_buf_printf(&b, "\\%c", c);
		else if (c == '\n')
			pr_buf_puts(&b, "\\n");
		else if (c < ' ' || c == 127)
			pr_buf_printf(&b, "\\x%02x", c);
		else
			pr_buf_put(&b, s, 1);
	}
	pr_buf_put(&b, "\"", 1);
	return b.s;
}

/* libpq's message may repeat pieces of the password; the names of options are safe. */
static int not_conninfo(struct pr_err *err, const char *message)
{
	static const char *const safe[] = { "invalid connection option", "invalid URI query parameter" };

	for (size_t i = 0; message && i < sizeof(safe) / sizeof(*safe); i++)
		if (strncmp(message, safe[i], strlen(safe[i])) == 0)
			return pr_fail(err, PR_REJECT, "%s", message);
	return pr_fail(err, PR_REJECT, "is neither \"keyword=value ...\" nor a postgresql:// address");
}

static void put_keyword(struct pr_buf *b, const char *keyword, const char *value)
{
	int quoted = *value == '\0' || strpbrk(value, " '\\\t\n") != NULL;

	pr_buf_printf(b, "%s%s=%s", b->len ? " " : "", keyword, quoted ? "'" : "");
	for (; *value; value++) {
		if (*value == '\'' || *value == '\\')
			pr_buf_put(b, "\\", 1);
		pr_buf_put(b, value, 1);
	}
	if (quoted)
		pr_buf_put(b, "'", 1);
}

char *pr_conf_conninfo_mask(const char *conninfo, int *ret_secret, struct pr_err *err)
{
	char *message = NULL;
	PQconninfoOption *options = PQconninfoParse(conninfo, &message);
	struct pr_buf b = { 0 };

	*ret_secret = 0;
	if (!options)
		(void)not_conninfo(err, message);
	PQfreemem(message);
	if (!options)
		return NULL;
	pr_buf_puts(&b, "");
	for (PQconninfoOption *o = options; o->keyword; o++) {
		int secret = strcmp(o->keyword, "password") == 0 || strcmp(o->keyword, "sslpassword") == 0;

		if (!o->val)
			continue;
		put_keyword(&b, o->keyword, secret ? MASK : o->val);
		*ret_secret |= secret;
	}
	PQconninfoFree(options);
	return b.s;
}

const char *pr_conf_secret_part(const char *property)
{
	static const char *const words[] = { "password", "secret", "passphrase", "token", ".key.pem",
		"oauthbearer.config", "ssl_key", "authorization", "cookie", "api-key", "apikey" };
	const char *eq = property + strcspn(property, "=:"); /* a property's, or a header's */
	char name[128];

	if (!*eq)
		return NULL;
	(void)snprintf(name, sizeof(name), "%.*s", (int)(eq - property), property);
	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (strcasestr(name, words[i])) {
			eq++;
			return eq + strspn(eq, " ");
		}
	return NULL;
}

const char *pr_conf_type_str(enum pr_opt_type type)
{
	switch (type) {
	case PR_OPT_STR:
		return "a string";
	case PR_OPT_SECRET:
		return "a string, \"env:NAME\" or \"file:/path\"";
	case PR_OPT_CONNINFO:
		return "a connection string";
	case PR_OPT_BOOL:
		return "true or false, without quotes";
	case PR_OPT_INT:
		return "a whole number";
	case PR_OPT_SIZE:
		return "a size like \"8MB\"";
	case PR_OPT_DURATION:
		return "a duration like \"5s\"";
	case PR_OPT_ENUM:
		return "a word in quotes";
	case PR_OPT_STRS:
		return "a list of strings like ( \"a\", \"b\" )";
	case PR_OPT_RATIO:
		return "a number from 0.0 to 1.0";
	case PR_OPT_GROUPS:
		return "a list of groups like ( { ... }, { ... } )";
	}
	return "?";
}

static size_t min3(size_t a, size_t b, size_t c)
{
	size_t m = a < b ? a : b;

	return m < c ? m : c;
}

/* Edit distance in which two neighbours that changed places count once (optimal string alignment). */
static size_t distance(const char *a, const char *b)
{
	enum { N = 96 };
	size_t d[3][N + 1], na = strlen(a), nb = strlen(b);

	if (na > N || nb > N)
		return SIZE_MAX;
	for (size_t j = 0; j <= nb; j++)
		d[0][j] = j;
	for (size_t i = 1; i <= na; i++) {
		size_t *row = d[i % 3], *up = d[(i - 1) % 3], *up2 = d[(i + 1) % 3];

		row[0] = i;
		for (size_t j = 1; j <= nb; j++) {
			row[j] = min3(up[j] + 1, row[j - 1] + 1, up[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
				up2[j - 2] + 1 < row[j])
				row[j] = up2[j - 2] + 1;
		}
	}
	return d[na % 3][nb];
}

const char *pr_nearest(const char *word, const char *const *candidates)
{
	size_t n = strlen(word), best = (n + 2) / 3;
	const char *nearest = NULL;

	for (; *candidates; candidates++) {
		size_t d = distance(word, *candidates);

		if (d < n && (d < best || (d == best && !nearest))) {
			best = d;
			nearest = *candidates;
		}
	}
	return nearest;
}
