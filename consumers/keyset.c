/* consumers/keyset.c -- the keys of which something is parked, in memory: a hash table. Refuses nothing; how
 * many there may be is decide.c's affair. */
#include "consumers/lane.h"

#include <stdlib.h>
#include <string.h>

struct parked_key {
	struct parked_key *next;
	int32_t partition;
	size_t careful; /* so many of it one by one: the last batch of them never came back */
	size_t topic_len, key_len;
	char text[]; /* topic, then key */
};

struct keyset {
	struct parked_key **slot;
	size_t slots, n;
};

struct keyset *keyset_new(void)
{
	struct keyset *k = pr_calloc(1, sizeof(*k));

	k->slots = 64;
	k->slot = pr_calloc(k->slots, sizeof(struct parked_key *));
	return k;
}

void keyset_clear(struct keyset *k)
{
	struct parked_key *p;

	for (size_t i = 0; i < k->slots; i++) {
		while ((p = k->slot[i])) {
			k->slot[i] = p->next;
			free(p);
		}
	}
	k->n = 0;
}

void keyset_free(struct keyset *k)
{
	keyset_clear(k);
	free(k->slot);
	free(k);
}

size_t keyset_count(const struct keyset *k)
{
	return k->n;
}

/* FNV-1a, 64 bits. Source: Fowler, Noll, Vo; draft-eastlake-fnv. */
static uint64_t hash_of(const char *key, size_t n, int32_t partition)
{
	uint64_t h = 14695981039346656037ULL ^ (uint32_t)partition;

	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)key[i]) * 1099511628211ULL;
	return h ^ h >> 32;
}

static int matches(const struct parked_key *p, const struct message *m)
{
	return p->partition == m->partition && p->key_len == m->key_len && p->topic_len == strlen(m->topic) &&
	       memcmp(p->text, m->topic, p->topic_len) == 0 &&
	       memcmp(p->text + p->topic_len, m->key, m->key_len) == 0;
}

static struct parked_key **find(const struct keyset *k, const struct message *m)
{
	struct parked_key **at = &k->slot[hash_of(m->key, m->key_len, m->partition) % k->slots];

	while (*at && !matches(*at, m))
		at = &(*at)->next;
	return at;
}

/* A message without a key is in nobody's way. */
int keyset_has(const struct keyset *k, const struct message *m)
{
	return m->key && k->n > 0 && *find(k, m) != NULL;
}

static void grow(struct keyset *k)
{
	struct keyset more = { .slots = 4 * k->slots };
	struct parked_key *p;
	uint64_t h;

	more.slot = pr_calloc(more.slots, sizeof(struct parked_key *));
	for (size_t i = 0; i < k->slots; i++) {
		while ((p = k->slot[i])) {
			k->slot[i] = p->next;
			h = hash_of(p->text + p->topic_len, p->key_len, p->partition) % more.slots;
			p->next = more.slot[h];
			more.slot[h] = p;
		}
	}
	free(k->slot);
	k->slot = more.slot;
	k->slots = more.slots;
}

void keyset_add(struct keyset *k, const struct message *m)
{
	struct parked_key **at, *p;
	size_t topic_len = strlen(m->topic);

	if (!m->key)
		return;
	if (k->n >= 2 * k->slots)
		grow(k);
	at = find(k, m);
	if (*at)
		return;
	p = pr_malloc(sizeof(*p) + topic_len + m->key_len + 1);
	*p = (struct parked_key){ .partition = m->partition, .topic_len = topic_len, .key_len = m->key_len };
	memcpy(p->text, m->topic, topic_len);
	memcpy(p->text + topic_len, m->key, m->key_len);
	*at = p;
	k->n++;
}

void keyset_remove(struct keyset *k, const struct message *m)
{
	struct parked_key **at, *p;

	if (!m->key)
		return;
	at = find(k, m);
	p = *at;
	if (!p)
		return;
	*at = p->next;
	free(p);
	k->n--;
}

size_t *keyset_careful(const struct keyset *k, const struct message *m)
{
	struct parked_key *p = m->key ? *find(k, m) : NULL;

	return p ? &p->careful : NULL;
}
