/* cli/doctor.h -- `postrider doctor`: checks as rows of a table, each of which says lines that are ok, a
 * warning or a failure, the latter two with the command that mends it. Checks read and change nothing. One
 * thread. */
#ifndef PR_DOCTOR_H
#define PR_DOCTOR_H

#include "cli/cli.h"

enum doctor_word { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

/* What a check cannot do without; it is left out, and counted, where that is missing. */
enum {
	DOCTOR_PG = 1,       /* the database answers */
	DOCTOR_SCHEMA = 2,   /* and has our schemas */
	DOCTOR_KAFKA = 4,    /* a broker answers */
	DOCTOR_RELAY = 8,    /* it is an outbox that is looked at */
	DOCTOR_CONSUMER = 16 /* -c is a consumer's file */
};

struct doctor_line {
	enum doctor_word word;
	char *text, *fix; /* fix NULL: none; owned, safe to print only after cli_safe */
};

struct doctor_topic {
	const char *name; /* borrowed from metadata */
	const struct rd_kafka_metadata_topic *md;
	int64_t max_message_bytes, retention_ms; /* -1 unknown */
	int min_insync, unclean;
	char cleanup[64];
};

struct doctor {
	struct cli *c;
	int have; /* DOCTOR_... */
	struct pr_pg *pg;
	rd_kafka_t *rk;                     /* reads committed records */
	const struct rd_kafka_metadata *md; /* of all topics */
	struct doctor_topic *topics;        /* ours; the positions topic is none of them */
	int ntopics;
	char *target;              /* "-c relay.cfg": how commands name it, as a shell takes it */
	char *file;                /* the same for the program itself, which takes a file only */
	struct doctor_line *lines; /* of the check at work */
	int nlines;
	int64_t said[3];
	int left_out;
};

struct doctor_check {
	const char *name, *where;
	int needs;
	void (*run)(struct doctor *d); /* NULL: it is the statement */
	const char *sql;               /* rows: word, text, fix; of no parameters */
};

/* One more line of this check; doctor_fix is of the last one. */
void doctor_say(struct doctor *d, enum doctor_word word, const char *fmt, ...) PR_PRINTF(3, 4);
void doctor_fix(struct doctor *d, const char *fmt, ...) PR_PRINTF(2, 3);
void doctor_err(struct doctor *d, enum doctor_word word, const struct pr_err *err);
/* The rows of a statement as lines. */
void doctor_ask(struct doctor *d, const char *sql, int n, const char *const *params);
int doctor_ms(const struct doctor *d);

/* doctor_target.c: "-c FILE", and what --conninfo says without its passwords; d->target and d->file. */
void doctor_name_target(struct doctor *d);

/* doctor_postgres.c */
void doctor_server(struct doctor *d);
void doctor_clock(struct doctor *d);
void doctor_pooler(struct doctor *d);
void doctor_transactions(struct doctor *d);
void doctor_schema(struct doctor *d);
void doctor_rights(struct doctor *d);
void doctor_ranges(struct doctor *d);
void doctor_rows(struct doctor *d);
void doctor_held(struct doctor *d);
void doctor_relay(struct doctor *d);
void doctor_group(struct doctor *d);

/* doctor_kafka.c */
void doctor_library(struct doctor *d);
void doctor_brokers(struct doctor *d);
void doctor_settings(struct doctor *d);
void doctor_topics(struct doctor *d);
void doctor_positions(struct doctor *d);
void doctor_hanging(struct doctor *d);
void doctor_acls(struct doctor *d);
void doctor_close_kafka(struct doctor *d);
/* End, or end of what is committed, of a topic's partitions; one round trip. -1 when it cannot be had. */
int doctor_ends(struct doctor *d, rd_kafka_t *rk, const struct doctor_topic *t, int64_t time, int64_t *ret);

/* doctor_consumer.c */
void doctor_members(struct doctor *d);
void doctor_lanes(struct doctor *d);
void doctor_handler(struct doctor *d);

/* doctor_program.c */
void doctor_program(struct doctor *d);
void doctor_position(struct doctor *d);

#endif
