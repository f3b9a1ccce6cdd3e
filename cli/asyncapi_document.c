/* cli/asyncapi_document.c -- an AsyncAPI 3.0 document of channels, as a tree of JSON, and any such tree as
 * YAML. Names that the specification does not take are written with _ and a number. */
#include "cli/asyncapi.h"

#include "lib/kafka.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define KAFKA_BINDING "0.5.0"

static cJSON *object(cJSON *in, const char *name)
{
	return cJSON_AddObjectToObject(in, name);
}

static void text(cJSON *in, const char *name, const char *s)
{
	(void)cJSON_AddStringToObject(in, name, s);
}

/* Keys of components: letters, digits, . _ - */
static char *component_name(const char *s, const cJSON *taken)
{
	char *name = pr_asprintf("%.200s", *s ? s : "untyped"), *other;

	for (char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
			*p = '_';
	for (int i = 2; cJSON_HasObjectItem(taken, name); i++) { /* without regard to case, as it happens */
		other = pr_asprintf("%.200s_%d", *s ? s : "untyped", i);
		for (char *p = other; *p; p++)
			if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
				*p = '_';
		free(name);
		name = other;
	}
	return name;
}

/* ---- schemas ---- */

static cJSON *example_of(const struct place *p, enum examples how)
{
	struct pr_buf b = { 0 };
	cJSON *value;

	if (how == EXAMPLES_NONE || !p->sample)
		return NULL;
	if (how == EXAMPLES_PLAIN || !strchr("\"-0123456789", *p->sample))
		pr_buf_puts(&b, p->sample); /* of a person it was masked when it was learnt */
	else
		pr_shape_mask(&b, p->sample, strlen(p->sample));
	value = cJSON_Parse(b.s ? b.s : "");
	pr_buf_free(&b);
	if (value && cJSON_IsNumber(value) && how == EXAMPLES_PLAIN) { /* all its digits */
		cJSON_Delete(value);
		value = cJSON_CreateRaw(p->sample);
	}
	return value;
}

static void put_types(cJSON *schema, unsigned kinds)
{
	static const char *const words[] = { "null", "boolean", "integer", "number", "string", "object",
		"array" };
	unsigned many = 0;
	cJSON *list;

	if (kinds & PR_IS_NUMBER)
		kinds &= ~(unsigned)PR_IS_INTEGER; /* a number may be whole */
	for (unsigned i = 0; i < 7; i++)
		many += kinds >> i & 1;
	if (many == 0)
		return;
	list = many > 1 ? cJSON_AddArrayToObject(schema, "type") : NULL;
	for (unsigned i = 0; i < 7; i++) {
		if (!(kinds >> i & 1))
			continue;
		if (list)
			(void)cJSON_AddItemToArray(list, cJSON_CreateString(words[i]));
		else
			text(schema, "type", words[i]);
	}
}

static cJSON *schema_of(const struct place *p, enum examples how);

/* A member is required when it came in each of the objects, and these were nothing but objects. */
static void put_members(cJSON *schema, const struct place *p, enum examples how)
{
	cJSON *properties = NULL, *required = NULL;

	for (const struct place *c = p->child; c; c = c->next) {
		if (c->element) {
			(void)cJSON_AddItemToObject(schema, "items", schema_of(c, how));
			continue;
		}
		if (c->any) {
			(void)cJSON_AddItemToObject(schema, "additionalProperties", schema_of(c, how));
			continue;
		}
		properties = properties ? properties : object(schema, "properties");
		(void)cJSON_AddItemToObject(properties, c->name, schema_of(c, how));
		if (p->kinds != PR_IS_OBJECT || c->seen < p->seen)
			continue;
		required = required ? required : cJSON_AddArrayToObject(schema, "required");
		(void)cJSON_AddItemToArray(required, cJSON_CreateString(c->name));
	}
}

static cJSON *schema_of(const struct place *p, enum examples how)
{
	cJSON *schema = cJSON_CreateObject(), *example = example_of(p, how), *list;

	put_types(schema, p->kinds);
	put_members(schema, p, how);
	if (example) {
		list = cJSON_AddArrayToObject(schema, "examples");
		(void)cJSON_AddItemToArray(list, example);
	}
	if (p->pii) {
		list = cJSON_AddArrayToObject(schema, "x-pii");
		for (const char *s = p->pii; *s; s += strcspn(s, ","), s += *s == ',') {
			char *word = pr_asprintf("%.*s", (int)strcspn(s, ","), s);

			(void)cJSON_AddItemToArray(list, cJSON_CreateString(word));
			free(word);
		}
	}
	return schema;
}

/* What every record of a relay carries, then what else was seen. */
static void put_headers(cJSON *message, const struct event_type *t)
{
	static const struct {
		const char *name, *doc;
	} ours[] = {
		{ "id", "UUID of the event: the same when it comes again" },
		{ "type", "the event's type" },
		{ "content-type", "of the payload" },
		{ "outbox-seq", "number of the event in its outbox, in digits" },
		{ "outbox-created-at", "when the event was written, RFC 3339" },
	};
	cJSON *headers = object(message, "headers"), *properties, *one;

	text(headers, "type", "object");
	properties = object(headers, "properties");
	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++) {
		one = object(properties, ours[i].name);
		text(one, "type", "string");
		text(one, "description", ours[i].doc);
	}
	for (size_t i = 0; i < t->headers_n; i++)
		if (!cJSON_GetObjectItemCaseSensitive(properties, t->headers[i]))
			text(object(properties, t->headers[i]), "type", "string");
}

