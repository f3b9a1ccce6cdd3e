/* cli/bench.c -- `postrider bench`: a load of single statements on one connection, and the
 * time its events take to Kafka as the relay's own histogram tells it. Refuses to be a
 * benchmark of record: it names no baseline, it answers "is this installation in order?" */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/json.h"

#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 64
#define SAMPLES 100000 /* commit times kept; beyond it every n-th */

struct load {
	int64_t events, per, rate, keys, payload;
	double *ms; /* of commits */
	int n, stride;
	int64_t transactions;
	double seconds;
};

/* Cumulative counts of one histogram, summed over its labels. */
struct histogram {
	double le[BUCKETS], count[BUCKETS];
	int n;
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double percentile(const struct load *l, double p)
{
	return l->n ? l->ms[(int)(p * (l->n - 1))] : 0;
}

/* One statement per transaction, so that each is one round trip and one commit. */
static char *statement(const struct cli *c, struct pr_pg *pg, const struct load *l, struct pr_err *err)
{
	const char *type = cli_str(c, "aggregatetype"), *topic = cli_str(c, "topic");
	char *kind = PQescapeLiteral(pr_pg_conn(pg), type ? type : "bench", strlen(type ? type : "bench"));
	char *where = topic ? PQescapeLiteral(pr_pg_conn(pg), topic, strlen(topic)) : NULL, *sql = NULL;

	if (kind && (where || !topic))
		sql = pr_asprintf(
			"INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload, topic) "
			"SELECT %s, 'k' || (($1::bigint + i) * 7919 %% %lld), 'Bench', "
			"jsonb_build_object('n', $1::bigint + i, 'fill', repeat('x', %lld)), %s "
			"FROM generate_series(0, $2::bigint - 1) AS i",
			kind, (long long)l->keys, (long long)(l->payload > 30 ? l->payload - 30 : 1),
			where ? where : "NULL");
	else
		(void)pr_fail(err, PR_REJECT, "%s", PQerrorMessage(pr_pg_conn(pg)));
	PQfreemem(kind);
	PQfreemem(where);
	return sql;
}

static void progress(const struct load *l, int64_t done, int64_t began, int64_t *last, int end)
{
	char a[32], b[32];
	double s = (double)(pr_mono_us() - began) / PR_SEC;

	if (!cli_tty(stderr) || s < 1 || (!end && pr_mono_us() - *last < 200 * PR_MS))
		return;
	*last = pr_mono_us();
	(void)fprintf(stderr, "\r\033[K%s%s of %s events, %.0f/s%s", end ? "" : "writing ",
		cli_count(done, a), cli_count(l->events, b), (double)done / s, end ? "\r\033[K" : "");
	(void)fflush(stderr);
}

static int write_load(const struct cli *c, struct pr_pg *pg, struct load *l, struct pr_err *err)
{
	int64_t began = pr_mono_us(), last = 0, done = 0;
	char *sql = statement(c, pg, l, err), from[24], count[24];
	const char *params[2] = { from, count };
	int rc = -1;

	if (!sql)
		return -1;
	while (done < l->events && !cli_gone()) {
		int64_t n = l->events - done < l->per ? l->events - done : l->per, start;
		int64_t due = l->rate ? began + (int64_t)((double)done / (double)l->rate * PR_SEC) : 0;

		if (due > pr_mono_us())
			(void)poll(NULL, 0, pr_until_ms(due));
		(void)snprintf(from, sizeof(from), "%lld", (long long)done);
		(void)snprintf(count, sizeof(count), "%lld", (long long)n);
		start = pr_mono_us();
		if (pr_pg_run(pg, sql, 2, params, err) < 0)
			goto out;
		if (l->transactions++ % l->stride == 0 && l->n < SAMPLES)
			l->ms[l->n++] = (double)(pr_mono_us() - start) / PR_MS;
		done += n;
		progress(l, done, began, &last, 0);
	}
	progress(l, done, began, &last, 1);
	l->seconds = (double)(pr_mono_us() - began) / PR_SEC;
	rc = 0;
out:
	free(sql);
	return rc;
}

/* ---- the relay's side ---- */

static void add_bucket(struct histogram *h, double le, double count)
{
	int i = 0;

	while (i < h->n && h->le[i] != le)
		i++;
	if (i == BUCKETS)
		return;
	if (i == h->n) {
		h->le[h->n] = le;
		h->count[h->n++] = 0;
	}
	h->count[i] += count;
}

static void read_histogram(const char *metrics, struct histogram *h)
{
	static const char name[] = "\npostrider_insert_to_ack_seconds_bucket{";
	const char *line = metrics;

	memset(h, 0, sizeof(*h));
	while ((line = strstr(line, name))) {
		const char *le = strstr(line, "le=\""), *end = strchr(line + 1, '\n');
		const char *value = strstr(line, "} ");

		if (le && value && (!end || (le < end && value < end)))
			add_bucket(h, strtod(le + 4, NULL), strtod(value + 2, NULL));
		line++;
	}
}

/* Where the share p of what came between two readings lies; inside a bucket by straight line. Seconds. */
static double quantile(const struct histogram *before, const struct histogram *after, double p)
{
	double total, want, low = 0, below = 0;

	if (after->n == 0)
		return NAN;
	total = after->count[after->n - 1] - (before->n == after->n ? before->count[after->n - 1] : 0);
	want = total * p;
	for (int i = 0; i < after->n && total > 0; i++) {
		double n = after->count[i] - (before->n == after->n ? before->count[i] : 0);

		if (n >= want && n > below)
			return isinf(after->le[i])
				       ? low
				       : low + (after->le[i] - low) * (want - below) / (n - below);
		low = after->le[i];
		below = n;
	}
	return NAN;
}

/* Sum of postrider_published_total over its topics; -1 when this is no relay's page. */
static double read_published(const char *metrics)
{
	const char *line = metrics, *end;
	double sum = strstr(metrics, "\n# TYPE postrider_published_total ") ? 0 : -1;

	while ((line = strstr(line, "\npostrider_published_total{"))) {
		end = strstr(++line, "} ");
		sum += end ? strtod(end + 2, NULL) : 0;
	}
	return sum;
}

static int read_relay(struct cli *c, const char *url, double *ret_published, struct histogram *h)
{
	struct pr_err ignored = { 0 };
	char *body = NULL;
	int status = 0;

	if (cli_fetch(c, url, "/metrics", &status, &body, &ignored) < 0)
		return -1;
	read_histogram(body, h);
	*ret_published = status == 200 ? read_published(body) : -1;
	free(body);
	return *ret_published < 0 ? -1 : 0;
}

struct relay_part {
	int there, acknowledged;
	double seconds, p50, p99, before;
	struct histogram at_start;
};

static void wait_for_relay(
	struct cli *c, const char *url, const struct load *l, int64_t began, struct relay_part *r)
{
	int64_t deadline = pr_mono_us() + cli_int(c, "wait", 10 * PR_SEC);
	struct histogram now;
	double published = 0;

