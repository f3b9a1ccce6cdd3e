/* tests/unit/saga_core_test.c -- the transitions of a saga one by one, then every way that small definitions
 * and those of etc/sagas can go, with an operator's orders; and that the walk notices what is wrong on
 * purpose: no barrier, the undo of a step that was refused, answers matched without their command's id. Runs
 * from the root of the tree. */
#include "lib/saga_walk.h"

#include "lib/json_path.h"
#include "lib/uuid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define T0     1000000000LL
#define SEC    1000000LL
#define DIR    "tests/golden/saga_walk/"
#define LEN(a) (sizeof(a) / sizeof(*(a)))

enum { MONEY, SEAT, TOKEN, SALE, PUSH }; /* of sale.cfg */

static const unsigned char id[16] = { 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4d, 0xef, 0x81, 0x23, 0x45, 0x67,
	0x89, 0xab, 0xcd, 0xef };

struct saga {
	struct saga_def *def;
	struct saga_instance in;
	struct saga_out out;
	int64_t now;
};

static struct saga_def *loaded(const char *path)
{
	struct saga_def *def = NULL;
	struct pr_err err;

	if (saga_def_load(path, &def, &err) < 0)
		fail_msg("%s", err.text);
	return def;
}

static void begin(struct saga *g, const char *file, const char *data, int granted)
{
	*g = (struct saga){ .def = loaded(file), .now = T0 };
	saga_instance_init(&g->in, g->def, id, data, strlen(data), T0);
	saga_begin(g->def, &g->in, granted, T0, &g->out);
}

static void end(struct saga *g)
{
	saga_instance_free(&g->in);
	saga_out_free(&g->out);
	saga_def_free(g->def);
}

/* An answer to the step's present command. */
static void answer(struct saga *g, int step, enum saga_op op, enum saga_outcome o, const char *data)
{
	struct saga_reply r = { .step = g->def->step[step].name, .op = op, .outcome = o, .why = "no money" };

	r.step_n = strlen(r.step);
	r.data = data;
	r.data_n = data ? strlen(data) : 0;
	saga_command_id(g->def, &g->in, step, op, r.command_id);
	saga_out_clear(&g->out);
	saga_take_reply(g->def, &g->in, &r, ++g->now, &g->out);
}

static void done(struct saga *g, int step)
{
	answer(g, step, SAGA_DO, OUTCOME_DONE, NULL);
}

static void undone(struct saga *g, int step)
{
	answer(g, step, SAGA_UNDO, OUTCOME_DONE, NULL);
}

static void tick(struct saga *g, int64_t at)
{
	saga_out_clear(&g->out);
	g->now = at;
	saga_tick(g->def, &g->in, at, &g->out);
}

static int order(struct saga *g, enum saga_order o, const char *detail, struct pr_err *err)
{
	saga_out_clear(&g->out);
	return saga_take_order(
		g->def, &g->in, o, -1, detail, detail ? strlen(detail) : 0, NULL, ++g->now, &g->out, err);
}

static void sent(const struct saga *g, size_t at, int step, enum saga_op op, int try)
{
	unsigned char command[16];

	assert_true(at < g->out.send_n);
	assert_int_equal(g->out.send[at].step, step);
	assert_int_equal(g->out.send[at].op, op);
	assert_int_equal(g->out.send[at].try, try);
	saga_command_id(g->def, &g->in, step, op, command);
	assert_memory_equal(g->out.send[at].command_id, command, 16);
}

static int published(const struct saga *g, enum saga_event e)
{
	for (size_t i = 0; i < g->out.publish_n; i++)
		if (g->out.publish[i].type == e)
			return 1;
	return 0;
}

static int noted(const struct saga *g, enum saga_note_what what)
{
	for (size_t i = 0; i < g->out.note_n; i++)
		if (g->out.note[i].what == what)
			return 1;
	return 0;
}

static void is_step(const struct saga *g, int step, enum saga_step_state s)
{
	assert_string_equal(saga_step_state_str(g->in.step[step].state), saga_step_state_str(s));
}

static void is(const struct saga *g, enum saga_state s)
{
	assert_string_equal(saga_state_str(g->in.state), saga_state_str(s));
}

/* ---------------------------------------------------------------- forward */

static void goes_well(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{\"token\": \"x\"}", 1);
	assert_true(published(&g, SAGA_EVENT_STARTED));
	assert_int_equal(g.out.send_n, 1);
	sent(&g, 0, MONEY, SAGA_DO, 1);
	assert_int_equal(saga_due(&g.in, g.def), T0 + 10 * SEC);
	answer(&g, MONEY, SAGA_DO, OUTCOME_DONE, "{\"price\": 12.50, \"other\": 1}");
	assert_string_equal(g.in.data.s, "{\"token\":\"x\",\"price\":12.50,\"paid\":true}");
	assert_true(published(&g, SAGA_EVENT_STEP_COMPLETED));
	assert_int_equal(g.out.send_n, 2);
	sent(&g, 0, SEAT, SAGA_DO, 1);
	sent(&g, 1, TOKEN, SAGA_DO, 1);
	done(&g, TOKEN);
	assert_int_equal(g.out.send_n, 0);
	done(&g, SEAT);
	sent(&g, 0, SALE, SAGA_DO, 1);
	done(&g, SALE);
	sent(&g, 0, PUSH, SAGA_DO, 1);
	is(&g, SAGA_RUNNING);
	done(&g, PUSH);
	is(&g, SAGA_COMPLETED);
	assert_true(published(&g, SAGA_EVENT_COMPLETED));
	assert_int_equal(saga_due(&g.in, g.def), INT64_MAX);
	done(&g, PUSH);
	assert_true(noted(&g, NOTE_DUPLICATE));
	assert_int_equal(g.out.publish_n + g.out.send_n, 0);
	end(&g);
}

static void condition_false(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	done(&g, MONEY);
	is_step(&g, TOKEN, STEP_SKIPPED);
	assert_int_equal(g.out.send_n, 1);
	done(&g, SEAT);
	sent(&g, 0, SALE, SAGA_DO, 1);
	answer(&g, SALE, SAGA_DO, OUTCOME_REFUSED, NULL);
	assert_int_equal(g.out.send_n, 1); /* what was skipped is not undone */
	sent(&g, 0, SEAT, SAGA_UNDO, 1);
	end(&g);
}