static cJSON *example_value(const struct place *p, enum examples how)
{
	cJSON *value, *inner;

	if (!(p->kinds & (PR_IS_OBJECT | PR_IS_ARRAY))) {
		value = example_of(p, how);
		return value ? value : cJSON_CreateNull();
	}
	value = p->kinds & PR_IS_OBJECT ? cJSON_CreateObject() : cJSON_CreateArray();
	for (const struct place *c = p->child; c; c = c->next) {
		if (c->any || (c->element && (p->kinds & PR_IS_OBJECT)))
			continue;
		inner = example_value(c, how);
		if (c->element)
			(void)cJSON_AddItemToArray(value, inner);
		else
			(void)cJSON_AddItemToObject(value, c->name, inner);
	}
	return value;
}

static cJSON *message_of(const struct event_type *t, enum examples how)
{
	cJSON *message = cJSON_CreateObject(), *kafka, *key, *list, *example;

	text(message, "name", *t->name ? t->name : "untyped");
	text(message, "contentType", "application/json");
	put_headers(message, t);
	(void)cJSON_AddItemToObject(message, "payload", schema_of(&t->payload, how));
	kafka = object(object(message, "bindings"), "kafka");
	key = object(kafka, "key");
	text(key, "type", "string");
	if (t->key_bytes)
		text(key, "description", "bytes that are not always text");
	else
		text(key, "description", "the aggregate's id: events of one key keep their order");
	text(kafka, "bindingVersion", KAFKA_BINDING);
	if (how != EXAMPLES_NONE && t->payload.kinds & PR_IS_OBJECT && t->payload.child) {
		list = cJSON_AddArrayToObject(message, "examples");
		example = cJSON_CreateObject();
		text(example, "name", how == EXAMPLES_PLAIN ? "learnt" : "masked");
		(void)cJSON_AddItemToObject(example, "payload", example_value(&t->payload, how));
		(void)cJSON_AddItemToArray(list, example);
	}
	return message;
}

/* ---- the document ---- */

static void ref(cJSON *in, const char *name, const char *fmt, const char *a, const char *b)
{
	struct pr_buf path = { 0 };

	pr_buf_puts(&path, fmt);
	pr_buf_puts(&path, a);
	if (b)
		pr_buf_printf(&path, "/messages/%s", b);
	text(name ? object(in, name) : in, "$ref", path.s);
	pr_buf_free(&path);
}

static void put_channel(cJSON *doc, cJSON *messages, const struct channel *ch, enum examples how)
{
	cJSON *channels = cJSON_GetObjectItemCaseSensitive(doc, "channels"),
	      *operations = cJSON_GetObjectItemCaseSensitive(doc, "operations");
	char *name = component_name(ch->topic, channels), *operation = pr_asprintf("receive_%s", name);
	cJSON *channel = object(channels, name), *of_channel, *kafka, *op, *list, *one;

	text(channel, "address", ch->topic);
	of_channel = object(channel, "messages");
	op = object(operations, operation);
	text(op, "action", "receive");
	ref(op, "channel", "#/channels/", name, NULL);
	list = cJSON_AddArrayToObject(op, "messages");
	for (const struct event_type *t = ch->types; t; t = t->next) {
		char *message = component_name(t->name, messages);

		(void)cJSON_AddItemToObject(messages, message, message_of(t, how));
		ref(of_channel, message, "#/components/messages/", message, NULL);
		one = cJSON_CreateObject();
		ref(one, NULL, "#/channels/", name, message);
		(void)cJSON_AddItemToArray(list, one);
		free(message);
	}
	kafka = object(object(channel, "bindings"), "kafka");
	text(kafka, "topic", ch->topic);
	if (ch->partitions > 0)
		cli_json_int(kafka, "partitions", ch->partitions);
	text(kafka, "bindingVersion", KAFKA_BINDING);
	free(operation);
	free(name);
}

