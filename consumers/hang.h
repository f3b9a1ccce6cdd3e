/* consumers/hang.h -- calls of a user's code that nothing ends but itself: a function of a shared object, in
 * a lane's thread. Tells which of them have not come back in time, and has the watchdog told where the config
 * says so. Refuses to end a thread: what it holds (locks, memory, a transaction) would stay held. */
#ifndef CONSUMERS_HANG_H
#define CONSUMERS_HANG_H

#include "consumers/message.h"

#include <pthread.h>

/* One of each lane. */
struct hang {
	pthread_mutex_t mutex;
	const struct message *m; /* the first of the call, borrowed; NULL: no call is under way */
	size_t n;
	int64_t since_us, most_us; /* monotonic; what handler.timeout allows */
	int restart;               /* handler.hang: the watchdog shall know */
};

void hang_init(struct hang *h, const struct pr_consumer_conf *conf);
void hang_release(struct hang *h);

/* The lane's thread: around each call. h NULL: nobody watches. */
void hang_begin(struct hang *h, const struct message *m, size_t n);
void hang_end(struct hang *h);

/* Any thread. How many of the n calls are late; of the one that is latest what it is at (for people, the same
 * as long as it hangs) and for how long it has been. */
int hang_late(struct hang *h, size_t n, char *ret_what, size_t size, int64_t *ret_us);

#endif
