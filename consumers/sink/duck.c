/* consumers/sink/duck.c -- finds DuckDB's library and its functions. Refuses a library that lacks one of
 * them: by name, at the start, and not in the midst of a file. */
#include "consumers/sink/duck.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static struct {
	pthread_mutex_t mutex;
	void *library;
	struct duck functions;
} loaded = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static int refuse(struct pr_err *err, const char *what, const char *why)
{
	(void)pr_fail(err, PR_STOP, "format parquet needs DuckDB's library: %s%s%s", what, why ? ": " : "",
		why ? why : "");
	if (err)
		err->exit = PR_EX_CONFIG;
	return pr_hint(err, "\"make setup\" fetches it; parquet_library names the file (libduckdb.so of "
			    "DuckDB 1.2 or newer), or set the format to avro or ndjson");
}

static int find_all(void *library, struct duck *d, struct pr_err *err)
{
	const struct {
		const char *name;
		void *to;
	} functions[] = {
#define DUCK_NAME(name, result, parameters) { "duckdb_" #name, &d->name },
		DUCK_FUNCTIONS(DUCK_NAME)
#undef DUCK_NAME
	};

	for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
		void *at = dlsym(library, functions[i].name);

		if (!at)
			return refuse(err, "it lacks", functions[i].name);
		memcpy(functions[i].to, &at, sizeof(at)); /* ISO C has no cast for it */
	}
	return 0;
}

static int load(const char *path, struct pr_err *err)
{
	void *library = dlopen(path ? path : "libduckdb.so", RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return refuse(err, dlerror(), NULL);
	if (find_all(library, &loaded.functions, err) < 0) {
		(void)dlclose(library);
		return -1;
	}
	loaded.library = library;
	return 0;
}

const struct duck *duck_load(const char *path, struct pr_err *err)
{
	int rc;

	(void)pthread_mutex_lock(&loaded.mutex);
	rc = loaded.library ? 0 : load(path, err);
	(void)pthread_mutex_unlock(&loaded.mutex);
	return rc == 0 ? &loaded.functions : NULL;
}
