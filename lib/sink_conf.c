/* lib/sink_conf.c -- what the sink's options must fulfil together. Contacts nothing: directory, bucket, API
 * and table are asked at the start. */
#include "lib/sink_conf.h"

#include "lib/consumer_conf.h"
#include "lib/project.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FIELD(f) offsetof(struct pr_sink_field, f)

const struct pr_opt pr_sink_field_options[] = {
	{ "path", PR_OPT_STR, FIELD(path), .flags = PR_OPT_REQUIRED, .example = "payload.user.email",
		.doc = "What it is about: payload.NAME.NAME (NAME[] for each element of an array), "
		       "headers.NAME, or key." },
	{ "action", PR_OPT_ENUM, FIELD(action), .choices = "drop|hash|redact|rename|keep",
		.flags = PR_OPT_REQUIRED, .example = "hash",
		.doc = "drop leaves it out, hash puts HMAC-SHA256 in its place, redact a fixed text, rename "
		       "calls it otherwise, keep lets it pass." },
	{ "to", PR_OPT_STR, FIELD(to), .example = "mail", .doc = "Of rename: its new name." },
	{ 0 },
};

enum pr_sink_target pr_sink_target_of(const struct pr_sink_conf *c)
{
	return c->files.directory ? PR_SINK_FILES
	       : c->http.url      ? PR_SINK_HTTP
	       : c->s3.bucket     ? PR_SINK_S3
	       : c->table.table   ? PR_SINK_TABLE
				  : PR_SINK_NONE;
}

const char *pr_sink_target_str(enum pr_sink_target t)
{
	static const char *const names[] = { "none", "files", "http", "s3", "table" };

	return names[t];
}

const struct pr_sink_cut_conf *pr_sink_cut_of(const struct pr_sink_conf *c)
{
	switch (pr_sink_target_of(c)) {
	case PR_SINK_HTTP:
		return &c->http.cut;
	case PR_SINK_S3:
		return &c->s3.cut;
	case PR_SINK_TABLE:
		return &c->table.cut;
	default:
		return &c->files.cut;
	}
}

static int check_one(const struct pr_sink_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	static const char *const keys[] = { "handler.files.directory", "handler.http.url",
		"handler.s3.bucket", "handler.table.table" };
	const int set[] = { c->files.directory != NULL, c->http.url != NULL, c->s3.bucket != NULL,
		c->table.table != NULL };
	int first = -1;

	for (int i = 0; i < 4; i++) {
		if (!set[i])
			continue;
		if (first >= 0)
			return pr_conf_fail(conf, keys[i], err,
				"is set beside %s: a sink has one target, another one is another group",
				keys[first]);
		first = i;
	}
	if (first >= 0)
		return 0;
	(void)pr_conf_fail(conf, "handler.kind", err, "\"sink\" needs a target");
	return pr_hint(err, "set one of handler.files.directory, handler.http.url, handler.s3.bucket and"
			    " handler.table.table");
}

static int check_format(const struct pr_sink_format_conf *f, const char *level, const struct pr_conf *conf,
	struct pr_err *err)
{
	if (f->compression == PR_SINK_GZIP && f->level > 9)
		return pr_conf_fail(conf, level, err, "is more than gzip has: 9");
	return 0;
}

static int check_s3(const struct pr_sink_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	if (!c->s3.endpoint)
		return pr_conf_fail(conf, "handler.s3.endpoint", err, "is required by handler.s3.bucket");
	if (strncmp(c->s3.endpoint, "http://", 7) != 0 && strncmp(c->s3.endpoint, "https://", 8) != 0)
		return pr_conf_fail(conf, "handler.s3.endpoint", err, "must begin with http:// or https://");
	if (!*c->s3.bucket || strchr(c->s3.bucket, '/'))
		return pr_conf_fail(conf, "handler.s3.bucket", err, "is no name for a bucket");
	return check_format(&c->s3.format, "handler.s3.level", conf, err);
}

