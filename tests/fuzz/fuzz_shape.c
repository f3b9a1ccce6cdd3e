/* tests/fuzz/fuzz_shape.c -- libFuzzer target of lib/shape.c. Lines are payloads of one type: no crash, no
 * read outside; it takes exactly what jsonb takes; every path that it tells can be a rule of lib/project.c,
 * which then finds the place; what it tells adds up. */
#include "lib/project.h"
#include "lib/shape.h"

#include "tests/fuzz/fuzz.h"

#include <string.h>

struct told {
	int paths;
	uint64_t root;
};

static void each(void *ctx, const struct pr_shape_path *p)
{
	struct pr_project_rule rule = { p->path, PR_PROJECT_REDACT, NULL };
	struct pr_project *project = NULL;
	struct told *t = ctx;
	size_t bad;

	t->paths++;
	if (strcmp(p->path, "payload") == 0)
		t->root += p->seen;
	require(p->kinds != 0, "a place has a kind");
	if (pr_utf8_text(p->path, strlen(p->path)) && !strstr(p->path, "\\u0000") && strlen(p->path) < 60)
		require(pr_project_new(&rule, 1, NULL, 0, &project, &bad, NULL) == 0,
			"a told path is a rule's path");
	pr_project_free(project);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pr_shape *s = pr_shape_new(40, NULL);
	const uint8_t *end = data + size, *line = data;
	struct told t = { 0 };
	uint64_t taken = 0;

	while (line < end) {
		const uint8_t *stop = memchr(line, '\n', (size_t)(end - line));
		size_t len = (size_t)((stop ? stop : end) - line);
		char *text = malloc(len ? len : 1); /* exact: the sanitizer sees the end */
		int rc;

		if (!text)
			break;
		memcpy(text, line, len);
		rc = pr_shape_see(s, text, len, (int64_t)taken);
		require((rc >= 0) == pr_json_text(text, len), "it takes what jsonb takes");
		taken += rc >= 0;
		free(text);
		line += len + 1;
		if (taken % 3 == 2)
			pr_shape_tell(s, each, &t);
	}
	pr_shape_tell(s, each, &t);
	require(t.root >= taken, "no payload is lost");
	require(pr_shape_untold(s) == 0 && !pr_shape_fresh(s), "all is told");
	t.paths = 0;
	pr_shape_all(s, each, &t);
	require(t.paths <= 40, "places are bounded");
	pr_shape_free(s);
	return 0;
}