/* The same command is sent again, later each time; its answer counts whichever try it is to. */
static void tried_again(void **state)
{
	unsigned char command[16];
	struct saga g;
	int64_t due;

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	memcpy(command, g.out.send[0].command_id, 16);
	answer(&g, MONEY, SAGA_DO, OUTCOME_FAILED, NULL);
	assert_true(noted(&g, NOTE_FAILED));
	due = saga_due(&g.in, g.def);
	assert_true(due >= g.now + SEC && due <= g.now + SEC + SEC / 4);
	answer(&g, MONEY, SAGA_DO, OUTCOME_FAILED, NULL); /* again: it waits already */
	assert_true(noted(&g, NOTE_DUPLICATE));
	assert_int_equal(saga_due(&g.in, g.def), due);
	tick(&g, due - 1);
	assert_int_equal(g.out.send_n, 0);
	tick(&g, due);
	sent(&g, 0, MONEY, SAGA_DO, 2);
	assert_memory_equal(g.out.send[0].command_id, command, 16);
	tick(&g, due + 10 * SEC);
	assert_true(noted(&g, NOTE_TIMEOUT));
	due = saga_due(&g.in, g.def);
	assert_true(due >= g.now + 2 * SEC && due <= g.now + 2 * SEC + SEC / 2);
	done(&g, MONEY); /* late, and after all */
	is_step(&g, MONEY, STEP_DONE);
	end(&g);
}

/* ---------------------------------------------------------------- backward */

static void refused(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{\"token\": 1}", 1);
	done(&g, MONEY);
	done(&g, SEAT);
	answer(&g, TOKEN, SAGA_DO, OUTCOME_REFUSED, NULL);
	is(&g, SAGA_COMPENSATING);
	assert_true(published(&g, SAGA_EVENT_FAILED));
	assert_string_equal(g.in.why, "TOKEN was refused: no money");
	assert_int_equal(g.in.failed, TOKEN);
	assert_int_equal(g.out.send_n, 1);
	sent(&g, 0, SEAT, SAGA_UNDO, 1);
	done(&g, TOKEN); /* a lie: it was refused */
	assert_true(noted(&g, NOTE_LATE));
	undone(&g, SEAT);
	sent(&g, 0, MONEY, SAGA_UNDO, 1);
	undone(&g, MONEY);
	is(&g, SAGA_COMPENSATED);
	assert_true(published(&g, SAGA_EVENT_COMPENSATED));
	is_step(&g, TOKEN, STEP_REFUSED);
	is_step(&g, SALE, STEP_WAITING);
	end(&g);
}

/* Nobody knows: it is undone too, and the answer that comes then is late. */
static void unknown(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	for (int i = 0; i < 5; i++)
		tick(&g, saga_due(&g.in, g.def));
	is(&g, SAGA_COMPENSATING);
	assert_string_equal(g.in.why, "MONEY: no reply to try 3");
	sent(&g, 0, MONEY, SAGA_UNDO, 1);
	is_step(&g, MONEY, STEP_UNDOING);
	done(&g, MONEY);
	assert_true(noted(&g, NOTE_LATE));
	is_step(&g, MONEY, STEP_UNDOING);
	undone(&g, MONEY);
	is(&g, SAGA_COMPENSATED);
	end(&g);
}

static void deadline(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{\"token\": 1}", 1);
	done(&g, MONEY);
	done(&g, SEAT);
	tick(&g, T0 + 300 * SEC);
	is(&g, SAGA_COMPENSATING);
	assert_true(noted(&g, NOTE_DEADLINE));
	assert_int_equal(g.out.send_n, 2); /* side by side: what is done, and what may be */
	sent(&g, 0, SEAT, SAGA_UNDO, 1);
	sent(&g, 1, TOKEN, SAGA_UNDO, 1);
	end(&g);
	begin(&g, DIR "sale.cfg", "{}",
		1); /* while the pivot is out nobody knows whether there is a way back */
	done(&g, MONEY);
	done(&g, SEAT);
	tick(&g, T0 + 300 * SEC);
	is(&g, SAGA_RUNNING);
	assert_true(noted(&g, NOTE_DEADLINE));
	assert_int_equal(g.in.deadline_us, 0);
	end(&g);
}

/* ---------------------------------------------------------------- stuck */

static void to_stuck_sale(struct saga *g)
{
	begin(g, DIR "sale.cfg", "{}", 1);
	done(g, MONEY);
	done(g, SEAT);
	answer(g, SALE, SAGA_DO, OUTCOME_FAILED, NULL);
	tick(g, saga_due(&g->in, g->def));
	answer(g, SALE, SAGA_DO, OUTCOME_FAILED, NULL);
	is(g, SAGA_STUCK);
	is_step(g, SALE, STEP_STUCK);
}

static void stuck_and_retried(void **state)
{
	unsigned char first[16];
	struct saga_reply r = { .step = "SALE", .step_n = 4, .outcome = OUTCOME_REFUSED };
	struct saga g;
	struct pr_err err;

	(void)state;
	to_stuck_sale(&g);
	assert_true(published(&g, SAGA_EVENT_STUCK));
	assert_string_equal(g.in.why, "do of SALE: no money");
	assert_int_equal(saga_due(&g.in, g.def), T0 + 300 * SEC);
	saga_command_id(g.def, &g.in, SALE, SAGA_DO, first);
	assert_int_equal(order(&g, ORDER_RETRY, NULL, &err), 0);
	is(&g, SAGA_RUNNING);
	assert_true(published(&g, SAGA_EVENT_RESUMED));
	sent(&g, 0, SALE, SAGA_DO, 1);
	assert_memory_not_equal(g.out.send[0].command_id, first, 16);
	memcpy(r.command_id, first, 16); /* of the command before: not ours any more */
	saga_out_clear(&g.out);
	saga_take_reply(g.def, &g.in, &r, g.now, &g.out);
	assert_true(noted(&g, NOTE_UNKNOWN));
	is(&g, SAGA_RUNNING);
	done(&g, SALE);
	sent(&g, 0, PUSH, SAGA_DO, 1);
	end(&g);
}

