/* relay/relay.h -- one relay: its threads, what they share, and how well it is.
 *
 * reader (turn.c)        Postgres -> pipe        owns the source
 * publisher (publish.c)  pipe -> Kafka           owns the producer and what is held back
 * janitor (janitor.c)    scheduled events, orders of the operator, the probe of the lag
 * retention (retention.c) ranges made ahead and dropped behind
 * http (lib/http)        reads health            takes short locks only
 *
 * Everything shared is in the pipe or below, atomics or under the one mutex. */
#ifndef RELAY_RELAY_H
#define RELAY_RELAY_H

#include "relay/pipe.h"
#include "relay/source.h"

#include "lib/health.h"
#include "lib/http.h"
#include "lib/metrics.h"
#include "lib/relay_conf.h"

#include <pthread.h>
#include <stdatomic.h>

/* Why not all is well: one slot per cause, so that a cause that ended leaves no trace. */
enum trouble {
	TROUBLE_POSTGRES,  /* reader cannot reach or use the database */
	TROUBLE_KAFKA,     /* publisher cannot reach or use Kafka */
	TROUBLE_REFUSED,   /* PR_STOP: we must not go on */
	TROUBLE_JANITOR,   /* orders, scheduled events */
	TROUBLE_RETENTION, /* ranges cannot be made or dropped */
	TROUBLE_RANGES,    /* few ranges are left ahead */
	TROUBLE_RELOAD,    /* the last SIGHUP was refused */
	TROUBLE_COUNT
};

struct relay_metrics {
	struct pr_metrics *registry;
	struct pr_family *published, *published_bytes;
	struct pr_series *insert_to_ack, *batch_events;
	struct pr_family *restarts; /* reason */
	struct pr_series *pg_reconnects;
};

struct relay {
	struct pr_relay_conf *conf; /* replaced whole by a reload, under mutex; read a field at a time */
	struct pipe pipe;
	const struct source_ops *ops;
	int wake_fd; /* eventfd, readable once we stop */
	atomic_int stopping;
	atomic_int exit_code; /* set before stopping when we must not go on */

	struct relay_metrics m;
	struct pr_tracer *tracer; /* NULL: nothing is traced */
	int64_t started_us;       /* monotonic */

	/* reader -> everybody */
	atomic_int standby;        /* another relay holds the lock */
	atomic_int reading;        /* the source has begun from the position it was given ... */
	_Atomic int64_t began_seq; /* ... and looks at rows above this seq, and at late ones below */

	/* publisher -> everybody */
	atomic_int kafka_up;
	atomic_int paused; /* by the operator: nothing leaves */
	_Atomic int64_t
		in_flight_oldest_us; /* created_us of the oldest unacknowledged taken event; INT64_MAX */
	_Atomic int64_t
		in_flight_since_us; /* monotonic: something is in flight, and none of it was settled since */
	_Atomic uint64_t in_flight, published_events;
	_Atomic int64_t published_seq;  /* top of the committed position */
	_Atomic int64_t held_oldest_us; /* of parked and waiting events; INT64_MAX none */
	_Atomic uint64_t parked_events, parked_keys, waiting_events;
	_Atomic int64_t last_commit_us; /* monotonic */

	/* janitor -> everybody */
	_Atomic int64_t scheduled_oldest_us; /* due and unmoved; INT64_MAX none */
	_Atomic int64_t probe_oldest_us;     /* oldest unpublished row, looked up while nothing streams */
	_Atomic int64_t ranges_ahead;        /* -1: not yet known */
	_Atomic uint64_t request;            /* outbox.relay.request as last seen */

	struct pr_board board; /* enum trouble */
	struct pr_history *history;

	pthread_mutex_t mutex; /* of what follows */
	struct pr_position committed;
	struct waiting_topic *waiting; /* copies for /status.json */
	size_t waiting_n;
};

struct waiting_topic {
	char topic[250];
	char reason[128];
	uint64_t events;
	int64_t oldest_us;
};

/* turn.c, publish.c, janitor.c: the threads; ctx is the relay. */
void *turn_thread(void *ctx);
void *publish_thread(void *ctx);
void *janitor_thread(void *ctx);
void *retention_thread(void *ctx);

/* health.c */
void health_init(struct relay *r);
void health_release(struct relay *r);
/* One place sets and ends trouble; it logs the change, once. err NULL: all is well again. */
void health_trouble(struct relay *r, enum trouble which, const struct pr_err *err);
void health_committed(struct relay *r, const struct pr_position *position);
void health_committed_unknown(struct relay *r);
int health_http(struct relay *r, struct pr_http **ret, struct pr_err *err) PR_MUSTCHECK;
double health_lag(struct relay *r);      /* seconds */
double health_flow_lag(struct relay *r); /* of what is on its way: held back and scheduled events aside */
int health_streaming(struct relay *r);   /* both sides have begun: events flow when there are any */
int health_sample(struct relay *r); /* takes the history's next sample when it is due; ms until the next */
const char *health_state(struct relay *r, char *sentence, size_t sentence_n, char *hint, size_t hint_n);

/* Ends the process with this code, from any thread; the first one wins. */
void relay_stop(struct relay *r, int exit_code);

#endif
