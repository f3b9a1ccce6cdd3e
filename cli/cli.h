/* cli/cli.h -- the operator's tool: one table of verbs from which the parser, the help
 * texts, the completions, the man page and docs/reference/cli.md are made. One process,
 * one verb, one thread. Verbs print data on stdout and talk on stderr. */
#ifndef PR_CLI_H
#define PR_CLI_H

#include "lib/consumer_conf.h"
#include "lib/err.h"
#include "lib/json.h"
#include "lib/kafka.h"
#include "lib/pg.h"
#include "lib/relay_conf.h"

#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <librdkafka/rdkafka.h>
#include <stdint.h>
#include <stdio.h>

enum cli_type {
	CLI_FLAG,     /* takes no value */
	CLI_STR,      /* any text, not empty */
	CLI_FILE,     /* a path; completion offers files */
	CLI_INT,      /* min..max, "5M" */
	CLI_DURATION, /* "10s": min..max in microseconds */
	CLI_SIZE,     /* "1kB" */
	CLI_UUID,     /* 8-4-4-4-12 hexadecimal digits */
	CLI_TIME,     /* RFC 3339 with a zone, or "+10m" from now */
	CLI_PAST,     /* RFC 3339 with a zone, or "-10m" before now */
	CLI_PAIR,     /* name=value */
	CLI_TOPIC,    /* a topic name Kafka accepts */
	CLI_NAME,     /* an outbox's name: part of topic names and of the transactional id */
	CLI_CONNINFO, /* libpq's "host=... dbname=..." or a URI */
	CLI_URL,      /* http:// or https:// */
};

struct cli_opt {
	const char *name; /* "limit" for --limit; NULL ends a table */
	char letter;      /* 'l' for -l; 0: none */
	const char *arg;  /* the value's name in the help; NULL for a flag */
	enum cli_type type;
	const char *doc; /* one sentence or two, no full stop needed by anybody else */
	const char *def; /* shown in the help; "" when there is none worth showing */
	int64_t min, max;
	int many;          /* may be given more than once */
	const char *words; /* of CLI_STR: "dead retried": one of these; NULL: anything */
};

struct cli;

struct cli_verb {
	const char *name;  /* "status", "parked list"; NULL ends the table */
	const char *group; /* heading in the overview */
	const char *args;  /* operands as the synopsis shows them, or "" */
	const char *words; /* operands that completion offers: "bash zsh fish"; NULL: none */
	int min_args, max_args;
	const char *does;           /* one line */
	const char *doc;            /* paragraphs, separated by an empty line */
	const char *json;           /* what --json prints, documented; NULL: no --json */
	const char *examples;       /* lines: a command, or "# what the next one does" */
	const struct cli_opt *opts; /* ended by name NULL */
	int consumer; /* -c is a consumer's config file; otherwise it may be a relay's or a consumer's */
	int (*run)(struct cli *c); /* returns an exit code */
};

extern const struct cli_verb cli_verbs[];

/* A parsed command line. Values are borrowed from argv. */
struct cli_value {
	const struct cli_opt *opt;
	const char *text;
	int64_t number; /* of INT, DURATION (us), SIZE (bytes), TIME (us since 1970) */
};

struct cli {
	const struct cli_verb *verb;
	struct cli_value *values;
	int nvalues;
	char **args;
	int nargs;
	/* target.c: what -c and the environment said */
	struct pr_relay_conf conf;
	struct pr_conf *loaded; /* NULL without -c of a relay */
	struct pr_consumer_conf consumer;
	struct pr_conf *consumer_loaded; /* NULL without -c of a consumer */
};

/* args.c: -1 with usage errors in err (exit 2). c->verb is set as soon as it is known. */
int cli_parse(struct cli *c, int argc, char **argv, struct pr_err *err) PR_MUSTCHECK;
void cli_release(struct cli *c);
int cli_has(const struct cli *c, const char *name);
const char *cli_str(const struct cli *c, const char *name);                /* NULL when not given */
int64_t cli_int(const struct cli *c, const char *name, int64_t otherwise); /* its number */
const char *cli_nth(const struct cli *c, const char *name, int n);         /* of a repeatable option */
int cli_parse_time(const char *s, int64_t *ret_wall_us, struct pr_err *err) PR_MUSTCHECK;
int cli_is_uuid(const char *s);

/* A usage error: exit 2. Returns -1. */
int cli_usage(struct pr_err *err, const char *fmt, ...) PR_PRINTF(2, 3);

