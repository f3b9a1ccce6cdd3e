/* consumers/sink/spool.c -- bytes that wait on disk, in blocks of one file that nobody else sees. Keeps
 * nothing beyond our life: what waits here is read again from Kafka. */
#include "consumers/sink/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK (64 << 10)

static struct {
	pthread_mutex_t mutex;
	int fd;              /* opened once */
	uint32_t next, used; /* blocks: ever given, in use */
	uint32_t *unused;    /* given before, free again */
	size_t unused_n, unused_cap;
} spool = { .mutex = PTHREAD_MUTEX_INITIALIZER, .fd = -1 };

static const char *directory(void)
{
	const char *dir = getenv("TMPDIR");

	return dir && *dir ? dir : "/var/tmp";
}

static int fail(const char *what, struct pr_err *err)
{
	const char *name = strerrorname_np(errno);

	(void)pr_fail(err, PR_RETRY, "%s in %s: %s", what, directory(), strerror(errno));
	if (err && name)
		(void)strncpy(err->code, name, sizeof(err->code) - 1);
	return pr_hint(
		err, "TMPDIR names another directory; what waits to be written or uploaded stands there");
}

int sink_spool_file(struct pr_err *err)
{
	char *path;
	int fd = open(directory(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
		return fd >= 0 ? fd : fail("no temporary file", err);
	path = pr_asprintf("%s/.postrider-XXXXXX", directory());
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		(void)fail("no temporary file", err);
	else
		(void)unlink(path);
	free(path);
	return fd;
}

static int open_locked(struct pr_err *err)
{
	if (spool.fd < 0)
		spool.fd = sink_spool_file(err);
	return spool.fd < 0 ? -1 : 0;
}

int sink_spool_open(struct pr_err *err)
{
	int rc;

	(void)pthread_mutex_lock(&spool.mutex);
	rc = open_locked(err);
	(void)pthread_mutex_unlock(&spool.mutex);
	return rc;
}

static void give_back(const uint32_t *blocks, size_t n)
{
	(void)pthread_mutex_lock(&spool.mutex);
	if (spool.unused_n + n > spool.unused_cap) {
		spool.unused_cap = (spool.unused_n + n) * 2;
		spool.unused = pr_realloc(spool.unused, spool.unused_cap * sizeof(*spool.unused));
	}
	for (size_t i = 0; i < n; i++)
		spool.unused[spool.unused_n++] = blocks[i];
	spool.used -= (uint32_t)n;
	if (spool.used == 0 && spool.fd >= 0 && ftruncate(spool.fd, 0) == 0) {
		spool.next = 0;
		spool.unused_n = 0;
	}
	(void)pthread_mutex_unlock(&spool.mutex);
}

static int take_block(struct sink_roll *r, struct pr_err *err)
{
	int rc;

	if (r->blocks_n == r->blocks_cap) {
		r->blocks_cap = r->blocks_cap ? r->blocks_cap * 2 : 16;
		r->blocks = pr_realloc(r->blocks, r->blocks_cap * sizeof(*r->blocks));
	}
	(void)pthread_mutex_lock(&spool.mutex);
	rc = open_locked(err);
	if (rc == 0) {
		r->blocks[r->blocks_n++] = spool.unused_n ? spool.unused[--spool.unused_n] : spool.next++;
		spool.used++;
	}
	(void)pthread_mutex_unlock(&spool.mutex);
	return rc;
}

/* The place of byte at, and how many follow it in its block. */
static off_t place(const struct sink_roll *r, int64_t at, size_t *ret_room)
{
	*ret_room = (size_t)(BLOCK - at % BLOCK);
	return (off_t)r->blocks[at / BLOCK] * BLOCK + at % BLOCK;
}

static int write_all(const struct sink_roll *r, int64_t at, const char *p, size_t n, struct pr_err *err)
{
	while (n) {
		size_t room;
		off_t where = place(r, at, &room);
		ssize_t done = pwrite(spool.fd, p, n < room ? n : room, where);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return fail("cannot write", err);
		p += done;
		at += done;
		n -= (size_t)done;
	}
	return 0;
}

int sink_roll_put(struct sink_roll *r, const void *p, size_t n, struct pr_err *err)
{
	size_t had = r->blocks_n;
	int rc = 0;

	while (rc == 0 && (int64_t)r->blocks_n * BLOCK < r->len + (int64_t)n)
		rc = take_block(r, err);
	if (rc == 0)
		rc = write_all(r, r->len, p, n, err);
	if (rc == 0) {
		r->len += (int64_t)n;
		return 0;
	}
	give_back(r->blocks + had, r->blocks_n - had);
	r->blocks_n = had;
	return -1;
}

int sink_roll_read(const struct sink_roll *r, int64_t at, void *p, size_t n, struct pr_err *err)
{
	char *to = p;

	if (at < 0 || at + (int64_t)n > r->len)
		return pr_fail(err, PR_STOP, "a read past the end of what waits");
	while (n) {
		size_t room;
		off_t where = place(r, at, &room);
		ssize_t done = pread(spool.fd, to, n < room ? n : room, where);

		if (done < 0 && errno == EINTR)
			continue;
		if (done == 0)
			errno = EIO;
		if (done <= 0)
			return fail("cannot read", err);
		to += done;
		at += done;
		n -= (size_t)done;
	}
	return 0;
}

int sink_roll_join(struct sink_roll *r, struct pr_buf *b, struct pr_err *err)
{
	size_t n = (size_t)r->len;
	char *s;

	if (n == 0)
		return 0;
	s = pr_malloc(n + b->len + 1);
	if (sink_roll_read(r, 0, s, n, err) < 0) {
		free(s);
		return -1;
	}
	if (b->len)
		memcpy(s + n, b->s, b->len);
	free(b->s);
	*b = (struct pr_buf){ .s = s, .len = n + b->len, .cap = n + b->len + 1 };
	sink_roll_free(r);
	return 0;
}

int sink_roll_take(struct sink_roll *r, struct pr_buf *b, struct pr_err *err)
{
	if (b->len && sink_roll_put(r, b->s, b->len, err) < 0)
		return -1;
	pr_buf_free(b);
	return 0;
}

void sink_roll_free(struct sink_roll *r)
{
	if (r->blocks_n)
		give_back(r->blocks, r->blocks_n);
	free(r->blocks);
	memset(r, 0, sizeof(*r));
}
