/* consumers/sink/disk.h -- files and directories that are durable. */
#ifndef CONSUMERS_SINK_DISK_H
#define CONSUMERS_SINK_DISK_H

#include "lib/err.h"

#include <stddef.h>

/* Fills err from errno: "WHAT PATH: why", its code the errno's name. -1. */
int disk_fail(struct pr_err *err, const char *what, const char *path);
int disk_write(int fd, const char *p, size_t n, const char *path, struct pr_err *err); /* all of it */
int disk_sync_dir(const char *path, struct pr_err *err);

/* The directories above path are there. */
int disk_make_dirs(const char *path, struct pr_err *err);

#endif
