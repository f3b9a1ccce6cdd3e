/* lib/http_stream.c -- answers that go on: bytes from any thread to a connection that sleeps in between.
 * Refuses to keep more than its bound for a client that does not read. */
#include "lib/http_inner.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 4096 /* libmicrohttpd's buffer of each */

struct pr_stream {
	pthread_mutex_t mutex;
	int refs; /* who sends, and the response */
	char *bytes;
	size_t len, cap, most;
	int ended;  /* nothing more will be sent */
	int gone;   /* nobody reads any more */
	int asleep; /* the connection is suspended: it cannot end by itself, and must be woken */
	struct MHD_Connection *conn;
	struct loop *loop;
};

struct pr_stream *pr_stream_new(size_t most)
{
	struct pr_stream *s = pr_calloc(1, sizeof(*s));

	(void)pthread_mutex_init(&s->mutex, NULL);
	s->refs = 2;
	s->most = most;
	return s;
}

static void unlock_and_drop(struct pr_stream *s)
{
	int left = --s->refs;

	(void)pthread_mutex_unlock(&s->mutex);
	if (left > 0)
		return;
	(void)pthread_mutex_destroy(&s->mutex);
	free(s->bytes);
	free(s);
}

/* Under the mutex. While it sleeps the connection is there. */
static void wake(struct pr_stream *s)
{
	if (!s->asleep)
		return;
	s->asleep = 0;
	MHD_resume_connection(s->conn);
	http_wake(s->loop);
}

static void make_room(struct pr_stream *s, size_t n)
{
	if (s->len + n <= s->cap)
		return;
	s->cap = s->cap * 2 > s->len + n ? s->cap * 2 : s->len + n;
	s->bytes = pr_realloc(s->bytes, s->cap);
}

int pr_stream_send(struct pr_stream *s, const char *data, size_t n)
{
	int rc = -1;

	(void)pthread_mutex_lock(&s->mutex);
	if (!s->gone && !s->ended && n <= s->most - s->len) {
		if (n > 0) {
			make_room(s, n);
			memcpy(s->bytes + s->len, data, n);
			s->len += n;
		}
		rc = 0;
	} else {
		s->ended = 1; /* what was sent before still goes out, if it reads after all */
	}
	wake(s);
	(void)pthread_mutex_unlock(&s->mutex);
	return rc;
}

void pr_stream_free(struct pr_stream *s)
{
	if (!s)
		return;
	(void)pthread_mutex_lock(&s->mutex);
	s->ended = 1;
	wake(s);
	unlock_and_drop(s);
}

void http_stream_end(struct pr_stream *s)
{
	(void)pthread_mutex_lock(&s->mutex);
	s->ended = 1;
	wake(s);
	(void)pthread_mutex_unlock(&s->mutex);
}

void http_stream_drop(struct pr_stream *s)
{
	if (!s)
		return;
	(void)pthread_mutex_lock(&s->mutex);
	s->gone = 1;
	unlock_and_drop(s);
}

/* ---- libmicrohttpd's side, on the loop's thread ---- */

static ssize_t read_some(void *cls, uint64_t pos, char *buf, size_t max)
{
	struct pr_stream *s = cls;
	int ended;
	size_t n;

	(void)pos;
	(void)pthread_mutex_lock(&s->mutex);
	n = s->len < max ? s->len : max;
	if (n > 0) {
		memcpy(buf, s->bytes, n);
		memmove(s->bytes, s->bytes + n, s->len - n);
		s->len -= n;
	} else if (!s->ended) {
		s->asleep = 1;
		MHD_suspend_connection(s->conn);
	}
	ended = s->ended;
	(void)pthread_mutex_unlock(&s->mutex);
	return n > 0 || !ended ? (ssize_t)n : MHD_CONTENT_READER_END_OF_STREAM;
}

static void nobody_reads(void *cls)
{
	struct pr_stream *s = cls;

	(void)pthread_mutex_lock(&s->mutex);
	s->gone = 1;
	s->conn = NULL;
	unlock_and_drop(s);
}

struct MHD_Response *http_stream_response(struct pr_stream *s, struct exchange *ex)
{
	s->conn = ex->conn;
	s->loop = ex->loop;
	ex->peer->stream = s;
	return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, read_some, s, nobody_reads);
}
