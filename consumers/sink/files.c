/* consumers/sink/files.c -- target: files below a directory. What is not complete lies in the topic's
 * directory under a name that begins with a dot and says whose it is; a complete file is renamed into its
 * hour, and its directory is synced, before the position moves. Of more files than may be open, those that
 * were written to longest ago are closed meanwhile: nothing else changes. Refuses to put a file over another
 * one that has the same name and other bytes without saying so, and to leave anything half written behind:
 * after an error the cut's files are removed, and its records are read again. */
#include "consumers/sink/files.h"
#include "consumers/sink/disk.h"
#include "consumers/sink/pieces.h"

#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One that is being written. */
struct writing {
	struct sink_piece piece;       /* first */
	struct writing *newer, *older; /* of those that are open, by last use */
	int fd;                        /* -1: closed meanwhile */
	int64_t at;                    /* so many bytes are in it */
};

struct files {
	struct sink_pieces pieces; /* first */
	struct writing *newest, *oldest;
	size_t open;
};

static struct files *files_of(const struct writing *w)
{
	return (struct files *)w->piece.all;
}

/* ---------------------------------------------------------------- paths */

static char *full(const struct files *f, const char *path)
{
	return pr_asprintf("%s/%s", f->pieces.sl->conf->files.directory, path);
}

/* ---------------------------------------------------------------- writing */

static void unlink_open(struct writing *w)
{
	struct files *f = files_of(w);

	*(w->newer ? &w->newer->older : &f->newest) = w->older;
	*(w->older ? &w->older->newer : &f->oldest) = w->newer;
	w->newer = w->older = NULL;
}

static void link_open(struct writing *w)
{
	struct files *f = files_of(w);

	w->older = f->newest;
	*(f->newest ? &f->newest->newer : &f->oldest) = w;
	f->newest = w;
}

static void count_open(struct files *f, int n)
{
	struct sink_shared *shared = f->pieces.sl->shared;

	f->open = (size_t)((int64_t)f->open + n);
	pr_gauge_set(shared->m.open_files, (double)(atomic_fetch_add(&shared->open_files, n) + n));
}

static void close_fd(struct writing *w)
{
	if (w->fd < 0)
		return;
	(void)close(w->fd);
	w->fd = -1;
	unlink_open(w);
	count_open(files_of(w), -1);
}

/* What was written to longest ago is closed, and keeps its buffer. */
static void make_room(struct files *f)
{
	const struct sink_lane *sl = f->pieces.sl;
	size_t most = (size_t)(sl->conf->files.open_files / atomic_load(&sl->shared->c->lanes_used));

	while (f->oldest && f->open >= (most > 0 ? most : 1))
		close_fd(f->oldest);
}

static int open_fd(struct writing *w, struct pr_err *err)
{
	char *path = full(files_of(w), w->piece.file.temp);
	int flags = O_WRONLY | O_CLOEXEC | O_APPEND | (w->at == 0 ? O_CREAT | O_TRUNC : 0), rc = 0;

	make_room(files_of(w));
	w->fd = open(path, flags, 0666);
	if (w->fd < 0 && errno == ENOENT && w->at == 0) {
		rc = disk_make_dirs(path, err);
		if (rc == 0)
			w->fd = open(path, flags, 0666);
	}
	if (rc == 0 && w->fd < 0)
		rc = disk_fail(err, "cannot write", path);
	if (w->fd >= 0) {
		link_open(w);
		count_open(files_of(w), 1);
	}
	free(path);
	return rc;
}

/* What fails may be half there. */
static int write_all(struct writing *w, const char *p, size_t n, struct pr_err *err)
{
	w->at += (int64_t)n;
	if (disk_write(w->fd, p, n, w->piece.file.temp, err) < 0)
		return -1;
	/* If we die here, nobody looks at what is half written: it has no name, and no record of it. */
	FAULT(sink_mid_file);
	return 0;
}

static int dest_write(struct sink_dest *d, const void *p, size_t n, struct pr_err *err)
{
	struct writing *w = (struct writing *)d;

	if (w->fd < 0) {
		if (open_fd(w, err) < 0)
			return -1;
	} else {
		unlink_open(w);
		link_open(w);
	}
	return write_all(w, p, n, err);
}

/* ---------------------------------------------------------------- an open cut */

static struct sink_piece *make(struct sink_part *sp, int64_t hour_us, int late)
{
	struct writing *w = pr_calloc(1, sizeof(*w));

