/* cli/import_judge.c -- what becomes of each option of a Debezium connector: one table of those that mean the
 * same whatever their value is, and the few whose value decides. Refuses what is not Postgres with the
 * outbox's EventRouter: change events of business tables are another product. */
#include "cli/import.h"

#include <stdarg.h>
#include <string.h>
#include <strings.h>

static const char no_wal[] =
	"the relay reads the table, not the WAL: no slot, no publication, no snapshot, no heartbeat";
static const char in_sql[] = "the SQL maps the column";
static const char by_relay[] = "the relay sets what exactly once needs";

/* A star at the end: any rest. The first that fits. */
static const struct rule {
	const char *key;
	enum adopt_fate fate;
	const char *why;
} rules[] = {
	{ "name", ADOPT_KEPT, "name: unless --name says otherwise" },
	{ "topic.prefix", ADOPT_NEEDLESS, "EventRouter's topics do not have it" },
	{ "connector.class", ADOPT_KEPT, "" },
	{ "tasks.max", ADOPT_NEEDLESS, "one relay leads; others stand by" },
	{ "transforms", ADOPT_KEPT, "" },
	{ "router.type", ADOPT_KEPT, "" },
	{ "database.hostname", ADOPT_KEPT, "source.conninfo" },
	{ "database.port", ADOPT_KEPT, "source.conninfo" },
	{ "database.user", ADOPT_KEPT, "source.conninfo; it needs the role outbox_relay and no REPLICATION" },
	{ "database.dbname", ADOPT_KEPT, "source.conninfo" },
	{ "database.sslmode", ADOPT_KEPT, "source.conninfo" },
	{ "database.sslrootcert", ADOPT_KEPT, "source.conninfo" },
	{ "database.sslcert", ADOPT_KEPT, "source.conninfo" },
	{ "database.sslkey", ADOPT_KEPT, "source.conninfo; libpq wants PEM, not PKCS-8 DER" },
	{ "database.password", ADOPT_TO_DO,
		"secrets are not copied: PGPASSWORD, ~/.pgpass or passfile= in the conninfo" },
	{ "database.sslpassword", ADOPT_TO_DO, "secrets are not copied: sslpassword= by \"file:...\"" },
	{ "database.*", ADOPT_NEEDLESS, "of Debezium's own connection" },
	{ "plugin.name", ADOPT_NEEDLESS, no_wal },
	{ "slot.*", ADOPT_NEEDLESS, no_wal },
	{ "publication.*", ADOPT_NEEDLESS, no_wal },
	{ "snapshot.*", ADOPT_NEEDLESS, no_wal },
	{ "heartbeat.*", ADOPT_NEEDLESS, no_wal },
	{ "xmin.fetch.interval.ms", ADOPT_NEEDLESS, no_wal },
	{ "replica.identity.*", ADOPT_NEEDLESS, no_wal },
	{ "status.update.interval.ms", ADOPT_NEEDLESS, no_wal },
	{ "offset.*", ADOPT_NEEDLESS, "the position is a record in Kafka, written with the events" },
	{ "schema.history*", ADOPT_NEEDLESS, no_wal },
	{ "signal.*", ADOPT_NEEDLESS, "postrider pause, resume and replay" },
	{ "notification.*", ADOPT_NEEDLESS, "/status.json, /metrics and the log" },
	{ "poll.interval.ms", ADOPT_NEEDLESS, "limits.poll_min and poll_max: 1 to 10 ms" },
	{ "max.queue.*", ADOPT_NEEDLESS, "memory is bounded by limits.batch_bytes" },
	{ "max.batch.size", ADOPT_NEEDLESS, "limits.batch_events: 10000" },
	{ "tombstones.on.delete", ADOPT_NEEDLESS, "deleted rows make no records" },
	{ "skipped.operations", ADOPT_NEEDLESS, "only INSERT is looked at" },
	{ "schema.include.list", ADOPT_NEEDLESS, "the SQL names the table" },
	{ "column.*", ADOPT_IMPOSSIBLE, "columns are passed as they are: mask them in the SQL" },
	{ "decimal.handling.mode", ADOPT_NEEDLESS, "JSON is passed as the row has it" },
	{ "time.precision.mode", ADOPT_NEEDLESS, "JSON is passed as the row has it" },
	{ "binary.handling.mode", ADOPT_NEEDLESS, "bytes are passed as they are" },
	{ "include.schema.changes", ADOPT_NEEDLESS, no_wal },
	{ "provide.transaction.metadata", ADOPT_IMPOSSIBLE,
		"no topic of transactions; header outbox-seq has the order" },
	{ "exactly.once.support", ADOPT_KEPT,
		"delivery = exactly_once, also without Connect's worker settings" },
	{ "transaction.boundary*", ADOPT_NEEDLESS, "limits.batch_events bounds a Kafka transaction" },
	{ "topic.creation.*", ADOPT_TO_DO, "create the topics: events wait for theirs until it is there" },
	{ "topic.naming.strategy", ADOPT_NEEDLESS, "EventRouter names the topics" },
	{ "errors.*", ADOPT_DIFFERS,
		"what a topic refuses parks its key, with order kept: postrider parked list" },
	{ "retriable.*", ADOPT_NEEDLESS, "retried until it goes" },
	{ "event.processing.*", ADOPT_DIFFERS, "parked, see errors" },
	{ "header.converter", ADOPT_DIFFERS, "header values are text: strings as they are, others as JSON" },
	{ "key.converter.*", ADOPT_NEEDLESS, "of the key's converter" },
	{ "predicates*", ADOPT_NEEDLESS, "the SQL's trigger is on the outbox's table alone" },
	{ "router.predicate", ADOPT_NEEDLESS, "the SQL's trigger is on the outbox's table alone" },
	{ "router.negate", ADOPT_NEEDLESS, "the SQL's trigger is on the outbox's table alone" },
	{ "router.table.field.event.id", ADOPT_KEPT, in_sql },
	{ "router.table.field.event.key", ADOPT_KEPT, in_sql },
	{ "router.table.field.event.payload", ADOPT_KEPT, in_sql },
	{ "router.table.field.event.payload.id", ADOPT_NEEDLESS, "gone from Debezium since 2.0" },
	{ "router.table.field.event.type", ADOPT_KEPT, in_sql },
	{ "router.table.field.event.timestamp", ADOPT_DIFFERS,
		"a record's time is that of its publication; header outbox-created-at has that of the "
		"insert" },
	{ "router.table.field.event.schema.version", ADOPT_IMPOSSIBLE, "records have no Connect schema" },
	{ "router.table.fields.additional.error.on.missing", ADOPT_NEEDLESS,
		"a column that is missing is an error" },
	{ "router.route.by.field", ADOPT_KEPT,
		"the SQL makes it the aggregatetype, of which the topic is made" },
	{ "router.route.tombstone.on.empty.payload", ADOPT_KEPT,
		"in the SQL: what is NULL or empty is a tombstone" },
	{ "router.table.json.payload.null.behavior", ADOPT_DIFFERS,
		"nulls inside the payload stay, also where \"ignore\" left them out" },
	{ "router.table.op.invalid.behavior", ADOPT_NEEDLESS,
		"only INSERT is looked at; rows may be deleted at once" },
	{ "router.tracing.span.context.field", ADOPT_KEPT, in_sql },
	{ "router.tracing.*", ADOPT_DIFFERS,
		"header traceparent is the row's; the relay makes no span of its own here" },
	{ "producer.override.acks", ADOPT_NEEDLESS, by_relay },
	{ "producer.override.enable.idempotence", ADOPT_NEEDLESS, by_relay },
	{ "producer.override.retries", ADOPT_NEEDLESS, by_relay },
	{ "producer.override.max.in.flight*", ADOPT_NEEDLESS, by_relay },
	{ "producer.override.delivery.timeout.ms", ADOPT_NEEDLESS, by_relay },
	{ "producer.override.transaction*", ADOPT_NEEDLESS, by_relay },
	{ "producer.override.buffer.memory", ADOPT_NEEDLESS, "memory is bounded by limits.batch_bytes" },
	{ "producer.override.bootstrap.servers", ADOPT_KEPT, "kafka.brokers" },
	{ "producer.override.*serializer", ADOPT_NEEDLESS, "bytes are sent" },
	{ "producer.override.partitioner.class", ADOPT_DIFFERS, "murmur2 of the key, as Java's default" },
	{ "producer.override.sasl.jaas.config", ADOPT_TO_DO,
		"sasl.username=... and sasl.password=file:/path in kafka.properties" },
	{ "producer.override.ssl.truststore.*", ADOPT_TO_DO,
		"ssl.ca.location=/path.pem (keytool -exportcert -rfc)" },
	{ "producer.override.ssl.key*", ADOPT_TO_DO,
		"ssl.certificate.location and ssl.key.location, PEM (openssl pkcs12)" },
	{ "producer.override.*", ADOPT_DIFFERS, "librdkafka has no such property, or another one" },
	{ "debezium.sink.*", ADOPT_NEEDLESS, "the sink is Kafka" },
	{ "quarkus.*", ADOPT_NEEDLESS, "of Debezium Server" },
};

