/* lib/project.c -- the rules as a tree of steps, and one pass over a payload beside it. Values that no rule
 * is about are passed over by the JSON reader and copied. Refuses paths it does not understand, two rules
 * that contradict each other, hashing without a key, and to let pass what has not the form in which a rule
 * could hide something of it. */
#include "lib/project.h"

#include "lib/json_path.h"
#include "lib/json_read.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS  32
#define MAX_KEY    4096
#define MAX_GRAFTS 20000

/* One step of a path; the root's children are the parts. */
struct node {
	char *name; /* NULL: any member (*), or any element ([]) */
	size_t len;
	int element;
	struct node *child, *next;
	int action;     /* of the value: enum pr_project_action, or -1 */
	int wanted;     /* kept, or on the way to what is */
	int hides;      /* something below it is dropped, hashed or redacted */
	char *to;       /* its other name */
	uint64_t asked; /* the object in which we looked whether that name is taken */
	int taken;
	char *text; /* of redact, as a JSON string */
};

struct pr_project {
	struct node root;
	struct node *payload, *key, *headers; /* NULL: no rule is about it */
	int payload_keeps, headers_keep, renames;
	unsigned char secret[MAX_KEY];
	size_t secret_len;
	uint64_t objects, misfits; /* passed so far; values left out because no rule could look into them */
	struct pr_buf name, text;  /* scratch */
};

/* ---- rules ---- */

static struct node *child_of(struct node *parent, const char *name, size_t len, int element)
{
	struct node **at = &parent->child;

	/* Names before "*": the first that fits is taken. */
	for (; *at; at = &(*at)->next)
		if ((*at)->element == element && !(*at)->name == !name && (!name || (*at)->len == len) &&
			(!name || memcmp((*at)->name, name, len) == 0))
			return *at;
	at = &parent->child;
	while (!name && *at)
		at = &(*at)->next;
	struct node *n = pr_calloc(1, sizeof(*n));

	n->action = -1;
	n->element = element;
	n->next = *at;
	if (name) {
		n->name = pr_malloc(len + 1);
		memcpy(n->name, name, len);
		n->name[len] = '\0';
		n->len = len;
	}
	*at = n;
	return n;
}

/* After the bracket: "]" or a quoted name and "]". */
static struct node *bracket(struct pr_project *p, struct node *at, struct reader *r)
{
	struct json_text name;

	if (json_take(r, ']') == 0)
		return child_of(at, NULL, 0, 1);
	p->name.len = 0;
	if (json_string(r, &p->name, &name) < 0 || json_take(r, ']') < 0)
		return NULL;
	return child_of(at, name.off < 0 ? name.s : p->name.s + name.off, name.len, 0);
}

static struct node *plain(struct node *at, struct reader *r)
{
	size_t n = strcspn(r->p, ".[]\"* ");
	const char *name = r->p;

	r->p += n;
	if (n > 0)
		return *r->p == '.' || *r->p == '[' || !*r->p ? child_of(at, name, n, 0) : NULL;
	if (json_take(r, '*') < 0 || (r->p < r->end && *r->p != '.' && *r->p != '['))
		return NULL;
	return child_of(at, NULL, 0, 0);
}

static struct node *walk(struct pr_project *p, const char *path, struct pr_err *err)
{
	struct reader r = { .p = path, .end = path + strlen(path) };
	struct node *at = plain(&p->root, &r);
	int steps = 1;

	if (!at || !at->name ||
		(strcmp(at->name, "payload") != 0 && strcmp(at->name, "key") != 0 &&
			strcmp(at->name, "headers") != 0)) {
		(void)pr_fail(err, PR_REJECT, "\"%.200s\" does not begin with payload, key or headers", path);
		return NULL;
	}
	for (; at && r.p < r.end; steps++) {
		if (json_take(&r, '[') == 0)
			at = bracket(p, at, &r);
		else
			at = json_take(&r, '.') == 0 ? plain(at, &r) : NULL;
		if (steps == MAX_STEPS) {
			(void)pr_fail(err, PR_REJECT, "more than %d steps", MAX_STEPS);
			return NULL;
		}
	}
	if (!at) {
		(void)pr_fail(err, PR_REJECT, "\"%.200s\" is not a path", path);
		(void)pr_hint(err, "payload.user.email, payload.items[].card, payload.byName.*.phone, "
				   "payload[\"a.b\"], headers.name, key");
	}
	return at;
}

