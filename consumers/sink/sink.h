/* consumers/sink/sink.h -- the data platform's copy of topics, each record in it once.
 *
 * store_sink.c  the lane's way: records into open cuts, cuts that are due through the machine; what is late
 * cut.c         the machine: the only place that changes a cut's state; ledger.c what the database holds
 *               of cuts; letters.c late records that are refused
 * files.c, s3.c  targets: files below a directory, objects in a bucket; pieces.c what both do while a cut is
 *               open; disk.c what is durable
 * manifest.c    what an hour has; hours.c which hours are over; owner.c whose directory or prefix it is
 * http.c, table.c  the other targets; batch.c what both do while a cut is open
 * line.c, avro.c, parquet.c  formats; out.c bytes on their way into a file; spool.c what waits on disk
 * project.c     what is left out, renamed, masked; catalogue.c what payloads look like
 *
 * A cut is a range [first, next) of a partition that becomes visible as a whole. While it is open its records
 * go to the target's temporary place and the position stays at first. When it is due:
 *   1. the target seals it: everything that is to be visible is durable, under no name that anybody reads;
 *   2. one transaction, fenced by the epoch, records it with its files (state 'recorded');
 *   3. the target publishes it;
 *   4. one transaction, fenced, says so (state 'published') and moves the position to next.
 * Whoever finds a recorded cut at his position finishes exactly that one: what is there is published (the
 * target's recover says what is), or the range is read again and cut at the same place. What was published
 * and comes by again, for a position was set back, is cut at the same place too, and has to be what it was:
 * an offset does not say that the topic is still the same one. A target whose table is in our own database
 * has one transaction instead of 2 to 4 (one_transaction). */
#ifndef CONSUMERS_SINK_H
#define CONSUMERS_SINK_H

#include "consumers/sink/spool.h"
#include "consumers/store.h"

#include "lib/sink_conf.h"

#include <openssl/evp.h>

#define SINK_SUM 32 /* SHA-256 */

/* ---------------------------------------------------------------- a record */

/* What formats and targets see of a record, after project.c. Everything is borrowed until put returns. */
struct sink_row {
	const char *id; /* as text; NULL: none */
	size_t id_len;
	const char *type; /* "" when missing */
	size_t type_len;
	const char *topic;
	int32_t partition;
	int64_t offset;
	int64_t time_us; /* of the record, since 1970; -1 unknown */
	const char *key; /* any bytes; NULL: none */
	size_t key_len;
	const struct header *headers; /* in order, names may come again; consumers/message.h */
	size_t headers_n;
	const char *payload; /* NULL: tombstone */
	size_t payload_len;
	int json;     /* it is one JSON text, valid UTF-8 */
	int withheld; /* rules are about a payload that they cannot read: it is "" instead, and no JSON */
};

/* ---------------------------------------------------------------- cuts */

/* One file (or object) of a cut; http and table have none. */
struct sink_file {
	char *path;      /* below the directory or prefix, as it will be called; owned, known once sealed */
	char *temp;      /* where it is until then (s3: upload id and parts' tags, as text); owned */
	int64_t hour_us; /* the hour's beginning, of its records' times in UTC */
	int late;
	int64_t records, bytes;
	int64_t first, last;         /* offsets of its first and last record */
	int64_t min_us, max_us;      /* of its records' times */
	unsigned char sum[SINK_SUM]; /* SHA-256 of its bytes */
};

/* What became of publishing a cut. */
enum sink_said {
	SINK_PUBLISHED,
	SINK_AGAIN,   /* not now: cut->why, and again_us (monotonic) when it is not at once */
	SINK_SPLIT,   /* too much, or something in it is bad: two halves, the second begins at split_at */
	SINK_REFUSED, /* one record, and this one never: a dead letter of class http and code cut->code */
	SINK_REREAD,  /* what we have of it is lost: the range is read again and cut at the same place */
};

enum sink_state { SINK_OPEN, SINK_SEALED, SINK_RECORDED };

