/* cli/target.c -- which database, which broker, which relay or group a verb speaks to: the
 * option, then the file of -c (a relay's or a consumer's), then the environment, then libpq's
 * own defaults. Refuses a database without our schema, with the command that makes one. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/migrate.h"
#include "lib/prog.h"
#include "lib/rights.h"

#include <stdlib.h>
#include <string.h>

#define DEFAULT_URL "http://127.0.0.1:9470"

static char login[140] = "the login"; /* of the last connection, as SQL takes it */

/* Not every verb has every option; one it does not have was not given. */
const char *cli_option(const struct cli *c, const char *name)
{
	for (const struct cli_opt *o = c->verb->opts; o->name; o++)
		if (strcmp(o->name, name) == 0)
			return cli_str(c, name);
	return NULL;
}

int cli_given(const struct cli *c, const char *name)
{
	for (const struct cli_opt *o = c->verb->opts; o->name; o++)
		if (strcmp(o->name, name) == 0)
			return cli_has(c, name);
	return 0;
}

static const char *env(const char *name)
{
	const char *s = getenv(name);

	return s && *s ? s : NULL;
}

/* Only what a verb uses is looked up (follow): a file may name secrets that its reader has no need of. */
static int load(struct cli *c, const char *file, const char *const *set, size_t n, struct pr_err *err)
{
	struct pr_err other;

	if (c->verb->consumer || pr_prog_whose(file, pr_relay_options, &other) < 0) {
		if (pr_conf_load_unread(
			    file, pr_consumer_options, &c->consumer, set, n, &c->consumer_loaded, err) < 0) {
			(void)pr_prog_whose(file, pr_consumer_options, err);
			return -1;
		}
		return pr_consumer_conf_validate(&c->consumer, c->consumer_loaded, err);
	}
	if (pr_conf_load_unread(file, pr_relay_options, &c->conf, set, n, &c->loaded, err) < 0)
		return -1;
	return pr_relay_conf_validate(&c->conf, c->loaded, err);
}

/* What the reference at a path of the relay's file, or of the consumer's, names takes its place. */
static int follow(struct cli *c, const char *of_relay, const char *of_consumer, struct pr_err *err)
{
	if (c->loaded)
		return pr_conf_follow(c->loaded, pr_relay_options, &c->conf, of_relay, err);
	if (c->consumer_loaded)
		return pr_conf_follow(
			c->consumer_loaded, pr_consumer_options, &c->consumer, of_consumer, err);
	return 0;
}

int cli_target(struct cli *c, struct pr_err *err)
{
	const char *file = cli_option(c, "config"), **set;
	int n = 0, rc;

	if (!file) {
		if (cli_option(c, "set"))
			return cli_usage(err, "--set changes the file of -c: give one");
		return 0;
	}
	set = pr_calloc((size_t)c->nvalues + 1, sizeof(*set));
	while ((set[n] = cli_nth(c, "set", n)))
		n++;
	rc = load(c, file, set, (size_t)n, err);
	free(set);
	return rc;
}

const char *cli_conninfo(const struct cli *c)
{
	const char *s = cli_option(c, "conninfo");

	if (s)
		return s;
	if (c->loaded && c->conf.source.conninfo)
		return c->conf.source.conninfo;
	if (c->consumer_loaded && c->consumer.database.conninfo)
		return c->consumer.database.conninfo;
	s = env("POSTRIDER_CONNINFO");
	return s ? s : "";
}

static const char *tls_file(const struct cli *c, const char *option, const char *name)
{
	const char *s = c ? cli_option(c, option) : NULL;

	return s ? s : env(name);
}

void cli_tls(CURL *curl, const struct cli *c, const struct cli_tls *tls)
{
	const char *ca = tls && tls->ca ? tls->ca : tls_file(c, "tls-ca", "POSTRIDER_TLS_CA");
	const char *cert = tls && tls->cert ? tls->cert : tls_file(c, "tls-cert", "POSTRIDER_TLS_CERT");
	const char *key = tls && tls->key ? tls->key : tls_file(c, "tls-key", "POSTRIDER_TLS_KEY");

	if (ca)
		(void)curl_easy_setopt(curl, CURLOPT_CAINFO, ca);
	if (cert)
		(void)curl_easy_setopt(curl, CURLOPT_SSLCERT, cert);
	if (key)
		(void)curl_easy_setopt(curl, CURLOPT_SSLKEY, key);
}

