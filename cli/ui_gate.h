/* cli/ui_gate.h -- who may act on the page of `postrider ui`: the token, typed once, makes a pass that lives
 * for a while; a plan is what was shown and may be done once. All of it in memory and bounded: it ends with
 * the process. Times are pr_mono_us(). Any thread may call. */
#ifndef PR_CLI_UI_GATE_H
#define PR_CLI_UI_GATE_H

#include <cjson/cJSON.h>
#include <stdint.h>

#define UI_ID    65 /* 256 bits in hexadecimal digits */
#define UI_WHO   81
#define UI_TRIES 5  /* wrong tokens a minute, from all together */
#define UI_DEEDS 30 /* deeds a minute, of all together */

struct ui_gate;

struct ui_gate *ui_gate_new(const char *token, int64_t life_us);
void ui_gate_free(struct ui_gate *g); /* accepts NULL */

/* A form that has no pass yet: its stamp is ours, and fresh. */
void ui_gate_stamp(struct ui_gate *g, int64_t now, char *ret /* [UI_ID + 32] */);
int ui_gate_stamp_ok(struct ui_gate *g, int64_t now, const char *stamp);

enum ui_entry { UI_IN, UI_WRONG, UI_TOO_MANY };
/* who "": nobody said. The pass' id goes into the cookie. */
enum ui_entry ui_gate_enter(
	struct ui_gate *g, int64_t now, const char *token, const char *who, char *ret_id /* [UI_ID] */);

struct ui_pass {
	char who[UI_WHO]; /* as it stands in what is recorded */
	char form[UI_ID]; /* every form of this pass carries it */
};
int ui_gate_pass(struct ui_gate *g, int64_t now, const char *id, struct ui_pass *ret); /* -1: none */
void ui_gate_leave(struct ui_gate *g, const char *id);

/* Keeps a plan (taken) for this pass; -1: there is no such pass. Of many the oldest is forgotten. */
int ui_gate_keep(struct ui_gate *g, int64_t now, const char *id, cJSON *plan, char *ret_plan /* [UI_ID] */);
/* Once. NULL: it was used, or is forgotten, or is none of this pass. */
cJSON *ui_gate_take(struct ui_gate *g, int64_t now, const char *id, const char *plan);

/* Whether one more deed may be done in this minute. */
int ui_gate_may(struct ui_gate *g, int64_t now);

/* In a time that does not tell where they differ. */
int ui_same(const char *a, const char *b);

/* Of n bytes, as hexadecimal digits into ret[UI_ID]. */
void ui_digest(const void *p, size_t n, char *ret);

#endif
