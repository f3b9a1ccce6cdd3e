/* cli/reconcile.c -- `postrider reconcile`: what the outbox, the topics and the sinks hold of a window,
 * record by record, and what one has that another has not. Reads only. Refuses to call complete what it could
 * not look at: a source that is not given is named as such. */
#include "cli/reconcile.h"

#include "lib/clock.h"

#include <stdlib.h>
#include <string.h>

#define HOUR_US ((int64_t)3600 * PR_SEC)

/* ---- findings ---- */

static char *copy(const char *s)
{
	return s ? pr_strdup(s) : NULL;
}

void rec_find(struct reconcile *r, const struct finding *f)
{
	struct finding *to;

	if (r->found_n++ >= r->limit)
		return;
	r->found = pr_realloc(r->found, (size_t)r->found_n * sizeof(*r->found));
	to = &r->found[r->found_n - 1];
	*to = *f;
	to->id = f->id && *f->id ? copy(f->id) : NULL;
	to->topic = copy(f->topic);
	to->path = copy(f->path);
	to->detail = copy(f->detail);
}

void rec_find_at(
	struct reconcile *r, const char *what, const char *source, int64_t offset, const char *detail)
{
	size_t at = (size_t)(offset - r->s.from);

	rec_find(r, &(struct finding){ .what = what,
			    .source = source,
			    .id = r->s.flags[at] & R_THERE ? r->s.ids.s + r->s.id_at[at] : NULL,
			    .topic = (char *)(uintptr_t)r->s.topic,
			    .partition = r->s.partition,
			    .offset = offset,
			    .detail = (char *)(uintptr_t)detail });
}

int rec_hour_in(const struct reconcile *r, int64_t hour_us)
{
	return hour_us < r->to_us && (r->from_us == INT64_MIN || hour_us > r->from_us - HOUR_US);
}

/* ---- the topic's share of a slice ---- */

static int last_header(rd_kafka_headers_t *h, const char *name, const void **value, size_t *len)
{
	*value = "";
	*len = 0;
	return h && rd_kafka_header_get_last(h, name, value, len) == RD_KAFKA_RESP_ERR_NO_ERROR && *value;
}

/* As the consumer's own filter has it. */
static int wanted(const struct source *s, rd_kafka_headers_t *h)
{
	const void *value;
	size_t len;
	int found;

	(void)last_header(h, "type", &value, &len);
	found = pr_consumer_wants(&s->conf.filter.types, value, len);
	for (size_t i = 0; i < s->conf.filter.headers.n && found; i++) {
		const char *pair = s->conf.filter.headers.v[i], *eq = strchr(pair, '=');
		char *name = pr_asprintf("%.*s", (int)(eq - pair), pair);

		found = last_header(h, name, &value, &len) && len == strlen(eq + 1) &&
			memcmp(value, eq + 1, len) == 0;
		free(name);
	}
	return found;
}

static void put_id(struct slice *s, size_t at, rd_kafka_headers_t *h, const rd_kafka_message_t *m)
{
	const void *id;
	size_t len;

	s->id_at[at] = (uint32_t)s->ids.len;
	if (last_header(h, "id", &id, &len))
		pr_buf_put(&s->ids, id, len < 127 ? strnlen(id, len) : 127);
	else
		pr_buf_printf(&s->ids, "%s-%d-%lld", s->topic, m->partition, (long long)m->offset);
	pr_buf_put(&s->ids, "", 1);
}

static int on_record(void *ctx, const rd_kafka_message_t *m)
{
	struct reconcile *r = ctx;
	struct slice *s = &r->s;
	int64_t us = rd_kafka_message_timestamp(m, NULL);
	rd_kafka_headers_t *h = NULL;
	size_t at;

	if (m->offset < s->from || m->offset >= s->to)
		return 0;
	if (rd_kafka_message_headers(m, &h))
		h = NULL;
	at = (size_t)(m->offset - s->from);
	us = us < 0 ? 0 : us * 1000;
	s->flags[at] = R_THERE;
	s->hour[at] = (uint32_t)(us / HOUR_US);
	if (!m->payload)
		s->flags[at] |= R_NULL;
	if (us >= r->from_us && us < r->to_us) {
		s->flags[at] |= R_WINDOW;
		r->records++;
	}
	put_id(s, at, h, m);
	for (size_t i = 0; i < r->n; i++)
		if (!wanted(&r->sources[i], h))
			r->sources[i].seen[at] |= S_FILTERED;
	if (r->out.looked)
		rec_outbox_saw(r, m, h);
	r->progress.done++;
	cli_progress(&r->progress);
	return 0;
}

