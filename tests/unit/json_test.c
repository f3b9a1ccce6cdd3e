/* tests/unit/json_test.c -- lib/json.c by table, and against Python's json: the fuzz corpus and
 * some thousands of mutations of it must be accepted or refused alike, with equal values. */
#include "lib/err.h"
#include "lib/json.h"
#include "lib/json_read.h"

#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define CORPUS "tests/fuzz/corpus/json"

/* --- what the callback saw, as "name=value;", null as "name;" --- */

static int note(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	struct pr_buf *out = ctx;

	pr_buf_put(out, name, name_len);
	if (is_null) {
		assert_int_equal(value_len, 4);
		assert_memory_equal(value, "null", 4);
	} else {
		pr_buf_puts(out, "=");
		pr_buf_put(out, value, value_len);
	}
	pr_buf_puts(out, ";");
	return 0;
}

/* An exact copy on the heap, so that the sanitizers see a read behind the end. */
static int flat(const char *text, size_t len, struct pr_buf *out)
{
	struct pr_buf scratch = { 0 };
	char *copy = pr_malloc(len);
	int rc;

	memcpy(copy, text, len);
	rc = pr_json_flat(copy, len, &scratch, note, out);
	free(copy);
	pr_buf_free(&scratch);
	return rc;
}

static void accepts(void **state)
{
	static const char *const t[][2] = {
		{ "{}", "" },
		{ " {\n} \t\r", "" },
		{ "{\"a\":\"b\"}", "a=b;" },
		{ "{ \"a\" : 1 , \"b\" : null,\"c\":true }", "a=1;b;c=true;" },
		{ "{\"a\":\"null\",\"b\":null}", "a=null;b;" },
		{ "{\"a\":{\"x\": [1, \"\\u0041\"]},\"b\":[]}", "a={\"x\": [1, \"\\u0041\"]};b=[];" },
		{ "{\"a\":-0.5e+10}", "a=-0.5e+10;" },
		{ "{\"a\":1,\"a\":2}", "a=1;a=2;" },
		{ "{\"\":\"\"}", "=;" },
		{ "{\"\\u0041\\n\":\"\\\"\\\\\\/\\b\\f\\r\\t\"}", "A\n=\"\\/\b\f\r\t;" },
		{ "{\"a\":\"x\\u00e9\\u20ac\\ud83d\\ude00y\"}", "a=x\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80y;" },
		{ "{\"a\":\"\xf0\x9f\x98\x80\\t\"}", "a=\xf0\x9f\x98\x80\t;" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct pr_buf out = { 0 };

		pr_buf_puts(&out, "");
		if (flat(t[i][0], strlen(t[i][0]), &out) != 0)
			fail_msg("refused %s", t[i][0]);
		assert_string_equal(out.s, t[i][1]);
		pr_buf_free(&out);
	}
}

static void refuses(void **state)
{
	static const char *const t[] = { "", " ", "{", "}", "[]", "1", "null", "\"a\"", "{} {}", "{}x",
		"{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}", "{\"a\":1 \"b\":2}", "{a:1}", "{'a':1}", "{1:2}",
		"{\"a\":01}", "{\"a\":1.}", "{\"a\":.5}", "{\"a\":+1}", "{\"a\":-}", "{\"a\":1e}",
		"{\"a\":1e+}", "{\"a\":0x1}", "{\"a\":--1}", "{\"a\":nul}", "{\"a\":nullx}", "{\"a\":True}",
		"{\"a\":NaN}", "{\"a\":Infinity}", "{\"a\":\"\t\"}", "{\"a\":\"\x01\"}", "{\"a\n\":1}",
		"{\"a\":\"\\x\"}", "{\"a\":\"\\u12\"}", "{\"a\":\"\\u12g4\"}", "{\"a\":\"\\ud83d\"}",
		"{\"a\":\"\\ude00\"}", "{\"a\":\"\\ud83d\\u0041\"}", "{\"a\":\"\\ud83d\\ud83d\"}",
		"{\"a\":\"\\ud83dxude00\"}", "{\"a\":\"\xc0\x80\"}", "{\"a\":\"\xed\xa0\x80\"}",
		"{\"a\":\"\xf4\x90\x80\x80\"}", "{\"a\":\"\xff\"}", "{\"a\":\"\xe2\x82\"}", "{\"a\":[1,]}",
		"{\"a\":[1 2]}", "{\"a\":{\"b\"}}", "{\"a\":[}", "{\"a\":{]}", "{\"a\":[\"\\ud83d\"]}",
		"{\"a\":[01]}", "\xef\xbb\xbf{}" };

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct pr_buf out = { 0 };

		if (flat(t[i], strlen(t[i]), &out) != -1)
			fail_msg("accepted %s", t[i]);
		pr_buf_free(&out);
	}
	assert_int_equal(pr_json_flat("{}\0", 3, NULL, note, NULL), -1);
}

