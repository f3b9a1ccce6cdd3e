/* lib/json_path.h -- looks into JSON text and rebuilds its outermost object without a tree: values stay the
 * bytes they were, so that no digit of a number and no escape changes on its way. Input is untrusted. */
#ifndef PR_JSON_PATH_H
#define PR_JSON_PATH_H

#include "lib/json.h"

/* The raw value at a path: "a.b.0.c", members with other characters as a["x.y"], elements also as a[0]; "" is
 * the whole value without the space around it. A number without leading zeros names an array's element or an
 * object's member; of members of the same name the last one counts, as in jsonb. The whole text is read:
 * strict RFC 8259, valid UTF-8, nesting <= 512. The type is told by the first byte. Borrowed from text. 1
 * found, 0 not there, -1 the text is no JSON or the path is malformed. */
int pr_json_at(const char *text, size_t len, const char *path, const char **ret, size_t *ret_len);

struct pr_json_member {
	const char *name; /* unescaped */
	size_t name_len;
	const char *value; /* raw JSON; NULL: remove */
	size_t value_len;
};

/* Appends the object with some of its members replaced (at their place; a name that came several times comes
 * once), removed, or added behind the others in the order of m; of equal names in m the last one counts. The
 * names and values of all others stay byte for byte, the space between them goes. -1: not one JSON object, or
 * a value is no JSON; nothing was appended. */
int pr_json_merge(struct pr_buf *b, const char *object, size_t len, const struct pr_json_member *m, size_t n);

/* Appends the unescaped text of a raw JSON string (a \u0000 in it becomes a NUL). -1: it is none, nothing
 * appended. */
int pr_json_str(struct pr_buf *b, const char *raw, size_t len);

#endif
