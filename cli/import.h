/* cli/import.h -- a Debezium connector's options, and what becomes of each. Between the parts of
 * `postrider import-debezium` only. */
#ifndef PR_IMPORT_H
#define PR_IMPORT_H

#include "cli/adopt.h"

struct import_option {
	char *name; /* as the file has it */
	char *key;  /* without what Kafka Connect and Debezium Server put before it; "router." for the
		       EventRouter's */
	char *value;
	enum adopt_fate fate;
	char why[260];
};

struct import {
	struct import_option *v;
	int n;
	char *alias; /* of the EventRouter among the transforms */
};

/* import_read.c: JSON as Kafka Connect takes it, or properties. */
int import_read(struct import *m, const char *text, size_t len, struct pr_err *err) PR_MUSTCHECK;
void import_release(struct import *m);
struct import_option *import_find(const struct import *m, const char *key);
const char *import_get(const struct import *m, const char *key, const char *otherwise);

/* import_judge.c: fills fate and why of each. -1: no outbox of Postgres is published by this. */
int import_judge(struct import *m, struct pr_err *err) PR_MUSTCHECK;
const char *import_property(
	const char *producer); /* librdkafka's name of a Java producer's property, or NULL */
int import_is_secret(const char *name);
int import_bytes(const struct import *m);  /* the payload's column holds bytes */
int import_expand(const struct import *m); /* the payload is parsed as JSON */

/* import_write.c */
void import_config(const struct import *m, const char *brokers, const char *name, struct pr_buf *b);
/* What the connector makes of its table. */
void import_adopt(const struct import *m, struct adopt *a);
/* The i-th "column:header:alias" of table.fields.additional.placement: column into name, alias; 0 at the end.
 */
int import_placed(const struct import *m, int i, char *column, char *place, char *alias, size_t size);

#endif
