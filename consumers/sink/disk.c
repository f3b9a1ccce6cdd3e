/* consumers/sink/disk.c -- bytes and directories that are still there when the power comes back, and words
 * for what a disk refuses. Refuses to know what is in a file. */
#include "consumers/sink/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int disk_fail(struct pr_err *err, const char *what, const char *path)
{
	int e = errno;

	(void)pr_fail(err, PR_RETRY, "%s %s: %s", what, path, strerror(e));
	(void)snprintf(err->code, sizeof(err->code), "%s", strerrorname_np(e) ? strerrorname_np(e) : "");
	if (e == ENOSPC || e == EDQUOT)
		(void)pr_hint(err, "make room; nothing is lost, it goes on by itself");
	else if (e == EROFS || e == EACCES || e == EPERM)
		(void)pr_hint(err, "the consumer's user must be able to write below handler.files.directory");
	return -1;
}

int disk_write(int fd, const char *p, size_t n, const char *path, struct pr_err *err)
{
	ssize_t got;

	while (n > 0) {
		got = write(fd, p, n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return disk_fail(err, "cannot write", path);
		p += got;
		n -= (size_t)got;
	}
	return 0;
}

int disk_sync_dir(const char *path, struct pr_err *err)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

	if (fd < 0)
		return disk_fail(err, "cannot open directory", path);
	if (fsync(fd) < 0)
		rc = disk_fail(err, "cannot sync directory", path);
	(void)close(fd);
	return rc;
}

/* The directories above path; each that is new is durable. */
int disk_make_dirs(const char *path, struct pr_err *err)
{
	char *dir = pr_strdup(path), *slash = strrchr(dir, '/');
	struct stat st;
	int rc = 0;

	if (!slash || slash == dir) {
		free(dir);
		return 0;
	}
	*slash = '\0';
	if (stat(dir, &st) == 0 && S_ISDIR(st.st_mode))
		goto out;
	rc = disk_make_dirs(dir, err);
	if (rc == 0 && mkdir(dir, 0777) < 0 && errno != EEXIST)
		rc = disk_fail(err, "cannot make directory", dir);
	if (rc == 0) {
		slash = strrchr(dir, '/');
		if (slash && slash != dir) {
			*slash = '\0';
			rc = disk_sync_dir(dir, err);
		}
	}
out:
	free(dir);
	return rc;
}
