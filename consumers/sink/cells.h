/* consumers/sink/cells.h -- a record as columns, for formats that have them (avro.c, parquet.c): every text
 * is valid UTF-8, every header's name is there once. */
#ifndef CONSUMERS_SINK_CELLS_H
#define CONSUMERS_SINK_CELLS_H

#include "consumers/sink/sink.h"

struct sink_text {
	const char *s; /* NULL: null */
	size_t n;
};

struct sink_pair {
	struct sink_text name, value;
};

struct sink_cells {
	struct sink_text id, type, topic, key;
	struct sink_text payload;        /* JSON; null: a tombstone, or what follows */
	struct sink_text payload_base64; /* of a payload that is no JSON */
	int32_t partition;
	int64_t offset, time_us; /* -1: null */
	struct sink_pair *headers;
	size_t headers_n;

	size_t headers_cap;
	const struct header **sorted;
	struct pr_buf scratch;
};

/* Starts as {0}. What it then says is borrowed from the row and from c until the next call. Bytes that are no
 * text become "base64:..." in key and in headers' values; in names, type and id each bad byte becomes U+FFFD;
 * of several headers of a name the last one stays. */
void sink_cells_of(struct sink_cells *c, const struct sink_row *row);
size_t sink_cells_held(const struct sink_cells *c); /* bytes of memory */
void sink_cells_free(struct sink_cells *c);

#endif
