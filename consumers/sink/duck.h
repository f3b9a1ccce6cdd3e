/* consumers/sink/duck.h -- the part of DuckDB's C API that writing Parquet needs, as a plug-in: found when it
 * is first needed, so that nothing else depends on it. The declarations are ours; the API is DuckDB's stable
 * one. */
#ifndef CONSUMERS_SINK_DUCK_H
#define CONSUMERS_SINK_DUCK_H

#include "lib/err.h"

#include <stdint.h>

enum duck_type { DUCK_INTEGER = 4, DUCK_BIGINT = 5, DUCK_VARCHAR = 17, DUCK_TIMESTAMP_TZ = 31 };

struct duck_result {
	uint64_t unused[3];
	void *columns;
	char *message;
	void *internal;
};

struct duck_list_entry {
	uint64_t offset, length;
};

/* name, result, parameters */
#define DUCK_FUNCTIONS(F)                                                                                    \
	F(library_version, const char *, (void))                                                             \
	F(vector_size, uint64_t, (void))                                                                     \
	F(free, void, (void *))                                                                              \
	F(create_config, int, (void **))                                                                     \
	F(set_config, int, (void *, const char *, const char *))                                             \
	F(destroy_config, void, (void **))                                                                   \
	F(open_ext, int, (const char *, void **, void *, char **))                                           \
	F(close, void, (void **))                                                                            \
	F(connect, int, (void *, void **))                                                                   \
	F(disconnect, void, (void **))                                                                       \
	F(query, int, (void *, const char *, struct duck_result *))                                          \
	F(result_error, const char *, (struct duck_result *))                                                \
	F(destroy_result, void, (struct duck_result *))                                                      \
	F(create_logical_type, void *, (int))                                                                \
	F(create_map_type, void *, (void *, void *))                                                         \
	F(destroy_logical_type, void, (void **))                                                             \
	F(create_table_function, void *, (void))                                                             \
	F(destroy_table_function, void, (void **))                                                           \
	F(table_function_set_name, void, (void *, const char *))                                             \
	F(table_function_add_parameter, void, (void *, void *))                                              \
	F(table_function_set_bind, void, (void *, void (*)(void *)))                                         \
	F(table_function_set_init, void, (void *, void (*)(void *)))                                         \
	F(table_function_set_function, void, (void *, void (*)(void *, void *)))                             \
	F(register_table_function, int, (void *, void *))                                                    \
	F(bind_add_result_column, void, (void *, const char *, void *))                                      \
	F(bind_get_parameter, void *, (void *, uint64_t))                                                    \
	F(get_int64, int64_t, (void *))                                                                      \
	F(destroy_value, void, (void **))                                                                    \
	F(bind_set_bind_data, void, (void *, void *, void (*)(void *)))                                      \
	F(init_set_max_threads, void, (void *, uint64_t))                                                    \
	F(function_get_bind_data, void *, (void *))                                                          \
	F(function_set_error, void, (void *, const char *))                                                  \
	F(data_chunk_get_vector, void *, (void *, uint64_t))                                                 \
	F(data_chunk_set_size, void, (void *, uint64_t))                                                     \
	F(vector_get_data, void *, (void *))                                                                 \
	F(vector_get_validity, uint64_t *, (void *))                                                         \
	F(vector_ensure_validity_writable, void, (void *))                                                   \
	F(validity_set_row_invalid, void, (uint64_t *, uint64_t))                                            \
	F(vector_assign_string_element_len, void, (void *, uint64_t, const char *, uint64_t))                \
	F(list_vector_get_child, void *, (void *))                                                           \
	F(list_vector_set_size, int, (void *, uint64_t))                                                     \
	F(list_vector_reserve, int, (void *, uint64_t))                                                      \
	F(struct_vector_get_child, void *, (void *, uint64_t))

struct duck {
#define DUCK_FIELD(name, result, parameters) result(*name) parameters;
	DUCK_FUNCTIONS(DUCK_FIELD)
#undef DUCK_FIELD
};

/* Loads it, once a process: path, or where the system keeps libduckdb.so when path is NULL. PR_STOP, exit 78,
 * with what to do: it is not there, or is no DuckDB. */
const struct duck *duck_load(const char *path, struct pr_err *err);

#endif
