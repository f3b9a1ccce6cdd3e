/* tests/fuzz/fuzz_conf.c -- any bytes as a config file: never a crash, a leak or a hang,
 * and what is accepted can be printed and validated.
 * Input: config text, or "-o" overrides one per line, a line "---", and the config text. */
#include "lib/conf.h"
#include "lib/relay_conf.h"

#include "tests/fuzz/fuzz.h"

#include <assert.h>
#include <string.h>

#define MAX_OVERRIDES 8

struct rule {
	char *match;
	int policy;
	int64_t attempts;
};

/* The relay's options and one of each type that it has none of. */
struct target {
	struct pr_relay_conf relay;
	int on;
	struct pr_groups rules;
};

static const struct pr_opt rule_options[] = {
	{ "match", PR_OPT_STR, offsetof(struct rule, match), .flags = PR_OPT_REQUIRED, .doc = "What." },
	{ "policy", PR_OPT_ENUM, offsetof(struct rule, policy), "retry", .choices = "retry|park",
		.doc = "How." },
	{ "attempts", PR_OPT_INT, offsetof(struct rule, attempts), "5", .min = 1, .max = 9,
		.doc = "How often." },
	{ 0 },
};

static struct pr_opt options[64] = {
	{ "on", PR_OPT_BOOL, offsetof(struct target, on), "true", .doc = "A switch." },
	{ "rules", PR_OPT_GROUPS, offsetof(struct target, rules), .sub = rule_options,
		.sub_size = sizeof(struct rule), .doc = "Rules." },
};

static void make_table(void)
{
	size_t n = 2;

	if (options[n].path)
		return;
	for (const struct pr_opt *o = pr_relay_options; o->path; o++)
		options[n++] = *o;
	assert(n < sizeof(options) / sizeof(*options));
}

/* Cuts the overrides off the text; the text that is left begins at the returned offset. */
static size_t take_overrides(char *s, size_t len, const char **overrides, size_t *ret_n)
{
	char *sep = memmem(s, len, "\n---\n", 5), *save = NULL;

	*ret_n = 0;
	if (!sep || memchr(s, '\0', (size_t)(sep - s)))
		return 0;
	*sep = '\0';
	for (char *o = strtok_r(s, "\n", &save); o && *ret_n < MAX_OVERRIDES; o = strtok_r(NULL, "\n", &save))
		overrides[(*ret_n)++] = o;
	return (size_t)(sep - s) + 5;
}

static void use(const struct target *t, struct pr_conf *conf)
{
	FILE *null = fopen("/dev/null", "w");
	struct pr_err err;

	assert(null);
	pr_conf_print(conf, null);
	(void)fclose(null);
	assert(!pr_conf_frozen_change(options, t, t));
	for (size_t i = 0; i < t->rules.n; i++) {
		const struct rule *r = (const struct rule *)t->rules.v + i;

		assert(r->match && r->attempts >= 1 && r->attempts <= 9 && r->policy >= 0 && r->policy <= 1);
	}
	assert(t->relay.limits.batch_events >= 1 && t->relay.limits.batch_events <= 1000000);
	if (pr_relay_conf_validate(&t->relay, conf, &err) < 0)
		assert(*err.text && err.exit == PR_EX_CONFIG);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *overrides[MAX_OVERRIDES];
	char *s = pr_malloc(size + 1);
	struct pr_conf *conf = NULL;
	struct pr_err err = { 0 };
	struct target t;
	size_t n, from;

	make_table();
	memcpy(s, data, size);
	s[size] = '\0';
	from = take_overrides(s, size, overrides, &n);
	if (pr_conf_load_text("fuzz.cfg", s + from, size - from, options, &t, overrides, n, &conf, &err) == 0)
		use(&t, conf);
	else
		assert(*err.text && err.exit == PR_EX_CONFIG && !conf);
	pr_conf_free(conf);
	free(s);
	return 0;
}