/* help.c, completion.c: generated from the table. */
void cli_help_overview(FILE *f);
void cli_help_verb(FILE *f, const struct cli_verb *v);
void cli_usage_line(FILE *f, const struct cli_verb *v);
void cli_help_man(FILE *f);
void cli_help_markdown(FILE *f);
void cli_complete_bash(FILE *f);
void cli_complete_zsh(FILE *f);
void cli_complete_fish(FILE *f);
const struct cli_verb *cli_find(const char *name);
int cli_is_prefix(const char *word); /* "parked" of "parked list" */

/* out.c: the screen. */
enum cli_colour { CLI_PLAIN, CLI_BOLD, CLI_DIM, CLI_GREEN, CLI_YELLOW, CLI_RED };
int cli_tty(FILE *f);
int cli_width(FILE *f);                              /* COLUMNS, the terminal's, or 80 */
const char *cli_on(FILE *f, enum cli_colour colour); /* "" unless colours are wanted */
const char *cli_off(FILE *f);
void cli_safe(FILE *f, const char *s, size_t n); /* control bytes, ANSI and bidi escapes made visible */
char *cli_safe_str(const char *s);               /* the same, malloc'd */
size_t cli_cells(const char *s);                 /* terminal cells of a safe string */
size_t cli_fit(const char *s, size_t max, size_t *ret_cells); /* bytes of s that fill at most max cells */
/* Prints text in lines that fit (at most 100 cells), from column `at`, the others from `indent`. An empty
 * line separates paragraphs. For our own words and for text made safe before. */
void cli_fill(FILE *f, const char *text, int at, int indent);
/* Data: made safe; filled on a terminal, one line for another program. */
void cli_text(FILE *f, const char *text, int at, int indent);
void cli_say(const char *fmt, ...) PR_PRINTF(1, 2);  /* talk: a line on stderr */
void cli_hint(const char *fmt, ...) PR_PRINTF(1, 2); /* "hint: ..." on stderr */
void cli_warn(const char *fmt, ...) PR_PRINTF(1, 2); /* "warning: ..." on stderr */
int cli_fail(const struct pr_err *err);              /* prints it, returns its exit code */
int cli_failed(
	const struct cli *c, const struct pr_err *err);     /* the same, with the usage when it is exit 2 */
char *cli_count(int64_t n, char *buf);                      /* "1,204,118" into buf[32] */
char *cli_number(int64_t n, const char *what, char *buf);   /* "1 event", "1,204 events" into buf[64] */
char *cli_span(double seconds, char *buf);                  /* "3 d 4 h", "12.3 s" into buf[48] */
void cli_json_int(cJSON *obj, const char *name, int64_t n); /* all digits */
void cli_json_cell(cJSON *obj, const char *name, const PGresult *res, int row, int col, int number);
void cli_json_line(const cJSON *obj); /* one line on stdout; takes nothing */
void cli_json_free_line(cJSON *obj);  /* the same, then frees it */
int cli_flush(int rc); /* rc, or 1 when stdout could not be written; a closed pipe is no error */
int cli_gone(void);    /* stdout's reader is gone */

/* table.c */
struct cli_table {
	int ncols;
	/* ">name": a number, aligns right; "!name": an id, never cut; "=name": told once above when all rows
	 * say the same and there is too little room; "~name", of the last one only: goes below its row then.
	 */
	const char *const *heads;
	char ***rows; /* safe strings, owned */
	int nrows;
};
void cli_table_add(struct cli_table *t, const char *const *cells); /* copies, makes safe */
void cli_table_print(struct cli_table *t, FILE *f);                /* and empties it */

/* payload.c */
void cli_json_indent(struct pr_buf *b, const char *s, size_t n, int compact); /* of what is JSON */
void cli_lines(FILE *f, const char *s, size_t n, int indent);                 /* safe, line by line */
void cli_hexdump(FILE *f, const char *s, size_t n, int indent);
void cli_payload(FILE *f, const char *s, size_t n, size_t most, int indent); /* s NULL: a tombstone */
void cli_json_payload(
	cJSON *obj, const char *s, size_t n); /* "payload", or "payload_base64" of what is no JSON */

/* topic.c: a topic as a reader of committed records sees it. */
struct cli_topic {
	rd_kafka_t *rk;
	const char *name; /* borrowed */
	int partitions;
	int64_t *lo, *hi; /* first offset and the one behind the last, by partition */
};
/* A consumer of committed records that joins no group and commits nothing; reset and wait_ms as librdkafka's
 * auto.offset.reset and fetch.wait.max.ms. */
rd_kafka_t *cli_reader(struct cli *c, const char *reset, const char *wait_ms, struct pr_err *err);
int cli_topic_open(struct cli *c, const char *name, struct cli_topic *ret, struct pr_err *err) PR_MUSTCHECK;
void cli_topic_close(struct cli_topic *t); /* accepts a zeroed one */
/* Every topic of the cluster but the internal ones, in no order. */
int cli_topic_names(
	struct cli *c, void (*each)(void *ctx, const char *name), void *ctx, struct pr_err *err) PR_MUSTCHECK;