/* Of the partition only. */
static int read_topic(struct reconcile *r, int64_t from, int64_t to,
	int (*each)(void *ctx, const rd_kafka_message_t *m), struct pr_err *err)
{
	int64_t *lo = pr_calloc((size_t)r->topic.partitions, sizeof(*lo)),
		*hi = pr_calloc((size_t)r->topic.partitions, sizeof(*hi));
	int rc;

	lo[r->s.partition] = from;
	hi[r->s.partition] = to;
	rc = cli_topic_read(r->c, &r->topic, lo, hi, each, r, err);
	free(lo);
	free(hi);
	return rc;
}

/* ---- comparing ---- */

void rec_saw(
	struct reconcile *r, struct source *src, int64_t offset, const char *id, size_t id_len, int in_window)
{
	size_t at = (size_t)(offset - r->s.from);
	uint8_t *seen = &src->seen[at];
	int there = r->s.flags[at] & R_THERE;
	const char *real = there ? r->s.ids.s + r->s.id_at[at] : NULL;

	if (there ? r->s.flags[at] & R_WINDOW : in_window)
		src->records++;
	src->gone += in_window && offset < r->lo;
	/* What the topic has dropped meanwhile cannot be compared. */
	if (!there && in_window && offset >= r->lo && !(*seen & S_TIMES)) {
		src->extra++;
		rec_find(r, &(struct finding){ .what = "extra",
				    .source = src->name,
				    .topic = (char *)(uintptr_t)r->s.topic,
				    .partition = r->s.partition,
				    .offset = offset,
				    .detail = (char *)(uintptr_t) "the topic has no such record" });
	}
	if (there && id && pr_utf8_text(real, strlen(real)) &&
		(strlen(real) != id_len || memcmp(real, id, id_len) != 0))
		rec_find_at(r, "other_id", src->name, offset, "the id is another one than the topic's");
	if ((*seen & S_TIMES) < 3)
		(*seen)++;
}

static void compare_at(struct reconcile *r, struct source *src, int64_t offset)
{
	size_t at = (size_t)(offset - r->s.from);
	int times = src->seen[at] & S_TIMES, flags = r->s.flags[at];

	if (times > 1 && (flags & R_WINDOW || !(flags & R_THERE))) {
		src->twice++;
		rec_find_at(r, "twice", src->name, offset, times == 3 ? "three times or more" : NULL);
	}
	if (times || !(flags & R_WINDOW))
		return;
	if (src->seen[at] & S_FILTERED)
		src->filtered++;
	else if (src->seen[at] & S_DEAD)
		src->dead++;
	else if (offset >= src->next)
		src->waiting++;
	else if (src->seen[at] & S_FOLDED)
		src->untold++;
	else if (src->by_key || (flags & R_NULL && src->target == PR_SINK_TABLE &&
					src->conf.sink.table.mode != PR_SINK_APPEND))
		return;
	else {
		src->missing++;
		rec_find_at(r, "missing", src->name, offset, NULL);
	}
}

/* A sink that has not come to the end of the window is not complete: one finding for a partition. */
static void tell_waiting(struct reconcile *r, const int64_t *before)
{
	for (size_t i = 0; r->windowed && i < r->n; i++) {
		struct source *src = &r->sources[i];
		char *detail;

		if (src->waiting == before[i])
			continue;
		detail = pr_asprintf("%lld records wait for the sink", (long long)(src->waiting - before[i]));
		rec_find(r, &(struct finding){ .what = "waiting",
				    .source = src->name,
				    .topic = (char *)(uintptr_t)r->s.topic,
				    .partition = r->s.partition,
				    .offset = src->next,
				    .detail = detail });
		free(detail);
	}
}

