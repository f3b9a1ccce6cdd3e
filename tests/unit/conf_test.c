/* tests/unit/conf_test.c -- bad files are refused by file, line and key, quickly; good
 * ones give exactly the values they say; secrets stay secret. The textual bad files lie in
 * conf_bad/ and every one of them has a row here; those that cannot be committed (FIFO,
 * device, 2 MB, NUL) are made in a temporary directory. Runs from the root of the tree. */
#include "lib/conf.h"
#include "lib/relay_conf.h"

/* cmocka wants these before itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BAD    "tests/unit/conf_bad/"
#define BASE   "name = \"orders\"; source: { conninfo = \"dbname=orders\"; }; kafka: { brokers = \"b:1\"; };\n"
#define LEN(a) (sizeof(a) / sizeof(*(a)))

static char dir[64]; /* temporary, removed at the end */

static char *in_dir(const char *name)
{
	return pr_asprintf("%s/%s", dir, name);
}

static char *write_file(const char *name, mode_t mode, const void *text, size_t n)
{
	char *path = in_dir(name);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, mode), 0);
	return path;
}

static char *write_text(const char *name, mode_t mode, const char *text)
{
	return write_file(name, mode, text, strlen(text));
}

static int load_relay(const char *file, const char *const *over, size_t n, struct pr_relay_conf *c,
	struct pr_conf **conf, struct pr_err *err)
{
	if (pr_conf_load(file, pr_relay_options, c, over, n, conf, err) < 0)
		return -1;
	if (pr_relay_conf_validate(c, *conf, err) < 0) {
		pr_conf_free(*conf);
		return -1;
	}
	return 0;
}

/* The file must be refused with a text that begins with start and holds part. */
static void expect_refused(const char *file, const char *start, const char *part)
{
	struct pr_relay_conf c;
	struct pr_conf *conf = NULL;
	struct pr_err err = { 0 };

	if (load_relay(file, NULL, 0, &c, &conf, &err) == 0)
		fail_msg("%s was accepted", file);
	if (err.exit != PR_EX_CONFIG || strncmp(err.text, start, strlen(start)) != 0 ||
		!strstr(err.text, part))
		fail_msg("%s: exit %d, \"%s\", not \"%s ... %s\"", file, err.exit, err.text, start, part);
}

