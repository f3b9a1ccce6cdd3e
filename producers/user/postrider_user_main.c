/* producers/user/postrider_user_main.c -- postrider-user: accounts, logins, and the tokens that all services
 * trust. What is stored and published is decided in schema.sql; here are the passwords and the signing.
 * Refuses to say whether an email is known: a wrong password and an unknown user look the same and take as
 * long. */
#include "producers/user/password.h"

#include "lib/clock.h"
#include "lib/service.h"
#include "sql.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

struct user_conf {
	struct pr_service_conf service;
	int64_t life_us, rotate_us, ahead_us;
	int64_t password_min, password_ops, password_bytes;
	int64_t attempts, window_us;
};

static struct user_conf conf;
static struct pr_keys *keys;
static struct pr_tokens *tokens;
static int64_t refreshed_us;

#define AT(field) offsetof(struct user_conf, field)
#define DAY       (86400 * PR_SEC)

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS(struct user_conf, service, "user", "8081"),
	{ "jwt.life", PR_OPT_DURATION, AT(life_us), "1h", .min = PR_SEC, .max = 30 * DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "How long the token of a login is good." },
	{ "jwt.rotate", PR_OPT_DURATION, AT(rotate_us), "30d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "Age at which the key that signs tokens is replaced." },
	{ "jwt.ahead", PR_OPT_DURATION, AT(ahead_us), "10m", .min = PR_SEC, .max = 30 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long a new key is published before it signs, so that every service has it by "
		       "then." },
	{ "password.min", PR_OPT_INT, AT(password_min), "6", .min = 1, .max = 100, .flags = PR_OPT_NO_RELOAD,
		.doc = "Fewest characters of a new password." },
	{ "password.passes", PR_OPT_INT, AT(password_ops), "2", .min = 1, .max = 100,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of the hash of a new password (Argon2id): passes over its memory." },
	{ "password.memory", PR_OPT_SIZE, AT(password_bytes), "64MB", .min = 8192, .max = 1 << 30,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Of the hash of a new password: memory, for each of http.heavy at a time." },
	{ "login.attempts", PR_OPT_INT, AT(attempts), "10", .min = 1, .max = 1000000,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Attempts to log in with one email within login.window; a login that succeeds ends "
		       "the count." },
	{ "login.window", PR_OPT_DURATION, AT(window_us), "5m", .min = PR_SEC, .max = DAY,
		.flags = PR_OPT_NO_RELOAD, .doc = "From the first attempt on." },
	{ 0 },
};

/* ---- POST /users ---- */

static const struct pr_field create_fields[] = {
	{ "email", PR_TEXT, .min = 3, .max = 254 },
	{ "password", PR_TEXT, PR_SECRET, .min = 1, .max = 200 },
	{ "name", PR_TEXT, .min = 1, .max = 200 },
	{ 0 },
};

/* Something, an @, something with no space in it: the rest only a letter to it can tell. */
static int is_email(const char *s)
{
	const char *at = strrchr(s, '@');

	return at && at != s && at[1] && !strpbrk(s, " \t\r\n");
}

static int has_control(const char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			return 1;
	return 0;
}

static int64_t characters(const char *s)
{
	int64_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static int create_before(struct pr_call *call)
{
	const char *password = pr_call_text(call, "password");
	char hash[PASSWORD_HASH_SIZE];

	if (!is_email(call->param[0]) || has_control(call->param[0]))
		return pr_call_invalid(call, "email", "must be an email address");
	if (has_control(call->param[2]))
		return pr_call_invalid(call, "name", "must not hold control characters");
	if (characters(password) < conf.password_min)
		return pr_call_invalid(
			call, "password", "must have at least %lld characters", (long long)conf.password_min);
	if (password_hash(password, hash) < 0)
		return pr_call_problem(call, 503, "overloaded", "no memory for a password's hash");
	pr_call_set(call, 1, hash);
	return 0;
}

/* ---- GET /users/{id} ---- */

static const struct pr_field show_fields[] = {
	{ "caller", .type = PR_FROM_CALLER },
	{ "id", PR_UUID, .flags = PR_IN_PATH },
	{ 0 },
};

/* ---- POST /login ---- */

enum { LOGIN_WHO = 2, LOGIN_KID, LOGIN_LIFE };

static const struct pr_field login_fields[] = {
	{ "email", PR_TEXT, .min = 1, .max = 254 },
	{ "password", PR_TEXT, PR_SECRET, .min = 1, .max = 200 },
	[LOGIN_WHO] = { "who", .type = PR_FROM_HOOK },
	[LOGIN_KID] = { "kid", .type = PR_FROM_HOOK },
	[LOGIN_LIFE] = { "life", .type = PR_FROM_HOOK },
	{ 0 },
};

static void set_number(struct pr_call *call, int i, int64_t n)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "%lld", (long long)n);
	pr_call_set(call, i, text);
}

/* The try is counted before the password is looked at. */
static int login_before(struct pr_call *call)
{
	char attempts[24], window[24], kid[64];
	const char *const params[] = { call->param[0], attempts, window };
	PGresult *res;
	int known, good;

	(void)snprintf(attempts, sizeof(attempts), "%lld", (long long)conf.attempts);
	(void)snprintf(window, sizeof(window), "%lld", (long long)conf.window_us);
	res = pr_call_query(call, sql_user_login_begin, 3, params);
	if (!res)
		return 1;
	known = PQntuples(res) == 1;
	good = password_is(pr_call_text(call, "password"), known ? PQgetvalue(res, 0, 1) : NULL);
	if (good)
		pr_call_set(call, LOGIN_WHO, PQgetvalue(res, 0, 0));
	PQclear(res);
	if (!good)
		return pr_call_problem(call, 401, "wrong-credentials", "the email or the password is wrong");
	if (pr_keys_current(keys, kid) < 0)
		return pr_call_unauthorized(call, PR_TOKEN_NO_KEYS);
	pr_call_set(call, LOGIN_KID, kid);
	set_number(call, LOGIN_LIFE, conf.life_us);
	return 0;
}

/* What is remembered for an Idempotency-Key is the claims: signed again they give the same token, and no
 * token is stored. */
static void login_after(struct pr_call *call)
{
	cJSON *answer = cJSON_Parse(call->answer);
	char *claims = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(answer, "claims"));
	const char *kid = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "kid"));
	const char *expires = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "expires_at"));
	char *token = claims ? pr_keys_sign(keys, kid, claims) : NULL;

	free(call->answer);
	call->answer =
		token ? pr_asprintf(
				"{\"access_token\":\"%s\",\"token_type\":\"Bearer\",\"expires_at\":\"%s\"}",
				token, expires)
		      : NULL;
	if (!token)
		(void)pr_call_unauthorized(call, PR_TOKEN_NO_KEYS);
	free(token);
	cJSON_free(claims);
	cJSON_Delete(answer);
}

