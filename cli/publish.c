/* cli/publish.c -- `postrider publish`: one event through the same SQL functions as a
 * service. Refuses a payload it would have to alter (a NUL byte in JSON), and one larger
 * than any topic would take. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_PAYLOAD (64 << 20)

static int read_all(int fd, const char *name, struct pr_buf *b, struct pr_err *err)
{
	char chunk[65536];
	ssize_t n;

	pr_buf_put(b, "", 0);
	while ((n = read(fd, chunk, sizeof(chunk))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return pr_fail(err, PR_REJECT, "cannot read \"%s\": %s", name, strerror(errno));
		if (b->len + (size_t)n > MAX_PAYLOAD)
			return pr_fail(
				err, PR_REJECT, "\"%s\" is larger than %d MB", name, MAX_PAYLOAD >> 20);
		pr_buf_put(b, chunk, (size_t)n);
	}
	return 0;
}

static int read_file(const char *name, struct pr_buf *b, struct pr_err *err)
{
	/* O_NONBLOCK: a FIFO without a writer must not hang us; it is refused next. */
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc;
	struct stat st;

	if (fd < 0) {
		(void)pr_fail(err, PR_REJECT, "cannot open \"%s\": %s", name, strerror(errno));
		if (err && errno == ENOENT)
			err->exit = PR_EX_NOT_FOUND;
		return -1;
	}
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		rc = read_all(fd, name, b, err);
	else
		rc = pr_fail(err, PR_REJECT, "\"%s\" is not a regular file; to read a pipe, use -", name);
	(void)close(fd);
	return rc;
}

/* Exactly one source of the payload. *ret_null: a tombstone. */
static int payload(const struct cli *c, struct pr_buf *b, int *ret_null, struct pr_err *err)
{
	const char *data = cli_str(c, "data"), *file = cli_str(c, "file");
	int from_stdin = c->nargs == 1;

	if (from_stdin && strcmp(c->args[0], "-") != 0)
		return cli_usage(err, "unexpected operand \"%.80s\"", c->args[0]);
	*ret_null = cli_has(c, "null");
	if ((data != NULL) + (file != NULL) + from_stdin + *ret_null != 1)
		return cli_usage(
			err, "give the payload once: --data JSON, -f FILE, - for standard input, or --null");
	if (*ret_null && cli_has(c, "bytes"))
		return cli_usage(err, "--null has no bytes");
	if (data)
		pr_buf_puts(b, data);
	else if (from_stdin || (file && strcmp(file, "-") == 0))
		return read_all(STDIN_FILENO, "standard input", b, err);
	else if (file)
		return read_file(file, b, err);
	return 0;
}

/* {"name": "value", ...} of all -H; NULL and err when a name comes twice. */
static char *headers(const struct cli *c, struct pr_err *err)
{
	cJSON *o = cJSON_CreateObject();
	const char *pair;
	char *text = NULL;

	for (int i = 0; (pair = cli_nth(c, "header", i)); i++) {
		char *name = pr_asprintf("%.*s", (int)strcspn(pair, "="), pair);
		int twice = cJSON_GetObjectItemCaseSensitive(o, name) != NULL;

		(void)cJSON_AddStringToObject(o, name, strchr(pair, '=') + 1);
		if (twice)
			(void)cli_usage(err, "--header: \"%.80s\" is given twice", name);
		free(name);
		if (twice)
			goto out;
	}
	text = cJSON_PrintUnformatted(o);
out:
	cJSON_Delete(o);
	return text;
}

/* bytea's text form: \x and hexadecimal digits. */
static void to_hex(struct pr_buf *b)
{
	static const char digit[] = "0123456789abcdef";
	size_t n = b->len;
	char *hex = pr_malloc(2 * n + 3);

	memcpy(hex, "\\x", 2);
	for (size_t i = 0; i < n; i++) {
		hex[2 + 2 * i] = digit[(unsigned char)b->s[i] >> 4];
		hex[3 + 2 * i] = digit[(unsigned char)b->s[i] & 15];
	}
	hex[2 + 2 * n] = '\0';
	pr_buf_free(b);
	*b = (struct pr_buf){ .s = hex, .len = 2 * n + 2, .cap = 2 * n + 3 };
}

static int check(const struct cli *c, struct pr_buf *b, struct pr_err *err)
{
	const char *nul;

	if (!cli_has(c, "aggregatetype") || !cli_has(c, "aggregateid") || !cli_has(c, "type"))
		return cli_usage(err, "an event needs --aggregatetype, --aggregateid and --type");
	if (cli_has(c, "bytes")) {
		to_hex(b);
		return 0;
	}
	/* libpq takes C strings: the payload would be cut there without a word. */
	nul = b->len ? memchr(b->s, '\0', b->len) : NULL;
	if (nul) {
		(void)pr_fail(err, PR_REJECT,
			"the payload has a NUL byte at offset %zu, which JSON cannot hold",
			(size_t)(nul - b->s));
		return pr_hint(err, "--bytes publishes it as it is");
	}
	return 0;
}

static PGresult *send_event(
	struct cli *c, struct pr_pg *pg, const char *body, const char *heads, struct pr_err *err)
{
	const char *params[8] = { cli_str(c, "aggregatetype"), cli_str(c, "aggregateid"), cli_str(c, "type"),
		body, heads, cli_str(c, "topic"), cli_str(c, "id"), NULL };
	int bytes = cli_has(c, "bytes"), later = cli_has(c, "at");
	char at[32], *sql;
	PGresult *res;

	if (later)
		params[7] = pr_rfc3339(cli_int(c, "at", 0), at);
	sql = pr_asprintf("SELECT outbox.publish%s%s(%s$1, $2, $3, $4::%s, $5::jsonb, $6, $7::uuid)",
		bytes ? "_bytes" : "", later ? "_at" : "", later ? "$8::timestamptz, " : "",
		bytes ? "bytea" : "jsonb");
	res = pr_pg_exec(pg, sql, later ? 8 : 7, params, err);
	free(sql);
	return res;
}

static void report(struct cli *c, const char *id)
{
	cJSON *o;
	char at[32];

	if (!cli_has(c, "json")) {
		(void)printf("%s\n", id);
		return;
	}
	o = cJSON_CreateObject();
	(void)cJSON_AddStringToObject(o, "id", id);
	if (cli_has(c, "at"))
		(void)cJSON_AddStringToObject(o, "scheduled_for", pr_rfc3339(cli_int(c, "at", 0), at));
	else
		(void)cJSON_AddNullToObject(o, "scheduled_for");
	cli_json_free_line(o);
}

int verb_publish(struct cli *c)
{
	struct pr_err err = { 0 };
	struct pr_buf body = { 0 };
	struct pr_pg *pg = NULL;
	PGresult *res = NULL;
	char *heads = NULL;
	int null = 0, rc;

	if (payload(c, &body, &null, &err) < 0 || check(c, &body, &err) < 0 || !(heads = headers(c, &err)) ||
		cli_connect_outbox(c, &pg, &err) < 0 ||
		!(res = send_event(c, pg, null ? NULL : body.s, heads, &err))) {
		rc = cli_failed(c, &err);
		goto out;
	}
	report(c, cli_cell(res, 0, 0));
	rc = PR_EX_OK;
out:
	PQclear(res);
	pr_pg_close(pg);
	cJSON_free(heads);
	pr_buf_free(&body);
	return rc;
}
