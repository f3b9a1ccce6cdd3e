/* tests/unit/saga_graph_test.c -- pictures of definitions are those of tests/golden/saga_graph, the SVG ones
 * are well-formed XML that shows each step once. Runs from the root of the tree; a picture that differs is
 * left in build/check/saga_graph to look at, and to copy when it is better. */
#include "cli/saga_graph.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define GOLDEN "tests/golden/saga_graph"
#define FOUND  "build/check/saga_graph"

static const char *const definitions[][2] = {
	{ "etc/sagas/pay.cfg", "pay" },
	{ "etc/sagas/book.cfg", "book" },
	{ "etc/sagas/order.cfg", "order" },
	{ "etc/sagas/pay-choreography.cfg", "pay-choreography" },
	{ "etc/sagas/order-choreography.cfg", "order-choreography" },
	{ "etc/sagas/reserve.cfg", "reserve" },
	{ GOLDEN "/odd.cfg", "odd" },
	{ GOLDEN "/odd-choreography.cfg", "odd-choreography" },
};

#define DEFINITIONS (sizeof(definitions) / sizeof(definitions[0]))

static struct saga_def *loaded(const char *path)
{
	struct saga_def *def = NULL;
	struct pr_err err;

	if (saga_def_load(path, &def, &err) < 0)
		fail_msg("%s", err.text);
	return def;
}

static char *slurp(const char *path)
{
	char *s = pr_calloc(1, 1 << 18);
	FILE *f = fopen(path, "r");

	if (f) {
		s[fread(s, 1, (1 << 18) - 1, f)] = '\0';
		(void)fclose(f);
	}
	return s;
}

static void keep(const char *name, const char *format, const struct pr_buf *is)
{
	char *path = pr_asprintf(FOUND "/%s.%s", name, format);
	FILE *f;

	(void)mkdir("build/check", 0777);
	(void)mkdir(FOUND, 0777);
	f = fopen(path, "w");
	if (f) {
		(void)fwrite(is->s, 1, is->len, f);
		(void)fclose(f);
	}
	free(path);
}

/* 1 when the picture is the golden one. */
static int is_golden(size_t i, enum saga_graph_format format)
{
	char *path = pr_asprintf(GOLDEN "/%s.%s", definitions[i][1], saga_graph_format_str(format)), *should;
	struct saga_def *def = loaded(definitions[i][0]);
	struct pr_buf is = { 0 };
	int same;

	saga_graph(def, format, &is);
	should = slurp(path);
	same = strcmp(is.s, should) == 0;
	if (!same) {
		keep(definitions[i][1], saga_graph_format_str(format), &is);
		print_error("%s is not what " FOUND " has\n", path);
	}
	free(should);
	free(path);
	pr_buf_free(&is);
	saga_def_free(def);
	return same;
}

static void golden(void **state)
{
	int same = 1;

	(void)state;
	for (size_t i = 0; i < DEFINITIONS; i++)
		for (int f = 0; f < SAGA_GRAPH_FORMATS; f++)
			same &= is_golden(i, (enum saga_graph_format)f);
	assert_true(same);
}

/* ---------------------------------------------------------------- XML */

static int is_entity(const char *s)
{
	return strncmp(s, "&lt;", 4) == 0 || strncmp(s, "&gt;", 4) == 0 || strncmp(s, "&amp;", 5) == 0 ||
	       strncmp(s, "&quot;", 6) == 0;
}

/* One tag from < to >; names of open elements are kept in stack. */
static const char *tag(const char *s, char stack[16][32], int *depth)
{
	const char *end = s + 1;
	size_t n = strcspn(s + 1, " />\n");
	int closing = s[1] == '/', quotes = 0;

	for (; *end && (*end != '>' || quotes); end++) {
		quotes ^= *end == '"';
		if (*end == '<' || (*end == '&' && !is_entity(end)))
			fail_msg("a tag holds %.20s", end);
	}
	assert_int_equal(*end, '>');
	if (closing) {
		assert_true(*depth > 0);
		--*depth;
		assert_memory_equal(stack[*depth], s + 2, strlen(stack[*depth]));
		assert_int_equal(s[2 + strlen(stack[*depth])], '>');
	} else if (end[-1] != '/') {
		assert_true(*depth < 16 && n > 0 && n < 32);
		(void)snprintf(stack[(*depth)++], 32, "%.*s", (int)n, s + 1);
	}
	return end + 1;
}