const char *rec_keep_of(const struct source *src)
{
	return src->target == PR_SINK_S3 ? "handler.s3.keep" : "handler.files.keep";
}

/* Nobody can say of them that all is well: in a window that is a finding for a partition. */
static void tell_untold(struct reconcile *r, const int64_t *before)
{
	for (size_t i = 0; r->windowed && i < r->n; i++) {
		struct source *src = &r->sources[i];
		char *detail;

		if (src->untold == before[i])
			continue;
		detail = pr_asprintf("%lld records: the sink remembers its files for %s",
			(long long)(src->untold - before[i]), rec_keep_of(src));
		rec_find(r, &(struct finding){ .what = "ledger_gone",
				    .source = src->name,
				    .topic = (char *)(uintptr_t)r->s.topic,
				    .partition = r->s.partition,
				    .offset = -1,
				    .detail = detail });
		free(detail);
	}
}

/* What is a dead letter of a sink that posts the API has never taken. */
static void bury(struct reconcile *r, struct source *api)
{
	for (size_t i = 0; i < r->n; i++)
		for (int64_t o = r->s.from; o < r->s.to && r->sources[i].target == PR_SINK_HTTP; o++)
			api->seen[o - r->s.from] |= r->sources[i].seen[o - r->s.from] & S_DEAD;
}

static int do_slice(struct reconcile *r, int64_t from, int64_t to, struct pr_err *err)
{
	struct slice *s = &r->s;

	s->from = from;
	s->to = to;
	memset(s->flags, 0, (size_t)(to - from));
	s->ids.len = 0;
	for (size_t i = 0; i < r->n; i++)
		memset(r->sources[i].seen, 0, (size_t)(to - from));
	if (read_topic(r, from > r->lo ? from : r->lo, to, on_record, err) < 0)
		return -1;
	for (size_t i = 0; i < r->n; i++) {
		if (!r->sources[i].reads)
			continue;
		if (rec_source(r, &r->sources[i], err) < 0)
			return pr_wrap(err, "%s", r->sources[i].name);
		if (!r->sources[i].file)
			bury(r, &r->sources[i]);
		for (int64_t o = from; o < to; o++)
			compare_at(r, &r->sources[i], o);
	}
	return 0;
}

/* ---- partitions ---- */

/* Where the window begins and ends, by Kafka's index of times: nothing before the first is younger than it;
 * behind the second a record may be older, so that reading goes on for the slack. */
static int range_of(struct reconcile *r, int64_t *from, int64_t *to, struct pr_err *err)
{
	int64_t *at = pr_calloc((size_t)r->topic.partitions, sizeof(*at));
	int p = r->s.partition, rc = 0;

	*from = r->topic.lo[p];
	*to = r->topic.hi[p];
	if (r->from_us != INT64_MIN && (rc = cli_topic_at(r->c, &r->topic, r->from_us, at, err)) == 0)
		*from = at[p];
	if (rc == 0 && r->to_us != INT64_MAX &&
		(rc = cli_topic_at(r->c, &r->topic, r->to_us + r->slack_us, at, err)) == 0)
		*to = at[p];
	free(at);
	return rc;
}

static int on_later(void *ctx, const rd_kafka_message_t *m)
{
	struct reconcile *r = ctx;
	rd_kafka_headers_t *h = NULL;

	if (!rd_kafka_message_headers(m, &h))
		rec_outbox_saw(r, m, h);
	return 0;
}

