/* cli/target.c -- which database, which broker, which relay or group a verb speaks to: the
 * option, then the file of -c (a relay's or a consumer's), then the environment, then libpq's
 * own defaults. Refuses a database without our schema, with the command that makes one. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/kafka.h"
#include "lib/migrate.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_URL "http://127.0.0.1:9470"

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

/* A consumer's file has a group, which a relay's must not have. What cannot be read is left to the parser,
 * which says why. */
static int is_consumer_file(const char *file)
{
	char text[65536];
	struct stat st;
	int fd = open(file, O_RDONLY | O_NONBLOCK | O_CLOEXEC), found = 0;
	ssize_t n =
		fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? read(fd, text, sizeof(text) - 1) : 0;

	if (fd >= 0)
		(void)close(fd);
	text[n > 0 ? n : 0] = '\0';
	for (char *line = text, *end; *line && !found; line = end + (*end == '\n')) {
		end = line + strcspn(line, "\n");
		line += strspn(line, " \t");
		found = strncmp(line, "group", 5) == 0 && strchr("=: \t", line[5]) && line < end;
	}
	return found;
}

static int load(struct cli *c, const char *file, const char *const *set, size_t n, struct pr_err *err)
{
	if (c->verb->consumer || is_consumer_file(file)) {
		if (pr_conf_load(file, pr_consumer_options, &c->consumer, set, n, &c->consumer_loaded, err) <
			0)
			return -1;
		return pr_consumer_conf_validate(&c->consumer, c->consumer_loaded, err);
	}
	if (pr_conf_load(file, pr_relay_options, &c->conf, set, n, &c->loaded, err) < 0)
		return -1;
	return pr_relay_conf_validate(&c->conf, c->loaded, err);
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
	const char *s = cli_option(c, "url");
	char *url;

	if (!s && c->loaded && c->conf.http.listen)
		return url_of_listen(c->conf.http.listen);
	if (!s && c->consumer_loaded && c->consumer.http.listen)
		return url_of_listen(c->consumer.http.listen);
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
