/* producers/concert/postrider_concert_main.c -- postrider-concert: shows concerts, schedules and seats. It
 * only reads: what becomes of a seat is decided in schema.sql, by the consumer of group concert. Answers are
 * kept in Redis (cache.h); without it they come from Postgres. Refuses to answer what it cannot know: with
 * Postgres away it says so. */
#include "producers/concert/cache.h"
#include "producers/concert/page.h"

#include "lib/clock.h"
#include "lib/service.h"
#include "sql.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char *malloc_conf;
const char *malloc_conf = "narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

struct concert_conf {
	struct pr_service_conf service;
	struct page_conf page;
	char *redis, *password, *prefix;
	int64_t redis_timeout_us, life_us, popular_life_us;
	int64_t window_us, keep_us;
};

static struct concert_conf conf;
static int64_t forgot_us;

#define AT(field) offsetof(struct concert_conf, field)
#define DAY       (86400 * PR_SEC)

static const struct pr_opt options[] = {
	PR_SERVICE_OPTIONS(struct concert_conf, service, "concert", "8082"),
	{ "redis.address", PR_OPT_STR, AT(redis), "127.0.0.1:6379", .flags = PR_OPT_NO_RELOAD,
		.doc = "Where Redis listens, which keeps answers: host:port, or the path of its socket. "
		       "none: "
		       "every answer comes from Postgres." },
	{ "redis.password", PR_OPT_SECRET, AT(password), .flags = PR_OPT_NO_RELOAD,
		.example = "env:REDIS_PASSWORD", .doc = "Password of Redis, when it asks for one." },
	{ "redis.timeout", PR_OPT_DURATION, AT(redis_timeout_us), "100ms", .min = PR_MS, .max = 10 * PR_SEC,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Deadline of connecting to Redis and of each call. The first one missed switches the "
		       "cache off until Redis answers again." },
	{ "cache.prefix", PR_OPT_STR, AT(prefix), "concert", .flags = PR_OPT_NO_RELOAD,
		.doc = "Begins every key in Redis. The same for all instances on one database, another for "
		       "another database." },
	{ "cache.life", PR_OPT_DURATION, AT(life_us), "1m", .min = PR_SEC, .max = DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long an answer is kept when nothing changes. What changes is taken out at "
		       "once." },
	{ "popular.window", PR_OPT_DURATION, AT(window_us), "1d", .min = 3600 * PR_SEC, .max = 90 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "Popular is what had most seats reserved within this time; it begins with a whole "
		       "hour." },
	{ "popular.life", PR_OPT_DURATION, AT(popular_life_us), "5s", .min = PR_SEC, .max = DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How old the list of popular concerts may be: it is kept so long whatever changes." },
	{ "ignored.keep", PR_OPT_DURATION, AT(keep_us), "30d", .min = PR_SEC, .max = 3650 * DAY,
		.flags = PR_OPT_NO_RELOAD,
		.doc = "How long is kept which messages about seats were ignored, and why." },
	PAGE_OPTIONS(struct concert_conf, page),
	{ 0 },
};

/* ---- parameters ---- */

#define PAGE(def_max)                                                                                        \
	{ "limit", PR_INT, PR_OPTIONAL | PR_IN_QUERY, .min = 1, .max = def_max },                            \
	{                                                                                                    \
		"after", PR_ID, .flags = PR_OPTIONAL | PR_IN_QUERY                                           \
	}
#define ID                                                                                                   \
	{                                                                                                    \
		"id", PR_ID, .flags = PR_IN_PATH                                                             \
	}

static const struct pr_field list_fields[] = { PAGE(200), { 0 } };
static const struct pr_field popular_fields[] = {
	{ "limit", PR_INT, PR_OPTIONAL | PR_IN_QUERY, .min = 1, .max = 100 },
	{ "window", .type = PR_FROM_HOOK },
	{ 0 },
};
static const struct pr_field show_fields[] = { ID, { 0 } };
static const struct pr_field schedules_fields[] = { ID, PAGE(200), { 0 } };
static const struct pr_field seats_fields[] = {
	ID,
	PAGE(1000),
	{ "state", PR_TEXT, PR_OPTIONAL | PR_IN_QUERY, .choices = "available|held|reserved" },
	{ 0 },
};

/* ---- the cache around each of them ---- */

/* Between the hooks of one call, which are on one thread. */
static __thread struct cache_ticket ticket;

/* All that an answer of this scope depends on: what is asked for, and each parameter. */
static int from_cache(struct pr_call *call, const char *scope, int64_t life_us)
{
	char text[sizeof(ticket.field)];
	char *answer;
	int n = snprintf(text, sizeof(text), "%s", strrchr(call->endpoint->path, '/'));

	for (int i = 0; call->endpoint->fields[i].name; i++)
		n += snprintf(
			text + n, sizeof(text) - (size_t)n, " %s", call->param[i] ? call->param[i] : "-");
	answer = cache_get(scope, text, life_us, &ticket);
	return answer ? pr_call_answer(call, 200, answer) : 0;
}

/* One concert's or one schedule's own. */
static int from_scope_of(struct pr_call *call, const char *kind)
{
	char scope[sizeof(ticket.scope)];

	(void)snprintf(scope, sizeof(scope), "%s:%s", kind, call->param[0]);
	return from_cache(call, scope, conf.life_us);
}

static int list_before(struct pr_call *call)
{
	return from_cache(call, "list", conf.life_us);
}

static int popular_before(struct pr_call *call)
{
	char window[24];

	(void)snprintf(window, sizeof(window), "%lld", (long long)conf.window_us);
	pr_call_set(call, 1, window);
	return from_cache(call, "popular", conf.popular_life_us);
}

static int concert_before(struct pr_call *call)
{
	return from_scope_of(call, "c");
}

static int seats_before(struct pr_call *call)
{
	return from_scope_of(call, "s");
}

static void to_cache(struct pr_call *call)
{
	cache_put(&ticket, call->answer);
}

static const struct pr_endpoint endpoints[] = {
	PAGE_ENDPOINTS,
	{ "GET", "/concerts", list_fields, "concert.list(coalesce($1::int, 50), $2::bigint)",
		.before = list_before, .after = to_cache },
	{ "GET", "/concerts/popular", popular_fields,
		"concert.popular(coalesce($1::int, 10), $2::bigint * interval '1 microsecond')",
		.before = popular_before, .after = to_cache },
	{ "GET", "/concerts/{id}", show_fields, "concert.show($1::bigint)", .before = concert_before,
		.after = to_cache },
	{ "GET", "/concerts/{id}/schedules", schedules_fields,
		"concert.schedules($1::bigint, coalesce($2::int, 50), $3::bigint)", .before = concert_before,
		.after = to_cache },
	{ "GET", "/schedules/{id}/seats", seats_fields,
		"concert.seats($1::bigint, upper($4), coalesce($2::int, 1000), $3::bigint)",
		.before = seats_before, .after = to_cache },
	{ 0 },
};

/* ---- the program ---- */

static int begin(struct pr_service_run *run, struct pr_err *err)
{
	const struct cache_opts opts = { .address = conf.redis,
		.password = conf.password,
		.prefix = conf.prefix,
		.timeout_us = conf.redis_timeout_us,
		.conninfo = conf.service.conninfo,
		.appname = "postrider-concert cache" };

	if (page_begin(&conf.page, err) < 0)
		return -1;
	return cache_start(&opts, pr_service_metrics(run), err);
}

static int tick(struct pr_service_run *run, struct pr_pg *pg, struct pr_err *err)
{
	char keep[24];
	const char *const params[] = { keep };

	(void)run;
	if (forgot_us && pr_mono_us() - forgot_us < 60 * PR_SEC)
		return 0;
	(void)snprintf(keep, sizeof(keep), "%lld", (long long)conf.keep_us);
	if (pr_pg_run(pg, "SELECT concert.forget($1::bigint * interval '1 microsecond')", 1, params, err) < 0)
		return -1;
	forgot_us = pr_mono_us();
	return 0;
}

static void end(struct pr_service_run *run)
{
	(void)run;
	cache_stop();
	page_end();
}

static int validate(const void *target, const struct pr_conf *loaded, struct pr_err *err)
{
	const struct concert_conf *c = target;

	if (!*c->redis)
		return pr_conf_fail(loaded, "redis.address", err, "empty: none is the word for no cache");
	if (!*c->prefix || strlen(c->prefix) > 100)
		return pr_conf_fail(loaded, "cache.prefix", err, "must have 1 to 100 bytes");
	return 0;
}

static const char *const schema[] = { sql_concert_schema, NULL };

int main(int argc, char **argv)
{
	const struct pr_service service = { .name = "concert",
		.program = "postrider-concert",
		.does = "concerts, schedules and seats of the example",
		.options = options,
		.target = &conf,
		.target_size = sizeof(conf),
		.conf = &conf.service,
		.endpoints = endpoints,
		.schema = schema,
		.openapi = json_concert_openapi,
		.validate = validate,
		.begin = begin,
		.tick = tick,
		.end = end };

	return pr_service_main(&service, argc, argv);
}
