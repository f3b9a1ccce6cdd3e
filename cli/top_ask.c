/* cli/top_ask.c -- asks the programs for /status.json and /metrics, all at once, again and again. An answer
 * has a deadline and a bound; one that is away does not hold up the others. Refuses redirects and anything
 * but HTTP. */
#include "cli/top.h"

#include "lib/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_TOPICS 1000

int top_open(struct top *t, struct pr_err *err)
{
	const char *token;

	if (cli_token(t->c, &token, err) < 0)
		return -1;
	t->headers = cli_bearer(token);
	t->multi = curl_multi_init();
	for (int i = 0; i < t->n; i++) {
		struct top_program *p = &t->programs[i];

		p->curl = cli_request(t->c, NULL, cli_timeout(t->c), t->headers, &p->body);
		if (!t->multi || !p->curl)
			return pr_fail(err, PR_STOP, "libcurl cannot be set up");
		(void)curl_easy_setopt(p->curl, CURLOPT_PRIVATE, p);
	}
	return 0;
}

static void forget_topics(struct top_program *p)
{
	for (int i = 0; i < p->ntopics; i++)
		free(p->topics[i].name);
	free(p->topics);
	p->topics = NULL;
	p->ntopics = 0;
}

void top_close(struct top *t)
{
	for (int i = 0; i < t->n; i++) {
		struct top_program *p = &t->programs[i];

		if (p->busy)
			(void)curl_multi_remove_handle(t->multi, p->curl);
		curl_easy_cleanup(p->curl);
		forget_topics(p);
		pr_buf_free(&p->body);
		cJSON_Delete(p->root);
		free(p->url);
	}
	if (t->multi)
		(void)curl_multi_cleanup(t->multi);
	curl_slist_free_all(t->headers);
}

static void ask(struct top *t, struct top_program *p, const char *path)
{
	char *url = pr_asprintf("%s%s", p->url, path);

	p->body.len = 0;
	(void)curl_easy_setopt(p->curl, CURLOPT_URL, url);
	p->busy = curl_multi_add_handle(t->multi, p->curl) == CURLM_OK;
	free(url);
}

void top_begin(struct top *t, int64_t now)
{
	int running;

	for (int i = 0; i < t->n; i++) {
		struct top_program *p = &t->programs[i];

		if (p->busy || p->due_us > now)
			continue;
		p->metrics = 0;
		ask(t, p, "/status.json");
	}
	(void)curl_multi_perform(t->multi, &running);
}

int64_t top_wait_us(const struct top *t, int64_t now)
{
	int64_t wait = PR_SEC;

	for (int i = 0; i < t->n; i++)
		if (!t->programs[i].busy && t->programs[i].due_us - now < wait)
			wait = t->programs[i].due_us - now;
	return wait < 0 ? 0 : wait;
}

/* ---------------------------------------------------------------- answers */

static const struct top_topic *before(const struct top_topic *was, int n, const char *name)
{
	for (int i = 0; i < n; i++)
		if (strcmp(was[i].name, name) == 0)
			return &was[i];
	return NULL;
}

/* "postrider_published_total{topic="outbox.event.order",outbox="orders"} 17" */
static void take_line(
	struct top_program *p, const char *line, const struct top_topic *was, int nwas, double seconds)
{
	static const char name[] = "postrider_published_total{";
	const char *topic = strncmp(line, name, sizeof(name) - 1) == 0 ? strstr(line, "topic=\"") : NULL;
	const char *number = topic ? strstr(topic, "} ") : NULL;
	const struct top_topic *old;
	struct top_topic *now;

	if (!number || p->ntopics == MOST_TOPICS)
		return;
	p->topics = pr_realloc(p->topics, sizeof(*p->topics) * (size_t)(p->ntopics + 1));
	now = &p->topics[p->ntopics++];
	now->name = pr_asprintf("%.*s", (int)strcspn(topic + 7, "\"\n"), topic + 7);
	now->total = strtod(number + 2, NULL);
	old = before(was, nwas, now->name);
	now->rate = old && seconds > 0 ? fmax(0, (now->total - old->total) / seconds) : NAN;
}

static void take_metrics(struct top_program *p, int64_t now)
{
	struct top_program was = { .topics = p->topics, .ntopics = p->ntopics };
	double seconds = p->metrics_us ? (double)(now - p->metrics_us) / (double)PR_SEC : 0;

	p->topics = NULL;
	p->ntopics = 0;
	p->metrics_us = now;
	for (const char *line = p->body.len ? p->body.s : NULL; line && *line;
		line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
		take_line(p, line, was.topics, was.ntopics, seconds);
	forget_topics(&was);
}

static void take_status(struct top_program *p, long status)
{
	cJSON *root = status == 200 && p->body.len ? cJSON_Parse(p->body.s) : NULL;

	cJSON_Delete(p->root);
	p->root = root;
	if (top_text(p, "state")) {
		p->why[0] = '\0';
		return;
	}
	cJSON_Delete(root);
	p->root = NULL;
	(void)snprintf(p->why, sizeof(p->why),
		status == 401 ? "it wants a token: give its -c or set POSTRIDER_TOKEN"
			      : "answers, but not as a relay or a consumer does (status %ld)",
		status);
}

static void failed(struct top_program *p, CURLcode code)
{
	cJSON_Delete(p->root);
	p->root = NULL;
	(void)snprintf(p->why, sizeof(p->why), "does not answer: %s",
		code == CURLE_COULDNT_CONNECT      ? "nothing listens there"
		: code == CURLE_OPERATION_TIMEDOUT ? "no answer in time"
						   : curl_easy_strerror(code));
}

static void finish(struct top *t, struct top_program *p, CURLcode code, int64_t now)
{
	long status = 0;

	(void)curl_easy_getinfo(p->curl, CURLINFO_RESPONSE_CODE, &status);
	(void)curl_multi_remove_handle(t->multi, p->curl);
	p->busy = 0;
	p->due_us = now + t->every_us;
	if (p->metrics && code == CURLE_OK) {
		take_metrics(p, now);
	} else if (code != CURLE_OK) {
		failed(p, code);
	} else if (!p->metrics) {
		take_status(p, status);
		if (p->root) {
			p->metrics = 1;
			ask(t, p, "/metrics");
		}
	}
	p->answered = !p->busy;
}

int top_take(struct top *t, int64_t now)
{
	int running, left, n = 0;
	CURLMsg *m;

	(void)curl_multi_perform(t->multi, &running);
	while ((m = curl_multi_info_read(t->multi, &left))) {
		struct top_program *p = NULL;

		if (m->msg != CURLMSG_DONE)
			continue;
		(void)curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&p);
		finish(t, p, m->data.result, now);
		n++;
	}
	return n;
}

/* ---------------------------------------------------------------- what it said */

const char *top_text(const struct top_program *p, const char *name)
{
	const cJSON *item = p->root ? cJSON_GetObjectItemCaseSensitive(p->root, name) : NULL;

	const char *text = cJSON_GetStringValue(item);

	return text && *text ? text : NULL;
}

double top_number(const struct top_program *p, const char *name)
{
	const cJSON *item = p->root ? cJSON_GetObjectItemCaseSensitive(p->root, name) : NULL;

	return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

const char *top_state(const struct top_program *p)
{
	return p->root ? top_text(p, "state") : p->answered ? "away" : "asking";
}

int top_healthy(const struct top_program *p)
{
	const char *state = top_state(p);

	return state && (strcmp(state, "ok") == 0 || strcmp(state, "standby") == 0);
}
