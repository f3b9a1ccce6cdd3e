/* consumers/sink/line.c -- a record as one line of JSON, and the format that is nothing but such lines.
 * Numbers keep their digits, for the payload is copied and not read. Refuses nothing: what is no text goes as
 * base64. */
#include "consumers/sink/sink.h"

#include "lib/clock.h"

#include <stdlib.h>
#include <string.h>

static void put_int(struct pr_buf *b, int64_t v)
{
	char text[24], *p = text + sizeof(text);
	uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;

	do {
		*--p = (char)('0' + u % 10);
		u /= 10;
	} while (u > 0);
	if (v < 0)
		*--p = '-';
	pr_buf_put(b, p, (size_t)(text + sizeof(text) - p));
}

static void put_id(struct pr_buf *b, const struct sink_row *row)
{
	if (row->id)
		pr_buf_json(b, row->id, row->id_len);
	else
		pr_buf_put(b, "null", 4);
}

static void put_key(struct pr_buf *b, const struct sink_row *row)
{
	if (!row->key) {
		pr_buf_put(b, "null", 4);
	} else if (pr_buf_json_plain(b, row->key, row->key_len)) {
		return;
	} else if (pr_utf8_text(row->key, row->key_len)) {
		pr_buf_json(b, row->key, row->key_len);
	} else {
		pr_buf_puts(b, "\"base64:");
		message_put_base64(b, row->key, row->key_len);
		pr_buf_put(b, "\"", 1);
	}
}

/* The seconds' text is kept: records come in the order of their time. */
static void put_time(struct pr_buf *b, int64_t time_us)
{
	static _Thread_local int64_t known = INT64_MIN;
	static _Thread_local char text[32];
	int64_t sec = time_us / PR_SEC, us = time_us % PR_SEC;

	if (time_us < 0) {
		pr_buf_put(b, "null", 4);
		return;
	}
	if (sec != known) {
		(void)pr_rfc3339(sec * PR_SEC, text + 1);
		text[0] = '"';
		known = sec;
	}
	for (int i = 26; i > 20; i--, us /= 10)
		text[i] = (char)('0' + us % 10);
	text[28] = '"';
	pr_buf_put(b, text, 29);
}

static void put_payload(struct pr_buf *b, const struct sink_row *row)
{
	if (!row->payload) {
		pr_buf_puts(b, "\"payload\":null");
	} else if (row->json) {
		pr_buf_puts(b, "\"payload\":");
		message_put_on_one_line(b, row->payload, row->payload_len);
	} else {
		pr_buf_puts(b, "\"payload_base64\":\"");
		message_put_base64(b, row->payload, row->payload_len);
		pr_buf_put(b, "\"", 1);
	}
}

/* Into the room there is: a few instructions when n is known. What ends the line brings the NUL. */
static inline void put_fixed(struct pr_buf *b, const char *s, size_t n)
{
	if (b->cap - b->len <= n) {
		pr_buf_put(b, s, n);
		return;
	}
	memcpy(b->s + b->len, s, n);
	b->len += n;
}

#define PUT(b, text) put_fixed((b), (text), sizeof(text) - 1)

void sink_line_put(struct pr_buf *b, const struct sink_row *row)
{
	PUT(b, "{\"id\":");
	put_id(b, row);
	PUT(b, ",\"type\":");
	pr_buf_json(b, row->type, row->type_len);
	PUT(b, ",\"topic\":\"");
	pr_buf_puts(b, row->topic); /* [A-Za-z0-9._-] */
	PUT(b, "\",\"partition\":");
	put_int(b, row->partition);
	PUT(b, ",\"offset\":");
	put_int(b, row->offset);
	PUT(b, ",\"key\":");
	put_key(b, row);
	PUT(b, ",\"time\":");
	put_time(b, row->time_us);
	PUT(b, ",\"headers\":");
	message_put_header_list(b, row->headers, row->headers_n);
	PUT(b, ",");
	put_payload(b, row);
	pr_buf_put(b, "}\n", 2);
}

/* ---------------------------------------------------------------- the format */

struct sink_encoder {
	struct sink_out *out;
};

static int line_open(const struct pr_sink_format_conf *conf, const char *seed, struct sink_out *out,
	struct sink_encoder **ret, struct pr_err *err)
{
	(void)conf;
	(void)seed;
	(void)err;
	*ret = pr_calloc(1, sizeof(**ret));
	(*ret)->out = out;
	return 0;
}

static int line_put(struct sink_encoder *e, const struct sink_row *row, struct pr_err *err)
{
	struct pr_buf *b = sink_out_buf(e->out);
	size_t before = b->len;

	sink_line_put(b, row);
	return sink_out_pushed(e->out, b->len - before, err);
}

static int line_finish(struct sink_encoder *e, struct pr_err *err)
{
	(void)e;
	(void)err;
	return 0;
}

static void line_close(struct sink_encoder *e)
{
	free(e);
}

const struct sink_format_ops sink_format_ndjson = { .name = "ndjson",
	.ext = "ndjson",
	.open = line_open,
	.put = line_put,
	.finish = line_finish,
	.close = line_close };

const struct sink_format_ops *sink_format_of(const struct pr_sink_format_conf *conf)
{
	static const struct sink_format_ops *const formats[] = { [PR_SINK_NDJSON] = &sink_format_ndjson,
		[PR_SINK_AVRO] = &sink_format_avro,
		[PR_SINK_PARQUET] = &sink_format_parquet };

	return formats[conf->format];
}
