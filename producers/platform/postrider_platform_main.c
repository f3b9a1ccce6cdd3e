/* producers/platform/postrider_platform_main.c -- postrider-platform: stands for a company's data platform.
 * It takes facts, singly or in batches, keeps each once by its event's id, counts what came twice, and can be
 * told to be slow, to fail, and to refuse one event. What is stored is decided in schema.sql.
 *
 * Refuses a batch as a whole when one event in it is not in order, and names that one. */
#include "producers/platform/unpack.h"

#include "lib/clock.h"
#include "lib/service.h"
#include "sql.h"

#include <cjson/cJSON.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

struct platform_conf {
	struct pr_service_conf service;
	int64_t unpacked_bytes;
};

static struct platform_conf conf;

#define AT(field) offsetof(struct platform_conf, field)

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS_BODY(struct platform_conf, service, "platform", "8088", "4MB"),
	{ "events.unpacked_bytes", PR_OPT_SIZE, AT(unpacked_bytes), "16MB", .min = 1024, .max = 64 << 20,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Most bytes of a batch once it is unpacked (gzip, zstd); more is answered with 413." },
	{ 0 },
};

/* ---- POST /events: what came ---- */

struct batch {
	struct pr_buf text; /* as it came, unpacked */
	struct pr_buf list; /* of NDJSON, and of one event: as a list */
	int single;
	const char *key; /* Idempotency-Key of the batch; NULL: none, or it is the event's id */
	char *id;        /* the single event's */
	char key_hex[65], sum_hex[65];
};

static int malformed(struct pr_call *call, const char *detail)
{
	return pr_call_problem(call, 400, "malformed", detail);
}

static int unpack_body(struct pr_call *call, struct batch *b)
{
	const char *encoding = pr_http_header(call->req, "Content-Encoding");

	switch (unpack(
		encoding, call->req->body, call->req->body_len, (size_t)conf.unpacked_bytes, &b->text)) {
	case UNPACK_OK:
		return 0;
	case UNPACK_UNKNOWN:
		return pr_call_problem(
			call, 415, "unsupported-media-type", "Content-Encoding may be gzip or zstd");
	case UNPACK_TOO_LONG:
		return pr_call_problem(
			call, 413, "too-large", "unpacked it is longer than events.unpacked_bytes");
	default:
		return malformed(call, "the body is not what its Content-Encoding says");
	}
}

/* Each line a JSON value; empty ones are stepped over. */
static int read_lines(struct pr_call *call, struct batch *b)
{
	const char *at = b->text.s, *end = at + b->text.len, *line, *stop;
	size_t n, count = 0;
	char detail[80];

	pr_buf_puts(&b->list, "[");
	for (int nth = 1; at < end; nth++) {
		line = at;
		stop = memchr(at, '\n', (size_t)(end - at));
		n = (size_t)((stop ? stop : end) - at);
		at += n + 1;
		if (strspn(line, " \t\r") >= n)
			continue;
		if (!pr_json_text(line, n)) {
			(void)snprintf(detail, sizeof(detail), "line %d is not JSON in UTF-8", nth);
			return malformed(call, detail);
		}
		pr_buf_puts(&b->list, count++ ? "," : "");
		pr_buf_put(&b->list, line, n);
	}
	pr_buf_puts(&b->list, "]");
	return count ? 0 : malformed(call, "there is no event in it");
}

/* An event that came alone may have its id in a header only, as webhooks have it. */
static int read_single(struct pr_call *call, struct batch *b)
{
	const char *id = pr_http_header(call->req, "webhook-id");

	b->single = 1;
	b->id = pr_json_string(b->text.s, "id");
	if (!b->id && id) {
		cJSON *event = cJSON_Parse(b->text.s);
		char *text = NULL;

		if (cJSON_IsObject(event) && !cJSON_HasObjectItem(event, "id") &&
			cJSON_AddStringToObject(event, "id", id))
			text = cJSON_PrintUnformatted(event);
		cJSON_Delete(event);
		if (!text || !pr_json_text(text, strlen(text))) {
			cJSON_free(text);
			return malformed(call, "there is no id in it");
		}
		pr_buf_printf(&b->list, "[%s]", text);
		cJSON_free(text);
		b->id = pr_strdup(id);
		return 0;
	}
	pr_buf_puts(&b->list, "[");
	pr_buf_put(&b->list, b->text.s, b->text.len);
	pr_buf_puts(&b->list, "]");
	return 0;
}

static int media_is(const char *given, const char *wanted)
{
	size_t n = strlen(wanted);

	return given && strncasecmp(given, wanted, n) == 0 &&
	       (given[n] == '\0' || given[n] == ';' || given[n] == ' ');
}

static int read_batch(struct pr_call *call, struct batch *b)
{
	const char *type = pr_http_header(call->req, "Content-Type");
	const char *s;

	if (!media_is(type, "application/json") && !media_is(type, "application/x-ndjson"))
		return pr_call_problem(call, 415, "unsupported-media-type",
			"send Content-Type: application/json or application/x-ndjson");
	if (unpack_body(call, b))
		return 1;
	if (media_is(type, "application/x-ndjson"))
		return read_lines(call, b);
	if (!pr_json_text(b->text.s, b->text.len))
		return malformed(
			call, "the body is not JSON in UTF-8 as RFC 8259 has it, or a string holds \\u0000");
	s = b->text.s + strspn(b->text.s, " \t\r\n");
	if (*s == '{')
		return read_single(call, b);
	return *s == '[' ? 0 : malformed(call, "the body must be a list of events, or one");
}