/* It was done after all, and nobody has to decide any more. */
static void stuck_and_answered(void **state)
{
	struct saga g;

	(void)state;
	to_stuck_sale(&g);
	answer(&g, SALE, SAGA_DO, OUTCOME_REFUSED, NULL);
	is(&g, SAGA_STUCK);
	done(&g, SALE);
	is(&g, SAGA_RUNNING);
	assert_true(published(&g, SAGA_EVENT_RESUMED));
	sent(&g, 0, PUSH, SAGA_DO, 1);
	end(&g);
}

static void orders(void **state)
{
	struct saga g;
	struct pr_err err;

	(void)state;
	to_stuck_sale(&g);
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), -1);
	assert_string_equal(err.text, "step SALE is STUCK and has no undo");
	assert_int_equal(err.exit, PR_EX_REFUSED);
	assert_int_equal(order(&g, ORDER_EDIT, "[1]", &err), -1);
	assert_int_equal(order(&g, ORDER_EDIT, "{\"a\": 1}", &err), 0);
	assert_string_equal(g.in.data.s, "{\"a\": 1}");
	is(&g, SAGA_STUCK);
	assert_int_equal(order(&g, ORDER_SKIP, NULL, &err), 0);
	is_step(&g, SALE, STEP_SKIPPED);
	is(&g, SAGA_RUNNING);
	assert_int_equal(order(&g, ORDER_SKIP, NULL, &err), -1);
	assert_int_equal(order(&g, ORDER_RETRY, NULL, &err), -1);
	assert_int_equal(order(&g, ORDER_ABORT, NULL, &err), 0);
	is(&g, SAGA_ABORTED);
	assert_true(published(&g, SAGA_EVENT_ABORTED));
	assert_int_equal(order(&g, ORDER_ABORT, NULL, &err), -1);
	assert_string_equal(err.text, "it has ended: it is ABORTED");
	end(&g);
}

static void undo_of_what_ended(void **state)
{
	struct saga g;
	struct pr_err err;

	(void)state;
	begin(&g, DIR "queue.cfg", "{}", 1);
	done(&g, 0);
	done(&g, 1);
	is(&g, SAGA_COMPLETED);
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), 0);
	is(&g, SAGA_COMPENSATING);
	sent(&g, 0, 1, SAGA_UNDO, 1);
	undone(&g, 1);
	undone(&g, 0);
	is(&g, SAGA_COMPENSATED);
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), -1);
	end(&g);
}

/* What must succeed and is refused: the same command would get the same answer for ever, so that each try
 * after it is another one, and a cause that went away lets it through. One that only failed stays the same.
 */
static void refused_and_tried_again(void **state)
{
	unsigned char was[16];
	struct saga g;
	struct pr_err err;

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	done(&g, MONEY);
	done(&g, SEAT);
	done(&g, SALE);
	memcpy(was, g.out.send[0].command_id, 16);
	for (int i = 0; i < 3; i++) {
		answer(&g, PUSH, SAGA_DO, OUTCOME_REFUSED, NULL);
		is_step(&g, PUSH, STEP_DOING);
		tick(&g, saga_due(&g.in, g.def));
		sent(&g, 0, PUSH, SAGA_DO, 2);
		assert_true(memcmp(was, g.out.send[0].command_id, 16) < 0);
		memcpy(was, g.out.send[0].command_id, 16);
		answer(&g, PUSH, SAGA_DO, OUTCOME_FAILED, NULL);
		is(&g, SAGA_STUCK);
		assert_int_equal(order(&g, ORDER_RETRY, NULL, &err), 0);
		sent(&g, 0, PUSH, SAGA_DO, 1);
		assert_true(memcmp(was, g.out.send[0].command_id, 16) < 0);
		memcpy(was, g.out.send[0].command_id, 16);
	}
	assert_int_equal(g.in.step[PUSH].generation[SAGA_DO], 6);
	done(&g, PUSH);
	is(&g, SAGA_COMPLETED);
	end(&g);
}

static void undo_refused_and_tried_again(void **state)
{
	unsigned char was[16];
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	done(&g, MONEY);
	answer(&g, SEAT, SAGA_DO, OUTCOME_REFUSED, NULL);
	memcpy(was, g.out.send[0].command_id, 16);
	answer(&g, MONEY, SAGA_UNDO, OUTCOME_REFUSED, NULL);
	tick(&g, saga_due(&g.in, g.def));
	sent(&g, 0, MONEY, SAGA_UNDO, 2);
	assert_true(memcmp(was, g.out.send[0].command_id, 16) < 0);
	undone(&g, MONEY);
	is(&g, SAGA_COMPENSATED);
	end(&g);
}

/* ---------------------------------------------------------------- another version */

/* A definition with one text of it replaced, as version 2. */
static struct saga_def *changed(const char *file, const char *from, const char *to)
{
	struct saga_def *was = loaded(file), *def = NULL;
	const char *at = strstr(was->text, from), *version = strstr(was->text, "version = 1");
	struct pr_buf b = { 0 };
	struct pr_err err;

	assert_true(at > version);
	pr_buf_put(&b, was->text, (size_t)(version - was->text));
	pr_buf_puts(&b, "version = 2");
	pr_buf_put(&b, version + 11, (size_t)(at - version - 11));
	pr_buf_puts(&b, to);
	pr_buf_puts(&b, at + strlen(from));
	if (saga_def_parse("changed", b.s, b.len, &def, &err) < 0)
		fail_msg("%s", err.text);
	pr_buf_free(&b);
	saga_def_free(was);
	return def;
}

static int migrated(struct saga *g, const struct saga_def *to, struct pr_err *err)
{
	saga_out_clear(&g->out);
	return saga_take_order(g->def, &g->in, ORDER_MIGRATE, -1, NULL, 0, to, ++g->now, &g->out, err);
}