/* Whether anybody said which database is meant. */
int cli_conninfo_given(const struct cli *c)
{
	return *cli_conninfo(c) || env("PGHOST") || env("PGDATABASE") || env("PGSERVICE");
}

const char *cli_brokers(const struct cli *c)
{
	const char *s = cli_option(c, "brokers");

	if (s)
		return s;
	if (c->consumer_loaded)
		return c->consumer.kafka.brokers;
	return c->loaded ? c->conf.kafka.brokers : env("POSTRIDER_BROKERS");
}

const struct pr_strs *cli_properties(const struct cli *c)
{
	if (c->consumer_loaded)
		return &c->consumer.kafka.properties;
	return c->loaded ? &c->conf.kafka.properties : NULL;
}

rd_kafka_t *cli_kafka(
	struct cli *c, rd_kafka_type_t type, const struct pr_kafka_prop *ours, struct pr_err *err)
{
	if (follow(c, "kafka.properties", "kafka.properties", err) < 0)
		return NULL;
	return pr_kafka_new(type, cli_brokers(c), cli_properties(c), ours, NULL, NULL, err);
}

int cli_token(struct cli *c, const char **ret, struct pr_err *err)
{
	if (follow(c, "http.token", "http.token", err) < 0)
		return -1;
	*ret = c->loaded ? c->conf.http.token : c->consumer_loaded ? c->consumer.http.token : NULL;
	if (!*ret || !**ret)
		*ret = env("POSTRIDER_TOKEN");
	return 0;
}

const char *cli_group(const struct cli *c)
{
	const char *s = cli_option(c, "group");

	if (s)
		return s;
	return c->consumer_loaded ? c->consumer.group : NULL;
}

const char *cli_name(const struct cli *c)
{
	const char *s = cli_option(c, "name");

	if (s)
		return s;
	return c->loaded ? c->conf.name : NULL; /* a consumer's config has no outbox */
}

int cli_need_kafka(const struct cli *c, struct pr_err *err)
{
	if (cli_brokers(c) && cli_name(c))
		return 0;
	(void)cli_usage(err, "which relay? give -c relay.cfg, or --brokers and --name");
	return c->consumer_loaded ? pr_hint(err, "%s is a consumer's file", cli_option(c, "config")) : -1;
}

int64_t cli_timeout(const struct cli *c)
{
	return cli_int(c, "timeout", 10 * PR_SEC);
}

/* "*:9470" and "0.0.0.0:9470" listen everywhere: here is somewhere. */
char *cli_url_at(const char *scheme, const char *listen, int port)
{
	const char *colon = strrchr(listen, ':');
	int n = colon ? (int)(colon - listen) : 0;

	if (n == 0 || strncmp(listen, "*:", 2) == 0 || strncmp(listen, "0.0.0.0:", 8) == 0 ||
		strncmp(listen, "[::]:", 5) == 0)
		return pr_asprintf("%s://127.0.0.1:%d", scheme, port);
	return pr_asprintf("%s://%.*s:%d", scheme, n, listen, port);
}

static char *url_of_listen(const char *listen, const struct pr_http_tls *tls)
{
	const char *port = strrchr(listen, ':');

	return port ? cli_url_at(tls->cert ? "https" : "http", listen, atoi(port + 1))
		    : pr_strdup(DEFAULT_URL);
}

char *cli_url(const struct cli *c)
{
	const char *s = cli_option(c, "url");
	char *url;

	if (!s && c->loaded && c->conf.http.listen)
		return url_of_listen(c->conf.http.listen, &c->conf.http.tls);
	if (!s && c->consumer_loaded && c->consumer.http.listen)
		return url_of_listen(c->consumer.http.listen, &c->consumer.http.tls);
	if (!s)
		s = env("POSTRIDER_URL");
	url = pr_strdup(s ? s : DEFAULT_URL);
	while (*url && url[strlen(url) - 1] == '/')
		url[strlen(url) - 1] = '\0';
	return url;
}

