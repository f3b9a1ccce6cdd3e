/* producers/queue/view.c -- the state of every token, in this process: 13 bytes a token, by concert and
 * number, with the waiting counted by the thousand, so that a place in the queue is a short sum. Refuses news
 * older than what it knows. */
#include "producers/queue/queue.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK      1024
#define CHUNKS_MAX (1 << 20)
#define BUCKETS    1024

struct chunk {
	char state[CHUNK];
	uint32_t version[CHUNK];
	int64_t expire_us[CHUNK];
	int64_t until_us; /* the latest */
};

struct concert {
	struct concert *next;
	int64_t id;
	int64_t base; /* number / CHUNK of the first chunk */
	struct chunk **chunk;
	uint32_t *waiting; /* per chunk */
	size_t n;
};

struct view {
	struct concert *bucket[BUCKETS];
};

struct view *view_new(void)
{
	return pr_calloc(1, sizeof(struct view));
}

static void free_concert(struct concert *c)
{
	for (size_t i = 0; i < c->n; i++)
		free(c->chunk[i]);
	free(c->chunk);
	free(c->waiting);
	free(c);
}

void view_free(struct view *v)
{
	for (int i = 0; v && i < BUCKETS; i++)
		while (v->bucket[i]) {
			struct concert *c = v->bucket[i];

			v->bucket[i] = c->next;
			free_concert(c);
		}
	free(v);
}

static struct concert *find(const struct view *v, int64_t id)
{
	struct concert *c = v->bucket[(uint64_t)id % BUCKETS];

	while (c && c->id != id)
		c = c->next;
	return c;
}

static struct concert *make(struct view *v, int64_t id, int64_t base)
{
	struct concert *c = pr_calloc(1, sizeof(*c)), **bucket = &v->bucket[(uint64_t)id % BUCKETS];

	c->id = id;
	c->base = base;
	c->next = *bucket;
	*bucket = c;
	return c;
}

/* `before` new chunks in front, and room up to n. */
static void stretch(struct concert *c, size_t before, size_t n)
{
	c->chunk = pr_realloc(c->chunk, n * sizeof(*c->chunk));
	c->waiting = pr_realloc(c->waiting, n * sizeof(*c->waiting));
	memmove(c->chunk + before, c->chunk, c->n * sizeof(*c->chunk));
	memmove(c->waiting + before, c->waiting, c->n * sizeof(*c->waiting));
	memset(c->chunk, 0, before * sizeof(*c->chunk));
	memset(c->waiting, 0, before * sizeof(*c->waiting));
	memset(c->chunk + before + c->n, 0, (n - before - c->n) * sizeof(*c->chunk));
	memset(c->waiting + before + c->n, 0, (n - before - c->n) * sizeof(*c->waiting));
	c->base -= (int64_t)before;
	c->n = n;
}

/* NULL: a number that cannot be. */
static struct chunk *reach(struct concert *c, int64_t number, size_t *ret_i)
{
	int64_t at = number / CHUNK - c->base;

	if (at < -CHUNKS_MAX || at >= CHUNKS_MAX)
		return NULL;
	if (at < 0)
		stretch(c, (size_t)-at, c->n + (size_t)-at);
	else if ((size_t)at >= c->n)
		stretch(c, 0, (size_t)at + 1);
	*ret_i = at < 0 ? 0 : (size_t)at;
	if (!c->chunk[*ret_i])
		c->chunk[*ret_i] = pr_calloc(1, sizeof(struct chunk));
	return c->chunk[*ret_i];
}

void view_set(struct view *v, int64_t concert, int64_t number, char state, uint32_t version,
	int64_t expire_us, int64_t until_us)
{
	struct concert *c = number > 0 ? find(v, concert) : NULL;
	size_t at = (size_t)(number % CHUNK), i;
	struct chunk *chunk;

	if (!c && number > 0)
		c = make(v, concert, number / CHUNK);
	chunk = c ? reach(c, number, &i) : NULL;
	if (!chunk || chunk->version[at] >= version)
		return;
	c->waiting[i] += (uint32_t)(state == 'W') - (uint32_t)(chunk->state[at] == 'W');
	chunk->state[at] = state;
	chunk->version[at] = version;
	chunk->expire_us[at] = expire_us;
	if (chunk->until_us < until_us)
		chunk->until_us = until_us;
}

