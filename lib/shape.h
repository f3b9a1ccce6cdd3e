/* lib/shape.h -- what the payloads of one type look like, learnt from them: each place with the kinds of
 * values it held, how often, since when, an example, and whether it looks like something about a person.
 *
 * Guaranteed: every place and every kind of every payload passed to pr_shape_see is known afterwards, down to
 * 32 levels, until the bound of places is reached (pr_shape_overflow says so). Looked at by samples only (the
 * first 100 payloads, then one in 64): examples, and what tells a person from the values.
 * An object whose members' names are data (uuids, numbers, long ones, what looks like a person, or more than
 * 250 different ones) is a map: its members are one place, "*". Of what rules drop, mask or do not keep no
 * more is known than that it is there. Input is untrusted; memory is bounded by max_paths * about 300 bytes.
 */
#ifndef PR_SHAPE_H
#define PR_SHAPE_H

#include "lib/json.h"

#include <stdint.h>

enum pr_kind_of_value {
	PR_IS_NULL = 1,
	PR_IS_BOOLEAN = 2,
	PR_IS_INTEGER = 4,
	PR_IS_NUMBER = 8, /* with a point or an exponent */
	PR_IS_STRING = 16,
	PR_IS_OBJECT = 32,
	PR_IS_ARRAY = 64,
};

enum pr_pii {
	PR_PII_EMAIL = 1,
	PR_PII_PHONE = 2,
	PR_PII_CARD = 4, /* by Luhn's sum */
	PR_PII_IBAN = 8, /* by its sum */
	PR_PII_IP = 16,
	PR_PII_KEY = 32, /* the member is called so */
};

struct pr_shape;

struct pr_shape_path {
	const char *path; /* as the sink's fields name it: payload.items[].card */
	unsigned kinds;   /* all so far */
	uint64_t seen;    /* since it was told last */
	int64_t first_us, last_us;
	const char *sample; /* JSON, cut and, of a person, masked; NULL: none yet */
	unsigned pii;
	int required;  /* it was in every object of its kind */
	int collapsed; /* an object that has become a map: what was told of its members is void */
};

struct pr_project;

/* rules: borrowed, NULL for none. */
struct pr_shape *pr_shape_new(int max_paths, const struct pr_project *rules);
void pr_shape_free(struct pr_shape *s); /* accepts NULL */

/* A payload; JSON NULL: a tombstone, which has kind null. -1: it is no JSON; what came before that place was
 * learnt. Returns 1 when a place or a kind is new, else 0. */
int pr_shape_see(struct pr_shape *s, const char *json, size_t len, int64_t time_us);
int pr_shape_fresh(const struct pr_shape *s);       /* a place or a kind is new and not told yet */
int pr_shape_overflow(const struct pr_shape *s);    /* there were more places than max_paths */
uint64_t pr_shape_untold(const struct pr_shape *s); /* payloads seen since it was told */

/* Every place seen since it was told last, parents before children. The path is borrowed for the call. */
void pr_shape_tell(struct pr_shape *s, void (*each)(void *ctx, const struct pr_shape_path *p), void *ctx);
/* The same of all places, and nothing counts as told. */
void pr_shape_all(struct pr_shape *s, void (*each)(void *ctx, const struct pr_shape_path *p), void *ctx);

/* "integer,null" and "email,key"; appends nothing for none. */
void pr_shape_put_kinds(struct pr_buf *b, unsigned kinds, const char *between);
void pr_shape_put_pii(struct pr_buf *b, unsigned pii);

/* What a string's text, or a number's digits, look like; and a member's name. */
unsigned pr_pii_of_text(const char *s, size_t len);
unsigned pr_pii_of_name(const char *s, size_t len);

/* Appends the text with letters as x and digits as 9 (a JSON string stays one). */
void pr_shape_mask(struct pr_buf *b, const char *s, size_t len);

#endif
