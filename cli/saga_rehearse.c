/* cli/saga_rehearse.c -- what an order would do to a saga, by the engine's own function on a copy of it: for
 * --dry-run, and to name the ways on of one that is stuck. Writes nothing. What happens meanwhile may make
 * the engine answer otherwise. */
#include "cli/saga.h"
#include "lib/json.h"
#include "lib/uuid.h"
#include "sql.h"

#include <stdlib.h>
#include <string.h>

/* Columns of db/queries/saga_instances.sql. */
enum {
	I_ID,
	I_NAME,
	I_VERSION,
	I_STATE,
	I_TURNED,
	I_GRANTED,
	I_DATA,
	I_STEPS,
	I_FAILED,
	I_WHY,
	I_STARTED,
	I_DEADLINE,
	I_SINCE,
	I_NOW,
	I_TEXT,
};

static int unreadable(const PGresult *res, int i, const char *what, struct pr_err *err)
{
	return pr_fail(err, PR_STOP, "saga %s: its %s cannot be read", PQgetvalue(res, i, I_ID), what);
}

static int read_instance(const PGresult *res, int i, struct saga_copy *s, struct pr_err *err)
{
	int state = saga_state_parse(PQgetvalue(res, i, I_STATE), (size_t)PQgetlength(res, i, I_STATE));
	const char *data = cli_cell(res, i, I_DATA), *steps = cli_cell(res, i, I_STEPS),
		   *failed = cli_cell(res, i, I_FAILED), *why = cli_cell(res, i, I_WHY);
	unsigned char id[16];

	if (state < 0 || pr_uuid_parse(PQgetvalue(res, i, I_ID), 36, id) < 0)
		return unreadable(res, i, "state", err);
	saga_instance_init(
		&s->in, s->def, id, data, data ? strlen(data) : 0, cli_cell_int(res, i, I_STARTED));
	s->in.state = (enum saga_state)state;
	s->in.turned = *PQgetvalue(res, i, I_TURNED) == 't';
	s->in.granted = *PQgetvalue(res, i, I_GRANTED) == 't';
	s->in.failed = failed ? saga_def_step(s->def, failed, strlen(failed)) : -1;
	(void)snprintf(s->in.why, sizeof(s->in.why), "%s", why ? why : "");
	s->in.deadline_us = cli_cell_int(res, i, I_DEADLINE);
	s->in.since_us = cli_cell_int(res, i, I_SINCE);
	s->now_us = cli_cell_int(res, i, I_NOW);
	if (steps && saga_read_steps(s->def, &s->in, steps, strlen(steps)) < 0)
		return unreadable(res, i, "steps", err);
	return 0;
}

int saga_copy_read(const PGresult *res, int i, struct saga_copy *ret, struct pr_err *err)
{
	const char *text = cli_cell(res, i, I_TEXT);
	char *name;
	int rc;

	*ret = (struct saga_copy){ 0 };
	if (!text)
		return pr_fail(err, PR_STOP, "saga %s version %s is not registered in this database",
			PQgetvalue(res, i, I_NAME), PQgetvalue(res, i, I_VERSION));
	name = pr_asprintf("%s:%s", PQgetvalue(res, i, I_NAME), PQgetvalue(res, i, I_VERSION));
	rc = saga_def_parse(name, text, strlen(text), &ret->def, err);
	free(name);
	return rc < 0 ? -1 : read_instance(res, i, ret, err);
}

void saga_copy_release(struct saga_copy *s)
{
	saga_instance_free(&s->in);
	saga_def_free(s->def);
	*s = (struct saga_copy){ 0 };
}

/* "sent PAYMENT undo: CancelPayment to ..., try 1 of 20; state: STUCK -> COMPENSATING" */
static void put_notes(const struct saga_def *def, const struct saga_out *out, struct pr_buf *words)
{
	size_t begun = words->len;

	for (size_t i = 0; i < out->note_n; i++) {
		const struct saga_note *n = &out->note[i];

		if (n->what == NOTE_ORDER && out->note_n > 1)
			continue;
		pr_buf_puts(words, words->len > begun ? "; " : "");
		if (n->what != NOTE_STATE && n->what != NOTE_ORDER)
			pr_buf_printf(words, "%s ", saga_note_str(n->what));
		if (n->step >= 0)
			pr_buf_printf(words, "%s %s: ", def->step[n->step].name, saga_op_str(n->op));
		pr_buf_puts(words, n->text);
	}
}

int saga_rehearse(struct saga_copy *s, enum saga_order order, const char *step, const char *detail,
	const struct saga_def *to, struct pr_buf *words, struct pr_err *err)
{
	struct saga_out out = { 0 };
	int at = step ? saga_def_step(s->def, step, strlen(step)) : -1, rc = 0;

	if (step && at < 0) {
		rc = pr_fail(err, PR_REJECT, "saga %s version %d has no step \"%.80s\"", s->def->name,
			s->def->version, step);
		err->exit = PR_EX_REFUSED;
	} else {
		rc = saga_take_order(s->def, &s->in, order, at, detail, detail ? strlen(detail) : 0, to,
			s->now_us, &out, err);
	}
	if (rc == 0)
		put_notes(to ? to : s->def, &out, words);
	saga_out_free(&out);
	return rc;
}

int saga_version(
	struct pr_pg *pg, const char *name, int64_t version, struct saga_def **ret, struct pr_err *err)
{
	char number[24], *called;
	const char *params[2] = { name, number };
	PGresult *res;
	int rc;

	(void)snprintf(number, sizeof(number), "%lld", (long long)version);
	res = pr_pg_exec(pg, "SELECT text FROM saga.definition WHERE name = $1 AND version = $2::integer", 2,
		params, err);
	if (!res)
		return -1;
	if (PQntuples(res) == 0) {
		rc = pr_fail(err, PR_REJECT, "saga %.80s has no version %s in this database", name, number);
		err->exit = PR_EX_NOT_FOUND;
		(void)pr_hint(err,
			"the engine registers its definitions when it starts; `postrider show sagas` names "
			"them");
	} else {
		called = pr_asprintf("%s:%s", name, number);
		rc = saga_def_parse(called, PQgetvalue(res, 0, 0), strlen(PQgetvalue(res, 0, 0)), ret, err);
		free(called);
	}
	PQclear(res);
	return rc;
}
