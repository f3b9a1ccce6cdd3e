/* producers/queue/postrider_queue_main.c -- postrider-queue: the waiting room. A token is a number (Redis
 * counts) and a row (Postgres keeps it); its status is answered from what this process knows of all tokens.
 * Refuses to answer a status from a view older than status.stale: 503.
 *
 * If we die between the number and the row, the number is nobody's: those behind it move up. If we die behind
 * the row, it is in queue.todo: the keeper of another process brings it to Redis. */
#include "producers/queue/queue.h"

#include "lib/fault.h"
#include "lib/uuid.h"
#include "sql.h"

#include <cjson/cJSON.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

struct queue_conf conf;
static struct pr_keys *keys;
static struct pr_tokens *tokens; /* our own; users' are the skeleton's */
static struct pr_series *limited;
static char *adopted; /* the set of keys */
static int64_t refreshed_us;

#define ISSUER    "postrider-queue"
#define AT(field) offsetof(struct queue_conf, field)
#define DAY       (86400 * PR_SEC)
#define SET       .flags = PR_OPT_NO_RELOAD

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS(struct queue_conf, service, "queue", "8083"),
	PR_SERVICE_JWKS(struct queue_conf, service),
	{ "jwt.rotate", PR_OPT_DURATION, AT(rotate_us), "30d", .min = PR_SEC, .max = 3650 * DAY, SET,
		.doc = "Age at which the key that signs the queue's tokens is replaced." },
	{ "jwt.ahead", PR_OPT_DURATION, AT(ahead_us), "10m", .min = PR_SEC, .max = 30 * DAY, SET,
		.doc = "How long a new key is published before it signs, so that every service has it by "
		       "then." },
	{ "redis.address", PR_OPT_STR, AT(redis_address), "127.0.0.1:6379", SET,
		.doc = "Where the waiting room is: 127.0.0.1:6379, [::1]:6379 or unix:/path. All processes "
		       "of the service use the same one; keys begin with queue:." },
	{ "redis.password", PR_OPT_SECRET, AT(redis_password), SET, .example = "env:REDIS_PASSWORD",
		.doc = "Of Redis, when it asks for one." },
	{ "redis.timeout", PR_OPT_DURATION, AT(redis_timeout_us), "500ms", .min = 200 * PR_MS,
		.max = 60 * PR_SEC, SET,
		.doc = "Deadline of connecting to Redis and of each call; what takes longer is answered with "
		       "503." },
	{ "admission.users", PR_OPT_INT, AT(users), "100", .min = 1, .max = 1000000, SET,
		.doc = "How many users a concert lets in at a time." },
	{ "admission.every", PR_OPT_DURATION, AT(every_us), "1s", .min = 10 * PR_MS, .max = DAY, SET,
		.doc = "How often." },
	{ "admission.active_for", PR_OPT_DURATION, AT(active_for_us), "10m", .min = 100 * PR_MS, .max = DAY,
		SET, .doc = "How long who was let in has, until the token expires." },
	{ "admission.late", PR_OPT_DURATION, AT(late_us), "10m", .max = DAY, SET,
		.doc = "How much later than planned a turn may come (the queue was down): the token is good "
		       "for "
		       "so much longer, and a turn that comes later still is lost." },
	{ "status.rate", PR_OPT_INT, AT(rate), "20", .min = 1, .max = 100000, SET,
		.doc = "Status checks a second of one token, on the average, and requests for a token of one "
		       "user; more are answered with 429." },
	{ "status.burst", PR_OPT_INT, AT(burst), "40", .min = 1, .max = 100000, SET,
		.doc = "Status checks of one token, or requests of one user, at once." },
	{ "status.stale", PR_OPT_DURATION, AT(stale_us), "5s", .min = 500 * PR_MS, .max = 3600 * PR_SEC, SET,
		.doc = "While Redis is away, a status is answered as it was last known for so long, then "
		       "with "
		       "503." },
	{ "status.tokens", PR_OPT_INT, AT(tokens), "131072", .min = 1024, .max = 16777216, SET,
		.doc = "Tokens that were found good and are not verified and read again; 200 bytes each." },
	{ "facts.buffer", PR_OPT_INT, AT(facts), "65536", .min = 1, .max = 16777216, SET,
		.doc = "Facts about status checks (QueueStatusChecked) that wait to be published; 136 bytes "
		       "each. More are dropped, and counted." },
	{ "token.keep", PR_OPT_DURATION, AT(keep_us), "7d", .min = PR_SEC, .max = 3650 * DAY, SET,
		.doc = "How long a token that has ended is kept." },
	{ 0 },
};

