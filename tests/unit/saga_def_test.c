/* tests/unit/saga_def_test.c -- the samples of etc/sagas say what they are meant to; every wrong definition
 * of tests/golden/saga_bad is refused with exactly the words of its file `expected`; the reference is what
 * the table prints. Runs from the root of the tree. */
#include "lib/saga_def.h"

#include "lib/clock.h"
#include "lib/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BAD    "tests/golden/saga_bad"
#define LEN(a) (sizeof(a) / sizeof(*(a)))

static char *slurp(const char *path, size_t *ret_len)
{
	FILE *f = fopen(path, "r");
	char *s = pr_malloc(1 << 20);
	size_t n;

	if (!f)
		fail_msg("%s is missing", path);
	n = fread(s, 1, (1 << 20) - 1, f);
	s[n] = '\0';
	(void)fclose(f);
	if (ret_len)
		*ret_len = n;
	return s;
}

static struct saga_def *loaded(const char *path)
{
	struct saga_def *def = NULL;
	struct pr_err err;

	if (saga_def_load(path, &def, &err) < 0)
		fail_msg("%s", err.text);
	return def;
}

static struct saga_def *parsed(const char *text)
{
	struct saga_def *def = NULL;
	struct pr_err err;

	if (saga_def_parse("t.cfg", text, strlen(text), &def, &err) < 0)
		fail_msg("%s", err.text);
	return def;
}

static void refused(const char *text, const char *why)
{
	struct saga_def *def = NULL;
	struct pr_err err = { 0 };

	if (saga_def_parse("t.cfg", text, strlen(text), &def, &err) == 0)
		fail_msg("taken: %s", text);
	assert_string_equal(err.text, why);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_null(def);
}

static const struct saga_step *step(const struct saga_def *def, const char *name)
{
	int i = saga_def_step(def, name, strlen(name));

	if (i < 0)
		fail_msg("there is no step %s", name);
	return &def->step[i];
}

static void has_member(
	const struct saga_member *m, size_t n, const char *name, const char *path, const char *json)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(m[i].name, name) == 0) {
			assert_true((path != NULL) == (m[i].path != NULL) &&
				    (json != NULL) == (m[i].json != NULL));
			assert_string_equal(path ? m[i].path : m[i].json, path ? path : json);
			return;
		}
	fail_msg("there is no member %s", name);
}

/* ---------------------------------------------------------------- samples */

static void pay(void **state)
{
	struct saga_def *def = loaded("etc/sagas/pay.cfg");
	const struct saga_step *s = &def->step[0];
	size_t len;
	char *text = slurp("etc/sagas/pay.cfg", &len);

	(void)state;
	assert_string_equal(def->name, "pay");
	assert_int_equal(def->version, 1);
	assert_int_equal(def->style, SAGA_ORCHESTRATION);
	assert_int_equal(def->deadline_us, 120 * PR_SEC);
	assert_int_equal(def->step_n, 4);
	assert_int_equal(def->stages, 4);
	assert_int_equal(def->pivot, 3);
	for (int i = 0; i < 4; i++) {
		static const char *const names[] = { "PAYMENT", "RESERVATION", "QUEUE", "CONCERT" };

		assert_string_equal(def->step[i].name, names[i]);
		assert_int_equal(def->step[i].stage, i);
		assert_int_equal(def->step[i].kind, i < 3 ? SAGA_COMPENSATABLE : SAGA_PIVOT);
		assert_non_null(def->step[i].act[SAGA_UNDO].command);
		assert_int_equal(def->step[i].after, 0);
	}
	assert_string_equal(s->act[SAGA_DO].command, "ExecutePayment");
	assert_string_equal(s->act[SAGA_DO].key, "data.user_id");
	assert_int_equal(s->act[SAGA_DO].timeout_us, 10 * PR_SEC);
	assert_int_equal(s->act[SAGA_DO].retry.attempts, 5);
	assert_int_equal(s->act[SAGA_DO].retry.backoff_us, PR_SEC);
	assert_int_equal(s->act[SAGA_DO].retry.backoff_max_us, 30 * PR_SEC);
	has_member(s->act[SAGA_DO].send, s->act[SAGA_DO].send_n, "amount", "data.amount", NULL);
	assert_string_equal(s->act[SAGA_UNDO].command, "CancelPayment");
	assert_string_equal(s->act[SAGA_UNDO].topic, "outbox.command.payment");
	assert_string_equal(s->act[SAGA_UNDO].key, "data.user_id");
	assert_int_equal(s->act[SAGA_UNDO].timeout_us, 30 * PR_SEC);
	assert_int_equal(s->act[SAGA_UNDO].retry.attempts, 20);
	has_member(s->keep, s->keep_n, "paid_at", "reply.paid_at", NULL);
	s = step(def, "RESERVATION");
	has_member(s->act[SAGA_UNDO].send, s->act[SAGA_UNDO].send_n, "to", NULL, "\"CANCELLED\"");
	assert_null(s->act[SAGA_DO].key);
	assert_non_null(step(def, "QUEUE")->when);
	assert_int_equal(def->locks_n, 1);
	assert_string_equal(def->locks[0], "user:${data.user_id}");
	assert_false(def->lock_refuse);
	assert_int_equal(def->invariant_n, 2);
	assert_string_equal(def->invariant[0].text, "PAYMENT.applied == RESERVATION.applied");
	assert_int_equal(def->text_len, len);
	assert_memory_equal(def->text, text, len);
	assert_int_equal(def->text[len], 0);
	free(text);
	saga_def_free(def);
}

