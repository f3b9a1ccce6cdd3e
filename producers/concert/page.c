/* producers/concert/page.c -- serves the box office (page.html) and tells it where the services are. The
 * page's policy lets it run its own script, by its hash, and talk to these services, and nothing else.
 * Refuses addresses that could break out of that policy. */
#include "producers/concert/page.h"

#include "lib/json.h"
#include "sql.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

static char *policy, *services;

/* "'sha256-...'" of what stands between the tags, as a browser takes it. */
static void put_hash(struct pr_buf *b, const char *open, const char *close)
{
	const char *begin = strstr(html_concert_page, open) + strlen(open), *end = strstr(begin, close);
	unsigned char sum[SHA256_DIGEST_LENGTH], text[4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1];

	(void)SHA256((const unsigned char *)begin, (size_t)(end - begin), sum);
	(void)EVP_EncodeBlock(text, sum, sizeof(sum));
	pr_buf_printf(b, " 'sha256-%s'", text);
}

static int is_address(const char *s)
{
	if (strncmp(s, "http://", 7) != 0 && strncmp(s, "https://", 8) != 0)
		return 0;
	for (; *s; s++)
		if (*s <= ' ' || *s == 0x7f || strchr(";,'\"<>\\", *s))
			return 0;
	return s[-1] != '/';
}

int page_begin(const struct page_conf *conf, struct pr_err *err)
{
	const struct {
		const char *name, *url;
	} all[] = { { "user", conf->user }, { "queue", conf->queue }, { "reservation", conf->reservation },
		{ "payment", conf->payment }, { "order", conf->order }, { "push", conf->push } };
	struct pr_buf p = { 0 }, s = { 0 };

	pr_buf_puts(&p, "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
			"img-src data:; style-src");
	put_hash(&p, "<style>", "</style>");
	pr_buf_puts(&p, "; script-src");
	put_hash(&p, "<script>", "</script>");
	pr_buf_puts(&p, "; connect-src 'self'");
	pr_buf_puts(&s, "{\"services\":{\"concert\":\"\"");
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (!is_address(all[i].url)) {
			free(p.s);
			free(s.s);
			(void)pr_fail(err, PR_STOP, "page.%s is no address of http: \"%s\"", all[i].name,
				all[i].url);
			if (err)
				err->exit = PR_EX_CONFIG;
			return pr_hint(err, "write it as http://127.0.0.1:8081, without a slash at the end");
		}
		pr_buf_printf(&p, " %s", all[i].url);
		pr_buf_printf(&s, ",\"%s\":\"%s\"", all[i].name, all[i].url);
	}
	pr_buf_puts(&s, "}}\n");
	policy = p.s;
	services = s.s;
	return 0;
}

void page_end(void)
{
	free(policy);
	free(services);
	policy = services = NULL;
}

int page_show(struct pr_call *call)
{
	struct pr_response *resp = call->resp;

	resp->content_type = "text/html; charset=utf-8";
	resp->cache_control = "no-cache";
	resp->policy = policy;
	resp->body = pr_strdup(html_concert_page);
	resp->body_len = strlen(resp->body);
	return 1;
}

int page_config(struct pr_call *call)
{
	return pr_call_answer(call, 200, pr_strdup(services));
}
