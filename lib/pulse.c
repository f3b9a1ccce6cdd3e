/* lib/pulse.c -- a slot for each watched thread, given back when the thread ends. Refuses to watch more than
 * it has slots for: what is not watched is never called silent. */
#include "lib/pulse.h"

#include "lib/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#define SLOTS 96 /* a lane may have one each, and there are 64 of them */

struct slot {
	_Atomic int64_t due_us; /* monotonic; 0: nobody's */
	const char *_Atomic name;
};

static struct slot slots[SLOTS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* of taking a slot */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key; /* gives the slot back at the thread's end */
static _Thread_local struct slot *own;

static void give_back(void *slot)
{
	atomic_store(&((struct slot *)slot)->due_us, 0);
}

static void make_key(void)
{
	(void)pthread_key_create(&key, give_back);
}

static void take_slot(const char *name, int64_t due_us)
{
	(void)pthread_once(&once, make_key);
	(void)pthread_mutex_lock(&mutex);
	for (size_t i = 0; !own && i < SLOTS; i++)
		if (atomic_load(&slots[i].due_us) == 0)
			own = &slots[i];
	if (own) {
		atomic_store(&own->name, name);
		atomic_store(&own->due_us, due_us);
	}
	(void)pthread_mutex_unlock(&mutex);
	if (own)
		(void)pthread_setspecific(key, own);
}

static int64_t due_in(int64_t most_us)
{
	return pr_mono_us() + most_us + PR_PULSE_US;
}

void pr_pulse(const char *name, int64_t most_us)
{
	if (own)
		atomic_store(&own->due_us, due_in(most_us));
	else
		take_slot(name, due_in(most_us));
}

void pr_pulse_wait(int64_t most_us)
{
	int64_t due = due_in(most_us);

	if (own && due > atomic_load(&own->due_us))
		atomic_store(&own->due_us, due);
}

void pr_pulse_rest(void)
{
	if (own)
		atomic_store(&own->due_us, INT64_MAX);
}

const char *pr_pulse_silent(int64_t *ret_us)
{
	int64_t now = pr_mono_us(), due;
	const char *name = NULL;

	*ret_us = 0;
	for (size_t i = 0; i < SLOTS; i++) {
		due = atomic_load(&slots[i].due_us);
		if (due == 0 || now - due <= *ret_us)
			continue;
		*ret_us = now - due;
		name = atomic_load(&slots[i].name);
	}
	return name;
}