static void book(void **state)
{
	struct saga_def *def = loaded("etc/sagas/book.cfg");
	static const int stages[] = { 0, 1, 2, 3, 4 };

	(void)state;
	assert_int_equal(def->step_n, LEN(stages));
	for (size_t i = 0; i < LEN(stages); i++)
		assert_int_equal(def->step[i].stage, stages[i]);
	assert_int_equal(def->stages, 5);
	assert_int_equal(def->pivot, 4);
	has_member(step(def, "SEAT")->keep, step(def, "SEAT")->keep_n, "amount", "reply.price", NULL);
	saga_def_free(def);
}

static void order(void **state)
{
	struct saga_def *def = loaded("etc/sagas/order.cfg");

	(void)state;
	assert_true(def->lock_refuse);
	assert_null(def->start_topic);
	assert_int_equal(def->pivot, 4);
	assert_string_equal(def->step[4].act[SAGA_DO].command, "CompleteOrder");
	has_member(step(def, "PAYMENT")->act[SAGA_UNDO].send, step(def, "PAYMENT")->act[SAGA_UNDO].send_n,
		"order_state", NULL, "\"CREATED\"");
	saga_def_free(def);
}

static void choreography(void **state)
{
	struct saga_def *def = loaded("etc/sagas/pay-choreography.cfg");

	(void)state;
	assert_int_equal(def->style, SAGA_CHOREOGRAPHY);
	assert_true(def->emit_undo);
	assert_string_equal(def->correlate, "payload.choreography_id");
	assert_string_equal(def->start_topic, "outbox.event.payment");
	assert_string_equal(def->start_type, "PaymentInitiated");
	has_member(def->start_data, def->start_data_n, "amount", "payload.amount", NULL);
	assert_int_equal(def->step_n, 5);
	assert_int_equal(def->pivot, 3);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(def->step[i].stage, i);
		assert_int_equal(def->step[i].after, i ? 1U << (i - 1) : 0);
		assert_null(def->step[i].act[SAGA_DO].command);
	}
	assert_string_equal(def->step[1].on, "PaymentCompleted");
	assert_string_equal(def->step[1].fails, "ReservationsRejected");
	assert_null(def->step[1].undone); /* its reply to the command says so */
	assert_string_equal(def->step[1].emits_topic, "outbox.event.reservation");
	has_member(def->step[1].act[SAGA_UNDO].send, def->step[1].act[SAGA_UNDO].send_n, "to", NULL,
		"\"PRIOR\"");
	assert_int_equal(def->step[0].act[SAGA_DO].timeout_us, 30 * PR_SEC);
	assert_int_equal(def->step[4].act[SAGA_DO].timeout_us, 60 * PR_SEC);
	saga_def_free(def);
}

/* Each of them is in order, its file named as it is. */
static void all_samples(void **state)
{
	DIR *dir = opendir("etc/sagas");
	struct saga_def *def;
	char path[300];

	(void)state;
	assert_non_null(dir);
	for (struct dirent *e = readdir(dir); e; e = readdir(dir)) {
		if (*e->d_name == '.')
			continue;
		(void)snprintf(path, sizeof(path), "etc/sagas/%s", e->d_name);
		def = loaded(path);
		(void)snprintf(path, sizeof(path), "%s.cfg", def->name);
		assert_string_equal(path, e->d_name);
		saga_def_free(def);
	}
	(void)closedir(dir);
}

