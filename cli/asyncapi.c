/* cli/asyncapi.c -- `postrider asyncapi`: an AsyncAPI 3.0 document of topics, from the catalogue that sinks
 * have made or from the newest records of each partition. Reads only. */
#include "cli/asyncapi.h"

#include <stdlib.h>
#include <string.h>

#define MOST_HEADERS 200 /* names, of a type */
#define MOST_TYPES   1000
#define MOST_PLACES  2000

struct apis {
	struct cli *c;
	struct channel *v;
	size_t n;
	struct shape_of *shapes; /* of samples */
};

/* What is learnt of a type from samples. */
struct shape_of {
	struct event_type *type;
	struct pr_shape *shape;
	struct shape_of *next;
};

static struct channel *channel_of(struct apis *a, const char *topic)
{
	for (size_t i = 0; i < a->n; i++)
		if (strcmp(a->v[i].topic, topic) == 0)
			return &a->v[i];
	a->v = pr_realloc(a->v, (a->n + 1) * sizeof(*a->v));
	a->v[a->n] = (struct channel){ .topic = pr_strdup(topic) };
	return &a->v[a->n++];
}

/* NULL: there are too many. */
static struct event_type *type_of(struct channel *ch, const char *name)
{
	struct event_type **at = &ch->types;
	int n = 0;

	for (; *at; at = &(*at)->next, n++)
		if (strcmp((*at)->name, name) == 0)
			return *at;
	if (n == MOST_TYPES)
		return NULL;
	*at = pr_calloc(1, sizeof(**at));
	(*at)->name = pr_strdup(name);
	return *at;
}

static void release(struct apis *a)
{
	for (size_t i = 0; i < a->n; i++) {
		struct event_type *next;

		for (struct event_type *t = a->v[i].types; t; t = next) {
			next = t->next;
			place_free(&t->payload);
			for (size_t k = 0; k < t->headers_n; k++)
				free(t->headers[k]);
			free(t->headers);
			free(t->name);
			free(t);
		}
		free((char *)(uintptr_t)a->v[i].topic);
	}
	free(a->v);
	while (a->shapes) {
		struct shape_of *s = a->shapes;

		a->shapes = s->next;
		pr_shape_free(s->shape);
		free(s);
	}
}

/* ---- from the catalogue ---- */

static void add_place(struct apis *a, const PGresult *res, int i)
{
	struct event_type *t = type_of(channel_of(a, PQgetvalue(res, i, 0)), PQgetvalue(res, i, 1));
	struct place *p = t ? place_at(&t->payload, PQgetvalue(res, i, 2)) : NULL;
	char *kinds, *save = NULL;

	if (!p)
		return;
	kinds = pr_strdup(PQgetvalue(res, i, 3));
	for (char *w = strtok_r(kinds, ",", &save); w; w = strtok_r(NULL, ",", &save))
		p->kinds |= place_kind(w);
	free(kinds);
	p->seen = cli_cell_int(res, i, 4);
	free(p->sample);
	free(p->pii);
	p->sample = cli_cell(res, i, 5) ? pr_strdup(cli_cell(res, i, 5)) : NULL;
	p->pii = cli_cell(res, i, 6) ? pr_strdup(cli_cell(res, i, 6)) : NULL;
}

static int is_chosen(const struct cli *c, const char *topic)
{
	const char *t;

	for (int i = 0; (t = cli_nth(c, "topic", i)); i++)
		if (strcmp(t, topic) == 0)
			return 1;
	return !cli_has(c, "topic");
}

static int from_catalogue(struct apis *a, struct pr_err *err)
{
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;

	if (cli_connect(a->c, &pg, err) == 0)
		res = pr_pg_exec(pg,
			"SELECT topic, type, path, pg_catalog.array_to_string(kinds, ','), seen, sample, pii "
			"FROM sink.catalogue "
			"ORDER BY topic COLLATE \"C\", type COLLATE \"C\", path COLLATE \"C\"",
			0, NULL, err);
	for (int i = 0; res && i < PQntuples(res); i++)
		if (is_chosen(a->c, PQgetvalue(res, i, 0)))
			add_place(a, res, i);
	PQclear(res);
	pr_pg_close(pg);
	if (res)
		return 0;
	if (strcmp(err->code, "42P01") == 0 || strcmp(err->code, "3F000") == 0) {
		(void)pr_fail(err, PR_REJECT,
			"this database has no catalogue: no consumer of kind sink has run on it");
		err->exit = PR_EX_NOT_FOUND;
		(void)pr_hint(err, "--sample 1000 looks at the topics themselves");
	}
	return -1;
}

/* ---- from the topics ---- */

static void learn_header(struct event_type *t, const char *name)
{
	for (size_t i = 0; i < t->headers_n; i++)
		if (strcmp(t->headers[i], name) == 0)
			return;
	if (t->headers_n == MOST_HEADERS || !pr_utf8_text(name, strlen(name)))
		return;
	t->headers = pr_realloc(t->headers, (t->headers_n + 1) * sizeof(*t->headers));
	t->headers[t->headers_n++] = pr_strdup(name);
}

static struct pr_shape *shape_of(struct apis *a, struct event_type *t)
{
	struct shape_of *s = a->shapes;