static int place_ok(const struct pr_project *p, const struct node *at, const struct pr_project_rule *rule,
	struct pr_err *err)
{
	int part = at == p->payload || at == p->key || at == p->headers;

	if (p->key && p->key->child)
		return pr_fail(err, PR_REJECT, "a key has no fields: the path is \"key\"");
	if (p->headers)
		for (const struct node *h = p->headers->child; h; h = h->next)
			if (h->child || !h->name)
				return pr_fail(err, PR_REJECT, "of headers the path is headers.NAME");
	if (at == p->headers && rule->action != PR_PROJECT_DROP)
		return pr_fail(
			err, PR_REJECT, "headers can only be dropped as a whole: name one, headers.NAME");
	if (rule->action == PR_PROJECT_RENAME && (part || !at->name))
		return pr_fail(err, PR_REJECT, "only a member or a header has a name to be changed");
	return 0;
}

static int rename_to(struct pr_project *p, struct node *at, const char *to, struct pr_err *err)
{
	if (!to || !*to)
		return pr_fail(err, PR_REJECT, "rename needs \"to\": the new name");
	if (!pr_utf8_text(to, strlen(to)))
		return pr_fail(err, PR_REJECT, "\"to\" is no UTF-8 text");
	if (at->to)
		return pr_fail(err, PR_REJECT, "the path is renamed twice");
	at->to = pr_strdup(to);
	p->renames = 1;
	return 0;
}

static int set_action(struct node *at, const struct pr_project_rule *rule, struct pr_err *err)
{
	const char *to = rule->to && *rule->to ? rule->to : "[redacted]";
	struct pr_buf b = { 0 };

	if (at->action >= 0 && at->action != (int)rule->action && at->action != PR_PROJECT_KEEP &&
		rule->action != PR_PROJECT_KEEP)
		return pr_fail(err, PR_REJECT, "the path has two rules that contradict each other");
	if (at->action >= 0 && (at->action == (int)rule->action || at->action == PR_PROJECT_DROP ||
				       rule->action == PR_PROJECT_DROP))
		return pr_fail(err, PR_REJECT, "the path has two rules");
	if (rule->to && *rule->to && rule->action != PR_PROJECT_REDACT)
		return pr_fail(err, PR_REJECT, "\"to\" belongs to rename and redact only");
	if (at->action < 0 || at->action == PR_PROJECT_KEEP)
		at->action = (int)rule->action;
	if (rule->action == PR_PROJECT_REDACT) {
		pr_buf_json(&b, to, strlen(to));
		at->text = b.s;
	}
	return 0;
}

static int add(struct pr_project *p, const struct pr_project_rule *rule, size_t key_len, struct pr_err *err)
{
	struct node *at;

	if (!rule->path || !*rule->path)
		return pr_fail(err, PR_REJECT, "a path is missing");
	at = walk(p, rule->path, err);
	if (!at)
		return -1;
	for (struct node *part = p->root.child; part; part = part->next)
		*(*part->name == 'p' ? &p->payload : *part->name == 'k' ? &p->key : &p->headers) = part;
	if (place_ok(p, at, rule, err) < 0)
		return -1;
	if (rule->action == PR_PROJECT_HASH && key_len == 0)
		return pr_fail(err, PR_REJECT, "hash needs a key");
	if (rule->action == PR_PROJECT_KEEP && strncmp(rule->path, "payload", 7) == 0)
		p->payload_keeps = 1;
	if (rule->action == PR_PROJECT_KEEP && strncmp(rule->path, "headers", 7) == 0)
		p->headers_keep = 1;
	return rule->action == PR_PROJECT_RENAME ? rename_to(p, at, rule->to, err)
						 : set_action(at, rule, err);
}