	for (;;) {
		if (read_relay(c, url, &published, &now) < 0) {
			r->there = 0;
			return;
		}
		if (published - r->before >= (double)l->events) {
			r->acknowledged = 1;
			break;
		}
		if (pr_mono_us() >= deadline)
			break;
		(void)poll(NULL, 0, 20);
	}
	r->seconds = (double)(pr_mono_us() - began) / PR_SEC;
	r->p50 = quantile(&r->at_start, &now, 0.50) * 1000;
	r->p99 = quantile(&r->at_start, &now, 0.99) * 1000;
}

static void add_ms(cJSON *o, const char *name, double ms)
{
	char text[32];

	(void)snprintf(text, sizeof(text), "%.3f", ms);
	if (isnan(ms))
		(void)cJSON_AddNullToObject(o, name);
	else
		(void)cJSON_AddRawToObject(o, name, text);
}

static void report_json(const struct load *l, const struct relay_part *r)
{
	cJSON *o = cJSON_CreateObject(), *part;

	cli_json_int(o, "events", l->events);
	cli_json_int(o, "transactions", l->transactions);
	add_ms(o, "seconds", l->seconds);
	add_ms(o, "events_per_second", (double)l->events / l->seconds);
	add_ms(o, "commits_per_second", (double)l->transactions / l->seconds);
	part = cJSON_AddObjectToObject(o, "commit_ms");
	add_ms(part, "p50", percentile(l, 0.50));
	add_ms(part, "p99", percentile(l, 0.99));
	add_ms(part, "max", percentile(l, 1));
	if (r->there) {
		part = cJSON_AddObjectToObject(o, "relay");
		(void)cJSON_AddBoolToObject(part, "acknowledged", r->acknowledged);
		add_ms(part, "seconds", r->seconds);
		part = cJSON_AddObjectToObject(part, "insert_to_ack_ms");
		add_ms(part, "p50", r->p50);
		add_ms(part, "p99", r->p99);
	} else {
		(void)cJSON_AddNullToObject(o, "relay");
	}
	cli_json_free_line(o);
}

static void report(const struct load *l, const struct relay_part *r, const char *url)
{
	char a[64], b[64];

	(void)printf("written   %s in %s, %.2f s\n", cli_number(l->events, "event", a),
		cli_number(l->transactions, "transaction", b), l->seconds);
	(void)printf("rate      %s events/s, ", cli_count((int64_t)((double)l->events / l->seconds), a));
	(void)printf("%s commits/s\n", cli_count((int64_t)((double)l->transactions / l->seconds), a));
	(void)printf("commit    p50 %.2f ms, p99 %.2f ms, max %.2f ms\n", percentile(l, 0.5),
		percentile(l, 0.99), percentile(l, 1));
	if (!r->there) {
		cli_say("no relay answers at %s: how long events take to Kafka is not known", url);
		return;
	}
	if (r->acknowledged)
		(void)printf("Kafka     all acknowledged %.2f s after the first insert\n", r->seconds);
	else
		cli_say("not all were acknowledged after %.0f s: `postrider status` says why, --wait waits "
			"longer",
			r->seconds);
	if (!isnan(r->p50))
		(void)printf(
			"to Kafka  p50 %.1f ms, p99 %.1f ms from insert to acknowledgement (from the relay's "
			"histogram)\n",
			r->p50, r->p99);
}

static void set_up(const struct cli *c, struct load *l)
{
	int64_t transactions;

	l->events = cli_int(c, "events", 10000);
	l->per = cli_int(c, "per-transaction", 1);
	l->rate = cli_int(c, "rate", 0);
	l->keys = cli_int(c, "keys", 1000);
	l->payload = cli_int(c, "payload", 168);
	transactions = (l->events + l->per - 1) / l->per;
	l->stride = (int)(transactions / SAMPLES) + 1;
	l->ms = pr_calloc(SAMPLES, sizeof(*l->ms));
}

int verb_bench(struct cli *c)
{
	char *url = cli_url(c);
	struct relay_part r = { 0 };
	struct load l = { 0 };
	struct pr_err err = { 0 };
	struct pr_pg *pg = NULL;
	const char *token;
	int64_t began;
	char n[64];
	int rc = PR_EX_OK;

	set_up(c, &l);
	if (cli_confirmed(c, &err, "publish %s that consumers will see", cli_number(l.events, "event", n)) <
			0 ||
		cli_token(c, &token, &err) < 0 || cli_connect_outbox(c, &pg, &err) < 0) {
		if (err.exit == PR_EX_REFUSED)
			(void)pr_hint(&err, "--yes does it");
		rc = cli_fail(&err);
		goto out;
	}
	r.there = read_relay(c, url, &r.before, &r.at_start) == 0;
	began = pr_mono_us();
	if (write_load(c, pg, &l, &err) < 0) {
		rc = cli_fail(&err);
		goto out;
	}
	if (r.there)
		wait_for_relay(c, url, &l, began, &r);
	qsort(l.ms, (size_t)l.n, sizeof(*l.ms), by_value);
	if (cli_has(c, "json"))
		report_json(&l, &r);
	else
		report(&l, &r, url);
	if (r.there && !r.acknowledged)
		rc = PR_EX_FAILED;
out:
	pr_pg_close(pg);
	free(l.ms);
	free(url);
	return rc;
}