int import_is_secret(const char *name)
{
	return strcasestr(name, "password") || strcasestr(name, "jaas") || strcasestr(name, "secret") ||
	       strcasestr(name, "ssl.keystore.key");
}

static int fits(const char *pattern, const char *key)
{
	const char *star = strchr(pattern, '*');
	size_t n = star ? (size_t)(star - pattern) : 0, w = star ? strlen(star + 1) : 0, k = strlen(key);

	if (!star)
		return strcmp(pattern, key) == 0;
	return strncmp(pattern, key, n) == 0 && k >= n + w && strcmp(key + k - w, star + 1) == 0;
}

static void judged(struct import_option *o, enum adopt_fate fate, const char *fmt, ...) PR_PRINTF(3, 4);
static void judged(struct import_option *o, enum adopt_fate fate, const char *fmt, ...)
{
	va_list ap;

	if (!o || o->fate != ADOPT_UNKNOWN)
		return;
	o->fate = fate;
	va_start(ap, fmt);
	(void)vsnprintf(o->why, sizeof(o->why), fmt, ap);
	va_end(ap);
}

const char *import_property(const char *producer)
{
	static const char *const same[][2] = { { "compression.type", "compression.codec" },
		{ "linger.ms", "linger.ms" }, { "batch.size", "batch.size" }, { "client.id", "client.id" },
		{ "max.request.size", "message.max.bytes" }, { "security.protocol", "security.protocol" },
		{ "sasl.mechanism", "sasl.mechanisms" },
		{ "ssl.endpoint.identification.algorithm", "ssl.endpoint.identification.algorithm" },
		{ "metadata.max.age.ms", "metadata.max.age.ms" } };

	for (size_t i = 0; i < sizeof(same) / sizeof(*same); i++)
		if (strcmp(same[i][0], producer) == 0)
			return same[i][1];
	return NULL;
}