const char *state_word(char state)
{
	return state == 'A' ? "AVAILABLE" : state == 'C' ? "COMPLETED" : state == 'E' ? "EXPIRED" : "WAITING";
}

/* Until who is at this place is let in, as planned and as the places before him allow. */
static int64_t eta_s(char state, int64_t position, int64_t active_us)
{
	int64_t wait_us = active_us - pr_wall_us(), turns_us = (position - 1) / conf.users * conf.every_us;

	if (state && state != 'W')
		return 0;
	if (wait_us < turns_us)
		wait_us = turns_us;
	return wait_us <= 0 ? 0 : (wait_us + PR_SEC - 1) / PR_SEC;
}

/* ---- POST /queue/tokens ---- */

enum {
	ISSUE_CALLER,
	ISSUE_CONCERT,
	ISSUE_NUMBER,
	ISSUE_PLACE,
	ISSUE_PLANNED,
	ISSUE_LATE,
	ISSUE_LIFE,
	ISSUE_KID
};

static const struct pr_field issue_fields[] = {
	[ISSUE_CALLER] = { "caller", .type = PR_FROM_CALLER },
	[ISSUE_CONCERT] = { "concert_id", PR_ID },
	[ISSUE_NUMBER] = { "number", .type = PR_FROM_HOOK },
	[ISSUE_PLACE] = { "place", .type = PR_FROM_HOOK },
	[ISSUE_PLANNED] = { "planned", .type = PR_FROM_HOOK },
	[ISSUE_LATE] = { "late", .type = PR_FROM_HOOK },
	[ISSUE_LIFE] = { "active_for", .type = PR_FROM_HOOK },
	[ISSUE_KID] = { "kid", .type = PR_FROM_HOOK },
	{ 0 },
};

static void set_number(struct pr_call *call, int i, int64_t n)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "%lld", (long long)n);
	pr_call_set(call, i, text);
}

static int no_redis(struct pr_call *call)
{
	keeper_wake();
	call->resp->retry_after = 1;
	return pr_call_problem(call, 503, "unavailable", "the waiting room does not answer");
}

static int draw(struct redis *r, const char *mark, struct pr_call *call, struct pr_err *err)
{
	char *number = pr_asprintf(PREFIX "%s:number", call->param[ISSUE_CONCERT]);
	char *plan = pr_asprintf(PREFIX "%s:plan", call->param[ISSUE_CONCERT]), users[24], every[24];
	const char *const argv[] = { PREFIX "epoch", number, plan, mark, users, every };
	redisReply *reply;
	int ok;

	(void)snprintf(users, sizeof(users), "%lld", (long long)conf.users);
	(void)snprintf(every, sizeof(every), "%lld", (long long)conf.every_us);
	reply = redis_script(r, SCRIPT_ISSUE, 3, 6, argv, err);
	ok = reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 3 &&
	     reply->element[1]->type == REDIS_REPLY_STRING;
	if (ok) {
		set_number(call, ISSUE_NUMBER, reply->element[0]->integer);
		pr_call_set(call, ISSUE_PLANNED, reply->element[1]->str);
		set_number(call, ISSUE_PLACE, reply->element[2]->integer);
	}
	if (reply)
		freeReplyObject(reply);
	free(number);
	free(plan);
	return ok ? 0 : -1;
}

/* From a Redis that is ours: its process is the one that the mark was made for. A session of another one is
 * of a former process, dead though nobody has noticed, or of one that has an old snapshot: it is not kept. */