/* ---------------------------------------------------------------- what else is taken */

#define STEP                                                                                                 \
	"{ name = \"A\"; kind = \"compensatable\"; do: { command = \"C\"; topic = \"t\"; }; undo: { "        \
	"command = \"U\"; }; }"

static void defaults(void **state)
{
	struct saga_def *def = parsed("name = \"s\"; version = 7; steps = (" STEP ");");
	const struct saga_action *d = &def->step[0].act[SAGA_DO], *u = &def->step[0].act[SAGA_UNDO];

	(void)state;
	assert_int_equal(def->version, 7);
	assert_int_equal(def->style, SAGA_ORCHESTRATION);
	assert_int_equal(def->pivot, -1);
	assert_int_equal(def->deadline_us, 0);
	assert_int_equal(def->locks_n + def->invariant_n + def->start_data_n, 0);
	assert_null(def->start_topic);
	assert_null(def->correlate);
	assert_false(def->emit_undo);
	assert_int_equal(d->timeout_us, 30 * PR_SEC);
	assert_int_equal(d->retry.attempts, 5);
	assert_int_equal(d->retry.backoff_us, PR_SEC);
	assert_int_equal(d->retry.backoff_max_us, 60 * PR_SEC);
	assert_int_equal(u->retry.attempts, 10);
	assert_string_equal(u->topic, "t");
	assert_null(u->key);
	assert_int_equal(d->send_n, 0);
	assert_int_equal(def->step[0].sla_us, 0);
	assert_null(def->step[0].when);
	assert_int_equal(def->step[0].line, 1);
	saga_def_free(def);
}

/* A first delay longer than the default of the longest takes that with it. */
static void long_backoff(void **state)
{
	struct saga_def *def =
		parsed("name = \"s\"; version = 1; steps = ( { name = \"A\"; kind = \"retriable\";\n"
		       "do: { command = \"C\"; topic = \"t\"; retry: { backoff = \"1h\"; }; }; } );");

	(void)state;
	assert_int_equal(def->step[0].act[SAGA_DO].retry.backoff_max_us, 3600 * PR_SEC);
	saga_def_free(def);
}

/* Members have names like secrets; their values are text. */
static void no_secrets(void **state)
{
	struct saga_def *def = parsed(
		"name = \"s\"; version = 1; locks = ( \"token:${data.token}\" );\n"
		"steps = ( { name = \"A\"; kind = \"retriable\"; do: { command = \"C\"; topic = \"t\";\n"
		"send = ( \"token = data.token\", \"password=\\\"env:HOME\\\"\", \" all  =  data \" ); }; } "
		");");
	const struct saga_action *a = &def->step[0].act[SAGA_DO];

	(void)state;
	assert_int_equal(a->send_n, 3);
	has_member(a->send, 3, "token", "data.token", NULL);
	has_member(a->send, 3, "password", NULL, "\"env:HOME\"");
	has_member(a->send, 3, "all", "data", NULL);
	saga_def_free(def);
	refused("name = \"s\"; version = 1; steps = ( { name = \"A\"; kind = \"retriable\";\n do: { command "
		"= \"C\";\n"
		" topic = \"t\";\n send = ( \"token = env:HOME\" ); }; } );",
		"t.cfg:4: steps[0].do.send: \"env:HOME\": here a path begins with \"data.\" or \"saga.\"");
}

static void member_values(void **state)
{
	static const char *const json[] = { "1", "-1.50", "12345678901234567890123", "\\\"x = y\\\"",
		"[1, {\\\"a\\\": 2}]", "{}", "true", "false", "null" };
	static const char *const paths[] = { "data.a", "data.a.b.0.c", "data.a[0].b", "data.a[\\\"x y\\\"]",
		"saga.id", "saga.name", "data" };
	char *text;

	(void)state;
	for (size_t i = 0; i < LEN(json) + LEN(paths); i++) {
		const char *v = i < LEN(json) ? json[i] : paths[i - LEN(json)];
		struct saga_def *def;

		text = pr_asprintf(
			"name = \"s\"; version = 1; steps = ( { name = \"A\"; kind = \"retriable\";"
			"do: { command = \"C\"; topic = \"t\"; send = ( \"m = %s\" ); }; } );",
			v);
		def = parsed(text);
		assert_true((def->step[0].act[SAGA_DO].send[0].json != NULL) == (i < LEN(json)));
		saga_def_free(def);
		free(text);
	}
}