/* ---- POST /tokens/verify ---- */

static const struct pr_field verify_fields[] = {
	{ "token", PR_TEXT, .min = 1, .max = 8192 },
	{ 0 },
};

static int verify(struct pr_call *call)
{
	const char *token = call->param[0];
	struct pr_claims claims;
	enum pr_token_verdict verdict = pr_tokens_verify(tokens, token, strlen(token), 0, &claims);
	char at[32];

	if (verdict == PR_TOKEN_NO_KEYS)
		return pr_call_unauthorized(call, verdict);
	if (verdict != PR_TOKEN_OK)
		return pr_call_answer(
			call, 200, pr_asprintf("{\"valid\":false,\"reason\":\"%s\"}", pr_token_why(verdict)));
	return pr_call_answer(call, 200,
		pr_asprintf("{\"valid\":true,\"user_id\":\"%s\",\"expires_at\":\"%s\"}", claims.sub,
			pr_rfc3339(claims.expires * PR_SEC, at)));
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
	{ "POST", "/users", create_fields, "\"user\".create($1, $2, $3)", .status = 201,
		.location = "/users/{user_id}", .flags = PR_HEAVY, .before = create_before },
	{ "GET", "/users/{id}", show_fields, "\"user\".show($1::uuid, $2::uuid)", .auth = PR_USER },
	{ "POST", "/login", login_fields,
		"\"user\".login($3::uuid, $4, $5::bigint * interval '1 microsecond')", .flags = PR_HEAVY,
		.before = login_before, .after = login_after },
	{ "POST", "/tokens/verify", verify_fields, .flags = PR_PLAIN, .before = verify },
	{ "GET", "/.well-known/jwks.json", .flags = PR_PLAIN, .before = jwks },
	{ 0 },
};

/* ---- the program ---- */

static int begin(struct pr_service_run *run, struct pr_err *err)
{
	struct pr_tokens_opts opts = { .issuer = PR_USER_ISSUER, .audience = PR_USER_AUDIENCE };

	if (password_init(conf.password_ops, conf.password_bytes, err) < 0 ||
		pr_tokens_new(&opts, &tokens, err) < 0)
		return -1;
	keys = pr_keys_new(conf.rotate_us, conf.ahead_us, conf.life_us);
	pr_service_tokens(run, tokens);
	return 0;
}

/* A new key must be seen by all processes before it signs. */
static int64_t pause_us(void)
{
	int64_t us = conf.ahead_us / 4;

	return us < 10 * PR_SEC ? us : 10 * PR_SEC;
}

static int tick(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err)
{
	char *set;
	int rc;

	(void)run;
	if (refreshed_us && pr_mono_us() - refreshed_us < pause_us())
		return 0;
	if (pr_keys_refresh(keys, pg, err) < 0 ||
		pr_pg_run(pg, "SELECT \"user\".forget_attempts()", 0, NULL, err) < 0)
		return -1;
	set = pr_keys_jwks(keys);
	rc = set ? pr_tokens_adopt(tokens, set, strlen(set), err) : 0;
	free(set);
	refreshed_us = pr_mono_us();
	return rc;
}

static void end(struct pr_service_run *run)
{
	(void)run;
	pr_tokens_free(tokens);
	pr_keys_free(keys);
}

/* A set of keys has 16 at most, and a verifier must find all that signed a token still good. */
static int validate(const void *target, const struct pr_conf *loaded, struct pr_err *err)
{
	const struct user_conf *c = target;

	if (c->ahead_us > c->rotate_us)
		return pr_conf_fail(
			loaded, "jwt.ahead", err, "longer than jwt.rotate: no key would ever sign");
	if (c->life_us + c->ahead_us > 10 * c->rotate_us)
		return pr_conf_fail(
			loaded, "jwt.life", err, "longer than ten times jwt.rotate: too many keys at a time");
	return 0;
}

static const char *const schema[] = { sql_user_schema, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "user",
		.program = "postrider-user",
		.does = "accounts, logins and tokens of the example",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_user_openapi,
		.validate = validate,
		.begin = begin,
		.tick = tick,
		.end = end };

	return pr_service_main(&service, argc, argv);
}
