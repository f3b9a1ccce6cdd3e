/* producers/payment/gateway.h -- workers that ask the payment gateway and the tax server, see gateway.c. */
#ifndef PAYMENT_GATEWAY_H
#define PAYMENT_GATEWAY_H

#include "lib/metrics.h"
#include "lib/pg.h"

#include <stdint.h>

struct gateway;

struct gateway_opts {
	const char *conninfo, *appname;
	int64_t db_timeout_us;
	const char *url, *tax_url; /* NULL: there is none */
	int64_t timeout_us;        /* of a request */
	int64_t backoff_us, backoff_max_us;
	int64_t workers; /* for each url */
};

/* Starts the workers, idle until gateway_open; borrows the strings until gateway_close. Without any url there
 * is none, and *ret is NULL. */
int gateway_new(const struct gateway_opts *opts, struct pr_metrics *metrics, struct gateway **ret,
	struct pr_err *err) PR_MUSTCHECK;

/* The schema is there: to work. -1: they cannot, *err says why. Accepts NULL. */
int gateway_open(struct gateway *g, struct pr_err *err) PR_MUSTCHECK;

/* Accepts NULL; waits for the requests under way, a second or so. */
void gateway_close(struct gateway *g);

#endif
