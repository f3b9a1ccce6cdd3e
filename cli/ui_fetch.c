/* cli/ui_fetch.c -- asks each program for its status and its hour, all at the same time, with one deadline
 * for all. Refuses redirects, answers that are too large, and to take what is no JSON for an answer. */
#include "cli/ui.h"

#include "lib/clock.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

struct ask {
	struct pr_buf body;
	CURL *curl;
	CURLcode code;
	char *url;
};

size_t ui_programs(const struct ui *ui)
{
	return ui->relays.n + ui->consumers.n;
}

static const char *address(const struct ui *ui, size_t i)
{
	return i < ui->relays.n ? ui->relays.v[i] : ui->consumers.v[i - ui->relays.n];
}

static void begin(const struct ui *ui, CURLM *all, struct curl_slist *headers, struct ask *a, size_t i,
	const char *path)
{
	a->url = pr_asprintf("%s%s", address(ui, i), path);
	a->code = CURLE_OPERATION_TIMEDOUT;
	a->curl = cli_request(NULL, &ui->tls, ui->timeout_us, headers, &a->body);
	(void)curl_easy_setopt(a->curl, CURLOPT_URL, a->url);
	(void)curl_easy_setopt(a->curl, CURLOPT_PRIVATE, a);
	(void)curl_easy_setopt(a->curl, CURLOPT_FAILONERROR, 1L);
	(void)curl_easy_setopt(a->curl, CURLOPT_USERAGENT, "postrider-ui/" PR_VERSION);
	(void)curl_multi_add_handle(all, a->curl);
}

/* Each has its own deadline: it ends with the last of them. */
static void run(CURLM *all)
{
	int running = 1, left;
	struct ask *a;
	CURLMsg *m;

	while (running && curl_multi_perform(all, &running) == CURLM_OK) {
		while ((m = curl_multi_info_read(all, &left))) {
			if (m->msg == CURLMSG_DONE &&
				curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &a) == CURLE_OK)
				a->code = m->data.result;
		}
		if (running && curl_multi_poll(all, NULL, 0, 100, NULL) != CURLM_OK)
			break;
	}
}

static void judge(
	const struct ui *ui, size_t i, const struct ask *a, struct pr_part *part, struct ui_answer *answer)
{
	long status = 0;

	if (a[0].code == CURLE_OK && a[0].body.s)
		answer->status = cJSON_ParseWithLength(a[0].body.s, a[0].body.len);
	if (a[1].code == CURLE_OK && a[1].body.s)
		answer->history = cJSON_ParseWithLength(a[1].body.s, a[1].body.len);
	(void)curl_easy_getinfo(a[0].curl, CURLINFO_RESPONSE_CODE, &status);
	if (status >= 400)
		(void)snprintf(answer->why, sizeof(answer->why), "it answers with status %ld%s", status,
			status == 401 ? ": the token is not its own" : "");
	else
		(void)snprintf(answer->why, sizeof(answer->why), "it does not answer: %s",
			a[0].code == CURLE_COULDNT_CONNECT      ? "nothing listens there"
			: a[0].code == CURLE_OPERATION_TIMEDOUT ? "no answer in time"
			: a[0].code == CURLE_OK                 ? "what it says is no status"
								: curl_easy_strerror(a[0].code));
	if (answer->status && !cJSON_IsString(cJSON_GetObjectItem(answer->status, "state"))) {
		cJSON_Delete(answer->status);
		answer->status = NULL;
	}
	*part = (struct pr_part){ .relay = i < ui->relays.n,
		.where = address(ui, i),
		.status = answer->status,
		.history = answer->history,
		.why = answer->why };
}

void ui_fetch(const struct ui *ui, struct pr_part *parts, struct ui_answer *answers)
{
	size_t n = ui_programs(ui);
	struct ask *asks = pr_calloc(2 * n, sizeof(*asks));
	struct curl_slist *headers = cli_bearer(ui->token);
	CURLM *all = curl_multi_init();

	memset(answers, 0, n * sizeof(*answers));
	for (size_t i = 0; i < n; i++) {
		begin(ui, all, headers, &asks[2 * i], i, "/status.json");
		begin(ui, all, headers, &asks[2 * i + 1], i, "/history.json");
	}
	run(all);
	for (size_t i = 0; i < n; i++)
		judge(ui, i, &asks[2 * i], &parts[i], &answers[i]);
	for (size_t i = 0; i < 2 * n; i++) {
		(void)curl_multi_remove_handle(all, asks[i].curl);
		curl_easy_cleanup(asks[i].curl);
		pr_buf_free(&asks[i].body);
		free(asks[i].url);
	}
	(void)curl_multi_cleanup(all);
	curl_slist_free_all(headers);
	free(asks);
}

void ui_release(struct ui_answer *answers, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		cJSON_Delete(answers[i].status);
		cJSON_Delete(answers[i].history);
	}
}
