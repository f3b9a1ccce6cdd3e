/* lib/saga_def_text.c -- the small languages inside a definition's strings: names, paths, "name = value"
 * members, templates of locks. Refuses what could only come to nothing when it is looked up. */
#include "lib/saga_def_inner.h"

#include "lib/json.h"
#include "lib/json_path.h"
#include "lib/kafka.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MOST 64
#define TYPE_MOST 200
#define PATH_MOST 200
#define NAME_SET  "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

static const char *const roots_str[] = { "data", "saga", "reply", "payload", "header", "event" };

#define ROOTS (sizeof(roots_str) / sizeof(roots_str[0]))

int saga_name(const struct saga_build *b, int step, const char *key, const char *name, int letter)
{
	size_t n = strspn(name, NAME_SET);

	if (n == 0 || name[n])
		return saga_deny(
			b, step, key, "\"%.80s\" may hold letters, digits, \"_\" and \"-\" only", name);
	if (n > NAME_MOST)
		return saga_deny(b, step, key, "is %zu characters long, at most %d", n, NAME_MOST);
	if (letter && !isalpha((unsigned char)*name))
		return saga_deny(b, step, key, "\"%s\" must begin with a letter", name);
	return 0;
}

int saga_type(const struct saga_build *b, int step, const char *key, const char *type)
{
	if (!type)
		return 0;
	if (!*type)
		return saga_deny(b, step, key, "is empty");
	if (strlen(type) > TYPE_MOST)
		return saga_deny(b, step, key, "is %zu bytes long, at most %d", strlen(type), TYPE_MOST);
	for (const char *p = type; *p; p++)
		if ((unsigned char)*p <= ' ' || *p == 0x7f)
			return saga_deny(b, step, key, "holds a space or a control character");
	return 0;
}

int saga_topic(const struct saga_build *b, int step, const char *key, const char *topic)
{
	if (!pr_kafka_topic_valid(topic, strlen(topic)))
		return saga_deny(b, step, key, "\"%.100s\" is no name for a topic", topic);
	if (strcmp(topic, SAGA_TOPIC_INBOX) == 0)
		return saga_deny(b, step, key, "%s is where the engine itself reads", topic);
	return 0;
}

/* ---------------------------------------------------------------- paths */

/* The allowed roots as a sentence has them: "data." or "saga." */
static const char *roots_list(unsigned roots, char *buf, size_t size)
{
	size_t n = 0;

	*buf = '\0';
	for (size_t i = 0; i < ROOTS && n < size; i++)
		if (roots >> i & 1)
			n += (size_t)snprintf(buf + n, size - n, "%s\"%s.\"", n ? " or " : "", roots_str[i]);
	return buf;
}

static int is_root(const char *word)
{
	for (size_t i = 0; i < ROOTS; i++)
		if (strcmp(word, roots_str[i]) == 0)
			return 1;
	return 0;
}

/* What may have been meant by a path whose first n characters are no root of those allowed. */
static int hint_root(const struct saga_build *b, const char *path, size_t n, unsigned roots)
{
	const char *allowed[ROOTS + 1] = { NULL }, *near, *first;
	char root[NAME_MOST + 1];
	size_t k = 0;

	for (size_t i = 0; i < ROOTS; i++)
		if (roots >> i & 1)
			allowed[k++] = roots_str[i];
	(void)snprintf(root, sizeof(root), "%.*s", (int)n, path);
	first = roots & ROOT_REPLY ? "reply" : allowed[0];
	if (strcmp(root, "reply") == 0 && (roots & ROOT_DATA))
		return pr_hint(b->err,
			"a reply is gone when a command is sent: keep = ( \"x = reply.x\" ) in the step that "
			"gets it, and data.x here");
	for (size_t i = 0; i < b->raw.steps.n; i++)
		if (strcmp(saga_raw_step(b, i)->name, root) == 0)
			return pr_hint(b->err, "what became of steps is for invariants");
	if ((near = pr_nearest(root, allowed)) || is_root(root))
		return pr_hint(b->err, "did you mean \"%s%.100s\"?", near ? near : first, path + n);
	return isalpha((unsigned char)*path) && !path[n]
		       ? pr_hint(b->err, "did you mean \"%s.%.100s\"?", first, path)
		       : -1;
}

static int fail_root(
	const struct saga_build *b, int step, const char *key, const char *path, size_t n, unsigned roots)
{
	char list[120];

	(void)saga_deny(b, step, key, "\"%.100s\": here a path begins with %s", path,
		roots_list(roots, list, sizeof(list)));
	return hint_root(b, path, n, roots);
}

static int check_header(const struct saga_build *b, int step, const char *key, const char *path)
{
	const char *name = path + strlen("header.");

	for (const char *p = name; *p; p++)
		if (!isgraph((unsigned char)*p) || *p == '"')
			return saga_deny(b, step, key, "\"%.100s\" is no name of a header", path);
	return 0;
}

static int check_rest(const struct saga_build *b, int step, const char *key, const char *path, unsigned root)
{
	const char *rest = strchr(path, '.') + 1, *value;
	size_t n;

	if (root == ROOT_HEADER)
		return check_header(b, step, key, path);
	if (root == ROOT_SAGA && strcmp(rest, "id") != 0 && strcmp(rest, "name") != 0)
		return saga_deny(b, step, key, "\"%.100s\": a saga has an id and a name", path);
	if (root == ROOT_EVENT && strcmp(rest, "key") != 0)
		return saga_deny(b, step, key, "\"%.100s\": of an event there is event.key", path);
	if (pr_json_at("{}", 2, rest, &value, &n) < 0)
		return saga_deny(b, step, key, "\"%.100s\" is no path", path);
	return 0;
}

