/* cli/table.c -- listings: columns side by side, as wide as what is in them. A terminal that is too narrow
 * gets, one after the other: what is the same in all rows told once above them, the long text of a row on
 * lines of its own below it, shorter texts, and where these would say nothing any more names and values one
 * after the other. Refuses to cut a number or an id. A pipe gets every row
 * on one line, whole. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

/* One listing on its way to the screen. */
struct layout {
	const struct cli_table *t;
	size_t *width; /* of each column; 0: not in the rows */
	int below;     /* the last column stands below its row */
	size_t pairs;  /* no columns: "name value" pairs in so many cells; 0: columns */
};

#define LEAST_TEXT 12 /* cells of a text that was cut and still tells something */

void cli_table_add(struct cli_table *t, const char *const *cells)
{
	char **row = pr_calloc((size_t)t->ncols, sizeof(*row));

	for (int i = 0; i < t->ncols; i++)
		row[i] = cli_safe_str(cells[i] ? cells[i] : "");
	t->rows = pr_realloc(t->rows, sizeof(*t->rows) * (size_t)(t->nrows + 1));
	t->rows[t->nrows++] = row;
}

static int is(const struct cli_table *t, int column, char mark)
{
	return t->heads[column][0] == mark;
}

static const char *head(const struct cli_table *t, int column)
{
	return t->heads[column] + (strchr(">=~!", t->heads[column][0]) != NULL);
}

static size_t widest_cell(const struct cli_table *t, int column)
{
	size_t most = 1;

	for (int r = 0; r < t->nrows; r++)
		if (cli_cells(t->rows[r][column]) > most)
			most = cli_cells(t->rows[r][column]);
	return most;
}

/* Cells of a line, with two between columns. */
static size_t line_width(const struct layout *l)
{
	size_t sum = 0;

	for (int i = 0; i < l->t->ncols; i++)
		if (l->width[i])
			sum += l->width[i] + (sum ? 2 : 0);
	return sum;
}

/* ---- too narrow ---- */

static int same_in_all(const struct cli_table *t, int column)
{
	for (int r = 1; r < t->nrows; r++)
		if (strcmp(t->rows[r][column], t->rows[0][column]) != 0)
			return 0;
	return 1;
}

/* "group seat" behind what stands on the line, or on the next one. */
static void tell(const char *name, const char *value, size_t *at, size_t indent, size_t room, FILE *f)
{
	size_t n = cli_cells(value), more = strlen(name) + 1, most, cells;

	if (*at) {
		int fits = *at + 2 + more + n <= room;

		(void)fprintf(f, "%s%*s", fits ? "  " : "\n", fits ? 0 : (int)indent, "");
		*at = fits ? *at + 2 : indent;
	}
	for (; *name; name++)
		(void)fputc(*name >= 'A' && *name <= 'Z' ? *name - 'A' + 'a' : *name, f);
	*at += more;
	most = room > *at + 1 ? room - *at : 1;
	(void)fprintf(f, " %.*s%s", (int)cli_fit(value, n > most ? most - 1 : most, &cells), value,
		n > most ? "…" : "");
	*at += cells + (n > most);
}

/* The columns that say the same in all rows, on a line above them. */
static void tell_once(struct layout *l, size_t room, FILE *f)
{
	const struct cli_table *t = l->t;
	size_t at = 0;

	(void)fputs(cli_on(f, CLI_DIM), f);
	for (int i = 0; i < t->ncols; i++) {
		if (!is(t, i, '=') || !same_in_all(t, i))
			continue;
		l->width[i] = 0;
		if (*t->rows[0][i])
			tell(head(t, i), t->rows[0][i], &at, 0, room, f);
	}
	(void)fprintf(f, "%s%s", at ? "\n" : "", cli_off(f));
}

/* Takes cells from the widest column, none below least[], until the table fits. */
static void shrink_to(struct layout *l, const size_t *least, size_t room)
{
	for (size_t sum = line_width(l); sum > room; sum--) {
		int widest = -1;

		for (int i = 0; i < l->t->ncols; i++)
			if (l->width[i] > least[i] && (widest < 0 || l->width[i] > l->width[widest]))
				widest = i;
		if (widest < 0)
			return;
		l->width[widest]--;
	}
}

/* What is left of a number, or of an id, would be another one. */
static int is_whole(const struct cli_table *t, int column)
{
	return is(t, column, '>') || is(t, column, '!');
}

/* How far a column may shrink in a pass: what is the same for many rows first, then other texts, headings of
 * numbers, and texts again. */
