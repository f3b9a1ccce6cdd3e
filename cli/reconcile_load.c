/* cli/reconcile_load.c -- which sinks, which outbox: the files of -c, by what they are, and a connection for
 * each. Refuses a consumer that is no sink, and two relays. */
#include "cli/reconcile.h"

#include "lib/prog.h"

#include <stdlib.h>
#include <string.h>

static int open_pg(const struct reconcile *r, const char *conninfo, struct pr_pg **ret, struct pr_err *err)
{
	struct pr_pg_opts opts = { .conninfo = conninfo,
		.appname = "postrider reconcile",
		.timeout_us = cli_timeout(r->c),
		.wake_fd = -1 };

	return pr_pg_open(&opts, ret, err);
}

static const char **overrides(const struct cli *c, size_t *ret_n)
{
	const char **set = pr_calloc((size_t)c->nvalues + 1, sizeof(*set));

	for (*ret_n = 0; (set[*ret_n] = cli_nth(c, "set", (int)*ret_n)); (*ret_n)++)
		;
	return set;
}

static int load_relay(struct reconcile *r, const char *file, struct pr_err *err)
{
	if (r->relay_loaded)
		return cli_usage(err, "%s: a second relay; one outbox is compared at a time", file);
	if (pr_conf_load_unread(file, pr_relay_options, &r->relay, NULL, 0, &r->relay_loaded, err) < 0)
		return -1;
	return pr_conf_follow(r->relay_loaded, pr_relay_options, &r->relay, "source.conninfo", err);
}

static const char *key_or(const char *set, const char *variable)
{
	const char *v = set ? set : getenv(variable);

	return v && *v ? v : NULL;
}

static int connect_store(const struct reconcile *r, struct source *s, struct pr_err *err)
{
	struct pr_s3_conf conf;

	if (pr_conf_follow(s->loaded, pr_consumer_options, &s->conf, "handler.s3.access_key", err) < 0 ||
		pr_conf_follow(s->loaded, pr_consumer_options, &s->conf, "handler.s3.secret_key", err) < 0)
		return -1;
	conf = (struct pr_s3_conf){ .endpoint = s->conf.sink.s3.endpoint,
		.bucket = s->conf.sink.s3.bucket,
		.region = s->conf.sink.s3.region,
		.access_key = key_or(s->conf.sink.s3.access_key, "AWS_ACCESS_KEY_ID"),
		.secret_key = key_or(s->conf.sink.s3.secret_key, "AWS_SECRET_ACCESS_KEY"),
		.path_style = s->conf.sink.s3.path_style,
		.timeout_us = cli_timeout(r->c) };
	if (!conf.access_key || !conf.secret_key) {
		(void)pr_fail(err, PR_REJECT, "%s: there is no key to ask the object store with", s->file);
		return pr_hint(err,
			"set handler.s3.access_key and handler.s3.secret_key, or AWS_ACCESS_KEY_ID and "
			"AWS_SECRET_ACCESS_KEY");
	}
	return pr_s3_new(&conf, &s->s3, err);
}

static int load_sink(struct reconcile *r, struct source *s, const char *file, struct pr_err *err)
{
	const char **set;
	size_t n;
	int rc;

	s->file = file;
	set = overrides(r->c, &n);
	rc = pr_conf_load_unread(file, pr_consumer_options, &s->conf, set, n, &s->loaded, err);
	free(set);
	if (rc < 0 || pr_consumer_conf_validate(&s->conf, s->loaded, err) < 0)
		return -1;
	if (s->conf.handler.kind != PR_HANDLER_SINK) {
		(void)cli_usage(err, "%s: group \"%s\" is no sink", file, s->conf.group);
		return pr_hint(err, "-c takes consumers with handler.kind = \"sink\", and the relay's file");
	}
	s->target = pr_sink_target_of(&s->conf.sink);
	s->by_key = s->target == PR_SINK_TABLE && s->conf.sink.table.mode == PR_SINK_UPSERT;
	(void)snprintf(s->name, sizeof(s->name), "%s of %.80s", pr_sink_target_str(s->target), s->conf.group);
	if (pr_conf_follow(s->loaded, pr_consumer_options, &s->conf, "database.conninfo", err) < 0 ||
		open_pg(r, s->conf.database.conninfo, &s->pg, err) < 0)
		return -1;
	if (s->target == PR_SINK_S3)
		return connect_store(r, s, err);
	if (s->target != PR_SINK_TABLE || !s->conf.sink.table.conninfo)
		return 0;
	return pr_conf_follow(s->loaded, pr_consumer_options, &s->conf, "handler.table.conninfo", err) < 0
		       ? -1
		       : open_pg(r, s->conf.sink.table.conninfo, &s->table_pg, err);
}