int saga_path(const struct saga_build *b, int step, const char *key, const char *path, unsigned roots)
{
	size_t n = strspn(path, NAME_SET), i = 0;

	if (strlen(path) > PATH_MOST)
		return saga_deny(
			b, step, key, "a path of %zu characters, at most %d", strlen(path), PATH_MOST);
	while (i < ROOTS && (strlen(roots_str[i]) != n || memcmp(roots_str[i], path, n) != 0))
		i++;
	if (i == ROOTS || !(roots >> i & 1))
		return fail_root(b, step, key, path, n, roots);
	if (path[n] == '.' && path[n + 1])
		return check_rest(b, step, key, path, 1U << i);
	if (!path[n] && 1U << i == ROOT_DATA && (roots & ROOT_SAGA))
		return 0;
	return saga_deny(b, step, key, "\"%.100s\" is no path: %s.NAME", path, roots_str[i]);
}

/* ---------------------------------------------------------------- members */

static char *trimmed(const char *from, const char *to)
{
	while (from < to && isspace((unsigned char)*from))
		from++;
	while (to > from && isspace((unsigned char)to[-1]))
		to--;
	return pr_asprintf("%.*s", (int)(to - from), from);
}

static int check_member_name(const struct saga_build *b, int step, const char *key, const char *name,
	const struct saga_member *m, size_t n)
{
	size_t len = strspn(name, NAME_SET);

	if (name[len] == '.')
		return saga_deny(
			b, step, key, "\"%.80s\": only a member of the top can be set, none inside it", name);
	if (len == 0 || name[len] || len > NAME_MOST)
		return saga_deny(b, step, key,
			"\"%.80s\" is no member's name: 1 to %d letters, digits, \"_\" and \"-\"", name,
			NAME_MOST);
	for (size_t i = 0; i < n; i++)
		if (strcmp(m[i].name, name) == 0)
			return saga_deny(b, step, key, "\"%s\" is set twice", name);
	return 0;
}

/* A path begins with a letter and is no word of JSON. */
static int is_path(const char *s)
{
	return isalpha((unsigned char)*s) && strcmp(s, "true") != 0 && strcmp(s, "false") != 0 &&
	       strcmp(s, "null") != 0;
}

static int set_value(const struct saga_build *b, int step, const char *key, const char *value, unsigned roots,
	struct saga_member *m)
{
	if (is_path(value)) {
		m->path = value;
		return saga_path(b, step, key, value, roots);
	}
	m->json = value;
	if (pr_json_text(value, strlen(value)))
		return 0;
	(void)saga_deny(b, step, key, "\"%s = %.100s\": neither a path nor JSON", m->name, value);
	return pr_hint(b->err, "a string is written \\\"so\\\" in the file");
}

static int set_member(struct saga_build *b, int step, const char *key, const char *text, unsigned roots,
	struct saga_member *m, size_t n)
{
	const char *eq = strchr(text, '=');
	char *name, *value;

	if (!eq) {
		(void)saga_deny(b, step, key, "\"%.100s\" is not \"name = value\"", text);
		return pr_hint(b->err, "like \"amount = data.amount\"");
	}
	name = saga_own(b, trimmed(text, eq));
	value = saga_own(b, trimmed(eq + 1, eq + strlen(eq)));
	if (check_member_name(b, step, key, name, m, n) < 0)
		return -1;
	m[n].name = name;
	return set_value(b, step, key, value, roots, &m[n]);
}

int saga_members(struct saga_build *b, int step, const char *key, const struct pr_strs *strs, unsigned roots,
	const struct saga_member **ret, size_t *ret_n)
{
	struct saga_member *m;

	*ret_n = strs->n;
	if (strs->n == 0)
		return 0;
	if (strs->n > SAGA_MEMBERS_MOST)
		return saga_deny(b, step, key, "more than %d members", SAGA_MEMBERS_MOST);
	*ret = m = saga_own(b, pr_calloc(strs->n, sizeof(*m)));
	for (size_t i = 0; i < strs->n; i++)
		if (set_member(b, step, key, strs->v[i], roots, m, i) < 0)
			return -1;
	return 0;
}

/* ---------------------------------------------------------------- templates */

int saga_template(const struct saga_build *b, const char *key, const char *text)
{
	const char *p = text, *close;
	char *path;
	int rc = 0;

	if (!*text || strlen(text) > PATH_MOST)
		return saga_deny(b, -1, key, "a lock's name has 1 to %d characters", PATH_MOST);
	while (rc == 0 && (p = strchr(p, '$'))) {
		close = strchr(p, '}');
		if (p[1] != '{' || !close)
			return saga_deny(b, -1, key, "\"%.100s\": $ begins a ${path}", text);
		path = pr_asprintf("%.*s", (int)(close - p - 2), p + 2);
		rc = saga_path(b, -1, key, path, ROOT_DATA | ROOT_SAGA);
		free(path);
		p = close + 1;
	}
	return rc;
}
