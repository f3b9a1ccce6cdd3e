/* docs/examples/handlers/seat.c -- a C handler that holds seats, in the transaction of the consumer.
 *
 *   cc -shared -fPIC -O2 -o seat.so seat.c $(pkg-config --cflags --libs libpq)
 *
 * with -I/usr/local/include/postrider, or wherever postrider_handler.h is installed. In the config:
 *
 *   handler: { kind = "c"; library = "/usr/lib/seat/seat.so"; options = "seat.seat"; undo = true; };
 *
 * The table is the one of seat.sql. The payload is left to Postgres to read: it is JSON, and it knows how. */
#include <postrider_handler.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One instance per lane, so nothing here is shared between threads. */
struct seat {
	char hold[400], release[400];
};

static int seat_open(const char *options, int lane, void **ctx, char *error, size_t error_size)
{
	const char *table = *options ? options : "seat.seat";
	struct seat *s;

	(void)lane;
	if (strlen(table) > 100 || strspn(table, "abcdefghijklmnopqrstuvwxyz_.") != strlen(table)) {
		snprintf(error, error_size, "\"%s\" is no table name", table);
		return POSTRIDER_OPEN_REFUSED;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		snprintf(error, error_size, "out of memory");
		return POSTRIDER_OPEN_LATER;
	}
	snprintf(s->hold, sizeof(s->hold),
		"UPDATE %s SET reservation_id = ($1::jsonb ->> 'reservation_id')::uuid, changes = changes + 1"
		" WHERE seat_id = ($1::jsonb ->> 'seat_id')::bigint AND reservation_id IS NULL",
		table);
	snprintf(s->release, sizeof(s->release),
		"UPDATE %s SET reservation_id = NULL, changes = changes + 1"
		" WHERE seat_id = ($1::jsonb ->> 'seat_id')::bigint"
		" AND reservation_id = ($1::jsonb ->> 'reservation_id')::uuid",
		table);
	*ctx = s;
	return POSTRIDER_OPENED;
}

static void fail(struct postrider_result *r, const char *code, const char *text)
{
	r->status = POSTRIDER_FAILED;
	snprintf(r->code, sizeof(r->code), "%s", code);
	snprintf(r->text, sizeof(r->text), "%s", text);
}

/* 0, or -1 when it failed: then the result says why, or the connection does. An undo that finds nothing to
 * take back is no failure: what it undoes has perhaps never happened, or was undone before. */
static int one(
	PGconn *conn, const char *sql, int op, const struct postrider_message *m, struct postrider_result *r)
{
	const char *value = m->payload;
	int size = (int)m->payload_size, format = 1, rc = -1; /* a text in binary format is its bytes */
	const Oid text = 25;
	PGresult *res;

	res = PQexecParams(conn, sql, 1, &text, &value, &size, &format, 0);
	if (PQresultStatus(res) == PGRES_COMMAND_OK) {
		rc = 0;
		if (op == POSTRIDER_DO && strcmp(PQcmdTuples(res), "1") != 0) {
			fail(r, "taken",
				"the seat is held by another reservation, or there is none of that number");
			rc = -1;
		}
	} /* else nothing is said: the SQLSTATE of the failed statement is taken */
	PQclear(res);
	return rc;
}

static int seat_handle(void *ctx, PGconn *conn, int op, const struct postrider_message *const *messages,
	size_t n, struct postrider_result *const *results)
{
	const struct seat *s = ctx;

	for (size_t i = 0; i < n; i++) {
		const struct postrider_message *m = messages[i];
		int release = m->type_size == 12 && memcmp(m->type, "SeatReleased", 12) == 0;

		if (!(m->flags & POSTRIDER_IS_JSON)) {
			fail(results[i], "payload", "the payload is no JSON");
			return 0;
		}
		if (op == POSTRIDER_UNDO)
			release = !release;
		if (one(conn, release ? s->release : s->hold, op, m, results[i]) < 0)
			return 0;
	}
	return 0;
}

static void seat_close(void *ctx)
{
	free(ctx);
}

const struct postrider_handler postrider_handler = {
	POSTRIDER_HANDLER_V1,
	.flags = POSTRIDER_CAN_UNDO,
	.name = "seat",
	.open = seat_open,
	.handle = seat_handle,
	.close = seat_close,
};
