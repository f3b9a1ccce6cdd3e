/* consumers/push/streams.c -- who listens at this member: a bounded table by user. Refuses to wait for
 * anybody: a stream whose client does not read ends, and comes again with the last id it has seen. */
#include "consumers/push/push.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 1024

struct stream {
	struct stream *next;
	char user[64];
	int64_t expires, number; /* number: in the order of opening */
	struct pr_stream *out;
	int waiting; /* what was missed is being read: held keeps what comes meanwhile, and nobody but
			streams_ready frees it */
	int doomed;  /* to be freed by streams_ready */
	struct pr_buf held;
};

struct streams {
	pthread_mutex_t mutex;
	struct stream *bucket[BUCKETS];
	int64_t n, most, per_user, opened;
	int64_t place; /* all up to it was delivered */
};

struct streams *streams_new(int64_t most, int64_t per_user)
{
	struct streams *s = pr_calloc(1, sizeof(*s));

	(void)pthread_mutex_init(&s->mutex, NULL);
	s->most = most;
	s->per_user = per_user;
	return s;
}

static struct stream **bucket_of(struct streams *s, const char *user)
{
	uint32_t h = 2166136261U;

	for (; *user; user++)
		h = (h ^ (unsigned char)*user) * 16777619U;
	return &s->bucket[h % BUCKETS];
}

/* Out of the list at *at. */
static void cut(struct streams *s, struct stream **at)
{
	struct stream *one = *at;

	*at = one->next;
	s->n--;
	pr_stream_free(one->out);
	pr_buf_free(&one->held);
	free(one);
}

/* -1: it is no more; *at is the next. */
static int say(struct streams *s, struct stream **at, const char *text, size_t n)
{
	struct stream *one = *at;

	if (one->waiting) {
		if (one->held.len + n > PUSH_STREAM_BYTES / 2)
			one->doomed = 1;
		else
			pr_buf_put(&one->held, text, n);
		return 0;
	}
	if (pr_stream_send(one->out, text, n) == 0)
		return 0;
	cut(s, at);
	return -1;
}

/* To every one; an empty text finds out who is still there. */
static void say_all(struct streams *s, const char *text, int64_t now_s)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct stream **at = &s->bucket[i]; *at;) {
			if (!(*at)->waiting && (*at)->expires < now_s)
				cut(s, at);
			else if (say(s, at, text, strlen(text)) == 0)
				at = &(*at)->next;
		}
}

/* The user has as many as he may: the oldest goes. */
static void make_room(struct streams *s, const char *user)
{
	struct stream **oldest = NULL;
	int64_t n = 0;

	for (struct stream **at = bucket_of(s, user); *at; at = &(*at)->next) {
		if (strcmp((*at)->user, user) != 0)
			continue;
		n++;
		if (!(*at)->waiting && (!oldest || (*at)->number < (*oldest)->number))
			oldest = at;
	}
	if (n >= s->per_user && oldest)
		cut(s, oldest);
}

struct stream *streams_open(
	struct streams *s, const char *user, int64_t expires, struct pr_stream *out, int64_t *ret_place)
{
	struct stream *one = NULL, **at;

	(void)pthread_mutex_lock(&s->mutex);
	make_room(s, user);
	if (s->n >= s->most)
		say_all(s, "", 0);
	if (s->n < s->most) {
		at = bucket_of(s, user);
		one = pr_calloc(1, sizeof(*one));
		(void)snprintf(one->user, sizeof(one->user), "%s", user);
		one->expires = expires;
		one->number = s->opened++;
		one->out = out;
		one->waiting = 1;
		one->next = *at;
		*at = one;
		s->n++;
		*ret_place = s->place;
	}
	(void)pthread_mutex_unlock(&s->mutex);
	if (!one)
		pr_stream_free(out);
	return one;
}

void streams_ready(struct streams *s, struct stream *one, const char *first, size_t n, int more)
{
	struct stream **at;

	(void)pthread_mutex_lock(&s->mutex);
	for (at = bucket_of(s, one->user); *at != one;)
		at = &(*at)->next;
	one->waiting = 0;
	if (!first || pr_stream_send(one->out, first, n) < 0 || more || one->doomed ||
		(one->held.len > 0 && pr_stream_send(one->out, one->held.s, one->held.len) < 0))
		cut(s, at);
	else
		pr_buf_free(&one->held);
	(void)pthread_mutex_unlock(&s->mutex);
}

void stream_put(struct pr_buf *b, const char *place, const char *json)
{
	pr_buf_printf(b, "id: %s\ndata: ", place);
	pr_buf_puts(b, json); /* of jsonb: no line ends in it */
	pr_buf_puts(b, "\n\n");
}

static void deliver(struct streams *s, const char *user, const char *text, size_t n)
{
	for (struct stream **at = bucket_of(s, user); *at;)
		if (strcmp((*at)->user, user) != 0 || say(s, at, text, n) == 0)
			at = &(*at)->next;
}

/* Under one lock: who is opened beside it gets all of the rows, or has all of them below his place. */
void streams_deliver(struct streams *s, const PGresult *rows)
{
	struct pr_buf b = { 0 };

	(void)pthread_mutex_lock(&s->mutex);
	for (int i = 0; i < PQntuples(rows); i++) {
		b.len = 0;
		stream_put(&b, PQgetvalue(rows, i, 1), PQgetvalue(rows, i, 2));
		deliver(s, PQgetvalue(rows, i, 0), b.s, b.len);
		s->place = strtoll(PQgetvalue(rows, i, 1), NULL, 10);
	}
	(void)pthread_mutex_unlock(&s->mutex);
	pr_buf_free(&b);
}

int64_t streams_place(struct streams *s)
{
	int64_t place;

	(void)pthread_mutex_lock(&s->mutex);
	place = s->place;
	(void)pthread_mutex_unlock(&s->mutex);
	return place;
}

void streams_begin_at(struct streams *s, int64_t place)
{
	s->place = place;
}

void streams_beat(struct streams *s, int64_t now_s)
{
	(void)pthread_mutex_lock(&s->mutex);
	say_all(s, ":\n\n", now_s);
	(void)pthread_mutex_unlock(&s->mutex);
}

int64_t streams_count(struct streams *s)
{
	int64_t n;

	(void)pthread_mutex_lock(&s->mutex);
	n = s->n;
	(void)pthread_mutex_unlock(&s->mutex);
	return n;
}

/* Nobody opens one any more. */
void streams_free(struct streams *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < BUCKETS; i++)
		while (s->bucket[i])
			cut(s, &s->bucket[i]);
	(void)pthread_mutex_destroy(&s->mutex);
	free(s);
}
