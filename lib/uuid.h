/* lib/uuid.h -- uuids as 16 bytes and as text. */
#ifndef PR_UUID_H
#define PR_UUID_H

#include <stddef.h>

/* 36 characters with hyphens or 32 without, either case; -1 for anything else. */
int pr_uuid_parse(const char *s, size_t n, unsigned char id[16]);

/* Lower case with hyphens into buf[37]; returns buf. */
char *pr_uuid_print(const unsigned char id[16], char *buf);

/* A uuid of version 8 made of the text: the first 16 bytes of its SHA-256, version and variant set. */
void pr_uuid_of_text(const char *s, size_t n, unsigned char id[16]);

#endif
