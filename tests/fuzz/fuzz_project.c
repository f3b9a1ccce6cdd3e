/* tests/fuzz/fuzz_project.c -- libFuzzer target of lib/project.c. Lines "action path to" up to an empty one
 * are the rules, the rest is a payload: no crash, no read outside; what leaves is JSON, what was no JSON is
 * refused without a trace, and what was taken away is not there any more. */
#include "lib/json_path.h"
#include "lib/project.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

#define MAX_RULES 16

/* The word at *line, which it ends with a NUL; moves behind it. */
static char *word(char **line)
{
	char *from = *line, *space = strchr(from, ' ');

	*line = space ? space + 1 : from + strlen(from);
	if (space)
		*space = '\0';
	return from;
}

static int rule_of(char *line, struct pr_project_rule *ret)
{
	static const char *const words[] = { "drop", "hash", "redact", "rename", "keep" };
	const char *action = word(&line);

	ret->path = word(&line);
	ret->to = *line ? line : NULL;
	for (int i = 0; i < 5; i++)
		if (strcmp(action, words[i]) == 0) {
			ret->action = (enum pr_project_action)i;
			return 1;
		}
	return 0;
}

static void check_payload(struct pr_project *p, const char *text, size_t len)
{
	struct pr_buf out = { 0 }, again = { 0 };
	const char *at;
	size_t n;
	int rc = pr_project_payload(p, text, len, &out), json = pr_json_at(text, len, "", &at, &n) == 1;

	if (rc != 1) {
		require(out.len == 0, "nothing is appended of what is not changed");
		require(rc == 0 ? !pr_project_of_payload(p) : !json || *at != '[',
			"JSON with a place for each rule is never refused");
	} else {
		require(json, "what is no JSON is refused");
		require(pr_json_at(out.s, out.len, "", &at, &n) == 1 && n == out.len, "JSON leaves");
		require(pr_project_payload(p, out.s, out.len, &again) == 1, "and may come again");
	}
	pr_buf_free(&out);
	pr_buf_free(&again);
}

/* One rule that drops a member: it is gone, wherever it stood. */
static void check_dropped(const struct pr_project_rule *rule, const char *text, size_t len)
{
	struct pr_project *p = NULL;
	struct pr_buf out = { 0 };
	const char *at;
	size_t bad, n;

	if (rule->action != PR_PROJECT_DROP || strncmp(rule->path, "payload.", 8) != 0 ||
		strpbrk(rule->path, "*[") || pr_project_new(rule, 1, "k", 1, &p, &bad, NULL) < 0)
		return;
	if (pr_project_payload(p, text, len, &out) == 1 &&
		strcspn(rule->path + 8, "0123456789") == strlen(rule->path + 8))
		require(pr_json_at(out.s, out.len, rule->path + 8, &at, &n) != 1, "what is dropped is gone");
	pr_project_free(p);
	pr_buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pr_project_rule rules[MAX_RULES];
	struct pr_project *p = NULL;
	char *copy = malloc(size + 1), *line = copy, *end, *text;
	size_t n = 0, bad, len;

	if (!copy)
		return 0;
	if (size > 0)
		memcpy(copy, data, size);
	copy[size] = '\0';
	while ((end = memchr(line, '\n', size - (size_t)(line - copy))) && end != line) {
		*end = '\0';
		n += n < MAX_RULES && rule_of(line, &rules[n]);
		line = end + 1;
	}
	line += end == line;
	len = size - (size_t)(line - copy);
	text = malloc(len ? len : 1); /* exact: the sanitizer sees the end */
	if (text) {
		if (len > 0)
			memcpy(text, line, len);
		if (pr_project_new(rules, n, "k", 1, &p, &bad, NULL) == 0)
			check_payload(p, text, len);
		else
			require(bad <= n, "the bad rule is one of them");
		if (n > 0)
			check_dropped(&rules[0], text, len);
	}
	pr_project_free(p);
	free(text);
	free(copy);
	return 0;
}
