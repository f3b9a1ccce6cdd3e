/* tests/unit/no_replay.c -- stands in for consumers/replay.c where a test links consumers/message.c alone:
 * no message of such a test belongs to a replay. */
#include "consumers/consumer.h"

#include <assert.h>

void replay_drop(struct replay *r)
{
	assert(!r);
}
