/* consumers/push/push.h -- notifications and alerts inside a consumer: what its files share.
 *
 * handler (handler_push.c)  events and commands, a batch in the lane's transaction; what becomes of them is
 * schema.sql desk (desk.c)             a thread: gives what is pending its place, hands what was sent to the
 * streams of this member streams (streams.c)       who listens here api (api.c)               GET
 * /notifications, GET /notifications/stream alerts (alerts.c)         a thread: the webhook
 *
 * A notification is stored by one member, sent (given its place in one order of all) by any, and read by the
 * desks of all: so a client may be connected to whichever it likes. */
#ifndef CONSUMERS_PUSH_H
#define CONSUMERS_PUSH_H

#include "consumers/kind.h"

#include "lib/service_token.h"

#define PUSH_STREAM_BYTES 262144 /* that may wait for one client */

/* ---------------------------------------------------------------- streams.c */

struct streams;
struct stream;

struct streams *streams_new(int64_t most, int64_t per_user);
void streams_free(struct streams *s); /* ends them all; accepts NULL */

/* One more of this user (his sub), until expires (seconds since 1970). Takes out, of which the caller has
 * given the other half to a response. It is held back until streams_ready; *ret_place: what has a greater
 * place will come by streams_deliver, what has not is the caller's. NULL: there are too many, out was given
 * back. */
struct stream *streams_open(
	struct streams *s, const char *user, int64_t expires, struct pr_stream *out, int64_t *ret_place);
/* The first bytes; then what was held back. NULL: it ends at once; more: after them, the client asks for the
 * rest. */
void streams_ready(struct streams *s, struct stream *one, const char *first, size_t n, int more);

/* Rows user_id, place, JSON, in the order of their places: to those of the user. What has gone is forgotten.
 */
void streams_deliver(struct streams *s, const PGresult *rows);
int64_t streams_place(struct streams *s);
void streams_begin_at(struct streams *s, int64_t place); /* before the first is opened */
void streams_beat(
	struct streams *s, int64_t now_s); /* a comment to each; those whose token has expired end */
int64_t streams_count(struct streams *s);

/* One notification as the stream has it: "id: PLACE", "data: JSON". */
void stream_put(struct pr_buf *b, const char *place, const char *json);

/* ---------------------------------------------------------------- api.c */

struct api {
	struct consumer *c;
	struct streams *streams;
	struct pr_tokens *tokens;
	struct pr_http *http;
};

int api_open(struct api *api, struct pr_err *err) PR_MUSTCHECK;
void api_close(struct api *api); /* the server; then streams and tokens are the caller's */

/* ---------------------------------------------------------------- threads */

void *push_desk(void *consumer);
void *push_alerts(void *consumer);

#endif