struct sink_cut {
	struct sink_part *part;
	struct sink_cut *after; /* the next one of its part, first to last */
	enum sink_state state;  /* cut.c's to change, as all of this but what is said to be the target's */
	int64_t first, next;
	int64_t records, bytes; /* bytes: as the encoder made them, before compression */
	int64_t min_us, max_us; /* of the records' times; min > max: no record has one */
	int64_t watermark_us;   /* the youngest record of the partition before first; INT64_MIN: unknown */
	int64_t mark_us;        /* the same up to its end: of those that are not above ceiling_us */
	int64_t ceiling_us;     /* above it is the future, which says nothing of time; recorded */
	int64_t future_us;      /* the first time above it that was met: the ceiling stays below */
	int64_t oldest_us;      /* wall: record time of the oldest one in it */
	int64_t taken_us;   /* wall: when its first record was taken; 0: none was, or by an owner before */
	const char *reason; /* why it was cut: label of postrider_sink_cuts_total */
	unsigned tries;
	struct sink_letter *letters; /* letters.c: late ones that are refused, first to last */
	struct sink_letter *last_letter;
	size_t letters_n;

	/* the target's, filled by seal and publish */
	struct sink_file *files; /* owned; NULL, 0 of http and table */
	size_t files_n;
	void *batch; /* http, table: what it holds, freed by the target (forget, or when it is published) */
	enum sink_said said;
	int64_t again_us, split_at;
	char code[32];    /* REFUSED: "413", ... */
	char answer[600]; /* what the other side said; kept in sink.cut.answer */
	struct pr_err why;
};

/* A range that is to be cut exactly so: the database holds it. */
struct sink_forced {
	int64_t first, next;
	int refused;   /* its one record is to be a dead letter: code and answer say why */
	int published; /* before: what comes of it again has to be the same */
	int folded;    /* it was several, or its files are not known any more: nothing can come of it again */
	int looked;    /* recover was asked, and it has to be read again */
	int64_t records, bytes, min_us, max_us; /* times of its records; -1: none has one */
	int64_t mark_us, ceiling_us;            /* as the cut's; -1, INT64_MAX: there is none */
	char *letters;                          /* offsets of the cut's as the database has them: owned */
	int buried;                             /* and they are dead letters */
	char code[32], answer[600];
};

/* A partition in our hands. */
struct sink_part {
	struct sink_part *after;
	struct part *part; /* counted */
	struct sink_lane *lane;
	int64_t through;            /* next offset that is taken; below it all is in cuts; -1: any */
	int64_t watermark_us;       /* youngest record time taken; INT64_MIN: unknown */
	struct sink_cut *open;      /* NULL: none; else records go into it */
	struct sink_cut *cuts;      /* sealed or recorded, first to last; with one there is no open one */
	int64_t opened_us;          /* monotonic: when the open cut got its first record */
	struct sink_forced *forced; /* ascending; forced_at: the next one */
	size_t forced_n, forced_at;
	int forced_more; /* the database has more of them */
	int recovered;   /* what was recorded is dealt with, and taken_over was called */
	void *target;    /* the target's own: open files, ... */

	/* hours.c. Wall: it ended there when it was asked, and that is to be published; 0: nothing is. All
	 * that was in it by ended_us is; -1: not known. */
	int64_t end_asked_us, end, ended_us;
};

struct sink_trouble {
	char *topic;
	int32_t partition;
	unsigned tries;
	int64_t told_us; /* monotonic: the last time */
};

/* A lane's share. */
struct sink_lane {
	struct lane *l;
	struct sink_shared *shared;
	const struct sink_target_ops *ops;
	const struct pr_sink_conf *conf;
	struct sink_part *parts;
	void *target; /* the target's own, per lane: connections, compressor contexts, open files */
	struct sink_project *project;  /* project.c; NULL: nothing is changed */
	int ready;                     /* schema and target are there, on this connection */
	struct sink_trouble *troubles; /* partitions that the target does not take: told until it is over */
	size_t troubles_n;
	int64_t idle_moved_us, withheld_told_us, future_told_us;
	size_t letters_bytes;  /* of all parts' cuts */
	int manifest_failed;   /* one could not be written: it was said */
	rd_kafka_t *asker;     /* hours.c */
	int64_t hours_next_us; /* monotonic: the next look */
	int hours_end;         /* some may be over now */
	int hours_failed;      /* it was said */
	struct pr_buf scratch;
};