/* Every prefix of a valid text is not one. */
static void refuses_cut_texts(void **state)
{
	static const char text[] =
		"{\"a\\u0041\":[{\"b\":-1.5e3},\"\\ud83d\\ude00\",null],\"c\":\"\xe2\x82\xac\"}";

	(void)state;
	for (size_t n = 0; n < sizeof(text) - 1; n++) {
		struct pr_buf out = { 0 };

		assert_int_equal(flat(text, n, &out), -1);
		pr_buf_free(&out);
	}
}

static void bounds_depth(void **state)
{
	(void)state;
	for (int depth = 511; depth <= 513; depth++) {
		struct pr_buf doc = { 0 }, out = { 0 };

		pr_buf_puts(&doc, "{\"a\":");
		for (int i = 0; i < depth; i++)
			pr_buf_puts(&doc, i % 2 ? "[" : "{\"b\":");
		pr_buf_puts(&doc, "1");
		for (int i = depth; i-- > 0;)
			pr_buf_puts(&doc, i % 2 ? "]" : "}");
		pr_buf_puts(&doc, "}");
		assert_int_equal(flat(doc.s, doc.len, &out), depth <= 512 ? 0 : -1);
		pr_buf_free(&doc);
		pr_buf_free(&out);
	}
}

static int stop_at_b(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	(void)value;
	(void)value_len;
	(void)is_null;
	++*(int *)ctx;
	return name_len == 1 && *name == 'b' ? 42 : 0;
}

static void stops_when_told(void **state)
{
	static const char text[] = "{\"a\":1,\"b\":2,\"c\":3}", broken[] = "{\"a\":1,\"b\":2x";
	struct pr_buf scratch = { 0 };
	int calls = 0;

	(void)state;
	assert_int_equal(pr_json_flat(text, sizeof(text) - 1, &scratch, stop_at_b, &calls), 42);
	assert_int_equal(calls, 2);
	/* A member is reported only when what follows it is right. */
	calls = 0;
	assert_int_equal(pr_json_flat(broken, sizeof(broken) - 1, &scratch, stop_at_b, &calls), -1);
	assert_int_equal(calls, 1);
	pr_buf_free(&scratch);
}

static void buffers(void **state)
{
	struct pr_buf b = { 0 };

	(void)state;
	pr_buf_puts(&b, "");
	assert_string_equal(b.s, "");
	for (int i = 0; i < 1000; i++)
		pr_buf_printf(&b, "%d,", i);
	assert_int_equal(b.len, 10 * 2 + 90 * 3 + 900 * 4);
	assert_int_equal(strlen(b.s), b.len);
	assert_string_equal(b.s + b.len - 8, "998,999,");
	pr_buf_put(&b, "a\0b", 3);
	assert_memory_equal(b.s + b.len - 3, "a\0b", 4);
	pr_buf_free(&b);
	assert_null(b.s);
	assert_int_equal(b.cap, 0);
}

