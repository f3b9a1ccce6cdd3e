/* lib/page.c -- the status page's document: head, the sentence of the worst trouble and what to do about it,
 * the rest of the trouble, the frame of everything else. Refuses to say "ok" for a program that does not
 * answer. Style and script are let in by their hashes, nothing else is. */
#include "lib/page_inner.h"

#include "lib/err.h"
#include "sql.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- words */

const cJSON *page_at(const cJSON *o, const char *name)
{
	return o ? cJSON_GetObjectItemCaseSensitive(o, name) : NULL;
}

const char *page_str(const cJSON *o, const char *name)
{
	const char *s = cJSON_GetStringValue(page_at(o, name));

	return s ? s : "";
}

double page_num(const cJSON *o, const char *name)
{
	const cJSON *v = page_at(o, name);

	return cJSON_IsNumber(v) ? v->valuedouble : NAN;
}

const char *page_name(const struct pr_part *p)
{
	const char *name = page_str(p->status, p->relay ? "name" : "group");

	return name[0] ? name : p->where ? p->where : "";
}

static const char *const states[] = { "ok", "standby", "stopping", "starting", "paused", "warn", "away",
	"error" };

enum { STATES = sizeof(states) / sizeof(*states), WARN = 5 };

int page_weight(const char *state)
{
	for (int i = 0; i < STATES; i++)
		if (strcmp(states[i], state) == 0)
			return i;
	return WARN; /* a word of a later version: worth a look */
}

/* One of our own words, whatever another program wrote. */
const char *page_state(const struct pr_part *p)
{
	return p->status ? states[page_weight(page_str(p->status, "state"))] : "away";
}

double page_rate(const struct pr_part *p)
{
	return page_num(page_at(p->status, "rates"), "events_per_second");
}

int page_handles(const struct pr_part *p, const char *kind)
{
	return !p->relay && strcmp(page_str(p->status, "handler"), kind) == 0;
}

const char *page_count(double n, char *buf)
{
	char digits[32];
	size_t len, at = 0;

	if (isnan(n)) {
		(void)snprintf(buf, 32, "not known");
		return buf;
	}
	len = (size_t)snprintf(digits, sizeof(digits), "%.0f", n > 1e15 ? 1e15 : n);
	for (size_t i = 0; i < len; i++) {
		if (i > 0 && (len - i) % 3 == 0)
			buf[at++] = ',';
		buf[at++] = digits[i];
	}
	buf[at] = '\0';
	return buf;
}

const char *page_span(double seconds, char *buf)
{
	long s = isnan(seconds) || seconds > 1e9 ? 1000000000 : (long)seconds;

	if (isnan(seconds))
		(void)snprintf(buf, 32, "not known");
	else if (seconds < 100)
		(void)snprintf(buf, 32, "%.1f s", seconds);
	else if (s < 3600)
		(void)snprintf(buf, 32, "%ld min %ld s", s / 60, s % 60);
	else if (s < 86400)
		(void)snprintf(buf, 32, "%ld h %ld min", s / 3600, s / 60 % 60);
	else
		(void)snprintf(buf, 32, "%ld d %ld h", s / 86400, s / 3600 % 24);
	return buf;
}

const char *page_per_second(double n, char *buf)
{
	char count[32];

	if (isnan(n))
		(void)snprintf(buf, 32, "not known");
	else if (n > 0 && n < 10)
		(void)snprintf(buf, 32, "%.1f/s", n);
	else
		(void)snprintf(buf, 32, "%.20s/s", page_count(n, count));
	return buf;
}

void pr_html_text(struct pr_buf *b, const char *text)
{
	size_t n;

	for (; *text; text += n) {
		n = strcspn(text, "<>&\"'");
		pr_buf_put(b, text, n);
		if (!text[n])
			break;
		pr_buf_printf(b, "&#%d;", text[n]);
		n++;
	}
}

/* ---------------------------------------------------------------- policy */

static char *policy;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* "'sha256-...'" of what stands between the tags, as a browser takes it. */
static void put_hash(struct pr_buf *b, const char *text)
{
	unsigned char sum[SHA256_DIGEST_LENGTH], hash[4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1];

	(void)SHA256((const unsigned char *)text, strlen(text), sum);
	(void)EVP_EncodeBlock(hash, sum, sizeof(sum));
	pr_buf_printf(b, " 'sha256-%s'", hash);
}

static void make_policy(void)
{
	struct pr_buf b = { 0 };

	pr_buf_puts(&b, "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
			"connect-src 'self'; style-src");
	put_hash(&b, css_page);
	pr_buf_puts(&b, "; script-src");
	put_hash(&b, js_page);
	policy = b.s; /* for as long as the process lives */
}

/* ---------------------------------------------------------------- health */