static const struct {
	const char *file;
	int line; /* 0: the file as a whole */
	const char *key;
	const char *part;
} bad[] = {
	{ "bom", 1, NULL, "byte order mark" },
	{ "bracket_extra", 4, "log.level", "syntax error" },
	{ "bracket_open", 6, "log.level", "syntax error" },
	{ "comment_open", 4, NULL, "a comment that does not end" },
	{ "conninfo_keyword", 2, "source.conninfo", "\"pasword\"" },
	{ "conninfo_no_value", 2, "source.conninfo", "is neither" },
	{ "duplicate", 5, "limits.poll_min", "set twice, first at " BAD "duplicate.cfg:4" },
	{ "duplicate_group", 5, "limits", "set twice, first at " BAD "duplicate_group.cfg:4" },
	{ "duration_above", 4, "shutdown.drain", "2h is out of range: 0 to 1h" },
	{ "duration_is_list", 5, "retention.keep", "must be a duration like \"5s\", is a list" },
	{ "duration_negative", 4, "limits.poll_min", "\"-5ms\" is not a duration" },
	{ "duration_spaced", 4, "limits.poll_min", "\"5 ms\" is not a duration" },
	{ "duration_unquoted", 4, "limits.poll_min", "values with a unit need quotes" },
	{ "empty", 0, "name", "is required" },
	{ "enum_unknown", 4, "delivery", "\"exactly\" is not one of: exactly_once|at_least_once" },
	{ "env_unset", 2, "source.conninfo", "PR_TEST_IS_NOT_SET is not set" },
	{ "file_device", 4, "http.token", "file:/dev/zero: is a device" },
	{ "file_directory", 4, "http.token", "file:/: is a directory" },
	{ "file_missing", 4, "http.token", "file:/nonexistent/token: cannot be opened" },
	{ "file_relative", 4, "http.token", "must be an absolute path" },
	{ "group_is_list", 4, "limits", "must be a group { ... }, is a list" },
	{ "group_is_string", 4, "limits", "must be a group { ... }, is a string" },
	{ "include_absolute", 4, NULL, "@include \"/etc/passwd\": leaves the directory" },
	{ "include_directory", 4, NULL, "@include \"sub\": is a directory" },
	{ "include_dots", 4, NULL, "@include \"sub/../sub/level.cfg\": leaves the directory" },
	{ "include_inline", 4, NULL, "on a line of its own" },
	{ "include_missing", 4, NULL, "@include \"sub/no_such_file.cfg\": No such file" },
	{ "include_up", 4, NULL, "@include \"../conf_test.c\": leaves the directory" },
	{ "int_64_wraps", 4, "limits.batch_events", "does not fit in 64 bits" },
	{ "int_above", 4, "limits.batch_events", "5G is out of range: 1 to 1000000" },
	{ "int_below", 4, "limits.batch_events", "0 is out of range" },
	{ "int_hex_wraps", 4, "limits.batch_events", "0xFFFFFFFF does not fit in 32 bits" },
	{ "int_is_float", 4, "limits.batch_events", "must be a whole number" },
	{ "int_is_group", 4, "limits.batch_events", "must be a whole number, is a group" },
	{ "int_is_infinite", 4, "limits.batch_events", "must be a whole number" },
	{ "int_is_true", 4, "limits.batch_events", "must be a whole number, is a boolean" },
	{ "int_is_word", 4, "limits.batch_events", "\"many\" is not a whole number" },
	{ "int_octal", 4, "limits.batch_events", "leading zero" },
	{ "int_wraps", 4, "limits.batch_events", "2147483648 does not fit in 32 bits" },
	{ "int_wraps_negative", 4, "retention.ahead", "-2147483649 does not fit in 32 bits" },
	{ "interpolation", 4, "log.level", "unexpected \"$\"" },
	{ "listen_everywhere", 4, "http.listen", "needs http.token" },
	{ "listen_no_port", 4, "http.listen", "is not address:port" },
	{ "listen_open", 4, "http.listen", "needs http.token" },
	{ "listen_port", 4, "http.listen", "is not address:port" },
	{ "log_level", 4, "log.level", "must be debug, info, warn or error" },
	{ "name_case", 1, "name", "may hold a-z, 0-9, _ and - only" },
	{ "name_long", 1, "name", "is 61 characters long, at most 60" },
	{ "nul_escape", 4, "log.level", "would cut the string" },
	{ "poll_contradiction", 4, "limits.poll_min", "must not be more than limits.poll_max" },
	{ "properties_acks", 4, "kafka.properties", "\"acks\"" },
	{ "properties_kinit", 4, "kafka.properties", "\"sasl.kerberos.kinit.cmd\"" },
	{ "properties_no_value", 4, "kafka.properties", "\"linger.ms\"" },
	{ "properties_number", 4, "kafka.properties", "element 2 must be a string, is a number" },
	{ "properties_plugin", 4, "kafka.properties", "\"plugin.library.paths\"" },
	{ "properties_secret_unset", 4, "kafka.properties", "PR_TEST_IS_NOT_SET is not set" },
	{ "properties_string", 4, "kafka.properties", "must be a list of strings" },
	{ "properties_unknown", 4, "kafka.properties", "linger.mss" },
	{ "required", 0, "source.conninfo", "is required" },
	{ "required_empty", 1, "name", "must not be empty" },
	{ "size_fraction", 4, "limits.batch_bytes", "\"1.5MB\" is not a size" },
	{ "size_is_int", 4, "limits.batch_bytes", "must be a size like \"8MB\", is a number" },
	{ "size_unit_case", 4, "limits.batch_bytes", "\"8mb\" is not a size" },
	{ "size_without_unit", 4, "limits.batch_bytes", "\"8000000\" is not a size" },
	{ "size_wraps", 4, "limits.batch_bytes", "\"9999999999TB\" is not a size" },
	{ "string_is_int", 4, "log.level", "must be a string, is a number" },
	{ "string_open", 4, "log.level", "a string that does not end" },
	{ "topic_character", 4, "route.topic", "may hold letters" },
	{ "topic_dots", 4, "route.topic", "is no name for a topic" },
	{ "topic_internal", 4, "route.topic", "Kafka's own" },
	{ "topic_variable", 4, "route.topic", "knows no variable but ${aggregatetype}" },
	{ "unknown_far", 4, "zzzzzz", "unknown key" },
	{ "unknown_group", 4, "limit", "did you mean \"limits\"?" },
	{ "unknown_key", 6, "limits.batch_event", "did you mean \"limits.batch_events\"?" },
	{ "unknown_place", 4, "batch_events", "did you mean \"limits.batch_events\"?" },
	{ "utf16", 1, NULL, "UTF-16" },
	{ "value_missing", 4, "log.level", "syntax error" },
};

static void test_bad_files(void **state)
{
	(void)state;
	for (size_t i = 0; i < LEN(bad); i++) {
		char *file = pr_asprintf("%s%s.cfg", BAD, bad[i].file);
		char *where = bad[i].line ? pr_asprintf("%s:%d", file, bad[i].line) : pr_strdup(file);
		char *start =
			bad[i].key ? pr_asprintf("%s: %s: ", where, bad[i].key) : pr_asprintf("%s: ", where);

		expect_refused(file, start, bad[i].part);
		free(start);
		free(where);
		free(file);
	}
	/* The error stands in the included file, and is named there. */
	expect_refused(BAD "include_error.cfg", BAD "sub/error.cfg:3: limits.poll_min: ", "\"soon\"");
	expect_refused(BAD "include_loop.cfg", BAD "sub/loop.cfg:2: ", "includes itself");
}

