/* cli/top.h -- `postrider top`: the programs, what they last said, and what is shown of it. */
#ifndef PR_TOP_H
#define PR_TOP_H

#include "cli/cli.h"

#include <curl/curl.h>

#define TOP_MOST 16 /* programs */

struct top_topic {
	char *name;
	double total, rate; /* rate NAN: seen once */
};

struct top_program {
	char *url;
	cJSON *root;              /* of /status.json; NULL: it has not answered, or not as ours do */
	char why[200];            /* why it has not */
	struct top_topic *topics; /* of /metrics */
	int ntopics;
	int64_t metrics_us; /* when they were taken */
	/* the question under way */
	CURL *curl;
	int busy, metrics; /* metrics: it is about /metrics */
	int answered;      /* at least once, if only by a failure */
	int64_t due_us;
	struct pr_buf body;
};

struct top {
	struct cli *c;
	CURLM *multi;
	struct curl_slist *headers;
	struct top_program programs[TOP_MOST];
	int n;
	int64_t every_us;
	/* the screen */
	int columns, lines, selected, paused, typing, over;
	char filter[64];
};

/* top_ask.c: all programs side by side, no call waits for one of them. */
int top_open(struct top *t, struct pr_err *err) PR_MUSTCHECK;
void top_close(struct top *t);
void top_begin(struct top *t, int64_t now); /* asks those that are due */
int top_take(struct top *t, int64_t now);   /* takes answers; how many */
int64_t top_wait_us(const struct top *t, int64_t now);

/* What a program said; NULL or NAN when it did not. */
const char *top_text(const struct top_program *p, const char *name);
double top_number(const struct top_program *p, const char *name);
const char *top_state(const struct top_program *p);
int top_healthy(const struct top_program *p);

/* top_screen.c: the terminal, put back by top_leave, and a frame for it. */
int top_enter(struct pr_err *err) PR_MUSTCHECK;
void top_leave(void); /* may be called again, and before top_enter */
void top_measure(struct top *t);
void top_draw(const struct top *t);
void top_row(const struct top_program *p, char cells[8][80]);
int top_matches(const struct top *t, const char *name);

#endif
