/* consumers/args.h -- the parameters of one statement, put together one by one. Bytes are copied. */
#ifndef CONSUMERS_ARGS_H
#define CONSUMERS_ARGS_H

#include "lib/json.h"
#include "lib/pg.h"

#define ARGS_MAX 24

/* Starts as {0}; args_free at the end. After args_stmt nothing may be added. */
struct args {
	struct pr_buf text;
	size_t at[ARGS_MAX];
	const char *value[ARGS_MAX];
	int length[ARGS_MAX], format[ARGS_MAX], null[ARGS_MAX], n;
	Oid type[ARGS_MAX];
};

void args_text(struct args *a, const char *s); /* NULL: null */
void args_text_n(struct args *a, const char *s, size_t n);
void args_int(struct args *a, int64_t v);
void args_bytes(struct args *a, const void *p, size_t n); /* bytea; p NULL: null */
void args_uuid(struct args *a, const unsigned char id[16]);
void args_binary(struct args *a, Oid type, const void *p, size_t n);

/* Binary bytes that the caller puts into the buffer itself, until args_end. */
struct pr_buf *args_begin(struct args *a, Oid type);
void args_end(struct args *a);

/* Arrays of one dimension in binary: begin, elements, args_end. */
void args_array(struct args *a, Oid array, Oid element, size_t n);
void args_element(struct args *a, const void *p, size_t n);
void args_element_int4(struct args *a, int32_t v);
void args_element_int8(struct args *a, int64_t v);

/* The statement, borrowing a until it was run. */
struct pr_stmt args_stmt(struct args *a, const char *sql, int sync);
void args_free(struct args *a);

#define OID_BYTEA      17
#define OID_INT8       20
#define OID_INT4       23
#define OID_TEXT       25
#define OID_INT4_ARRAY 1007
#define OID_TEXT_ARRAY 1009
#define OID_INT8_ARRAY 1016
#define OID_UUID       2950
#define OID_UUID_ARRAY 2951

#endif
