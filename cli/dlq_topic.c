/* cli/dlq_topic.c -- `postrider dlq list` and `show` with --from-topic: a dead-letter topic that others
 * wrote, grouped as our own. Understands the headers of Spring (kafka_dlt-*) and of Kafka Connect
 * (__connect.errors.*). Only reads; what it does not understand is listed as unknown. */
#include "cli/dlq.h"
#include "lib/clock.h"
#include "lib/json.h"
#include "lib/policy.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* One record of the topic; owned text, NULL: not said. */
struct letter {
	char *entry, *group, *topic, *partition, *offset, *key, *id, *type, *code, *reason;
	const char *cls;
	char at[32];
	int64_t at_us;
};

struct reading {
	const struct cli *c;
	struct dlq_causes *causes; /* NULL: one by one */
	struct cli_table table;
	int64_t shown, limit;
	int more;
};

static char *text_of(const void *s, size_t n)
{
	char *copy = pr_malloc(n + 1);

	memcpy(copy, s, n);
	copy[n] = '\0';
	return copy;
}

/* The last header of the name: each hop of a retry adds its own. NULL when missing. */
static char *header(const rd_kafka_headers_t *h, const char *name)
{
	const void *value;
	size_t n;

	if (!h || rd_kafka_header_get_last(h, name, &value, &n) || !value)
		return NULL;
	return text_of(value, n);
}

static char *header_of(const rd_kafka_headers_t *h, const char *family, const char *name)
{
	char full[80];

	(void)snprintf(full, sizeof(full), "%s%s", family, name);
	return header(h, full);
}

/* Spring writes whole numbers as 4 or 8 bytes, the highest first. */
static char *number_of(const rd_kafka_headers_t *h, const char *name)
{
	const unsigned char *s;
	const void *value;
	uint64_t v = 0;
	size_t n;
	int digits = 1;

	if (!h || rd_kafka_header_get_last(h, name, &value, &n) || !value || n == 0)
		return NULL;
	s = value;
	for (size_t i = 0; i < n; i++)
		digits &= isdigit(s[i]) != 0;
	if (digits || (n != 4 && n != 8))
		return text_of(value, n);
	for (size_t i = 0; i < n; i++)
		v = v << 8 | s[i];
	return pr_asprintf("%" PRId64, n == 4 ? (int64_t)(int32_t)v : (int64_t)v);
}

static char *either(char *a, char *b)
{
	if (!a)
		return b;
	free(b);
	return a;
}

/* Ours carry both families, and "class:code" for an exception: they are of the same cause as in the table. */
static void ours(const rd_kafka_headers_t *h, struct letter *l)
{
	const char *code;
	char *attempts = header(h, "postrider-attempts"), *was = l->code;
	enum pr_fail_class cls = attempts && was ? pr_fail_class_parse(was, &code) : PR_FAIL_NONE;

	free(attempts);
	if (cls == PR_FAIL_NONE)
		return;
	l->cls = pr_fail_class_str(cls);
	l->code = pr_strdup(code);
	free(was);
}

/* The listener's own wrapper tells nothing: what it wraps is the cause. */
static int spring(const rd_kafka_headers_t *h, struct letter *l)
{
	char *cause = header(h, "kafka_dlt-exception-cause-fqcn"),
	     *own = header(h, "kafka_dlt-exception-fqcn");

	l->topic = header(h, "kafka_dlt-original-topic");
	l->code = either(cause && *cause ? cause : NULL, own);
	if (cause && !*cause)
		free(cause);
	if (!l->topic && !l->code)
		return 0;
	l->cls = "spring";
	l->reason = header(h, "kafka_dlt-exception-message");
	l->group = header(h, "kafka_dlt-original-consumer-group");
	l->partition = number_of(h, "kafka_dlt-original-partition");
	l->offset = number_of(h, "kafka_dlt-original-offset");
	return 1;
}

static int connect_family(const rd_kafka_headers_t *h, struct letter *l)
{
	static const char family[] = "__connect.errors.";

	l->topic = header_of(h, family, "topic");
	l->code = header_of(h, family, "exception.class.name");
	if (!l->topic && !l->code)
		return 0;
	l->cls = "connect";
	l->reason = header_of(h, family, "exception.message");
	l->group = header_of(h, family, "connector.name");
	l->partition = header_of(h, family, "partition");
	l->offset = header_of(h, family, "offset");
	return 1;
}