static void test_every_bad_file_has_a_row(void **state)
{
	DIR *d = opendir(BAD);
	struct dirent *e;
	size_t n = 0;

	(void)state;
	assert_non_null(d);
	while ((e = readdir(d)))
		n += strstr(e->d_name, ".cfg") != NULL;
	(void)closedir(d);
	assert_int_equal(n, LEN(bad) + 2);
}

static void test_what_is_no_file(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char *fifo = in_dir("fifo"), *sock = in_dir("sock"), *none = in_dir("none");
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	(void)state;
	assert_int_equal(mkfifo(fifo, 0600), 0);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", sock);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	expect_refused(fifo, fifo, "is a FIFO");
	expect_refused(sock, sock, "cannot be opened");
	expect_refused(none, none, "cannot be opened: No such file");
	expect_refused(dir, dir, "is a directory");
	expect_refused("/dev/zero", "/dev/zero: ", "is a device");
	expect_refused("/dev/null", "/dev/null: ", "is a device");
	(void)close(fd);
	(void)unlink(fifo);
	(void)unlink(sock);
	free(fifo);
	free(sock);
	free(none);
}

/* text repeated until it is n bytes long, behind BASE and head. */
static char *flood(const char *name, const char *head, const char *text, size_t n)
{
	size_t cap = n + strlen(text) + sizeof(BASE) + strlen(head), len;
	char *s = pr_malloc(cap + 1), *path;

	len = (size_t)snprintf(s, cap, "%s%s", BASE, head);
	for (; len < n; len += strlen(text))
		(void)snprintf(s + len, cap - len + 1, "%s", text);
	path = write_text(name, 0600, s);
	free(s);
	return path;
}

static void expect_flood(const char *head, const char *text, size_t n, const char *part)
{
	char *path = flood("flood.cfg", head, text, n);

	expect_refused(path, path, part);
	(void)unlink(path);
	free(path);
}

/* libconfig needs 20 s for a file of 300 MB, its duplicate check is quadratic, and 10,000 brackets
 * exhaust its parser. The alarm of main ends a test that hangs. */
static void test_floods(void **state)
{
	(void)state;
	expect_flood("", "# nothing\n", 1100000, "is larger than 1024 kB");
	expect_flood("log: ", "{ log: ", 100000, "nested more than 16 deep");
	expect_flood("log: ", "( ", 100000, "nested more than 16 deep");
	expect_flood("log = ", "[", 100000, "nested more than 16 deep");
	expect_flood("", "log: { level = \"info\"; };\n", 1000000, "more than 4096 keys");
	expect_flood("", "@include \"none\"\n", 1000, "@include \"none\": No such file");
	expect_flood("limits: { batch_events = ", "1", 100000, "a number of ");
	expect_flood("", "x", 100000, "a name of more than 64 characters");
	expect_flood("kafka_properties = ( ", "\"a=b\",", 1000000, "syntax error");
}

static void test_include_bombs(void **state)
{
	char *leaf = write_text("leaf.cfg", 0600, ""), *mid, *top;

	(void)state;
	mid = flood("mid.cfg", "", "@include \"leaf.cfg\"\n", 100000);
	top = write_text("top.cfg", 0600, "@include \"mid.cfg\"\n");
	expect_refused(top, dir, "more than 64 files");
	for (int i = 0; i < 10; i++) {
		char *text = pr_asprintf("@include \"n%d.cfg\"\n", i + 1), *name = pr_asprintf("n%d.cfg", i);
		char *path = write_text(name, 0600, text);

		free(text);
		free(name);
		free(path);
	}
	free(top);
	top = in_dir("n0.cfg");
	expect_refused(top, dir, "nested more than 8 deep");
	free(leaf);
	free(mid);
	free(top);
}

static void test_include_by_symlink(void **state)
{
	char *link_path = in_dir("link.cfg"), *fifo = in_dir("fifo.cfg"), *top;

	(void)state;
	assert_int_equal(symlink("/etc/passwd", link_path), 0);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	top = write_text("top.cfg", 0600, "@include \"link.cfg\"\n");
	expect_refused(top, top, "@include \"link.cfg\": leaves the directory");
	free(top);
	top = write_text("top.cfg", 0600, "@include \"fifo.cfg\"\n");
	expect_refused(top, top, "@include \"fifo.cfg\": is a FIFO");
	free(top);
	free(fifo);
	free(link_path);
}

static void test_nul_byte(void **state)
{
	static const char text[] = BASE "log: {\n\tlevel = \"in\0fo\"; };\n";
	char *path = write_file("nul.cfg", 0600, text, sizeof(text) - 1);
	char *start = pr_asprintf("%s:3: log.level: ", path);

	(void)state;
	expect_refused(path, start, "NUL byte");
	free(start);
	free(path);
}

static const char *const exposed[] = {
	"name = \"o\"; source: { conninfo = \"dbname=o password=hunter2\"; }; kafka: { brokers = \"b:1\"; "
	"};\n",
	"name = \"o\"; source: { conninfo = \"postgresql://u:hunter2@h/o\"; }; kafka: { brokers = \"b:1\"; "
	"};\n",
	BASE "http: { token = \"hunter2\"; };\n",
	"name = \"o\"; source: { conninfo = \"dbname=o\"; };\n"
	"kafka: { brokers = \"b:1\"; properties = [ \"sasl.password = hunter2\" ]; };\n",
};

