/* tests/fault/bad_disk.c -- a disk that fails, for LD_PRELOAD: while the file $BAD_DISK is there, the call
 * that it names ("write", "fdatasync", "fsync", "rename") ends with EIO on everything below $BAD_DISK_BELOW;
 * "short" lets a write write half. Each time adds a byte to $BAD_DISK.hits. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int named(const char *call)
{
	const char *path = getenv("BAD_DISK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	char word[32] = "";

	if (fd < 0)
		return 0;
	if (read(fd, word, sizeof(word) - 1) < 0)
		word[0] = '\0';
	(void)close(fd);
	return strcmp(word, call) == 0;
}

static int below(const char *path)
{
	const char *dir = getenv("BAD_DISK_BELOW");

	return dir && strncmp(path, dir, strlen(dir)) == 0;
}

static int fd_below(int fd)
{
	char link[64], path[4096];
	ssize_t n;

	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return 0;
	path[n] = '\0';
	return below(path);
}

static void hit(void)
{
	char path[4096];
	int fd;

	(void)snprintf(path, sizeof(path), "%s.hits", getenv("BAD_DISK"));
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (fd < 0)
		return;
	(void)!syscall(SYS_write, fd, ".", 1);
	(void)close(fd);
}

static int eio(void)
{
	hit();
	errno = EIO;
	return -1;
}

ssize_t write(int fd, const void *p, size_t n)
{
	int e = errno;

	if (named("write") && fd_below(fd))
		return eio();
	if (n > 1 && named("short") && fd_below(fd)) {
		hit();
		n /= 2;
	}
	errno = e;
	return syscall(SYS_write, fd, p, n);
}

int fdatasync(int fd)
{
	return named("fdatasync") && fd_below(fd) ? eio() : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
	return named("fsync") && fd_below(fd) ? eio() : (int)syscall(SYS_fsync, fd);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
	if (named("rename") && below(to))
		return eio();
	return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}
