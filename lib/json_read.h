/* lib/json_read.h -- one pass over JSON text: what json.c, json_path.c, project.c and shape.c share, and
 * nobody outside of lib/ includes. Every function starts at r->p and leaves it behind what it read; -1 leaves
 * it anywhere. */
#ifndef PR_JSON_READ_H
#define PR_JSON_READ_H

#include "lib/json.h"

#define JSON_DEPTH 512 /* arrays and objects inside each other */

struct reader {
	const char *p, *end;
	int jsonb;       /* refuse also what jsonb cannot hold: \u0000, numbers past numeric */
	unsigned values; /* passed so far */
};

/* A string's text. Without escapes it is borrowed from the input (off < 0), else it is at scratch->s + off.
 */
struct json_text {
	const char *s;
	ptrdiff_t off;
	size_t len;
};

static inline void json_space(struct reader *r)
{
	while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t'))
		r->p++;
}

static inline int json_take(struct reader *r, char c)
{
	if (r->p == r->end || *r->p != c)
		return -1;
	r->p++;
	return 0;
}

static inline int json_is_plain(unsigned char c)
{
	return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* The length of the non-ASCII character at p, or minus the bytes that one U+FFFD replaces. */
int json_utf8_len(const char *p, const char *end);

/* Behind the characters that stand for themselves inside a string. */
const char *json_skip_plain(const char *p, const char *end);

/* A string with its quotation marks; the text goes behind what scratch holds, when it cannot be borrowed. */
int json_string(struct reader *r, struct pr_buf *scratch, struct json_text *ret);

/* A whole value in which at most `room` arrays and objects nest. */
int json_value(struct reader *r, int room);

#endif
