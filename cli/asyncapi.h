/* cli/asyncapi.h -- what the files of `postrider asyncapi` share: topics with their types, each a tree of
 * places. */
#ifndef PR_ASYNCAPI_H
#define PR_ASYNCAPI_H

#include "cli/cli.h"
#include "lib/shape.h"

/* A place of a payload, or of the headers. */
struct place {
	char *name; /* "" of elements and of a map's members */
	int element, any;
	unsigned kinds; /* enum pr_kind_of_value */
	int64_t seen;
	char *sample, *pii; /* NULL: none */
	struct place *child, *next;
};

struct event_type {
	char *name;
	struct place payload;
	char **headers; /* names of headers that were seen; NULL: only those of the contract */
	size_t headers_n;
	int key_text, key_bytes; /* seen: keys that are text, keys that are not */
	struct event_type *next;
};

struct channel {
	const char *topic;
	int partitions; /* 0: unknown */
	struct event_type *types;
};

enum examples { EXAMPLES_MASKED, EXAMPLES_PLAIN, EXAMPLES_NONE };

/* asyncapi_places.c: places by their paths */
struct place *place_at(struct place *root, const char *path); /* made when it is not there; NULL: no path */
unsigned place_kind(const char *word);                        /* "string"; 0: none */
void place_free(struct place *p);                             /* what is in it */

/* asyncapi_document.c */
cJSON *asyncapi_document(
	const struct cli *c, const struct channel *channels, size_t n, enum examples examples);
void asyncapi_yaml(const cJSON *value, FILE *f);

#endif