static int draw_number(struct pr_call *call)
{
	char mark[MARK_SIZE];
	struct redis *r;
	struct pr_err err;
	int rc = -1;

	for (int tries = 0; rc < 0 && tries < 2; tries++) {
		if (!mark_get(mark) || !(r = redis_take(&err)))
			return no_redis(call);
		if (!mark_of(mark, redis_run_id(r))) {
			redis_drop(r);
			continue;
		}
		rc = draw(r, mark, call, &err);
		if (redis_ok(r) || rc == 0)
			tries = 2;
		redis_give(r);
	}
	return rc < 0 ? no_redis(call) : 0;
}

static uint64_t short_of(const char *uuid)
{
	unsigned char id[16] = { 0 };
	uint64_t n;

	(void)pr_uuid_parse(uuid, strlen(uuid), id);
	memcpy(&n, id + 8, sizeof(n));
	return n;
}

/* whose: a token's or a user's id; 1: the call was answered. */
static int limit(struct pr_call *call, const char *whose, const char *detail)
{
	int wait_s;

	if (limit_pass(short_of(whose), &wait_s))
		return 0;
	pr_counter_add(limited, 1);
	call->resp->retry_after = wait_s;
	return pr_call_problem(call, 429, "too-many-requests", detail);
}

/* A number that is drawn is a place of everybody's plan: whoever is to get no row must not get one. */
static int issue_before(struct pr_call *call)
{
	PGresult *res;
	char kid[64];
	int has;

	if (limit(call, call->caller.sub, "this user asks for tokens too often"))
		return 1;
	res = pr_call_query(call, "SELECT queue.has_token($1::uuid, $2::bigint)", 2, call->param);
	if (!res)
		return 1;
	has = *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	if (!has && (has = pr_call_remembered(call)) < 0)
		return 1;
	if (pr_keys_current(keys, kid) < 0)
		return pr_call_unauthorized(call, PR_TOKEN_NO_KEYS);
	pr_call_set(call, ISSUE_KID, kid);
	set_number(call, ISSUE_LATE, conf.late_us);
	set_number(call, ISSUE_LIFE, conf.active_for_us);
	if (!has && draw_number(call))
		return 1;
	/* If we die here a number was given to nobody: those behind it move up. */
	FAULT(queue_numbered);
	return 0;
}

static int64_t number_of(const cJSON *json, const char *name)
{
	const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, name);

	return cJSON_IsNumber(v)   ? (int64_t)v->valuedouble
	       : cJSON_IsString(v) ? strtoll(v->valuestring, NULL, 10)
				   : 0;
}

static const char *text_of(const cJSON *json, const char *name)
{
	const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, name));

	return s ? s : "";
}

/* -1: a token of ours in form, and not in content. */
static int read_claims(const cJSON *json, struct said *said)
{
	(void)snprintf(said->token, sizeof(said->token), "%s", text_of(json, "jti"));
	(void)snprintf(said->user, sizeof(said->user), "%s", text_of(json, "sub"));
	(void)snprintf(said->active_at, sizeof(said->active_at), "%s", text_of(json, "active_at"));
	said->concert = number_of(json, "concert_id");
	said->number = number_of(json, "number");
	said->active_us = number_of(json, "active_us");
	said->expires = number_of(json, "exp");
	return said->number > 0 && strlen(said->token) == 36 ? 0 : -1;
}

/* Whoever has just got a number is told the place that Redis counted, others what the view says. */
static char *issued(const cJSON *row, const char *token)
{
	int64_t concert = number_of(row, "concert"), number = number_of(row, "number");
	int64_t place = number_of(row, "position"), active_us = number_of(row, "active_us");
	const char *state = text_of(row, "state");
	int waits = strcmp(state, "WAITING") == 0;
	struct shown s;

	if (waits && !place && show_get(concert, number, &s))
		place = s.ahead + 1;
	if (waits && !place)
		place = 1;
	return pr_asprintf(
		"{\"token\":\"%s\",\"token_id\":\"%s\",\"concert_id\":\"%lld\",\"state\":\"%s\","
		"\"position\":%lld,\"eta_seconds\":%lld,\"active_at\":\"%s\",\"expire_at\":\"%s\"}",
		token, text_of(row, "token_id"), (long long)concert, state, waits ? (long long)place : 0LL,
		(long long)eta_s(waits ? 'W' : 'A', place, active_us), text_of(row, "active_at"),
		text_of(row, "expire_at"));
}