static int has(const char *value, const char *word)
{
	return strcasestr(value, word) != NULL;
}

int import_bytes(const struct import *m)
{
	const char *value = import_get(m, "value.converter", "");

	return has(value, "ByteArray") || has(value, "BinaryData") || strcasecmp(value, "binary") == 0;
}

int import_expand(const struct import *m)
{
	return strcasecmp(import_get(m, "router.table.expand.json.payload", "false"), "true") == 0;
}

static void judge_value(struct import *m)
{
	struct import_option *o = import_find(m, "value.converter"),
			     *s = import_find(m, "value.converter.schemas.enable");
	const char *v = o ? o->value : "";

	judged(import_find(m, "router.table.expand.json.payload"), ADOPT_KEPT,
		import_expand(m) ? "the payload is JSON, and goes as JSON (spaces as Postgres writes them)"
				 : "the payload goes as it is written");
	if (has(v, "avro") || has(v, "protobuf"))
		judged(o, ADOPT_IMPOSSIBLE,
			"no registry: the payload goes as the row has it; write encoded bytes into a bytea");
	else if (has(v, "cloudevents"))
		judged(o, ADOPT_IMPOSSIBLE, "no envelope: the payload goes as the row has it");
	else if (has(v, "json") && s && strcasecmp(s->value, "false") != 0)
		judged(o, ADOPT_DIFFERS, "the value was {schema, payload}; here it is the payload alone");
	else if (has(v, "json") && !import_expand(m))
		judged(o, ADOPT_DIFFERS,
			"the value was a JSON string with the document inside; here it is the document");
	else
		judged(o, ADOPT_KEPT, "the payload's bytes are the value");
	for (int i = 0; i < m->n; i++)
		if (strncmp(m->v[i].key, "value.converter.", 16) == 0)
			judged(&m->v[i], ADOPT_NEEDLESS, "of the value's converter");
}

