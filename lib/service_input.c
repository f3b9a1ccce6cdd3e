/* lib/service_input.c -- reads what a request brings: members of the body, of the path and of the query, each
 * against its type and bounds; 400, 415 or 422 with the member's name. Refuses to guess: no type becomes
 * another. Touches nothing but the call. */
#include "lib/service_inner.h"

#include "lib/json.h"
#include "lib/uuid.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <math.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DEPTH_MAX 16
#define TEXT_MAX  (64 * 1024)
#define LIST_MAX  1000
#define EXACT     9007199254740992.0 /* 2^53: above it a double skips integers */

/* ---- one value ---- */

static int deep(const cJSON *v, int left)
{
	const cJSON *child;

	if (left == 0)
		return 1;
	cJSON_ArrayForEach(child, v) if (deep(child, left - 1)) return 1;
	return 0;
}

static const char *kind_of(const cJSON *v)
{
	return cJSON_IsString(v)   ? "a string"
	       : cJSON_IsNumber(v) ? "a number"
	       : cJSON_IsBool(v)   ? "true or false"
	       : cJSON_IsArray(v)  ? "a list"
	       : cJSON_IsNull(v)   ? "null"
				   : "an object";
}

static size_t characters(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static int is_choice(const char *choices, const char *s)
{
	size_t n = strlen(s);

	for (const char *c = choices; n > 0; c++) {
		if (strncmp(c, s, n) == 0 && (c[n] == '|' || c[n] == '\0'))
			return 1;
		c = strchr(c, '|');
		if (!c)
			break;
	}
	return 0;
}

static int check_text(struct pr_call *call, const struct pr_field *f, const char *name, const char *s)
{
	int64_t max = f->max ? f->max : TEXT_MAX;
	size_t n = strlen(s), chars;

	if (!pr_utf8_text(s, n))
		return pr_call_invalid(call, name, "is not valid UTF-8");
	if (f->choices)
		return is_choice(f->choices, s)
			       ? 0
			       : pr_call_invalid(call, name, "must be one of %s", f->choices);
	chars = characters(s);
	if ((int64_t)chars < f->min)
		return f->min == 1 ? pr_call_invalid(call, name, "must not be empty")
				   : pr_call_invalid(call, name, "must have at least %lld characters",
					     (long long)f->min);
	if ((int64_t)chars > max)
		return pr_call_invalid(
			call, name, "must have at most %lld characters, it has %zu", (long long)max, chars);
	return 0;
}

static int check_int(struct pr_call *call, const struct pr_field *f, const char *name, double v)
{
	double max = f->min || f->max ? (double)f->max : EXACT;

	if (v != floor(v))
		return pr_call_invalid(call, name, "must be a whole number");
	if (!(v >= (double)f->min && v <= max && fabs(v) <= EXACT))
		return pr_call_invalid(call, name, "must be between %lld and %.0f", (long long)f->min, max);
	return 0;
}

/* Identity columns count from 1 and end at 2^63 - 1. */
static int is_id(const char *s)
{
	size_t n = strspn(s, "0123456789");

	return n > 0 && s[n] == '\0' && *s != '0' &&
	       (n < 19 || (n == 19 && strcmp(s, "9223372036854775807") <= 0));
}

static int is_uuid(const char *s)
{
	unsigned char id[16];

	return strlen(s) == 36 && pr_uuid_parse(s, 36, id) == 0;
}

static int check_string(struct pr_call *call, const struct pr_field *f, const char *name, const char *s)
{
	switch (f->type) {
	case PR_UUID:
	case PR_UUIDS:
		return is_uuid(s) ? 0 : pr_call_invalid(call, name, "must be a UUID");
	case PR_ID:
	case PR_IDS:
		return is_id(s) ? 0
				: pr_call_invalid(
					  call, name, "must be the id of something, digits in a string");
	default:
		return check_text(call, f, name, s);
	}
}

static int wrong_type(struct pr_call *call, const char *name, const char *wanted, const cJSON *v)
{
	return pr_call_invalid(call, name, "must be %s, it is %s", wanted, kind_of(v));
}

static char *number_text(double v)
{
	return pr_asprintf("%.0f", v == 0 ? 0.0 : v);
}

static int check_items(struct pr_call *call, const struct pr_field *f, const cJSON *list);

/* Of strings without quotes or backslashes: checked before. */
static char *array_text(const cJSON *list)
{
	struct pr_buf b = { 0 };
	const cJSON *v;

	pr_buf_puts(&b, "{");
	cJSON_ArrayForEach(v, list) pr_buf_printf(&b, "%s%s", v == list->child ? "" : ",", v->valuestring);
	pr_buf_puts(&b, "}");
	return b.s;
}

static int check_list_size(struct pr_call *call, const struct pr_field *f, const cJSON *list)
{
	int64_t n = cJSON_GetArraySize(list), max = f->max ? f->max : LIST_MAX;

	if (n < f->min)
		return pr_call_invalid(call, f->name, "must hold at least %lld", (long long)f->min);
	if (n > max)
		return pr_call_invalid(
			call, f->name, "must hold at most %lld, it holds %lld", (long long)max, (long long)n);
	return 0;
}

static int check_ids(struct pr_call *call, const struct pr_field *f, const cJSON *list)
{
	const cJSON *v, *before;
	char name[120];
	int i = 0;

	cJSON_ArrayForEach(v, list)
	{
		(void)snprintf(name, sizeof(name), "%s[%d]", f->name, i++);
		if (!cJSON_IsString(v))
			return wrong_type(call, name, "a string", v);
		if (check_string(call, f, name, v->valuestring))
			return 1;
		for (before = list->child; before != v; before = before->next)
			if (strcasecmp(before->valuestring, v->valuestring) == 0)
				return pr_call_invalid(call, name, "stands in the list twice");
	}
	return 0;
}

/* *ret: the parameter, malloc'd. */
static int check_value(
	struct pr_call *call, const struct pr_field *f, const char *name, const cJSON *v, char **ret)
{
	if (deep(v, DEPTH_MAX))
		return pr_call_invalid(call, name, "is nested too deep, at most %d", DEPTH_MAX);
	switch (f->type) {
	case PR_INT:
		if (!cJSON_IsNumber(v))
			return wrong_type(call, name, "a whole number", v);
		if (check_int(call, f, name, v->valuedouble))
			return 1;
		*ret = number_text(v->valuedouble);
		return 0;
	case PR_BOOL:
		if (!cJSON_IsBool(v))
			return wrong_type(call, name, "true or false", v);
		*ret = pr_strdup(cJSON_IsTrue(v) ? "true" : "false");
		return 0;
	case PR_UUIDS:
	case PR_IDS:
	case PR_ITEMS:
		if (!cJSON_IsArray(v))
			return wrong_type(call, name, "a list", v);
		if (check_list_size(call, f, v) ||
			(f->type == PR_ITEMS ? check_items(call, f, v) : check_ids(call, f, v)))
			return 1;
		*ret = f->type == PR_ITEMS ? cJSON_PrintUnformatted(v) : array_text(v);
		return 0;
	default:
		if (!cJSON_IsString(v))
			return wrong_type(call, name, "a string", v);
		if (check_string(call, f, name, v->valuestring))
			return 1;
		*ret = pr_strdup(v->valuestring);
		return 0;
	}
}

static int check_item(struct pr_call *call, const struct pr_field *f, const cJSON *item, const char *where)
{
	const cJSON *v;
	char name[160], *text = NULL;
	int rc = 0;

	for (const struct pr_field *sub = f->sub; sub->name && rc == 0; sub++) {
		(void)snprintf(name, sizeof(name), "%s.%s", where, sub->name);
		v = cJSON_GetObjectItemCaseSensitive(item, sub->name);
		if (v && !(cJSON_IsNull(v) && (sub->flags & PR_OPTIONAL)))
			rc = check_value(call, sub, name, v, &text);
		else if (!(sub->flags & PR_OPTIONAL))
			rc = pr_call_invalid(call, name, "is missing");
		free(text);
		text = NULL;
	}
	return rc;
}

static int check_items(struct pr_call *call, const struct pr_field *f, const cJSON *list)
{
	const cJSON *item;
	char where[120];
	int i = 0;

	cJSON_ArrayForEach(item, list)
	{
		(void)snprintf(where, sizeof(where), "%s[%d]", f->name, i++);
		if (!cJSON_IsObject(item))
			return wrong_type(call, where, "an object", item);
		if (check_item(call, f, item, where))
			return 1;
	}
	return 0;
}

/* ---- the body ---- */

static int is_json(const char *type)
{
	size_t n = strlen("application/json");

	return type && strncasecmp(type, "application/json", n) == 0 &&
	       (type[n] == '\0' || type[n] == ';' || type[n] == ' ');
}

static int repeated_member(const cJSON *object)
{
	for (const cJSON *a = object->child; a; a = a->next)
		for (const cJSON *b = object->child; b != a; b = b->next)
			if (strcmp(a->string, b->string) == 0)
				return 1;
	return 0;
}

static int malformed(struct pr_call *call, const char *why)
{
	return pr_call_problem(call, 400, "malformed", why);
}

/* cJSON takes more than JSON: what it took wrongly is found by pr_json_text, after the members had their say,
 * for theirs names the member. */
static int read_body(struct pr_call *call)
{
	const struct pr_request *req = call->req;

	if (req->body_len == 0)
		return malformed(call, "the body is empty, a JSON object is wanted");
	if (!is_json(pr_http_header(req, "Content-Type")))
		return pr_call_problem(
			call, 415, "unsupported-media-type", "send Content-Type: application/json");
	if (!memchr(req->body, '\0', req->body_len))
		call->body = cJSON_ParseWithLengthOpts(req->body, req->body_len + 1, NULL, 1);
	if (!call->body)
		return malformed(call, "the body is not JSON");
	if (!cJSON_IsObject(call->body))
		return malformed(call, "the body must be a JSON object");
	if (cJSON_GetArraySize(call->body) > 100)
		return malformed(call, "the body has more than 100 members");
	if (repeated_member(call->body))
		return malformed(call, "the body has a member twice");
	return 0;
}

/* ---- the fields ---- */

static void own(struct pr_call *call, int i, char *value)
{
	free(call->own[i]);
	call->own[i] = value;
	call->param[i] = value;
}

void pr_call_set(struct pr_call *call, int i, const char *value)
{
	own(call, i, value ? pr_strdup(value) : NULL);
}

static int take_member(struct pr_call *call, const struct pr_field *f, int i)
{
	const cJSON *v = cJSON_GetObjectItemCaseSensitive(call->body, f->name);
	char *text = NULL;

	if (!v || (cJSON_IsNull(v) && (f->flags & PR_OPTIONAL)))
		return f->flags & PR_OPTIONAL ? 0 : pr_call_invalid(call, f->name, "is missing");
	if (check_value(call, f, f->name, v, &text))
		return 1;
	if (f->flags & PR_SECRET)
		free(text);
	else
		own(call, i, text);
	return 0;
}

/* A number in a query is text: digits only. */
static int take_query(struct pr_call *call, const struct pr_field *f, int i)
{
	const char *s = pr_http_query(call->req, f->name);
	size_t digits;

	if (!s)
		return f->flags & PR_OPTIONAL ? 0 : pr_call_invalid(call, f->name, "is missing in the query");
	if (f->type == PR_INT) {
		digits = strspn(s, "0123456789");
		if (digits == 0 || digits > 15 || s[digits])
			return pr_call_invalid(call, f->name, "must be a whole number");
		if (check_int(call, f, f->name, strtod(s, NULL)))
			return 1;
	} else if (f->type == PR_BOOL) {
		if (strcmp(s, "true") != 0 && strcmp(s, "false") != 0)
			return pr_call_invalid(call, f->name, "must be true or false");
	} else if (check_string(call, f, f->name, s)) {
		return 1;
	}
	pr_call_set(call, i, s);
	return 0;
}

/* There is nothing of that name: whatever is wrong with it, it is not found. */
static int take_path(struct pr_call *call, const struct pr_field *f, int i, const char *value)
{
	int fits = f->type == PR_UUID ? is_uuid(value)
		   : f->type == PR_ID ? is_id(value)
				      : pr_utf8_text(value, strlen(value)) && strlen(value) <= 200;

	if (!fits)
		return pr_call_problem(call, 404, "not-found", "there is no such thing");
	pr_call_set(call, i, value);
	return 0;
}

static int take_field(struct pr_call *call, const struct pr_field *f, int i, int *in_path)
{
	if (f->type == PR_FROM_CALLER)
		pr_call_set(call, i, *call->caller.sub ? call->caller.sub : NULL);
	if (f->type == PR_FROM_CALLER || f->type == PR_FROM_HOOK)
		return 0;
	if (f->flags & PR_IN_PATH)
		return take_path(call, f, i, call->path[(*in_path)++]);
	return f->flags & PR_IN_QUERY ? take_query(call, f, i) : take_member(call, f, i);
}

static int from_body(const struct pr_field *f)
{
	return f->type != PR_FROM_CALLER && f->type != PR_FROM_HOOK &&
	       !(f->flags & (PR_IN_PATH | PR_IN_QUERY));
}

int service_input(struct pr_call *call)
{
	const struct pr_field *f = call->endpoint->fields;
	int in_path = 0, wants_body = 0;

	for (int i = 0; f && f[i].name; i++)
		wants_body |= from_body(&f[i]);
	if (wants_body && read_body(call))
		return 1;
	for (int i = 0; f && f[i].name; i++)
		if (take_field(call, &f[i], i, &in_path))
			return 1;
	if (wants_body && !pr_json_text(call->req->body, call->req->body_len))
		return malformed(
			call, "the body is not JSON in UTF-8 as RFC 8259 has it, or a string holds \\u0000");
	return 0;
}

const char *pr_call_text(const struct pr_call *call, const char *name)
{
	return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(call->body, name));
}