/* Everybody's file may hold no secret; ours may, and none of it is ever printed. */
static void test_secrets_in_the_file(void **state)
{
	(void)state;
	for (size_t i = 0; i < LEN(exposed); i++) {
		char *path = write_text("secret.cfg", 0644, exposed[i]), *printed = NULL;
		struct pr_relay_conf c;
		struct pr_conf *conf;
		struct pr_err err;
		size_t n;
		FILE *out;

		expect_refused(path, path, "a secret in a file that everybody may read");
		assert_int_equal(chmod(path, 0640), 0);
		assert_int_equal(load_relay(path, NULL, 0, &c, &conf, &err), 0);
		out = open_memstream(&printed, &n);
		pr_conf_print(conf, out);
		(void)fclose(out);
		assert_null(strstr(printed, "hunter2"));
		assert_non_null(strstr(printed, "********"));
		pr_conf_free(conf);
		free(printed);
		free(path);
	}
}

/* An error may name a bad secret's key, never repeat the secret. */
static void test_errors_do_not_tell(void **state)
{
	static const char *const texts[] = {
		"name = \"o\"; source: { conninfo = \"password=x hunter2\"; }; kafka: { brokers = \"b:1\"; "
		"};",
		"name = \"o\"; source: { conninfo = \"password='hunter2\"; }; kafka: { brokers = \"b:1\"; };",
		"name = \"o\"; source: { conninfo = \"hunter2\"; }; kafka: { brokers = \"b:1\"; };",
		"name = \"o\"; source: { conninfo = \"postgresql://u:hunter2@[::1/o\"; };"
		"kafka: { brokers = \"b:1\"; };",
	};

	(void)state;
	for (size_t i = 0; i < LEN(texts); i++) {
		struct pr_relay_conf c;
		struct pr_conf *conf;
		struct pr_err err = { 0 };

		assert_int_equal(pr_conf_load_text("t.cfg", texts[i], strlen(texts[i]), pr_relay_options, &c,
					 NULL, 0, &conf, &err),
			-1);
		assert_null(strstr(err.text, "hunter2"));
		assert_null(strstr(err.hint, "hunter2"));
		assert_non_null(strstr(err.text, "t.cfg:1: source.conninfo: "));
	}
}

static void test_secrets_elsewhere(void **state)
{
	char *secret = write_text("token", 0600, "s3cret\n"), *text, *path;
	struct pr_relay_conf c;
	struct pr_conf *conf;
	struct pr_err err;

	(void)state;
	assert_int_equal(setenv("PR_TEST_CONNINFO", "dbname=o password=hunter2", 1), 0);
	text = pr_asprintf("name = \"o\"; source: { conninfo = \"env:PR_TEST_CONNINFO\"; };\n"
			   "kafka: { brokers = \"b:1\"; properties = ( \"sasl.password=file:%s\" ); };\n"
			   "http: { token = \"file:%s\"; };\n",
		secret, secret);
	path = write_text("elsewhere.cfg", 0644, text);
	assert_int_equal(load_relay(path, NULL, 0, &c, &conf, &err), 0);
	assert_string_equal(c.source.conninfo, "dbname=o password=hunter2");
	assert_string_equal(c.http.token, "s3cret");
	assert_string_equal(c.kafka.properties.v[0], "sasl.password=s3cret");
	pr_conf_free(conf);

	assert_int_equal(setenv("PR_TEST_CONNINFO", "", 1), 0);
	expect_refused(path, path, "PR_TEST_CONNINFO is empty");
	assert_int_equal(setenv("PR_TEST_CONNINFO", "dbname=o", 1), 0);
	free(write_text("token", 0600, "\n"));
	expect_refused(path, path, "is empty");
	free(write_file("token", 0600, "a\0b", 3));
	expect_refused(path, path, "NUL byte");
	assert_int_equal(truncate(secret, 65537), 0);
	expect_refused(path, path, "is larger than 64 kB");
	free(path);
	free(text);
	free(secret);
}

