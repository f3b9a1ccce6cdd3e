/* lib/conf_inner.h -- inside the configuration room: one load and what it leaves. conf.c walks file,
 * overrides and table, conf_set.c fills one field, conf_use.c answers about what was loaded. */
#ifndef PR_CONF_INNER_H
#define PR_CONF_INNER_H

#include "lib/conf.h"
#include "lib/conf_text.h"
#include "lib/conf_value.h"

#include <libconfig.h>

enum from { FROM_DEFAULT, FROM_FILE, FROM_COMMAND_LINE };

/* What one option became, for --print-config and for errors found later. */
struct entry {
	char *path;
	char *shown; /* value as printed, secrets masked; NULL: not set */
	char *where; /* "relay.cfg:12", "command line", "default" */
	enum from from;
	int unread; /* the field holds a reference, or elements of it do */
};

/* Holds no pointer into the caller's struct: a reload may copy that one elsewhere. */
struct pr_conf {
	char *file;
	struct entry *entries;
	size_t n, cap;
	void **owned; /* what the caller's struct points to */
	size_t nowned, capowned;
};

/* Where the value of one option comes from; setting (FROM_FILE) or text (the others). */
struct given {
	enum from from;
	const config_setting_t *setting;
	const char *text;
};

/* One load, passed down. */
struct load {
	struct pr_conf *conf;
	const struct pr_conf_text *text;
	const char *const *overrides;
	size_t n;
	int unread; /* references stay as they are */
	struct pr_err *err;
};

/* One table being filled: the file's, or an element of GROUPS. */
struct level {
	const struct pr_opt *table;
	char *base;          /* struct the offsets speak of */
	const char *prefix;  /* "" or "errors[0]." */
	struct given *given; /* one for each option of the table */
	int line;            /* flat line of the group; 0: the file as a whole */
};

/* One option being filled. */
struct slot {
	const struct pr_opt *o;
	const struct given *given;
	void *field;
	char *path;
	char *where;
	char *shown;
	int unread;
};

size_t conf_find(const struct pr_opt *table, const char *path); /* index; that of the end: there is none */
struct entry *conf_entry(const struct pr_conf *conf, const char *path);

/* What a setting is, "a list ( ... )". */
const char *conf_type_name(const config_setting_t *s);

/* Fills the option's field from what is given, and s->shown. */
int conf_set_slot(const struct load *l, struct slot *s);

/* Fills a table from a group of the file; the top one from the command line, too. */
int conf_load_level(const struct load *l, struct level *v, const config_setting_t *group);

#endif
