/* cli/reconcile_api.c -- GET /facts of an API that keeps what it was sent (postrider-platform): all of the
 * window, page by page, into a file without a name of 16 bytes a fact; sorted there. Refuses a page without
 * end: each must begin behind the one before. */
#include "cli/reconcile.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct fact {
	uint32_t topic; /* of names */
	int32_t partition;
	int64_t offset;
};

struct facts {
	FILE *file;
	struct fact *v; /* mapped */
	size_t n;
	char **names;
	size_t names_n;
};

static uint32_t topic_number(struct facts *f, const char *name)
{
	for (size_t i = 0; i < f->names_n; i++)
		if (strcmp(f->names[i], name) == 0)
			return (uint32_t)i;
	f->names = pr_realloc(f->names, (f->names_n + 1) * sizeof(*f->names));
	f->names[f->names_n] = pr_strdup(name);
	return (uint32_t)f->names_n++;
}

static int put(struct facts *f, const cJSON *fact, struct pr_err *err)
{
	const char *topic = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(fact, "topic"));
	const cJSON *partition = cJSON_GetObjectItemCaseSensitive(fact, "partition"),
		    *offset = cJSON_GetObjectItemCaseSensitive(fact, "offset");
	struct fact one;

	/* What came from elsewhere than a topic is none of ours. */
	if (!topic || !cJSON_IsNumber(partition) || !cJSON_IsNumber(offset))
		return 0;
	one = (struct fact){ topic_number(f, topic), (int32_t)partition->valuedouble,
		(int64_t)offset->valuedouble };
	f->n++;
	return fwrite(&one, sizeof(one), 1, f->file) == 1
		       ? 0
		       : pr_fail(err, PR_REJECT, "cannot write a temporary file: %s", strerror(errno));
}

static void add_time(struct pr_buf *b, const char *name, int64_t us)
{
	char text[40];
	time_t t = (time_t)(us / 1000000);
	struct tm tm;

	(void)gmtime_r(&t, &tm);
	(void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	pr_buf_printf(b, "&%s=%s.%06lldZ", name, text, (long long)(us % 1000000));
}

/* 1: there is another page, from *after on. */
static int page(struct reconcile *r, const char *url, struct facts *f, char **after, struct pr_err *err)
{
	struct pr_buf path = { 0 };
	struct cli other = *r->c;
	char *body = NULL;
	const cJSON *list, *fact;
	cJSON *answer = NULL;
	const char *next;
	int status = 0, rc;

	pr_buf_puts(&path, "/facts?limit=500");
	if (r->windowed) {
		add_time(&path, "from", r->from_us);
		add_time(&path, "to", r->to_us);
	}
	if (*after) {
		char *text = curl_easy_escape(NULL, *after, 0);

		pr_buf_printf(&path, "&after=%s", text ? text : "");
		curl_free(text);
	}
	/* The token of a config is for who is named there. */
	other.loaded = other.consumer_loaded = NULL;
	rc = cli_fetch(&other, url, path.s, &status, &body, err);
	pr_buf_free(&path);
	if (rc < 0)
		return pr_wrap(err, "--api");
	if (rc == 0 && status != 200)
		rc = pr_fail(err, PR_REJECT, "%s/facts answers %d", url, status);
	if (rc == 0 && (!(answer = cJSON_Parse(body)) ||
			       !cJSON_IsArray(list = cJSON_GetObjectItemCaseSensitive(answer, "facts"))))
		rc = pr_fail(err, PR_REJECT, "%s/facts does not answer with facts", url);
	if (rc == 0) {
		cJSON_ArrayForEach(fact, list) if (rc == 0) rc = put(f, fact, err);
		next = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "next"));
		if (rc == 0 && next && *after && strcmp(next, *after) == 0)
			rc = pr_fail(err, PR_REJECT, "%s/facts gives the same page again", url);
		free(*after);
		*after = next ? pr_strdup(next) : NULL;
	}
	cJSON_Delete(answer);
	free(body);
	return rc < 0 ? -1 : *after != NULL;
}

static int by_place(const void *a, const void *b)
{
	const struct fact *x = a, *y = b;

	if (x->topic != y->topic)
		return x->topic < y->topic ? -1 : 1;
	if (x->partition != y->partition)
		return x->partition < y->partition ? -1 : 1;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int rec_facts_read(struct reconcile *r, const char *url, struct pr_err *err)
{
	struct facts *f = pr_calloc(1, sizeof(*f));
	char *after = NULL;
	int rc;

	r->facts = f;
	f->file = tmpfile();
	if (!f->file)
		return pr_fail(err, PR_REJECT, "no temporary file can be made: %s", strerror(errno));
	while ((rc = page(r, url, f, &after, err)) > 0)
		;
	free(after);
	if (rc < 0 || f->n == 0)
		return rc;
	if (fflush(f->file) != 0)
		return pr_fail(err, PR_REJECT, "cannot write a temporary file: %s", strerror(errno));
	f->v = mmap(NULL, f->n * sizeof(*f->v), PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f->file), 0);
	if (f->v == MAP_FAILED) {
		f->v = NULL;
		return pr_fail(err, PR_REJECT, "a temporary file cannot be mapped: %s", strerror(errno));
	}
	qsort(f->v, f->n, sizeof(*f->v), by_place);
	return 0;
}

void rec_facts_slice(struct reconcile *r, struct source *src)
{
	const struct facts *f = r->facts;
	struct fact from = { 0, r->s.partition, r->s.from };
	size_t lo = 0, hi = f->n;

	while (from.topic < f->names_n && strcmp(f->names[from.topic], r->s.topic) != 0)
		from.topic++;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (by_place(&f->v[mid], &from) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < f->n && f->v[lo].topic == from.topic && f->v[lo].partition == from.partition &&
		f->v[lo].offset < r->s.to;
		lo++)
		rec_saw(r, src, f->v[lo].offset, NULL, 0, 1);
}

void rec_facts_free(struct facts *f)
{
	if (!f)
		return;
	if (f->v)
		(void)munmap(f->v, f->n * sizeof(*f->v));
	if (f->file)
		(void)fclose(f->file);
	for (size_t i = 0; i < f->names_n; i++)
		free(f->names[i]);
	free(f->names);
	free(f);
}