/* Whether -c's consumer reads a topic of that name, or -c's relay (or any, without -c) may write to it. */
int cli_is_topic_of(const struct cli *c, const char *name);
int cli_topic_at(const struct cli *c, const struct cli_topic *t, int64_t wall_us, int64_t *ret,
	struct pr_err *err) PR_MUSTCHECK;
int cli_topic_end(const struct cli *c, const struct cli_topic *t, int partition, int64_t *ret,
	struct pr_err *err) PR_MUSTCHECK; /* now */
/* Every record in [from, to) of each partition; each returns other than 0 to end early. */
int cli_topic_read(const struct cli *c, const struct cli_topic *t, const int64_t *from, const int64_t *to,
	int (*each)(void *ctx, const rd_kafka_message_t *m), void *ctx, struct pr_err *err) PR_MUSTCHECK;

/* editor.c */
int cli_read_file(
	const char *file, char **ret, size_t *ret_len, struct pr_err *err) PR_MUSTCHECK; /* or "-" */
int cli_write_file(
	const struct cli *c, const char *file, const struct pr_buf *b, struct pr_err *err) PR_MUSTCHECK;
int cli_edit(const char *text, size_t len, const char *suffix, char **ret, size_t *ret_len,
	struct pr_err *err) PR_MUSTCHECK;
int cli_agreed(const char *question);

/* diff.c: what is different between two texts of safe lines, with three lines around it. */
void cli_diff(FILE *f, const char *was, const char *is);

/* progress.c: change total, done and failed, then call cli_progress as often as you like. */
struct cli_progress {
	const char *what;
	int64_t total; /* -1: unknown */
	int64_t done, failed;
	int64_t started_us, shown_us;
	int json, bar;
};
void cli_progress_begin(const struct cli *c, struct cli_progress *p, const char *what, int64_t total);
void cli_progress(struct cli_progress *p);
void cli_progress_end(struct cli_progress *p);

/* target.c: which database, which broker, which relay. */
/* As cli_str and cli_has, of an option that the verb need not have. */
const char *cli_option(const struct cli *c, const char *name);
int cli_given(const struct cli *c, const char *name);
int cli_target(struct cli *c, struct pr_err *err) PR_MUSTCHECK; /* loads -c */
const char *cli_conninfo(const struct cli *c);                  /* "" = libpq's defaults */
int cli_conninfo_given(const struct cli *c);
const char *cli_brokers(const struct cli *c); /* NULL when unknown */
const char *cli_name(const struct cli *c);    /* NULL when unknown */
int cli_need_kafka(const struct cli *c, struct pr_err *err) PR_MUSTCHECK;
char *cli_url(const struct cli *c);                                 /* the relay's base URL; malloc'd */
char *cli_url_at(const char *scheme, const char *listen, int port); /* of what listens there */

/* What curl shows, and believes, where it is https: tls's, else the options of c, else the environment's.
 * Both may be NULL. */
struct cli_tls {
	char *ca, *cert, *key;
};
void cli_tls(CURL *curl, const struct cli *c, const struct cli_tls *tls);

/* fetch.c. What each request to a program of ours has: deadline, headers (borrowed until it is over), a bound
 * on the answer, which goes behind body; no redirects, no proxy, nothing but HTTP. c and tls as cli_tls() has
 * them. The caller sets the URL and cleans up. NULL: libcurl cannot. */
CURL *cli_request(const struct cli *c, const struct cli_tls *tls, int64_t timeout_us,
	struct curl_slist *headers, struct pr_buf *body);
struct curl_slist *cli_bearer(const char *token); /* the caller frees; NULL for NULL */
int64_t cli_timeout(const struct cli *c);         /* microseconds */
int cli_connect(struct cli *c, struct pr_pg **ret, struct pr_err *err) PR_MUSTCHECK;
const char *cli_login(void); /* whom the database took us for, as SQL takes a name */
int cli_connect_outbox(
	struct cli *c, struct pr_pg **ret, struct pr_err *err) PR_MUSTCHECK; /* and checks it */

/* -1 PR_REJECT, not found, when the database lacks the table that a consumer of that kind makes. what: it has
 * none of these; file: such a consumer's, as the hint names it. */
int cli_need(struct pr_pg *pg, const char *table, const char *what, const char *kind, const char *file,
	struct pr_err *err) PR_MUSTCHECK;

/* sink.c. Whether the group copies; -1. Refuses (exit 5) when it does: hint says what to do instead. */
int cli_is_sink(struct pr_pg *pg, const char *group, struct pr_err *err) PR_MUSTCHECK;
int cli_refuse_sink(struct pr_pg *pg, const char *group, const char *hint, struct pr_err *err) PR_MUSTCHECK;