static int do_partition(struct reconcile *r, int partition, struct pr_err *err)
{
	int64_t from, to, hi = r->topic.hi[partition], *before = pr_calloc(r->n + 1, sizeof(*before)),
			  *untold = pr_calloc(r->n + 1, sizeof(*untold));
	int rc;

	r->s.partition = partition;
	r->lo = r->topic.lo[partition];
	rc = range_of(r, &from, &to, err);
	for (size_t i = 0; i < r->n && rc == 0; i++) {
		before[i] = r->sources[i].waiting;
		untold[i] = r->sources[i].untold;
		if (!r->sources[i].reads)
			continue;
		rc = rec_position(r, &r->sources[i], err);
		if (rc == 0)
			rc = rec_stretch(r, &r->sources[i], &from, &to, err);
	}
	to = to > hi ? hi : to;
	r->s.start = from;
	for (int64_t at = from; rc == 0 && at < to; at += SLICE)
		rc = do_slice(r, at, at + SLICE < to ? at + SLICE : to, err);
	/* A row of the window may have been published long after it. */
	if (rc == 0 && r->out.looked && to < hi && rec_outbox_left(r) > 0)
		rc = read_topic(r, to > r->lo ? to : r->lo, hi, on_later, err);
	if (rc == 0) {
		tell_waiting(r, before);
		tell_untold(r, untold);
	}
	for (size_t i = 0; i < r->n; i++)
		rec_files_end(&r->sources[i]);
	free(before);
	free(untold);
	return rc;
}

/* What a sink does not read it has not to hold. */
static int who_reads(struct reconcile *r, const char *topic, struct pr_err *err)
{
	int any = r->n == 0;

	for (size_t i = 0; i < r->n; i++) {
		struct source *src = &r->sources[i];

		src->reads = !src->file || pr_consumer_reads(&src->conf.kafka.topics, topic);
		any |= src->reads;
	}
	return any ? 0 : cli_usage(err, "no sink of -c reads topic \"%s\"", topic);
}

static int do_topic(struct reconcile *r, const char *name, struct pr_err *err)
{
	int rc;

	if (cli_topic_open(r->c, name, &r->topic, err) < 0)
		return -1;
	r->s.topic = name;
	rc = who_reads(r, name, err);
	for (int p = 0; rc == 0 && p < r->topic.partitions; p++)
		rc = do_partition(r, p, err);
	for (size_t i = 0; rc == 0 && i < r->n; i++)
		if (r->sources[i].reads)
			rc = rec_directory(r, &r->sources[i], name, err);
	cli_topic_close(&r->topic);
	return rc;
}

/* ---- the window ---- */

static int window(struct reconcile *r, struct pr_err *err)
{
	struct cli *c = r->c;

	r->from_us = INT64_MIN;
	r->to_us = INT64_MAX;
	r->slack_us = cli_int(c, "slack", 10 * 60 * PR_SEC);
	r->windowed = cli_has(c, "hour") || cli_has(c, "from") || cli_has(c, "to");
	if (cli_has(c, "hour") && (cli_has(c, "from") || cli_has(c, "to")))
		return cli_usage(err, "--hour is a window of its own: without --from and --to");
	if (cli_has(c, "hour")) {
		r->from_us = cli_int(c, "hour", 0) / HOUR_US * HOUR_US;
		r->to_us = r->from_us + HOUR_US;
	} else if (r->windowed) {
		r->from_us = cli_int(c, "from", 0);
		r->to_us = cli_int(c, "to", pr_wall_us());
	}
	if (r->windowed && r->from_us >= r->to_us)
		return cli_usage(err, "the window is empty: --from is not before --to");
	return 0;
}

static int run(struct reconcile *r, struct pr_err *err)
{
	int rc;

	if (window(r, err) < 0 || rec_load(r, err) < 0 || rec_outbox_begin(r, err) < 0)
		return -1;
	r->s.flags = pr_calloc(SLICE, 1);
	r->s.id_at = pr_calloc(SLICE, sizeof(*r->s.id_at));
	r->s.hour = pr_calloc(SLICE, sizeof(*r->s.hour));
	pr_buf_puts(&r->s.ids, "");
	cli_progress_begin(r->c, &r->progress, "records", -1);
	for (size_t i = 0; i < r->topics_n; i++)
		if (do_topic(r, r->topics[i], err) < 0)
			return -1;
	rc = rec_outbox_end(r, err);
	cli_progress_end(&r->progress);
	return rc;
}

int verb_reconcile(struct cli *c)
{
	struct reconcile r = { .c = c, .limit = cli_int(c, "limit", 100) };
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;

	if (run(&r, &err) < 0) {
		rc = cli_failed(c, &err);
	} else {
		rec_print(&r);
		rc = r.found_n ? PR_EX_UNHEALTHY : PR_EX_OK;
	}
	rec_release(&r);
	return rc;
}
