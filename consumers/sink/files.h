/* consumers/sink/files.h -- what files.c, s3.c, manifest.c, hours.c and owner.c know of each other. */
#ifndef CONSUMERS_SINK_FILES_H
#define CONSUMERS_SINK_FILES_H

#include "consumers/sink/sink.h"

/* manifest.c: when a part is ours, when cuts are published, and those that are due: at_once, all that wait.
 */
void manifests_look(struct sink_part *sp);
void manifests_published(struct sink_lane *sl, struct sink_cut **cuts, size_t n);
void manifests_write(struct sink_lane *sl, int at_once);
int manifests_are_kept(const struct sink_lane *sl);
int64_t manifest_after(const struct sink_lane *sl); /* so long after its end an hour is over */
/* Of one hour (microseconds), in a transaction, which holds its lock from here on. */
int manifest_write(struct sink_lane *sl, const char *topic, const char *hour, struct pr_err *err);

/* owner.c: it is this group's from here on, or PR_STOP with exit 78: it is another one's. owner_judge: what
 * stands in _manifest/owner of that place. */
int owner_of_directory(const struct sink_lane *sl, struct pr_err *err);
int owner_judge(
	const struct sink_lane *sl, const char *owner, size_t n, const char *place, struct pr_err *err);
/* 0: the group has published nothing. 1: it has; *ret, owned, is one of its files, NULL: it has none. */
int owner_published(const struct sink_lane *sl, char **ret, struct pr_err *err);
/* -1: what it has published is not there. */
int owner_elsewhere(const struct sink_lane *sl, const char *place, struct pr_err *err);

/* hours.c: tick of store_sink.c, once a second; close with the lane. */
void hours_look(struct sink_lane *sl);
void hours_close(struct sink_lane *sl);

#endif