/* What is remembered for an Idempotency-Key is the row: signed again it gives the same token. */
static void issue_after(struct pr_call *call)
{
	cJSON *row = cJSON_Parse(call->answer);
	cJSON *claims_of = cJSON_GetObjectItemCaseSensitive(row, "claims");
	char *claims = cJSON_PrintUnformatted(claims_of);
	char *token = claims ? pr_keys_sign(keys, text_of(row, "kid"), claims) : NULL;
	int fresh = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(row, "fresh"));
	struct said said;

	free(call->answer);
	call->answer = NULL;
	if (token)
		(void)pr_call_answer(call, fresh ? 201 : 200, issued(row, token));
	else
		(void)pr_call_unauthorized(call, PR_TOKEN_NO_KEYS);
	if (token && read_claims(claims_of, &said) == 0)
		known_put(token, &said, known_now());
	if (fresh && !call->repeated)
		keeper_wake();
	free(token);
	cJSON_free(claims);
	cJSON_Delete(row);
}

/* ---- GET and POST /queue/status ---- */

static int say(struct pr_call *call, const struct said *said, struct shown *s)
{
	int64_t now_us = pr_wall_us();
	struct fact fact = { .concert = said->concert, .at_us = now_us };
	char expire[32];

	if (!s->expire_us)
		s->expire_us = said->expires * PR_SEC;
	if (s->state != 'C' && s->expire_us <= now_us)
		s->state = 'E';
	fact.state = s->state;
	fact.position = !s->state || s->state == 'W' ? s->ahead + 1 : 0;
	memcpy(fact.token, said->token, sizeof(fact.token));
	memcpy(fact.user, said->user, sizeof(fact.user));
	facts_put(&fact);
	return pr_call_answer(call, 200,
		pr_asprintf("{\"token_id\":\"%s\",\"concert_id\":\"%lld\",\"state\":\"%s\",\"position\":%lld,"
			    "\"eta_seconds\":%lld,\"active_at\":\"%s\",\"expire_at\":\"%s\"}",
			said->token, (long long)said->concert, state_word(s->state), (long long)fact.position,
			(long long)eta_s(s->state, fact.position, said->active_us), said->active_at,
			pr_rfc3339(s->expire_us, expire)));
}

static enum pr_token_verdict verify(const char *token, struct said *said)
{
	uint64_t now = known_now();
	struct pr_claims claims;
	enum pr_token_verdict verdict;
	cJSON *json;

	if (known_get(token, said))
		return PR_TOKEN_OK;
	verdict = pr_tokens_verify(tokens, token, strlen(token), 0, &claims);
	if (verdict != PR_TOKEN_OK)
		return verdict;
	json = cJSON_Parse(claims.json);
	if (read_claims(json, said) < 0)
		verdict = PR_TOKEN_MALFORMED;
	else
		known_put(token, said, now);
	cJSON_Delete(json);
	return verdict;
}

static int check(struct pr_call *call, const char *token)
{
	struct said said;
	enum pr_token_verdict verdict = token ? verify(token, &said) : PR_TOKEN_MISSING;
	struct shown shown;

	if (verdict != PR_TOKEN_OK)
		return pr_call_unauthorized(call, verdict);
	if (limit(call, said.token, "this token is checked too often"))
		return 1;
	if (!show_get(said.concert, said.number, &shown))
		return no_redis(call);
	return say(call, &said, &shown);
}

static int status_get(struct pr_call *call)
{
	return check(call, pr_call_bearer(call));
}

static const struct pr_field status_fields[] = {
	{ "token", PR_TEXT, .min = 1, .max = 8192 },
	{ 0 },
};

static int status_post(struct pr_call *call)
{
	return check(call, call->param[0]);
}

/* ---- GET /.well-known/jwks.json ---- */

static int jwks(struct pr_call *call)
{
	char *set = pr_keys_jwks(keys);

	if (!set)
		return pr_call_unauthorized(call, PR_TOKEN_NO_KEYS);
	call->resp->cache_control = "public, max-age=300";
	return pr_call_answer(call, 200, set);
}

