/* lib/service.h -- what the example services share: a use case is a row of a table and a function in SQL.
 *
 *	static const struct pr_field create[] = {
 *		{ "caller", .type = PR_FROM_CALLER },            // $1: who asks
 *		{ "sku", PR_TEXT, .min = 1, .max = 40 },         // $2: a member of the body
 *		{ "quantity", PR_INT, .min = 1, .max = 1000 },   // $3
 *		{ 0 },
 *	};
 *	static const struct pr_endpoint endpoints[] = {
 *		{ "POST", "/orders", create, "orders.create($1::uuid, $2, $3::int)",
 *			.auth = PR_USER, .status = 201, .location = "/orders/{order_id}" },
 *		{ 0 },
 *	};
 *
 * The function does the whole use case in one transaction, outbox.publish among it, and returns jsonb: the
 * answer. NULL answers 404. It refuses by service.refuse(409, 'seat-taken', 'seat A-7 is held'), which undoes
 * everything; service.await(...) is the same for what may be true in a moment: the call is repeated for a
 * while (http.patience) before it is refused. The skeleton parses and bounds what comes in (400, 413, 415,
 *422 with the member's name), asks for the token (401), keeps Idempotency-Key in the same transaction, calls
 *in one round trip, and turns whatever fails into application/problem+json: 503 with Retry-After for what may
 *work later. Parameters are text, in the order of the fields: cast them in the expression.
 *
 * A traceparent of the request is the transaction's (outbox.traceparent), so that what is published carries
 *it on; of many it stands in service.traces(). A malformed one is none.
 *
 * A refusal (any problem) is not remembered for an Idempotency-Key: the same request may succeed later.
 *
 * An endpoint with `many` answers the requests that wait at the same time by one call and one commit. It is
 *an expression that returns rows (n, answer, code, detail, hint); its parameters are those of sql as text[],
 *a value of each request, n from 1 says which. code NULL: it is done and this is its answer; else nothing was
 * done for it, and it is refused as service.refuse(409, ...) would ('PT409') or asked again as service.await
 * says ('PA409'), by sql. So are all of them, each by itself, when the call fails as a whole.
 *
 * pr_service_main is the program: it alone in lib/ logs, as a *_main.c does. */
#ifndef PR_SERVICE_H
#define PR_SERVICE_H

#include "lib/conf.h"
#include "lib/http.h"
#include "lib/metrics.h"
#include "lib/pg.h"
#include "lib/service_token.h"

#include <stddef.h>
#include <stdint.h>

struct cJSON;

/* Of users' tokens. */
#define PR_USER_ISSUER   "postrider-user"
#define PR_USER_AUDIENCE "postrider"

/* ---------------------------------------------------------------- configuration */

struct pr_service_conf {
	char *conninfo;
	int64_t timeout_us;
	int install;
	char *listen;
	struct pr_strs origins;
	int64_t threads, workers, connections, body_bytes, http_timeout_us, heavy, batch;
	int64_t patience_us;
	int64_t keep_keys_us;
	char *jwks;
	char *log_level;
	int64_t drain_us;
};

/* The options that every service has, for its table; field: its struct pr_service_conf in type. */
#define PR_SERVICE_OPTIONS(type, field, db, port) PR_SERVICE_OPTIONS_BODY(type, field, db, port, "64kB")