/* Secrets that are not looked up are neither checked nor missed, until they are followed. */
static void test_unread(void **state)
{
	char *secret = write_text("later", 0600, "s3cret\n"), *text, *path;
	struct pr_relay_conf c;
	struct pr_conf *conf;
	struct pr_err err;

	(void)state;
	assert_int_equal(unsetenv("PR_TEST_CONNINFO"), 0);
	text = pr_asprintf(
		"name = \"o\"; source: { conninfo = \"env:PR_TEST_CONNINFO\"; };\n"
		"kafka: { brokers = \"b:1\"; properties = ( \"a=b\", \"sasl.password=file:%s\" ); };\n"
		"http: { token = \"env:PR_TEST_IS_NOT_SET\"; };\n",
		secret);
	path = write_text("unread.cfg", 0644, text);
	expect_refused(path, path, "PR_TEST_CONNINFO is not set");
	assert_int_equal(pr_conf_load_unread(path, pr_relay_options, &c, NULL, 0, &conf, &err), 0);
	assert_string_equal(c.source.conninfo, "env:PR_TEST_CONNINFO");
	assert_true(pr_conf_unread(conf, "source.conninfo") && pr_conf_unread(conf, "http.token"));
	assert_false(pr_conf_unread(conf, "name") || pr_conf_unread(conf, "no.such"));

	assert_int_equal(pr_conf_follow(conf, pr_relay_options, &c, "source.conninfo", &err), -1);
	assert_non_null(
		strstr(err.text, "unread.cfg:1: source.conninfo: environment variable PR_TEST_CONNINFO"));
	assert_int_equal(err.exit, PR_EX_CONFIG);
	assert_int_equal(setenv("PR_TEST_CONNINFO", "password=x hunter2", 1), 0);
	assert_int_equal(pr_conf_follow(conf, pr_relay_options, &c, "source.conninfo", &err), -1);
	assert_null(strstr(err.text, "hunter2"));
	assert_int_equal(setenv("PR_TEST_CONNINFO", "dbname=env:x", 1), 0);
	for (int i = 0; i < 2; i++) /* the second time there is nothing to do */
		assert_int_equal(pr_conf_follow(conf, pr_relay_options, &c, "source.conninfo", &err), 0);
	assert_string_equal(c.source.conninfo, "dbname=env:x");
	assert_int_equal(pr_conf_follow(conf, pr_relay_options, &c, "kafka.properties", &err), 0);
	assert_int_equal(c.kafka.properties.n, 2);
	assert_string_equal(c.kafka.properties.v[0], "a=b");
	assert_string_equal(c.kafka.properties.v[1], "sasl.password=s3cret");
	assert_int_equal(pr_conf_follow(conf, pr_relay_options, &c, "name", &err), 0);
	assert_string_equal(c.name, "o");
	pr_conf_free(conf);
	free(path);
	free(text);
	free(secret);
}

/* ---- good files ---- */

struct rule {
	char *match;
	int policy;
	int64_t attempts;
};

struct sample {
	char *name;
	int on;
	int64_t n, size, wait;
	struct pr_strs list;
	struct pr_groups rules;
};

static const struct pr_opt rule_options[] = {
	{ "match", PR_OPT_STR, offsetof(struct rule, match), .flags = PR_OPT_REQUIRED, .doc = "What." },
	{ "policy", PR_OPT_ENUM, offsetof(struct rule, policy), "retry", .choices = "retry|park|dead_letter",
		.doc = "How." },
	{ "attempts", PR_OPT_INT, offsetof(struct rule, attempts), "5", .min = 1, .max = 100,
		.doc = "How often." },
	{ 0 },
};

static const struct pr_opt sample_options[] = {
	{ "name", PR_OPT_STR, offsetof(struct sample, name), .flags = PR_OPT_NO_RELOAD, .doc = "A name." },
	{ "a.on", PR_OPT_BOOL, offsetof(struct sample, on), "true", .doc = "A switch." },
	{ "a.n", PR_OPT_INT, offsetof(struct sample, n), "7", .doc = "A number." },
	{ "a.size", PR_OPT_SIZE, offsetof(struct sample, size), "1MB", .doc = "A size." },
	{ "a.wait", PR_OPT_DURATION, offsetof(struct sample, wait), "1s", .flags = PR_OPT_HIDDEN,
		.doc = "A time." },
	{ "list", PR_OPT_STRS, offsetof(struct sample, list), .doc = "Some words." },
	{ "rules", PR_OPT_GROUPS, offsetof(struct sample, rules), .flags = PR_OPT_NO_RELOAD,
		.sub = rule_options, .sub_size = sizeof(struct rule), .doc = "Some rules." },
	{ 0 },
};

static int load_sample(const char *text, const char *const *over, size_t n, struct sample *s,
	struct pr_conf **conf, struct pr_err *err)
{
	return pr_conf_load_text("t.cfg", text, strlen(text), sample_options, s, over, n, conf, err);
}

static void refuse_sample(const char *text, const char *over, const char *start)
{
	struct pr_conf *conf;
	struct sample s;
	struct pr_err err = { 0 };

	if (load_sample(text, &over, over != NULL, &s, &conf, &err) == 0)
		fail_msg("accepted: %s -o %s", text, over ? over : "(none)");
	if (err.exit != PR_EX_CONFIG || strncmp(err.text, start, strlen(start)) != 0)
		fail_msg("exit %d, \"%s\", not \"%s\"", err.exit, err.text, start);
}

static void test_defaults(void **state)
{
	struct pr_conf *conf;
	struct sample s;
	struct pr_err err;

	(void)state;
	memset(&s, 0xa5, sizeof(s));
	assert_int_equal(load_sample("", NULL, 0, &s, &conf, &err), 0);
	assert_null(s.name);
	assert_int_equal(s.on, 1);
	assert_int_equal(s.n, 7);
	assert_int_equal(s.size, 1 << 20);
	assert_int_equal(s.wait, 1000000);
	assert_int_equal(s.list.n, 0);
	assert_int_equal(s.rules.n, 0);
	pr_conf_free(conf);
}

