/* cli/import_write.c -- relay.cfg, and what the connector makes of its table. Writes no secret. */
#include "cli/import.h"
#include "lib/rights.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *column(
	const struct import *m, const char *option, const char *otherwise, char *buf, size_t size)
{
	const char *name = import_get(m, option, otherwise);

	return pr_quote_ident(name, strlen(name), buf, size);
}

/* The place of the next word of a list, and its length; NULL at the end. */
static const char *word_at(const char *list, int i, const char *separators, size_t *ret_n)
{
	for (;; i--) {
		list += strspn(list, separators);
		*ret_n = strcspn(list, separators);
		if (*ret_n == 0)
			return NULL;
		if (i == 0)
			return list;
		list += *ret_n;
	}
}

int import_placed(const struct import *m, int i, char *name, char *place, char *alias, size_t size)
{
	size_t n, part;
	const char *w = word_at(import_get(m, "router.table.fields.additional.placement", ""), i, ", \t", &n),
		   *p;
	char one[256], *out[3] = { name, place, alias };

	if (!w)
		return 0;
	(void)snprintf(one, sizeof(one), "%.*s", (int)n, w);
	for (int k = 0; k < 3; k++) {
		p = word_at(one, k, ":", &part);
		(void)snprintf(out[k], size, "%.*s", p ? (int)part : 0, p ? p : "");
	}
	if (!*alias)
		(void)snprintf(alias, size, "%s", name);
	return 1;
}

/* ---------------------------------------------------------------- relay.cfg */

static void put_string(struct pr_buf *b, const char *s)
{
	pr_buf_puts(b, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			pr_buf_puts(b, "\\");
		pr_buf_put(b, s, 1);
	}
	pr_buf_puts(b, "\"");
}

/* Debezium writes verify_full in old versions, and TLS modes as libpq does since. */
static void put_word(struct pr_buf *b, const char *key, const char *value)
{
	int plain = *value &&
		    strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@") ==
			    strlen(value);

	if (!*value || strstr(value, "${"))
		return;
	pr_buf_printf(b, "%s%s=", b->len ? " " : "", key);
	if (!plain)
		pr_buf_puts(b, "'");
	for (; *value; value++) {
		if (*value == '\'' || *value == '\\')
			pr_buf_puts(b, "\\");
		pr_buf_put(b, strcmp(key, "sslmode") == 0 && *value == '_' ? "-" : value, 1);
	}
	if (!plain)
		pr_buf_puts(b, "'");
}

static void put_conninfo(const struct import *m, struct pr_buf *b)
{
	static const char *const words[][2] = { { "hostname", "host" }, { "port", "port" },
		{ "dbname", "dbname" }, { "user", "user" }, { "sslmode", "sslmode" },
		{ "sslrootcert", "sslrootcert" }, { "sslcert", "sslcert" }, { "sslkey", "sslkey" } };
	struct pr_buf words_of = { 0 };
	char key[64];

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
		(void)snprintf(key, sizeof(key), "database.%s", words[i][0]);
		put_word(&words_of, words[i][1], import_get(m, key, ""));
	}
	put_string(b, words_of.s ? words_of.s : "");
	pr_buf_free(&words_of);
}

/* An outbox's name from whatever name there is. */
static void put_name(struct pr_buf *b, const char *name)
{
	char out[61] = "outbox";
	size_t n = 0;

	for (; *name && n < sizeof(out) - 1; name++)
		out[n++] = isalnum((unsigned char)*name) ? (char)tolower((unsigned char)*name)
			   : *name == '_'                ? '_'
							 : '-';
	if (n)
		out[n] = '\0';
	put_string(b, out);
}

static void put_topic(const struct import *m, struct pr_buf *b)
{
	const char *t = import_get(m, "router.route.topic.replacement", "outbox.event.${routedByValue}");
	const char *var = strstr(t, "${routedByValue}"), *dollar = strchr(t, '$');
	char *topic;

	if (!dollar)
		topic = pr_strdup(t);
	else if (var == dollar)
		topic = pr_asprintf(
			"%.*s${aggregatetype}%s", (int)(var - t), t, var + strlen("${routedByValue}"));
	else
		topic = pr_strdup("outbox.event.${aggregatetype}"); /* said: the SQL has to name it */
	put_string(b, topic);
	free(topic);
}

static void put_properties(const struct import *m, struct pr_buf *b)
{
	const char *name, *between = "";
	char *pair;

	pr_buf_puts(b, "\tproperties = (");
	for (int i = 0; i < m->n; i++) {
		if (strncmp(m->v[i].key, "producer.override.", 18) != 0 || m->v[i].fate != ADOPT_KEPT)
			continue;
		name = import_property(m->v[i].key + 18);
		if (!name)
			continue;
		pair = pr_asprintf("%s=%s", name, m->v[i].value);
		pr_buf_printf(b, "%s ", between);
		put_string(b, pair);
		free(pair);
		between = ",";
	}
	pr_buf_puts(b, " );\n");
}