/* ---------------------------------------------------------------- targets */

/* All functions are called by the lane's thread. -1 with err: PR_RETRY and PR_REJECT are troubles that are
 * told and tried again with backoff; PR_STOP with exit 78 at the first open ends the process. */
struct sink_target_ops {
	const char *name; /* "files", ...: column target, metric label */
	int one_transaction;

	/* What the lane needs; called again until it went well, and after the lane's session was lost. */
	int (*open)(struct sink_lane *sl, struct pr_err *err);
	void (*close)(struct sink_lane *sl); /* the thread ends: everything, parts are forgotten before */

	/* A record of the open cut; sp->open is there, its numbers do not count the row yet. -1: everything
	 * that the open cut has so far is thrown away (forget), and read again. */
	int (*put)(struct sink_part *sp, const struct sink_row *row, struct pr_err *err);

	/* Ends the open cut: what it holds is durable (files: fsync) and moves into cut->files or cut->batch.
	 * -1: as put. */
	int (*seal)(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err);

	/* Publishes n recorded cuts of n different parts, and fills each one's said. May be called again for
	 * one that was published already, by us or by an owner before. With one_transaction: into the
	 * transaction that is open on l->pg; -1 rolls back. */
	int (*publish)(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err);

	/* NULL: never asked for. The second half's batch from the first's; both are recorded after that. */
	int (*split)(struct sink_part *sp, struct sink_cut *cut, struct sink_cut *second, struct pr_err *err);

	/* A cut that an owner before us recorded, files filled as sink.file has them. 1: it is published now
	 * (it was, or what was sealed is there and could be). 0: it has to be read again. NULL: 0. */
	int (*recover)(struct sink_part *sp, struct sink_cut *cut, struct pr_err *err);

	/* Optional: we are the owner now, and what was recorded is dealt with: what else owners before us
	 * left is nobody's. */
	void (*taken_over)(struct sink_part *sp);

	/* Frees what the open cut has of the target (sp->target), temporary files too. */
	void (*forget)(struct sink_part *sp);

	/* Frees what a cut has: published: only memory, else temporary files too. */
	void (*forget_cut)(struct sink_cut *cut, int published);

	/* After the position has moved: manifests. Optional; failures are told and do not matter. look: so is
	 * what they say of time, once a second. */
	void (*published)(struct sink_lane *sl, struct sink_cut **cuts, size_t n);
	void (*look)(struct sink_lane *sl);

	/* Where manifests go that are no files: the whole text under that path, or an error. NULL: files. */
	int (*keep)(struct sink_lane *sl, const char *path, const void *p, size_t n, struct pr_err *err);
	/* And how they are read: 1, or 0: there is none. */
	int (*fetch)(struct sink_lane *sl, const char *path, struct pr_buf *ret, struct pr_err *err);
};

/* sink_table_away: the table is in another database than the consumer's. */
extern const struct sink_target_ops sink_files, sink_http, sink_s3, sink_table, sink_table_away;

/* ---------------------------------------------------------------- bytes: out.c */

/* Where bytes end up: a file, an upload. fail-stop: after -1 nothing more is written to it. */
struct sink_dest {
	int (*write)(struct sink_dest *d, const void *p, size_t n, struct pr_err *err);
};

struct sink_press; /* a lane's compressor: one context for all its files */
struct sink_press *sink_press_new(enum pr_sink_compression how, int level);
void sink_press_free(struct sink_press *p); /* accepts NULL */

/* n bytes as one frame (zstd) or member (gzip) by itself, deterministic; *ret is the press's until the next
 * call. */
int sink_press_frame(
	struct sink_press *p, const void *s, size_t n, const void **ret, size_t *ret_n, struct pr_err *err);