static void test_values(void **state)
{
	static const char text[] = "name = \"a\" \"b\\\"\\x41\" // no semicolon\n"
				   "/* a: { on = true */ a: { on = FALSE n = -0 size = \"512kB\"\r\n"
				   "wait = \"500us\" } list = [ \"x\", \"\" ];\n"
				   "# a comment that no newline ends";
	struct pr_conf *conf;
	struct sample s;
	struct pr_err err;

	(void)state;
	assert_int_equal(load_sample(text, NULL, 0, &s, &conf, &err), 0);
	assert_string_equal(s.name, "ab\"A");
	assert_int_equal(s.on, 0);
	assert_int_equal(s.n, 0);
	assert_int_equal(s.size, 512 * 1024);
	assert_int_equal(s.wait, 500);
	assert_int_equal(s.list.n, 2);
	assert_string_equal(s.list.v[0], "x");
	assert_string_equal(s.list.v[1], "");
	pr_conf_free(conf);
}

static void test_integers(void **state)
{
	static const struct {
		const char *text;
		int64_t n;
	} rows[] = {
		{ "a: { n = 2147483647 };", INT32_MAX },
		{ "a: { n = 0x7fffffff };", INT32_MAX },
		{ "a: { n = 2147483648L };", 2147483648 },
		{ "a: { n = 9223372036854775807L };", INT64_MAX },
		{ "a: { n = 0xFFFFFFFFL };", 4294967295 },
		{ "a: { n = \"5M\" };", 5000000 },
		{ "a: { n = \"9223372036854775807\" };", INT64_MAX },
		{ "a: { n = +3 };", 3 },
	};

	(void)state;
	for (size_t i = 0; i < LEN(rows); i++) {
		struct pr_conf *conf;
		struct sample s;
		struct pr_err err;

		assert_int_equal(load_sample(rows[i].text, NULL, 0, &s, &conf, &err), 0);
		assert_int_equal(s.n, rows[i].n);
		pr_conf_free(conf);
	}
	refuse_sample("a: { n = -1; };", NULL, "t.cfg:1: a.n: -1 is out of range: not below 0");
	refuse_sample("a: { n = 9223372036854775808L; };", NULL, "t.cfg:1: a.n: ");
	refuse_sample("a: { n = 0xFFFFFFFFFFFFFFFFL; };", NULL, "t.cfg:1: a.n: ");
	refuse_sample("a: { n = 12abc = 3; };", NULL, "t.cfg:1: a.n: 12abc is not a number");
	refuse_sample("a: { n = -0x5; };", NULL, "t.cfg:1: a.n: -0x5 is not a number");
	refuse_sample("a: { on = \"true\"; };", NULL,
		"t.cfg:1: a.on: must be true or false, without quotes, is a string");
	refuse_sample("a: { on = 1; };", NULL, "t.cfg:1: a.on: must be true or false");
}

static void test_groups(void **state)
{
	static const char text[] = "rules = ( { match = \"sqlstate:23*\"; policy = \"dead_letter\"; },\n"
				   "{ match = \"http:5xx\"; attempts = 9; } );\n";
	struct pr_conf *conf;
	const struct rule *r;
	struct sample s;
	struct pr_err err;

	(void)state;
	assert_int_equal(load_sample(text, NULL, 0, &s, &conf, &err), 0);
	assert_int_equal(s.rules.n, 2);
	r = s.rules.v;
	assert_string_equal(r[0].match, "sqlstate:23*");
	assert_int_equal(r[0].policy, 2);
	assert_int_equal(r[0].attempts, 5);
	assert_string_equal(r[1].match, "http:5xx");
	assert_int_equal(r[1].policy, 0);
	assert_int_equal(r[1].attempts, 9);
	assert_int_equal(pr_conf_fail(conf, "rules[1].attempts", &err, "too many"), -1);
	assert_string_equal(err.text, "t.cfg:2: rules[1].attempts: too many");
	pr_conf_free(conf);
	refuse_sample("rules = ( { match = \"x\"; },\n{ policy = \"park\"; } );", NULL,
		"t.cfg:2: rules[1].match: is required");
	refuse_sample("rules = ( { match = \"x\"; polcy = \"park\"; } );", NULL,
		"t.cfg:1: rules[0].polcy: unknown key, did you mean \"policy\"?");
	refuse_sample("rules = ( { match = \"x\";\nattempts = 0; } );", NULL,
		"t.cfg:2: rules[0].attempts: 0 is out");
	refuse_sample("rules = ( \"x\" );", NULL, "t.cfg:1: rules: element 1 must be a group");
	refuse_sample("rules: { match = \"x\"; };", NULL, "t.cfg:1: rules: must be a list of groups");
	refuse_sample("", "rules=x", "command line: rules: can be set in the file only");
}

