/* lib/rights.c -- "permission denied for schema seat" -> "GRANT USAGE ON SCHEMA seat TO ...". Refuses to
 * guess where the server does not name the object; knows the server's English words only, others give no
 * statement. */
#include "lib/rights.h"

#include <stdio.h>
#include <string.h>

static const char denied[] = "permission denied for ";

/* The server's word for a kind of object -> what to grant on it. Longer words before those they begin with.
 */
static const struct {
	const char *word, *grant;
	int whole; /* its name is enough: not one of a schema */
} kinds[] = {
	{ "schema ", "USAGE ON SCHEMA", 1 },
	{ "language ", "USAGE ON LANGUAGE", 1 },
	{ "foreign server ", "USAGE ON FOREIGN SERVER", 1 },
	{ "function ", "EXECUTE ON FUNCTION", 0 },
	{ "procedure ", "EXECUTE ON PROCEDURE", 0 },
	{ "sequence ", "USAGE ON SEQUENCE", 0 },
	{ "type ", "USAGE ON TYPE", 0 },
	{ "table ", "SELECT, INSERT, UPDATE, DELETE ON", 0 },
	{ "view ", "SELECT, INSERT, UPDATE, DELETE ON", 0 },
	{ "materialized view ", "SELECT ON", 0 },
	{ "foreign table ", "SELECT, INSERT, UPDATE, DELETE ON", 0 },
	{ "partitioned table ", "SELECT, INSERT, UPDATE, DELETE ON", 0 },
};

#define NKINDS (sizeof(kinds) / sizeof(*kinds))

static int is_plain(const char *s, size_t n)
{
	if (n == 0 || (*s != '_' && (*s < 'a' || *s > 'z')))
		return 0;
	return strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_") >= n;
}

char *pr_quote_ident(const char *name, size_t n, char *buf, size_t size)
{
	size_t at = 0;

	if (is_plain(name, n)) {
		(void)snprintf(buf, size, "%.*s", (int)n, name);
		return buf;
	}
	buf[at++] = '"';
	for (size_t i = 0; i < n && at + 3 < size; i++) {
		if (name[i] == '"')
			buf[at++] = '"';
		buf[at++] = name[i];
	}
	buf[at++] = '"';
	buf[at] = '\0';
	return buf;
}

/* Our own schemas have roles. */
static const char *role_of(const char *schema, size_t n)
{
	if (n == 6 && memcmp(schema, "outbox", 6) == 0)
		return "outbox_writer";
	return n == 5 && memcmp(schema, "inbox", 5) == 0 ? "inbox_consumer" : NULL;
}

/* name: behind the word of its kind, to the end or to a detail in parentheses. */
static void grant(size_t kind, const char *name, const char *to, char *buf, size_t size)
{
	const char *detail = strstr(name, " ("), *role;
	size_t n = detail ? (size_t)(detail - name) : strlen(name);
	char object[140];

	role = kinds[kind].whole ? role_of(name, n) : NULL;
	if (role)
		(void)snprintf(buf, size, "GRANT %s TO %s", role, to);
	else
		(void)snprintf(buf, size, "GRANT %s %s TO %s%s", kinds[kind].grant,
			pr_quote_ident(name, n, object, sizeof(object)), to,
			kinds[kind].whole ? "" : ", with the schema before the name");
}

static void of_right(const char *text, const char *login, char *buf, size_t size)
{
	const char *at = strstr(text, denied);
	char to[140] = "the login";

	if (login && *login)
		(void)pr_quote_ident(login, strlen(login), to, sizeof(to));
	if (at) {
		at += sizeof(denied) - 1;
		for (size_t i = 0; i < NKINDS; i++)
			if (strncmp(at, kinds[i].word, strlen(kinds[i].word)) == 0) {
				grant(i, at + strlen(kinds[i].word), to, buf, size);
				return;
			}
	}
	if (strstr(text, "must be owner of"))
		(void)snprintf(buf, size,
			"only its owner may do that: make the function SECURITY DEFINER of the "
			"owner, or do it as a migration");
	else
		(void)snprintf(buf, size, "GRANT what is missing TO %s", to);
}

void pr_rights_hint(const char *sqlstate, const char *text, const char *login, char *buf, size_t size)
{
	*buf = '\0';
	if (strcmp(sqlstate, "42501") == 0)
		of_right(text, login, buf, size);
	else if (strcmp(sqlstate, "42883") == 0)
		(void)snprintf(buf, size,
			"create the function, or correct its name, the types of its arguments or "
			"search_path");
	else if (strcmp(sqlstate, "42P01") == 0)
		(void)snprintf(buf, size, "create the table, or correct its name or search_path");
	else if (strcmp(sqlstate, "42703") == 0)
		(void)snprintf(buf, size, "add the column, or correct its name");
	else if (strcmp(sqlstate, "3F000") == 0)
		(void)snprintf(buf, size, "create the schema, or correct its name");
	else if (strcmp(sqlstate, "42704") == 0)
		(void)snprintf(buf, size, "create what is missing, or correct its name");
}