void import_config(const struct import *m, const char *brokers, const char *name, struct pr_buf *b)
{
	if (!brokers)
		brokers = import_get(m, "producer.override.bootstrap.servers", "127.0.0.1:9092");
	if (!name)
		name = import_get(m, "name", import_get(m, "topic.prefix", "outbox"));
	pr_buf_puts(b, "# From a Debezium connector, by postrider import-debezium. Secrets are not "
		       "copied.\nname = ");
	put_name(b, name);
	pr_buf_puts(
		b, ";\nsource: {\n\t# the password: PGPASSWORD, ~/.pgpass, or passfile= here\n\tconninfo = ");
	put_conninfo(m, b);
	pr_buf_puts(b, ";\n};\nkafka: {\n\tbrokers = ");
	put_string(b, brokers);
	pr_buf_puts(b, ";\n");
	put_properties(m, b);
	pr_buf_puts(b, "};\nroute: {\n\ttopic = ");
	put_topic(m, b);
	pr_buf_puts(b, ";\n};\n");
}

/* ---------------------------------------------------------------- SQL */

/* "public\.outbox" or "outbox" -> schema and table. */
static void table_of(const struct import *m, char *schema, char *table, size_t size)
{
	char plain[256] = "", *dot;
	const char *list = import_get(m, "table.include.list", "public.outboxevent");
	size_t n = 0;

	for (list += strspn(list, " ^("); *list && !strchr(",$)", *list) && n + 1 < sizeof(plain); list++)
		if (*list != '\\' && *list != ' ')
			plain[n++] = *list;
	plain[n] = '\0';
	dot = strchr(plain, '.');
	(void)snprintf(schema, size, "%.*s", dot ? (int)(dot - plain) : 6, dot ? plain : "public");
	(void)snprintf(table, size, "%s", dot ? dot + 1 : plain);
}

/* The headers' arguments, and the columns that are none: the type, and the partition. */
static void put_placed(
	const struct import *m, struct pr_buf *headers, char *type, char *partition, size_t size)
{
	char name[64], place[64], alias[64], quoted[140];

	for (int i = 0; import_placed(m, i, name, place, alias, sizeof(name)); i++) {
		(void)pr_quote_ident(name, strlen(name), quoted, sizeof(quoted));
		if (strcmp(place, "partition") == 0)
			(void)snprintf(partition, size, "%s", quoted);
		if (strcmp(place, "header") != 0 || strcasecmp(alias, "id") == 0)
			continue;
		if (strcasecmp(name, "type") == 0 || strcasecmp(alias, "type") == 0 ||
			strcasecmp(alias, "eventType") == 0)
			(void)snprintf(type, size, "%s", quoted);
		if (adopt_is_reserved(alias))
			continue;
		pr_buf_puts(headers, headers->len ? ", " : "");
		adopt_put_literal(headers, alias);
		pr_buf_printf(headers, ", n.%s::text", quoted);
	}
}

static char *text_of(const struct import *m, const char *option, const char *otherwise, const char *cast)
{
	char quoted[140];

	return pr_asprintf("n.%s%s", column(m, option, otherwise, quoted, sizeof(quoted)), cast);
}

/* Byte for byte what the connector makes of it, as far as a row can say: a NULL is JSON's null to
 * JsonConverter unless it is to be a tombstone, and so is what is empty then. */
static void adopt_payload(const struct import *m, struct adopt *a)
{
	static const char option[] = "router.table.field.event.payload";
	int tombstones =
		strcasecmp(import_get(m, "router.route.tombstone.on.empty.payload", "false"), "true") == 0;
	const char *cast = import_expand(m) ? "::jsonb" : import_bytes(m) ? "" : "::text";
	char *x = text_of(m, option, "payload", cast);

	if (import_expand(m))
		a->expr[ADOPT_PAYLOAD] = tombstones ? pr_strdup(x) : pr_asprintf("coalesce(%s, 'null')", x);
	else if (import_bytes(m))
		a->expr[ADOPT_BYTES] = tombstones ? pr_asprintf("nullif(%s, '')", x) : pr_strdup(x);
	else
		a->expr[ADOPT_BYTES] = pr_asprintf(
			tombstones ? "convert_to(nullif(%s, ''), 'UTF8')" : "convert_to(%s, 'UTF8')", x);
	free(x);
}

void import_adopt(const struct import *m, struct adopt *a)
{
	char schema[130], table[130], type[140] = "type", partition[140] = "";
	struct pr_buf headers = { 0 };

	table_of(m, schema, table, sizeof(schema));
	a->schema = pr_strdup(schema);
	a->table = pr_strdup(table);
	put_placed(m, &headers, type, partition, sizeof(type));
	a->expr[ADOPT_ID] = text_of(m, "router.table.field.event.id", "id", "::text::uuid");
	a->expr[ADOPT_ROUTE] = text_of(m, "router.route.by.field", "aggregatetype", "::text");
	a->expr[ADOPT_KEY] = text_of(m, "router.table.field.event.key", "aggregateid", "::text");
	a->expr[ADOPT_TYPE] = pr_asprintf("n.%s::text", type);
	adopt_payload(m, a);
	if (headers.len)
		a->expr[ADOPT_HEADERS] = pr_asprintf("jsonb_strip_nulls(jsonb_build_object(%s))", headers.s);
	if (*partition)
		a->expr[ADOPT_PARTITION] = pr_asprintf("n.%s", partition);
	if (import_get(m, "router.tracing.span.context.field", NULL))
		a->expr[ADOPT_TRACE] = text_of(m, "router.tracing.span.context.field", "", "");
	pr_buf_free(&headers);
}
