/* lib/sink_conf.h -- the options of handler kind sink: handler.files, handler.http, handler.s3 and
 * handler.table, of which exactly one is set, and handler.fields. lib/sink_conf_table.h is their table. */
#ifndef PR_SINK_CONF_H
#define PR_SINK_CONF_H

#include "lib/conf.h"

enum pr_sink_target { PR_SINK_NONE, PR_SINK_FILES, PR_SINK_HTTP, PR_SINK_S3, PR_SINK_TABLE };
enum pr_sink_format { PR_SINK_NDJSON, PR_SINK_AVRO, PR_SINK_PARQUET };
enum pr_sink_compression { PR_SINK_PLAIN, PR_SINK_GZIP, PR_SINK_ZSTD };
enum pr_sink_late { PR_SINK_KEEP, PR_SINK_SIDE, PR_SINK_REJECT };
enum pr_sink_mode { PR_SINK_APPEND, PR_SINK_UPSERT, PR_SINK_SCD2 };
enum pr_sink_tombstones { PR_SINK_DELETE_ROW, PR_SINK_KEEP_ROW };
enum pr_sink_action { PR_SINK_DROP, PR_SINK_HASH, PR_SINK_REDACT, PR_SINK_RENAME, PR_SINK_PICK };
enum pr_sink_unparsable { PR_SINK_UNPARSABLE_KEEP, PR_SINK_UNPARSABLE_DROP };

/* When a cut is due: whichever comes first. */
struct pr_sink_cut_conf {
	int64_t max_records;
	int64_t max_bytes;
	int64_t max_age_us; /* of its first record in our hands */
	int64_t keep_us;    /* how it was cut is known for so long */
};

/* How records become bytes. */
struct pr_sink_format_conf {
	int format;      /* enum pr_sink_format */
	int compression; /* enum pr_sink_compression */
	int64_t level;
	int64_t row_group;     /* parquet, avro: records of a group, of a block */
	char *parquet_library; /* DuckDB's; NULL: libduckdb.so where the system has it */
};

struct pr_sink_late_conf {
	int policy;       /* enum pr_sink_late */
	int64_t after_us; /* an hour is over so long after its end */
};

/* One of handler.fields. */
struct pr_sink_field {
	char *path;
	int action; /* enum pr_sink_action */
	char *to;   /* rename: the member's new name */
};

struct pr_sink_conf {
	struct {
		char *directory;
		struct pr_sink_format_conf format;
		struct pr_sink_cut_conf cut;
		int64_t open_files; /* of all lanes together */
		struct pr_sink_late_conf late;
		int manifest;
	} files;
	struct {
		char *url;
		int compression; /* enum pr_sink_compression */
		int64_t level;
		struct pr_sink_cut_conf cut;
		int64_t timeout_us;
		char *secret;
		struct pr_strs headers;
	} http;
	struct {
		char *endpoint;
		char *bucket;
		char *prefix;
		char *region;
		char *access_key; /* NULL: AWS_ACCESS_KEY_ID */
		char *secret_key; /* NULL: AWS_SECRET_ACCESS_KEY */
		int path_style;
		int64_t part_bytes;
		int64_t timeout_us;
		struct pr_sink_format_conf format;
		struct pr_sink_cut_conf cut;
		struct pr_sink_late_conf late;
		int manifest;
	} s3;
	struct {
		char *conninfo; /* NULL: database.conninfo */
		char *table;
		int mode;       /* enum pr_sink_mode */
		int tombstones; /* enum pr_sink_tombstones: of upsert */
		struct pr_strs key;
		struct pr_sink_cut_conf cut;
		int create;
	} table;
	struct pr_groups fields; /* struct pr_sink_field */
	char *hash_key;
	int unparsable; /* enum pr_sink_unparsable: of a payload that is no JSON, when fields has paths in it
			 */
	int catalogue;
};

extern const struct pr_opt pr_sink_field_options[];

enum pr_sink_target pr_sink_target_of(const struct pr_sink_conf *c);
const char *pr_sink_target_str(enum pr_sink_target t); /* "files", "http", "s3", "table" */

/* The cut options of the target that is set. */
const struct pr_sink_cut_conf *pr_sink_cut_of(const struct pr_sink_conf *c);

/* mine: handler.kind is sink; otherwise none of its options may be set. */
int pr_sink_conf_validate(
	const struct pr_sink_conf *c, int mine, const struct pr_conf *conf, struct pr_err *err) PR_MUSTCHECK;

struct pr_project;

/* The rules of handler.fields, compiled. conf NULL: an error has no place in the file. The caller frees. */
int pr_sink_rules(const struct pr_sink_conf *c, struct pr_project **ret, const struct pr_conf *conf,
	struct pr_err *err) PR_MUSTCHECK;

#endif
