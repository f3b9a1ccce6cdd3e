/* consumers/dead_letter.h -- dead letters on their way to dead_letter.topic. The keeper's thread only. */
#ifndef CONSUMERS_DEAD_LETTER_H
#define CONSUMERS_DEAD_LETTER_H

#include "consumers/consumer.h"

struct dead_letters;

struct dead_letters *dead_letters_new(struct consumer *c); /* NULL: the config names no topic */
void dead_letters_free(struct dead_letters *d);            /* accepts NULL */

/* Publishes a bounded number of those that wait, when it is time. -1: the database; what Kafka refuses is
 * TROUBLE_DEAD_LETTER_TOPIC, and tried again later. */
int dead_letters_round(struct dead_letters *d, struct pr_pg *pg, struct pr_err *err) PR_MUSTCHECK;

#endif
