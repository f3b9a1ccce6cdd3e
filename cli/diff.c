/* cli/diff.c -- two texts compared line by line, for a person to agree to. Bounded: texts that
 * differ in more than a few thousand lines are shown as one replaced by the other. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#define CONTEXT 3
#define CELLS   (16 << 20) /* of the table of longest common subsequences */

struct text {
	const char **line; /* n of them, ended by '\n' or the end of the string */
	int n;
};

static void split(struct text *t, const char *s)
{
	while (*s) {
		size_t len = strcspn(s, "\n");

		t->line = pr_realloc(t->line, sizeof(*t->line) * (size_t)(t->n + 1));
		t->line[t->n++] = s;
		s += len + (s[len] == '\n');
	}
}

static int same(const char *a, const char *b)
{
	size_t n = strcspn(a, "\n");

	return n == strcspn(b, "\n") && memcmp(a, b, n) == 0;
}

static void put(FILE *f, char sign, const char *line)
{
	enum cli_colour colour = sign == '-' ? CLI_RED : sign == '+' ? CLI_GREEN : CLI_PLAIN;

	(void)fprintf(
		f, "%s%c %.*s%s\n", cli_on(f, colour), sign, (int)strcspn(line, "\n"), line, cli_off(f));
}

/* length[i][j]: of the longest common subsequence of a[i..] and b[j..]. NULL when it would be too large. */
static int *table(const struct text *a, const struct text *b)
{
	size_t w = (size_t)b->n + 1;
	int *t;

	if (((size_t)a->n + 1) * w > CELLS)
		return NULL;
	t = pr_calloc(((size_t)a->n + 1) * w, sizeof(*t));
	for (int i = a->n - 1; i >= 0; i--)
		for (int j = b->n - 1; j >= 0; j--) {
			int *at = &t[(size_t)i * w + (size_t)j];

			if (same(a->line[i], b->line[j]))
				*at = at[w + 1] + 1;
			else
				*at = at[w] > at[1] ? at[w] : at[1];
		}
	return t;
}

/* The middle, which differs at its first and its last line. */
static void walk(FILE *f, const struct text *a, const struct text *b)
{
	int *t = table(a, b), i = 0, j = 0;
	size_t w = (size_t)b->n + 1;

	while (i < a->n || j < b->n) {
		int *at = t ? &t[(size_t)i * w + (size_t)j] : NULL;

		if (at && i < a->n && j < b->n && same(a->line[i], b->line[j])) {
			put(f, ' ', a->line[i++]);
			j++;
		} else if (i < a->n && (j == b->n || !at || at[w] >= at[1])) {
			put(f, '-', a->line[i++]);
		} else {
			put(f, '+', b->line[j++]);
		}
	}
	free(t);
}

void cli_diff(FILE *f, const char *was, const char *is)
{
	struct text a = { 0 }, b = { 0 }, x, y;
	int head = 0, tail = 0;

	split(&a, was);
	split(&b, is);
	while (head < a.n && head < b.n && same(a.line[head], b.line[head]))
		head++;
	while (tail < a.n - head && tail < b.n - head && same(a.line[a.n - 1 - tail], b.line[b.n - 1 - tail]))
		tail++;
	for (int i = head > CONTEXT ? head - CONTEXT : 0; i < head; i++)
		put(f, ' ', a.line[i]);
	x = (struct text){ .line = a.line + head, .n = a.n - head - tail };
	y = (struct text){ .line = b.line + head, .n = b.n - head - tail };
	walk(f, &x, &y);
	for (int i = 0; i < tail && i < CONTEXT; i++)
		put(f, ' ', a.line[a.n - tail + i]);
	free(a.line);
	free(b.line);
}
