/* cli/saga_definition.h -- verbs about definitions: where one comes from. */
#ifndef PR_CLI_SAGA_DEFINITION_H
#define PR_CLI_SAGA_DEFINITION_H

#include "cli/cli.h"
#include "lib/saga_def.h"

/* The definition that an operand names: a file, or NAME or NAME:VERSION of the engine's database (without a
 * version the newest). A name holds letters, digits, "_" and "-" only; all else is a file. On 0 the caller
 * frees *ret. -1: err's exit is the verb's. */
int cli_saga_definition(
	struct cli *c, const char *operand, struct saga_def **ret, struct pr_err *err) PR_MUSTCHECK;

#endif