static void cannot(struct saga *g, const char *from, const char *to, const char *why)
{
	struct saga_def *def = changed(DIR "sale.cfg", from, to);
	struct pr_err err = { 0 };

	assert_int_equal(migrated(g, def, &err), -1);
	assert_string_equal(err.text, why);
	assert_int_equal(g->out.note_n, 0);
	saga_def_free(def);
}

/* A step more, in front of those that have not begun: what has begun stays as it is under its new place. */
static void migrates(void **state)
{
	static const char more[] =
		"{ name = \"CHECK\"; kind = \"compensatable\"; do: { command = \"Check\"; topic = "
		"\"t\"; }; undo: { command = \"Uncheck\"; }; }, ";
	char both[400];
	struct saga_def *to;
	struct saga g;
	struct pr_err err;

	(void)state;
	(void)snprintf(both, sizeof(both), "%s{ name = \"SEAT\"", more);
	to = changed(DIR "sale.cfg", "{ name = \"SEAT\"", both);
	begin(&g, DIR "sale.cfg", "{}", 1);
	answer(&g, MONEY, SAGA_DO, OUTCOME_FAILED, NULL);
	assert_int_equal(migrated(&g, to, &err), 0);
	assert_true(noted(&g, NOTE_ORDER));
	saga_def_free(g.def);
	g.def = to;
	is_step(&g, MONEY, STEP_DOING);
	assert_int_equal(g.in.step[MONEY].tries, 1);
	is_step(&g, 1, STEP_WAITING);
	done(&g, MONEY);
	assert_int_equal(g.out.send_n, 1);
	assert_string_equal(g.def->step[g.out.send[0].step].name, "CHECK");
	end(&g);
}

static void cannot_migrate(void **state)
{
	struct saga g;
	struct pr_err err;
	struct saga_def *other = loaded(DIR "queue.cfg");

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	done(&g, MONEY);
	cannot(&g, "{ name = \"MONEY\"",
		"{ name = \"COIN\"; kind = \"compensatable\"; do: { command = \"C\"; topic = \"t\"; }; undo: "
		"{ command = \"D\"; }; }, { name = \"MONEY\"",
		"step COIN of version 2 comes before one that has begun");
	cannot(&g, "deadline = \"5m\";", "deadline = \"5m\"; locks = ( \"a:${data.a}\" );",
		"version 2 has other locks, which it does not hold");
	assert_int_equal(migrated(&g, other, &err), -1);
	assert_string_equal(err.text, "version 1 is another saga, or of another style");
	assert_int_equal(migrated(&g, NULL, &err), -1);
	assert_string_equal(err.text, "there is no such version");
	is_step(&g, MONEY, STEP_DONE);
	end(&g);
	saga_def_free(other);
}

/* ---------------------------------------------------------------- locks */

static void lock(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "queue.cfg", "{}", 0);
	assert_int_equal(g.out.send_n, 0);
	assert_true(noted(&g, NOTE_WAITS_FOR_LOCK));
	saga_out_clear(&g.out);
	saga_granted(g.def, &g.in, T0 + 1, &g.out);
	sent(&g, 0, 0, SAGA_DO, 1);
	saga_out_clear(&g.out);
	saga_granted(g.def, &g.in, T0 + 2, &g.out);
	assert_int_equal(g.out.send_n, 0);
	end(&g);
	begin(&g, DIR "queue.cfg", "{}", 0);
	tick(&g, T0 + 300 * SEC);
	is(&g, SAGA_COMPENSATED);
	saga_granted(g.def, &g.in, g.now, &g.out);
	is(&g, SAGA_COMPENSATED);
	assert_int_equal(g.out.send_n, 0);
	end(&g);
}

static void lock_refused(void **state)
{
	struct saga g = { .def = loaded(DIR "queue.cfg") };

	(void)state;
	saga_instance_init(&g.in, g.def, id, NULL, 0, T0);
	saga_lock_refused(g.def, &g.in, "seat:7", T0, &g.out);
	is(&g, SAGA_COMPENSATED);
	assert_string_equal(g.in.why, "another saga holds the lock seat:7");
	assert_int_equal(g.out.send_n, 0);
	assert_true(published(&g, SAGA_EVENT_COMPENSATED));
	end(&g);
}

/* ---------------------------------------------------------------- choreography */

static void event(struct saga *g, const char *type)
{
	saga_out_clear(&g->out);
	saga_take_event(g->def, &g->in, type, strlen(type), "{}", 2, ++g->now, &g->out);
}

/* The refusal of what follows from it comes before its own event, and before the start: it is undone. */
static void refusal_comes_first(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "events.cfg", "{}", 0);
	event(&g, "NotHeld");
	is(&g, SAGA_RUNNING);
	saga_out_clear(&g.out);
	saga_granted(g.def, &g.in, ++g.now, &g.out);
	is(&g, SAGA_COMPENSATING);
	assert_int_equal(g.out.send_n, 1);
	assert_string_equal(g.def->step[g.out.send[0].step].name, "BADGE");
	answer(&g, g.out.send[0].step, SAGA_UNDO, OUTCOME_DONE, NULL);
	assert_int_equal(g.out.send_n, 1);
	assert_string_equal(g.def->step[g.out.send[0].step].name, "MONEY");
	undone(&g, 0);
	is(&g, SAGA_COMPENSATED);
	event(&g, "Taken");
	assert_true(noted(&g, NOTE_LATE));
	end(&g);
}

/* A start that comes after the deadline changes nothing. */
static void start_comes_too_late(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "events.cfg", "{}", 0);
	event(&g, "NotTaken");
	tick(&g, T0 + 300 * SEC);
	is(&g, SAGA_ABORTED);
	saga_out_clear(&g.out);
	saga_granted(g.def, &g.in, ++g.now, &g.out);
	is(&g, SAGA_ABORTED);
	assert_int_equal(g.out.publish_n, 0);
	end(&g);
}

/* Services undo by themselves: what is heard first is an undo. What may have happened is waited for, until
 * the refusal comes: then what follows from it has not. */
