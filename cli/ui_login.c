/* cli/ui_login.c -- the token typed once becomes a cookie that scripts cannot read and other sites do not get
 * sent. Refuses a form of another site, one that does not say where it comes from, and one that is no form.
 */
#include "cli/ui.h"

#include "lib/clock.h"
#include "lib/form.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int ui_pass(const struct ui *ui, const struct pr_request *req, struct ui_pass *ret, char *ret_id)
{
	if (!ui->gate || pr_form_cookie(pr_http_header(req, "Cookie"), UI_COOKIE, ret_id, UI_ID) < 0)
		return -1;
	return ui_gate_pass(ui->gate, pr_mono_us(), ret_id, ret);
}

int ui_posted(const struct pr_request *req, struct pr_response *resp)
{
	static const char form[] = "application/x-www-form-urlencoded";
	const char *site = pr_http_header(req, "Sec-Fetch-Site"), *type = pr_http_header(req, "Content-Type");

	if (!site || strcmp(site, "same-origin") != 0) {
		pr_http_problem(resp, 403, "cross-site", "Refused from another site",
			"only a page of this server may send this: Sec-Fetch-Site must be same-origin");
		return -1;
	}
	if (!type || strncasecmp(type, form, sizeof(form) - 1) != 0 ||
		!strchr("; ", type[sizeof(form) - 1])) {
		pr_http_problem(resp, 415, "unsupported-media-type", "Not a form", form);
		return -1;
	}
	return 0;
}

void ui_put_pass(struct pr_buf *b, const struct ui *ui, const struct pr_request *req)
{
	struct ui_pass pass;
	char id[UI_ID];

	if (!ui->gate)
		return;
	if (ui_pass(ui, req, &pass, id) < 0) {
		pr_buf_puts(b, "<p class=\"links\"><a href=\"/login\">Log in to act</a></p>");
		return;
	}
	pr_buf_puts(b, "<form class=\"act\" method=\"post\" action=\"/logout\"><p>You act as <b>");
	pr_html_text(b, pass.who);
	pr_buf_printf(b,
		"</b>.</p><input type=\"hidden\" name=\"form\" value=\"%s\"><button>Log out</button></form>",
		pass.form);
}

void ui_page(const struct ui *ui, const struct pr_request *req, struct pr_response *resp, int status,
	const char *title, struct pr_buf *body)
{
	struct pr_page page = { .environment = ui->environment.name,
		.colour = ui->environment.name ? ui->colour : NULL };

	ui_put_pass(body, ui, req);
	pr_page_plain(resp, &page, title, body);
	resp->status = status;
}

static void show(const struct ui *ui, struct pr_response *resp, int status, const char *why)
{
	struct pr_page page = { .environment = ui->environment.name,
		.colour = ui->environment.name ? ui->colour : NULL };
	struct pr_buf b = { 0 };
	char stamp[UI_ID + 32];

	ui_gate_stamp(ui->gate, pr_mono_us(), stamp);
	if (why)
		pr_buf_printf(&b, "<p role=\"alert\" class=\"wrong\">%s</p>", why);
	pr_buf_printf(&b,
		"<p>Whoever acts here needs write_token of the file that this page was started with.</p>"
		"<form class=\"act\" method=\"post\" action=\"/login\">"
		"<input type=\"hidden\" name=\"form\" value=\"%s\">"
		"<label for=\"who\">Your name, kept with what you do</label>"
		"<input id=\"who\" name=\"who\" maxlength=\"60\" autocomplete=\"username\">"
		"<label for=\"token\">Token</label><input id=\"token\" name=\"token\" type=\"password\" "
		"required "
		"maxlength=\"1000\" autocomplete=\"current-password\"><button>Log in</button></form>",
		stamp);
	pr_page_plain(resp, &page, "Log in", &b);
	resp->status = status;
}

void ui_login(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	(void)req;
	show(ctx, resp, 200, NULL);
}

/* Secure where the browser came by TLS, which a proxy ended. */
static void enter(const struct ui *ui, const struct pr_request *req, struct pr_response *resp, const char *id)
{
	const char *origin = pr_http_header(req, "Origin");

	(void)snprintf(resp->set_cookie, sizeof(resp->set_cookie),
		UI_COOKIE "=%s; HttpOnly; SameSite=Strict; Path=/; Max-Age=%lld%s", id,
		(long long)(ui->write_life_us / PR_SEC),
		origin && strncmp(origin, "https:", 6) == 0 ? "; Secure" : "");
	(void)snprintf(resp->location, sizeof(resp->location), "/");
	resp->status = 303;
}

static int is_name(const char *s)
{
	for (const char *c = s; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			return 0;
	return strlen(s) <= 60;
}

void ui_login_post(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	const char *stamp, *token, *who;
	struct ui *ui = ctx;
	struct pr_form f;
	char id[UI_ID];

	if (ui_posted(req, resp) < 0)
		return;
	if (pr_form_parse(&f, req->body, req->body_len) < 0) {
		show(ui, resp, 400, "That was no form of this page.");
		return;
	}
	stamp = pr_form_get(&f, "form", NULL);
	token = pr_form_get(&f, "token", NULL);
	who = pr_form_get(&f, "who", NULL);
	if (!stamp || !ui_gate_stamp_ok(ui->gate, pr_mono_us(), stamp)) {
		show(ui, resp, 403, "The form was too old. Here is a new one.");
	} else if (!token || (who && !is_name(who))) {
		show(ui, resp, 400, "A token, and a name of up to 60 bytes.");
	} else {
		switch (ui_gate_enter(ui->gate, pr_mono_us(), token, who ? who : "", id)) {
		case UI_IN:
			enter(ui, req, resp, id);
			break;
		case UI_WRONG:
			show(ui, resp, 403, "That is not the token.");
			break;
		case UI_TOO_MANY:
			show(ui, resp, 429, "Too many wrong tokens: nobody is let in for a minute.");
			resp->retry_after = 60;
		}
	}
	OPENSSL_cleanse(f.bytes, req->body_len);
	pr_form_free(&f);
}

void ui_logout_post(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct ui *ui = ctx;
	struct ui_pass pass;
	struct pr_form f;
	char id[UI_ID];
	const char *form;

	if (ui_posted(req, resp) < 0)
		return;
	if (pr_form_parse(&f, req->body, req->body_len) < 0) {
		pr_http_problem(resp, 400, "bad-request", "Bad request", "no form of this page");
		return;
	}
	form = pr_form_get(&f, "form", NULL);
	if (ui_pass(ui, req, &pass, id) < 0 || !form || !ui_same(form, pass.form)) {
		pr_http_problem(resp, 403, "no-pass", "Not logged in", "the form is none of this pass");
	} else {
		ui_gate_leave(ui->gate, id);
		(void)snprintf(resp->set_cookie, sizeof(resp->set_cookie),
			UI_COOKIE "=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0");
		(void)snprintf(resp->location, sizeof(resp->location), "/");
		resp->status = 303;
	}
	pr_form_free(&f);
}
