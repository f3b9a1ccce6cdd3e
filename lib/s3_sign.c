/* lib/s3_sign.c -- AWS Signature Version 4. Pure: no clock, no network; tested with AWS' published examples.
 */
#include "lib/s3.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#define SUM 32

void pr_s3_hex(const unsigned char *p, size_t n, char *out)
{
	for (size_t i = 0; i < n; i++) {
		out[2 * i] = "0123456789abcdef"[p[i] >> 4];
		out[2 * i + 1] = "0123456789abcdef"[p[i] & 15];
	}
	out[2 * n] = '\0';
}

static int is_plain(char c, int slash)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
	       c == '_' || c == '.' || c == '~' || (slash && c == '/');
}

void pr_s3_encode(struct pr_buf *b, const char *s, int slash)
{
	for (; *s; s++) {
		if (is_plain(*s, slash))
			pr_buf_put(b, s, 1);
		else
			pr_buf_printf(b, "%%%02X", (unsigned char)*s);
	}
}

static int mac(const void *key, size_t key_len, const char *s, size_t n, unsigned char out[SUM])
{
	unsigned len = SUM;

	return HMAC(EVP_sha256(), key, (int)key_len, (const unsigned char *)s, n, out, &len) ? 0 : -1;
}

/* The key of that day, region and service. */
static int derive(const struct pr_s3_sign *s, unsigned char out[SUM])
{
	struct pr_buf b = { 0 };
	int rc;

	pr_buf_printf(&b, "AWS4%s", s->secret_key);
	rc = mac(b.s, b.len, s->stamp, 8, out) < 0 || mac(out, SUM, s->region, strlen(s->region), out) < 0 ||
	     mac(out, SUM, s->service, strlen(s->service), out) < 0 ||
	     mac(out, SUM, "aws4_request", strlen("aws4_request"), out) < 0;
	OPENSSL_cleanse(b.s, b.len);
	pr_buf_free(&b);
	return rc ? -1 : 0;
}

static void put_names(struct pr_buf *b, const struct pr_s3_sign *s)
{
	for (size_t i = 0; i < s->headers_n; i++) {
		if (i)
			pr_buf_put(b, ";", 1);
		pr_buf_put(b, s->headers[i], strcspn(s->headers[i], ":"));
	}
}

/* SHA-256 of the canonical request, hexadecimal. */
static int canonical(const struct pr_s3_sign *s, char out[2 * SUM + 1])
{
	unsigned char sum[EVP_MAX_MD_SIZE];
	struct pr_buf b = { 0 };
	int rc;

	pr_buf_printf(&b, "%s\n%s\n%s\n", s->method, s->path, s->query);
	for (size_t i = 0; i < s->headers_n; i++)
		pr_buf_printf(&b, "%s\n", s->headers[i]);
	pr_buf_puts(&b, "\n");
	put_names(&b, s);
	pr_buf_printf(&b, "\n%s", s->payload_sha256);
	rc = EVP_Digest(b.s, b.len, sum, NULL, EVP_sha256(), NULL) == 1 ? 0 : -1;
	if (rc == 0)
		pr_s3_hex(sum, SUM, out);
	pr_buf_free(&b);
	return rc;
}

int pr_s3_sign(struct pr_buf *b, const struct pr_s3_sign *s, struct pr_err *err)
{
	char request[2 * SUM + 1], hex[2 * SUM + 1];
	unsigned char key[SUM], signature[SUM];
	struct pr_buf scope = { 0 }, text = { 0 };
	int rc = -1;

	pr_buf_printf(&scope, "%.8s/%s/%s/aws4_request", s->stamp, s->region, s->service);
	if (canonical(s, request) < 0 || derive(s, key) < 0)
		goto out;
	pr_buf_printf(&text, "AWS4-HMAC-SHA256\n%s\n%s\n%s", s->stamp, scope.s, request);
	if (mac(key, SUM, text.s, text.len, signature) < 0)
		goto out;
	pr_s3_hex(signature, SUM, hex);
	pr_buf_printf(b, "AWS4-HMAC-SHA256 Credential=%s/%s,SignedHeaders=", s->access_key, scope.s);
	put_names(b, s);
	pr_buf_printf(b, ",Signature=%s", hex);
	rc = 0;
out:
	OPENSSL_cleanse(key, sizeof(key));
	pr_buf_free(&scope);
	pr_buf_free(&text);
	return rc == 0 ? 0 : pr_fail(err, PR_RETRY, "a request cannot be signed: out of memory");
}
