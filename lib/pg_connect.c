/* lib/pg_connect.c -- from a connection string to a session that every statement of ours may rely on. Refuses
 * to show the string in an error (a password may be in it), and to wait for an address past its share. */
#include "lib/pg_inner.h"

#include "lib/clock.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_WORDS 64 /* libpq 15 knows 43 connection options */

struct words {
	const char *key[MAX_WORDS + 1], *value[MAX_WORDS + 1];
	int n;
};

static const char *word(const struct words *w, const char *key)
{
	for (int i = 0; i < w->n; i++)
		if (strcmp(w->key[i], key) == 0)
			return w->value[i];
	return NULL;
}

static void add_word(struct words *w, const char *key, const char *value)
{
	if (word(w, key) || w->n == MAX_WORDS)
		return;
	w->key[w->n] = key;
	w->value[w->n++] = value;
}

/* libpq's message would quote the string, and with it a password. */
static int parse_conninfo(const char *conninfo, PQconninfoOption **ret, struct words *w, struct pr_err *err)
{
	PQconninfoOption *all = PQconninfoParse(conninfo, NULL);

	if (!all) {
		(void)pr_fail(err, PR_STOP, "the connection string does not parse");
		(void)pr_hint(err,
			"write it like \"host=db dbname=app user=relay\" or \"postgresql://relay@db/app\"");
		if (err)
			err->exit = PR_EX_CONFIG;
		return -1;
	}
	/* UTF-8 is what we speak; ours is first, and the first of a name stays. */
	add_word(w, "client_encoding", "UTF8");
	for (PQconninfoOption *o = all; o->keyword; o++)
		if (o->val)
			add_word(w, o->keyword, o->val);
	*ret = all;
	return 0;
}

/* While connecting. With several hosts a machine that is off must not eat the whole deadline: each gets a
 * share, and the kernel gives up on its SYN after tcp_user_timeout. */
static long long user_timeout_ms(const struct words *w, int64_t timeout_us)
{
	const char *hosts = word(w, "hostaddr") ? word(w, "hostaddr") : word(w, "host");
	int n = 1;

	for (; hosts && *hosts; hosts++)
		n += *hosts == ',';
	return timeout_us / PR_MS / (n > 1 ? n + 1 : 1) + 1;
}