static struct node *element_of(const struct node *n)
{
	for (struct node *c = n->child; c; c = c->next)
		if (c->element)
			return c;
	return NULL;
}

static struct node *every_of(const struct node *n)
{
	for (struct node *c = n->child; c; c = c->next)
		if (!c->element && !c->name)
			return c;
	return NULL;
}

static int has_members(const struct node *n)
{
	for (const struct node *c = n->child; c; c = c->next)
		if (!c->element)
			return 1;
	return 0;
}

/* What is said of members there (and of elements) is said here, too; what was said here before holds. */
static void graft(struct node *to, const struct node *from, int elements, int *room)
{
	for (const struct node *c = from->child; c && *room >= 0; c = c->next) {
		struct node *d;

		if (c->element && !elements)
			continue;
		d = child_of(to, c->name, c->len, c->element);
		if (d->action < 0) {
			d->action = c->action;
			d->text = c->text ? pr_strdup(c->text) : NULL;
		}
		if (!d->to && c->to)
			d->to = pr_strdup(c->to);
		--*room;
		graft(d, c, 1, room);
	}
}

/* Where rules are about the members of a place, and others about those of its elements, both hold whichever
 * of them it has; what is said of every member holds for those that have rules of their own. */
static void join(struct node *n, int *room)
{
	struct node *e = element_of(n), *every = every_of(n);

	for (struct node *c = n->child; every && c; c = c->next)
		if (c->name)
			graft(c, every, 1, room);
	if (e && has_members(n)) {
		graft(e, n, 0, room);
		graft(n, e, 0, room);
	}
	for (struct node *c = n->child; c && *room >= 0; c = c->next)
		join(c, room);
}

/* It takes something away from what it is about. */
static int conceals(const struct node *n)
{
	return n->action >= 0 && n->action != PR_PROJECT_KEEP;
}

/* What any rule but drop names is wanted, and the way to it; and what is above something hidden. */
static void mark(struct node *n)
{
	n->wanted = n->to != NULL || (n->action >= 0 && n->action != PR_PROJECT_DROP);
	for (struct node *c = n->child; c; c = c->next) {
		mark(c);
		n->wanted |= c->wanted;
		n->hides |= c->hides || conceals(c);
	}
}

/* No two members of one object may come to have one name. */
static int names_ok(const struct node *n, struct pr_err *err)
{
	for (const struct node *c = n->child; c; c = c->next) {
		for (const struct node *d = c->next; d; d = d->next)
			if (c->to && d->to && strcmp(c->to, d->to) == 0)
				return pr_fail(err, PR_REJECT, "\"%s\" and \"%s\" are both renamed to \"%s\"",
					c->name, d->name, c->to);
		if (names_ok(c, err) < 0)
			return -1;
	}
	return 0;
}

int pr_project_new(const struct pr_project_rule *rules, size_t n, const void *key, size_t key_len,
	struct pr_project **ret, size_t *ret_rule, struct pr_err *err)
{
	struct pr_project *p = pr_calloc(1, sizeof(*p));
	int room = MAX_GRAFTS;

	p->root.action = -1;
	*ret_rule = n;
	if (key_len > sizeof(p->secret)) {
		pr_project_free(p);
		return pr_fail(err, PR_REJECT, "a key may have %d bytes", MAX_KEY);
	}
	if (key_len > 0)
		memcpy(p->secret, key, key_len);
	p->secret_len = key_len;
	for (size_t i = 0; i < n; i++)
		if (add(p, &rules[i], key_len, err) < 0) {
			*ret_rule = i;
			pr_project_free(p);
			return -1;
		}
	if (p->payload)
		join(p->payload, &room);
	mark(&p->root);
	if ((room < 0 ? pr_fail(err, PR_REJECT, "these paths together are too many")
		      : names_ok(&p->root, err)) < 0) {
		pr_project_free(p);
		return -1;
	}
	*ret = p;
	return 0;
}