static size_t least_of(const struct layout *l, int i, int pass)
{
	static const size_t told[] = { 12, 8, 8, 4 }, text[] = { 1000, 8, 8, 4 };

	if (is_whole(l->t, i))
		return pass < 2 ? l->width[i] : widest_cell(l->t, i);
	return is(l->t, i, '=') ? told[pass] : text[pass];
}

static void shrink(struct layout *l, size_t room)
{
	size_t *least = pr_calloc((size_t)l->t->ncols, sizeof(*least));

	for (int pass = 0; pass < 4; pass++) {
		for (int i = 0; i < l->t->ncols; i++)
			least[i] = least_of(l, i, pass);
		shrink_to(l, least, room);
	}
	free(least);
}

/* Whether a text has become too short to tell anything, or the line still does not fit. */
static int is_cramped(const struct layout *l, const size_t *whole, size_t room)
{
	for (int i = 0; i < l->t->ncols; i++)
		if (!is_whole(l->t, i) && l->width[i] && l->width[i] < whole[i] && l->width[i] < LEAST_TEXT)
			return 1;
	return line_width(l) > room;
}

static void make_fit(struct layout *l, size_t room, FILE *f)
{
	int last = l->t->ncols - 1;
	size_t *whole;

	if (line_width(l) > room)
		tell_once(l, room, f);
	if (line_width(l) <= room)
		return;
	if (is(l->t, last, '~')) {
		l->below = 1;
		l->width[last] = 0;
	}
	whole = pr_calloc((size_t)l->t->ncols, sizeof(*whole));
	memcpy(whole, l->width, (size_t)l->t->ncols * sizeof(*whole));
	shrink(l, room);
	if (is_cramped(l, whole, room))
		l->pairs = room;
	free(whole);
}

/* ---- printing ---- */

static void print_cell(FILE *f, const char *s, size_t width, int right, int last)
{
	size_t cells, n = cli_fit(s, width, &cells);
	int cut = s[n] != '\0';

	if (cut)
		n = cli_fit(s, width - 1, &cells);
	if (right)
		(void)fprintf(f, "%*s", (int)(width - cells - (size_t)cut), "");
	(void)fprintf(f, "%.*s%s", (int)n, s, cut ? "…" : "");
	if (!right && !last)
		(void)fprintf(f, "%*s", (int)(width - cells - (size_t)cut), "");
	(void)fputs(last ? "\n" : "  ", f);
}

static void print_pairs(const struct layout *l, int r, FILE *f)
{
	size_t at = 0;

	for (int i = 0; i < l->t->ncols; i++)
		if (l->width[i] && *l->t->rows[r][i])
			tell(head(l->t, i), l->t->rows[r][i], &at, 2, l->pairs, f);
	(void)fputc('\n', f);
}

/* r -1: the headings. */
static void print_row(const struct layout *l, int r, FILE *f)
{
	const struct cli_table *t = l->t;
	int last = t->ncols - 1;

	if (l->pairs && r >= 0)
		print_pairs(l, r, f);
	while (last > 0 && (!l->width[last] || (r >= 0 && !*t->rows[r][last])))
		last--;
	for (int i = 0; i <= last && !l->pairs; i++)
		if (l->width[i])
			print_cell(
				f, r < 0 ? head(t, i) : t->rows[r][i], l->width[i], is(t, i, '>'), i == last);
	if (r >= 0 && l->below && *t->rows[r][t->ncols - 1])
		cli_fill(f, t->rows[r][t->ncols - 1], 0, 4);
}

static void empty(struct cli_table *t)
{
	for (int r = 0; r < t->nrows; r++) {
		for (int i = 0; i < t->ncols; i++)
			free(t->rows[r][i]);
		free(t->rows[r]);
	}
	free(t->rows);
	t->rows = NULL;
	t->nrows = 0;
}

void cli_table_print(struct cli_table *t, FILE *f)
{
	struct layout l = { .t = t, .width = pr_calloc((size_t)t->ncols, sizeof(*l.width)) };

	for (int i = 0; i < t->ncols; i++) {
		size_t n = cli_cells(head(t, i));

		l.width[i] = widest_cell(t, i) > n ? widest_cell(t, i) : n;
	}
	if (cli_tty(f) && t->nrows)
		make_fit(&l, (size_t)cli_width(f), f);
	(void)fputs(cli_on(f, CLI_DIM), f);
	print_row(&l, -1, f);
	(void)fputs(cli_off(f), f);
	for (int r = 0; r < t->nrows; r++)
		print_row(&l, r, f);
	free(l.width);
	empty(t);
}
