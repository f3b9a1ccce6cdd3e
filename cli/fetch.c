/* cli/fetch.c -- one GET to the relay or a consumer, with a deadline and a bound on the answer, and what each
 * such request has.
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

struct curl_slist *cli_bearer(const char *token)
{
	struct curl_slist *list;
	char *line;

	if (!token)
		return NULL;
	line = pr_asprintf("Authorization: Bearer %s", token);
	list = curl_slist_append(NULL, line);
	free(line);
	return list;
}

CURL *cli_request(const struct cli *c, const struct cli_tls *tls, int64_t timeout_us,
	struct curl_slist *headers, struct pr_buf *body)
{
	CURL *curl = curl_easy_init();

	if (!curl)
		return NULL;
	(void)curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	(void)curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	(void)curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
	(void)curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	(void)curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	(void)curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(timeout_us / PR_MS));
	(void)curl_easy_setopt(curl, CURLOPT_USERAGENT, "postrider/" PR_VERSION);
	(void)curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
	(void)curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
	cli_tls(curl, c, tls);
	return curl;
}

int cli_fetch(struct cli *c, const char *url, const char *path, int *ret_status, char **ret_body,
	struct pr_err *err)
{
	struct curl_slist *list = NULL;
	struct pr_buf b = { 0 };
	const char *token;
	char *full;
	CURL *curl;
	CURLcode code = CURLE_OUT_OF_MEMORY;
	long status = 0;

	if (cli_token(c, &token, err) < 0)
		return -1;
	full = pr_asprintf("%s%s", url, path);
	list = cli_bearer(token);
	curl = cli_request(c, NULL, cli_timeout(c), list, &b);
	if (curl) {
		(void)curl_easy_setopt(curl, CURLOPT_URL, full);
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
