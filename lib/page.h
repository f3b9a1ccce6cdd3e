/* lib/page.h -- the status page: one document without a network, made of what /status.json and /history.json
 * say of one program or of several. It judges nothing: state, sentence and hint are the programs' own words,
 * and the worst of them is the page's. Whole without a script; the script only asks for it again. */
#ifndef PR_PAGE_H
#define PR_PAGE_H

#include "lib/history.h"
#include "lib/http.h"
#include "lib/json.h"

#include <cjson/cJSON.h>
#include <stddef.h>

/* Words of option environment.colour. */
#define PR_PAGE_COLOURS "none|grey|blue|green|amber|red|purple"

/* One program. Borrowed all of it. */
struct pr_part {
	int relay;            /* or a consumer */
	const char *where;    /* its address; NULL: whoever serves the page */
	const cJSON *status;  /* its /status.json; NULL: it does not answer */
	const cJSON *history; /* its /history.json, or NULL */
	const char *why;      /* without status: what happened instead */
};

struct pr_page {
	const char *environment, *colour; /* NULL: what the first part's status says */
	const struct pr_part *parts;
	size_t n;
	/* More of the document, behind the pipeline: the caller's own sections. NULL: none. */
	void (*more)(struct pr_buf *b, void *ctx);
	void *ctx;
};

/* Fills resp with the document, its type and its policy. */
void pr_page_show(struct pr_response *resp, const struct pr_page *page);

/* A page of the same look that is none of the state's: title and body (HTML, its bytes are taken). */
void pr_page_plain(
	struct pr_response *resp, const struct pr_page *page, const char *title, struct pr_buf *body);

/* The page of the program itself: takes status' bytes (the text of /status.json). */
void pr_page_own(struct pr_response *resp, int relay, struct pr_buf *status, struct pr_history *h);

/* GET /history.json; ctx: struct pr_history *. */
void pr_page_history(void *ctx, const struct pr_request *req, struct pr_response *resp);

/* ,"environment":{...} of /status.json; name may be NULL, colour is an index into PR_PAGE_COLOURS. */
void pr_page_environment(struct pr_buf *b, const char *name, int colour);

/* Text as it stands in an element or in a quoted attribute. */
void pr_html_text(struct pr_buf *b, const char *text);

#endif
