/* cli/target.c -- which database, which broker and which relay a verb speaks to:
 * the option, then the file of -c, then the environment, then libpq's own defaults.
 * Refuses a database without our schema, with the command that makes one. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/migrate.h"

#include <stdlib.h>
#include <string.h>

#define DEFAULT_URL "http://127.0.0.1:9470"

/* Not every verb has every option; one it does not have was not given. */
static const char *option(const struct cli *c, const char *name)
{
	for (const struct cli_opt *o = c->verb->opts; o->name; o++)
		if (strcmp(o->name, name) == 0)
			return cli_str(c, name);
	return NULL;
}

static const char *env(const char *name)
{
	const char *s = getenv(name);

	return s && *s ? s : NULL;
}

int cli_target(struct cli *c, struct pr_err *err)
{
	const char *file = option(c, "config"), **set;
	int n = 0, rc;

	if (!file) {
		if (option(c, "set"))
			return cli_usage(err, "--set changes the file of -c: give one");
		return 0;
	}
	set = pr_calloc((size_t)c->nvalues + 1, sizeof(*set));
	while ((set[n] = cli_nth(c, "set", n)))
		n++;
	if (c->verb->consumer)
		rc = pr_conf_load(file, pr_consumer_options, &c->consumer, set, (size_t)n, &c->loaded, err);
	else
		rc = pr_conf_load(file, pr_relay_options, &c->conf, set, (size_t)n, &c->loaded, err);
	free(set);
	if (rc < 0)
		return -1;
	return c->verb->consumer ? pr_consumer_conf_validate(&c->consumer, c->loaded, err)
				 : pr_relay_conf_validate(&c->conf, c->loaded, err);
}

const char *cli_conninfo(const struct cli *c)
{
	const char *s = option(c, "conninfo");

	if (s)
		return s;
	if (c->loaded)
		return c->verb->consumer ? c->consumer.database.conninfo : c->conf.source.conninfo;
	s = env("POSTRIDER_CONNINFO");
	return s ? s : "";
}

/* Whether anybody said which database is meant. */
int cli_conninfo_given(const struct cli *c)
{
	return *cli_conninfo(c) || env("PGHOST") || env("PGDATABASE") || env("PGSERVICE");
}

const char *cli_brokers(const struct cli *c)
{
	const char *s = option(c, "brokers");

	if (s)
		return s;
	if (!c->loaded)
		return env("POSTRIDER_BROKERS");
	return c->verb->consumer ? c->consumer.kafka.brokers : c->conf.kafka.brokers;
}

const char *cli_name(const struct cli *c)
{
	const char *s = option(c, "name");

	if (s)
		return s;
	return c->loaded ? c->conf.name : NULL; /* a consumer's config has no outbox */
}

int cli_need_kafka(const struct cli *c, struct pr_err *err)
{
	if (cli_brokers(c) && cli_name(c))
		return 0;
	return cli_usage(err, "which relay? give -c relay.cfg, or --brokers and --name");
}

int64_t cli_timeout(const struct cli *c)
{
	return cli_int(c, "timeout", 10 * PR_SEC);
}

/* "*:9470" and "0.0.0.0:9470" listen everywhere: here is somewhere. */
static char *url_of_listen(const char *listen)
{
	const char *port = strrchr(listen, ':');

	if (!port)
		return pr_strdup(DEFAULT_URL);
	if (strncmp(listen, "*:", 2) == 0 || strncmp(listen, "0.0.0.0:", 8) == 0 ||
		strncmp(listen, "[::]:", 5) == 0)
		return pr_asprintf("http://127.0.0.1%s", port);
	return pr_asprintf("http://%s", listen);
}

char *cli_url(const struct cli *c)
{
	const char *s = option(c, "url");
	char *url;

	if (!s && c->loaded)
		return url_of_listen(c->verb->consumer ? c->consumer.http.listen : c->conf.http.listen);
	if (!s)
		s = env("POSTRIDER_URL");
	url = pr_strdup(s ? s : DEFAULT_URL);
	while (*url && url[strlen(url) - 1] == '/')
		url[strlen(url) - 1] = '\0';
	return url;
}

int cli_connect(struct cli *c, struct pr_pg **ret, struct pr_err *err)
{
	const struct pr_pg_opts opts = {
		.conninfo = cli_conninfo(c),
		.appname = "postrider",
		.timeout_us = cli_timeout(c),
		.wake_fd = -1,
	};

	return pr_pg_open(&opts, ret, err);
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

const char *cli_cell(const PGresult *res, int row, int col)
{
	return PQgetisnull(res, row, col) ? NULL : PQgetvalue(res, row, col);
}

int64_t cli_cell_int(const PGresult *res, int row, int col)
{
	return PQgetisnull(res, row, col) ? 0 : strtoll(PQgetvalue(res, row, col), NULL, 10);
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
