/* relay/pipe.h -- between the reader thread (Postgres) and the publisher thread (Kafka):
 * a bounded queue of batches, and the rule who may go when.
 *
 * States of one generation, in the start order that exactly-once needs:
 *
 *   STANDBY    nobody leads: the reader has no lock
 *   LEADING    the reader holds the advisory lock and has told who the database is
 *   STREAMING  the publisher has fenced its predecessor, read the position and given it to the reader
 *
 * pipe_lead (reader): STANDBY -> LEADING, a new generation. pipe_start (publisher): LEADING -> STREAMING.
 * pipe_reset (either side): -> STANDBY; what is queued is dropped, and both sides begin the order again:
 * the reader checks its lock anew, the publisher opens a new producer. */
#ifndef RELAY_PIPE_H
#define RELAY_PIPE_H

#include "relay/batch.h"

#include <pthread.h>

enum pipe_state { PIPE_STANDBY, PIPE_LEADING, PIPE_STREAMING };

/* The database that a position belongs to. */
struct identity {
	char system_id[24];
	int64_t timeline;
	int paused;         /* by an operator, before we led */
	int position_known; /* outbox.relay says that a position was written once */
};

struct pipe {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	enum pipe_state state;
	uint64_t generation;
	struct identity identity;
	struct pr_position start;
	struct batch *head, **tail;
	size_t events, bytes; /* queued */
	size_t max_events, max_bytes;
	int stop;
	int fenced; /* another producer took our id: the reader must let go of the lock before it leads again
		     */
};

void pipe_init(struct pipe *p, size_t max_events, size_t max_bytes);
void pipe_release(struct pipe *p);
void pipe_stop(struct pipe *p); /* both sides see it in every wait */
int pipe_stopped(struct pipe *p);

/* Reader. lead returns the new generation. wait_start: 0 and *ret (owned by the caller), -1 when stopped,
 * reset or the deadline passed. wait_room: 0 when `events` more fit, -1 likewise. put takes b; -1 when its
 * generation is over (then b is freed). */
uint64_t pipe_lead(struct pipe *p, const struct identity *who);
int pipe_wait_start(struct pipe *p, uint64_t generation, int64_t deadline_us, struct pr_position *ret);
int pipe_wait_room(struct pipe *p, uint64_t generation, size_t events, int64_t deadline_us);
int pipe_put(struct pipe *p, struct batch *b);

/* Publisher. wait_lead: the generation that leads, or 0 on stop or time-out. start copies the position.
 * take: a batch (given), NULL when none came before the deadline or the generation is over (pipe_is tells).
 */
uint64_t pipe_wait_lead(struct pipe *p, int64_t deadline_us, struct identity *ret);
int pipe_start(struct pipe *p, uint64_t generation, const struct pr_position *position);
struct batch *pipe_take(struct pipe *p, uint64_t generation, int64_t deadline_us);

/* Both. */
void pipe_reset(struct pipe *p, uint64_t generation);  /* nothing when that generation is over already */
void pipe_fenced(struct pipe *p, uint64_t generation); /* publisher: reset, and give the lock up */
int pipe_take_fenced(struct pipe *p);                  /* reader: 1 once after pipe_fenced */
int pipe_is(struct pipe *p, uint64_t generation);      /* still current and not STANDBY */
enum pipe_state pipe_state(struct pipe *p);
uint64_t pipe_generation(struct pipe *p);
int64_t pipe_oldest_us(
	struct pipe *p, size_t *ret_events); /* created_us of the oldest queued; INT64_MAX none */

#endif