const char *cli_group(const struct cli *c); /* NULL when unknown */
/* A client of the brokers with -c's properties. Secrets are looked up when they are first used: a verb that
 * does not use them needs none. */
rd_kafka_t *cli_kafka(
	struct cli *c, rd_kafka_type_t type, const struct pr_kafka_prop *ours, struct pr_err *err);
const struct pr_strs *cli_properties(const struct cli *c); /* once there was such a client; NULL without -c */
/* The bearer token; NULL: none. */
int cli_token(struct cli *c, const char **ret, struct pr_err *err) PR_MUSTCHECK;

/* position.c: why a relay would refuse this database; "": it would not. */
int cli_position_judge(struct cli *c, struct pr_pg *pg, int *ret_found, char *why, size_t size,
	struct pr_err *err) PR_MUSTCHECK;

/* fetch.c: GET from the relay. *ret_body is malloc'd. -1 with exit 69 when nobody answers. */
int cli_fetch(struct cli *c, const char *url, const char *path, int *ret_status, char **ret_body,
	struct pr_err *err) PR_MUSTCHECK;

/* A value of a result, NULL for SQL NULL; borrowed from res. */
const char *cli_cell(const PGresult *res, int row, int col);
int64_t cli_cell_int(const PGresult *res, int row, int col);
char *cli_cell_bytes(
	const PGresult *res, int row, int col, size_t *ret_len); /* of a bytea; malloc'd, NUL behind it */

/* SQL: who does it, of --by; the login's name without. */
#define CLI_BY(param) "coalesce(" param "::text, session_user::text)"

/* Destructive verbs: 0 to go on; otherwise fills err (exit 5). what: "skip 1 event of key ..." */
int cli_confirmed(const struct cli *c, struct pr_err *err, const char *fmt, ...) PR_PRINTF(3, 4) PR_MUSTCHECK;

/* The verbs. */
int verb_init(struct cli *c);
int verb_status(struct cli *c);
int verb_publish(struct cli *c);
int verb_parked_list(struct cli *c);
int verb_parked_show(struct cli *c);
int verb_parked_retry(struct cli *c);
int verb_parked_skip(struct cli *c);
int verb_parked_release(struct cli *c);
int verb_dlq_list(struct cli *c);
int verb_dlq_show(struct cli *c);
int verb_dlq_edit(struct cli *c);
int verb_dlq_retry(struct cli *c);
int verb_dlq_drop(struct cli *c);
int verb_dlq_note(struct cli *c);
int verb_replay_start(struct cli *c);
int verb_replay_list(struct cli *c);
int verb_replay_show(struct cli *c);
int verb_replay_pause(struct cli *c);
int verb_replay_resume(struct cli *c);
int verb_replay_cancel(struct cli *c);
int verb_show_consumers(struct cli *c);
int verb_lanes(struct cli *c);
int verb_pause(struct cli *c);
int verb_resume(struct cli *c);
int verb_position_show(struct cli *c);
int verb_position_set(struct cli *c);
int verb_position_adopt(struct cli *c);
int verb_explain_error(struct cli *c);
int verb_doctor(struct cli *c);
int verb_trace(struct cli *c);
int verb_show_lag(struct cli *c);
int verb_show_topics(struct cli *c);
int verb_show_config(struct cli *c);
int verb_tail(struct cli *c);
int verb_top(struct cli *c);
int verb_reconcile(struct cli *c);
int verb_catalogue(struct cli *c);
int verb_asyncapi(struct cli *c);
int verb_import_debezium(struct cli *c);
int verb_adopt(struct cli *c);
int verb_saga_start(struct cli *c);
int verb_saga_list(struct cli *c);
int verb_saga_show(struct cli *c);
int verb_saga_retry(struct cli *c);
int verb_saga_skip(struct cli *c);
int verb_saga_undo(struct cli *c);
int verb_saga_abort(struct cli *c);
int verb_saga_edit_data(struct cli *c);
int verb_saga_migrate(struct cli *c);
int verb_saga_graph(struct cli *c);
int verb_saga_simulate(struct cli *c);
int verb_show_sagas(struct cli *c);
int verb_alerts_list(struct cli *c);
int verb_alerts_show(struct cli *c);
int verb_alerts_ack(struct cli *c);
int verb_alerts_resolve(struct cli *c);
int verb_ui(struct cli *c);
int verb_bench(struct cli *c);
int verb_demo(struct cli *c);
int verb_completion(struct cli *c);
int verb_help(struct cli *c);
int verb_version(struct cli *c);

#endif
