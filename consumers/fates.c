/* consumers/fates.c -- what is to become of each message of a batch, before anything is sent. Refuses to let
 * a message pass an earlier one of its key that is parked, or two of one id into one batch. */
#include "consumers/tx.h"

#include "lib/fault.h"

#include <stdlib.h>
#include <string.h>

int lane_dedupes(const struct lane *l)
{
	return l->c->conf->dedupe == PR_DEDUPE_INBOX;
}

void undecodable(struct lane *l, struct work *w)
{
	struct outcome why = { .cls = PR_FAIL_DECODE, .code = "id" };

	if (w->m->id_state == ID_MISSING)
		(void)snprintf(
			why.text, sizeof(why.text), "the record has no message id (%s)", l->c->conf->id);
	else
		(void)snprintf(
			why.text, sizeof(why.text), "the message id \"%s\" is not a uuid", w->m->id_text);
	w->m->attempts++;
	decide(l, w->m, &why, &w->v);
	if (w->v.fate == FATE_PENDING) /* no try will give it an id */
		w->v.fate = FATE_BURY;
}

static void sort_one(struct lane *l, struct work *w)
{
	if (!w->decoded) {
		message_decode(w->m, l->c->conf);
		w->decoded = 1;
	}
	switch (w->v.fate) {
	case FATE_IGNORE:
	case FATE_PARK:
	case FATE_BURY:
	case FATE_DONE:
	case FATE_SEEN:
		return; /* decided */
	default:
		w->v.fate = FATE_HANDLE;
	}
	if (!message_wanted(w->m, l->c->conf))
		w->v.fate = FATE_FILTERED;
	else if (lane_dedupes(l) && w->m->id_state != ID_OK)
		undecodable(l, w);
	if (w->v.fate != FATE_FILTERED && keyset_has(l->keys, w->m) && !SABOTAGE(parked_key_passes))
		w->v.fate = FATE_BEHIND;
	if (w->v.fate != FATE_FILTERED && w->v.fate != FATE_BEHIND)
		spans_begin(l, w->m);
}

int work_is_held(const struct work *w)
{
	return w->v.fate == FATE_BEHIND || w->v.fate == FATE_PARK || w->v.fate == FATE_BURY;
}

/* Two of one id in a batch: the second one comes in the next, when the first is in inbox.seen. Open
 * addressing over twice as many slots. */
static size_t cut_at_twin(const struct lane *l, size_t n)
{
	size_t slots = 2 * n + 1, at;
	uint32_t *table;

	if (!lane_dedupes(l) || n < 2)
		return n;
	table = pr_calloc(slots, sizeof(*table));
	for (size_t i = 0; i < n; i++) {
		const struct message *m = l->work[i].m;
		uint64_t hash;

		if (l->work[i].v.fate != FATE_HANDLE)
			continue;
		memcpy(&hash, m->id + 8, sizeof(hash)); /* the random half */
		for (at = hash % slots; table[at]; at = (at + 1) % slots)
			if (memcmp(l->work[table[at] - 1].m->id, m->id, 16) == 0)
				n = i;
		if (i < n)
			table[at] = (uint32_t)i + 1;
	}
	free(table);
	return n;
}

/* Other threads wrote these messages and their bytes: they are far from this core. */
static void fetch_ahead(const struct lane *l, size_t i, size_t n)
{
	const struct message *m;

	for (size_t at = 0; i + 8 < n && at < sizeof(*m); at += 64)
		__builtin_prefetch((const char *)l->work[i + 8].m + at, 1);
	if (i + 4 >= n)
		return;
	m = l->work[i + 4].m;
	__builtin_prefetch(m->rkm);
	for (size_t at = 0; at < m->payload_len && at < 256; at += 64)
		__builtin_prefetch(m->payload + at);
}

/* The fates of work[0..n), and how many of them this transaction takes. */
size_t sort_work(struct lane *l, size_t n)
{
	size_t held = 0;

	for (size_t i = 0; i < n; i++) {
		fetch_ahead(l, i, n);
		sort_one(l, &l->work[i]);
		if (!work_is_held(&l->work[i]))
			continue;
		/* Who comes after the first of a key that is parked is behind it once that is committed; and
		 * a message that is buried with an undo is alone. */
		if (l->work[i].v.fate != FATE_BEHIND || ++held == HELD_MOST)
			return l->work[i].v.fate == FATE_BURY && i > 0 ? i : cut_at_twin(l, i + 1);
	}
	return cut_at_twin(l, n);
}
