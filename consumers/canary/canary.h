/* consumers/canary/canary.h -- events that only prove the way: table, relay, Kafka, consumer. What the files
 * share.
 *
 * handler (handler_canary.c)  those that came back, a batch in the lane's transaction; schema.sql does it
 * keeper (keeper.c)           a thread: writes the next one when it is due, and says how they fare
 *
 * Any number of members: the schema is what they share, one of them writes. */
#ifndef CONSUMERS_CANARY_H
#define CONSUMERS_CANARY_H

#include "consumers/kind.h"

void *canary_keeper(void *consumer);

#endif
