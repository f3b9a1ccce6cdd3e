/* lib/saga_def_inner.h -- inside the room of saga definitions: what lib/saga_def*.c share, and nobody else
 * includes. A build goes over the file's values once, and stops at the first that is wrong. */
#ifndef PR_SAGA_DEF_INNER_H
#define PR_SAGA_DEF_INNER_H

#include "lib/conf.h"
#include "lib/saga_def.h"

#define SAGA_MEMBERS_MOST    64
#define SAGA_LOCKS_MOST      8
#define SAGA_INVARIANTS_MOST 32
#define SAGA_TOPIC_INBOX     "outbox.saga.inbox"

/* The file's values, as the table fills them in. */
struct saga_raw_action {
	char *command, *topic, *key;
	struct pr_strs send;
	int64_t timeout_us, attempts, backoff_us, backoff_max_us;
};

struct saga_raw_step {
	char *name, *group, *when;
	int kind;
	struct saga_raw_action act[2];
	struct pr_strs keep;
	int64_t sla_us;
	char *on, *emits, *fails, *undone, *emits_topic;
};

struct saga_raw {
	char *name;
	int64_t version;
	int style;
	int64_t deadline_us;
	char *start_topic, *start_type;
	struct pr_strs start_data;
	struct pr_strs locks;
	int lock_conflict;
	char *correlate;
	int emit_undo;
	int64_t undo_after_us;
	struct pr_groups steps; /* struct saga_raw_step */
	struct pr_strs invariants;
};

struct saga_build {
	struct saga_def *def;
	struct saga_raw raw;
	struct pr_conf *conf; /* owns the strings */
	void **owned;         /* what else def points to */
	size_t owned_n;
	struct pr_err *err;
};

static inline const struct saga_raw_step *saga_raw_step(const struct saga_build *b, size_t i)
{
	return (const struct saga_raw_step *)b->raw.steps.v + i;
}

void *saga_own(struct saga_build *b, void *p);

/* Fills err: "file:line: steps[2].do.topic: reason"; step -1: the key is the file's own. Returns -1. */
int saga_deny(const struct saga_build *b, int step, const char *key, const char *fmt, ...) PR_PRINTF(4, 5);

/* Whether the file sets the key. */
int saga_is_set(const struct saga_build *b, int step, const char *key);

/* ---- saga_def_text.c: the small languages inside of strings ---- */

enum { /* where a path may begin */
	ROOT_DATA = 1,
	ROOT_SAGA = 2,
	ROOT_REPLY = 4,
	ROOT_PAYLOAD = 8,
	ROOT_HEADER = 16,
	ROOT_EVENT = 32,
};

int saga_path(const struct saga_build *b, int step, const char *key, const char *path, unsigned roots);

/* "name = path or JSON" each, to an array that def owns. */
int saga_members(struct saga_build *b, int step, const char *key, const struct pr_strs *strs, unsigned roots,
	const struct saga_member **ret, size_t *ret_n);

/* A lock: text with "${path}" in it. */
int saga_template(const struct saga_build *b, const char *key, const char *text);

/* [A-Za-z0-9_-]{1,64}; letter: it begins with one. */
int saga_name(const struct saga_build *b, int step, const char *key, const char *name, int letter);

/* A type of records: without space, at most 200 bytes; NULL passes. */
int saga_type(const struct saga_build *b, int step, const char *key, const char *type);
int saga_topic(const struct saga_build *b, int step, const char *key, const char *topic);

/* ---- saga_def_check.c: what steps must fulfil together ---- */

int saga_check(struct saga_build *b);

#endif
