/* tests/unit/s3_sign_test.c -- signatures against what AWS has published: the examples of the S3 manual
 * ("Signature Calculations for the Authorization Header") and of the aws-sig-v4-test-suite. */
#include "lib/s3.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define DAY   "20130524T000000Z"
#define HOST  "host:examplebucket.s3.amazonaws.com"
#define DATE  "x-amz-date:" DAY

struct example {
	const char *method, *path, *query, *sha256, *headers[5], *names, *signature;
};

static void check(const struct pr_s3_sign *base, const struct example *x)
{
	struct pr_s3_sign s = *base;
	struct pr_buf b = { 0 }, want = { 0 };
	struct pr_err err;

	s.method = x->method;
	s.path = x->path;
	s.query = x->query;
	s.payload_sha256 = x->sha256;
	s.headers = x->headers;
	while (s.headers_n < 5 && x->headers[s.headers_n])
		s.headers_n++;
	assert_int_equal(pr_s3_sign(&b, &s, &err), 0);
	pr_buf_printf(&want,
		"AWS4-HMAC-SHA256 Credential=%s/%.8s/%s/%s/aws4_request,SignedHeaders=%s,Signature=%s",
		s.access_key, s.stamp, s.region, s.service, x->names, x->signature);
	assert_string_equal(b.s, want.s);
	pr_buf_free(&b);
	pr_buf_free(&want);
}

static void s3_manual(void **state)
{
	static const struct pr_s3_sign base = { .access_key = "AKIAIOSFODNN7EXAMPLE",
		.secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
		.region = "us-east-1",
		.service = "s3",
		.stamp = DAY };
	static const char welcome[] = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
	static const struct example examples[] = {
		{ "GET", "/test.txt", "", EMPTY,
			{ HOST, "range:bytes=0-9", "x-amz-content-sha256:" EMPTY, DATE },
			"host;range;x-amz-content-sha256;x-amz-date",
			"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41" },
		{ "PUT", "/test%24file.text", "", welcome,
			{ "date:Fri, 24 May 2013 00:00:00 GMT", HOST,
				"x-amz-content-sha256:"
				"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
				DATE, "x-amz-storage-class:REDUCED_REDUNDANCY" },
			"date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd" },
		{ "GET", "/", "lifecycle=", EMPTY, { HOST, "x-amz-content-sha256:" EMPTY, DATE },
			"host;x-amz-content-sha256;x-amz-date",
			"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543" },
		{ "GET", "/", "max-keys=2&prefix=J", EMPTY, { HOST, "x-amz-content-sha256:" EMPTY, DATE },
			"host;x-amz-content-sha256;x-amz-date",
			"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(examples) / sizeof(*examples); i++)
		check(&base, &examples[i]);
}

static void test_suite(void **state)
{
	static const struct pr_s3_sign base = { .access_key = "AKIDEXAMPLE",
		.secret_key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
		.region = "us-east-1",
		.service = "service",
		.stamp = "20150830T123600Z" };
	static const struct example examples[] = {
		{ "GET", "/", "", EMPTY, { "host:example.amazonaws.com", "x-amz-date:20150830T123600Z" },
			"host;x-amz-date",
			"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31" },
		{ "POST", "/", "", EMPTY, { "host:example.amazonaws.com", "x-amz-date:20150830T123600Z" },
			"host;x-amz-date",
			"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b" },
		{ "GET", "/", "Param1=value1&Param2=value2", EMPTY,
			{ "host:example.amazonaws.com", "x-amz-date:20150830T123600Z" }, "host;x-amz-date",
			"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(examples) / sizeof(*examples); i++)
		check(&base, &examples[i]);
}

static void encoding(void **state)
{
	struct pr_buf b = { 0 };

	(void)state;
	pr_s3_encode(&b, "orders/dt=2026-01-02/hour=07/3-0-9.ndjson", 1);
	assert_string_equal(b.s, "orders/dt%3D2026-01-02/hour%3D07/3-0-9.ndjson");
	b.len = 0;
	pr_s3_encode(&b, "a/b c+\xc3\xa4~", 0);
	assert_string_equal(b.s, "a%2Fb%20c%2B%C3%A4~");
	pr_buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(s3_manual),
		cmocka_unit_test(test_suite),
		cmocka_unit_test(encoding),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