static void letter_of(struct letter *l, const rd_kafka_message_t *m)
{
	rd_kafka_headers_t *h = NULL;
	rd_kafka_timestamp_type_t type;
	int64_t ms = rd_kafka_message_timestamp(m, &type);

	*l = (struct letter){ .cls = "unknown" };
	(void)rd_kafka_message_headers(m, &h);
	if (!h || (!spring(h, l) && !connect_family(h, l)))
		l->reason = pr_strdup("no header of Spring or Connect says why");
	else
		ours(h, l);
	l->entry = pr_asprintf("%d:%lld", m->partition, (long long)m->offset);
	l->key = m->key ? text_of(m->key, m->key_len) : NULL;
	l->id = header(h, "id");
	l->type = header(h, "type");
	l->at_us = ms < 0 ? 0 : ms * 1000;
	if (ms >= 0)
		(void)pr_rfc3339(l->at_us, l->at);
}

static void letter_release(struct letter *l)
{
	char *const all[] = { l->entry, l->group, l->topic, l->partition, l->offset, l->key, l->id, l->type,
		l->code, l->reason };

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
}

/* ---- which of them, and how they are shown ---- */

static int is(const char *wanted, const char *s)
{
	size_t n = wanted ? strlen(wanted) : 0;

	if (!wanted)
		return 1;
	if (!s)
		return 0;
	return wanted[n - 1] == '*' ? strncmp(wanted, s, n - 1) == 0 : strcmp(wanted, s) == 0;
}

static int wanted(const struct cli *c, const struct letter *l)
{
	char cause[9];

	dlq_cause_id(l->cls, l->code, l->reason, cause);
	return is(cli_group(c), l->group) && is(cli_str(c, "topic"), l->topic) &&
	       is(cli_str(c, "type"), l->type) && is(cli_str(c, "class"), l->cls) &&
	       is(cli_str(c, "code"), l->code) && is(cli_str(c, "cause"), cause) &&
	       l->at_us >= cli_int(c, "since", 0) && l->at_us < cli_int(c, "until", INT64_MAX);
}

static void add(cJSON *o, const char *name, const char *s)
{
	(void)cJSON_AddItemToObject(o, name, s ? cJSON_CreateString(s) : cJSON_CreateNull());
}

/* A number of a header is anybody's text. */
static void add_number(cJSON *o, const char *name, const char *s)
{
	char *end = NULL;
	long long n = s ? strtoll(s, &end, 10) : 0;

	if (s && *s && !*end)
		cli_json_int(o, name, n);
	else
		(void)cJSON_AddNullToObject(o, name);
}

static cJSON *as_json(const struct letter *l)
{
	cJSON *o = cJSON_CreateObject();
	char cause[9];

	dlq_cause_id(l->cls, l->code, l->reason, cause);
	add(o, "entry", l->entry);
	add(o, "group", l->group);
	add(o, "topic", l->topic);
	add_number(o, "partition", l->partition);
	add_number(o, "offset", l->offset);
	add(o, "key", l->key);
	add(o, "id", l->id);
	add(o, "type", l->type);
	add(o, "class", l->cls);
	add(o, "code", l->code);
	add(o, "reason", l->reason);
	add(o, "buried_at", *l->at ? l->at : NULL);
	add(o, "cause", cause);
	return o;
}

static void one_row(struct cli_table *t, const struct letter *l)
{
	char *when = pr_asprintf("%.10s %.8s", l->at, *l->at ? l->at + 11 : "");
	char *record = pr_asprintf("%s:%s:%s", l->topic ? l->topic : "?", l->partition ? l->partition : "?",
		l->offset ? l->offset : "?");
	const char *const cells[] = { l->entry, l->group, record, l->key, l->type, l->code ? l->code : l->cls,
		when, l->reason };

	cli_table_add(t, cells);
	free(when);
	free(record);
}