void page_icon(struct pr_buf *b, const char *state)
{
	int weight = page_weight(state);
	const char *shape =
		weight == 0                     ? "<circle cx=\"12\" cy=\"12\" r=\"11\"/>"
						  "<path d=\"M6.5 12.5l4 4 7-8.5\"/>"
		: weight >= page_weight("away") ? "<path class=\"f\" d=\"M7.5 1h9L23 7.5v9L16.5 23h-9L1 "
						  "16.5v-9z\"/><path d=\"M8 8l8 8m0-8l-8 8\"/>"
		: weight == page_weight("warn")
			? "<path class=\"f\" d=\"M12 1.5L23.5 22H.5z\"/><path d=\"M12 9v6m0 3v.5\"/>"
			: "<circle cx=\"12\" cy=\"12\" r=\"11\"/><path d=\"M9 8v8m6-8v8\"/>";

	pr_buf_printf(b, "<svg class=\"ic s-%s\" viewBox=\"0 0 24 24\" aria-hidden=\"true\">%s</svg>", state,
		shape);
}

int page_is_spare(const struct pr_page *page, const struct pr_part *p)
{
	if (strcmp(page_state(p), "standby") != 0)
		return 0;
	for (size_t i = 0; i < page->n; i++) {
		const struct pr_part *other = &page->parts[i];

		if (other->relay && cJSON_IsTrue(page_at(other->status, "leader")) &&
			strcmp(page_name(other), page_name(p)) == 0)
			return 1;
	}
	return 0;
}

static const struct pr_part *worst_of(const struct pr_page *page)
{
	const struct pr_part *worst = NULL;

	for (size_t i = 0; i < page->n; i++) {
		const struct pr_part *p = &page->parts[i];

		if (!page_is_spare(page, p) &&
			(!worst || page_weight(page_state(p)) > page_weight(page_state(worst))))
			worst = p;
	}
	return worst;
}

static void put_hint(struct pr_buf *b, const char *hint)
{
	if (!hint[0])
		return;
	pr_buf_puts(b, "<span class=\"do\">What to do: <code>");
	pr_html_text(b, hint);
	pr_buf_puts(b, "</code></span>");
}

static void put_sentence(struct pr_buf *b, const struct pr_part *p)
{
	pr_html_text(b, p->status ? page_str(p->status, "sentence") : p->why ? p->why : "it does not answer");
}

/* What else is wrong, besides the sentence that is told already. */
static void put_also(struct pr_buf *b, const struct pr_page *page, const struct pr_part *worst)
{
	const cJSON *p, *problems;

	for (size_t i = 0; i < page->n; i++) {
		const struct pr_part *part = &page->parts[i];
		int silent = part == worst || page_weight(page_state(part)) <= page_weight("standby");

		if (!silent) {
			pr_buf_printf(b, "<li class=\"s-%s\"><b>", page_state(part));
			pr_html_text(b, page_name(part));
			pr_buf_printf(b, " (%s)</b>: ", page_state(part));
			put_sentence(b, part);
			put_hint(b, page_str(part->status, "hint"));
			pr_buf_puts(b, "</li>");
		}
		problems = page_at(part->status, "problems");
		cJSON_ArrayForEach(p, problems)
		{
			if (strcmp(page_str(p, "text"), page_str(part->status, "sentence")) == 0)
				continue;
			pr_buf_printf(b, "<li class=\"s-%s\"><b>",
				page_str(p, "severity")[0] == 'e' ? "error" : "warn");
			pr_html_text(b, page_str(p, "what"));
			pr_buf_puts(b, "</b>: ");
			pr_html_text(b, page_str(p, "text"));
			put_hint(b, page_str(p, "hint"));
			pr_buf_puts(b, "</li>");
		}
	}
}

static const char *word_of(const struct pr_part *p)
{
	return p->relay ? "Outbox" : page_handles(p, "sink") ? "Sink" : "Consumer";
}

static void put_health(struct pr_buf *b, const struct pr_page *page, const struct pr_part *worst)
{
	const char *state = worst ? page_state(worst) : "away";
	struct pr_buf also = { 0 };

	pr_buf_printf(b, "<section id=\"health\" class=\"s-%s\" data-state=\"%s\" aria-labelledby=\"state\">",
		state, state);
	page_icon(b, state);
	pr_buf_puts(b, "<div><h1 id=\"state\">");
	if (page->n == 1) {
		pr_html_text(b, word_of(worst));
		pr_buf_puts(b, " ");
		pr_html_text(b, page_name(worst));
		pr_buf_puts(b, ": ");
	}
	pr_buf_printf(b, "%s</h1><p id=\"sentence\">", strcmp(state, "away") == 0 ? "no answer" : state);
	if (page->n > 1 && page_weight(state) == 0) {
		pr_buf_printf(b, "everything flows through %zu programs", page->n);
	} else if (worst) {
		if (page->n > 1) {
			pr_html_text(b, page_name(worst));
			pr_buf_puts(b, ": ");
		}
		put_sentence(b, worst);
		put_hint(b, page_str(worst->status, "hint"));
	} else {
		pr_buf_puts(b, "no program is named in the configuration");
	}
	pr_buf_puts(b, "</p>");
	put_also(&also, page, worst);
	if (also.len) {
		pr_buf_puts(b, "<ul id=\"also\">");
		pr_buf_put(b, also.s, also.len);
		pr_buf_puts(b, "</ul>");
	}
	pr_buf_free(&also);
	pr_buf_puts(b, "</div></section>");
}

