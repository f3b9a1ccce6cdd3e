/* consumers/sink/owner.c -- whose a directory, or a bucket below its prefix, is: _manifest/owner holds the
 * name of the group that was there first. Two groups would put their files over each other's, and write each
 * other's manifests; and a group with two places would have manifests that list what is in the other one.
 * Refuses to take a place over, and to begin another one: only people know that a group is gone for good, or
 * has moved. */
#include "consumers/sink/disk.h"
#include "consumers/sink/files.h"

#include "sql.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_MOST 512

int owner_judge(
	const struct sink_lane *sl, const char *owner, size_t n, const char *place, struct pr_err *err)
{
	const char *group = sl->l->c->conf->group;

	while (n > 0 && (owner[n - 1] == '\n' || owner[n - 1] == '\r'))
		n--;
	if (n == strlen(group) && memcmp(owner, group, n) == 0)
		return 0;
	(void)pr_fail(err, PR_STOP, "%s is what group %.*s writes to", place, (int)n, owner);
	(void)pr_hint(err,
		"give this group another %s; if the other one is gone for good, remove _manifest/owner there",
		sl->ops->keep ? "handler.s3.prefix" : "handler.files.directory");
	err->exit = PR_EX_CONFIG;
	return -1;
}

static int write_name(int fd, const char *group, const char *path, struct pr_err *err)
{
	if (disk_write(fd, group, strlen(group), path, err) < 0 || disk_write(fd, "\n", 1, path, err) < 0)
		return -1;
	return fchmod(fd, 0644) < 0 || fsync(fd) < 0 ? disk_fail(err, "cannot sync", path) : 0;
}

/* Under its name with all that is in it, or not at all. 1: somebody was there before. */
static int put(const struct sink_lane *sl, const char *path, struct pr_err *err)
{
	char *temp = pr_asprintf("%s/_manifest/.owner.XXXXXX", sl->conf->files.directory);
	int fd = disk_make_dirs(path, err) < 0 ? -2 : mkostemp(temp, O_CLOEXEC), rc = 0;

	if (fd == -1)
		rc = disk_fail(err, "cannot write", temp);
	else if (fd >= 0)
		rc = write_name(fd, sl->l->c->conf->group, temp, err);
	if (rc == 0 && fd >= 0 && link(temp, path) < 0)
		rc = errno == EEXIST ? 1 : disk_fail(err, "cannot name", path);
	if (fd >= 0) {
		(void)close(fd);
		(void)unlink(temp);
	}
	free(temp);
	return fd == -2 ? -1 : rc;
}

static int judge_file(const struct sink_lane *sl, const char *path, struct pr_err *err)
{
	char owner[NAME_MOST];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, owner, sizeof(owner));
	int rc = n < 0 ? disk_fail(err, "cannot read", path)
		       : owner_judge(sl, owner, (size_t)n, sl->conf->files.directory, err);

	if (fd >= 0)
		(void)close(fd);
	return rc;
}

int owner_published(const struct sink_lane *sl, char **ret, struct pr_err *err)
{
	PGresult *res =
		pr_pg_exec(sl->l->pg, sql_sink_place, 1, (const char *const[]){ sl->l->c->conf->group }, err);
	int rc;

	*ret = NULL;
	if (!res)
		return -1;
	rc = *PQgetvalue(res, 0, 0) == 't';
	if (!PQgetisnull(res, 0, 1))
		*ret = pr_strdup(PQgetvalue(res, 0, 1));
	PQclear(res);
	return rc;
}

int owner_elsewhere(const struct sink_lane *sl, const char *place, struct pr_err *err)
{
	(void)pr_fail(err, PR_STOP, "group %s has published before, and nothing of it is in %s",
		sl->l->c->conf->group, place);
	(void)pr_hint(err,
		"%sa sink that is to write elsewhere is a group of its own: another name; if this is the "
		"place, write the group's name into _manifest/owner there",
		sl->ops->keep ? "" : "is it mounted? ");
	err->exit = PR_EX_CONFIG;
	return -1;
}

/* No mark is there: it is new, or somebody has removed the manifests, or it is not the place. */
static int judge_unmarked(const struct sink_lane *sl, struct pr_err *err)
{
	char *path, *full;
	int rc = owner_published(sl, &path, err);

	if (rc > 0) {
		full = pr_asprintf("%s/%s", sl->conf->files.directory, path ? path : "_manifest/owner");
		rc = access(full, F_OK) == 0 ? 0 : owner_elsewhere(sl, sl->conf->files.directory, err);
		free(full);
	}
	free(path);
	return rc;
}

int owner_of_directory(const struct sink_lane *sl, struct pr_err *err)
{
	char *path = pr_asprintf("%s/_manifest/owner", sl->conf->files.directory);
	int rc = access(path, F_OK) == 0 ? 1 : judge_unmarked(sl, err);

	if (rc == 0)
		rc = put(sl, path, err);

	if (rc == 1)
		rc = judge_file(sl, path, err);
	free(path);
	return rc;
}
