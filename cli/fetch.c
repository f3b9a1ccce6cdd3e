/* cli/fetch.c -- one GET to the relay or a consumer, with a deadline and a bound on the answer.
 * Refuses redirects and anything but HTTP: the address may come from a file. */
#include "cli/cli.h"
#include "lib/clock.h"
#include "lib/json.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ANSWER (4 << 20)

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
	struct pr_buf *b = ctx;

	if (b->len + size * n > MAX_ANSWER)
		return 0;
	pr_buf_put(b, data, size * n);
	return size * n;
}

static struct curl_slist *headers(const struct cli *c)
{
	const char *token = c->loaded            ? c->conf.http.token
			    : c->consumer_loaded ? c->consumer.http.token
						 : NULL;
	struct curl_slist *list = NULL;
	char *line;

	if (!token || !*token)
		token = getenv("POSTRIDER_TOKEN");
	if (!token || !*token)
		return NULL;
	line = pr_asprintf("Authorization: Bearer %s", token);
	list = curl_slist_append(NULL, line);
	free(line);
	return list;
}

static void set_up(
	CURL *curl, const struct cli *c, const char *url, struct curl_slist *list, struct pr_buf *b)
{
	(void)curl_easy_setopt(curl, CURLOPT_URL, url);
	(void)curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list);
	(void)curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	(void)curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
	(void)curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	(void)curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	(void)curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(cli_timeout(c) / PR_MS));
	(void)curl_easy_setopt(curl, CURLOPT_USERAGENT, "postrider/" PR_VERSION);
	(void)curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
	(void)curl_easy_setopt(curl, CURLOPT_WRITEDATA, b);
}

int cli_fetch(const struct cli *c, const char *url, const char *path, int *ret_status, char **ret_body,
	struct pr_err *err)
{
	char *full = pr_asprintf("%s%s", url, path);
	struct curl_slist *list = headers(c);
	struct pr_buf b = { 0 };
	CURL *curl = curl_easy_init();
	CURLcode code = CURLE_OUT_OF_MEMORY;
	long status = 0;

	if (curl) {
		set_up(curl, c, full, list, &b);
		code = curl_easy_perform(curl);
		(void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	}
	curl_easy_cleanup(curl);
	curl_slist_free_all(list);
	free(full);
	if (code != CURLE_OK) {
		(void)pr_fail(err, PR_RETRY, "the %s does not answer at %s: %s",
			c->consumer_loaded ? "consumer" : "relay", url,
			code == CURLE_COULDNT_CONNECT      ? "nothing listens there"
			: code == CURLE_OPERATION_TIMEDOUT ? "no answer in time"
							   : curl_easy_strerror(code));
		pr_buf_free(&b);
		return -1;
	}
	*ret_status = (int)status;
	*ret_body = b.s ? b.s : pr_strdup("");
	return 0;
}