static void test_overrides(void **state)
{
	static const char *const over[] = { "a.n=5K", "a.on=false", "name=o=p", "list=x", "list=y",
		"a.n=6K" };
	struct pr_conf *conf;
	struct sample s;
	struct pr_err err;
	char *printed;
	size_t n;
	FILE *out = open_memstream(&printed, &n);

	(void)state;
	assert_int_equal(
		load_sample("a: { n = 1; };\nlist = ( \"z\" );", over, LEN(over), &s, &conf, &err), 0);
	assert_int_equal(s.n, 6000);
	assert_int_equal(s.on, 0);
	assert_string_equal(s.name, "o=p");
	assert_int_equal(s.list.n, 2);
	assert_string_equal(s.list.v[1], "y");
	assert_int_equal(pr_conf_fail(conf, "a.n", &err, "no"), -1);
	assert_string_equal(err.text, "command line: a.n: no");
	assert_int_equal(pr_conf_fail(conf, "a.size", &err, "no"), -1);
	assert_string_equal(err.text, "t.cfg: a.size: no");
	pr_conf_print(conf, out);
	(void)fclose(out);
	assert_non_null(strstr(printed, "a.n = 6000 "));
	assert_non_null(strstr(printed, "# command line\n"));
	assert_non_null(strstr(printed, "list = ( \"x\", \"y\" ) "));
	free(printed);
	pr_conf_free(conf);
	refuse_sample("", "a.nx=5", "command line: a.nx: unknown key, did you mean \"a.n\"?");
	refuse_sample("", "a.n=x", "command line: a.n: \"x\" is not a whole number");
	refuse_sample("", "a.on=yes", "command line: a.on: must be true or false");
	refuse_sample("", "a=5", "command line: a: is a group, name one of its keys");
	refuse_sample("", "a.n", "command line: \"a.n\" is not key=value");
	refuse_sample("", "=5", "command line: \"=5\" is not key=value");
}

static void test_frozen(void **state)
{
	static const char *const texts[] = { "name = \"x\";", "a: { n = 1; };", "list = ( \"x\" );",
		"rules = ( { match = \"x\"; } );", "rules = ( { match = \"y\"; } );" };
	static const char *const frozen[] = { "name", NULL, NULL, "rules", "rules" };
	struct pr_conf *was, *is;
	struct sample a, b;
	struct pr_err err;

	(void)state;
	for (size_t i = 0; i < LEN(texts); i++) {
		assert_int_equal(load_sample(texts[i], NULL, 0, &a, &was, &err), 0);
		assert_int_equal(load_sample(i == 4 ? texts[3] : "", NULL, 0, &b, &is, &err), 0);
		if (frozen[i])
			assert_string_equal(pr_conf_frozen_change(sample_options, &a, &b), frozen[i]);
		else
			assert_null(pr_conf_frozen_change(sample_options, &a, &b));
		assert_null(pr_conf_frozen_change(sample_options, &a, &a));
		pr_conf_free(was);
		pr_conf_free(is);
	}
}

static void test_good_include(void **state)
{
	char *sub = in_dir("sub"), *a, *b, *top;
	struct pr_relay_conf c;
	struct pr_conf *conf;
	struct pr_err err;

	(void)state;
	assert_int_equal(mkdir(sub, 0700), 0);
	a = write_text("sub/limits.cfg", 0600, "poll_min = \"2ms\";");
	b = write_text("log.cfg", 0600, "log: { level = \"warn\"; }; # no newline");
	top = write_text("good.cfg", 0600,
		BASE
		"@include \"log.cfg\" http: { token = \"t\"; }; limits: {\n\t@include "
		"\"sub/limits.cfg\"\n};\n"
		"# @include \"nothing.cfg\"\n/*\n@include \"nothing.cfg\"\n*/\nroute: { topic = \"x\"; };\n");
	assert_int_equal(load_relay(top, NULL, 0, &c, &conf, &err), 0);
	assert_int_equal(c.limits.poll_min_us, 2000);
	assert_string_equal(c.log_level, "warn");
	/* Lines after an include count as in the file. */
	(void)pr_conf_fail(conf, "route.topic", &err, "no");
	assert_non_null(strstr(err.text, "good.cfg:9: route.topic: no"));
	(void)pr_conf_fail(conf, "http.token", &err, "no");
	assert_non_null(strstr(err.text, "good.cfg:2: http.token: no"));
	(void)pr_conf_fail(conf, "limits.poll_min", &err, "no");
	assert_non_null(strstr(err.text, "/sub/limits.cfg:1: limits.poll_min: no"));
	pr_conf_free(conf);
	free(a);
	free(b);
	free(top);
	free(sub);
}

/* ---- single values ---- */

