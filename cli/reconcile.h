/* cli/reconcile.h -- what the files of `postrider reconcile` share.
 *
 * Every source but the outbox knows a record by topic, partition and offset, so sets are arrays over a range
 * of offsets: one partition at a time, a slice of SLICE offsets at a time, a byte for each offset and source,
 * and the ids of the slice. Ten million records or a thousand million take the same memory, 20 MB beside
 * what librdkafka reads ahead, and nothing is sorted. The outbox knows its events by number (header
 * outbox-seq): a byte for each number between the first and the last row of the window. Facts of --api come
 * in the order of their times: they are sorted in a file without a name, 16 bytes each. */
#ifndef PR_RECONCILE_H
#define PR_RECONCILE_H

#include "cli/cli.h"
#include "lib/s3.h"

#define SLICE     (256 * 1024)
#define MOST_SEQS ((int64_t)1 << 28) /* of the outbox' rows in a window: bytes */

enum {                /* of an offset, as the topic says */
	R_THERE = 1,  /* a record that readers see */
	R_WINDOW = 2, /* its time is in the window */
	R_NULL = 4,   /* a tombstone */
};

enum {                  /* of an offset, as a source says */
	S_TIMES = 3,    /* how often: 3 is more than twice */
	S_DEAD = 4,     /* a dead letter tells of it */
	S_FILTERED = 8, /* the sink's filter leaves it out */
	S_FOLDED = 16,  /* published, and in which file the ledger does not know any more */
};

struct slice {
	const char *topic;
	int32_t partition;
	int64_t start; /* of the partition's first slice */
	int64_t from, to;
	uint8_t *flags;
	uint32_t *id_at; /* into ids */
	uint32_t *hour;  /* of its time, since 1970 */
	struct pr_buf ids;
};

struct reach;

/* A sink by its config, or the facts of an API. */
struct source {
	const char *file; /* NULL: --api */
	char name[100];   /* "files of seat" */
	struct pr_consumer_conf conf;
	struct pr_conf *loaded;
	struct pr_pg *pg, *table_pg; /* table_pg: NULL, or the table's own database */
	struct pr_s3 *s3;            /* of target s3 */
	enum pr_sink_target target;
	int reads;    /* the topic of the moment */
	int by_key;   /* a table with a row a key: what is missing cannot be told */
	int64_t next; /* of the partition: the sink has come to it; -1: nothing yet */
	uint8_t *seen;
	int64_t records, missing, twice, extra, dead, filtered, waiting;
	int64_t untold;       /* of S_FOLDED: nobody can tell */
	int64_t gone;         /* records of the window that the topic has dropped: not compared */
	int64_t files, bytes; /* looked at */
	struct reach *reach;  /* reconcile_files.c: files that go on in the next slice */
	size_t reach_n;
	struct pr_buf quoted; /* the table's name */
};

struct outbox {
	struct pr_pg *pg;
	int looked;
	int64_t from, to; /* numbers */
	uint8_t *seqs;    /* Q_ROW, and how often a record has it */
	int64_t oldest;   /* number of the oldest row there is */
	int64_t rows, missing, twice, extra, parked, skipped;
};
enum { Q_ROW = 1, Q_ONCE = 2, Q_TWICE = 4 };

struct finding {
	const char *what; /* a word of docs: missing, twice, ... */
	const char *source;
	char *id, *topic, *path, *detail;
	int32_t partition;
	int64_t offset; /* -1: none */
};

struct facts; /* of --api */

struct reconcile {
	struct cli *c;
	int64_t from_us, to_us; /* INT64_MIN, INT64_MAX: no window */
	int windowed;
	int64_t slack_us;
	struct source *sources;
	size_t n;
	char **topics;
	size_t topics_n;
	struct pr_relay_conf relay;
	struct pr_conf *relay_loaded;
	struct outbox out;
	struct facts *facts;
	struct cli_topic topic;
	struct slice s;
	int64_t lo;      /* first offset that the partition still has */
	int64_t records; /* of the topics, in the window */
	struct finding *found;
	int64_t found_n, limit; /* of all; kept are limit */
	struct cli_progress progress;
};

/* reconcile.c */
void rec_find(struct reconcile *r, const struct finding *f); /* copies */
/* Of an offset of the slice: the id when the topic has it. */
void rec_find_at(
	struct reconcile *r, const char *what, const char *source, int64_t offset, const char *detail);
int rec_hour_in(const struct reconcile *r, int64_t hour_us);
const char *rec_keep_of(const struct source *src); /* "handler.files.keep" */
/* A source holds the record; id NULL: not known. in_window: of one that the topic does not have. */
void rec_saw(struct reconcile *r, struct source *src, int64_t offset, const char *id, size_t id_len,
	int in_window);

/* reconcile_load.c: configs, connections */
int rec_load(struct reconcile *r, struct pr_err *err);
void rec_release(struct reconcile *r);

/* reconcile_source.c: a source's share of the slice */
int rec_position(struct reconcile *r, struct source *src, struct pr_err *err);
int rec_stretch(struct reconcile *r, struct source *src, int64_t *from, int64_t *to, struct pr_err *err);
int rec_source(struct reconcile *r, struct source *src, struct pr_err *err);

/* reconcile_files.c */
int rec_files(struct reconcile *r, struct source *src, struct pr_err *err);
/* The partition's last slice is done. */
void rec_files_end(struct source *src);
void rec_find_file(struct reconcile *r, struct source *src, const char *what, const char *topic,
	const char *path, char *detail); /* takes detail */

/* reconcile_manifest.c: manifests, and files that no cut knows: of a topic, when its partitions are done */
int rec_directory(struct reconcile *r, struct source *src, const char *topic, struct pr_err *err);

/* reconcile_file.c: one file: 0 and what it holds, or 1 and why not (text in err) */
struct rec_line {
	char id[128];
	size_t id_len;
	int64_t offset, partition;
	int in_window;
};
int rec_read_file(const char *path, int64_t from_us, int64_t to_us, int lines,
	void (*each)(void *ctx, const struct rec_line *line), void *ctx, int64_t *ret_bytes, char sha256[65],
	int64_t *ret_lines, struct pr_err *err);

/* reconcile_outbox.c */
int rec_outbox_begin(struct reconcile *r, struct pr_err *err);
void rec_outbox_saw(struct reconcile *r, const rd_kafka_message_t *m, rd_kafka_headers_t *h);
int rec_outbox_end(struct reconcile *r, struct pr_err *err);
int64_t rec_outbox_left(const struct reconcile *r); /* rows of which no record was seen yet */

/* reconcile_api.c */
int rec_facts_read(struct reconcile *r, const char *url, struct pr_err *err);
void rec_facts_slice(struct reconcile *r, struct source *src);
void rec_facts_free(struct facts *f);

/* reconcile_print.c */
void rec_print(const struct reconcile *r);

#endif