static void undo_comes_first(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "watched.cfg", "{}", 1);
	event(&g, "GivenBack");
	is(&g, SAGA_COMPENSATING);
	is_step(&g, 0, STEP_UNDONE);
	is_step(&g, 2, STEP_UNDOING);
	event(&g, "NotHeld");
	is_step(&g, 1, STEP_REFUSED);
	is_step(&g, 2, STEP_WAITING);
	is(&g, SAGA_COMPENSATED);
	end(&g);
	begin(&g, DIR "watched.cfg", "{}", 0); /* even before the start */
	event(&g, "GivenBack");
	saga_granted(g.def, &g.in, ++g.now, &g.out);
	is(&g, SAGA_COMPENSATING);
	for (int i = 0; i < 10 && g.in.state == SAGA_COMPENSATING; i++)
		tick(&g, saga_due(&g.in, g.def));
	is(&g, SAGA_STUCK);
	event(&g, "NotHeld");
	is(&g, SAGA_COMPENSATED);
	end(&g);
}

/* The engine's undo is held: what failed may still succeed, and when nobody acts in time all is undone. */
static void undo_is_held(void **state)
{
	struct saga g;
	int64_t since;

	(void)state;
	begin(&g, DIR "held.cfg", "{}", 1);
	event(&g, "Taken");
	event(&g, "NotHeld");
	is(&g, SAGA_STUCK);
	assert_string_equal(g.in.why, "do of SEAT: NotHeld");
	assert_true(published(&g, SAGA_EVENT_STUCK));
	assert_int_equal(g.out.send_n, 0);
	since = g.now;
	event(&g, "NotHeld");
	assert_true(noted(&g, NOTE_DUPLICATE));
	tick(&g, T0 + 300 * SEC); /* the deadline */
	is(&g, SAGA_STUCK);
	assert_int_equal(saga_due(&g.in, g.def), since + 600 * SEC);
	event(&g, "Held"); /* its service tried again */
	is(&g, SAGA_RUNNING);
	assert_string_equal(g.in.why, "");
	is_step(&g, 1, STEP_DONE);
	event(&g, "NotPrinted"); /* the pivot */
	is(&g, SAGA_STUCK);
	since = g.now;
	tick(&g, since + 600 * SEC - 1);
	is(&g, SAGA_STUCK);
	tick(&g, since + 600 * SEC);
	is(&g, SAGA_COMPENSATING);
	assert_true(published(&g, SAGA_EVENT_FAILED));
	assert_string_equal(g.in.why, "TICKET: NotPrinted, and nobody acted");
	sent(&g, 0, 2, SAGA_UNDO, 1); /* it may have been tried again */
	undone(&g, 2);
	sent(&g, 0, 1, SAGA_UNDO, 1);
	undone(&g, 1);
	sent(&g, 0, 0, SAGA_UNDO, 1);
	undone(&g, 0);
	is(&g, SAGA_COMPENSATED);
	end(&g);
}

/* A missing event holds it too; an operator need not wait. What is held may be done meanwhile: it is undone.
 */
static void held_and_ordered(void **state)
{
	struct saga g;
	struct pr_err err;

	(void)state;
	begin(&g, DIR "held.cfg", "{}", 1);
	event(&g, "Taken");
	tick(&g, saga_due(&g.in, g.def));
	is(&g, SAGA_STUCK);
	assert_true(noted(&g, NOTE_MISSING));
	event(&g, "NotHeld"); /* also of one that is held already: the time runs since then */
	assert_int_equal(saga_due(&g.in, g.def), T0 + 300 * SEC);
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), 0);
	is(&g, SAGA_COMPENSATING);
	sent(&g, 0, 2, SAGA_UNDO, 1); /* nobody knows how far it got */
	undone(&g, 2);
	sent(&g, 0, 1, SAGA_UNDO, 1);
	event(&g, "NotHeld");
	is_step(&g, 1, STEP_UNDOING);
	undone(&g, 1);
	undone(&g, 0);
	is(&g, SAGA_COMPENSATED);
	end(&g);
	begin(&g, DIR "held.cfg", "{}", 1); /* nothing has failed, and an operator wants it back */
	event(&g, "Taken");
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), 0);
	sent(&g, 0, 2, SAGA_UNDO, 1);
	end(&g);
	begin(&g, DIR "held.cfg", "{}", 1); /* after the pivot it never turns by itself */
	event(&g, "Taken");
	event(&g, "Held");
	event(&g, "Printed");
	tick(&g, saga_due(&g.in, g.def));
	is(&g, SAGA_STUCK);
	assert_true(saga_due(&g.in, g.def) == T0 + 300 * SEC); /* the deadline, and nothing after it */
	tick(&g, T0 + 1000 * SEC);
	is(&g, SAGA_STUCK);
	assert_int_equal(saga_due(&g.in, g.def), INT64_MAX);
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), -1);
	assert_string_equal(err.text, "step BADGE is STUCK and has no undo");
	end(&g);
}

/* The first step is refused and nothing else is done: nobody need decide, nobody waits. Its undo is sent all
 * the same: a try that comes later finds it. */
static void held_and_nothing_done(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "held.cfg", "{}", 1);
	event(&g, "NotTaken");
	is(&g, SAGA_COMPENSATING);
	assert_false(published(&g, SAGA_EVENT_STUCK));
	assert_string_equal(g.in.why, "MONEY: NotTaken");
	for (int i = 2; i >= 0; i--) {
		sent(&g, 0, i, SAGA_UNDO, 1);
		if (i == 0)
			event(&g, "Taken"); /* too late */
		undone(&g, i);
	}
	is(&g, SAGA_COMPENSATED);
	end(&g);
}

/* The refusal, and then the success of a second try, both before the start. */
static void held_before_its_start(void **state)
{
	struct saga g;

	(void)state;
	begin(&g, DIR "held.cfg", "{}", 0);
	event(&g, "NotTaken");
	saga_out_clear(&g.out);
	saga_granted(g.def, &g.in, ++g.now, &g.out);
	is(&g, SAGA_STUCK);
	assert_int_equal(g.out.send_n, 0);
	event(&g, "Taken");
	is(&g, SAGA_RUNNING);
	end(&g);
	begin(&g, DIR "held.cfg", "{}", 0);
	event(&g, "NotTaken");
	event(&g, "Taken");
	saga_granted(g.def, &g.in, ++g.now, &g.out);
	is(&g, SAGA_RUNNING);
	is_step(&g, 0, STEP_DONE);
	end(&g);
}

