/* consumers/webhook_answer.c -- reads an answer and says what it means for the message. Refuses to read more
 * than response_bytes of body and HEAD_MAX of head; the body only explains a failure.
 *
 * A status decides as soon as its head is there: a failure whose body is broken, slow or too long is still
 * that status, and a 2xx whose body is too long is cut and handled (it would be as long the next time).
 * Only a 2xx whose body breaks off or is late counts as no answer, for then the receiver may have died. */
#include "consumers/outcome.h"
#include "consumers/webhook.h"

#include "lib/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEAD_MAX        (64 * 1024)       /* of one answer, interim ones (1xx) included */
#define RETRY_AFTER_MAX (3600LL * PR_SEC) /* whoever asks for more gets this */

static int is_retry_after(const char *line, size_t len)
{
	static const char name[] = "retry-after:";

	return len > sizeof(name) - 1 && strncasecmp(line, name, sizeof(name) - 1) == 0;
}

/* Seconds, or a date; 0: neither, or it has passed. */
static int64_t retry_after(const char *value, size_t len, int64_t now_us)
{
	char text[64];
	size_t digits;
	int64_t us;

	while (len > 0 && (*value == ' ' || *value == '\t'))
		value++, len--;
	while (len > 0 && strchr(" \t\r\n", value[len - 1]))
		len--;
	(void)snprintf(text, sizeof(text), "%.*s", (int)(len < sizeof(text) ? len : sizeof(text) - 1), value);
	digits = strspn(text, "0123456789");
	if (digits > 0 && !text[digits]) {
		us = digits > 5 ? RETRY_AFTER_MAX : atoll(text) * PR_SEC;
	} else {
		time_t date = curl_getdate(text, NULL);

		us = date < 0 ? 0 : (int64_t)date * PR_SEC - now_us;
	}
	return us < 0 ? 0 : us > RETRY_AFTER_MAX ? RETRY_AFTER_MAX : us;
}

size_t webhook_on_head(char *line, size_t size, size_t n, void *ctx)
{
	struct request *req = ctx;
	size_t len = size * n;

	req->head_len += len;
	if (req->head_len > HEAD_MAX) {
		req->flooded = 1;
		return 0;
	}
	if (len >= 5 && memcmp(line, "HTTP/", 5) == 0)
		req->retry_after_us = 0; /* what an interim answer said */
	else if (is_retry_after(line, len))
		req->retry_after_us = retry_after(line + 12, len - 12, pr_wall_us());
	return len;
}

size_t webhook_on_body(char *data, size_t size, size_t n, void *ctx)
{
	struct request *req = ctx;
	size_t len = size * n, room = sizeof(req->body) - req->kept;

	req->body_len += len;
	for (size_t i = 0; i < len && i < room; i++)
		req->body[req->kept++] = data[i] ? data[i] : ' '; /* a NUL would end the text */
	if (req->body_len <= (size_t)req->h->env.conf->handler.response_bytes)
		return len;
	req->cut = 1;
	return 0;
}

static void fail_status(const struct request *req, long status, struct outcome *out)
{
	int redirect = status >= 300 && status < 400;
	char code[16];

	(void)snprintf(code, sizeof(code), "%03ld", status);
	outcome_fail(out, PR_FAIL_HTTP, code, "%s answers %s%s%.*s", req->h->where, code,
		redirect    ? " (redirects are not followed)"
		: req->kept ? ": "
			    : "",
		redirect ? 0 : (int)req->kept, req->body);
	out->retry_after_us = req->retry_after_us;
}

static int64_t reached(const struct request *req, CURLINFO what)
{
	curl_off_t us = 0;

	(void)curl_easy_getinfo(req->easy, what, &us);
	return us;
}

/* What it was waiting for when its time was up; the request's own code when that was the answer. */
static const char *late_code(const struct request *req)
{
	long sent = 0;

	(void)curl_easy_getinfo(req->easy, CURLINFO_REQUEST_SIZE, &sent);
	if (sent > 0)
		return "";
	if (reached(req, CURLINFO_NAMELOOKUP_TIME_T) == 0)
		return "dns";
	return reached(req, CURLINFO_CONNECT_TIME_T) == 0 ? "connect" : "tls";
}

static const char *silent_code(const struct request *req, CURLcode code)
{
	switch (code) {
	case CURLE_COULDNT_RESOLVE_HOST:
		return "dns";
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CIPHER:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_INVALIDCERTSTATUS:
	case CURLE_SSL_CLIENTCERT:
		return "tls";
	case CURLE_OPERATION_TIMEDOUT:
		return late_code(req);
	default:
		return "connect";
	}
}

/* libcurl's own words; those of a refused or late connection hold the milliseconds it took, and then no two
 * failures read the same. */
static const char *silent_words(const struct request *req, CURLcode code)
{
	if (req->flooded)
		return "the head of its answer is too long";
	if (code == CURLE_UNSUPPORTED_PROTOCOL)
		return "its answer is not HTTP";
	if (code == CURLE_OPERATION_TIMEDOUT || code == CURLE_COULDNT_CONNECT || !req->problem[0])
		return curl_easy_strerror(code);
	return req->problem;
}

static void fail_silent(const struct request *req, CURLcode code, struct outcome *out)
{
	const char *word = silent_code(req, code);

	if (*word)
		outcome_fail(out, PR_FAIL_HTTP, word, "no answer from %s: %s", req->h->where,
			silent_words(req, code));
	else
		outcome_fail(out, PR_FAIL_TIMEOUT, "", "%s did not answer within %lld ms", req->h->where,
			(long long)(req->h->env.conf->handler.timeout_us / PR_MS));
}

int webhook_judge(const struct request *req, CURLcode code, struct outcome *out)
{
	long status = 0;

	(void)curl_easy_getinfo(req->easy, CURLINFO_RESPONSE_CODE, &status);
	if (!req->flooded && status >= 200 && status < 300 && (code == CURLE_OK || req->cut))
		return 1;
	if (!req->flooded && status > 0 && (status < 200 || status >= 300)) {
		fail_status(req, status, out);
		return 1;
	}
	fail_silent(req, code, out);
	return 0;
}