	w->piece.dest.write = dest_write;
	w->fd = -1;
	w->piece.file.temp = pr_asprintf("%s/.%" PRId32 "-%" PRId64 "-%" PRId64 "%s.%" PRId64 ".%s.tmp",
		sp->part->topic, sp->part->partition, sp->open->first, (int64_t)(hour_us / (3600 * PR_SEC)),
		late ? "late" : "", sp->part->epoch, sp->lane->l->c->conf->group);
	return &w->piece;
}

/* Its bytes are on the disk, and it is closed. */
static int end(struct sink_part *sp, struct sink_piece *p, struct pr_err *err)
{
	struct writing *w = (struct writing *)p;

	(void)sp;
	if (w->fd < 0 && open_fd(w, err) < 0)
		return -1;
	if (fdatasync(w->fd) < 0)
		return disk_fail(err, "cannot sync", p->file.temp);
	close_fd(w);
	p->file.bytes = w->at;
	return 0;
}

static void drop(struct sink_part *sp, struct sink_piece *p, int sealed)
{
	struct writing *w = (struct writing *)p;
	char *path;

	(void)sp;
	close_fd(w);
	if (sealed || w->at == 0)
		return;
	path = full(files_of(w), p->file.temp);
	(void)unlink(path);
	free(path);
}

static void files_forget_cut(struct sink_cut *cut, int published)
{
	struct files *f = cut->part->lane->target;

	for (size_t i = 0; i < cut->files_n; i++) {
		char *path = full(f, cut->files[i].temp);

		if (!published && *cut->files[i].temp)
			(void)unlink(path);
		free(path);
		free(cut->files[i].path);
		free(cut->files[i].temp);
	}
	free(cut->files);
	cut->files = NULL;
	cut->files_n = 0;
}

/* ---------------------------------------------------------------- names */

/* 1: the file is there and is that one; 0: it is not there, or another one. */
static int has(const char *path, const struct sink_file *want)
{
	unsigned char sum[SINK_SUM];
	EVP_MD_CTX *md;
	char buf[65536];
	struct stat st;
	ssize_t n = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC), yes = 0;

	if (fd < 0)
		return 0;
	if (fstat(fd, &st) == 0 && st.st_size == want->bytes) {
		md = EVP_MD_CTX_new();
		(void)EVP_DigestInit_ex(md, EVP_sha256(), NULL);
		while ((n = read(fd, buf, sizeof(buf))) > 0)
			(void)EVP_DigestUpdate(md, buf, (size_t)n);
		(void)EVP_DigestFinal_ex(md, sum, NULL);
		EVP_MD_CTX_free(md);
		yes = n == 0 && memcmp(sum, want->sum, sizeof(sum)) == 0;
	}
	(void)close(fd);
	return yes;
}

/* Under its name, or an error. A file that has it already is ours (an owner before us was faster), or stands
 * there from elsewhere. */
