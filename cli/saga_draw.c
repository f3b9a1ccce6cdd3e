/* cli/saga_draw.c -- `postrider saga graph`: a definition's picture on stdout. */
#include "cli/saga_definition.h"
#include "cli/saga_graph.h"

#include <string.h>

int verb_saga_graph(struct cli *c)
{
	const char *format = cli_str(c, "format");
	struct saga_def *def = NULL;
	struct pr_buf picture = { 0 };
	struct pr_err err = { 0 };

	if (cli_saga_definition(c, c->args[0], &def, &err) < 0)
		return cli_failed(c, &err);
	saga_graph(def, format ? (enum saga_graph_format)saga_graph_format_parse(format) : SAGA_GRAPH_MERMAID,
		&picture);
	(void)fwrite(picture.s, 1, picture.len, stdout);
	pr_buf_free(&picture);
	saga_def_free(def);
	return PR_EX_OK;
}
