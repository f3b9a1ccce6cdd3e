/* lib/page_inner.h -- what the files of lib/page know of each other, and nobody else: page.c makes the
 * document, page_picture.c the pipeline, page_spark.c the hour's curves, page_table.c one program's numbers.
 */
#ifndef PR_PAGE_INNER_H
#define PR_PAGE_INNER_H

#include "lib/page.h"

#include <math.h>

/* Members of a status; "" and NaN when there is none. NULL is fine. */
const char *page_str(const cJSON *o, const char *name);
double page_num(const cJSON *o, const char *name);
const cJSON *page_at(const cJSON *o, const char *name);

const char *page_name(const struct pr_part *p);  /* the outbox's or the group's, else its address */
const char *page_state(const struct pr_part *p); /* "away" without a status */
int page_weight(const char *state);              /* how much worse than ok (0) */
/* Stands by while another program of the page leads its outbox: no trouble, and no headline. */
int page_is_spare(const struct pr_page *page, const struct pr_part *p);
double page_rate(const struct pr_part *p); /* events a second; NaN */
/* The kind of its handler is this one. */
int page_handles(const struct pr_part *p, const char *kind);

/* "1,204", "12.3 s"; "not known" for NaN. Into buf of 32. */
const char *page_count(double n, char *buf);
const char *page_span(double seconds, char *buf);
const char *page_per_second(double n, char *buf);

/* The state's shape, never its colour alone. */
void page_icon(struct pr_buf *b, const char *state);

void page_picture(struct pr_buf *b, const struct pr_page *page);
void page_sparks(struct pr_buf *b, const struct pr_part *p);
void page_part(struct pr_buf *b, const struct pr_part *p, size_t i);

#endif
