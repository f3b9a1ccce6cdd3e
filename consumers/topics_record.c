/* consumers/topics_record.c -- what a failed message becomes in a retry or dead letter topic: the record as
 * it was, with Spring's headers about the failure. Refuses to forget where it stood first: those stay from
 * topic to topic, what is about the last failure is new each time. */
#include "consumers/outcome.h"
#include "consumers/spring.h"
#include "consumers/topics.h"

#include "lib/clock.h"

#include <string.h>

/* Of the record, but for those that an older failure left. */
static void put_own(rd_kafka_headers_t *h, const struct message *m)
{
	for (size_t i = 0; i < m->headers_n; i++)
		if (!spring_is_failure(m->headers[i].name))
			(void)rd_kafka_header_add(
				h, m->headers[i].name, -1, m->headers[i].value, (ssize_t)m->headers[i].len);
}

rd_kafka_headers_t *topics_headers(const struct lane *l, const struct work *w, int stage)
{
	const struct pr_consumer_conf *conf = l->c->conf;
	rd_kafka_headers_t *h = rd_kafka_headers_new(w->m->headers_n + 24);
	const struct outcome *why = message_why(w->m);
	char cause[64], reason[sizeof(why->text)];
	struct failure f = { .group = conf->group,
		.handler = l->c->ops->kind,
		.from = message_origin(w->m),
		.cause = cause,
		.reason = reason,
		.attempts = w->m->attempts };

	(void)snprintf(cause, sizeof(cause), "%s%s%s", pr_fail_class_str(why->cls), why->code[0] ? ":" : "",
		why->code);
	outcome_text(reason, sizeof(reason), why->text);
	put_own(h, w->m);
	spring_put_failure(h, &f);
	if (stage == 0) {
		connect_put_failure(h, &f);
		return h;
	}
	spring_put_retry(
		h, w->m->attempts + 1, pr_wall_us() + pr_consumer_delay_us(conf, stage), f.from.time_us);
	return h;
}