/* Every step has an undo: as a last resort all of it is taken back, after its end too. */
static void undo_of_a_choreography_that_ended(void **state)
{
	struct saga g;
	struct pr_err err;

	(void)state;
	begin(&g, DIR "events.cfg", "{}", 1);
	event(&g, "Taken");
	event(&g, "Held");
	event(&g, "Given");
	event(&g, "Printed");
	is(&g, SAGA_COMPLETED);
	assert_int_equal(order(&g, ORDER_UNDO, NULL, &err), 0);
	is(&g, SAGA_COMPENSATING);
	assert_int_equal(g.out.send_n, 1);
	sent(&g, 0, 3, SAGA_UNDO, 1);
	undone(&g, 3);
	assert_int_equal(g.out.send_n, 2);
	undone(&g, 1);
	undone(&g, 2);
	undone(&g, 0);
	is(&g, SAGA_COMPENSATED);
	end(&g);
}

/* ---------------------------------------------------------------- words */

static void words(void **state)
{
	(void)state;
	for (int s = 0; s < SAGA_STATES; s++) {
		const char *w = saga_state_str((enum saga_state)s);

		assert_int_equal(saga_state_parse(w, strlen(w)), s);
		assert_int_equal(saga_state_parse(w, strlen(w) - 1), -1);
	}
	for (int s = 0; s < STEP_STATES; s++) {
		const char *w = saga_step_state_str((enum saga_step_state)s);

		assert_int_equal(saga_step_state_parse(w, strlen(w)), s);
	}
	for (int o = 0; o <= OUTCOME_FAILED; o++) {
		const char *w = saga_outcome_str((enum saga_outcome)o);

		assert_int_equal(saga_outcome_parse(w, strlen(w)), o);
	}
	for (int o = 0; o <= ORDER_MIGRATE; o++) {
		const char *w = saga_order_str((enum saga_order)o);

		assert_int_equal(saga_order_parse(w, strlen(w)), o);
	}
	assert_int_equal(saga_order_parse("", 0), -1);
	assert_string_equal(saga_event_str(SAGA_EVENT_RESUMED), "SagaResumed");
	assert_string_equal(saga_note_str(NOTE_CYCLE), "cycle");
}

/* A command's id is the same at each try, another for each step, op, generation and saga; a later generation
 * has a greater one, so that a participant knows the older command. */
static void command_ids(void **state)
{
	unsigned char seen[2 * 2 * 2 * 2][16];
	struct saga g;
	size_t n = 0;

	(void)state;
	begin(&g, DIR "sale.cfg", "{}", 1);
	for (unsigned char other = 0; other < 2; other++)
		for (int step = 0; step < 2; step++)
			for (int op = 0; op < 2; op++)
				for (int generation = 0; generation < 2; generation++) {
					g.in.id[0] = other;
					g.in.step[step].generation[op] = generation * 70000;
					saga_command_id(g.def, &g.in, step, (enum saga_op)op, seen[n]);
					assert_int_equal(seen[n][6] >> 4, 8);
					assert_int_equal(seen[n][8] >> 6, 2);
					for (size_t k = 0; k < n; k++)
						assert_memory_not_equal(seen[k], seen[n], 16);
					if (generation) {
						assert_memory_equal(seen[n - 1], seen[n], 12);
						assert_true(memcmp(seen[n - 1], seen[n], 16) < 0);
					}
					n++;
				}
	end(&g);
}

static void same_steps(const struct saga *g, const struct saga_instance *x)
{
	for (size_t i = 0; i < g->def->step_n; i++) {
		const struct saga_step_now *a = &g->in.step[i], *b = &x->step[i];

		assert_int_equal(a->state, b->state);
		assert_int_equal(a->op, b->op);
		assert_int_equal(a->tries, b->tries);
		assert_int_equal(a->generation[0], b->generation[0]);
		assert_int_equal(a->generation[1], b->generation[1]);
		assert_int_equal(a->waits, b->waits);
		assert_int_equal(a->refused, b->refused);
		assert_int_equal(a->due_us, b->due_us);
		assert_int_equal(a->since_us, b->since_us);
		assert_string_equal(a->why, b->why);
	}
}

/* What is written and read back is the same, whatever order the members are in. */
static void steps_as_json(void **state)
{
	struct saga_instance back = { 0 };
	struct pr_buf b = { 0 };
	struct saga g;
	static const char odd[] =
		"[{\"why\": \"x\\n\\u00e4\", \"state\": \"STUCK\", \"undo\": true, \"step\": \"SALE\"},"
		" {\"step\": \"GONE\", \"state\": \"DONE\"}]";

	(void)state;
	begin(&g, DIR "sale.cfg", "{\"token\": 1}", 1);
	done(&g, MONEY);
	answer(&g, SEAT, SAGA_DO, OUTCOME_FAILED, NULL);
	g.in.step[SEAT].refused = 1;
	(void)snprintf(g.in.step[SEAT].why, sizeof(g.in.step[SEAT].why), "\"quoted\" \\ \x01 ende \xc3\xa4");
	g.in.step[TOKEN].generation[1] = 3;
	g.in.step[SALE].op = SAGA_UNDO;
	saga_put_steps(g.def, &g.in, &b);
	assert_true(pr_json_text(b.s, b.len));
	assert_int_equal(saga_read_steps(g.def, &back, b.s, b.len), 0);
	same_steps(&g, &back);
	assert_int_equal(saga_read_steps(g.def, &back, odd, sizeof(odd) - 1), 0);
	assert_int_equal(back.step[SALE].state, STEP_STUCK);
	assert_int_equal(back.step[SALE].op, SAGA_UNDO);
	assert_string_equal(back.step[SALE].why, "x\n\xc3\xa4");
	for (const char *const *bad = (const char *const[]){ "", "[", "{}x", "[{}]", "[1]",
		     "[{\"step\": \"SALE\", \"state\": \"ODD\"}]", "[{\"step\": \"SALE\", \"state\": null}]",
		     "[{\"step\": null, \"state\": \"DONE\"}]", NULL };
		*bad; bad++)
		if (saga_read_steps(g.def, &back, *bad, strlen(*bad)) != -1)
			fail_msg("taken: %s", *bad);
	pr_buf_free(&b);
	end(&g);
}