int view_set_ranges(
	struct view *v, int64_t concert, const char *numbers, char state, uint32_t version, int64_t expire_us)
{
	while (*numbers) {
		char *end;
		long long first = strtoll(numbers, &end, 10), last = first;

		if (end == numbers || first < 1)
			return -1;
		if (*end == '-')
			last = strtoll(end + 1, &end, 10);
		if (last < first || last - first > CHUNK * 16 || (*end && *end != ','))
			return -1;
		for (; first <= last; first++)
			view_set(v, concert, first, state, version, expire_us, expire_us);
		numbers = end + (*end == ',');
	}
	return 0;
}

static int64_t waiting_before(const struct concert *c, size_t i, size_t at)
{
	int64_t sum = 0;

	for (size_t k = 0; k < i; k++)
		sum += c->waiting[k];
	for (size_t k = 0; c->chunk[i] && k < at; k++)
		sum += c->chunk[i]->state[k] == 'W';
	return sum;
}

/* Of a number that nobody told us of yet (it was issued a moment ago) we know who is before it. What is
 * before all that we keep has ended. */
void view_get(const struct view *v, int64_t concert, int64_t number, struct shown *ret)
{
	const struct concert *c = find(v, concert);
	int64_t i = c ? number / CHUNK - c->base : 0;
	size_t at = (size_t)(number % CHUNK);
	const struct chunk *chunk;

	memset(ret, 0, sizeof(*ret));
	if (!c || c->n == 0)
		return;
	if (i < 0) {
		ret->state = 'E';
		return;
	}
	if ((size_t)i >= c->n) {
		ret->ahead = waiting_before(c, c->n - 1, CHUNK);
		return;
	}
	chunk = c->chunk[i];
	if (chunk) {
		ret->state = chunk->state[at];
		ret->version = chunk->version[at];
		ret->expire_us = chunk->expire_us[at];
	}
	if (ret->state == 'W' || !ret->state)
		ret->ahead = waiting_before(c, (size_t)i, at);
}

static void trim(struct concert *c, int64_t now_us)
{
	size_t k = 0;

	/* The last one stays: numbers before it are known to have ended. */
	while (k + 1 < c->n && !c->waiting[k] && (!c->chunk[k] || c->chunk[k]->until_us < now_us))
		free(c->chunk[k++]);
	if (k == 0)
		return;
	memmove(c->chunk, c->chunk + k, (c->n - k) * sizeof(*c->chunk));
	memmove(c->waiting, c->waiting + k, (c->n - k) * sizeof(*c->waiting));
	c->n -= k;
	c->base += (int64_t)k;
}

void view_trim(struct view *v, int64_t now_us)
{
	for (int i = 0; i < BUCKETS; i++)
		for (struct concert *c = v->bucket[i]; c; c = c->next)
			trim(c, now_us);
}

/* ---- the one that this process shows ---- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct view *view;
static int64_t fresh_us; /* monotonic; 0: never */

int show_get(int64_t concert, int64_t number, struct shown *ret)
{
	int known;

	(void)pthread_mutex_lock(&mutex);
	known = view && pr_mono_us() - fresh_us <= conf.stale_us;
	if (known)
		view_get(view, concert, number, ret);
	(void)pthread_mutex_unlock(&mutex);
	return known;
}

void show_set(int64_t concert, int64_t number, char state, uint32_t version, int64_t expire_us)
{
	(void)pthread_mutex_lock(&mutex);
	if (view)
		view_set(view, concert, number, state, version, expire_us, expire_us);
	(void)pthread_mutex_unlock(&mutex);
}

struct view *show_lock(void)
{
	(void)pthread_mutex_lock(&mutex);
	return view;
}

void show_unlock(void)
{
	(void)pthread_mutex_unlock(&mutex);
}

void show_replace(struct view *v)
{
	struct view *old;

	(void)pthread_mutex_lock(&mutex);
	old = view;
	view = v;
	fresh_us = v ? pr_mono_us() : 0;
	(void)pthread_mutex_unlock(&mutex);
	view_free(old);
}

void show_fresh(void)
{
	(void)pthread_mutex_lock(&mutex);
	fresh_us = pr_mono_us();
	(void)pthread_mutex_unlock(&mutex);
}
