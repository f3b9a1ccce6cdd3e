/* lib/conf_value.h -- inside the configuration room: single values, to and from text.
 * lib/conf*.c only. Thread-safe. */
#ifndef PR_CONF_VALUE_H
#define PR_CONF_VALUE_H

#include "lib/conf.h"
#include "lib/json.h"

/* INT, SIZE, DURATION: the text of a config value -> *ret, units and range checked. */
int pr_conf_number(const struct pr_opt *o, const char *text, int64_t *ret, struct pr_err *err) PR_MUSTCHECK;
int pr_conf_range(const struct pr_opt *o, int64_t v, struct pr_err *err) PR_MUSTCHECK;

/* The shortest exact text, "8MB", "1500ms"; malloc'd. */
char *pr_conf_number_str(enum pr_opt_type type, int64_t v);

/* "1 to 1000000" of INT, SIZE, DURATION; NULL when any non-negative; malloc'd. */
char *pr_conf_range_str(const struct pr_opt *o);

/* ENUM: index of the word in "a|b|c" (n bytes), or -1; and the word of an index, malloc'd. */
int pr_conf_choice(const char *choices, const char *word);
char *pr_conf_choice_str(const char *choices, int i);

/* The text in quotes as a config file would have it; malloc'd. */
char *pr_conf_quote(const char *s);

/* A conninfo (or why not) with its passwords as "********"; malloc'd. *ret_secret = 1 when it holds one.
 * NULL and err when it is not a conninfo; the reason never repeats the value. */
char *pr_conf_conninfo_mask(const char *conninfo, int *ret_secret, struct pr_err *err);

/* The value part of "sasl.password=..." when the property's name says it is secret, else NULL. */
const char *pr_conf_secret_part(const char *property);

/* What a value of this type looks like, for messages and docs: "a duration like \"5s\"". */
const char *pr_conf_type_str(enum pr_opt_type type);

#endif