static void free_nodes(struct node *n)
{
	while (n) {
		struct node *next = n->next;

		free_nodes(n->child); /* as deep as a path has steps */
		free(n->name);
		free(n->to);
		free(n->text);
		free(n);
		n = next;
	}
}

void pr_project_free(struct pr_project *p)
{
	if (!p)
		return;
	free_nodes(p->root.child);
	OPENSSL_cleanse(p->secret, sizeof(p->secret));
	pr_buf_free(&p->name);
	pr_buf_free(&p->text);
	free(p);
}

int pr_project_of_payload(const struct pr_project *p)
{
	return p->payload != NULL;
}

int pr_project_of_headers(const struct pr_project *p)
{
	return p->headers != NULL;
}

/* ---- masks ---- */

static void put_hash(struct pr_project *p, const void *data, size_t len, struct pr_buf *out)
{
	static const char hex[] = "0123456789abcdef";
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned n = 0;
	char text[64];

	if (!HMAC(EVP_sha256(), p->secret, (int)p->secret_len, data, len, sum, &n) || n != 32)
		abort(); /* no memory */
	for (unsigned i = 0; i < 32; i++) {
		text[2 * i] = hex[sum[i] >> 4];
		text[2 * i + 1] = hex[sum[i] & 15];
	}
	pr_buf_put(out, text, sizeof(text));
}

/* A value that was read already. */
static void put_masked(
	struct pr_project *p, const struct node *n, const char *raw, size_t len, struct pr_buf *out)
{
	if (*raw == 'n') {
		pr_buf_put(out, raw, len);
		return;
	}
	if (n->action == PR_PROJECT_REDACT) {
		pr_buf_puts(out, n->text);
		return;
	}
	pr_buf_put(out, "\"", 1);
	if (*raw == '"') {
		struct reader r = { .p = raw, .end = raw + len };
		struct json_text text;

		p->text.len = 0;
		if (json_string(&r, &p->text, &text) == 0) {
			raw = text.off < 0 ? text.s : p->text.s + text.off;
			len = text.len;
		}
	}
	put_hash(p, raw, len, out);
	pr_buf_put(out, "\"", 1);
}

static int masks(const struct node *n)
{
	return n && (n->action == PR_PROJECT_HASH || n->action == PR_PROJECT_REDACT);
}

/* ---- one pass ---- */

static int put_value(
	struct pr_project *p, const struct node *n, struct reader *r, int room, int kept, struct pr_buf *out);

static struct node *member_of(const struct node *n, const char *name, size_t len)
{
	for (struct node *c = n->child; c; c = c->next)
		if (!c->element && (!c->name || (c->len == len && memcmp(c->name, name, len) == 0)))
			return c;
	return NULL;
}

static void cut(struct pr_buf *b, size_t len)
{
	b->len = len;
	if (b->s)
		b->s[len] = '\0';
}

/* Whether the object that begins at r has a member of that name. */
static int has_member(struct pr_project *p, struct reader r, const char *name)
{
	size_t len = strlen(name);
	struct json_text text;

	do {
		json_space(&r);
		p->name.len = 0;
		if (json_string(&r, &p->name, &text) < 0)
			return 0;
		if (text.len == len && memcmp(text.off < 0 ? text.s : p->name.s + text.off, name, len) == 0)
			return 1;
		json_space(&r);
		if (json_take(&r, ':') < 0 || json_value(&r, JSON_DEPTH) < 0)
			return 0;
		json_space(&r);
	} while (json_take(&r, ',') == 0);
	return 0;
}

/* Whether something of what is below stays. */
static int stays(const struct node *n, int kept)
{
	if (n && n->action == PR_PROJECT_DROP)
		return 0;
	return kept || (n && n->wanted);
}

static int is_kept(const struct node *n, int kept)
{
	return kept || (n && (n->to || n->action == PR_PROJECT_KEEP || masks(n)));
}