	for (; s; s = s->next)
		if (s->type == t)
			return s->shape;
	s = pr_calloc(1, sizeof(*s));
	s->type = t;
	s->shape = pr_shape_new(MOST_PLACES, NULL);
	s->next = a->shapes;
	a->shapes = s;
	return s->shape;
}

struct sampling {
	struct apis *apis;
	struct channel *channel;
};

static int on_record(void *ctx, const rd_kafka_message_t *m)
{
	struct sampling *s = ctx;
	rd_kafka_headers_t *h = NULL;
	const void *value = NULL;
	struct event_type *t;
	const char *name;
	size_t len = 0;
	char *type;

	if (rd_kafka_message_headers(m, &h))
		h = NULL;
	if (!h || rd_kafka_header_get_last(h, "type", &value, &len) || !value || !pr_utf8_text(value, len))
		len = 0;
	type = pr_asprintf("%.*s", (int)len, len ? (const char *)value : "");
	t = type_of(s->channel, type);
	free(type);
	if (!t)
		return 0;
	for (size_t i = 0;
		h && rd_kafka_header_get_all(h, i, &name, &value, &len) == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
		learn_header(t, name);
	if (m->key)
		*(pr_utf8_text(m->key, m->key_len) ? &t->key_text : &t->key_bytes) = 1;
	(void)pr_shape_see(
		shape_of(s->apis, t), m->payload, m->len, rd_kafka_message_timestamp(m, NULL) * 1000);
	return 0;
}

static void on_place(void *ctx, const struct pr_shape_path *p)
{
	struct event_type *t = ctx;
	struct place *to = place_at(&t->payload, p->path);
	struct pr_buf pii = { 0 };

	if (!to)
		return;
	to->kinds = p->kinds;
	to->seen = (int64_t)p->seen;
	to->sample = p->sample ? pr_strdup(p->sample) : NULL;
	pr_shape_put_pii(&pii, p->pii);
	to->pii = pii.s;
}

static int sample_topic(struct apis *a, const char *topic, struct pr_err *err)
{
	int64_t most = cli_int(a->c, "sample", 1000), *from;
	struct sampling s = { a, channel_of(a, topic) };
	struct cli_topic t;
	int rc;

	if (cli_topic_open(a->c, topic, &t, err) < 0)
		return -1;
	s.channel->partitions = t.partitions;
	from = pr_calloc((size_t)t.partitions, sizeof(*from));
	for (int i = 0; i < t.partitions; i++)
		from[i] = t.hi[i] - t.lo[i] > most ? t.hi[i] - most : t.lo[i];
	rc = cli_topic_read(a->c, &t, from, t.hi, on_record, &s, err);
	free(from);
	cli_topic_close(&t);
	return rc;
}

struct matching {
	struct apis *a;
	struct pr_err *err;
	int rc;
};

static void sample_if_read(void *ctx, const char *topic)
{
	struct matching *m = ctx;

	if (m->rc == 0 && pr_consumer_reads(&m->a->c->consumer.kafka.topics, topic))
		m->rc = sample_topic(m->a, topic, m->err);
}

/* Those that -c's consumer reads. */
static int sample_all(struct apis *a, struct pr_err *err)
{
	const struct pr_strs *topics = &a->c->consumer.kafka.topics;
	struct matching m = { a, err, 0 };
	int patterns = 0;

	for (size_t i = 0; i < topics->n; i++)
		patterns |= *topics->v[i] == '^';
	if (patterns)
		return cli_topic_names(a->c, sample_if_read, &m, err) < 0 ? -1 : m.rc;
	for (size_t i = 0; i < topics->n; i++)
		if (sample_topic(a, topics->v[i], err) < 0)
			return -1;
	return 0;
}

static int from_topics(struct apis *a, struct pr_err *err)
{
	const char *topic;
	int n = 0;

	for (; (topic = cli_nth(a->c, "topic", n)); n++)
		if (sample_topic(a, topic, err) < 0)
			return -1;
	if (!n && a->c->consumer_loaded && sample_all(a, err) < 0)
		return -1;
	for (struct shape_of *s = a->shapes; s; s = s->next)
		pr_shape_all(s->shape, on_place, s->type);
	return a->n ? 0 : cli_usage(err, "which topics? give --topic, or -c of a consumer");
}

static enum examples examples_of(const struct cli *c)
{
	const char *s = cli_str(c, "examples");

	return !s || strcmp(s, "masked") == 0 ? EXAMPLES_MASKED
	       : strcmp(s, "plain") == 0      ? EXAMPLES_PLAIN
					      : EXAMPLES_NONE;
}

int verb_asyncapi(struct cli *c)
{
	struct apis a = { .c = c };
	struct pr_err err = { 0 };
	int rc = PR_EX_OK;
	cJSON *doc;

	if ((cli_has(c, "sample") ? from_topics(&a, &err) : from_catalogue(&a, &err)) < 0) {
		rc = cli_failed(c, &err);
	} else {
		doc = asyncapi_document(c, a.v, a.n, examples_of(c));
		if (cli_has(c, "json"))
			cli_json_line(doc);
		else
			asyncapi_yaml(doc, stdout);
		cJSON_Delete(doc);
	}
	release(&a);
	return rc;
}
