/* lib/conf_text.h -- inside the configuration room: a config file as one flat text that
 * libconfig may be trusted with. lib/conf*.c only. One thread at a time. */
#ifndef PR_CONF_TEXT_H
#define PR_CONF_TEXT_H

#include "lib/err.h"

#include <sys/stat.h>

#define PR_CONF_MAX_BYTES (1024 * 1024) /* of the file with all its includes */

struct pr_conf_file {
	char *name; /* as errors show it */
	struct stat st;
};

struct pr_conf_line {
	size_t file; /* index into files */
	int line;    /* in that file, from 1 */
};

struct pr_conf_mark {
	int line;   /* of the flat text */
	char *path; /* "limits.batch_events" */
};

/* Starts as {0}; pr_conf_text_free after success and failure alike. */
struct pr_conf_text {
	char *s; /* len bytes, NUL-terminated, no NUL inside, no @include left */
	size_t len, cap;
	struct pr_conf_file *files; /* [0] is the file itself */
	size_t nfiles;
	struct pr_conf_line *lines; /* where each line of the flat text came from */
	size_t nlines, caplines;
	struct pr_conf_mark *marks; /* where each key stands */
	size_t nmarks, capmarks;
};

/* Reads a file and what it includes; or a text that came from memory (no includes then). */
int pr_conf_text_read(const char *file, struct pr_conf_text *t, struct pr_err *err) PR_MUSTCHECK;
int pr_conf_text_memory(
	const char *name, const char *s, size_t n, struct pr_conf_text *t, struct pr_err *err) PR_MUSTCHECK;
void pr_conf_text_free(struct pr_conf_text *t);

/* The origin of a line of the flat text (1..nlines, others are clamped). */
const struct pr_conf_line *pr_conf_text_line(const struct pr_conf_text *t, int line);

/* The key that stands on this line or last before it, or NULL. */
const char *pr_conf_text_key(const struct pr_conf_text *t, int line);

/* Whole content of a regular file of at most max bytes, NUL-terminated; the caller frees. Never waits
 * on a FIFO or a device. The error is only the reason: the caller names the file. */
int pr_conf_slurp(const char *path, size_t max, char **ret, size_t *ret_len, struct stat *ret_st,
	struct pr_err *err) PR_MUSTCHECK;

/* Fills err with "where: key: reason" (where and key may be NULL), exit PR_EX_CONFIG; returns -1. */
int pr_conf_error(struct pr_err *err, const char *where, const char *key, const char *fmt, ...)
	PR_PRINTF(4, 5);

/* The same with "file:line" of a line of the flat text. */
int pr_conf_error_at(const struct pr_conf_text *t, int line, const char *key, struct pr_err *err,
	const char *fmt, ...) PR_PRINTF(5, 6);

#endif