static void judge_key(struct import *m)
{
	struct import_option *o = import_find(m, "key.converter");

	if (o && (has(o->value, "string") || has(o->value, "bytearray")))
		judged(o, ADOPT_KEPT, "the key is the column's text");
	else
		judged(o, ADOPT_DIFFERS,
			"the key was encoded by it; here it is the column's text, and other keys take other "
			"partitions");
}

static void judge_topic(struct import *m)
{
	struct import_option *regex = import_find(m, "router.route.topic.regex");
	struct import_option *to = import_find(m, "router.route.topic.replacement");
	const char *v = to ? to->value : "", *dollar = strchr(v, '$');

	if (regex && strcmp(regex->value, "(?<routedByValue>.*)") != 0)
		judged(regex, ADOPT_TO_DO,
			"the relay has no regular expressions: set the column topic in the SQL");
	judged(regex, ADOPT_KEPT, "route.topic");
	if (dollar && strncmp(dollar, "${routedByValue}", 16) != 0)
		judged(to, ADOPT_TO_DO,
			"route.topic knows ${aggregatetype} only: set the column topic in the SQL");
	judged(to, ADOPT_KEPT, "route.topic");
}

static void judge_placed(struct import *m)
{
	struct import_option *o = import_find(m, "router.table.fields.additional.placement");
	char column[64], place[64], alias[64];

	for (int i = 0; o && import_placed(m, i, column, place, alias, sizeof(column)); i++) {
		if (strcmp(place, "envelope") == 0)
			judged(o, ADOPT_IMPOSSIBLE,
				"%s: no envelope, the value is the payload; place it in a header", column);
		else if (strcmp(place, "header") != 0 && strcmp(place, "partition") != 0)
			judged(o, ADOPT_IMPOSSIBLE, "%s: unknown place \"%s\"", column, place);
	}
	judged(o, ADOPT_KEPT, "the SQL puts the columns into headers; header type is always there");
}

static void judge_table(struct import *m)
{
	struct import_option *o = import_find(m, "table.include.list");

	if (o && strchr(o->value, ','))
		judged(o, ADOPT_TO_DO, "the SQL is for the first table: run it for each of the others, too");
	judged(o, ADOPT_KEPT, "the SQL puts its trigger on it");
}

static void judge_other_transforms(struct import *m)
{
	for (int i = 0; i < m->n; i++)
		if (strncmp(m->v[i].key, "transforms.", 11) == 0)
			judged(&m->v[i], ADOPT_IMPOSSIBLE,
				"no transformations: what it does must be done in the SQL, or by readers");
}

static int not_ours(const struct import *m, struct pr_err *err)
{
	const char *class = import_get(m, "connector.class", "");

	if (*class && !has(class, "postgres"))
		(void)pr_fail(err, PR_REJECT, "%s is not Debezium's Postgres connector", class);
	else if (!m->alias)
		(void)pr_fail(err, PR_REJECT,
			"no transform is Debezium's outbox.EventRouter: this connector publishes changes of "
			"tables, not an outbox");
	else
		return 0;
	err->exit = PR_EX_CONFIG;
	return -1;
}

int import_judge(struct import *m, struct pr_err *err)
{
	if (not_ours(m, err) < 0)
		return -1;
	judge_value(m);
	judge_key(m);
	judge_topic(m);
	judge_placed(m);
	judge_table(m);
	judge_other_transforms(m);
	for (int i = 0; i < m->n; i++) {
		const char *key = m->v[i].key;

		if (strncmp(key, "producer.override.", 18) == 0 && import_property(key + 18))
			judged(&m->v[i], ADOPT_KEPT, "kafka.properties: %s", import_property(key + 18));
		if (strstr(m->v[i].value, "${") && strncmp(key, "router.", 7) != 0 && !import_is_secret(key))
			judged(&m->v[i], ADOPT_TO_DO,
				"a config provider's value is not looked up: put it in by hand");
		for (size_t r = 0; r < sizeof(rules) / sizeof(*rules); r++)
			if (fits(rules[r].key, key))
				judged(&m->v[i], rules[r].fate, "%s", rules[r].why);
		judged(&m->v[i], ADOPT_DIFFERS, "not known here: see whether readers notice");
	}
	return 0;
}
