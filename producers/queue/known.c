/* producers/queue/known.c -- what was read in tokens that were found good, so that one that is shown again (a
 * client that polls) costs its digest only: not its signature, not its JSON. A table of fixed size: of those
 * that meet in a full row of places one, drawn by lot, makes room. Another set of keys ends all of it: a key
 * that was withdrawn verifies nothing more. Refuses to know what has expired. */
#include "producers/queue/queue.h"

#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#define LOCKS 256
#define ROW   16 /* with one place for a digest half of a table three quarters full would be homeless */

struct place {
	unsigned char digest[SHA256_DIGEST_LENGTH];
	uint64_t generation; /* 0: empty */
	struct said said;
};

static struct place *places;
static pthread_mutex_t locks[LOCKS] = { [0 ... LOCKS - 1] = PTHREAD_MUTEX_INITIALIZER };
static _Atomic uint64_t generation = 1;

void known_init(void)
{
	places = pr_calloc((size_t)conf.tokens, sizeof(*places));
}

void known_free(void)
{
	free(places);
	places = NULL;
}

void known_forget(void)
{
	(void)atomic_fetch_add(&generation, 1);
}

uint64_t known_now(void)
{
	return atomic_load(&generation);
}

/* The row where it is, if it is known. */
static size_t row_of(const char *token, unsigned char digest[SHA256_DIGEST_LENGTH])
{
	uint64_t h;

	(void)SHA256((const unsigned char *)token, strlen(token), digest);
	memcpy(&h, digest, sizeof(h));
	return h % ((uint64_t)conf.tokens / ROW);
}

static struct place *find(struct place *row, const unsigned char *digest, uint64_t now)
{
	for (size_t i = 0; i < ROW; i++)
		if (row[i].generation == now && memcmp(row[i].digest, digest, SHA256_DIGEST_LENGTH) == 0)
			return &row[i];
	return NULL;
}

/* Its own, an empty one, or one that the digest draws. */
static struct place *room_for(struct place *row, const unsigned char *digest, uint64_t now)
{
	struct place *p = find(row, digest, now);

	for (size_t i = 0; !p && i < ROW; i++)
		if (row[i].generation != now)
			p = &row[i];
	return p ? p : &row[digest[sizeof(uint64_t)] % ROW];
}

int known_get(const char *token, struct said *ret)
{
	unsigned char digest[SHA256_DIGEST_LENGTH];
	size_t i = row_of(token, digest);
	const struct place *p;

	(void)pthread_mutex_lock(&locks[i % LOCKS]);
	p = find(places + i * ROW, digest, known_now());
	if (p)
		*ret = p->said;
	(void)pthread_mutex_unlock(&locks[i % LOCKS]);
	return p && ret->expires > pr_wall_us() / PR_SEC;
}

void known_put(const char *token, const struct said *said, uint64_t found)
{
	unsigned char digest[SHA256_DIGEST_LENGTH];
	size_t i = row_of(token, digest);
	struct place *p;

	(void)pthread_mutex_lock(&locks[i % LOCKS]);
	p = room_for(places + i * ROW, digest, known_now());
	memcpy(p->digest, digest, sizeof(digest));
	p->generation = found;
	p->said = *said;
	(void)pthread_mutex_unlock(&locks[i % LOCKS]);
}