/* An object on its way through. */
struct object {
	struct reader first; /* behind its bracket */
	uint64_t number;     /* among those passed */
	int room, kept;
	int many; /* members put */
};

/* Asked once for an object, however often the member comes in it. */
static int is_taken(struct pr_project *p, struct node *c, const struct object *o)
{
	if (c->asked != o->number) {
		c->asked = o->number;
		c->taken = has_member(p, o->first, c->to);
	}
	return c->taken;
}

static int put_member(
	struct pr_project *p, const struct node *n, struct reader *r, struct object *o, struct pr_buf *out)
{
	struct json_text text;
	const char *raw;
	size_t raw_len;
	struct node *c;

	json_space(r);
	raw = r->p;
	p->name.len = 0;
	if (json_string(r, &p->name, &text) < 0)
		return -1;
	raw_len = (size_t)(r->p - raw);
	c = member_of(n, text.off < 0 ? text.s : p->name.s + text.off, text.len);
	json_space(r);
	if (json_take(r, ':') < 0)
		return -1;
	json_space(r);
	if (!stays(c, o->kept))
		return json_value(r, o->room);
	if (o->many++)
		pr_buf_put(out, ",", 1);
	if (c && c->to && !is_taken(p, c, o))
		pr_buf_json(out, c->to, strlen(c->to));
	else
		pr_buf_put(out, raw, raw_len);
	pr_buf_put(out, ":", 1);
	return put_value(p, c, r, o->room, is_kept(c, o->kept), out);
}

static int put_object(
	struct pr_project *p, const struct node *n, struct reader *r, int room, int kept, struct pr_buf *out)
{
	struct object o = { .number = ++p->objects, .room = room, .kept = kept };

	pr_buf_put(out, "{", 1);
	json_space(r);
	o.first = *r;
	if (json_take(r, '}') < 0) {
		do {
			if (put_member(p, n, r, &o, out) < 0)
				return -1;
			json_space(r);
		} while (json_take(r, ',') == 0);
		if (json_take(r, '}') < 0)
			return -1;
	}
	pr_buf_put(out, "}", 1);
	return 0;
}

static int put_array(
	struct pr_project *p, const struct node *n, struct reader *r, int room, int kept, struct pr_buf *out)
{
	const struct node *e = element_of(n), *c = e ? e : n;
	int many = 0;

	pr_buf_put(out, "[", 1);
	json_space(r);
	if (json_take(r, ']') < 0) {
		do {
			json_space(r);
			if (!stays(c, kept)) {
				if (json_value(r, room) < 0)
					return -1;
			} else {
				if (many++)
					pr_buf_put(out, ",", 1);
				if (put_value(p, c, r, room, is_kept(c, kept), out) < 0)
					return -1;
			}
			json_space(r);
		} while (json_take(r, ',') == 0);
		if (json_take(r, ']') < 0)
			return -1;
	}
	pr_buf_put(out, "]", 1);
	return 0;
}

/* Whether the value that begins so has not the form in which what rules hide could be found: text where
 * members are hidden, an object where elements are. Of "*" nobody expects that each member has what it names.
 */
static int is_misfit(const struct node *n, char first)
{
	const struct node *e;

	if (!n || !n->hides || first == 'n' || first == '[')
		return 0;
	e = element_of(n);
	if (first == '{')
		return e && (conceals(e) || (e->hides && !has_members(n)));
	return n->element || n->name;
}

/* A value where something is to stay. kept: all of it stays but what rules drop. */
static int put_value(
	struct pr_project *p, const struct node *n, struct reader *r, int room, int kept, struct pr_buf *out)
{
	const char *from;