/* ---------------------------------------------------------------- the document */

static void put_head(struct pr_buf *b, const char *name, const char *what, int again)
{
	pr_buf_puts(b, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
		       "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
		       "<meta name=\"color-scheme\" content=\"light dark\">");
	if (again)
		pr_buf_puts(b, "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>");
	pr_buf_puts(b, "<title>");
	pr_html_text(b, name);
	pr_buf_printf(b, ": %s</title><style>%s</style></head><body>", what, css_page);
}

/* Which environment this is, so that nobody takes the one for the other. */
static void put_banner(struct pr_buf *b, const struct pr_page *page)
{
	const cJSON *own = page->n ? page_at(page->parts[0].status, "environment") : NULL;
	const char *name = page->environment ? page->environment : page_str(own, "name");
	const char *colour = page->colour ? page->colour : page_str(own, "colour");

	pr_buf_puts(b, "<a class=\"skip\" href=\"#main\">To the content</a><header class=\"e-");
	pr_html_text(b, colour[0] ? colour : "none");
	pr_buf_puts(b, "\"><b>Postrider</b>");
	if (name[0]) {
		pr_buf_puts(b, "<span class=\"env\"><span class=\"sr\">Environment: </span>");
		pr_html_text(b, name);
		pr_buf_puts(b, "</span>");
	}
	pr_buf_puts(b, "<span id=\"age\" class=\"age\"></span>"
		       "<button type=\"button\" id=\"hold\" aria-pressed=\"false\" hidden>Pause</button>"
		       "<button type=\"button\" id=\"theme\" hidden>Dark</button></header>"
		       "<p id=\"stale\" role=\"alert\" hidden></p><p id=\"say\" class=\"sr\" "
		       "aria-live=\"polite\"></p>");
}

/* Takes what was written so far. */
static void finish(struct pr_response *resp, struct pr_buf *b, const char *note)
{
	(void)pthread_once(&once, make_policy);
	pr_buf_printf(b,
		"</main><footer><p>Postrider " PR_VERSION
		".%s</p></footer><script>%s</script></body></html>\n",
		note, js_page);
	resp->content_type = "text/html; charset=utf-8";
	resp->policy = policy;
	resp->body = b->s;
	resp->body_len = b->len;
}

void pr_page_show(struct pr_response *resp, const struct pr_page *page)
{
	const struct pr_part *worst = worst_of(page);
	struct pr_buf b = { 0 };

	put_head(&b, page->n == 1 ? page_name(worst) : "Postrider", worst ? page_state(worst) : "away", 1);
	put_banner(&b, page);
	pr_buf_puts(&b, "<main id=\"main\">");
	put_health(&b, page, worst);
	page_picture(&b, page);
	if (page->more)
		page->more(&b, page->ctx);
	for (size_t i = 0; i < page->n; i++)
		page_part(&b, &page->parts[i], i);
	finish(resp, &b,
		page->more ? "" : " What stands here is what <a href=\"/status.json\">status.json</a> says.");
}

void pr_page_plain(
	struct pr_response *resp, const struct pr_page *page, const char *title, struct pr_buf *body)
{
	struct pr_buf b = { 0 };

	put_head(&b, "Postrider", title, 0);
	put_banner(&b, page);
	pr_buf_printf(
		&b, "<main id=\"main\"><nav><a href=\"/\">All programs</a></nav><section><h1>%s</h1>", title);
	if (body->len)
		pr_buf_put(&b, body->s, body->len);
	pr_buf_free(body);
	pr_buf_puts(&b, "</section>");
	finish(resp, &b, "");
}

void pr_page_own(struct pr_response *resp, int relay, struct pr_buf *status, struct pr_history *h)
{
	struct pr_buf past = { 0 };
	struct pr_part part = { .relay = relay };
	cJSON *now, *hour;

	pr_history_put(h, &past);
	now = cJSON_ParseWithLength(status->s, status->len);
	hour = cJSON_ParseWithLength(past.s, past.len);
	part.status = now;
	part.history = hour;
	pr_page_show(resp, &(struct pr_page){ .parts = &part, .n = 1 });
	cJSON_Delete(now);
	cJSON_Delete(hour);
	pr_buf_free(&past);
	pr_buf_free(status);
}

void pr_page_history(void *ctx, const struct pr_request *req, struct pr_response *resp)
{
	struct pr_buf b = { 0 };

	(void)req;
	pr_history_put(ctx, &b);
	pr_buf_puts(&b, "\n");
	resp->body = b.s;
	resp->body_len = b.len;
}

void pr_page_environment(struct pr_buf *b, const char *name, int colour)
{
	const char *word = PR_PAGE_COLOURS;

	for (; colour > 0 && word; colour--)
		word = strchr(word, '|') + 1;
	pr_buf_puts(b, ",\"environment\":{\"name\":");
	pr_buf_json(b, name ? name : "", name ? strlen(name) : 0);
	pr_buf_printf(b, ",\"colour\":\"%.*s\"}", (int)strcspn(word, "|"), word);
}