/* A group without one would be looked for in whatever database libpq finds. */
static int has_database(const struct cli *c, struct pr_err *err)
{
	char *topic;

	if (cli_option(c, "conninfo") || !c->consumer_loaded || c->consumer.database.conninfo)
		return 0;
	(void)pr_fail(err, PR_STOP,
		"group \"%s\" has no database: there are no tables of parked messages, dead letters, replays "
		"or"
		" orders",
		c->consumer.group);
	err->exit = PR_EX_CONFIG;
	topic = pr_consumer_dead_topic(&c->consumer, c->consumer.kafka.topics.v[0]);
	(void)pr_hint(err, "its dead letters are in Kafka: postrider dlq list --from-topic %s", topic);
	free(topic);
	return -1;
}

int cli_connect(struct cli *c, struct pr_pg **ret, struct pr_err *err)
{
	struct pr_pg_opts opts = {
		.appname = "postrider",
		.timeout_us = cli_timeout(c),
		.wake_fd = -1,
	};
	const char *user;

	if (has_database(c, err) < 0)
		return -1;
	if (!cli_option(c, "conninfo") && follow(c, "source.conninfo", "database.conninfo", err) < 0)
		return -1;
	opts.conninfo = cli_conninfo(c);
	if (pr_pg_open(&opts, ret, err) < 0)
		return -1;
	user = PQuser(pr_pg_conn(*ret));
	(void)pr_quote_ident(user, strlen(user), login, sizeof(login));
	return 0;
}

const char *cli_login(void)
{
	return login;
}

int cli_connect_outbox(struct cli *c, struct pr_pg **ret, struct pr_err *err)
{
	if (cli_connect(c, ret, err) < 0)
		return -1;
	if (pr_schema_check(*ret, err) == 0)
		return 0;
	pr_pg_close(*ret);
	*ret = NULL;
	return -1;
}

int cli_need(struct pr_pg *pg, const char *table, const char *what, const char *kind, const char *file,
	struct pr_err *err)
{
	PGresult *res = pr_pg_exec(
		pg, "SELECT pg_catalog.to_regclass($1) IS NOT NULL", 1, (const char *const[]){ table }, err);
	int there;

	if (!res)
		return -1;
	there = *PQgetvalue(res, 0, 0) == 't';
	PQclear(res);
	if (there)
		return 0;
	(void)pr_fail(
		err, PR_REJECT, "this database has no %s: no consumer of kind %s has run on it", what, kind);
	err->exit = PR_EX_NOT_FOUND;
	return pr_hint(err, "name its file or its database: -c %s", file);
}

const char *cli_cell(const PGresult *res, int row, int col)
{
	return PQgetisnull(res, row, col) ? NULL : PQgetvalue(res, row, col);
}

int64_t cli_cell_int(const PGresult *res, int row, int col)
{
	return PQgetisnull(res, row, col) ? 0 : strtoll(PQgetvalue(res, row, col), NULL, 10);
}

char *cli_cell_bytes(const PGresult *res, int row, int col, size_t *ret_len)
{
	const char *hex = cli_cell(res, row, col);
	unsigned char *raw = hex ? PQunescapeBytea((const unsigned char *)hex, ret_len) : NULL;
	char *copy = NULL;

	if (raw) {
		copy = pr_malloc(*ret_len + 1);
		memcpy(copy, raw, *ret_len);
		copy[*ret_len] = '\0';
		PQfreemem(raw);
	}
	return copy;
}

int cli_confirmed(const struct cli *c, struct pr_err *err, const char *fmt, ...)
{
	char what[400];
	va_list ap;

	if (cli_has(c, "yes"))
		return 0;
	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	(void)pr_fail(err, PR_REJECT, "nothing was done: this would %s", what);
	err->exit = PR_EX_REFUSED;
	return pr_hint(err, "--yes does it, --dry-run only shows it");
}
