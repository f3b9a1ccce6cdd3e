/* lib/json_path.c -- finds the value at a path, rebuilds an object around new members. Works on slices of the
 * text and copies them untouched. Refuses to build a tree and to repair its input. */
#include "lib/json_path.h"

#include "lib/err.h"
#include "lib/json_read.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct slice {
	const char *s;
	size_t len;
};

/* One step of a path. */
struct step {
	struct slice name; /* of a member */
	int64_t index;     /* of an element; -1: none */
	int only_index;    /* it was written [0] */
};

/* ---- paths ---- */

/* An element's number, or -1: not written as one, or larger than any array of ours. */
static int64_t index_of(struct slice s)
{
	int64_t v = 0;

	if (s.len == 0 || s.len > 10 || (s.len > 1 && *s.s == '0'))
		return -1;
	for (size_t i = 0; i < s.len; i++) {
		if (s.s[i] < '0' || s.s[i] > '9')
			return -1;
		v = v * 10 + (s.s[i] - '0');
	}
	return v;
}

/* After the bracket: a quoted name or a number. The name lives in scratch when it had escapes. */
static int bracket_step(const char **path, struct pr_buf *scratch, struct step *ret)
{
	struct reader r = { .p = *path, .end = *path + strlen(*path) };
	struct json_text name;

	scratch->len = 0;
	*ret = (struct step){ .index = -1 };
	if (*r.p == '"') {
		if (json_string(&r, scratch, &name) < 0)
			return -1;
		ret->name = (struct slice){ name.off < 0 ? name.s : scratch->s + name.off, name.len };
	} else {
		ret->name = (struct slice){ r.p, strspn(r.p, "0123456789") };
		ret->index = index_of(ret->name);
		ret->only_index = 1;
		r.p += ret->name.len;
		if (ret->index < 0)
			return -1;
	}
	*path = r.p + 1;
	return json_take(&r, ']');
}

static int plain_step(const char **path, struct step *ret)
{
	size_t n = strcspn(*path, ".[]\"");

	*ret = (struct step){ .name = { *path, n } };
	ret->index = index_of(ret->name);
	*path += n;
	return n > 0 && **path != ']' && **path != '"' ? 0 : -1;
}

/* 1: a step, 0: the path has ended, -1: it is malformed. */
static int next_step(const char **path, int first, struct pr_buf *scratch, struct step *ret)
{
	if (!**path)
		return 0;
	if (**path == '[') {
		(*path)++;
		return bracket_step(path, scratch, ret) < 0 ? -1 : 1;
	}
	if (!first && *(*path)++ != '.')
		return -1;
	return plain_step(path, ret) < 0 ? -1 : 1;
}

/* ---- values ---- */

/* The one value of the text. */
static int whole(const char *text, size_t len, int room, struct slice *ret)
{
	struct reader r = { .p = text, .end = text + len };

	json_space(&r);
	ret->s = r.p;
	if (json_value(&r, room) < 0)
		return -1;
	ret->len = (size_t)(r.p - ret->s);
	json_space(&r);
	return r.p == r.end ? 0 : -1;
}

/* "name": value, with the space around; raw is the name as written, with its quotation marks. */
static int member(struct reader *r, int room, struct pr_buf *scratch, struct slice *raw, struct slice *name,
	struct slice *value)
{
	struct json_text text;

	scratch->len = 0;
	json_space(r);
	raw->s = r->p;
	if (json_string(r, scratch, &text) < 0)
		return -1;
	raw->len = (size_t)(r->p - raw->s);
	*name = (struct slice){ text.off < 0 ? text.s : scratch->s + text.off, text.len };
	json_space(r);
	if (json_take(r, ':') < 0)
		return -1;
	json_space(r);
	value->s = r->p;
	if (json_value(r, room) < 0)
		return -1;
	value->len = (size_t)(r->p - value->s);
	json_space(r);
	return 0;
}

static int same(struct slice a, struct slice b)
{
	return a.len == b.len && (a.len == 0 || memcmp(a.s, b.s, a.len) == 0);
}

/* Inside a valid object or array: 1 and the value of the step, 0: not there. */
static int into_object(struct slice in, const struct step *step, struct pr_buf *scratch, struct slice *ret)
{
	struct reader r = { .p = in.s + 1, .end = in.s + in.len };
	struct slice raw, name, value;
	int found = 0;

	json_space(&r);
	if (json_take(&r, '}') == 0)
		return 0;
	do {
		if (member(&r, JSON_DEPTH, scratch, &raw, &name, &value) < 0)
			return 0;
		if (same(name, step->name)) {
			*ret = value;
			found = 1;
		}
	} while (json_take(&r, ',') == 0);
	return found;
}

static int into_array(struct slice in, int64_t index, struct slice *ret)
{
	struct reader r = { .p = in.s + 1, .end = in.s + in.len };

	json_space(&r);
	if (json_take(&r, ']') == 0)
		return 0;
	do {
		json_space(&r);
		ret->s = r.p;
		if (json_value(&r, JSON_DEPTH) < 0)
			return 0;
		ret->len = (size_t)(r.p - ret->s);
		if (index-- == 0)
			return 1;
		json_space(&r);
	} while (json_take(&r, ',') == 0);
	return 0;
}