/* A reason of any length is cut between characters: jsonb takes no half of one. */
static void long_reasons(void **state)
{
	char why[600];
	struct saga g;
	struct saga_reply r = { .step = "MONEY", .step_n = 5, .outcome = OUTCOME_REFUSED, .why = why };

	(void)state;
	for (size_t shift = 0; shift < 4; shift++) {
		memset(why, 'x', shift);
		for (size_t i = shift; i + 3 < sizeof(why); i += 3)
			memcpy(why + i, "\xe2\x82\xac", 4);
		begin(&g, DIR "sale.cfg", "{}", 1);
		saga_command_id(g.def, &g.in, MONEY, SAGA_DO, r.command_id);
		saga_out_clear(&g.out);
		saga_take_reply(g.def, &g.in, &r, g.now, &g.out);
		assert_true(pr_utf8_text(g.in.why, strlen(g.in.why)));
		assert_true(pr_utf8_text(g.in.step[MONEY].why, strlen(g.in.step[MONEY].why)));
		for (size_t i = 0; i < g.out.note_n; i++)
			assert_true(pr_utf8_text(g.out.note[i].text, strlen(g.out.note[i].text)));
		end(&g);
	}
	begin(&g, DIR "sale.cfg", "{}", 1);
	saga_command_id(g.def, &g.in, MONEY, SAGA_DO, r.command_id);
	r.why = "a\xff\xc3(\xed\xa0\x80 b\xc3";
	saga_take_reply(g.def, &g.in, &r, g.now, &g.out);
	assert_string_equal(g.in.step[MONEY].why, "a?"
						  "?(???"
						  " b");
	end(&g);
}

static void carried(void **state)
{
	struct pr_buf b = { 0 };
	struct saga g;

	(void)state;
	begin(&g, DIR "sale.cfg", "{\"token\": {\"a\": [1, 2.0]}}", 1);
	saga_put_payload(g.def, &g.in, TOKEN, SAGA_DO, &b);
	assert_string_equal(b.s, "{\"token\": {\"a\": [1, 2.0]}}");
	b.len = 0;
	saga_put_payload(g.def, &g.in, MONEY, SAGA_DO, &b);
	assert_string_equal(b.s, "{}");
	b.len = 0;
	saga_put_key(g.def, &g.in, MONEY, SAGA_DO, &b);
	assert_string_equal(b.s, "01234567-89ab-4def-8123-456789abcdef");
	b.len = 0;
	g.in.data.len = 0;
	pr_buf_puts(&g.in.data, "{\"seat\": \"A\\u00e4\", \"n\": 7, \"none\": null}");
	saga_put_template(
		g.def, &g.in, "seat:${data.seat}/${data.n}/${data.none}/${data.missing}/${saga.name}$", &b);
	assert_string_equal(b.s, "seat:A\xc3\xa4/7/null//sale$");
	pr_buf_free(&b);
	end(&g);
}

/* ---------------------------------------------------------------- every way */

static const char *sabotaged;

static void walked(const char *file, int depth, int orders_too, int no_barrier, struct saga_walk *ret)
{
	struct saga_walk_conf conf = { .depth = depth, .orders = orders_too, .no_barrier = no_barrier };
	struct saga_def *def = loaded(file);

	saga_walk(def, &conf, ret);
	if (!ret->whole)
		fail_msg("%s: not walked to its end: bound %s", file, ret->why_not);
	print_message("%s: %zu situations, %zu moves, depth %d%s\n", file, ret->states, ret->moves,
		ret->depth, ret->deeper ? "" : " (all)");
	if (!no_barrier && !sabotaged)
		for (size_t i = 0; i < ret->rule_n; i++)
			if (ret->rule[i].violated)
				fail_msg("%s: \"%s\" is violated: %s", file, ret->rule[i].text,
					ret->rule[i].violated);
	for (size_t i = 0; i < ret->rule_n; i++)
		ret->rule[i].text = NULL; /* the definition goes */
	saga_def_free(def);
}

static const struct saga_walk_end *ends(const struct saga_walk *w, enum saga_state s, const char *what)
{
	for (size_t i = 0; i < w->end_n; i++)
		if (w->end[i].state == s && strcmp(w->end[i].what, what) == 0)
			return &w->end[i];
	fail_msg("no way ends %s: %s", saga_state_str(s), what);
	return NULL;
}

static void walk_orchestration(void **state)
{
	struct saga_walk w;

	(void)state;
	walked(DIR "sale.cfg", 3, 0, 0, &w);
	assert_int_equal(ends(&w, SAGA_COMPLETED, "")->mishaps, 0);
	assert_string_equal(ends(&w, SAGA_COMPENSATED, "MONEY undone")->example,
		"MONEY done, TOKEN skipped, SEAT refused -> undo MONEY -> COMPENSATED");
	(void)ends(&w, SAGA_STUCK, "do of SALE");
	(void)ends(&w, SAGA_STUCK, "undo of SEAT");
	saga_walk_free(&w);
	walked(DIR "queue.cfg", SAGA_WALK_WHOLE, 0, 0, &w);
	assert_false(w.deeper);
	saga_walk_free(&w);
}

static void walk_orders(void **state)
{
	struct saga_walk w;

	(void)state;
	walked(DIR "sale.cfg", 3, 1, 0, &w);
	(void)ends(&w, SAGA_ABORTED, "");
	saga_walk_free(&w);
	walked(DIR "queue.cfg", 6, 1, 0, &w);
	saga_walk_free(&w);
}