static void add_topic(struct reconcile *r, const char *name)
{
	for (size_t i = 0; i < r->topics_n; i++)
		if (strcmp(r->topics[i], name) == 0)
			return;
	r->topics = pr_realloc(r->topics, (r->topics_n + 1) * sizeof(*r->topics));
	r->topics[r->topics_n++] = pr_strdup(name);
}

static void add_if_read(void *ctx, const char *name)
{
	struct reconcile *r = ctx;

	for (size_t i = 0; i < r->n; i++)
		if (r->sources[i].file && pr_consumer_reads(&r->sources[i].conf.kafka.topics, name))
			add_topic(r, name);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Those that are named, there or not; of patterns those that are there. */
static int sinks_topics(struct reconcile *r, struct pr_err *err)
{
	int patterns = 0;

	for (size_t i = 0; i < r->n; i++)
		for (size_t k = 0; k < r->sources[i].conf.kafka.topics.n; k++)
			if (*r->sources[i].conf.kafka.topics.v[k] == '^')
				patterns = 1;
			else
				add_topic(r, r->sources[i].conf.kafka.topics.v[k]);
	if (patterns && cli_topic_names(r->c, add_if_read, r, err) < 0)
		return -1;
	if (r->topics_n)
		qsort(r->topics, r->topics_n, sizeof(*r->topics), by_name);
	else if (patterns)
		return pr_fail(err, PR_REJECT, "there is no topic that the sinks read");
	return 0;
}

static int load_all(struct reconcile *r, struct pr_err *err)
{
	const char *file;

	for (int i = 0; (file = cli_nth(r->c, "config", i)); i++) {
		struct pr_err other;
		int rc;

		if (pr_prog_whose(file, pr_relay_options, &other) == 0)
			rc = load_relay(r, file, err);
		else
			rc = load_sink(r, &r->sources[r->n++], file, err);
		if (rc < 0)
			return -1;
	}
	return 0;
}

static int connect_outbox(struct reconcile *r, struct pr_err *err)
{
	const char *conninfo = cli_str(r->c, "outbox-conninfo");

	if (!conninfo && r->relay_loaded)
		conninfo = r->relay.source.conninfo;
	return conninfo ? open_pg(r, conninfo, &r->out.pg, err) : 0;
}

int rec_load(struct reconcile *r, struct pr_err *err)
{
	const char *topic;

	r->sources = pr_calloc((size_t)r->c->nvalues + 2, sizeof(*r->sources));
	if (load_all(r, err) < 0 || connect_outbox(r, err) < 0)
		return -1;
	if (cli_str(r->c, "api")) {
		struct source *s = &r->sources[r->n++];

		(void)snprintf(s->name, sizeof(s->name), "facts of the API");
		s->target = PR_SINK_NONE;
		s->next = -1;
		if (rec_facts_read(r, cli_str(r->c, "api"), err) < 0)
			return -1;
	}
	for (int i = 0; (topic = cli_nth(r->c, "topic", i)); i++)
		add_topic(r, topic);
	if (!cli_has(r->c, "topic") && sinks_topics(r, err) < 0)
		return -1;
	for (size_t i = 0; i < r->n; i++)
		r->sources[i].seen = pr_calloc(SLICE, 1);
	if (r->topics_n > 0)
		return 0;
	(void)cli_usage(err, "which topics? give -c of a sink, or --topic");
	return -1;
}

void rec_release(struct reconcile *r)
{
	for (size_t i = 0; r->sources && i < r->n; i++) {
		struct source *s = &r->sources[i];

		pr_pg_close(s->pg);
		pr_pg_close(s->table_pg);
		pr_s3_free(s->s3);
		pr_conf_free(s->loaded);
		pr_buf_free(&s->quoted);
		free(s->seen);
	}
	free(r->sources);
	pr_conf_free(r->relay_loaded);
	pr_pg_close(r->out.pg);
	free(r->out.seqs);
	rec_facts_free(r->facts);
	for (size_t i = 0; i < r->topics_n; i++)
		free(r->topics[i]);
	free(r->topics);
	cli_topic_close(&r->topic);
	free(r->s.flags);
	free(r->s.id_at);
	free(r->s.hour);
	pr_buf_free(&r->s.ids);
	for (int64_t i = 0; i < r->found_n && i < r->limit; i++) {
		free(r->found[i].id);
		free(r->found[i].topic);
		free(r->found[i].path);
		free(r->found[i].detail);
	}
	free(r->found);
}
