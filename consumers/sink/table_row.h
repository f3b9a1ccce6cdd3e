/* consumers/sink/table_row.h -- a record as a row of a COPY in binary, in the order of enum table_column. */
#ifndef CONSUMERS_SINK_TABLE_ROW_H
#define CONSUMERS_SINK_TABLE_ROW_H

#include "consumers/sink/sink.h"
#include "consumers/sink/table_sql.h"

void table_row_head(struct pr_buf *b); /* before the first */
void table_row_tail(struct pr_buf *b); /* behind the last */

/* Only the columns that has names. Takes any bytes: what Postgres would refuse goes as base64. */
void table_row_put(struct pr_buf *b, const struct sink_row *row, const int has[COLUMN_COUNT]);

#endif
