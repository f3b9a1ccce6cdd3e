/* producers/queue/limit.c -- how often one token may be checked, and one user ask for one: a table of fixed
 * size, the generic cell rate algorithm. In this process, not in Redis: a check waits for nobody, and a limit
 * that asks Redis would cost what it saves. So N processes allow N times as much. Two tokens that meet in one
 * place forget each other: nobody is refused for another's checks. */
#include "producers/queue/queue.h"

#define PLACES 65536
#define LOCKS  64

struct place {
	uint64_t token;
	int64_t arrival_us; /* theoretical, of the next check */
};

static struct place places[PLACES];
static pthread_mutex_t locks[LOCKS] = { [0 ... LOCKS - 1] = PTHREAD_MUTEX_INITIALIZER };

int limit_pass(uint64_t token, int *ret_s)
{
	uint64_t i = (token ^ token >> 32) % PLACES;
	int64_t now = pr_mono_us(), step = PR_SEC / conf.rate, slack = step * (conf.burst - 1), late;
	struct place *p = &places[i];

	(void)pthread_mutex_lock(&locks[i % LOCKS]);
	if (p->token != token) {
		p->token = token;
		p->arrival_us = now;
	}
	if (p->arrival_us < now)
		p->arrival_us = now;
	late = p->arrival_us - now - slack;
	if (late <= 0)
		p->arrival_us += step;
	(void)pthread_mutex_unlock(&locks[i % LOCKS]);
	*ret_s = (int)((late + PR_SEC - 1) / PR_SEC);
	return late <= 0;
}
