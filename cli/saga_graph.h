/* cli/saga_graph.h -- a definition as a picture. Pure: struct in, text out. */
#ifndef PR_CLI_SAGA_GRAPH_H
#define PR_CLI_SAGA_GRAPH_H

#include "lib/json.h"
#include "lib/saga_def.h"

enum saga_graph_format {
	SAGA_GRAPH_MERMAID,
	SAGA_GRAPH_DOT,
	SAGA_GRAPH_SVG,
	SAGA_GRAPH_FORMATS,
};
const char *saga_graph_format_str(enum saga_graph_format);
int saga_graph_format_parse(const char *word); /* -1: there is no such */

/* Appends the whole picture. */
void saga_graph(const struct saga_def *def, enum saga_graph_format format, struct pr_buf *b);

/* ---- saga_graph.c's part for saga_svg.c ---- */

/* What its box says of a step, below its name; text is owned by the caller. */
enum saga_line_kind { SAGA_LINE_WHAT, SAGA_LINE_WHERE, SAGA_LINE_MORE };
#define SAGA_LINES_MOST 6
struct saga_lines {
	struct saga_line {
		enum saga_line_kind kind;
		char *text;
	} line[SAGA_LINES_MOST];
	int n;
};
void saga_lines_of(const struct saga_def *def, const struct saga_step *s, struct saga_lines *ret);
void saga_lines_of_undo(const struct saga_def *def, const struct saga_step *s, struct saga_lines *ret);
void saga_lines_free(struct saga_lines *l);
char *saga_graph_title(
	const struct saga_def *def); /* "pay, version 1: orchestration, deadline 2m"; malloc'd */

/* Whether a failure undoes it, whether it can begin one. */
int saga_graph_is_undone(const struct saga_def *def, const struct saga_step *s);
int saga_graph_may_refuse(const struct saga_def *def, const struct saga_step *s);

/* Text of XML: quoted, control characters as space. */
void saga_put_xml(struct pr_buf *b, const char *s, size_t n);

void saga_svg(const struct saga_def *def, struct pr_buf *b);

#endif
