/* lib/project.h -- which fields of a record leave the house, and how they look: selection, renaming and
 * masking by path, on JSON text without a tree. What no rule names stays the bytes it was, so that no digit
 * of a number and no escape changes on its way. Input is untrusted; the rules are the operator's. */
#ifndef PR_PROJECT_H
#define PR_PROJECT_H

#include "lib/err.h"
#include "lib/json.h"

#include <stdint.h>

/* Paths begin with the part of the record: payload, key or headers.
 *   payload.user.email         a member of a member
 *   payload.items[].card       of each element of an array
 *   payload.byName.*.phone     of every member
 *   payload["a.b"].c           a name with other characters, as JSON writes it
 *   payload, key, headers.x    a whole part, one header
 * A place that a payload does not have is no mistake: the record passes. One that has another form than the
 * path is no way out: a member's rule holds for each object of an array in its place, and where a rule can
 * find nothing to hide (text where members are hidden, an object where elements are) null is left of it. Of
 * "*" only, what is no object and no array passes. A payload that is nothing but text or a number counts as
 * none that can be read, when something in it is to be hidden.
 *
 * drop    the member, the elements, the key or the header goes; of "payload" null is left
 * hash    HMAC-SHA256 under the key, in hexadecimal: of a string its text, of another value its bytes;
 *         null stays null. The same value gives the same text in payload, key and headers
 * redact  another text in its place; null stays null
 * rename  the member or header has another name; when there is one of that name already it keeps its own
 * keep    of the part that has such a rule only what is kept, hashed, redacted or renamed stays */
enum pr_project_action {
	PR_PROJECT_DROP,
	PR_PROJECT_HASH,
	PR_PROJECT_REDACT,
	PR_PROJECT_RENAME,
	PR_PROJECT_KEEP
};

struct pr_project_rule {
	const char *path;
	enum pr_project_action action;
	const char *to; /* of rename: the name; of redact: the text, NULL or "" is "[redacted]" */
};

struct pr_project;

/* Takes nothing: rules and key are copied. On -1 *ret_rule is the rule that is wrong (n: none, the key is
 * missing) and err says why, without a place. The caller frees. One thread at a time may use it. */
int pr_project_new(const struct pr_project_rule *rules, size_t n, const void *key, size_t key_len,
	struct pr_project **ret, size_t *ret_rule, struct pr_err *err) PR_MUSTCHECK;
void pr_project_free(struct pr_project *p); /* accepts NULL */

/* Whether a rule is about the part. */
int pr_project_of_payload(const struct pr_project *p);
int pr_project_of_headers(const struct pr_project *p);

/* Appends the payload as it leaves: 1; 0: no rule touched it, nothing was appended, it stays as it is; -1: it
 * is no JSON, or none that rules can look into, nothing was appended. */
int pr_project_payload(struct pr_project *p, const char *text, size_t len, struct pr_buf *out);

/* Values of which null was left, because they had not the form that a rule is about; of all payloads. */
uint64_t pr_project_misfits(const struct pr_project *p);

/* A place of a payload, as a walk beside the rules finds it; p NULL: no rule is about any. Changes nothing of
 * the rules: threads may share them. */
struct pr_project_place {
	const void *at;
	int kept;
};
struct pr_project_place pr_project_root(const struct pr_project *p);
/* name NULL: of an element, or of whatever member. */
struct pr_project_place pr_project_below(
	struct pr_project_place in, const char *name, size_t len, int element);
/* Whether nothing of what is in the object or array there leaves as it is; first: its bracket. */
int pr_project_hides(struct pr_project_place place, char first);

/* What is left of a key or a header (bytes, not JSON). CHANGED: its new bytes were appended. */
enum pr_project_left { PR_PROJECT_AS_IS, PR_PROJECT_GONE, PR_PROJECT_CHANGED };
enum pr_project_left pr_project_key(struct pr_project *p, const void *key, size_t len, struct pr_buf *out);
/* *ret_name: its name from now on, the caller's or the rule's. taken: whether the record has a header of the
 * name that a rename would give (ask pr_project_renamed). */
enum pr_project_left pr_project_header(struct pr_project *p, const char *name, int taken, const void *value,
	size_t len, const char **ret_name, struct pr_buf *out);
const char *pr_project_renamed(const struct pr_project *p, const char *name); /* NULL: it keeps its name */

#endif