static int into(struct slice in, const struct step *step, struct pr_buf *scratch, struct slice *ret)
{
	if (*in.s == '{' && !step->only_index)
		return into_object(in, step, scratch, ret);
	return *in.s == '[' && step->index >= 0 ? into_array(in, step->index, ret) : 0;
}

int pr_json_at(const char *text, size_t len, const char *path, const char **ret, size_t *ret_len)
{
	struct pr_buf step_name = { 0 }, name = { 0 };
	struct slice at = { 0 };
	struct step step;
	int rc, found = 1;

	for (const char *p = path; (rc = next_step(&p, p == path, &step_name, &step)) > 0;)
		;
	if (rc == 0)
		rc = whole(text, len, JSON_DEPTH, &at);
	for (const char *p = path; rc == 0 && found && next_step(&p, p == path, &step_name, &step) > 0;)
		found = into(at, &step, &name, &at);
	if (rc == 0 && found) {
		*ret = at.s;
		*ret_len = at.len;
	}
	pr_buf_free(&step_name);
	pr_buf_free(&name);
	return rc < 0 ? -1 : found;
}

/* ---- a new object ---- */

/* Where a name stands in m; n: nowhere. */
static size_t find(const struct pr_json_member *m, size_t n, struct slice name)
{
	for (size_t i = n; i-- > 0;)
		if (same(name, (struct slice){ m[i].name, m[i].name_len }))
			return i;
	return n;
}

static void cut(struct pr_buf *b, size_t len)
{
	b->len = len;
	if (b->s)
		b->s[len] = '\0';
}

static void put_comma(struct pr_buf *b, size_t start)
{
	if (b->len > start + 1)
		pr_buf_put(b, ",", 1);
}

static void put_value(struct pr_buf *b, const char *value, size_t len)
{
	pr_buf_put(b, ":", 1);
	pr_buf_put(b, value, len);
}

/* The object's own members, as they are or with the value that m has for them; r stands behind the bracket.
 */
static int put_old(struct pr_buf *b, size_t start, struct reader *r, const struct pr_json_member *m, size_t n,
	char *done)
{
	struct pr_buf scratch = { 0 };
	struct slice raw, name, value;
	int rc = -1;

	json_space(r);
	if (json_take(r, '}') == 0)
		return 0;
	do {
		size_t i;

		if (member(r, JSON_DEPTH - 1, &scratch, &raw, &name, &value) < 0)
			goto out;
		i = find(m, n, name);
		if (i < n && (done[i] || !m[i].value))
			continue;
		put_comma(b, start);
		pr_buf_put(b, raw.s, raw.len);
		if (i < n) {
			done[i] = 1;
			put_value(b, m[i].value, m[i].value_len);
		} else {
			put_value(b, value.s, value.len);
		}
	} while (json_take(r, ',') == 0);
	rc = json_take(r, '}');
out:
	pr_buf_free(&scratch);
	return rc;
}

static void put_new(
	struct pr_buf *b, size_t start, const struct pr_json_member *m, size_t n, const char *done)
{
	for (size_t i = 0; i < n; i++) {
		struct slice name = { m[i].name, m[i].name_len };

		if (done[i] || !m[i].value || find(m, n, name) != i)
			continue;
		put_comma(b, start);
		pr_buf_json(b, name.s, name.len);
		put_value(b, m[i].value, m[i].value_len);
	}
}

static int values_ok(const struct pr_json_member *m, size_t n)
{
	struct slice value;

	for (size_t i = 0; i < n; i++)
		if (m[i].value && whole(m[i].value, m[i].value_len, JSON_DEPTH - 1, &value) < 0)
			return 0;
	return 1;
}

int pr_json_merge(struct pr_buf *b, const char *object, size_t len, const struct pr_json_member *m, size_t n)
{
	struct reader r = { .p = object, .end = object + len };
	char few[64] = { 0 }, *done = few;
	size_t start = b->len;
	int rc = -1;

	if (!values_ok(m, n))
		return -1;
	if (n > sizeof(few))
		done = pr_calloc(n, 1);
	json_space(&r);
	if (json_take(&r, '{') < 0)
		goto out;
	pr_buf_put(b, "{", 1);
	if (put_old(b, start, &r, m, n, done) < 0)
		goto out;
	json_space(&r);
	if (r.p != r.end)
		goto out;
	put_new(b, start, m, n, done);
	pr_buf_put(b, "}", 1);
	rc = 0;
out:
	if (rc < 0)
		cut(b, start);
	if (done != few)
		free(done);
	return rc;
}

int pr_json_str(struct pr_buf *b, const char *raw, size_t len)
{
	struct reader r = { .p = raw, .end = raw + len };
	size_t start = b->len;
	struct json_text text;

	if (json_string(&r, b, &text) < 0 || r.p != r.end) {
		cut(b, start);
		return -1;
	}
	if (text.off < 0)
		pr_buf_put(b, text.s, text.len);
	return 0;
}