/* ---- POST /events: under which key ---- */

static void hex_sum(const char *s, size_t n, char ret[65])
{
	unsigned char sum[SHA256_DIGEST_LENGTH];

	(void)SHA256((const unsigned char *)s, n, sum);
	for (size_t i = 0; i < sizeof(sum); i++)
		(void)snprintf(ret + 2 * i, 3, "%02x", sum[i]);
}

/* An event's own id needs no second memory; what else comes with it (the attempt) may differ. */
static int read_key(struct pr_call *call, struct batch *b)
{
	const char *key = pr_http_header(call->req, "Idempotency-Key");

	if (!key || (b->id && strcmp(key, b->id) == 0))
		return 0;
	if (!*key || strlen(key) > 255 || !pr_utf8_text(key, strlen(key)))
		return malformed(call, "Idempotency-Key must have 1 to 255 characters");
	b->key = key;
	hex_sum(key, strlen(key), b->key_hex);
	hex_sum(b->text.s, b->text.len, b->sum_hex);
	return 0;
}

/* ---- POST /events: the answer ---- */

static void pause_ms(int ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };

	(void)nanosleep(&t, NULL);
}

enum { STATUS, SLUG, DETAIL, MEMBER, RETRY_AFTER, SLOW_MS, ANSWER };

static int answer(struct pr_call *call, PGresult *res)
{
	int status = atoi(PQgetvalue(res, 0, STATUS)), slow = atoi(PQgetvalue(res, 0, SLOW_MS));
	const char *detail = PQgetvalue(res, 0, DETAIL);

	if (slow > 0)
		pause_ms(slow);
	if (status == 200)
		return pr_call_answer(call, 200, pr_strdup(PQgetvalue(res, 0, ANSWER)));
	call->resp->retry_after = atoi(PQgetvalue(res, 0, RETRY_AFTER));
	if (!PQgetisnull(res, 0, MEMBER))
		return pr_call_invalid(call, PQgetvalue(res, 0, MEMBER), "%s", detail);
	return pr_call_problem(call, status, PQgetvalue(res, 0, SLUG), detail);
}

static int ingest(struct pr_call *call, struct batch *b)
{
	const char *const params[] = { b->list.s ? b->list.s : b->text.s, b->single ? "true" : "false",
		b->key ? b->key_hex : NULL, b->key ? b->sum_hex : NULL };
	PGresult *res = pr_call_query(call, sql_platform_ingest, 4, params);
	int rc;

	if (!res)
		return 1;
	rc = answer(call, res);
	PQclear(res);
	return rc;
}

static int take_events(struct pr_call *call)
{
	struct batch b = { 0 };

	if (!read_batch(call, &b) && !read_key(call, &b))
		(void)ingest(call, &b);
	pr_buf_free(&b.text);
	pr_buf_free(&b.list);
	free(b.id);
	return 1;
}

/* ---- the rest ---- */

static const struct pr_field facts[] = {
	{ "type", PR_TEXT, PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 200 },
	{ "from", PR_TEXT, PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 40 },
	{ "to", PR_TEXT, PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 40 },
	{ "limit", PR_INT, PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 1000 },
	{ "after", PR_TEXT, PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 200 },
	{ 0 },
};

static const struct pr_field switches[] = {
	{ "slow_ms", PR_INT, PR_OPTIONAL, .min = 0, .max = 60000 },
	{ "fail_status", PR_INT, PR_OPTIONAL, .min = 0, .max = 599 },
	{ "fail_every", PR_INT, PR_OPTIONAL, .min = 1, .max = 1000000 },
	{ "fail_stored", PR_BOOL, .flags = PR_OPTIONAL },
	{ "retry_after", PR_INT, PR_OPTIONAL, .min = 0, .max = 3600 },
	{ "refuse_id", PR_TEXT, PR_OPTIONAL, .min = 0, .max = 200 },
	{ 0 },
};

static const struct pr_endpoint endpoints[] = {
	{ .method = "POST", .path = "/events", .before = take_events },
	{ .method = "GET",
		.path = "/facts",
		.fields = facts,
		.sql = "platform.facts($1, $2, $3, coalesce($4::integer, 100), "
		       "$5)" },
	{ .method = "GET", .path = "/counts", .sql = "platform.counts()" },
	{ .method = "POST",
		.path = "/switches",
		.fields = switches,
		.sql = "platform.set_switches($1::integer, $2::integer, $3::integer, $4::boolean, "
		       "$5::integer, $6)" },
	{ .method = "GET", .path = "/switches", .sql = "platform.show_switches()" },
	{ 0 },
};

static const char *const schema[] = { sql_platform_schema, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "platform",
		.program = "postrider-platform",
		.does = "the data platform of the example: keeps every fact once",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_platform_openapi };

	return pr_service_main(&service, argc, argv);
}
