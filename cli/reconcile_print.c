/* cli/reconcile_print.c -- what `postrider reconcile` found: counts by source, then each difference. */
#include "cli/reconcile.h"

#include "lib/clock.h"

#include <stdlib.h>
#include <string.h>

static const struct {
	const char *what, *text;
} words[] = {
	{ "missing", "is missing in the" },
	{ "twice", "is more than once in the" },
	{ "extra", "is only in the" },
	{ "other_id", "has another id in the" },
	{ "waiting", "and later: not yet in the" },
	{ "unpublished", "was not published" },
	{ "parked", "was not published" },
	{ "published_twice", "was published twice" },
	{ "no_row", "is on the topic only" },
	{ "file_missing", "is missing" },
	{ "file_size", "has another size" },
	{ "file_changed", "was changed" },
	{ "file_broken", "cannot be read" },
	{ "file_count", "has another number of records" },
	{ "file_foreign", "holds what is not its own" },
	{ "file_unknown", "is nobody's" },
	{ "manifest_missing", "is missing" },
	{ "manifest_wrong", "is not so" },
	{ "past_end", "is where the topic ends" },
	{ "ledger_gone", "cannot be told: the ledger of it is gone" },
	{ "cuts_overlap", "begins a cut that overlaps another" },
	{ "cut_count", "begins a cut with another number of records" },
};

static const char *text_of(const char *what)
{
	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (strcmp(words[i].what, what) == 0)
			return words[i].text;
	return what;
}

static void add_time(cJSON *o, const char *name, int64_t us)
{
	char text[40];

	if (us == INT64_MIN || us == INT64_MAX)
		(void)cJSON_AddNullToObject(o, name);
	else
		(void)cJSON_AddStringToObject(o, name, pr_rfc3339(us, text));
}

static void add_text(cJSON *o, const char *name, const char *s)
{
	if (s)
		(void)cJSON_AddStringToObject(o, name, s);
	else
		(void)cJSON_AddNullToObject(o, name);
}

static const char *kind_of(const struct source *s)
{
	return s->file ? pr_sink_target_str(s->target) : "api";
}

static cJSON *source_json(const struct source *s)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "source", s->name);
	(void)cJSON_AddStringToObject(o, "target", kind_of(s));
	add_text(o, "group", s->file ? s->conf.group : NULL);
	cli_json_int(o, "records", s->records);
	cli_json_int(o, "missing", s->missing);
	cli_json_int(o, "twice", s->twice);
	cli_json_int(o, "extra", s->extra);
	cli_json_int(o, "dead_letters", s->dead);
	cli_json_int(o, "filtered", s->filtered);
	cli_json_int(o, "waiting", s->waiting);
	cli_json_int(o, "gone", s->gone);
	cli_json_int(o, "untold", s->untold);
	cli_json_int(o, "files", s->files);
	cli_json_int(o, "bytes", s->bytes);
	return o;
}

static cJSON *outbox_json(const struct outbox *out)
{
	cJSON *o = cJSON_CreateObject();

	cli_json_int(o, "records", out->rows);
	cli_json_int(o, "unpublished", out->missing);
	cli_json_int(o, "parked", out->parked);
	cli_json_int(o, "skipped", out->skipped);
	cli_json_int(o, "published_twice", out->twice);
	cli_json_int(o, "no_row", out->extra);
	return o;
}

static cJSON *finding_json(const struct finding *f)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(o, "difference", f->what);
	(void)cJSON_AddStringToObject(o, "source", f->source);
	add_text(o, "id", f->id);
	add_text(o, "topic", f->topic);
	if (f->partition >= 0)
		cli_json_int(o, "partition", f->partition);
	else
		(void)cJSON_AddNullToObject(o, "partition");
	if (f->offset >= 0)
		cli_json_int(o, "offset", f->offset);
	else
		(void)cJSON_AddNullToObject(o, "offset");
	add_text(o, "path", f->path);
	add_text(o, "detail", f->detail);
	return o;
}

/* Kinds of sources that nobody named. */
static int looked(const struct reconcile *r, const char *kind)
{
	if (strcmp(kind, "outbox") == 0)
		return r->out.looked;
	for (size_t i = 0; i < r->n; i++)
		if (strcmp(kind_of(&r->sources[i]), kind) == 0)
			return 1;
	return 0;
}

static const char *const kinds[] = { "outbox", "files", "s3", "http", "table", "api" };

static void print_json(const struct reconcile *r)
{
	cJSON *o = cJSON_CreateObject(), *list;

	add_time(o, "from", r->from_us);
	add_time(o, "to", r->to_us);
	list = cJSON_AddArrayToObject(o, "topics");
	for (size_t i = 0; i < r->topics_n; i++)
		(void)cJSON_AddItemToArray(list, cJSON_CreateString(r->topics[i]));
	cli_json_int(o, "records", r->records);
	(void)cJSON_AddItemToObject(o, "outbox", r->out.looked ? outbox_json(&r->out) : cJSON_CreateNull());
	list = cJSON_AddArrayToObject(o, "sources");
	for (size_t i = 0; i < r->n; i++)
		(void)cJSON_AddItemToArray(list, source_json(&r->sources[i]));
	list = cJSON_AddArrayToObject(o, "not_looked_at");
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!looked(r, kinds[i]))
			(void)cJSON_AddItemToArray(list, cJSON_CreateString(kinds[i]));
	cli_json_int(o, "differences_total", r->found_n);
	list = cJSON_AddArrayToObject(o, "differences");
	for (int64_t i = 0; i < r->found_n && i < r->limit; i++)
		(void)cJSON_AddItemToArray(list, finding_json(&r->found[i]));
	cli_json_free_line(o);
}

