/* producers/emit_main.c -- the smallest user of outbox.h: one event from the command line, in a
 * transaction. An example to read and a tool for tests; refuses to be more. */
#include "producers/outbox.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int usage(void)
{
	(void)fputs("usage: emit -d CONNINFO [-b] [-H HEADERS] [-t TOPIC] [-i ID] [-a AT] [-n COUNT]\n"
		    "            AGGREGATETYPE AGGREGATEID TYPE [PAYLOAD]\n"
		    "Publishes one event and prints its id; without PAYLOAD a tombstone.\n"
		    "  -b  PAYLOAD is bytes, not JSON       -a  publish at this time, or infinity\n"
		    "  -n  COUNT events in one transaction, sent as one pipeline\n",
		stderr);
	return 2;
}

static int complain(const char *what, const char *hint)
{
	(void)fprintf(stderr, "emit: %s\n", what);
	if (*hint)
		(void)fprintf(stderr, "hint: %s\n", hint);
	return -1;
}

/* The command tag matters: COMMIT of a failed transaction succeeds and answers ROLLBACK. */
static int run(PGconn *conn, const char *sql)
{
	PGresult *res = PQexec(conn, sql);
	int ok = PQresultStatus(res) == PGRES_COMMAND_OK && strcmp(PQcmdStatus(res), sql) == 0;

	PQclear(res);
	return ok ? 0 : complain(PQerrorMessage(conn), "");
}

static int publish_one(PGconn *conn, const struct outbox_event *ev)
{
	struct outbox_error err;
	char id[OUTBOX_ID_SIZE];

	if (outbox_publish(conn, ev, 0, id, &err) < 0)
		return complain(err.text, err.hint);
	(void)puts(id);
	return 0;
}

static int take_all(PGconn *conn, int count)
{
	struct outbox_error err;
	char id[OUTBOX_ID_SIZE];
	int i, rc = 0;

	for (i = 0; i < count; i++) {
		if (outbox_result(conn, id, &err) == 0)
			(void)puts(id);
		else if (rc == 0)
			rc = complain(err.text, err.hint);
	}
	PQclear(PQgetResult(conn)); /* the sync */
	return rc;
}

static int publish_pipeline(PGconn *conn, const struct outbox_event *ev, int count)
{
	struct outbox_error err;
	int i;

	if (!PQenterPipelineMode(conn))
		return complain(PQerrorMessage(conn), "");
	for (i = 0; i < count; i++)
		if (outbox_send(conn, ev, 0, &err) < 0)
			return complain(err.text, err.hint);
	if (!PQpipelineSync(conn) || take_all(conn, count) < 0)
		return -1;
	return PQexitPipelineMode(conn) ? 0 : complain(PQerrorMessage(conn), "");
}

static int emit(PGconn *conn, const struct outbox_event *ev, int count)
{
	if (PQstatus(conn) != CONNECTION_OK)
		return complain(PQerrorMessage(conn), "");
	if (run(conn, "BEGIN") < 0)
		return -1;
	if ((count ? publish_pipeline(conn, ev, count) : publish_one(conn, ev)) < 0)
		return -1;
	return run(conn, "COMMIT");
}

int main(int argc, char **argv)
{
	struct outbox_event ev = { 0 };
	const char *conninfo = NULL;
	PGconn *conn;
	int opt, rc, count = 0;

	while ((opt = getopt(argc, argv, "d:bH:t:i:a:n:")) != -1) {
		switch (opt) {
		case 'd':
			conninfo = optarg;
			break;
		case 'b':
			ev.format = OUTBOX_BYTES;
			break;
		case 'H':
			ev.headers = outbox_str(optarg);
			break;
		case 't':
			ev.topic = outbox_str(optarg);
			break;
		case 'i':
			ev.id = outbox_str(optarg);
			break;
		case 'a':
			ev.at = outbox_str(optarg);
			break;
		case 'n':
			count = atoi(optarg);
			if (count < 1 || count > 1000)
				return usage();
			break;
		default:
			return usage();
		}
	}
	if (!conninfo || argc - optind < 3 || argc - optind > 4)
		return usage();
	ev.aggregatetype = outbox_str(argv[optind]);
	ev.aggregateid = outbox_str(argv[optind + 1]);
	ev.type = outbox_str(argv[optind + 2]);
	ev.payload = outbox_str(argv[optind + 3]);
	conn = PQconnectdb(conninfo);
	rc = emit(conn, &ev, count);
	PQfinish(conn);
	return rc == 0 ? 0 : 1;
}