static void well_formed(const char *s)
{
	char stack[16][32];
	int depth = 0;

	assert_memory_equal(s, "<svg ", 5);
	while (*s) {
		if (*s == '<') {
			s = tag(s, stack, &depth);
			continue;
		}
		if (*s == '&' && !is_entity(s))
			fail_msg("a text holds %.20s", s);
		assert_true((unsigned char)*s >= ' ' || *s == '\n');
		s++;
	}
	assert_int_equal(depth, 0);
}

static int occurrences(const char *text, const char *word)
{
	int n = 0;

	for (const char *p = strstr(text, word); p; p = strstr(p + 1, word))
		n++;
	return n;
}

static void xml(void **state)
{
	(void)state;
	for (size_t i = 0; i < DEFINITIONS; i++) {
		struct saga_def *def = loaded(definitions[i][0]);
		struct pr_buf svg = { 0 };
		int undone = 0;

		saga_graph(def, SAGA_GRAPH_SVG, &svg);
		well_formed(svg.s);
		assert_true(pr_utf8_text(svg.s, svg.len));
		for (size_t k = 0; k < def->step_n; k++)
			undone += saga_graph_is_undone(def, &def->step[k]);
		assert_int_equal(occurrences(svg.s, "<rect class=\"card "), (int)def->step_n + undone);
		assert_int_equal(occurrences(svg.s, "<rect class=\"card undo\""), undone);
		assert_int_equal(occurrences(svg.s, ">COMPLETED<"), 1);
		assert_int_equal(occurrences(svg.s, ">COMPENSATED<"), 1);
		pr_buf_free(&svg);
		saga_def_free(def);
	}
}

/* 32 steps side by side, and 32 one after the other: all there, nothing outside of the picture. */
static void most(void **state)
{
	(void)state;
	for (int beside = 0; beside < 2; beside++) {
		struct pr_buf text = { 0 }, svg = { 0 };
		struct saga_def *def = NULL;
		struct pr_err err;
		int width, height;

		pr_buf_puts(&text, "name = \"s\"; version = 1; steps = (");
		for (int i = 0; i < SAGA_STEPS_MOST; i++)
			pr_buf_printf(&text,
				"%s{ name = \"S%d\"; kind = \"retriable\"; group = \"%s\"; do: { command = "
				"\"C\"; topic = "
				"\"t\"; }; }",
				i ? "," : "", i, beside ? "g" : "");
		pr_buf_puts(&text, ");");
		assert_int_equal(saga_def_parse("t", text.s, text.len, &def, &err), 0);
		saga_graph(def, SAGA_GRAPH_SVG, &svg);
		well_formed(svg.s);
		assert_int_equal(occurrences(svg.s, "<rect class=\"card retriable\""), SAGA_STEPS_MOST);
		assert_int_equal(occurrences(svg.s, "COMPENSATED"), 0);
		assert_int_equal(
			sscanf(strstr(svg.s, "viewBox"), "viewBox=\"0 0 %d %d\"", &width, &height), 2);
		for (const char *p = strstr(svg.s, "<rect class=\"card"); p;
			p = strstr(p + 1, "<rect class=\"card")) {
			int x, y, w, h;

			assert_int_equal(
				sscanf(strstr(p, " x="), " x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"", &x,
					&y, &w, &h),
				4);
			assert_true(x >= 0 && y >= 0 && x + w <= width && y + h <= height);
		}
		saga_def_free(def);
		pr_buf_free(&text);
		pr_buf_free(&svg);
	}
}

static void formats(void **state)
{
	(void)state;
	assert_int_equal(saga_graph_format_parse("mermaid"), SAGA_GRAPH_MERMAID);
	assert_int_equal(saga_graph_format_parse("dot"), SAGA_GRAPH_DOT);
	assert_int_equal(saga_graph_format_parse("svg"), SAGA_GRAPH_SVG);
	assert_int_equal(saga_graph_format_parse("png"), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden),
		cmocka_unit_test(xml),
		cmocka_unit_test(most),
		cmocka_unit_test(formats),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
