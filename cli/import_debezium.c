/* cli/import_debezium.c -- `postrider import-debezium`: relay.cfg and SQL from the config of a Debezium
 * connector, and what becomes of each of its options. Contacts nothing, copies no secret, overwrites only
 * when told to. */
#include "cli/import.h"

#include <stdlib.h>

static const char *shown(const struct import_option *o)
{
	return import_is_secret(o->name) ? "***" : o->value;
}

static int count(const struct import *m, enum adopt_fate fate)
{
	int n = 0;

	for (int i = 0; i < m->n; i++)
		n += m->v[i].fate == fate;
	return n;
}

/* What needs a person first. */
static void list(const struct import *m)
{
	static const char *const heads[] = { "option", "value", "here", "~why" };
	static const enum adopt_fate order[] = { ADOPT_IMPOSSIBLE, ADOPT_TO_DO, ADOPT_DIFFERS, ADOPT_KEPT,
		ADOPT_NEEDLESS };
	struct cli_table t = { .ncols = 4, .heads = heads };

	for (size_t k = 0; k < sizeof(order) / sizeof(*order); k++)
		for (int i = 0; i < m->n; i++)
			if (m->v[i].fate == order[k])
				cli_table_add(&t, (const char *const[]){ m->v[i].name, shown(&m->v[i]),
							  adopt_fate_str[order[k]], m->v[i].why });
	cli_table_print(&t, stdout);
}

static void list_json(const struct import *m, const struct pr_buf *config, const struct pr_buf *sql)
{
	cJSON *doc = cJSON_CreateObject(), *options = cJSON_AddArrayToObject(doc, "options"), *o;

	(void)cJSON_AddStringToObject(doc, "config", config->s);
	(void)cJSON_AddStringToObject(doc, "sql", sql->s);
	for (int i = 0; i < m->n; i++) {
		o = cJSON_CreateObject();
		(void)cJSON_AddStringToObject(o, "option", m->v[i].name);
		(void)cJSON_AddStringToObject(o, "value", shown(&m->v[i]));
		(void)cJSON_AddStringToObject(o, "fate", adopt_fate_str[m->v[i].fate]);
		(void)cJSON_AddStringToObject(o, "why", m->v[i].why);
		(void)cJSON_AddItemToArray(options, o);
	}
	cli_json_free_line(doc);
}

static int import(struct cli *c, struct import *m, struct pr_err *err)
{
	const char *out = cli_str(c, "output"), *sql_file = cli_str(c, "sql");
	struct pr_buf config = { 0 }, sql = { 0 };
	struct adopt a = { 0 };
	int rc = 0;

	if (import_judge(m, err) < 0)
		return -1;
	import_config(m, cli_str(c, "brokers"), cli_str(c, "name"), &config);
	import_adopt(m, &a);
	adopt_sql_begin(&a, &sql);
	adopt_sql_triggers(&a, &sql);
	adopt_sql_end(&sql);
	if (out)
		rc = cli_write_file(c, out, &config, err);
	if (rc == 0 && sql_file)
		rc = cli_write_file(c, sql_file, &sql, err);
	if (rc == 0 && cli_has(c, "json"))
		list_json(m, &config, &sql);
	else if (rc == 0)
		list(m);
	pr_buf_free(&config);
	pr_buf_free(&sql);
	adopt_release(&a);
	return rc;
}

int verb_import_debezium(struct cli *c)
{
	struct import m = { .n = 0 };
	struct pr_err err = { 0 };
	char *text = NULL;
	size_t len;
	int rc;

	if (cli_read_file(c->args[0], &text, &len, &err) < 0 || import_read(&m, text, len, &err) < 0 ||
		import(c, &m, &err) < 0) {
		rc = cli_failed(c, &err);
	} else {
		rc = count(&m, ADOPT_IMPOSSIBLE) ? PR_EX_UNHEALTHY : PR_EX_OK;
		cli_say("%d kept or needless, %d differ, %d to do, %d impossible",
			count(&m, ADOPT_KEPT) + count(&m, ADOPT_NEEDLESS), count(&m, ADOPT_DIFFERS),
			count(&m, ADOPT_TO_DO), count(&m, ADOPT_IMPOSSIBLE));
		if (cli_has(c, "output"))
			cli_hint("check it with postrider-relay --check, then: postrider init -c, the SQL, "
				 "the relay");
	}
	free(text);
	import_release(&m);
	return rc;
}