static const struct pr_endpoint endpoints[] = {
	{ "POST", "/queue/tokens", issue_fields,
		"queue.issue($1::uuid, $2::bigint, $3::bigint, $4::bigint, "
		"'epoch'::timestamptz + $5::bigint * interval '1 microsecond', "
		"$6::bigint * interval '1 microsecond', $7::bigint * interval '1 microsecond', $8)",
		.auth = PR_USER, .status = 201, .before = issue_before, .after = issue_after },
	{ "GET", "/queue/status", .flags = PR_PLAIN, .before = status_get },
	{ "POST", "/queue/status", status_fields, .flags = PR_PLAIN, .before = status_post },
	{ "GET", "/.well-known/jwks.json", .flags = PR_PLAIN, .before = jwks },
	{ 0 },
};

/* ---- the program ---- */

static int begin(struct pr_service_run *run, struct pr_err *err)
{
	struct pr_tokens_opts opts = { .issuer = ISSUER, .audience = ISSUER, .remembered = 1024 };

	if (pr_tokens_new(&opts, &tokens, err) < 0)
		return -1;
	known_init();
	keys = pr_keys_new(conf.rotate_us, conf.ahead_us, conf.late_us + conf.active_for_us + DAY);
	limited = pr_series_one(
		pr_family_new(pr_service_metrics(run), PR_COUNTER, "postrider_queue_limited_total", "", 0,
			"Status checks and requests for a token that came too often."));
	return facts_start(pr_service_metrics(run), err) < 0 || keeper_start(run, err) < 0
		       ? -1
		       : follow_start(err);
}

static int refresh_keys(struct pr_pg *pg, struct pr_err *err)
{
	int64_t pause_us = conf.ahead_us / 4 < 10 * PR_SEC ? conf.ahead_us / 4 : 10 * PR_SEC;
	char *set;
	int rc;

	if (refreshed_us && pr_mono_us() - refreshed_us < pause_us)
		return 0;
	if (pr_keys_refresh(keys, pg, err) < 0)
		return -1;
	set = pr_keys_jwks(keys);
	rc = set ? pr_tokens_adopt(tokens, set, strlen(set), err) : 0;
	if (!set || !adopted || strcmp(set, adopted) != 0)
		known_forget();
	free(adopted);
	adopted = set;
	refreshed_us = pr_mono_us();
	return rc;
}

/* Before the first request, so that who is told that we are ready gets answers. Without Redis we begin all
 * the same: what Postgres can answer is answered without it. */
static void await_view(void)
{
	int64_t until_us = pr_mono_us() + 2 * conf.redis_timeout_us;
	struct shown s;

	keeper_wake();
	while (!show_get(1, 1, &s) && pr_mono_us() < until_us)
		(void)poll(NULL, 0, 5);
}

static int tick(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err)
{
	static int been;

	(void)run;
	if (refresh_keys(pg, err) < 0)
		return -1;
	if (!been) {
		been = 1;
		await_view();
		return 0;
	}
	return keeper_trouble(err);
}

static void end(struct pr_service_run *run)
{
	(void)run;
	keeper_stop();
	follow_stop();
	facts_stop();
	redis_pool_close();
	pr_tokens_free(tokens);
	pr_keys_free(keys);
	known_free();
	free(adopted);
}

/* A set of keys has 16 at most, and a verifier must find all that signed a token still good. */
static int validate(const void *target, const struct pr_conf *loaded, struct pr_err *err)
{
	const struct queue_conf *c = target;

	if (!redis_address_ok(c->redis_address))
		return pr_conf_fail(loaded, "redis.address", err, "must be host:port or unix:/path");
	if (c->ahead_us > c->rotate_us)
		return pr_conf_fail(
			loaded, "jwt.ahead", err, "longer than jwt.rotate: no key would ever sign");
	if (c->late_us + c->active_for_us + DAY + c->ahead_us > 10 * c->rotate_us)
		return pr_conf_fail(loaded, "jwt.rotate", err,
			"too short for tokens that live as long: too many keys at a time");
	return 0;
}

static const char *const schema[] = { sql_queue_schema, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "queue",
		.program = "postrider-queue",
		.does = "the waiting room of the example",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_queue_openapi,
		.validate = validate,
		.begin = begin,
		.tick = tick,
		.end = end };

	return pr_service_main(&service, argc, argv);
}