/* Steps of a choreography may stand in any order in the file; those of the result stand by stages. */
static void choreography_is_sorted(void **state)
{
	struct saga_def *def = parsed(
		"name = \"w\"; version = 1; style = \"choreography\"; deadline = \"1m\"; correlate = "
		"\"payload.order.id\";\n"
		"start: { topic = \"t\"; type = \"E0\"; };\n"
		"steps = ( { name = \"D\"; kind = \"retriable\"; on = \"EC\"; emits = \"ED\"; emits_topic = "
		"\"t\"; when = "
		"\"data.notify\"; },\n"
		"{ name = \"C\"; kind = \"pivot\"; on = \"EA\"; emits = \"EC\"; emits_topic = \"t\"; },\n"
		"{ name = \"B\"; kind = \"retriable\"; on = \"EC\"; emits = \"EB\"; emits_topic = \"t\"; },\n"
		"{ name = \"A\"; kind = \"compensatable\"; on = \"E0\"; emits = \"EA\"; undone = \"UA\"; "
		"emits_topic = "
		"\"t\"; } );");
	static const char order[] = "ACDB";
	static const int stage[] = { 0, 1, 2, 2 }, line[] = { 6, 4, 3, 5 };
	static const uint32_t after[] = { 0, 1, 2, 2 };

	(void)state;
	assert_int_equal(def->stages, 3);
	assert_int_equal(def->pivot, 1);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(def->step[i].name[0], order[i]);
		assert_int_equal(def->step[i].stage, stage[i]);
		assert_int_equal(def->step[i].after, after[i]);
		assert_int_equal(def->step[i].line, line[i]);
	}
	saga_def_free(def);
}

static void most_steps(void **state)
{
	struct pr_buf b = { 0 };
	struct saga_def *def;

	(void)state;
	pr_buf_puts(&b, "name = \"s\"; version = 1; steps = (");
	for (int i = 0; i < SAGA_STEPS_MOST; i++)
		pr_buf_printf(&b,
			"%s\n{ name = \"S%d\"; kind = \"retriable\"; group = \"%s\"; do: { command = \"C\"; "
			"topic = "
			"\"t\"; }; }",
			i ? "," : "", i, i < 16 ? "g" : "");
	pr_buf_puts(&b, ");");
	def = parsed(b.s);
	assert_int_equal(def->step_n, SAGA_STEPS_MOST);
	assert_int_equal(def->stages, 17);
	saga_def_free(def);
	pr_buf_free(&b);
}

static void hashes(void **state)
{
	static const char a[] = "name = \"s\"; version = 1; steps = (" STEP ");",
			  b[] = "name = \"s\"; version = 1; steps = (" STEP "); ";
	static const unsigned char of_a[4] = { 0xb7, 0x6c, 0x2c, 0x0c };
	struct saga_def *x = parsed(a), *y = parsed(b), *z = parsed(a);

	(void)state;
	assert_memory_equal(x->hash, of_a, 4);
	assert_memory_equal(x->hash, z->hash, 32);
	assert_memory_not_equal(x->hash, y->hash, 32);
	saga_def_free(x);
	saga_def_free(y);
	saga_def_free(z);
	saga_def_free(NULL);
}

static void words(void **state)
{
	(void)state;
	assert_string_equal(saga_style_str(SAGA_ORCHESTRATION), "orchestration");
	assert_string_equal(saga_style_str(SAGA_CHOREOGRAPHY), "choreography");
	assert_string_equal(saga_kind_str(SAGA_COMPENSATABLE), "compensatable");
	assert_string_equal(saga_kind_str(SAGA_PIVOT), "pivot");
	assert_string_equal(saga_kind_str(SAGA_RETRIABLE), "retriable");
	assert_string_equal(saga_op_str(SAGA_DO), "do");
	assert_string_equal(saga_op_str(SAGA_UNDO), "undo");
}

/* ---------------------------------------------------------------- what is refused */

