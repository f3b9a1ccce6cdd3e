/* consumers/sink/prune.h -- see prune.c. */
#ifndef CONSUMERS_SINK_PRUNE_H
#define CONSUMERS_SINK_PRUNE_H

#include "lib/consumer_conf.h"
#include "lib/pg.h"

/* Of the whole group, whoever's its partitions are; each statement is small. 1: there is more to do. */
int sink_prune(const struct pr_consumer_conf *conf, struct pr_pg *pg, struct pr_err *err);

#endif
