/* consumers/args.c -- parameters in Postgres' text and binary formats. Refuses nothing: counts are the
 * caller's. */
#include "consumers/args.h"

#include <arpa/inet.h>
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void begin(struct args *a, Oid type, int format)
{
	if (a->n == ARGS_MAX)
		abort(); /* our own bug */
	a->at[a->n] = a->text.len;
	a->type[a->n] = type;
	a->format[a->n] = format;
	a->null[a->n] = 0;
}

void args_end(struct args *a)
{
	a->length[a->n] = (int)(a->text.len - a->at[a->n]);
	pr_buf_put(&a->text, "", 1); /* texts end with a NUL */
	a->n++;
}

void args_text(struct args *a, const char *s)
{
	begin(a, 0, 0);
	a->null[a->n] = s == NULL;
	if (s)
		pr_buf_puts(&a->text, s);
	args_end(a);
}

void args_text_n(struct args *a, const char *s, size_t n)
{
	begin(a, OID_TEXT, 1);
	a->null[a->n] = s == NULL;
	if (s)
		pr_buf_put(&a->text, s, n);
	args_end(a);
}

void args_int(struct args *a, int64_t v)
{
	begin(a, 0, 0);
	pr_buf_printf(&a->text, "%" PRId64, v);
	args_end(a);
}

struct pr_buf *args_begin(struct args *a, Oid type)
{
	begin(a, type, 1);
	return &a->text;
}

void args_binary(struct args *a, Oid type, const void *p, size_t n)
{
	begin(a, type, 1);
	a->null[a->n] = p == NULL;
	if (p)
		pr_buf_put(&a->text, p, n);
	args_end(a);
}

void args_bytes(struct args *a, const void *p, size_t n)
{
	args_binary(a, OID_BYTEA, p, n);
}

void args_uuid(struct args *a, const unsigned char id[16])
{
	args_binary(a, OID_UUID, id, 16);
}

static void put_be32(struct pr_buf *b, uint32_t v)
{
	v = htonl(v);
	pr_buf_put(b, &v, sizeof(v));
}

/* array_send's format: dimensions, has-null flag, element type, then size and lower bound of the dimension.
 */
void args_array(struct args *a, Oid array, Oid element, size_t n)
{
	begin(a, array, 1);
	put_be32(&a->text, n > 0);
	put_be32(&a->text, 0);
	put_be32(&a->text, element);
	if (n == 0)
		return;
	put_be32(&a->text, (uint32_t)n);
	put_be32(&a->text, 1);
}

void args_element(struct args *a, const void *p, size_t n)
{
	struct {
		uint32_t len;
		char bytes[16];
	} e = { .len = htonl((uint32_t)n) };

	if (n <= sizeof(e.bytes)) { /* at once: there are thousands */
		if (n > 0)
			memcpy(e.bytes, p, n);
		pr_buf_put(&a->text, &e, sizeof(e.len) + n);
		return;
	}
	put_be32(&a->text, (uint32_t)n);
	pr_buf_put(&a->text, p, n);
}

void args_element_int4(struct args *a, int32_t v)
{
	uint32_t be = htonl((uint32_t)v);

	args_element(a, &be, sizeof(be));
}

void args_element_int8(struct args *a, int64_t v)
{
	uint64_t be = htobe64((uint64_t)v);

	args_element(a, &be, sizeof(be));
}

struct pr_stmt args_stmt(struct args *a, const char *sql, int sync)
{
	for (int i = 0; i < a->n; i++)
		a->value[i] = a->null[i] ? NULL : a->text.s + a->at[i];
	return (struct pr_stmt){ .sql = sql,
		.n = a->n,
		.types = a->type,
		.values = a->value,
		.lengths = a->length,
		.formats = a->format,
		.sync = sync };
}

void args_free(struct args *a)
{
	pr_buf_free(&a->text);
	a->n = 0;
}