static int on_record(void *ctx, const rd_kafka_message_t *m)
{
	struct reading *r = ctx;
	struct letter l;

	letter_of(&l, m);
	if (wanted(r->c, &l) && r->causes) {
		const struct dlq_fact f = { .entry = l.entry,
			.group = l.group,
			.topic = l.topic,
			.type = l.type,
			.cls = l.cls,
			.code = l.code,
			.reason = l.reason,
			.at = l.at };

		dlq_causes_add(r->causes, &f);
	} else if (wanted(r->c, &l)) {
		r->more = r->shown == r->limit;
		if (!r->more && cli_has(r->c, "json"))
			cli_json_free_line(as_json(&l));
		else if (!r->more)
			one_row(&r->table, &l);
		r->shown += !r->more;
	}
	letter_release(&l);
	return r->more;
}

static void finish(struct reading *r)
{
	if (r->causes)
		dlq_causes_print(r->causes, cli_has(r->c, "json"));
	else if (r->table.nrows)
		cli_table_print(&r->table, stdout);
	if (r->more)
		cli_say("there are more: --limit shows them");
	if (r->causes ? dlq_causes_total(r->causes) == 0 : r->shown == 0)
		cli_say("no dead letters%s in topic %s", dlq_filtered(r->c) ? " like that" : "",
			cli_str(r->c, "from-topic"));
}

int dlq_list_topic(struct cli *c)
{
	static const char *const heads[] = { ">ENTRY", "=GROUP", "RECORD", "KEY", "=TYPE", "=FAILURE",
		"BURIED (UTC)", "~REASON" };
	struct reading r = {
		.c = c, .table = { .ncols = 8, .heads = heads }, .limit = cli_int(c, "limit", 100)
	};
	struct cli_topic t = { 0 };
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;

	if (!cli_has(c, "all"))
		r.causes = dlq_causes_new();
	if (cli_topic_open(c, cli_str(c, "from-topic"), &t, &err) < 0 ||
		cli_topic_read(c, &t, t.lo, t.hi, on_record, &r, &err) < 0)
		rc = cli_failed(c, &err);
	else
		finish(&r);
	dlq_causes_free(r.causes);
	cli_topic_close(&t);
	return rc;
}

/* ---- show ---- */

struct showing {
	const struct cli *c;
	int found;
};

/* A header's value as JSON: text, or what is no text in hexadecimal. */
static void add_header(cJSON *list, const char *name, const void *value, size_t n)
{
	cJSON *o = cJSON_CreateObject();
	struct pr_buf b = { 0 };

	pr_buf_puts(&b, "");
	add(o, "name", name);
	if (value && !pr_utf8_text(value, n)) {
		for (size_t i = 0; i < n; i++)
			pr_buf_printf(&b, "%02x", ((const unsigned char *)value)[i]);
		add(o, "value_hex", b.s);
	} else {
		pr_buf_put(&b, value ? value : "", value ? n : 0);
		add(o, "value", value ? b.s ? b.s : "" : NULL);
	}
	pr_buf_free(&b);
	(void)cJSON_AddItemToArray(list, o);
}

static void show_json(const struct letter *l, const rd_kafka_message_t *m)
{
	cJSON *o = as_json(l), *list = cJSON_CreateArray();
	rd_kafka_headers_t *h = NULL;
	const char *name;
	const void *value;
	size_t n;

	(void)rd_kafka_message_headers(m, &h);
	for (size_t i = 0; h && !rd_kafka_header_get_all(h, i, &name, &value, &n); i++)
		add_header(list, name, value, n);
	(void)cJSON_AddItemToObject(o, "headers", list);
	cli_json_payload(o, m->payload, m->len);
	cli_json_free_line(o);
}

static void line(const char *name, const char *text)
{
	(void)printf("  %s%-9s%s", cli_on(stdout, CLI_DIM), name, cli_off(stdout));
	cli_text(stdout, text && *text ? text : "-", 11, 13);
}