static void test_units(void **state)
{
	static const struct {
		int (*parse)(const char *, int64_t *, struct pr_err *);
		const char *text;
		int64_t v; /* -1: refused */
	} rows[] = {
		{ pr_parse_size, "100B", 100 },
		{ pr_parse_size, "512kB", 512 << 10 },
		{ pr_parse_size, "8MB", 8 << 20 },
		{ pr_parse_size, "1GB", 1 << 30 },
		{ pr_parse_size, "2TB", 2LL << 40 },
		{ pr_parse_size, "0", 0 },
		{ pr_parse_size, "8388607TB", 8388607LL << 40 },
		{ pr_parse_size, "8388608TB", -1 },
		{ pr_parse_size, "8", -1 },
		{ pr_parse_size, "8KB", -1 },
		{ pr_parse_size, "8 MB", -1 },
		{ pr_parse_size, " 8MB", -1 },
		{ pr_parse_size, "8MB ", -1 },
		{ pr_parse_size, "-8MB", -1 },
		{ pr_parse_size, "+8MB", -1 },
		{ pr_parse_size, "MB", -1 },
		{ pr_parse_size, "", -1 },
		{ pr_parse_size, "99999999999999999999B", -1 },
		{ pr_parse_duration, "500us", 500 },
		{ pr_parse_duration, "10ms", 10000 },
		{ pr_parse_duration, "5s", 5000000 },
		{ pr_parse_duration, "2m", 120000000 },
		{ pr_parse_duration, "1h", 3600000000 },
		{ pr_parse_duration, "7d", 604800000000 },
		{ pr_parse_duration, "0s", 0 },
		{ pr_parse_duration, "106751991d", 106751991 * 86400000000 },
		{ pr_parse_duration, "106751992d", -1 },
		{ pr_parse_duration, "5", -1 },
		{ pr_parse_duration, "5S", -1 },
		{ pr_parse_duration, "5min", -1 },
		{ pr_parse_duration, "1h30m", -1 },
		{ pr_parse_int, "5K", 5000 },
		{ pr_parse_int, "5M", 5000000 },
		{ pr_parse_int, "5G", 5000000000 },
		{ pr_parse_int, "12", 12 },
		{ pr_parse_int, "9223372036854775808", -1 },
		{ pr_parse_int, "9223372037G", -1 },
		{ pr_parse_int, "0x10", -1 },
		{ pr_parse_int, "5k", -1 },
		{ pr_parse_int, "1e3", -1 },
		{ pr_parse_int, "--5", -1 },
		{ pr_parse_int, "-", -1 },
	};

	(void)state;
	for (size_t i = 0; i < LEN(rows); i++) {
		struct pr_err err = { 0 };
		int64_t v = -2;
		int rc = rows[i].parse(rows[i].text, &v, &err);

		if (rc != (rows[i].v < 0 ? -1 : 0) || v != (rows[i].v < 0 ? -2 : rows[i].v))
			fail_msg("row %zu \"%s\": %d, %lld", i, rows[i].text, rc, (long long)v);
		if (rc < 0 && !*err.text)
			fail_msg("no reason for \"%s\"", rows[i].text);
	}
}

static void test_negative_int(void **state)
{
	struct pr_err err;
	int64_t v;

	(void)state;
	assert_int_equal(pr_parse_int("-5K", &v, &err), 0);
	assert_int_equal(v, -5000);
}

static void test_nearest(void **state)
{
	static const char *const names[] = { "limits.batch_events", "limits.batch_bytes", "name",
		"http.listen", NULL };
	static const char *const none[] = { NULL };
	char word[400];

	(void)state;
	assert_string_equal(pr_nearest("limits.batch_event", names), "limits.batch_events");
	assert_string_equal(pr_nearest("limits.bacth_bytes", names), "limits.batch_bytes");
	assert_string_equal(pr_nearest("nmae", names), "name");
	assert_string_equal(pr_nearest("http.lisen", names), "http.listen");
	assert_null(pr_nearest("delivery", names));
	assert_null(pr_nearest("x", names));
	assert_null(pr_nearest("", names));
	assert_null(pr_nearest("name", none));
	memset(word, 'n', sizeof(word) - 1);
	word[sizeof(word) - 1] = '\0';
	assert_null(pr_nearest(word, names));
}

static int make_dir(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/conf_test.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	char *command = pr_asprintf("rm -rf '%s'", dir);
	int rc = system(command);

	(void)state;
	free(command);
	return rc;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_files),
		cmocka_unit_test(test_every_bad_file_has_a_row),
		cmocka_unit_test(test_what_is_no_file),
		cmocka_unit_test(test_floods),
		cmocka_unit_test(test_include_bombs),
		cmocka_unit_test(test_include_by_symlink),
		cmocka_unit_test(test_nul_byte),
		cmocka_unit_test(test_secrets_in_the_file),
		cmocka_unit_test(test_errors_do_not_tell),
		cmocka_unit_test(test_secrets_elsewhere),
		cmocka_unit_test(test_unread),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_integers),
		cmocka_unit_test(test_groups),
		cmocka_unit_test(test_overrides),
		cmocka_unit_test(test_frozen),
		cmocka_unit_test(test_good_include),
		cmocka_unit_test(test_units),
		cmocka_unit_test(test_negative_int),
		cmocka_unit_test(test_nearest),
	};

	/* A hang is a failure too. */
	(void)alarm(60);
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