static void walk_choreography(void **state)
{
	struct saga_walk w;

	(void)state;
	for (int o = 0; o < 2; o++) {
		walked(DIR "events.cfg", o ? 3 : SAGA_WALK_WHOLE, o, 0, &w);
		(void)ends(&w, SAGA_COMPENSATED, "MONEY undone, SEAT undone, BADGE undone");
		saga_walk_free(&w);
		walked(DIR "held.cfg", o ? 4 : SAGA_WALK_WHOLE, o, 0, &w);
		(void)ends(&w, SAGA_COMPENSATED, "MONEY undone, SEAT undone, TICKET undone");
		(void)ends(&w, SAGA_STUCK, "do of TICKET");
		saga_walk_free(&w);
		walked(DIR "watched.cfg", o ? 4 : SAGA_WALK_WHOLE, o, 0, &w);
		(void)ends(&w, SAGA_COMPENSATED, "MONEY undone, SEAT undone");
		saga_walk_free(&w);
	}
}

static void walk_samples(void **state)
{
	struct saga_walk w;

	(void)state;
	for (const char *const *f = (const char *const[]){ "etc/sagas/pay.cfg", "etc/sagas/order.cfg",
		     "etc/sagas/book.cfg", "etc/sagas/pay-choreography.cfg",
		     "etc/sagas/order-choreography.cfg", "etc/sagas/reserve.cfg", NULL };
		*f; f++) {
		walked(*f, 2, 0, 0, &w);
		saga_walk_free(&w);
	}
}

/* ---------------------------------------------------------------- what is wrong is seen */

static int breaks(const struct saga_walk *w)
{
	int n = 0;

	for (size_t i = 0; i < w->rule_n; i++)
		n += w->rule[i].violated != NULL;
	return n;
}

static void without_barrier(void **state)
{
	struct saga_walk w;

	(void)state;
	walked(DIR "queue.cfg", 2, 0, 1, &w);
	assert_true(breaks(&w) >= 2);
	saga_walk_free(&w);
	walked(DIR "events.cfg", 1, 0, 1, &w);
	assert_true(breaks(&w) >= 1);
	saga_walk_free(&w);
}

static void sabotage(const char *name, const char *file, int depth, int orders_too)
{
	struct saga_walk w;

	assert_int_equal(setenv("POSTRIDER_SABOTAGE", name, 1), 0);
	sabotaged = name;
	walked(file, depth, orders_too, 0, &w);
	sabotaged = NULL;
	assert_int_equal(unsetenv("POSTRIDER_SABOTAGE"), 0);
	assert_true(breaks(&w) >= 1);
	saga_walk_free(&w);
}

static void sabotages(void **state)
{
	(void)state;
#ifndef PR_TEST
	skip();
#endif
	sabotage("saga_undo_failed_step", DIR "queue.cfg", 2, 0);
	sabotage("saga_undo_failed_step", DIR "events.cfg", 1, 0);
	sabotage("saga_any_command_id", DIR "queue.cfg", 1, 0);
}

static void broken_definition(void **state)
{
	struct saga_walk_conf conf = { .depth = 1 };
	struct saga_def *def = loaded(DIR "forgotten.cfg");
	struct saga_walk w;
	size_t last;

	(void)state;
	saga_walk(def, &conf, &w);
	assert_true(saga_walk_is_violated(&w));
	assert_int_equal(breaks(&w), 1);
	last = w.rule_n - 1;
	assert_true(w.rule[last].is_invariant);
	assert_string_equal(w.rule[last].text, "MONEY.applied == SEAT.applied");
	assert_string_equal(w.rule[last].violated, "MONEY done, SEAT skipped -> COMPLETED");
	assert_int_equal(w.rule[last].mishaps, 0);
	saga_walk_free(&w);
	saga_def_free(def);
}

static int stop_soon(void *ctx, size_t states, int depth)
{
	(void)states;
	(void)depth;
	return ++*(int *)ctx > 1;
}

static void bounds(void **state)
{
	int called = 0;
	struct saga_walk_conf few = { .depth = SAGA_WALK_WHOLE, .states = 1000 },
			      soon = { .depth = SAGA_WALK_WHOLE, .progress = stop_soon, .ctx = &called };
	struct saga_def *def = loaded(DIR "sale.cfg");
	struct saga_walk w;

	(void)state;
	saga_walk(def, &few, &w);
	assert_false(w.whole);
	assert_string_equal(w.why_not, "states");
	assert_int_equal(w.states, 1000);
	assert_in_range(w.depth, 0, 3);
	saga_walk_free(&w);
	saga_walk(def, &soon, &w);
	assert_false(w.whole);
	assert_string_equal(w.why_not, "time");
	saga_walk_free(&w);
	saga_def_free(def);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(goes_well),
		cmocka_unit_test(condition_false),
		cmocka_unit_test(tried_again),
		cmocka_unit_test(refused),
		cmocka_unit_test(unknown),
		cmocka_unit_test(deadline),
		cmocka_unit_test(stuck_and_retried),
		cmocka_unit_test(stuck_and_answered),
		cmocka_unit_test(orders),
		cmocka_unit_test(undo_of_what_ended),
		cmocka_unit_test(refused_and_tried_again),
		cmocka_unit_test(undo_refused_and_tried_again),
		cmocka_unit_test(migrates),
		cmocka_unit_test(cannot_migrate),
		cmocka_unit_test(lock),
		cmocka_unit_test(lock_refused),
		cmocka_unit_test(refusal_comes_first),
		cmocka_unit_test(start_comes_too_late),
		cmocka_unit_test(undo_comes_first),
		cmocka_unit_test(undo_is_held),
		cmocka_unit_test(held_and_ordered),
		cmocka_unit_test(held_and_nothing_done),
		cmocka_unit_test(held_before_its_start),
		cmocka_unit_test(undo_of_a_choreography_that_ended),
		cmocka_unit_test(words),
		cmocka_unit_test(command_ids),
		cmocka_unit_test(steps_as_json),
		cmocka_unit_test(long_reasons),
		cmocka_unit_test(carried),
		cmocka_unit_test(walk_orchestration),
		cmocka_unit_test(walk_orders),
		cmocka_unit_test(walk_choreography),
		cmocka_unit_test(walk_samples),
		cmocka_unit_test(without_barrier),
		cmocka_unit_test(sabotages),
		cmocka_unit_test(broken_definition),
		cmocka_unit_test(bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