static void show_headers(const rd_kafka_message_t *m)
{
	rd_kafka_headers_t *h = NULL;
	const char *name;
	const void *value;
	size_t n;

	(void)rd_kafka_message_headers(m, &h);
	if (h)
		(void)printf("\n  %sheaders%s\n", cli_on(stdout, CLI_DIM), cli_off(stdout));
	for (size_t i = 0; h && !rd_kafka_header_get_all(h, i, &name, &value, &n); i++) {
		(void)fputs("    ", stdout);
		cli_safe(stdout, name, strlen(name));
		(void)fputs(": ", stdout);
		cli_safe(stdout, value ? value : "", value ? n : 0);
		(void)fputc('\n', stdout);
	}
}

static void show_text(const struct letter *l, const rd_kafka_message_t *m)
{
	char *record = pr_asprintf("%s, partition %s, offset %s, key %s", l->topic ? l->topic : "?",
		l->partition ? l->partition : "?", l->offset ? l->offset : "?", l->key ? l->key : "-");
	char *failure = pr_asprintf("%s%s%s", l->cls, l->code ? ":" : "", l->code ? l->code : "");

	(void)printf("%srecord %s%s\n", cli_on(stdout, CLI_BOLD), l->entry, cli_off(stdout));
	line("group", l->group);
	line("from", record);
	line("type", l->type);
	line("id", l->id);
	line("failure", failure);
	line("reason", l->reason);
	line("when", l->at);
	show_headers(m);
	(void)printf("\n  %spayload%s\n", cli_on(stdout, CLI_DIM), cli_off(stdout));
	cli_payload(stdout, m->payload, m->len, DLQ_SHOWN_BYTES, 4);
	free(record);
	free(failure);
}

static int on_shown(void *ctx, const rd_kafka_message_t *m)
{
	struct showing *s = ctx;
	struct letter l;

	s->found = 1;
	letter_of(&l, m);
	if (cli_has(s->c, "raw"))
		(void)fwrite(m->payload ? m->payload : "", 1, m->payload ? m->len : 0, stdout);
	else if (cli_has(s->c, "json"))
		show_json(&l, m);
	else
		show_text(&l, m);
	letter_release(&l);
	return 1;
}

/* "2:17" as `dlq list --from-topic ... --all` names it. */
static int parse_entry(const char *text, int64_t *ret_partition, int64_t *ret_offset, struct pr_err *err)
{
	char rest;

	if (isdigit((unsigned char)*text) && strlen(text) < 30 &&
		sscanf(text, "%" SCNd64 ":%" SCNd64 "%c", ret_partition, ret_offset, &rest) == 2 &&
		*ret_partition <= INT32_MAX && *ret_offset >= 0 && *ret_offset < INT64_MAX)
		return 0;
	return cli_usage(
		err, "\"%.80s\" is not partition:offset, as `dlq list --from-topic` names records", text);
}

int dlq_show_topic(struct cli *c)
{
	struct showing s = { .c = c };
	struct cli_topic t = { 0 };
	struct pr_err err = { 0 };
	int64_t partition, offset, *from = NULL, *to = NULL;
	int rc = PR_EX_OK;

	if (parse_entry(c->args[0], &partition, &offset, &err) < 0 ||
		cli_topic_open(c, cli_str(c, "from-topic"), &t, &err) < 0) {
		rc = cli_failed(c, &err);
		goto out;
	}
	from = pr_calloc((size_t)t.partitions + 1, sizeof(*from));
	to = pr_calloc((size_t)t.partitions + 1, sizeof(*to));
	for (int i = 0; i < t.partitions; i++)
		from[i] = to[i] = t.lo[i];
	if (partition < t.partitions && offset >= t.lo[partition] && offset < t.hi[partition]) {
		from[partition] = offset;
		to[partition] = offset + 1;
		if (cli_topic_read(c, &t, from, to, on_shown, &s, &err) < 0)
			rc = cli_failed(c, &err);
	}
	if (rc == PR_EX_OK && !s.found) {
		(void)pr_fail(&err, PR_REJECT, "topic %s has no record %s", t.name, c->args[0]);
		err.exit = PR_EX_NOT_FOUND;
		(void)pr_hint(&err, "`postrider dlq list --all --from-topic ...` shows what there is");
		rc = cli_fail(&err);
	}
out:
	free(from);
	free(to);
	cli_topic_close(&t);
	return rc;
}
