/* cli/saga_simulate.h -- what a walk through a definition found, as text and as JSON. */
#ifndef PR_CLI_SAGA_SIMULATE_H
#define PR_CLI_SAGA_SIMULATE_H

#include "cli/cli.h"
#include "lib/saga_walk.h"

void saga_simulate_print(const struct saga_def *def, const struct saga_walk *w);
void saga_simulate_json(const struct saga_def *def, const struct saga_walk *w);

#endif
