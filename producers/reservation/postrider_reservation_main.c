/* producers/reservation/postrider_reservation_main.c -- postrider-reservation: asks for seats, books them in
 * one saga, and shows what became of it. What is stored, decided and published is in schema.sql and
 * consumer.sql; here are the endpoints and the queue's tokens. Refuses to ask any other service: it has
 * copies. */
#include "lib/clock.h"
#include "lib/service.h"
#include "sql.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

#define QUEUE      "postrider-queue" /* issuer and audience of the queue's tokens */
#define SEATS_MOST 10
#define FORGET_US  (60 * PR_SEC)

struct reservation_conf {
	struct pr_service_conf service;
	char *queue_jwks;
	int64_t hold_us;
};

static struct reservation_conf conf;
static struct pr_tokens *queue_tokens;
static int64_t ticked_us;

#define AT(field) offsetof(struct reservation_conf, field)

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS(struct reservation_conf, service, "reservation", "8084"),
	PR_SERVICE_BATCH(struct reservation_conf, service),
	PR_SERVICE_JWKS(struct reservation_conf, service),
	{ "queue.jwks", PR_OPT_STR, AT(queue_jwks), "http://127.0.0.1:8083/.well-known/jwks.json",
		.flags = PR_OPT_NO_RELOAD, .doc = "Where the queue publishes the keys of its tokens." },
	{ "hold.for", PR_OPT_DURATION, AT(hold_us), "5m", .min = PR_SEC, .max = 86400 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long a seat is held for its payment. Kept in the database: the same for all "
		       "processes, the last one that starts says it." },
	{ 0 },
};

/* ---- POST /reservations, POST /bookings ---- */

enum { ASK_CALLER, ASK_QUEUE_TOKEN, ASK_SCHEDULE, ASK_SEATS, ASK_TOKEN, ASK_CONCERT };

static const struct pr_field ask_fields[] = {
	[ASK_CALLER] = { "caller", .type = PR_FROM_CALLER },
	[ASK_QUEUE_TOKEN] = { "queue_token", PR_TEXT, PR_SECRET | PR_LONG, .min = 1, .max = PR_TOKEN_MAX },
	[ASK_SCHEDULE] = { "schedule_id", PR_ID },
	[ASK_SEATS] = { "seat_ids", PR_IDS, .min = 1, .max = SEATS_MOST },
	[ASK_TOKEN] = { "token", .type = PR_FROM_HOOK },
	[ASK_CONCERT] = { "concert", .type = PR_FROM_HOOK },
	{ 0 },
};

static int bad_token(struct pr_call *call, enum pr_token_verdict verdict)
{
	char detail[120];

	if (verdict == PR_TOKEN_NO_KEYS)
		return pr_call_unauthorized(call, verdict);
	(void)snprintf(detail, sizeof(detail), "queue_token: %s", pr_token_why(verdict));
	return pr_call_problem(call, 401, "queue-token", detail);
}

static int is_number(const char *s)
{
	size_t n = s ? strspn(s, "0123456789") : 0;

	return n > 0 && n < 19 && s[n] == '\0';
}

static int is_uuid(const char *s)
{
	return s && strlen(s) == 36 && strspn(s, "0123456789abcdefABCDEF-") == 36;
}

/* Whose token it is, and for what: signed by the queue, so it is believed. Whether it is its turn says the
 * copy of what the queue has published. */
static int ask_before(struct pr_call *call)
{
	const char *token = pr_call_text(call, "queue_token"), *id, *concert;
	struct pr_claims claims;
	enum pr_token_verdict verdict = pr_call_verify(call, queue_tokens, token, &claims);
	cJSON *json;
	int rc = 0;

	if (verdict != PR_TOKEN_OK)
		return call->resp->alone ? 1 : bad_token(call, verdict);
	if (strcasecmp(claims.sub, call->caller.sub) != 0)
		return pr_call_problem(call, 403, "not-yours", "the queue token is another user's");
	json = cJSON_Parse(claims.json);
	id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "jti"));
	concert = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "concert_id"));
	if (is_uuid(id) && is_number(concert)) {
		pr_call_set(call, ASK_TOKEN, id);
		pr_call_set(call, ASK_CONCERT, concert);
	} else {
		rc = bad_token(call, PR_TOKEN_MALFORMED);
	}
	cJSON_Delete(json);
	return rc;
}

/* ---- reading, and giving back ---- */

static const struct pr_field id_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "id", PR_UUID, .flags = PR_IN_PATH },
	{ 0 },
};

static const struct pr_field list_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "user", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ "limit", PR_INT, .flags = PR_IN_QUERY | PR_OPTIONAL, .min = 1, .max = 200 },
	{ "after", PR_UUID, .flags = PR_IN_QUERY | PR_OPTIONAL },
	{ 0 },
};

#define ASKED      "($1::uuid, $5::uuid, $6::bigint, $3::bigint, $4::bigint[])"
#define ASKED_MANY "($1::uuid[], $5::uuid[], $6::bigint[], $3::bigint[], $4)"

static const struct pr_endpoint endpoints[] = {
	{ "POST", "/reservations", ask_fields, "reservation.request" ASKED, .auth = PR_USER, .status = 202,
		.many = "reservation.request_many" ASKED_MANY, .location = "/reservations/{reservation_id}",
		.before = ask_before },
	{ "POST", "/bookings", ask_fields, "reservation.book" ASKED, .auth = PR_USER, .status = 202,
		.location = "/sagas/{saga_id}", .before = ask_before },
	{ "GET", "/reservations", list_fields, "reservation.list($1::uuid, $2::uuid, $3::int, $4::uuid)",
		.auth = PR_USER },
	{ "GET", "/reservations/{id}", id_fields, "reservation.show($1::uuid, $2::uuid)", .auth = PR_USER },
	{ "GET", "/reservations/{id}/history", id_fields, "reservation.history($1::uuid, $2::uuid)",
		.auth = PR_USER },
	{ "DELETE", "/reservations/{id}", id_fields, "reservation.cancel($1::uuid, $2::uuid)",
		.auth = PR_USER },
	{ "GET", "/sagas/{id}", id_fields, "reservation.saga($1::uuid, $2::uuid)", .auth = PR_USER },
	{ 0 },
};

/* ---- the program ---- */

static int begin(struct pr_service_run *run, struct pr_err *err)
{
	struct pr_tokens_opts opts = { .url = conf.queue_jwks, .issuer = QUEUE, .audience = QUEUE };

	(void)run;
	return pr_tokens_new(&opts, &queue_tokens, err);
}

static int tick(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err)
{
	char hold[24];
	const char *const params[] = { hold };

	(void)run;
	(void)snprintf(hold, sizeof(hold), "%lld", (long long)conf.hold_us);
	if (!ticked_us && pr_pg_run(pg, sql_reservation_configure, 1, params, err) < 0)
		return -1;
	if (ticked_us && pr_mono_us() - ticked_us < FORGET_US)
		return 0;
	if (pr_pg_run(pg, "SELECT reservation.forget()", 0, NULL, err) < 0)
		return -1;
	ticked_us = pr_mono_us();
	return 0;
}

static void end(struct pr_service_run *run)
{
	(void)run;
	pr_tokens_free(queue_tokens);
}

static const char *const schema[] = { sql_reservation_schema, sql_reservation_consumer, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "reservation",
		.program = "postrider-reservation",
		.does = "reservations and bookings of the example",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_reservation_openapi,
		.begin = begin,
		.tick = tick,
		.end = end };

	return pr_service_main(&service, argc, argv);
}
