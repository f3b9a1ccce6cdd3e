/* cli/ui.h -- `postrider ui`: several programs as one page, and look-ups in their databases, and what a
 * person may do there who has typed the token. */
#ifndef PR_CLI_UI_H
#define PR_CLI_UI_H

#include "cli/cli.h"
#include "cli/ui_gate.h"
#include "lib/http.h"
#include "lib/page.h"

#define UI_PROGRAMS 64

struct ui_database {
	char *name, *conninfo, *config;
};

struct ui {
	char *listen, *token;
	struct cli_tls tls;
	struct pr_strs relays, consumers;
	struct pr_groups databases; /* struct ui_database */
	struct {
		char *name;
		int colour;
	} environment;
	char *write_token;
	int64_t timeout_us, write_life_us;
	struct ui_gate *gate; /* NULL: nobody may act */
	char colour[16];      /* the word of environment.colour */
};

/* ui_fetch.c: what each program says, asked side by side within ui->timeout_us. n parts, relays first; as
 * many answers, which keep what the parts borrow. */
struct ui_answer {
	cJSON *status, *history;
	char why[300];
};
size_t ui_programs(const struct ui *ui);
void ui_fetch(const struct ui *ui, struct pr_part *parts, struct ui_answer *answers);
void ui_release(struct ui_answer *answers, size_t n);

/* ui_view.c: JSON as it is read. */
struct ui_link {
	const char *column;      /* this member leads there; NULL: text does, in a column of its own */
	const char *text, *path; /* path with its first parameter, or ending with "?" */
	struct {
		const char *as, *member; /* a parameter, and the row's member that it is */
	} with[6];
};
struct ui_view {
	int open; /* also payloads, headers and data: whoever looks has the right to */
	int db;
	const struct ui_link *links;
	int links_n;
};
void ui_put_table(struct pr_buf *b, const char *caption, const cJSON *list, const struct ui_view *v);
void ui_put_object(struct pr_buf *b, const cJSON *o, const struct ui_view *v);
void ui_put_command(struct pr_buf *b, const char *const *argv);
/* A parameter of a query, behind "?" or another. */
void ui_put_parameter(struct pr_buf *b, const char *name, const char *value);

/* ui_look.c: look-ups. ctx is struct ui *. */
void ui_dlq(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_letters(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_letter(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_parked(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_sagas(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_saga(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_jobs(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_event(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_look_forms(struct pr_buf *b, const struct ui *ui, const struct pr_request *req);
int ui_database_of(const struct ui *ui, const char *number); /* -1: there is no such */
int ui_param_ok(const char *name, const char *value);

/* ui_saga.c: how far a saga has come, as a picture. o: what `saga show --json` says. */
void ui_put_saga(struct pr_buf *b, const cJSON *o);
const char *ui_stuck_step(const cJSON *o); /* NULL: none is */

/* ui_login.c: the token for a cookie. */
#define UI_COOKIE "postrider_ui"
/* The pass of whoever asks, and its id; -1: none. */
int ui_pass(const struct ui *ui, const struct pr_request *req, struct ui_pass *ret, char *ret_id);
/* Whether a form may be looked at: where it comes from and what it is. -1: resp says why not. */
int ui_posted(const struct pr_request *req, struct pr_response *resp);
void ui_put_pass(struct pr_buf *b, const struct ui *ui, const struct pr_request *req);
void ui_login(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_login_post(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_logout_post(void *ctx, const struct pr_request *req, struct pr_response *resp);
/* A page of ours; takes body. */
void ui_page(const struct ui *ui, const struct pr_request *req, struct pr_response *resp, int status,
	const char *title, struct pr_buf *body);

/* ui_act.c: what is to be done is shown first, and done once it was confirmed. */
void ui_act(void *ctx, const struct pr_request *req, struct pr_response *resp);
void ui_act_post(void *ctx, const struct pr_request *req, struct pr_response *resp);

/* ui_run.c: one of our own verbs in a process of its own, bounded in time and bytes. argv without the
 * program, ended by NULL. */
enum { UI_JSON = 1, UI_PATIENT = 2 };
struct ui_ran {
	struct pr_buf said, talked;
	int exit; /* -1: it did not come to its end */
};
void ui_exec(const struct ui *ui, const struct ui_database *db, const char *const *argv, int flags,
	const char *input, size_t input_n, struct ui_ran *ret);
void ui_ran_release(struct ui_ran *ran);
cJSON *ui_lines(const struct ui_ran *ran);

/* A look-up: its answer's lines, or NULL and why; why is also what it said beside its answer. */
cJSON *ui_run(
	const struct ui *ui, const struct ui_database *db, const char *const *argv, char *why, size_t why_n);

#endif