static void writes_strings(void **state)
{
	static const struct {
		const char *in, *out;
		size_t len;
	} t[] = {
		{ "", "\"\"", 0 },
		{ "a\"b\\c/", "\"a\\\"b\\\\c/\"", 6 },
		{ "\b\f\n\r\t\x01\x1f\x7f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"", 8 },
		{ "a\0b", "\"a\\u0000b\"", 3 },
		{ "\xc3\xa4\xf0\x9f\x98\x80", "\"\xc3\xa4\xf0\x9f\x98\x80\"", 6 },
		/* one replacement for each longest wrong beginning, as Unicode recommends */
		{ "\xff", "\"\xef\xbf\xbd\"", 1 },
		{ "\xe2\x82x", "\"\xef\xbf\xbdx\"", 3 },
		{ "\xc0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\"", 2 },
		{ "\xf0\x9f\x98", "\"\xef\xbf\xbd\"", 3 },
		{ "\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"", 3 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		struct pr_buf b = { 0 };

		pr_buf_json(&b, t[i].in, t[i].len);
		assert_string_equal(b.s, t[i].out);
		pr_buf_free(&b);
	}
}

/* --- against Python --- */

/* Reads "document members-or-refused" lines in hex. The differences that are meant: Python
 * accepts lone surrogates and any depth, and is told to refuse NaN. Numbers stay text. */
static const char checker[] =
	"import json, sys\n"
	"sys.setrecursionlimit(5000)\n"
	"class Pairs(list): pass\n"
	"def depth(v):\n"
	"    kids = [x for _, x in v] if isinstance(v, Pairs) else v if isinstance(v, list) else None\n"
	"    return 0 if kids is None else 1 + max(map(depth, kids), default=0)\n"
	"def lone(v):\n"
	"    if isinstance(v, str): return any(0xd800 <= ord(c) <= 0xdfff for c in v)\n"
	"    if isinstance(v, Pairs): return any(lone(k) or lone(x) for k, x in v)\n"
	"    return isinstance(v, list) and any(map(lone, v))\n"
	"def no(_): raise ValueError\n"
	"def num(s): return ('number', s)\n"
	"def loads(b):\n"
	"    return json.loads(b.decode(), object_pairs_hook=Pairs, parse_constant=no, parse_int=num, "
	"parse_float=num)\n"
	"def expected(doc):\n"
	"    try:\n"
	"        v = loads(doc)\n"
	"        return v if isinstance(v, Pairs) and not lone(v) and depth(v) <= 513 else None\n"
	"    except (ValueError, RecursionError): return None\n"
	"good = bad = 0\n"
	"for line in sys.stdin:\n"
	"    doc, got = line.rstrip('\\n').split(' ', 1)\n"
	"    doc = bytes.fromhex(doc); want = expected(doc)\n"
	"    if got == 'refused':\n"
	"        assert want is None, ('refused', doc); bad += 1; continue\n"
	"    assert want is not None, ('accepted', doc)\n"
	"    seen = [m.split(':') for m in got.split()]\n"
	"    assert len(seen) == len(want), doc\n"
	"    for (kind, name, value), (k, v) in zip(seen, want):\n"
	"        value = bytes.fromhex(value)\n"
	"        assert bytes.fromhex(name).decode() == k, doc\n"
	"        assert (kind == 'n') == (v is None), doc\n"
	"        assert value.decode() == v if isinstance(v, str) else loads(value) == v, doc\n"
	"    good += 1\n"
	"print('json_test: Python agrees on %d accepted and %d refused texts' % (good, bad))\n"
	"assert good > 1000 and bad > 1000\n";

/* Eight bytes are looked at together, the rest with some of those before it: the first special one is found
 * wherever it stands, and whatever comes behind it; sanitizers see a read outside. */
static void finds_the_first_special(void **state)
{
	static const char special[] = { '"', '\\', '\0', '\n', 0x1f, (char)0x80, (char)0xff };

	(void)state;
	for (size_t n = 0; n < 40; n++)
		for (size_t at = 0; at <= n; at++)
			for (size_t i = 0; i < sizeof(special); i++) {
				struct pr_buf b = { 0 };
				char *s = pr_malloc(n + 1), *t = pr_malloc(n ? n : 1);

				memset(s, i % 2 ? ' ' : 0x7f, n);
				for (size_t k = at; k < n; k++)
					s[k] = k == at ? special[i] : '!'; /* marked behind another */
				memcpy(t, s, n);
				assert_ptr_equal(json_skip_plain(t, t + n), t + at);
				assert_int_equal(pr_buf_json_plain(&b, t, n), at == n);
				if (at == n) {
					assert_int_equal(b.len, n + 2);
					assert_memory_equal(b.s + 1, s, n);
					assert_int_equal(b.s[0] == '"' && b.s[n + 1] == '"', 1);
				} else {
					assert_int_equal(b.len, 0);
				}
				pr_buf_free(&b);
				free(s);
				free(t);
			}
}

static void hex(struct pr_buf *out, const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		pr_buf_printf(out, "%02x", (unsigned char)s[i]);
}

static int hex_member(
	void *ctx, const char *name, size_t name_len, const char *value, size_t value_len, int is_null)
{
	struct pr_buf *out = ctx;

	pr_buf_puts(out, is_null ? " n:" : " v:");
	hex(out, name, name_len);
	pr_buf_puts(out, ":");
	hex(out, value, value_len);
	return 0;
}

static int tell(FILE *python, const char *text, size_t len)
{
	struct pr_buf line = { 0 }, scratch = { 0 };
	char *copy = pr_malloc(len);
	size_t doc;
	int rc;

	memcpy(copy, text, len);
	hex(&line, text, len);
	pr_buf_puts(&line, " ");
	doc = line.len;
	rc = pr_json_flat(copy, len, &scratch, hex_member, &line);
	if (rc != 0) {
		line.len = doc;
		pr_buf_puts(&line, "refused");
	}
	(void)fprintf(python, "%s\n", line.s);
	free(copy);
	pr_buf_free(&line);
	pr_buf_free(&scratch);
	return rc;
}

static uint32_t next_random(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

/* Small damage: a byte replaced, doubled, removed, or a piece of JSON put in. */
static size_t mutate(char *text, size_t len, uint32_t *seed)
{
	static const char *const pieces[] = { "\"", "\\", "{", "}", "[", "]", ",", ":", "null", "\\u",
		"\\ud83d\\ude00", "0", "1e5", "\"a\":", " ", "\xe2\x82\xac", "\xf0", "\n", "-" };
	const char *piece = pieces[next_random(seed) % (sizeof(pieces) / sizeof(*pieces))];
	size_t at = next_random(seed) % (len + 1), n = strlen(piece);

	switch (next_random(seed) % 4) {
	case 0:
		memmove(text + at + n, text + at, len - at);
		memcpy(text + at, piece, n);
		return len + n;
	case 1:
		if (at == len)
			return len;
		memmove(text + at, text + at + 1, len - at - 1);
		return len - 1;
	case 2:
		if (at < len)
			text[at] = (char)next_random(seed);
		return len;
	default:
		if (at < len)
			text[at] = *piece;
		return len;
	}
}

static void tell_file(FILE *python, const char *name, uint32_t *seed)
{
	static char text[64 << 10], copy[64 << 10];
	char path[512];
	size_t len;
	int times;
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", CORPUS, name);
	f = fopen(path, "rb");
	assert_non_null(f);
	len = fread(text, 1, sizeof(text) - 256, f);
	(void)fclose(f);
	times = tell(python, text, len) == 0 ? 1000 : 30;
	for (int i = 0; i < times && len < 1000; i++) {
		size_t n = len;

		memcpy(copy, text, len);
		for (unsigned k = 0; k <= next_random(seed) % 3; k++)
			n = mutate(copy, n, seed);
		(void)tell(python, copy, n);
	}
}

static void agrees_with_python(void **state)
{
	FILE *python = NULL;
	char script[] = "/tmp/json_test.XXXXXX";
	int fd = mkstemp(script), files = 0, rc;
	char command[128];
	uint32_t seed = 20260101;
	struct dirent *e;
	DIR *dir = opendir(CORPUS);

	(void)state;
	assert_true(fd >= 0);
	assert_non_null(dir);
	assert_int_equal(write(fd, checker, sizeof(checker) - 1), sizeof(checker) - 1);
	(void)close(fd);
	(void)snprintf(command, sizeof(command), "exec /usr/bin/python3 %s", script);
	python = popen(command, "w");
	assert_non_null(python);
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.' && ++files)
			tell_file(python, e->d_name, &seed);
	(void)closedir(dir);
	rc = pclose(python);
	(void)unlink(script);
	assert_true(WIFEXITED(rc));
	assert_int_equal(WEXITSTATUS(rc), 0);
	assert_true(files > 50);
}

/* Text is looked at eight bytes at a time: whatever is wrong is found at every place of them, and nowhere
 * behind the end. */
static void finds_what_is_no_text(void **state)
{
	char s[40];

	(void)state;
	for (size_t n = 0; n < 26; n++) {
		memset(s, 0x01, sizeof(s));
		s[n] = '\0';
		s[n + 1] = (char)0xff;
		assert_true(pr_utf8_text(s, n));
		for (size_t i = 0; i < n; i++) {
			static const unsigned char bad[] = { 0x00, 0x80, 0xc0, 0xff };

			for (size_t k = 0; k < sizeof(bad); k++) {
				memset(s, k % 2 ? 0x7f : 0x01, n);
				s[i] = (char)bad[k];
				assert_false(pr_utf8_text(s, n));
			}
			memset(s, 'a', n);
			memcpy(s + i, "\xc3\xa9", 2);
			assert_int_equal(pr_utf8_text(s, n), i + 1 < n);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accepts),
		cmocka_unit_test(refuses),
		cmocka_unit_test(refuses_cut_texts),
		cmocka_unit_test(bounds_depth),
		cmocka_unit_test(stops_when_told),
		cmocka_unit_test(buffers),
		cmocka_unit_test(writes_strings),
		cmocka_unit_test(finds_the_first_special),
		cmocka_unit_test(finds_what_is_no_text),
		cmocka_unit_test(agrees_with_python),
	};

	(void)signal(SIGPIPE, SIG_IGN); /* a checker that gave up has said why */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