/* Collects bytes, compresses them in chunks of a fixed size, sums and counts what goes to the destination. */
struct sink_out {
	struct sink_dest *dest;   /* borrowed */
	struct sink_press *press; /* borrowed; NULL: bytes go as they are */
	struct pr_buf buf;        /* not written yet */
	struct sink_roll roll;    /* nor is this, which is before it */
	int64_t in, out;          /* bytes taken, bytes written */
	EVP_MD_CTX *sum;
};
void sink_out_init(struct sink_out *o, struct sink_dest *dest, struct sink_press *press);
int sink_out_put(struct sink_out *o, const void *p, size_t n, struct pr_err *err);
/* The buffer as such, for who writes into it directly; sink_out_pushed after that. */
static inline struct pr_buf *sink_out_buf(struct sink_out *o)
{
	return &o->buf;
}
int sink_out_pushed(struct sink_out *o, size_t n, struct pr_err *err); /* n bytes were added to it */
/* Gives its memory back; the bytes that come out in the end are the same. */
int sink_out_spare(struct sink_out *o, struct pr_err *err);
int sink_out_end(struct sink_out *o, unsigned char sum[SINK_SUM], struct pr_err *err);
void sink_out_free(struct sink_out *o);

/* ---------------------------------------------------------------- formats */

struct sink_encoder;

/* Deterministic: the same rows give the same bytes, whenever and by whomever and whatever else is written
 * meanwhile (no clock, no chance; seed is made of topic, partition and the first offset). */
struct sink_format_ops {
	const char *name;
	const char
		*ext; /* "ndjson", "avro", "parquet": without a dot; out.c's compression adds .gz or .zst */
	int packs;    /* it compresses within: out has no press */
	/* Optional: what it needs beside us is there; PR_STOP, exit 78. */
	int (*check)(const struct pr_sink_format_conf *conf, struct pr_err *err);
	int (*open)(const struct pr_sink_format_conf *conf, const char *seed, struct sink_out *out,
		struct sink_encoder **ret, struct pr_err *err);
	int (*put)(struct sink_encoder *e, const struct sink_row *row, struct pr_err *err);
	/* Optional, both: bytes of memory that it keeps of what was put; gives it back, and changes nothing
	 * of what comes out. */
	size_t (*held)(const struct sink_encoder *e);
	int (*spare)(struct sink_encoder *e, struct pr_err *err);
	int (*finish)(struct sink_encoder *e, struct pr_err *err); /* the rest; the out is not ended */
	void (*close)(struct sink_encoder *e);                     /* accepts NULL */
};
extern const struct sink_format_ops sink_format_ndjson, sink_format_avro, sink_format_parquet;

const struct sink_format_ops *sink_format_of(const struct pr_sink_format_conf *conf);

/* line.c: the line of contracts 2, with its newline. */
void sink_line_put(struct pr_buf *b, const struct sink_row *row);

/* ---------------------------------------------------------------- names: names.c */

/* TOPIC/dt=YYYY-MM-DD/hour=HH/PARTITION-FIRST-LAST.EXT; late: TOPIC/late/dt=... Owned by the caller. */
char *sink_file_path(const char *topic, int64_t hour_us, int late, int32_t partition, int64_t first,
	int64_t last, const struct pr_sink_format_conf *conf);
int64_t sink_hour_of(int64_t time_us); /* of -1: 1970 */

/* Whether a record of that time is late, given the youngest one before it. */
int sink_is_late(const struct pr_sink_late_conf *late, int64_t time_us, int64_t watermark_us);

/* ---------------------------------------------------------------- what changes on the way: project.c */

struct sink_project;

/* *ret NULL: nothing is configured. A path that is none is refused with its place in the file
 * (pr_sink_fields_validate at --check; here again). */
int sink_project_new(const struct pr_sink_conf *conf, struct sink_project **ret, struct pr_err *err);
void sink_project_free(struct sink_project *p); /* accepts NULL */

/* Changes the row; what it then points to is the projection's until the next call. Never fails for what is in
 * the row. Returns how many values were left out of its payload because no rule could look into them. */
uint64_t sink_project_row(struct sink_project *p, struct sink_row *row);

/* ---------------------------------------------------------------- what payloads look like: catalogue.c */

struct sink_catalogue; /* one a process */

struct sink_catalogue *sink_catalogue_new(struct sink_shared *shared, const struct pr_sink_conf *conf);
void sink_catalogue_free(struct sink_catalogue *k); /* accepts NULL; its threads have ended */

/* Before the projection. Cheap; any lane's thread. */
void sink_catalogue_row(struct sink_catalogue *k, const struct sink_row *row);