static int give_name(const char *temp, const char *path, const struct sink_file *file, struct pr_err *err)
{
	if (renameat2(AT_FDCWD, temp, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno == EEXIST || errno == EINVAL || errno == ENOSYS) {
		if (has(path, file)) {
			(void)unlink(temp);
			return 0;
		}
		if (errno == EEXIST)
			pr_log(PR_WARN, "a file of this name had other bytes: it is replaced",
				KS("path", path));
		if (rename(temp, path) == 0)
			return 0;
	}
	if (errno == ENOENT && has(path, file))
		return 0; /* we were here before */
	return disk_fail(err, "cannot name", path);
}

static int publish_file(struct files *f, const struct sink_file *file, struct pr_err *err)
{
	char *temp = full(f, file->temp), *path = full(f, file->path);
	int rc = disk_make_dirs(path, err);

	if (rc == 0)
		rc = give_name(temp, path, file, err);
	free(temp);
	free(path);
	return rc;
}

/* Each directory once: files are in the order of their hours. */
static int sync_dirs(struct files *f, const struct sink_cut *cut, struct pr_err *err)
{
	char *last = NULL;
	int rc = 0;

	for (size_t i = 0; i < cut->files_n && rc == 0; i++) {
		char *dir = full(f, cut->files[i].path);

		*strrchr(dir, '/') = '\0';
		if (!last || strcmp(last, dir) != 0)
			rc = disk_sync_dir(dir, err);
		free(last);
		last = dir;
	}
	free(last);
	return rc;
}

static int publish_cut(struct files *f, const struct sink_cut *cut, struct pr_err *err)
{
	for (size_t i = 0; i < cut->files_n; i++) {
		if (publish_file(f, &cut->files[i], err) < 0)
			return -1;
		/* If we die here, some of the cut's files have their names: the next owner finds the cut
		 * recorded, and does the others. */
		FAULT(sink_mid_rename);
	}
	return sync_dirs(f, cut, err);
}

static int files_publish(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err)
{
	(void)err;
	for (size_t i = 0; i < n; i++) {
		struct sink_cut *c = cuts[i];

		if (publish_cut(sl->target, c, &c->why) == 0)
			c->said = SINK_PUBLISHED;
		else
			c->said = strcmp(c->why.code, "ENOENT") == 0 ? SINK_REREAD : SINK_AGAIN;
	}
	return 0;
}

/* ---------------------------------------------------------------- what others left */

enum found { NOWHERE, UNDER_ITS_NAME, SEALED };

static enum found look_for(const struct files *f, const struct sink_file *file)
{
	char *path = full(f, file->path), *temp = full(f, file->temp);
	enum found found = has(path, file) ? UNDER_ITS_NAME : has(temp, file) ? SEALED : NOWHERE;

	free(path);
	free(temp);
	return found;
}

static int files_recover(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err)
{
	struct files *f = sp->lane->target;

	for (size_t i = 0; i < cut->files_n; i++)
		if (look_for(f, &cut->files[i]) == NOWHERE)
			return 0;
	return publish_cut(f, cut, err) < 0 ? -1 : 1;
}

/* ".PARTITION-...EPOCH.GROUP.tmp" of this group and partition, by an owner before us. Nothing of a recorded
 * cut is left there: that was looked at first. */
static int is_leftover(const struct sink_part *sp, const char *name)
{
	const char *group = sp->lane->l->c->conf->group, *p = name + 1, *dot;
	size_t n = strlen(name), g = strlen(group);
	char *end;

	if (*name != '.' || n < g + 6 || strcmp(name + n - 4, ".tmp") != 0 ||
		memcmp(name + n - 4 - g, group, g) != 0 || name[n - 5 - g] != '.')
		return 0;
	if (strtol(p, &end, 10) != sp->part->partition || *end != '-')
		return 0;
	dot = strchr(end, '.');
	return dot && strtoll(dot + 1, &end, 10) < sp->part->epoch && *end == '.';
}

/* Removes what owners before us left of the part: nobody needs it. */
static void files_clean(struct sink_part *sp)
{
	char *dir = full(sp->lane->target, sp->part->topic), *path;
	DIR *d = opendir(dir);
	const struct dirent *e;

	while (d && (e = readdir(d))) {
		if (!is_leftover(sp, e->d_name))
			continue;
		path = pr_asprintf("%s/%s", dir, e->d_name);
		(void)unlink(path);
		free(path);
	}
	if (d)
		(void)closedir(d);
	free(dir);
	manifests_look(sp);
}

/* ---------------------------------------------------------------- begin and end */

/* That it is there and may be written to. */
static int check_directory(const struct pr_sink_conf *conf, struct pr_err *err)
{
	const char *dir = conf->files.directory;
	struct stat st;

	if (stat(dir, &st) == 0 && !S_ISDIR(st.st_mode))
		errno = ENOTDIR;
	else if (errno = 0, access(dir, R_OK | W_OK | X_OK) == 0)
		return 0;
	(void)disk_fail(err, "handler.files.directory", dir);
	if (errno != EROFS && errno != EIO) { /* those may pass */
		err->kind = PR_STOP;
		err->exit = PR_EX_CONFIG;
	}
	if (strcmp(err->code, "ENOENT") == 0)
		(void)pr_hint(err, "make it: mkdir -p %s", dir);
	return -1;
}

static int files_open(struct sink_lane *sl, struct pr_err *err)
{
	struct files *f = sl->target;

	if (f)
		return 0;
	if (check_directory(sl->conf, err) < 0 || owner_of_directory(sl, err) < 0)
		return -1;
	f = pr_calloc(1, sizeof(*f));
	f->pieces.make = make;
	f->pieces.end = end;
	f->pieces.drop = drop;
	if (sink_pieces_open(&f->pieces, sl, &sl->conf->files.format, &sl->conf->files.late, err) < 0) {
		free(f);
		return -1;
	}
	sl->target = f;
	return 0;
}

static void files_close(struct sink_lane *sl)
{
	struct files *f = sl->target;

	if (!f)
		return;
	sink_pieces_close(&f->pieces);
	free(f);
	sl->target = NULL;
}

const struct sink_target_ops sink_files = { .name = "files",
	.open = files_open,
	.close = files_close,
	.put = sink_pieces_put,
	.seal = sink_pieces_seal,
	.publish = files_publish,
	.recover = files_recover,
	.taken_over = files_clean,
	.forget = sink_pieces_forget,
	.forget_cut = files_forget_cut,
	.published = manifests_published,
	.look = hours_look };