	json_space(r);
	from = r->p;
	if (from == r->end)
		return -1;
	if (!masks(n) && is_misfit(n, *from)) {
		p->misfits++;
		pr_buf_puts(out, "null");
		return json_value(r, room);
	}
	if (n && n->child && !masks(n) && (*from == '{' || *from == '[')) {
		if (room == 0)
			return -1;
		r->p++;
		return *from == '{' ? put_object(p, n, r, room - 1, kept, out)
				    : put_array(p, n, r, room - 1, kept, out);
	}
	if (json_value(r, room) < 0)
		return -1;
	if (masks(n))
		put_masked(p, n, from, (size_t)(r->p - from), out);
	else if (kept)
		pr_buf_put(out, from, (size_t)(r->p - from));
	else
		pr_buf_puts(out, *from == '{'   ? "{}"
				 : *from == '[' ? "[]"
						: "null"); /* no such place in it */
	return 0;
}

int pr_project_payload(struct pr_project *p, const char *text, size_t len, struct pr_buf *out)
{
	struct reader r = { .p = text, .end = text + len };
	const struct node *n = p->payload;
	size_t start = out->len;
	int rc;

	if (!n)
		return 0;
	json_space(&r);
	if (r.p < r.end && !conceals(n) && is_misfit(n, *r.p))
		return -1;
	if (n->action == PR_PROJECT_DROP) {
		rc = json_value(&r, JSON_DEPTH);
		pr_buf_puts(out, "null");
	} else {
		rc = put_value(p, n, &r, JSON_DEPTH, is_kept(n, !p->payload_keeps), out);
	}
	json_space(&r);
	if (rc == 0 && r.p == r.end)
		return 1;
	cut(out, start);
	return -1;
}

uint64_t pr_project_misfits(const struct pr_project *p)
{
	return p->misfits;
}

/* ---- places ---- */

struct pr_project_place pr_project_root(const struct pr_project *p)
{
	const struct node *n = p ? p->payload : NULL;

	return (struct pr_project_place){ n, is_kept(n, !n || !p->payload_keeps) };
}

struct pr_project_place pr_project_below(
	struct pr_project_place in, const char *name, size_t len, int element)
{
	const struct node *n = in.at, *c = NULL;

	if (n && element) {
		c = element_of(n);
		c = c ? c : n;
	} else if (n) {
		c = name ? member_of(n, name, len) : every_of(n);
	}
	return (struct pr_project_place){ c, is_kept(c, in.kept) };
}

int pr_project_hides(struct pr_project_place place, char first)
{
	const struct node *n = place.at;

	return !stays(n, place.kept) || (n && conceals(n)) || is_misfit(n, first);
}

/* ---- bytes ---- */

static enum pr_project_left put_bytes(
	struct pr_project *p, const struct node *n, const void *bytes, size_t len, struct pr_buf *out)
{
	if (n->action == PR_PROJECT_DROP)
		return PR_PROJECT_GONE;
	if (n->action == PR_PROJECT_HASH)
		put_hash(p, bytes, len, out);
	else if (n->action == PR_PROJECT_REDACT)
		(void)pr_json_str(out, n->text, strlen(n->text));
	else
		return PR_PROJECT_AS_IS;
	return PR_PROJECT_CHANGED;
}

enum pr_project_left pr_project_key(struct pr_project *p, const void *key, size_t len, struct pr_buf *out)
{
	return p->key ? put_bytes(p, p->key, key, len, out) : PR_PROJECT_AS_IS;
}

const char *pr_project_renamed(const struct pr_project *p, const char *name)
{
	const struct node *n = p->headers ? member_of(p->headers, name, strlen(name)) : NULL;

	return n ? n->to : NULL;
}

enum pr_project_left pr_project_header(struct pr_project *p, const char *name, int taken, const void *value,
	size_t len, const char **ret_name, struct pr_buf *out)
{
	const struct node *n;

	*ret_name = name;
	if (!p->headers)
		return PR_PROJECT_AS_IS;
	n = member_of(p->headers, name, strlen(name));
	if (p->headers->action == PR_PROJECT_DROP || !stays(n, !p->headers_keep))
		return PR_PROJECT_GONE;
	if (!n)
		return PR_PROJECT_AS_IS;
	if (n->to && !taken)
		*ret_name = n->to;
	return put_bytes(p, n, value, len, out);
}