static void no_file(void **state)
{
	static const struct {
		const char *file, *why;
	} t[] = { { "/nonexistent/x.cfg", "/nonexistent/x.cfg: cannot be opened: No such file or directory" },
		{ "etc/sagas", "etc/sagas: is a directory, a regular file is needed" },
		{ "/dev/zero", "/dev/zero: is a device, a regular file is needed" } };
	struct saga_def *def = NULL;

	(void)state;
	for (size_t i = 0; i < LEN(t); i++) {
		struct pr_err err = { 0 };

		assert_int_equal(saga_def_load(t[i].file, &def, &err), -1);
		assert_string_equal(err.text, t[i].why);
		assert_int_equal(err.exit, PR_EX_CONFIG);
	}
	assert_null(def);
}

static void bad_text(void **state)
{
	struct saga_def *def = NULL;
	struct pr_err err = { 0 };
	char *large = pr_malloc(300 * 1024);

	(void)state;
	memset(large, '#', 300 * 1024);
	assert_int_equal(saga_def_parse("t.cfg", large, 300 * 1024, &def, &err), -1);
	assert_string_equal(err.text, "t.cfg: is larger than 256 kB");
	assert_int_equal(saga_def_parse("t.cfg", "name = \"a\0b\";", 13, &def, &err), -1);
	assert_non_null(strstr(err.text, "NUL"));
	assert_int_equal(saga_def_parse("t.cfg", "", 0, &def, &err), -1);
	assert_string_equal(err.text, "t.cfg: name: is required");
	assert_null(def);
	free(large);
}

/* One file's refusal as `expected` has it. */
static void put_refusal(const char *name, struct pr_buf *b)
{
	char *path = pr_asprintf("%s/%s", BAD, name), *text;
	struct saga_def *def = NULL;
	struct pr_err err = { 0 };
	size_t len;

	text = slurp(path, &len);
	if (saga_def_parse(name, text, len, &def, &err) == 0)
		fail_msg("%s was taken", name);
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_null(def);
	pr_buf_printf(b, "%s\n", err.text);
	if (*err.hint)
		pr_buf_printf(b, "  hint: %s\n", err.hint);
	free(text);
	free(path);
}

static int is_definition(const struct dirent *e)
{
	return strstr(e->d_name, ".cfg") != NULL;
}

/* strcoll would depend on who runs it. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static void golden(void **state)
{
	struct pr_buf is = { 0 };
	char *should = slurp(BAD "/expected", NULL), *x, *y, *save_x, *save_y;
	struct dirent **names;
	int n = scandir(BAD, &names, is_definition, by_name);

	(void)state;
	assert_in_range(n, 100, 1000);
	for (int i = 0; i < n; i++) {
		put_refusal(names[i]->d_name, &is);
		free(names[i]);
	}
	free(names);
	x = strtok_r(is.s, "\n", &save_x);
	y = strtok_r(should, "\n", &save_y);
	for (; x || y; x = strtok_r(NULL, "\n", &save_x), y = strtok_r(NULL, "\n", &save_y))
		if (!x || !y || strcmp(x, y) != 0)
			fail_msg("is     %s\nshould %s", x ? x : "(nothing)", y ? y : "(nothing)");
	pr_buf_free(&is);
	free(should);
}

/* ---------------------------------------------------------------- the reference */

static void reference(void **state)
{
	char *page = slurp("docs/reference/saga-definition.md", NULL), *table;
	size_t n;
	FILE *f = open_memstream(&table, &n);

	(void)state;
	pr_conf_reference(saga_def_options, "", f);
	(void)fclose(f);
	if (!strstr(page, strstr(table, "### `")))
		fail_msg(
			"docs/reference/saga-definition.md is stale: from \"### `name`\" on it should be\n%s",
			strstr(table, "### `"));
	free(table);
	free(page);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pay),
		cmocka_unit_test(book),
		cmocka_unit_test(order),
		cmocka_unit_test(choreography),
		cmocka_unit_test(all_samples),
		cmocka_unit_test(defaults),
		cmocka_unit_test(long_backoff),
		cmocka_unit_test(no_secrets),
		cmocka_unit_test(member_values),
		cmocka_unit_test(choreography_is_sorted),
		cmocka_unit_test(most_steps),
		cmocka_unit_test(hashes),
		cmocka_unit_test(words),
		cmocka_unit_test(no_file),
		cmocka_unit_test(bad_text),
		cmocka_unit_test(golden),
		cmocka_unit_test(reference),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
