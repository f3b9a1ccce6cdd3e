/* consumers/sink/project.c -- the operator's rules on a row: lib/project.c knows payload, key and single
 * headers, this knows rows. Refuses to let a payload through that rules are about and that nobody can read,
 * unless told to (unparsable = "keep"). */
#include "consumers/message.h"
#include "consumers/sink/sink.h"

#include "lib/project.h"

#include <stdlib.h>
#include <string.h>

struct sink_project {
	struct pr_project *rules;
	int unparsable;
	struct pr_buf payload, key, bytes; /* bytes: of headers, one after the other */
	struct header *headers;
	size_t headers_room;
};

int sink_project_new(const struct pr_sink_conf *conf, struct sink_project **ret, struct pr_err *err)
{
	struct pr_project *rules = NULL;

	*ret = NULL;
	if (conf->fields.n == 0)
		return 0;
	if (pr_sink_rules(conf, &rules, NULL, err) < 0)
		return -1;
	*ret = pr_calloc(1, sizeof(**ret));
	(*ret)->rules = rules;
	(*ret)->unparsable = conf->unparsable;
	return 0;
}

void sink_project_free(struct sink_project *p)
{
	if (!p)
		return;
	pr_project_free(p->rules);
	pr_buf_free(&p->payload);
	pr_buf_free(&p->key);
	pr_buf_free(&p->bytes);
	free(p->headers);
	free(p);
}

/* Bytes that are no JSON, and none of them: no tombstone. */
static void withhold(struct sink_row *row)
{
	row->payload = "";
	row->payload_len = 0;
	row->json = 0;
	row->withheld = 1;
}

static void project_payload(struct sink_project *p, struct sink_row *row)
{
	int rc = -1;

	if (!row->payload || !pr_project_of_payload(p->rules))
		return;
	p->payload.len = 0;
	if (row->json)
		rc = pr_project_payload(p->rules, row->payload, row->payload_len, &p->payload);
	if (rc > 0) {
		row->payload = p->payload.s;
		row->payload_len = p->payload.len;
	} else if (rc < 0 && p->unparsable == PR_SINK_UNPARSABLE_DROP) {
		withhold(row);
	}
}

static void project_key(struct sink_project *p, struct sink_row *row)
{
	if (!row->key)
		return;
	p->key.len = 0;
	switch (pr_project_key(p->rules, row->key, row->key_len, &p->key)) {
	case PR_PROJECT_GONE:
		row->key = NULL;
		row->key_len = 0;
		break;
	case PR_PROJECT_CHANGED:
		row->key = p->key.s;
		row->key_len = p->key.len;
		break;
	default:
		break;
	}
}

static int has_header(const struct sink_row *row, const char *name)
{
	for (size_t i = 0; name && i < row->headers_n; i++)
		if (strcmp(row->headers[i].name, name) == 0)
			return 1;
	return 0;
}

/* A header with its offset in bytes instead of its value, for bytes may move yet; -1: as it is. */
static int project_header(struct sink_project *p, const struct sink_row *row, const struct header *h,
	struct header *ret, ptrdiff_t *ret_at)
{
	const char *renamed = pr_project_renamed(p->rules, h->name);
	size_t at = p->bytes.len;

	*ret = *h;
	*ret_at = -1;
	switch (pr_project_header(p->rules, h->name, has_header(row, renamed), h->value ? h->value : "",
		h->len, &ret->name, &p->bytes)) {
	case PR_PROJECT_GONE:
		return 0;
	case PR_PROJECT_CHANGED:
		if (h->value) {
			*ret_at = (ptrdiff_t)at;
			ret->len = p->bytes.len - at;
		}
		return 1;
	default:
		return 1;
	}
}

static void project_headers(struct sink_project *p, struct sink_row *row)
{
	ptrdiff_t few[32], *at = few;
	size_t n = 0;

	if (row->headers_n == 0 || !pr_project_of_headers(p->rules))
		return;
	if (row->headers_n > p->headers_room) {
		p->headers_room = row->headers_n * 2;
		p->headers = pr_realloc(p->headers, p->headers_room * sizeof(*p->headers));
	}
	if (row->headers_n > sizeof(few) / sizeof(*few))
		at = pr_calloc(row->headers_n, sizeof(*at));
	p->bytes.len = 0;
	for (size_t i = 0; i < row->headers_n; i++)
		n += (size_t)project_header(p, row, &row->headers[i], &p->headers[n], &at[n]);
	for (size_t i = 0; i < n; i++)
		if (at[i] >= 0)
			p->headers[i].value = p->bytes.s + at[i];
	row->headers = p->headers;
	row->headers_n = n;
	if (at != few)
		free(at);
}

uint64_t sink_project_row(struct sink_project *p, struct sink_row *row)
{
	uint64_t misfits = pr_project_misfits(p->rules);

	project_payload(p, row);
	project_key(p, row);
	project_headers(p, row);
	return pr_project_misfits(p->rules) - misfits;
}
