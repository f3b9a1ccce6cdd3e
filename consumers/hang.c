/* consumers/hang.c -- since when each lane is in a user's code, and with what. */
#include "consumers/hang.h"

#include "lib/clock.h"
#include "lib/pulse.h"

#include <inttypes.h>
#include <stdio.h>

void hang_init(struct hang *h, const struct pr_consumer_conf *conf)
{
	*h = (struct hang){ .most_us = conf->handler.timeout_us,
		.restart = conf->handler.hang == PR_HANG_RESTART };
	(void)pthread_mutex_init(&h->mutex, NULL);
}

void hang_release(struct hang *h)
{
	(void)pthread_mutex_destroy(&h->mutex);
}

void hang_begin(struct hang *h, const struct message *m, size_t n)
{
	if (!h)
		return;
	(void)pthread_mutex_lock(&h->mutex);
	h->m = m;
	h->n = n;
	h->since_us = pr_mono_us();
	(void)pthread_mutex_unlock(&h->mutex);
	if (h->restart)
		pr_pulse("handler", h->most_us);
}

void hang_end(struct hang *h)
{
	if (!h)
		return;
	(void)pthread_mutex_lock(&h->mutex);
	h->m = NULL;
	(void)pthread_mutex_unlock(&h->mutex);
	if (h->restart)
		pr_pulse_rest();
}

/* The message outlives the call, and the call the mutex. */
static void say(const struct hang *h, char *what, size_t size)
{
	struct origin o = message_origin(h->m);
	int len = snprintf(what, size, "record %" PRId64 " of partition %" PRId32 " of \"%.100s\"", o.offset,
		o.partition, o.topic);

	if (h->n > 1 && len > 0 && (size_t)len < size)
		(void)snprintf(what + len, size - (size_t)len, " and %zu behind it", h->n - 1);
}

int hang_late(struct hang *h, size_t n, char *ret_what, size_t size, int64_t *ret_us)
{
	int late = 0;

	*ret_us = 0;
	for (size_t i = 0; i < n; i++) {
		int64_t us;

		(void)pthread_mutex_lock(&h[i].mutex);
		us = h[i].m ? pr_mono_us() - h[i].since_us : 0;
		if (us > h[i].most_us) {
			late++;
			if (us > *ret_us)
				say(&h[i], ret_what, size);
			*ret_us = us > *ret_us ? us : *ret_us;
		}
		(void)pthread_mutex_unlock(&h[i].mutex);
	}
	return late;
}
