/* lib/alert_template.h -- what a webhook is sent of an alert: a file of JSON with {{names}} in it. Here
 * because --check reads it too. */
#ifndef PR_ALERT_TEMPLATE_H
#define PR_ALERT_TEMPLATE_H

#include "lib/err.h"
#include "lib/json.h"

struct pr_alert {
	const char *alert_id, *cause, *command, *detail, *first_at, *last_at; /* "" none */
	const char *times, *reminder;                                         /* digits */
};

/* The file's text, or our own (etc/alert.json) when file is NULL: malloc'd. NULL: it cannot be read, names
 * what there is not, or is no JSON once it is filled. */
char *pr_alert_template(const char *file, struct pr_err *err);

/* Appends the text with {{alert_id}}, {{cause}}, {{command}}, {{detail}}, {{times}}, {{reminder}},
 * {{first_at}} and
 * {{last_at}} replaced, escaped for a JSON string. -1 with err: another name. */
int pr_alert_fill(
	struct pr_buf *b, const char *text, const struct pr_alert *alert, struct pr_err *err) PR_MUSTCHECK;

#endif