const char *pr_call_bearer(const struct pr_call *call)
{
	const char *auth = pr_http_header(call->req, "Authorization");

	if (!auth || strncasecmp(auth, "Bearer ", 7) != 0)
		return NULL;
	for (auth += 7; *auth == ' '; auth++)
		;
	return auth;
}

char *pr_json_string(const char *json, const char *member)
{
	cJSON *object = cJSON_Parse(json);
	const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, member));
	char *copy = s ? pr_strdup(s) : NULL;

	cJSON_Delete(object);
	return copy;
}

/* ---- what tells contents apart ---- */

/* A password is in the sum by a slow, memory-hard hash only (16 MB, some 40 ms), salted with the request's
 * key: whoever reads service.idempotency learns no more than from the stored passwords. */
static int mix_secret(EVP_MD_CTX *sum, const char *s, const char *key)
{
	unsigned char salt[SHA256_DIGEST_LENGTH], out[32];

	(void)SHA256((const unsigned char *)key, strlen(key), salt);
	return EVP_PBE_scrypt(s, strlen(s), salt, sizeof(salt), 16384, 8, 1, 64 << 20, out, sizeof(out)) ==
		       1 &&
	       EVP_DigestUpdate(sum, out, sizeof(out)) == 1;
}

static int mix(EVP_MD_CTX *sum, const char *s)
{
	unsigned char mark = s ? 1 : 0;

	return EVP_DigestUpdate(sum, &mark, 1) == 1 && (!s || EVP_DigestUpdate(sum, s, strlen(s) + 1) == 1);
}

/* Of the values the use case gets, not of the body's bytes: spaces and the order of members do not count. */
int service_fingerprint(struct pr_call *call, unsigned char ret[32])
{
	const struct pr_field *f = call->endpoint->fields;
	const char *key = pr_http_header(call->req, "Idempotency-Key"), *secret;
	EVP_MD_CTX *sum = EVP_MD_CTX_new();
	int ok = sum && EVP_DigestInit_ex(sum, EVP_sha256(), NULL) == 1;

	for (int i = 0; ok && f && f[i].name; i++) {
		secret = f[i].flags & PR_SECRET ? pr_call_text(call, f[i].name) : NULL;
		if (secret && (f[i].flags & PR_LONG))
			ok = mix(sum, secret);
		else if (secret)
			ok = mix_secret(sum, secret, key);
		else if (f[i].type != PR_FROM_HOOK)
			ok = mix(sum, f[i].flags & PR_SECRET ? NULL : call->param[i]);
	}
	ok = ok && EVP_DigestFinal_ex(sum, ret, NULL) == 1;
	EVP_MD_CTX_free(sum);
	return ok ? 0 : -1;
}