static void put_servers(cJSON *doc, const struct cli *c)
{
	const char *brokers = cli_brokers(c);
	cJSON *server;
	char *first;

	if (!brokers)
		return;
	first = pr_asprintf("%.*s", (int)strcspn(brokers, ","), brokers);
	server = object(object(doc, "servers"), "kafka");
	text(server, "host", first);
	text(server, "protocol", "kafka");
	free(first);
}

cJSON *asyncapi_document(
	const struct cli *c, const struct channel *channels, size_t n, enum examples examples)
{
	cJSON *doc = cJSON_CreateObject(), *info, *messages;

	text(doc, "asyncapi", "3.0.0");
	info = object(doc, "info");
	text(info, "title", cli_str(c, "title") ? cli_str(c, "title") : "Events");
	text(info, "version", cli_str(c, "api-version") ? cli_str(c, "api-version") : "1.0.0");
	text(info, "description",
		"Made by postrider from what was seen on the topics. Fields with x-pii look like something "
		"about a person.");
	text(doc, "defaultContentType", "application/json");
	put_servers(doc, c);
	(void)object(doc, "channels");
	(void)object(doc, "operations");
	messages = object(object(doc, "components"), "messages");
	for (size_t i = 0; i < n; i++)
		put_channel(doc, messages, &channels[i], examples);
	return doc;
}

/* ---- YAML ---- */

static void indent(FILE *f, int by)
{
	(void)fprintf(f, "%*s", by, "");
}

/* A word that YAML would take for nothing else. */
static int is_plain(const char *s)
{
	static const char *const others[] = { "null", "true", "false", "yes", "no", "on", "off", "y", "n" };

	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		if (strcasecmp(s, others[i]) == 0)
			return 0;
	if (!isalpha((unsigned char)*s) && *s != '_')
		return 0;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("_-./", *s))
			return 0;
	return 1;
}

static void put_quoted(FILE *f, const char *s)
{
	struct pr_buf b = { 0 };

	if (is_plain(s)) {
		(void)fputs(s, f);
		return;
	}
	pr_buf_json(&b, s, strlen(s));
	for (const char *p = b.s; *p; p++) {
		unsigned char c = (unsigned char)*p;

		/* What YAML takes for the end of a line, or does not take, and JSON does. */
		if (c == 0x7f)
			(void)fputs("\\u007f", f);
		else if (c == 0xc2 && (unsigned char)p[1] < 0xa0)
			(void)fprintf(f, "\\u00%02x", (unsigned char)*++p);
		else if (c == 0xe2 && (unsigned char)p[1] == 0x80 && ((unsigned char)p[2] & 0xfe) == 0xa8)
			(void)fprintf(f, "\\u202%c", (unsigned char)*(p += 2) == 0xa8 ? '8' : '9');
		else
			(void)fputc(*p, f);
	}
	pr_buf_free(&b);
}

static void put_yaml(const cJSON *v, FILE *f, int by, int behind);

/* behind: the first member goes behind "- ". */
static void put_map(const cJSON *v, FILE *f, int by, int behind)
{
	for (const cJSON *m = v->child; m; m = m->next) {
		if (!behind)
			indent(f, by);
		behind = 0;
		put_quoted(f, m->string);
		(void)fputc(':', f);
		if ((cJSON_IsObject(m) || cJSON_IsArray(m)) && m->child)
			(void)fputc('\n', f);
		else
			(void)fputc(' ', f);
		put_yaml(m, f, by + 2, 0);
	}
}

static void put_yaml(const cJSON *v, FILE *f, int by, int behind)
{
	char *scalar;

	if (cJSON_IsObject(v) && v->child) {
		put_map(v, f, by, behind);
	} else if (cJSON_IsArray(v) && v->child) {
		for (const cJSON *m = v->child; m; m = m->next) {
			if (!behind)
				indent(f, by);
			behind = 0;
			(void)fputs("- ", f);
			put_yaml(m, f, by + 2, 1);
		}
	} else if (cJSON_IsString(v)) {
		put_quoted(f, v->valuestring);
		(void)fputc('\n', f);
	} else {
		scalar = cJSON_PrintUnformatted(v);
		(void)fprintf(f, "%s\n", scalar ? scalar : "null");
		free(scalar);
	}
}

void asyncapi_yaml(const cJSON *value, FILE *f)
{
	put_yaml(value, f, 0, 0);
}
