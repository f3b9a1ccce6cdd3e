/* tests/fuzz/fuzz.h -- what the fuzz targets share: an assertion that stays in every build, and with
 * PR_FUZZ_REPLAY a main of our own, where there is no libFuzzer: it replays the files named by its arguments.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void require(int truth, const char *what)
{
	if (truth)
		return;
	(void)fprintf(stderr, "fuzz: not so: %s\n", what);
	abort();
}

#ifdef PR_FUZZ_REPLAY
static int replay(const char *path)
{
	static uint8_t data[2 << 20];
	FILE *f = fopen(path, "rb");
	size_t n;

	if (!f) {
		perror(path);
		return -1;
	}
	n = fread(data, 1, sizeof(data), f);
	(void)fclose(f);
	(void)LLVMFuzzerTestOneInput(data, n);
	return 0;
}

int main(int argc, char **argv)
{
	int failed = 0;

	for (int i = 1; i < argc; i++)
		failed |= replay(argv[i]) < 0;
	(void)printf("%s: %d inputs replayed\n", argv[0], argc - 1);
	return failed || argc < 2;
}
#endif

#endif
