/* producers/platform/unpack.h -- a body as it was before gzip or zstd, never longer than allowed. */
#ifndef PLATFORM_UNPACK_H
#define PLATFORM_UNPACK_H

#include "lib/json.h"

#include <stddef.h>

enum unpacked {
	UNPACK_OK,
	UNPACK_UNKNOWN,  /* no such Content-Encoding */
	UNPACK_BROKEN,   /* it is not what it says, or ends too early */
	UNPACK_TOO_LONG, /* more than most bytes */
};

/* encoding: of the header, NULL: none. Appends to b (NUL-terminated), also when it fails. */
enum unpacked unpack(const char *encoding, const char *s, size_t n, size_t most, struct pr_buf *b);

#endif