static void add_row(struct cli_table *t, const char *name, int64_t records, int64_t missing, int64_t twice,
	int64_t extra, const char *more)
{
	char a[32], b[32], c[32], d[32];
	const char *const cells[] = { name, cli_count(records, a), cli_count(missing, b), cli_count(twice, c),
		cli_count(extra, d), more };

	cli_table_add(t, cells);
}

static void source_row(struct cli_table *t, const struct source *s)
{
	struct pr_buf more = { 0 };
	char n[64];

	pr_buf_puts(&more, "");
	if (s->files)
		pr_buf_printf(&more, s->target == PR_SINK_S3 ? "%s asked for, not read" : "%s read",
			cli_number(s->files, s->target == PR_SINK_S3 ? "object" : "file", n));
	if (s->by_key)
		pr_buf_puts(&more, "a row a key: what is missing cannot be told");
	if (s->dead)
		pr_buf_printf(&more, "%s%s", more.len ? ", " : "", cli_number(s->dead, "dead letter", n));
	if (s->filtered)
		pr_buf_printf(&more, "%s%s left out by its filter", more.len ? ", " : "",
			cli_count(s->filtered, n));
	if (s->gone)
		pr_buf_printf(
			&more, "%s%s no longer on the topic", more.len ? ", " : "", cli_count(s->gone, n));
	if (s->untold)
		pr_buf_printf(&more, "%s%s of which the ledger is gone", more.len ? ", " : "",
			cli_count(s->untold, n));
	if (s->waiting)
		pr_buf_printf(&more, "%s%s not yet there", more.len ? ", " : "", cli_count(s->waiting, n));
	add_row(t, s->name, s->records, s->missing, s->twice, s->extra, more.s);
	pr_buf_free(&more);
}

static void print_table(const struct reconcile *r)
{
	static const char *const heads[] = { "SOURCE", ">RECORDS", ">MISSING", ">TWICE", ">EXTRA", "~NOTE" };
	struct cli_table t = { .ncols = 6, .heads = heads };
	char more[128];

	(void)snprintf(more, sizeof(more), r->out.skipped ? "%lld skipped by an operator" : "",
		(long long)r->out.skipped);
	if (r->out.looked)
		add_row(&t, "outbox", r->out.rows, r->out.extra, 0, r->out.missing, more);
	add_row(&t, r->topics_n == 1 ? "topic" : "topics", r->records, r->out.missing, r->out.twice, 0, "");
	for (size_t i = 0; i < r->n; i++)
		source_row(&t, &r->sources[i]);
	cli_table_print(&t, stdout);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!looked(r, kinds[i]))
			(void)printf("%s%s: not looked at%s\n", cli_on(stdout, CLI_DIM), kinds[i],
				cli_off(stdout));
}

static void print_finding(const struct finding *f)
{
	struct pr_buf b = { 0 };
	int in = strchr("mteow", f->what[0]) && !strchr(f->what, '_') && strcmp(f->what, "unpublished") != 0;

	if (f->path)
		pr_buf_printf(&b, "%s", f->path);
	else if (f->offset >= 0)
		pr_buf_printf(&b, "%s%s%s %d:%lld", f->id ? f->id : "", f->id ? " " : "", f->topic,
			f->partition, (long long)f->offset);
	else
		pr_buf_printf(&b, "%s %s", f->id ? f->id : "", f->topic ? f->topic : "");
	pr_buf_printf(&b, " %s", text_of(f->what));
	if (in || strcmp(f->what, "other_id") == 0)
		pr_buf_printf(&b, " %s", f->source);
	if (f->detail)
		pr_buf_printf(&b, " (%s)", f->detail);
	cli_text(stdout, b.s, 0, 2);
	pr_buf_free(&b);
}

static void print_text(const struct reconcile *r)
{
	char a[40], b[40], n[64];

	if (r->windowed)
		(void)printf("%s to %s\n", pr_rfc3339(r->from_us, a), pr_rfc3339(r->to_us, b));
	else
		(void)printf("all that the topics have, as far as each sink has come\n");
	print_table(r);
	if (!r->found_n) {
		(void)printf("%sno difference%s\n", cli_on(stdout, CLI_GREEN), cli_off(stdout));
		return;
	}
	(void)printf("%s%s%s\n", cli_on(stdout, CLI_RED), cli_number(r->found_n, "difference", n),
		cli_off(stdout));
	for (int64_t i = 0; i < r->found_n && i < r->limit; i++)
		print_finding(&r->found[i]);
	if (r->found_n > r->limit)
		(void)printf("... %s more: --limit shows them\n", cli_count(r->found_n - r->limit, n));
}

void rec_print(const struct reconcile *r)
{
	if (cli_has(r->c, "json"))
		print_json(r);
	else
		print_text(r);
}
