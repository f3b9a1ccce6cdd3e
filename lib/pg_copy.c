/* lib/pg_copy.c -- rows of a binary COPY, one at a time, each with the whole deadline. Refuses every other
 * call until the last row was taken. */
#include "lib/pg_inner.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

int pr_pg_copy_begin(struct pr_pg *pg, const char *query_text, struct pr_err *err)
{
	int64_t timeout_us, deadline;
	PGresult *res = NULL;
	char *sql;
	int rc;

	if (pg_begin_call(pg, &timeout_us, &deadline, err) < 0)
		return -1;
	sql = pr_asprintf("COPY (%s) TO STDOUT (FORMAT binary)", query_text);
	rc = PQsendQuery(pg->conn, sql);
	free(sql);
	if (!rc)
		return pg_lost(pg, err);
	if (pg_flush(pg, deadline, err) < 0 || (rc = pg_next_result(pg, deadline, &res, err)) < 0)
		return -1;
	if (rc == 0)
		return pg_lost(pg, err);
	if (PQresultStatus(res) == PGRES_COPY_OUT) {
		PQclear(res);
		pg->copy.open = 1;
		pg->copy.header_read = 0;
		pg->copy.timeout_us = timeout_us;
		return 0;
	}
	(void)pg_check_result(pg, "COPY", res, err);
	PQclear(res);
	if (!pg->dead)
		PQclear(pg_collect(pg, "COPY", deadline, NULL));
	return -1;
}

/* Takes the header off the front of the first message; the server sends it glued to the first row
 * or to the trailer. -1 when it is not the header of a binary COPY. */
static int cut_header(char *row, int *len)
{
	static const char magic[] = "PGCOPY\n\377\r\n";
	uint32_t extension;
	size_t cut;

	if (*len < 19 || memcmp(row, magic, 11) != 0)
		return -1;
	memcpy(&extension, row + 15, 4);
	cut = 19 + (size_t)ntohl(extension);
	if (cut > (size_t)*len)
		return -1;
	*len -= (int)cut;
	memmove(row, row + cut, (size_t)*len);
	return 0;
}

/* After the last row: the statement's own result, which may be an error. */
static int end_copy(struct pr_pg *pg, struct pr_err *err)
{
	PGresult *res;

	pg->copy.open = 0;
	res = pg_collect(pg, "COPY", pg_deadline_of(pg->copy.timeout_us), err);
	PQclear(res);
	return res ? 0 : -1;
}

static int await_row(struct pr_pg *pg, struct pr_err *err)
{
	short ready;

	if (pg_wait_answer(pg, POLLIN, pg_deadline_of(pg->copy.timeout_us), &ready, err) < 0)
		return -1;
	return pg_consume(pg) < 0 ? pg_lost(pg, err) : 0;
}

int pr_pg_copy_row(struct pr_pg *pg, char **ret_row, int *ret_len, struct pr_err *err)
{
	if (pg->dead || !pg->copy.open)
		return pg_fail_code(err, PR_RETRY, "08003", "no COPY is open on this connection");
	for (;;) {
		char *row = NULL;
		int len = PQgetCopyData(pg->conn, &row, 1);

		if (len == 0) {
			if (await_row(pg, err) < 0)
				return -1;
			continue;
		}
		if (len < 0)
			return end_copy(pg, err);
		if (!pg->copy.header_read) {
			pg->copy.header_read = 1;
			if (cut_header(row, &len) < 0) {
				PQfreemem(row);
				pg->dead = 1;
				return pg_fail_code(
					err, PR_STOP, "copy", "what arrived is not a binary COPY");
			}
		}
		/* A row begins with its number of columns, which is -1 in the trailer. */
		if (len > 2 || (len > 0 && row[0] != '\377')) {
			*ret_row = row;
			*ret_len = len;
			return 1;
		}
		PQfreemem(row);
	}
}