/* One failed address's line: "... failed: FATAL:  28P01: text". NULL when it has no SQLSTATE. */
static const char *find_sqlstate(const char *line, size_t n)
{
	for (size_t i = 0; i + 10 <= n; i++)
		if (memcmp(line + i, ":  ", 3) == 0 &&
			strspn(line + i + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 &&
			line[i + 8] == ':')
			return line + i + 3;
	return NULL;
}

/* Why connecting failed; libpq tells it only as text, a line and perhaps more for every address. */
struct refusal {
	char text[sizeof(((struct pr_err *)0)->text)];
	char code[6];
	enum pr_kind kind;
	int addresses;
};

/* Adds one line, without the SQLSTATE and the place in the server's source that the verbose form
 * has. One address that may recover is enough to try again. */
static void add_line(struct refusal *r, const char *line, size_t n)
{
	const char *state = find_sqlstate(line, n);
	int head = (int)(state ? (size_t)(state - line) - 1 : n);
	int tail = state ? (int)(n - (size_t)(state + 7 - line)) : 0;
	size_t len = strlen(r->text);
	char code[6] = "";

	if (*line == '\t' || strncmp(line, "LOCATION:", 9) == 0)
		return;
	(void)snprintf(r->text + len, sizeof(r->text) - len, "%s%.*s%.*s", len ? "; " : "", head, line, tail,
		state ? state + 7 : "");
	if (!memmem(line, n, "failed: ", 8))
		return;
	(void)snprintf(code, sizeof(code), "%.5s", state ? state : "");
	if (r->addresses++ && pr_pg_kind(code) != PR_RETRY)
		return;
	r->kind = pr_pg_kind(code);
	memcpy(r->code, code, sizeof(code));
}

/* What libpq leaves out of a refused handshake. */
static void tls_hint(const struct pr_pg *pg, const char *text, struct pr_err *err)
{
	const char *host = PQhost(pg->conn), *port = PQport(pg->conn);

	if (strstr(text, "certificate verify failed"))
		(void)pr_hint(err,
			"the server's certificate has expired, or sslrootcert is not of the authority that "
			"signed it: openssl s_client -starttls postgres -connect %s:%s </dev/null | "
			"openssl x509 -noout -dates -issuer",
			host ? host : "HOST", port ? port : "PORT");
	else if (strstr(text, "does not match host name"))
		(void)pr_hint(err,
			"connect by a name that is in the server's certificate (host=, with the address "
			"in hostaddr= where the name is not looked up)");
	else if (strstr(text, "server does not support SSL"))
		(void)pr_hint(err, "set ssl = on in postgresql.conf: sslmode asks for TLS");
	else if (strstr(text, "no encryption"))
		(void)pr_hint(err,
			"pg_hba.conf wants TLS: set sslmode=verify-full and sslrootcert in the conninfo");
}

static int connect_fail(struct pr_pg *pg, struct pr_err *err)
{
	const char *p = PQerrorMessage(pg->conn);
	struct refusal r = { .kind = PR_RETRY };
	size_t n;

	for (; *p; p += n + (p[n] == '\n')) {
		n = strcspn(p, "\n");
		add_line(&r, p, n);
	}
	if (r.addresses <= 1 && PQconnectionNeedsPassword(pg->conn)) {
		r.kind = PR_STOP;
		memcpy(r.code, "28P01", 6);
	}
	(void)pr_fail(err, r.kind, "%s", r.text[0] ? r.text : "connecting to the server failed");
	pg_set_code(err, r.code[0] ? r.code : "08001");
	if (strncmp(r.code, "28", 2) == 0) {
		if (err)
			err->exit = PR_EX_NOPERM;
		(void)pr_hint(
			err, "check user and password (conninfo, PGPASSWORD or ~/.pgpass) and pg_hba.conf");
	}
	tls_hint(pg, r.text, err);
	return -1;
}

/* Failed before a first packet could be sent. It may be the network's fault, or the name server's;
 * else an option is wrong (a port, an sslmode, a service) and no waiting helps. */
static int start_fail(struct pr_pg *pg, struct pr_err *err)
{
	const char *text = PQerrorMessage(pg->conn);

	(void)connect_fail(pg, err);
	if (strstr(text, "failed: ") || strstr(text, "could not translate host name") ||
		strstr(text, "could not create socket"))
		return -1;
	if (err) {
		err->kind = PR_STOP;
		err->exit = PR_EX_CONFIG;
	}
	return pr_hint(
		err, "correct the connection string, or the PG* variables and files that it is mixed with");
}

/* Names are looked up by getaddrinfo, which has its own time limit and not ours (see hostaddr). */
static int finish_connect(struct pr_pg *pg, int64_t deadline, struct pr_err *err)
{
	PostgresPollingStatusType st = PGRES_POLLING_WRITING;
	short ready;

	while (st != PGRES_POLLING_OK) {
		int rc;

		if (st == PGRES_POLLING_FAILED || PQsocket(pg->conn) < 0)
			return connect_fail(pg, err);
		rc = pg_wait_socket(pg, st == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline, &ready);
		if (rc < 0)
			return pg_fail_code(err, PR_RETRY, "interrupted", "interrupted while connecting");
		if (rc == 0) {
			const char *host = PQhost(pg->conn), *port = PQport(pg->conn);

			(void)pr_fail(err, PR_RETRY, "no answer in time while connecting to %s port %s",
				host ? host : "?", port ? port : "?");
			pg_set_code(err, "timeout");
			return -1;
		}
		st = PQconnectPoll(pg->conn);
	}
	return 0;
}

/* Once connected, our deadline speaks first and says more. The kernel would also end a connection whose
 * server only does not read for a while (a zero window counts as unacknowledged: tcp(7)). Not TCP: nothing to
 * do. */
static void widen_user_timeout(const struct pr_pg *pg)
{
	unsigned ms = (unsigned)(2 * pg->timeout_us / PR_MS + 1);

	(void)setsockopt(PQsocket(pg->conn), IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

int pg_connect(struct pr_pg *pg, const struct pr_pg_opts *opts, int64_t deadline, struct pr_err *err)
{
	PQconninfoOption *parsed;
	struct words w = { .n = 0 };
	char user_timeout[24];
	int rc = -1;

	if (parse_conninfo(opts->conninfo, &parsed, &w, err) < 0)
		return -1;
	(void)snprintf(user_timeout, sizeof(user_timeout), "%lld", user_timeout_ms(&w, pg->timeout_us));
	add_word(&w, "application_name", opts->appname ? opts->appname : "postrider");
	add_word(&w, "keepalives", "1");
	add_word(&w, "keepalives_idle", "10");
	add_word(&w, "keepalives_interval", "5");
	add_word(&w, "keepalives_count", "3");
	add_word(&w, "tcp_user_timeout", user_timeout);
	pg->conn = PQconnectStartParams(w.key, w.value, 0);
	if (!pg->conn)
		abort(); /* out of memory, as everywhere in lib/ */
	(void)PQsetNoticeReceiver(pg->conn, pg_on_notice, pg);
	(void)PQsetErrorVerbosity(pg->conn, PQERRORS_VERBOSE);
	rc = PQstatus(pg->conn) == CONNECTION_BAD ? start_fail(pg, err) : finish_connect(pg, deadline, err);
	(void)PQsetErrorVerbosity(pg->conn, PQERRORS_DEFAULT);
	PQconninfoFree(parsed);
	if (rc == 0)
		widen_user_timeout(pg);
	if (rc == 0 && PQsetnonblocking(pg->conn, 1) < 0)
		return pg_lost(pg, err);
	return rc;
}

/* The session that every statement of ours may rely on, whatever the role's and database's
 * settings say. The server also gives up on us when we are gone: our locks must not outlive us. */
static int set_session(struct pr_pg *pg, int64_t deadline, struct pr_err *err)
{
	char sql[1024];

	(void)snprintf(sql, sizeof(sql),
		"SET search_path = '';"
		"SET timezone = 'UTC';"
		"SET datestyle = 'ISO';"
		"SET intervalstyle = 'postgres';"
		"SET bytea_output = 'hex';"
		"SET extra_float_digits = 1;"
		"SET standard_conforming_strings = on;"
		"SET default_transaction_isolation = 'read committed';"
		"SET lock_timeout = 0;"
		"SET statement_timeout = %lld;"
		"SET idle_in_transaction_session_timeout = %lld;"
		"SET tcp_keepalives_idle = 10;"
		"SET tcp_keepalives_interval = 5;"
		"SET tcp_keepalives_count = 3;"
		"SET tcp_user_timeout = %lld",
		pg_statement_timeout_ms(pg->timeout_us),
		(long long)(2 * pg->timeout_us / PR_MS > 60000 ? 2 * pg->timeout_us / PR_MS : 60000),
		(long long)(2 * pg->timeout_us / PR_MS + 1));
	if (pg_run(pg, sql, deadline, err) < 0)
		return pr_wrap(err, "setting up the session");
	pg->server_us = pg->timeout_us;
	return 0;
}

int pr_pg_open(const struct pr_pg_opts *opts, struct pr_pg **ret, struct pr_err *err)
{
	struct pr_pg *pg = pr_calloc(1, sizeof(*pg));
	int64_t deadline;

	pg->timeout_us = pg_sane_timeout(opts->timeout_us);
	pg->wake_fd = opts->wake_fd;
	deadline = pg_deadline_of(pg->timeout_us);
	if (pg_connect(pg, opts, deadline, err) < 0 || pg_check_pooler(pg, opts, deadline, err) < 0)
		goto out;
	if (set_session(pg, deadline, err) < 0)
		goto out;
	*ret = pg;
	return 0;
out:
	pg->dead = 1;
	pr_pg_close(pg);
	return -1;
}

void pr_pg_close(struct pr_pg *pg)
{
	if (!pg)
		return;
	/* A farewell, TLS's too, is for a server that listens. */
	if (pg->dead && PQsocket(pg->conn) >= 0)
		(void)shutdown(PQsocket(pg->conn), SHUT_RDWR);
	PQfinish(pg->conn);
	for (int i = 0; i < MAX_STATEMENTS; i++)
		free(pg->statements[i].sql);
	free(pg);
}
