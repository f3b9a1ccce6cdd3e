/* cli/import_read.c -- a connector's config file into a list of options. Takes {"name", "config": {...}}, a
 * flat object, and Java properties (Connect standalone, Debezium Server). Resolves nothing: "${file:...}"
 * stays. */
#include "cli/import.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static void add(struct import *m, const char *name, const char *value)
{
	m->v = pr_realloc(m->v, (size_t)(m->n + 1) * sizeof(*m->v));
	m->v[m->n++] = (struct import_option){
		.name = pr_strdup(name), .key = pr_strdup(name), .value = pr_strdup(value)
	};
}

static void read_object(struct import *m, const cJSON *object)
{
	const cJSON *item;
	char *text;

	cJSON_ArrayForEach(item, object)
	{
		if (cJSON_IsString(item)) {
			add(m, item->string, item->valuestring);
			continue;
		}
		text = cJSON_PrintUnformatted(item);
		add(m, item->string, text ? text : "");
		cJSON_free(text);
	}
}

static int read_json(struct import *m, const char *text, size_t len, struct pr_err *err)
{
	cJSON *doc = cJSON_ParseWithLength(text, len);
	const cJSON *config = cJSON_GetObjectItemCaseSensitive(doc, "config");
	const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(doc, "name"));

	if (!cJSON_IsObject(doc)) {
		cJSON_Delete(doc);
		(void)pr_fail(err, PR_REJECT, "the file is neither a JSON object nor properties");
		err->exit = PR_EX_CONFIG;
		return pr_hint(err, "give what GET /connectors/NAME of Kafka Connect answers");
	}
	if (cJSON_IsObject(config) && name && !cJSON_GetObjectItemCaseSensitive(config, "name"))
		add(m, "name", name);
	read_object(m, cJSON_IsObject(config) ? config : doc);
	cJSON_Delete(doc);
	return 0;
}

static char *trim(char *s)
{
	size_t n;

	while (isspace((unsigned char)*s))
		s++;
	n = strlen(s);
	while (n && isspace((unsigned char)s[n - 1]))
		s[--n] = '\0';
	return s;
}

/* A backslash at a line's end goes on in the next. */
static void join_lines(char *text)
{
	for (char *p = text; *p; p++)
		if (*p == '\\' && p[strspn(p + 1, "\r") + 1] == '\n')
			memset(p, ' ', strspn(p + 1, "\r") + 2);
}

/* "name = value" or "name: value". */
static void read_properties(struct import *m, char *text)
{
	char *line, *name, *rest = text;
	size_t n;

	join_lines(text);
	while ((line = strsep(&rest, "\n")) != NULL) {
		name = trim(line);
		n = strcspn(name, "=:");
		if (*name == '#' || *name == '!' || name[n] == '\0')
			continue;
		name[n] = '\0';
		add(m, trim(name), trim(name + n + 1));
	}
}

static void rename_key(struct import_option *o, const char *from, const char *to)
{
	size_t n = strlen(from);
	char *key;

	if (strncmp(o->key, from, n) != 0)
		return;
	key = pr_asprintf("%s%s", to, o->key + n);
	free(o->key);
	o->key = key;
}

static int is_router(const char *type)
{
	size_t n = strlen(type), w = strlen("outbox.EventRouter");

	return n >= w && strcmp(type + n - w, "outbox.EventRouter") == 0;
}

static void normalise(struct import *m)
{
	char *from = NULL;

	for (int i = 0; i < m->n; i++) {
		rename_key(&m->v[i], "debezium.source.", "");
		rename_key(&m->v[i], "debezium.transforms", "transforms");
		rename_key(&m->v[i], "debezium.sink.kafka.producer.", "producer.override.");
		rename_key(&m->v[i], "debezium.format.key", "key.converter");
		rename_key(&m->v[i], "debezium.format.value", "value.converter");
		rename_key(&m->v[i], "table.whitelist", "table.include.list");
		rename_key(&m->v[i], "database.server.name", "topic.prefix");
		if (!m->alias && is_router(m->v[i].value) && strncmp(m->v[i].key, "transforms.", 11) == 0) {
			m->alias = pr_strdup(m->v[i].key + 11);
			m->alias[strcspn(m->alias, ".")] = '\0';
		}
	}
	if (m->alias)
		from = pr_asprintf("transforms.%s.", m->alias);
	for (int i = 0; from && i < m->n; i++)
		rename_key(&m->v[i], from, "router.");
	free(from);
}

int import_read(struct import *m, const char *text, size_t len, struct pr_err *err)
{
	const char *p = text;
	char *copy;
	int rc = 0;

	while (isspace((unsigned char)*p))
		p++;
	if (*p == '{' || *p == '[') {
		rc = read_json(m, text, len, err);
	} else {
		copy = pr_strdup(text);
		read_properties(m, copy);
		free(copy);
	}
	normalise(m);
	return rc;
}

void import_release(struct import *m)
{
	for (int i = 0; i < m->n; i++) {
		free(m->v[i].name);
		free(m->v[i].key);
		free(m->v[i].value);
	}
	free(m->v);
	free(m->alias);
}

struct import_option *import_find(const struct import *m, const char *key)
{
	for (int i = 0; i < m->n; i++)
		if (strcmp(m->v[i].key, key) == 0)
			return &m->v[i];
	return NULL;
}

const char *import_get(const struct import *m, const char *key, const char *otherwise)
{
	const struct import_option *o = import_find(m, key);

	return o && *o->value ? o->value : otherwise;
}