static int check_target(const struct pr_sink_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	switch (pr_sink_target_of(c)) {
	case PR_SINK_FILES:
		if (!*c->files.directory)
			return pr_conf_fail(conf, "handler.files.directory", err, "names no directory");
		return check_format(&c->files.format, "handler.files.level", conf, err);
	case PR_SINK_HTTP:
		if (c->http.compression == PR_SINK_GZIP && c->http.level > 9)
			return pr_conf_fail(conf, "handler.http.level", err, "is more than gzip has: 9");
		if (pr_consumer_check_url(c->http.url, "handler.http.url", conf, err) < 0)
			return -1;
		return pr_consumer_check_webhook(&c->http.headers, "handler.http.headers", c->http.secret,
			"handler.http.secret", conf, err);
	case PR_SINK_S3:
		return check_s3(c, conf, err);
	case PR_SINK_TABLE:
		if (c->table.tombstones == PR_SINK_KEEP_ROW && c->table.mode != PR_SINK_UPSERT)
			return pr_conf_fail(conf, "handler.table.tombstones", err,
				"\"keep\" is for handler.table.mode = \"upsert\"");
		return 0;
	default:
		return 0;
	}
}

static const enum pr_project_action actions[] = {
	[PR_SINK_DROP] = PR_PROJECT_DROP,
	[PR_SINK_HASH] = PR_PROJECT_HASH,
	[PR_SINK_REDACT] = PR_PROJECT_REDACT,
	[PR_SINK_RENAME] = PR_PROJECT_RENAME,
	[PR_SINK_PICK] = PR_PROJECT_KEEP,
};

int pr_sink_rules(
	const struct pr_sink_conf *c, struct pr_project **ret, const struct pr_conf *conf, struct pr_err *err)
{
	struct pr_project_rule *rules = pr_calloc(c->fields.n + 1, sizeof(*rules));
	const struct pr_sink_field *f = c->fields.v;
	struct pr_err why = { 0 };
	char path[64];
	size_t bad;
	int rc;

	for (size_t i = 0; i < c->fields.n; i++)
		rules[i] = (struct pr_project_rule){ f[i].path, actions[f[i].action], f[i].to };
	rc = pr_project_new(
		rules, c->fields.n, c->hash_key, c->hash_key ? strlen(c->hash_key) : 0, ret, &bad, &why);
	free(rules);
	if (rc == 0)
		return 0;
	(void)snprintf(
		path, sizeof(path), bad < c->fields.n ? "handler.fields[%zu].path" : "handler.fields", bad);
	if (conf)
		(void)pr_conf_fail(conf, path, err, "%s", why.text);
	else
		(void)pr_fail(err, PR_STOP, "%s: %s", path, why.text);
	return why.hint[0] ? pr_hint(err, "%s", why.hint) : -1;
}

static int check_fields(const struct pr_sink_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const struct pr_sink_field *f = c->fields.v;
	struct pr_project *rules = NULL;
	char path[64];

	for (size_t i = 0; i < c->fields.n; i++) {
		(void)snprintf(path, sizeof(path), "handler.fields[%zu].to", i);
		if ((f[i].action == PR_SINK_RENAME) != (f[i].to != NULL))
			return pr_conf_fail(conf, path, err,
				f[i].to ? "is taken by action \"rename\" only"
					: "is required by action \"rename\"");
		if (f[i].action == PR_SINK_HASH && !c->hash_key)
			return pr_conf_fail(conf, "handler.hash_key", err, "is required by action \"hash\"");
	}
	if (pr_sink_rules(c, &rules, conf, err) < 0)
		return -1;
	pr_project_free(rules);
	return 0;
}

static int refuse_all(const struct pr_sink_conf *c, const struct pr_conf *conf, struct pr_err *err)
{
	const char *key = c->files.directory ? "handler.files.directory"
			  : c->http.url      ? "handler.http.url"
			  : c->s3.bucket     ? "handler.s3.bucket"
			  : c->table.table   ? "handler.table.table"
			  : c->fields.n > 0  ? "handler.fields"
					     : NULL;

	return key ? pr_conf_fail(conf, key, err, "is taken by handler.kind = \"sink\" only") : 0;
}

int pr_sink_conf_validate(
	const struct pr_sink_conf *c, int mine, const struct pr_conf *conf, struct pr_err *err)
{
	if (!mine)
		return refuse_all(c, conf, err);
	if (check_one(c, conf, err) < 0 || check_target(c, conf, err) < 0)
		return -1;
	return check_fields(c, conf, err);
}