/* The same for one whose bodies are larger. */
#define PR_SERVICE_OPTIONS_BODY(type, field, db, port, body)                                                 \
	{ "database.conninfo", PR_OPT_CONNINFO, offsetof(type, field.conninfo),                              \
		.flags = PR_OPT_REQUIRED | PR_OPT_NO_RELOAD, .example = "host=127.0.0.1 dbname=" db,         \
		.doc = "The service's own database, as libpq takes it; PG* variables, ~/.pgpass and "        \
		       "service files work." },                                                              \
		{ "database.timeout", PR_OPT_DURATION, offsetof(type, field.timeout_us), "5s",               \
			.min = 100000, .max = 600000000, .flags = PR_OPT_NO_RELOAD,                          \
			.doc = "Deadline of connecting to Postgres and of each statement; what takes "       \
			       "longer is answered with 503." },                                             \
		{ "database.install", PR_OPT_BOOL, offsetof(type, field.install), "true",                    \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Whether the start brings the schemas (outbox, inbox, saga, service and the " \
			       "service's own) to what this program knows. When false they must be "         \
			       "there." },                                                                   \
		{ "http.listen", PR_OPT_STR, offsetof(type, field.listen), "127.0.0.1:" port,                \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Address and port of the API: 127.0.0.1:" port ", [::1]:" port " or *:" port  \
			       "; port 0 takes a free one. Put a proxy with TLS before it elsewhere." },     \
		{ "http.origins", PR_OPT_STRS, offsetof(type, field.origins), "http://127.0.0.1:8082",       \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Origins of pages that may use this API from a browser (CORS): where the "    \
			       "box office is." },                                                           \
		{ "http.threads", PR_OPT_INT, offsetof(type, field.threads), "1", .min = 1, .max = 64,       \
			.flags = PR_OPT_NO_RELOAD, .doc = "Threads that serve connections." },               \
		{ "http.workers", PR_OPT_INT, offsetof(type, field.workers), "8", .min = 1, .max = 256,      \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Requests at work at a time, each with its own session in Postgres." },       \
		{ "http.heavy", PR_OPT_INT, offsetof(type, field.heavy), "2", .min = 1, .max = 256,          \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Of these, how many may do what is dear (a password's hash) at a time." },    \
		{ "http.connections", PR_OPT_INT, offsetof(type, field.connections), "1024", .min = 8,       \
			.max = 60000, .flags = PR_OPT_NO_RELOAD, .doc = "Most connections at a time." },     \
		{ "http.body_bytes", PR_OPT_SIZE, offsetof(type, field.body_bytes), body, .min = 1024,       \
			.max = 16777216, .flags = PR_OPT_NO_RELOAD,                                          \
			.doc = "Most bytes of a request's body." },                                          \
		{ "http.timeout", PR_OPT_DURATION, offsetof(type, field.http_timeout_us), "5s",              \
			.min = 1000000, .max = 300000000, .flags = PR_OPT_NO_RELOAD,                         \
			.doc = "How long a client may be silent, and a request wait for its turn." },        \
		{ "http.patience", PR_OPT_DURATION, offsetof(type, field.patience_us), "1s",                 \
			.max = 30000000, .flags = PR_OPT_NO_RELOAD,                                          \
			.doc = "How long a request waits for what the service has not heard of yet but may " \
			       "hear of at any moment (service.await), before it is refused; half of the "   \
			       "workers at most wait so. 0: none does." },                                   \
		{ "idempotency.keep", PR_OPT_DURATION, offsetof(type, field.keep_keys_us), "1d",             \
			.min = 1000000, .max = 2592000000000, .flags = PR_OPT_NO_RELOAD,                     \
			.doc = "How long the answer to a request with Idempotency-Key is kept." },           \
		{ "log.level", PR_OPT_STR, offsetof(type, field.log_level), "info",                          \
			.doc = "Least level of log lines: debug, info, warn or error." },                    \
	{                                                                                                    \
		"shutdown.drain", PR_OPT_DURATION, offsetof(type, field.drain_us), "10s",                    \
			.max = 3600000000,                                                                   \
			.doc = "How long SIGTERM and SIGINT wait for the requests at work."                  \
	}

/* Of a service that has PR_USER endpoints and no keys of its own for them. */
#define PR_SERVICE_JWKS(type, field)                                                                         \
	{                                                                                                    \
		"jwt.jwks", PR_OPT_STR, offsetof(type, field.jwks),                                          \
			"http://127.0.0.1:8081/.well-known/jwks.json",                                       \
			.flags = PR_OPT_NO_RELOAD,                                                           \
			.doc = "Where the user service publishes the keys of its tokens."                    \
	}

/* Of a service that has endpoints with many. */
#define PR_SERVICE_BATCH(type, field)                                                                        \
	{                                                                                                    \
		"batch.most", PR_OPT_INT, offsetof(type, field.batch), "64",                                 \
			.min = 1, .max = 250, .flags = PR_OPT_NO_RELOAD,                                     \
			.doc = "Most requests that one transaction answers, of those that may be "           \
			       "answered together and wait at the same time. 1: each has its own."           \
	}

/* ---------------------------------------------------------------- a use case */

enum pr_field_type {
	PR_TEXT = 1, /* min..max characters; choices: one of "A|B|C" */
	PR_INT,      /* min..max; both 0: 0 .. 2^53 */
	PR_BOOL,
	PR_UUID,  /* a string */
	PR_ID,    /* an identity column's number as a string: "17" */
	PR_UUIDS, /* a list of min..max of them, no two the same; the parameter is an array's text: cast
		     $n::uuid[] */
	PR_IDS,
	PR_ITEMS, /* a list of min..max objects with the fields of sub; the parameter is its JSON text */
	PR_FROM_CALLER, /* who asks: the token's sub */
	PR_FROM_HOOK,   /* nothing comes from the request: pr_call_set gives it */
};

enum {                   /* flags of a field */
	PR_OPTIONAL = 1, /* missing or null: the parameter is NULL */
	PR_IN_PATH = 2,  /* the {name} of the endpoint's path; what is not of the type is 404 */
	PR_IN_QUERY = 4,
	PR_SECRET = 8, /* never sent to Postgres: the parameter is NULL unless pr_call_set gives another */
	PR_LONG = 16,  /* a secret that nobody can guess (a token): any sum of it keeps it */
};

#define PR_FIELDS_MAX 15

struct pr_field {
	const char *name; /* NULL ends a list */
	enum pr_field_type type;
	int flags;
	int64_t min, max;
	const char *choices;
	const struct pr_field *sub;
};

enum pr_auth {
	PR_OPEN, /* nobody need say who he is */
	PR_USER, /* a user's bearer token */
};

struct pr_call;

enum {                /* flags of an endpoint */
	PR_HEAVY = 1, /* dear: at most http.heavy of these at a time */
	PR_PLAIN = 2, /* on the server's own thread: no database, never waits; before only */
};

struct pr_endpoint {
	const char *method, *path; /* "GET", "/concerts/{id}/schedules"; method NULL ends a table */
	const struct pr_field *fields;
	const char *sql;  /* an expression that is jsonb, see above; NULL: before answers */
	const char *many; /* beside sql: the same for many at once, see above; NULL: each has its own call */
	enum pr_auth auth;
	int status;           /* of a good answer; 0: 200 */
	const char *location; /* "/orders/{order_id}": the answer's member */
	int flags;
	/* After the request was found good, before the SQL: 0 goes on, 1: *call has its answer. */
	int (*before)(struct pr_call *call);
	/* May replace a good answer, also one that is a repetition. */
	void (*after)(struct pr_call *call);
};

struct pr_service_run; /* a running service */

struct pr_service {
	const char *name; /* "user": label of the metrics */
	const char *program, *does;
	const struct pr_opt *options;
	void *target; /* the struct of the options */
	size_t target_size;
	struct pr_service_conf *conf; /* inside target */
	const struct pr_endpoint *endpoints;
	const char *const *schema; /* texts of SQL, ended by NULL: run in this order when one has changed */
	const char *openapi;
	int (*validate)(const void *target, const struct pr_conf *conf, struct pr_err *err); /* or NULL */
	/* Each may be NULL. begin: once, before anything is served and before the database is asked. tick: on
	 * the main thread, about once a second while the database answers and once before the first request;
	 * -1 of kind PR_STOP ends the program. end: after the last request. */
	int (*begin)(struct pr_service_run *run, struct pr_err *err);
	int (*tick)(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err);
	void (*end)(struct pr_service_run *run);
	/* Who may ask: made of jwt.jwks when begin has not set another by pr_service_tokens. */
};

/* The program. Returns its exit status. */
int pr_service_main(const struct pr_service *service, int argc, char **argv);

/* For begin: these verify bearer tokens of PR_USER endpoints, instead of those of jwt.jwks; borrowed until
 * end. */
void pr_service_tokens(struct pr_service_run *run, struct pr_tokens *tokens);
struct pr_metrics *pr_service_metrics(struct pr_service_run *run);

/* ---------------------------------------------------------------- for custom C: one request */

struct pr_call {
	struct pr_service_run *run;
	const struct pr_endpoint *endpoint;
	const struct pr_request *req;
	struct pr_response *resp;
	struct pr_claims caller;         /* of PR_USER */
	const char *path[PR_FIELDS_MAX]; /* values of the path's {names}, in their order; owned */
	struct cJSON *body;              /* NULL: the endpoint has no members in the body */
	const char *param[PR_FIELDS_MAX];
	char *own[PR_FIELDS_MAX]; /* what of param is freed with the call */
	char *answer;             /* of the SQL: JSON text; owned */
	int repeated;             /* it is the answer to a former request with the same Idempotency-Key */
};

/* A field of the body as it came, secrets too: borrowed, NULL when it is none or no string. */
const char *pr_call_text(const struct pr_call *call, const char *name);
/* The value of field i as the SQL sees it; copied, NULL: null. */
void pr_call_set(struct pr_call *call, int i, const char *value);
/* Answers; return 1, so that a hook can end with them. json: taken (malloc'd). */
int pr_call_answer(struct pr_call *call, int status, char *json);
int pr_call_problem(struct pr_call *call, int status, const char *slug, const char *detail);
int pr_call_unauthorized(struct pr_call *call, enum pr_token_verdict verdict);
/* 422: what is wrong with this member. */
int pr_call_invalid(struct pr_call *call, const char *member, const char *fmt, ...) PR_PRINTF(3, 4);
/* One statement, its own transaction, on this worker's session. NULL: the call was answered. */
PGresult *pr_call_query(struct pr_call *call, const char *sql, int n, const char *const *params) PR_MUSTCHECK;
/* For a hook that does what the SQL does not undo: 1: the request's Idempotency-Key has its answer (or is
 * another request's), the SQL will do nothing; 0: none is remembered; -1: the call was answered. */
int pr_call_remembered(struct pr_call *call);
/* As pr_tokens_verify; waits for an unknown key's fetch where that holds up nobody. With resp->alone the
 * request is left for later, and has no answer: the hook returns 1. */
enum pr_token_verdict pr_call_verify(struct pr_call *call, struct pr_tokens *tokens, const char *token,
	struct pr_claims *claims) PR_MUSTCHECK;
/* The bearer token of the request, NULL: none. Borrowed. */
const char *pr_call_bearer(const struct pr_call *call);

/* The JSON text's member when it is a string; malloc'd, NULL: it has none. */
char *pr_json_string(const char *json, const char *member);

#endif
