/* lib/conf.h -- one typed table of options -> a C struct. The same table makes
 * parsing, units, ranges, nearest-name hints, --print-config, the commented sample
 * in etc/ and the reference page. A config file is libconfig syntax; sizes ("64MB")
 * and durations ("5s") are strings with units; unknown keys are errors.
 * Every error reads "file:line: key: reason" and has exit = PR_EX_CONFIG.
 * One thread at a time. */
#ifndef PR_CONF_H
#define PR_CONF_H

#include "lib/err.h"

#include <stdint.h>
#include <stdio.h>

enum pr_opt_type {
	PR_OPT_STR,      /* char * (owned by the conf) */
	PR_OPT_SECRET,   /* char *: "env:NAME" or "file:/path" resolved; masked when printed */
	PR_OPT_CONNINFO, /* char *: libpq conninfo, may be "env:"/"file:"; its password is masked when printed
			  */
	PR_OPT_BOOL,     /* int: true / false */
	PR_OPT_INT,      /* int64_t: plain integer, min..max; also a string "5M" with K/M/G (decimal) */
	PR_OPT_SIZE,     /* int64_t bytes: string "512kB", "8MB", "1GB" (powers of 1024), "100B" */
	PR_OPT_DURATION, /* int64_t microseconds: string "500us", "10ms", "5s", "2m", "1h", "7d" */
	PR_OPT_ENUM,     /* int: index of the word in choices ("a|b|c") */
	PR_OPT_STRS,     /* struct pr_strs: list or array of strings */
	PR_OPT_RATIO,    /* int64_t millionths: 0.0 to 1.0, no more than six digits behind the point */
	PR_OPT_GROUPS,   /* struct pr_groups: list of groups, each parsed by its own table (.sub) */
};

enum { /* flags */
	PR_OPT_REQUIRED = 1,
	PR_OPT_NO_RELOAD = 2, /* SIGHUP that changes it is refused whole, by name */
	PR_OPT_HIDDEN = 4,    /* for tests: parsed, but not in the sample or the reference */
	PR_OPT_SHOWN = 8,     /* the sample sets its example: without it the sample would be refused */
	PR_OPT_PLAIN = 16,    /* of STRS: "token=..." is no secret, and "env:" and "file:" are text */
};

struct pr_strs {
	char **v; /* n strings, owned */
	size_t n;
};

struct pr_groups {
	void *v; /* n structs of sub_size bytes, owned */
	size_t n;
};

struct pr_opt {
	const char *path; /* "limits.batch_events"; NULL ends a table */
	enum pr_opt_type type;
	size_t offset;       /* of the field in the caller's struct */
	const char *def;     /* default as it would stand in the file, without quotes; NULL: none */
	int64_t min, max;    /* of INT, SIZE (bytes), DURATION (us); both 0: any non-negative */
	const char *choices; /* of ENUM */
	int flags;
	const char *doc;          /* one or two sentences: sample and reference print it */
	const struct pr_opt *sub; /* of GROUPS */
	size_t sub_size;
	const char *example; /* of an option without default: what the sample shows, as def would */
	const char *refused; /* of ENUM: the hint for a word that is none of choices */
};

struct pr_conf; /* a loaded file: owns the values the caller's struct points to */

/* Loads a file into *target (the struct the offsets speak of), applies overrides
 * ("path.to.key=value", n of them, they win), then defaults, checks everything.
 * A FIFO, directory, device, file over 1 MB, NUL byte, include loop or include
 * outside the file's directory, BOM, overflow: an error, never a hang.
 * On 0 *ret is the caller's to pr_conf_free, which also frees what *target points to;
 * on -1 *target is undefined. Borrows all arguments; the table must outlive *ret. */
int pr_conf_load(const char *file, const struct pr_opt *table, void *target, const char *const *overrides,
	size_t n, struct pr_conf **ret, struct pr_err *err) PR_MUSTCHECK;
void pr_conf_free(struct pr_conf *conf);

/* The same for a program that needs few of a file's secrets: "env:NAME" and "file:/path" stay in *target as
 * they are written, neither looked up nor checked. pr_conf_follow puts what one of them names in its place
 * (nothing to do: 0); pr_conf_unread says whether that has still to be done. */
int pr_conf_load_unread(const char *file, const struct pr_opt *table, void *target,
	const char *const *overrides, size_t n, struct pr_conf **ret, struct pr_err *err) PR_MUSTCHECK;
int pr_conf_unread(const struct pr_conf *conf, const char *path);
int pr_conf_follow(struct pr_conf *conf, const struct pr_opt *table, void *target, const char *path,
	struct pr_err *err) PR_MUSTCHECK;

/* The same from memory (len bytes, need not end in NUL); name stands for the file in errors; an
 * @include is refused. Tests and the fuzzer use it. */
int pr_conf_load_text(const char *name, const char *text, size_t len, const struct pr_opt *table,
	void *target, const char *const *overrides, size_t n, struct pr_conf **ret,
	struct pr_err *err) PR_MUSTCHECK;

/* For semantic errors found later: fills err with "file:line: key: <text>" where the
 * key was set; of a default, the line of its element of GROUPS, or "file: key: ..."; returns -1. */
int pr_conf_fail(const struct pr_conf *conf, const char *path, struct pr_err *err, const char *fmt, ...)
	PR_PRINTF(4, 5);

/* Line of the file that sets the option; 0: none does. */
int pr_conf_line(const struct pr_conf *conf, const char *path);

/* Name of the first PR_OPT_NO_RELOAD option that differs, or NULL. */
const char *pr_conf_frozen_change(const struct pr_opt *table, const void *was, const void *is);

/* A number of the struct that a reload may change at any moment. */
static inline int64_t pr_setting(const int64_t *field)
{
	return __atomic_load_n(field, __ATOMIC_RELAXED);
}

/* Takes over size bytes of such numbers, each on its own: a reader sees the old one or the new one. */
static inline void pr_settings_adopt(void *to, const void *from, size_t size)
{
	int64_t *t = to;
	const int64_t *f = from;

	for (size_t i = 0; i < size / sizeof(*t); i++)
		__atomic_store_n(&t[i], f[i], __ATOMIC_RELAXED);
}

/* Effective values with their origin (file:line, command line, default), secrets masked. */
void pr_conf_print(const struct pr_conf *conf, FILE *out);

/* The commented sample config (etc/<program>.cfg) and the reference page (markdown). */
void pr_conf_sample(const struct pr_opt *table, const char *title, FILE *out);
void pr_conf_reference(const struct pr_opt *table, const char *title, FILE *out);

/* Single values, for the CLI and the tests: 0 and *ret, or -1 and the reason in err. */
int pr_parse_size(const char *s, int64_t *ret, struct pr_err *err) PR_MUSTCHECK;
int pr_parse_duration(const char *s, int64_t *ret_us, struct pr_err *err) PR_MUSTCHECK;
int pr_parse_int(const char *s, int64_t *ret, struct pr_err *err) PR_MUSTCHECK;

/* The candidate (NULL-terminated list) nearest to word by edit distance, or NULL when none is near. */
const char *pr_nearest(const char *word, const char *const *candidates);

#endif