/* What this thread's rows have taught goes to the database: at once when a place or a kind is new, else every
 * ten seconds. Called before a cut is recorded and when idle, outside of a transaction: what a record had is
 * known before the position passes it. Failures are told, and tried again: they stop nothing. */
void sink_catalogue_flush(struct sink_catalogue *k, struct pr_pg *pg);

/* ---------------------------------------------------------------- shared by all lanes: store_sink.c */

struct sink_shared {
	struct consumer *c;
	struct sink_catalogue *catalogue; /* NULL: none is kept */
	struct {
		struct pr_family *records, *bytes, *cuts; /* labels target,topic; target,topic; reason */
		struct pr_series *files, *manifests, *open_files, *lag, *drift, *late, *future;
		struct pr_series *withheld, *misfits; /* payloads, and values in them */
	} m;
	_Atomic int64_t open_files;            /* of all lanes */
	atomic_int unlisted;                   /* files are published that no manifest may have */
	_Atomic int64_t manifests_next_us;     /* monotonic: none is written before */
	atomic_int troubled;                   /* lanes with troubles */
	_Atomic int64_t oldest_us[LANES_MOST]; /* wall: of the lane's oldest record that is not published */
};

/* One a process, made at its first call. */
struct sink_shared *sink_shared_of(struct consumer *c);

/* ---------------------------------------------------------------- late ones that are refused: letters.c */

/* Whether the open cut takes one more, of so many bytes. */
int sink_letters_have_room(const struct sink_part *sp, size_t bytes);

/* Keeps what a dead letter has of m, with the open cut. */
void sink_letter_add(struct sink_part *sp, struct message *m);

/* Makes dead letters of those of the cuts, in a transaction that is open. */
int sink_letters_bury(struct sink_lane *sl, struct sink_cut **cuts, size_t n, struct pr_err *err);

void sink_letters_told(struct sink_lane *sl, const struct sink_cut *c); /* they are: counted, and said */
void sink_letters_free(struct sink_cut *c);

/* "{1,2}" of their offsets, "" when there are none; appended. Whether an offset is in such a text. */
void sink_letters_put(struct pr_buf *b, const struct sink_cut *c);
int sink_letters_have(const char *text, int64_t offset);

/* ---------------------------------------------------------------- the machine: cut.c */

/* Opens a cut at first; there is none open. A range that the database holds brings its own ceiling. */
struct sink_cut *sink_cut_open(struct sink_part *sp, int64_t first, int64_t ceiling_us);

/* It has reached its size, or was told to end (reason). */
int sink_part_is_due(struct sink_part *sp);

/* The next range that the database holds, at or behind the position; NULL: none. */
struct sink_forced *sink_part_forced(struct sink_part *sp);

/* Finishes what was recorded before us, seals what is due (all: everything that is open), records, publishes,
 * moves positions. 1: something was done, 0: nothing was to be done, -1: err (of code PRF01: parts are
 * fenced, and that is dealt with). */
int sink_cuts_run(struct sink_lane *sl, int all, struct pr_err *err);

/* Positions behind what is no record of ours. */
int sink_move_idle(struct sink_lane *sl, struct pr_err *err);

/* The open cut, and all that is sealed, is given up; what is recorded is the next owner's, who may be us. */
void sink_part_forget(struct sink_part *sp);

/* The same; and its partition is claimed again, in so many microseconds, and read from its position. */
void sink_part_again(struct sink_part *sp, int64_t delay_us);

/* It is to be read again, and must not be: that is said, and the part put off. */
void sink_say_folded(struct sink_part *sp, const struct sink_forced *f);

/* What the database holds of it, from the position on. */
int sink_part_load(struct sink_part *sp, struct pr_err *err);

/* The target does not take what the partition has: health says so until something of it is published, or it
 * is not ours any more. How long to wait before the next try. */
int64_t sink_trouble(struct sink_part *sp, const struct pr_err *err);
void sink_trouble_over(struct sink_part *sp);
void sink_troubles_look(struct sink_lane *sl);

/* A topic has other records than those that were published of it: what to do, as err's hint. */
void sink_hint_anew(const struct consumer *c, const char *topic, struct pr_err *err);

#endif
