/* cli/verbs.c -- the table: every verb with its options and its words. Help, completion,
 * man page and reference page are made from it; nothing about a verb is said elsewhere. */
#include "cli/cli.h"
#include "lib/clock.h"

/* clang-format off */
#define HELP \
	{ .name = "help", .letter = 'h', .type = CLI_FLAG, .doc = "show this text" }
#define JSON \
	{ .name = "json", .type = CLI_FLAG, .doc = "print JSON with stable fields instead of text" }
#define CONFIG \
	{ .name = "config", .letter = 'c', .arg = "FILE", .type = CLI_FILE, \
	  .doc = "the config file of the relay, or of a consumer: database, brokers, name or group, and address " \
		 "are taken from it" }, \
	{ .name = "set", .letter = 'o', .arg = "KEY=VALUE", .type = CLI_PAIR, .many = 1, \
	  .doc = "override one key of the config file, as the daemons' -o does" }
#define DATABASE \
	CONFIG, \
	{ .name = "conninfo", .arg = "CONNINFO", .type = CLI_CONNINFO, \
	  .doc = "the database, as libpq understands it", \
	  .def = "-c's, else $POSTRIDER_CONNINFO, else PG* variables" }
#define TIMEOUT \
	{ .name = "timeout", .arg = "TIME", .type = CLI_DURATION, .min = PR_MS, .max = 3600 * PR_SEC, \
	  .def = "10s", .doc = "give up on one answer of a server after this long" }
#define KAFKA \
	{ .name = "brokers", .arg = "HOST:PORT,...", .type = CLI_STR, \
	  .doc = "Kafka's bootstrap servers", .def = "-c's, else $POSTRIDER_BROKERS" }, \
	{ .name = "name", .arg = "NAME", .type = CLI_NAME, \
	  .doc = "the outbox's name, as in the relay's config", .def = "-c's" }
#define URL \
	{ .name = "url", .arg = "URL", .type = CLI_URL, .doc = "the relay's HTTP address", \
	  .def = "http.listen of -c, else $POSTRIDER_URL, else http://127.0.0.1:9470" }, \
	TLS
#define TLS \
	{ .name = "tls-ca", .arg = "FILE", .type = CLI_STR, .doc = "of https: the authority of the server's certificate", \
	  .def = "$POSTRIDER_TLS_CA, else the system's" }, \
	{ .name = "tls-cert", .arg = "FILE", .type = CLI_STR, .doc = "our certificate, for a server that wants one", \
	  .def = "$POSTRIDER_TLS_CERT" }, \
	{ .name = "tls-key", .arg = "FILE", .type = CLI_STR, .doc = "its key", .def = "$POSTRIDER_TLS_KEY" }
#define YES \
	{ .name = "yes", .letter = 'y', .type = CLI_FLAG, .doc = "do it; without it nothing is changed" }
#define DRY_RUN \
	{ .name = "dry-run", .letter = 'n', .type = CLI_FLAG, .doc = "show what would be done, and do nothing" }
#define WAIT \
	{ .name = "wait", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 3600 * PR_SEC, .def = "10s", \
	  .doc = "how long to wait until it is done; \"0s\" leaves the request and returns" }
/* Any text: a name that Kafka refuses is one reason to be parked. */
#define KEYS \
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_STR, .doc = "the topic" }, \
	{ .name = "key", .letter = 'k', .arg = "KEY", .type = CLI_STR, .doc = "the key (aggregateid)" }
#define BROKERS \
	{ .name = "brokers", .arg = "HOST:PORT,...", .type = CLI_STR, \
	  .doc = "Kafka's bootstrap servers", .def = "-c's, else $POSTRIDER_BROKERS" }
#define GROUP(text) \
	{ .name = "group", .letter = 'g', .arg = "GROUP", .type = CLI_STR, .doc = text, .def = "-c's" }
#define CLASSES "sqlstate http exit reply decode timeout crash"
#define FOREIGN CLASSES " spring connect unknown"
#define FILTER \
	GROUP("only of this consumer group"), \
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, \
	  .doc = "only messages that came from this topic" }, \
	{ .name = "type", .letter = 'T', .arg = "TYPE", .type = CLI_STR, .doc = "only messages of this type" }, \
	{ .name = "cause", .arg = "CAUSE", .type = CLI_STR, .doc = "only of this cause, as `dlq list` names it" }, \
	{ .name = "class", .arg = "CLASS", .type = CLI_STR, .words = FOREIGN, \
	  .doc = "only failures of this class: sqlstate, http, exit, reply, decode, timeout, crash; " \
		 "spring, connect or unknown on a topic of theirs" }, \
	{ .name = "code", .arg = "CODE", .type = CLI_STR, \
	  .doc = "only failures with this code; * at the end matches any rest: \"23*\"" }, \
	{ .name = "since", .arg = "TIME", .type = CLI_PAST, \
	  .doc = "only those buried since then: RFC 3339 with a zone, or before now, \"-10m\"" }, \
	{ .name = "until", .arg = "TIME", .type = CLI_PAST, .doc = "only those buried before then" }
#define NOTE \
	{ .name = "note", .arg = "TEXT", .type = CLI_STR, .doc = "why: kept with it" }
#define BY \
	{ .name = "by", .arg = "WHO", .type = CLI_STR, .doc = "who does it: kept with it", .def = "the database's user" }
#define PROGRESS \
	{ .name = "progress", .arg = "json", .type = CLI_STR, .words = "json", \
	  .doc = "JSON lines on standard output while it works: progress, total, done, failed, seconds, per_second, " \
		 "eta_seconds; without it a terminal gets a bar" }
#define WATCH(text) \
	{ .name = "watch", .letter = 'w', .type = CLI_FLAG, .doc = text }
/* Of what a consumer group holds back. */
#define HELD_BY GROUP("of this consumer group, not of the relay")
#define PARTITION \
	{ .name = "partition", .letter = 'p', .arg = "N", .type = CLI_INT, .max = 1000000, \
	  .doc = "only of this partition (of a group)" }
#define FAILURE \
	{ .name = "class", .arg = "CLASS", .type = CLI_STR, .words = CLASSES, \
	  .doc = "only keys whose first message failed so (of a group): sqlstate, http, exit, reply, decode, timeout, crash" }, \
	{ .name = "code", .arg = "CODE", .type = CLI_STR, \
	  .doc = "only with this code (of a group); * at the end matches any rest: \"23*\"" }
#define NAMED \
	{ .name = "no-key", .type = CLI_FLAG, .doc = "messages without a key (of a group): each stands for itself" }, \
	{ .name = "offset", .arg = "N", .type = CLI_INT, .max = INT64_MAX, .doc = "the message at this offset (of a group)" }
#define MATCHING \
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, \
	  .doc = "the first message of every key that the other options match (of a group)" }
/* Of sagas. */
#define SAGA_STATE_WORDS "RUNNING COMPENSATING STUCK COMPLETED COMPENSATED ABORTED"
#define SAGA_FILTER(default_state) \
	{ .name = "name", .arg = "NAME", .type = CLI_STR, .doc = "only sagas of this name" }, \
	{ .name = "state", .arg = "STATE", .type = CLI_STR, .words = SAGA_STATE_WORDS, .many = 1, .def = default_state, \
	  .doc = "only those in this state: RUNNING, COMPENSATING, STUCK, COMPLETED, COMPENSATED, ABORTED" }, \
	{ .name = "older", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 1000000000 * PR_SEC, \
	  .doc = "only those that are in their state for at least this long" }
#define SAGA_DATA(text) \
	{ .name = "data", .arg = "JSON|@FILE", .type = CLI_STR, .doc = text }
#define ORDERED \
	{ .name = "by", .arg = "WHO", .type = CLI_STR, .doc = "who orders it: kept with the saga", \
	  .def = "the user here, and the database's" }, \
	{ .name = "wait", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 3600 * PR_SEC, .def = "5s", \
	  .doc = "how long to wait for the engine's answer; \"0s\" leaves the order and returns" }
#define ORDER_JSON "one object a line: entry (of the order, or null), id, name, order, step, outcome (done, refused, " \
	"waiting), reason (or null), state (of the saga now), at (its steps under way, or null). With --dry-run outcome is " \
	"null, reason what would be done, or why not"
#define ORDER_EXIT \
	"Exit status 0: done. 5: refused (of several: some were), or --yes is missing. 69: no engine has answered; the " \
	"order stays, and is done when one runs."
/* Of alerts. */
#define ACTED \
	{ .name = "by", .arg = "WHO", .type = CLI_STR, .doc = "who does: kept with it", .def = "the user here, and the database's" }, \
	{ .name = "note", .arg = "TEXT", .type = CLI_STR, .doc = "kept with it" }
#define OPTIONS(...) (const struct cli_opt[]){ __VA_ARGS__, HELP, { .name = NULL } }

#define SET_UP "Set up"
#define LOOK   "Look"
#define EVENTS "Events"
#define HELD   "Held back events"
#define RELAY  "The relay"
#define CONSUMER "Consumers"
#define SINK     "The data platform"
#define SAGA     "Sagas"
#define ALERTS   "Alerts"
#define TRY    "Try and learn"

const struct cli_verb cli_verbs[] = {
{ .name = "init", .group = SET_UP, .args = "", .run = verb_init,
  .does = "install or upgrade schemas outbox, inbox and saga, and make the position topic",
  .doc =
  "Applies the migrations that the database does not have yet and makes the first partitions. It may be "
  "run again at any time, also while services write, and by two people at once: what is there stays.\n\n"
  "With brokers and a name (or -c) it also makes the relay's position topic, postrider.positions.NAME: one "
  "partition, compacted.\n\n"
  "--print writes the migrations as plain SQL for another migration tool and contacts nothing.",
  .json = "object: database, migrations (applied now), schema_version, partitions (ready), edited (migrations that were "
          "applied from another text than this program's) [{migration, applied_at, sha256 (or null), this_program}], "
          "topic (name or null), topic_created",
  .examples =
  "postrider init --conninfo dbname=orders\n"
  "postrider init -c relay.cfg\n"
  "# the SQL itself, for Flyway or sqitch\n"
  "postrider init --print > outbox.sql",
  .opts = OPTIONS(DATABASE, KAFKA,
	{ .name = "print", .type = CLI_FLAG, .doc = "write the SQL to standard output, change nothing" },
	JSON, TIMEOUT) },

{ .name = "doctor", .group = SET_UP, .args = "", .run = verb_doctor,
  .does = "is all set up as it must be? each line ok, warn or FAIL, with the command that mends it",
  .doc =
  "Looks at the database (version, settings, clock, a pooler, long transactions, schema, rights, table, triggers, "
  "ranges, rows), at Kafka (client library, brokers and their settings, topics, transactions that hang, the positions "
  "topic, the position itself) and at the program; with the -c of a consumer at its group, members, lanes, what it "
  "holds back, and what its handler needs (function, library, program, definitions, directory). It changes nothing, "
  "and joins no group.\n\n"
  "A server that does not answer is one FAIL; what needs it is then not looked at, and that is said.\n\n"
  "Exit status 0: no FAIL. 3: there is one; with --strict also when there is a warn.",
  .json = "one object a line: check, where (Postgres, Kafka, outbox, consumer, program), state (ok, warn, fail), text, "
          "fix (or null)",
  .examples =
  "postrider doctor -c relay.cfg\n"
  "postrider doctor -c consumer.cfg --json | jq -r 'select(.state == \"fail\") | .fix'",
  .opts = OPTIONS(
	{ .name = "strict", .type = CLI_FLAG, .doc = "exit 3 also when there are warnings" },
	{ .name = "older", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 1000000 * PR_SEC, .def = "5m",
	  .doc = "transactions, in Postgres and in Kafka, that are open for longer are named" },
	DATABASE, KAFKA, TLS, JSON, TIMEOUT) },

{ .name = "import-debezium", .group = SET_UP, .args = "FILE", .min_args = 1, .max_args = 1, .run = verb_import_debezium,
  .does = "relay.cfg from the config of a Debezium connector with the outbox EventRouter, and what differs",
  .doc =
  "FILE is what Kafka Connect has of the connector (JSON, as GET /connectors/NAME answers, or properties), or Debezium "
  "Server's application.properties; \"-\": standard input. Every option is listed with what becomes of it: kept, needless, "
  "differs (readers will notice), to do (by hand), impossible.\n\n"
  "--sql writes what connects the outbox table that is there: a trigger that puts each row into outbox.event too, in the "
  "same transaction, with the columns, headers and topic that the connector names. The services stay as they are and need no right, also "
  "those that delete the row at once. Rows that are there already are not looked at: Debezium has published them.\n\n"
  "Nothing is contacted, and no secret is copied.\n\n"
  "Exit status 0: done. 3: done, but something is impossible. 5: a file is there already. 78: no Postgres connector with "
  "EventRouter.",
  .json = "object: config (the text of relay.cfg), sql, options [{option, value (secrets as ***), fate (kept, needless, differs, "
          "to do, impossible), why}]",
  .examples =
  "postrider import-debezium connector.json -o relay.cfg --sql outbox.sql --brokers kafka:9092\n"
  "curl -s connect:8083/connectors/orders | postrider import-debezium - --json",
  .opts = OPTIONS(
	{ .name = "output", .letter = 'o', .arg = "FILE", .type = CLI_FILE, .doc = "write relay.cfg there" },
	{ .name = "sql", .arg = "FILE", .type = CLI_FILE, .doc = "write the SQL for the table there" },
	{ .name = "brokers", .letter = 'b', .arg = "HOST:PORT", .type = CLI_STR,
	  .doc = "the brokers, which Kafka Connect's workers know and the connector does not" },
	{ .name = "name", .letter = 'n', .arg = "NAME", .type = CLI_NAME, .doc = "the outbox's name, instead of the connector's" },
	{ .name = "yes", .letter = 'y', .type = CLI_FLAG, .doc = "replace files that are there" }, JSON) },

{ .name = "adopt", .group = SET_UP, .args = "TABLE", .min_args = 1, .max_args = 1, .run = verb_adopt,
  .does = "make the rows of another system's outbox table events, in the writer's transaction",
  .doc =
  "TABLE is the outbox table that the services write: Debezium's, Open Outbox's, Eventuate Tram's message, tomorrow-one's "
  "outbox_kafka, pg-transactional-outbox's; with its schema, unless that is public. Every column is listed with what becomes "
  "of it: kept, differs (readers will notice), to do (by hand), impossible, needless. Nothing is changed without --apply; "
  "--sql writes the same statements into a file.\n\n"
  "From then on a row that is inserted is an event, in the same transaction, and is marked as done where the table has a "
  "column for that, so that an old publisher that polls finds nothing. The services need no new right. Rows that are there "
  "stay with the old publisher; --backfill takes those that it has not marked, each once: taking and marking are one "
  "statement. Stop the old publisher before that: what it is sending at the moment is not marked yet.\n\n"
  "--undo takes the triggers away; what was taken stays marked.\n\n"
  "Exit status 0: done. 3: done, but something is impossible. 4: no such table. 5: no layout fits, two do, a column is "
  "missing, or a file is there already.",
  .json = "object: schema, table, layout (null with --undo), why, unpublished (rows; null: nobody can tell), events and scheduled "
          "(taken by --backfill; null: not done), sql, columns [{column, type, fate, why}]; a name in parentheses is no column",
  .examples =
  "postrider adopt outboxevent -c relay.cfg\n"
  "# Open Outbox, its relay stopped\n"
  "postrider adopt shop.openoutbox_events -c relay.cfg --backfill --apply\n"
  "postrider adopt shop.events -c relay.cfg --layout debezium --map kind=aggregatetype --sql adopt.sql",
  .opts = OPTIONS(
	{ .name = "layout", .letter = 'l', .arg = "LAYOUT", .type = CLI_STR, .words = "auto debezium openoutbox eventuate tomorrow pgtrx",
	  .def = "auto", .doc = "whose table it is; auto: told by its columns" },
	{ .name = "map", .letter = 'm', .arg = "COLUMN=FIELD", .type = CLI_PAIR, .many = 1,
	  .doc = "the column has this field: id, aggregatetype, aggregateid, type, payload, json (a text that is JSON), headers, topic, "
		 "partition, aggregateversion, tracingspancontext, at (publish then), header:NAME" },
	{ .name = "backfill", .type = CLI_FLAG, .doc = "take the rows that are not marked as published, too" },
	{ .name = "undo", .type = CLI_FLAG, .doc = "take the triggers away" },
	{ .name = "sql", .arg = "FILE", .type = CLI_FILE, .doc = "write the SQL there" },
	{ .name = "apply", .type = CLI_FLAG, .doc = "run the SQL" },
	{ .name = "yes", .letter = 'y', .type = CLI_FLAG, .doc = "replace a file that is there" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "ui", .group = LOOK, .args = "", .run = verb_ui,
  .does = "one page for several relays and consumers, with look-ups",
  .doc =
  "Serves the status page of all the programs that the file names, joined: one sentence for the worst of them, one "
  "picture of the pipeline, each one's numbers and last hour. A program that does not answer is shown as that. Look-ups "
  "run the verbs of the same name in the databases that the file names: dead letters by cause, sagas, replays. It reads "
  "only, and shows no payloads. Prints its address, and serves until SIGTERM or Ctrl-C.\n\n"
  "The file: listen, relays and consumers (lists of addresses), databases (a list of { name; conninfo } or { name; config "
  "}), tls { ca; cert; key } for programs at https, environment { name; colour }, timeout; see etc/ui.cfg.",
  .examples = "postrider ui -c ui.cfg",
  .opts = OPTIONS(
	{ .name = "file", .letter = 'c', .arg = "FILE", .type = CLI_FILE, .doc = "the page's own config file; needed" }) },

{ .name = "status", .group = LOOK, .args = "", .run = verb_status,
  .does = "is the relay, or a consumer, healthy? one screen, worst problem first",
  .doc =
  "Asks the relay, or with the -c or --url of a consumer that one. The first line names the state and the worst problem, the second what to do about it.\n\n"
  "Exit status 0: healthy (ok, or a standby that waits). 3: not healthy (warn, error, paused, starting, or "
  "not ready). 69: it does not answer; then, of a relay and if a database is known (--conninfo, -c, "
  "environment), what the database itself says about the backlog is shown.",
  .json = "object: source (relay, consumer or database), url, healthy, ready, name, version, state, sentence, hint, leader, "
          "delivery, lag_seconds, pending_events, published_total, events_per_second, parked_events, "
          "parked_keys, waiting [{topic, events, reason}], problems [{code, severity, text, hint}], "
          "postgres {connected, system_id, timeline}, kafka {connected}, position_seq, uptime_seconds; what "
          "is not known is null. From the database: source, url, healthy, ready, state, sentence, lag_seconds, "
          "pending_events, parked_events, parked_keys, waiting_events, paused. Of a consumer: source, url, healthy, "
          "ready, group, version, state, sentence, hint, handler, dedupe, lanes, assigned_partitions, lag_seconds, "
          "lag_events, handled {handled, duplicate, filtered, ignored, parked, dead_letter}, sagas (of an engine, by state), "
          "events_per_second, parked_events, parked_keys, dead_letters, retrying, replays, breaker {open, failures, "
          "next_probe_seconds}, problems, postgres, kafka, uptime_seconds. With --watch one object a line",
  .examples =
  "postrider status\n"
  "postrider status -c consumer.cfg\n"
  "postrider status -w\n"
  "postrider status --json | jq .lag_seconds",
  .opts = OPTIONS(DATABASE, URL,
	{ .name = "watch", .letter = 'w', .type = CLI_FLAG, .doc = "refresh in place until Ctrl-C" },
	{ .name = "interval", .arg = "TIME", .type = CLI_DURATION, .min = 100 * PR_MS, .max = 3600 * PR_SEC,
	  .def = "1s", .doc = "time between two screens of --watch" },
	JSON, TIMEOUT) },

{ .name = "top", .group = LOOK, .args = "[URL...]", .max_args = 15, .run = verb_top,
  .does = "relays and consumers on one live screen",
  .doc =
  "Each URL is the HTTP address of a relay or a consumer; -c or --url add one, and without any it is the relay of "
  "$POSTRIDER_URL. All are asked side by side, again and again. Below the list: the worst problem of the one that is "
  "marked, what to do about it, and its topics or partitions.\n\n"
  "Keys: q quits, p pauses the asking, the arrows (or j and k) move the mark, / types a filter for names and topics. "
  "However it ends, the terminal is put back.\n\n"
  "Where the output is no terminal, and with --json, it asks once. Exit status then 0: all are healthy. 3: one is not. "
  "69: one does not answer.",
  .json = "one object a line: url, state (the program's, or away), problem (why it did not answer, or null), status (its "
          "/status.json, or null)",
  .examples =
  "postrider top -c relay.cfg\n"
  "postrider top http://127.0.0.1:9470 http://127.0.0.1:9471\n"
  "postrider top http://127.0.0.1:9470 | cat",
  .opts = OPTIONS(CONFIG, URL,
	{ .name = "every", .arg = "TIME", .type = CLI_DURATION, .min = 100 * PR_MS, .max = 3600 * PR_SEC, .def = "2s",
	  .doc = "ask again after so long" },
	JSON, TIMEOUT) },

{ .name = "tail", .group = LOOK, .args = "", .run = verb_tail,
  .does = "the newest published events, and with --follow those that come",
  .doc =
  "Committed records only, as consumers get them: when each was published, its age, place, key, type and id. Which topics: "
  "those of --topic, those that --group stands on, else those of the consumer of -c, or those that the relay of -c may "
  "write to. It joins no group and commits nothing.\n\n"
  "--payload shows payloads too, to a login that may read them in the database: outbox.event, or with the -c of a "
  "consumer inbox.dead_letter. Exit status 77: it may not.",
  .json = "one object a line: topic, partition, offset, key, id, type, time_ms, age_seconds; with --payload also payload, or "
          "payload_base64",
  .examples =
  "postrider tail -c relay.cfg\n"
  "postrider tail -c consumer.cfg --follow --json | jq -r .key",
  .opts = OPTIONS(
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, .many = 1, .doc = "only this topic" },
	GROUP("the topics that this consumer group stands on"),
	{ .name = "follow", .letter = 'f', .type = CLI_FLAG, .doc = "go on with what is published from now on" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 10000, .def = "10",
	  .doc = "begin with the newest N" },
	{ .name = "payload", .type = CLI_FLAG, .doc = "show the payloads too" },
	DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "trace", .group = LOOK, .args = "[ID]", .max_args = 1, .run = verb_trace,
  .does = "where an event has been: row, record, each consumer group, saga",
  .doc =
  "By its id, or all of a key, the oldest first: when it was written, whether the outbox holds it back, where and when it "
  "was published, which consumer group has handled it, holds it back or gave it up, and how the saga stands that it "
  "belongs to. An id may also be a saga's. The payload is not shown.\n\n"
  "Groups and sagas are looked for in the database of -c or --conninfo and in those of --also. The outbox has no index "
  "on ids and keys: it is read whole, within the timeout.\n\n"
  "Exit status 4: nothing is known of it.",
  .json = "one object a line: id, key, type, topic, seq, created_at, held (parked, behind, skipped, waiting, scheduled, or "
          "null), held_at, reason, published {partition, offset, time_ms} (or null), unknown (why the topic was not asked, "
          "or null), groups [{database, group, state (handled, passed, to_do, parked, behind, dead_letter, dropped), attempts, "
          "class, code, reason, at, dead_letter, topic, partition, offset, saga}], sagas [{database, who (engine, "
          "participant), name, version, state, steps, why, since, id}]",
  .examples =
  "postrider trace 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c relay.cfg\n"
  "postrider trace --key 42 -c relay.cfg --also dbname=seat --also dbname=engine",
  .opts = OPTIONS(
	{ .name = "key", .letter = 'k', .arg = "KEY", .type = CLI_STR, .doc = "all events of this key (aggregateid)" },
	{ .name = "neighbours", .letter = 'n', .type = CLI_FLAG,
	  .doc = "with an ID, also the event of the same key before it, and the one behind it" },
	{ .name = "also", .arg = "CONNINFO", .type = CLI_CONNINFO, .many = 1,
	  .doc = "look for consumer groups and sagas in this database too" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 100000, .def = "20",
	  .doc = "of a key, the newest so many" },
	DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "show lag", .group = LOOK, .args = "", .run = verb_show_lag,
  .does = "how far the outbox and the consumer groups of a database are behind",
  .doc =
  "A line for the outbox: the age of its oldest event that is not published, how many there are, how many are held back. A "
  "line for each consumer group: how many records of its topics it has not handled (needs brokers), how many it holds back. "
  "In seconds a group's lag is told by its members: `postrider status`, `postrider top`.",
  .json = "one object a line: what (outbox, group), name, lag_seconds (null: of a group), behind (events or records, null: no "
          "brokers), held_back",
  .examples = "postrider show lag -c relay.cfg\npostrider show lag -c consumer.cfg --json",
  .opts = OPTIONS(GROUP("only this one"), DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "show topics", .group = LOOK, .args = "", .run = verb_show_topics,
  .does = "the topics that the relay may write to, or the consumer reads",
  .doc =
  "Of the relay of -c those that its route can name, of a consumer those that it reads; without -c those of the default "
  "route. OFFSETS are counted from the first that is kept to the last: each transaction's end takes one too.",
  .json = "one object a line: topic, partitions, offsets, max_message_bytes (or null), cleanup_policy (or null)",
  .examples = "postrider show topics -c relay.cfg\npostrider show topics --brokers 127.0.0.1:9092",
  .opts = OPTIONS(CONFIG, BROKERS, JSON, TIMEOUT) },

{ .name = "show jobs", .group = LOOK, .args = "", .run = verb_replay_list,
  .does = "replay jobs, the newest first: as `postrider replay list`",
  .doc = "DONE is how much of the range was read; HANDLED had an effect, DUPLICATES were known already.",
  .json = "as `replay list`",
  .examples = "postrider show jobs -c consumer.cfg",
  .opts = OPTIONS(GROUP("only of this one"),
	{ .name = "state", .arg = "STATE", .type = CLI_STR, .words = "running paused done cancelled failed",
	  .doc = "only in this state: running, paused, done, cancelled, failed" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "100",
	  .doc = "at most so many" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "show config", .group = LOOK, .args = "", .run = verb_show_config,
  .does = "what a config file comes to: every option, its value and where that comes from",
  .doc = "As the daemons' --print-config, with -o applied; secrets are not shown and not looked up.",
  .examples = "postrider show config -c relay.cfg\npostrider show config -c consumer.cfg -o lanes=8",
  .opts = OPTIONS(CONFIG) },

{ .name = "publish", .group = EVENTS, .args = "[-]", .max_args = 1, .run = verb_publish,
  .does = "put one event into the outbox from the shell; prints its id",
  .doc =
  "One event in one transaction, through the same SQL functions as a service uses: what they refuse is "
  "refused here. The payload is JSON (--data, a file, or standard input), or any bytes with --bytes, or "
  "nothing with --null (a tombstone).",
  .json = "object: id, scheduled_for (RFC 3339 or null)",
  .examples =
  "postrider publish -a order -k 42 -T OrderPaid --data '{\"amount\": 100}'\n"
  "echo '{\"amount\": 100}' | postrider publish -a order -k 42 -T OrderPaid -\n"
  "# at that time, with a header and no payload\n"
  "postrider publish -a order -k 42 -T Due --at 2026-02-01T09:00:00Z -H by=me --null",
  .opts = OPTIONS(
	{ .name = "aggregatetype", .letter = 'a', .arg = "NAME", .type = CLI_STR,
	  .doc = "kind of the thing that changed; the topic is made of it" },
	{ .name = "aggregateid", .letter = 'k', .arg = "KEY", .type = CLI_STR,
	  .doc = "which one: the record's key, and the unit of order" },
	{ .name = "type", .letter = 'T', .arg = "TYPE", .type = CLI_STR, .doc = "what happened to it" },
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC,
	  .doc = "this topic instead of the relay's route" },
	{ .name = "header", .letter = 'H', .arg = "NAME=VALUE", .type = CLI_PAIR, .many = 1,
	  .doc = "a header of the record" },
	{ .name = "data", .arg = "JSON", .type = CLI_STR, .doc = "the payload" },
	{ .name = "file", .letter = 'f', .arg = "FILE", .type = CLI_FILE,
	  .doc = "the payload is in this file; \"-\" is standard input" },
	{ .name = "bytes", .type = CLI_FLAG, .doc = "the payload is not JSON: publish its bytes as they are" },
	{ .name = "null", .type = CLI_FLAG, .doc = "no payload: a tombstone" },
	{ .name = "at", .arg = "TIME", .type = CLI_TIME,
	  .doc = "not before this time: RFC 3339 with a zone, or from now, \"+10m\"" },
	{ .name = "id", .arg = "UUID", .type = CLI_UUID, .doc = "the event's id", .def = "a new one" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "parked list", .group = HELD, .args = "", .run = verb_parked_list,
  .does = "keys that are held back, with reason, age and number of events",
  .doc =
  "An event that Kafka refuses holds back its key: the events behind it wait in order, the other keys go "
  "on. One line per key, the longest held first; the reason is that of its first event.\n\n"
  "With --group (or the -c of a consumer) it shows what that group holds back: keys whose first message its "
  "handler could not do, with the failure, the tries so far and the next one. A message without a key is a line of "
  "its own.",
  .json = "one object a line: topic, key, events, reason, code, since (RFC 3339), age_seconds, "
          "first_id, first_seq, attempts, request (retry, skip or null). Of a group: group, topic, partition, key, "
          "events, class, code, reason, attempts, next_try, since, age_seconds, first_id, first_offset, request",
  .examples =
  "postrider parked list -c relay.cfg\n"
  "postrider parked list -t outbox.event.order --json\n"
  "postrider parked list --group seat --class sqlstate",
  .opts = OPTIONS(HELD_BY, PARTITION, FAILURE,
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_STR, .doc = "only of this topic" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "100",
	  .doc = "at most so many keys" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "parked show", .group = HELD, .args = "", .run = verb_parked_show,
  .does = "the events held back behind one key, in order",
  .doc =
  "The first event is the one that was refused; the others wait behind it. Payloads are shown only with "
  "--payload: they may hold what is not for every eye.\n\n"
  "With --group (or the -c of a consumer) they are that group's; --id also finds a dead letter on another try.",
  .json = "one object a line: id, seq, topic, key, type, reason, code, attempts, request, created_at, "
          "parked_at, payload_bytes (size or null); with --payload also payload (JSON) or payload_base64. Of a group: "
          "group, topic, partition, offset, key, id, type, behind (offset of the first of its key, or null), class, "
          "code, reason, attempts, next_try, time (of the record), parked_at, request, dead_letter (it is another try "
          "of, or null), payload_bytes",
  .examples =
  "postrider parked show -t outbox.event.order -k 42\n"
  "postrider parked show --id 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e --payload\n"
  "postrider parked show -c consumer.cfg -k 42",
  .opts = OPTIONS(HELD_BY, KEYS, PARTITION, NAMED,
	{ .name = "id", .arg = "UUID", .type = CLI_UUID, .doc = "only the event with this id" },
	{ .name = "payload", .type = CLI_FLAG, .doc = "show the payloads too" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "100",
	  .doc = "at most so many events" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "parked retry", .group = HELD, .args = "", .run = verb_parked_retry,
  .does = "try a key again: its first event, then all behind it in order",
  .doc =
  "Asks the relay to produce the key's first event again. If it goes now (the topic allows larger records, "
  "the rights were given), everything behind it follows in order and the key is free; if not, it stays held "
  "back with the new reason. Needs a running relay; a paused one acts on it when resumed.\n\n"
  "With --group (or the -c of a consumer) that group tries the first message of the key now, instead of at its next "
  "try, then those behind it in order; --all those of every key that matches. Exit status 1: some failed again, or "
  "became dead letters.",
  .json = "one object a line: topic, key, id, request, outcome (released, still_parked, requested), events "
          "(left), reason. Of a group also: group, partition, offset, dead_letters (made of the key since); outcome is "
          "null with --dry-run",
  .examples =
  "postrider parked retry -t outbox.event.order -k 42\n"
  "postrider parked retry --group seat -k 42\n"
  "postrider parked retry -c consumer.cfg --all --class http",
  .opts = OPTIONS(HELD_BY, KEYS, PARTITION, NAMED,
	{ .name = "id", .arg = "UUID", .type = CLI_UUID, .doc = "the first event of the key" },
	BY, MATCHING, FAILURE, WAIT, DRY_RUN, DATABASE, JSON, TIMEOUT) },

{ .name = "parked skip", .group = HELD, .args = "", .run = verb_parked_skip,
  .does = "give up one event for ever; those behind it go on in order",
  .doc =
  "The event never reaches Kafka. It is kept in outbox.skipped with the time and the database user who "
  "decided so. Only the first event of a key can be skipped: name it by --id, or the key by -t and -k.\n\n"
  "With --group (or the -c of a consumer) that group never handles the message: it becomes a dropped dead letter, "
  "with who decided so. Exactly what was looked at is skipped, not what may have taken its place.",
  .json = "one object a line: topic, key, id, request, outcome (released, still_parked, skipped, requested), "
          "events (left), reason. Of a group also: group, partition, offset, dead_letters (made of the key since); "
          "outcome is null with --dry-run",
  .examples =
  "postrider parked skip --id 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e --dry-run\n"
  "postrider parked skip -t outbox.event.order -k 42 --yes\n"
  "postrider parked skip --group seat -k 42 --yes",
  .opts = OPTIONS(HELD_BY, KEYS, PARTITION, NAMED,
	{ .name = "id", .arg = "UUID", .type = CLI_UUID, .doc = "the event" },
	BY, MATCHING, FAILURE, YES, DRY_RUN, WAIT, DATABASE, JSON, TIMEOUT) },

{ .name = "parked release", .group = HELD, .args = "", .run = verb_parked_release,
  .does = "try every key of a topic again, or all of them",
  .doc = "As `postrider parked retry`, for many keys at once: after the cause is gone. The same with --group (or the -c of "
         "a consumer), for the keys that this group holds back.",
  .json = "as `parked retry`",
  .examples =
  "postrider parked release -t outbox.event.order\n"
  "postrider parked release --all --wait 60s\n"
  "postrider parked release --group seat --all",
  .opts = OPTIONS(HELD_BY, PARTITION, FAILURE,
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_STR, .doc = "all keys of this topic" },
	{ .name = "all", .type = CLI_FLAG, .doc = "all keys of all topics" },
	BY, WAIT, DRY_RUN, DATABASE, JSON, TIMEOUT) },

{ .name = "pause", .group = RELAY, .args = "", .run = verb_pause,
  .does = "make the relay stop publishing, or a consumer group stop handling",
  .doc =
  "Services go on writing and the lag grows: status and the alerts say so. The pause is kept in the "
  "database and outlives a restart of the relay.\n\n"
  "With --group (or the -c of a consumer) that group is paused instead: its members keep their partitions and "
  "handle nothing.",
  .json = "object: paused, since (RFC 3339 or null), changed, group (when one was meant)",
  .examples = "postrider pause -c relay.cfg\npostrider pause --group seat --conninfo dbname=seat",
  .opts = OPTIONS(GROUP("this consumer group, not the relay"), DATABASE, JSON, TIMEOUT) },

{ .name = "resume", .group = RELAY, .args = "", .run = verb_resume,
  .does = "let a paused relay or consumer group go on where it stopped",
  .doc = "Ends `postrider pause`. Nothing is lost or done twice by a pause.",
  .json = "object: paused, since (RFC 3339 or null), changed, group (when one was meant)",
  .examples = "postrider resume -c relay.cfg\npostrider resume --group seat --conninfo dbname=seat",
  .opts = OPTIONS(GROUP("this consumer group, not the relay"), DATABASE, JSON, TIMEOUT) },

{ .name = "position show", .group = RELAY, .args = "", .run = verb_position_show,
  .does = "how far the relay has come, and whether this database is the one it means",
  .doc =
  "Reads the newest record of the position topic and compares it with the database. Exit status 0: it "
  "matches. 3: it does not (the text says why). 4: the topic holds no position.",
  .json = "object: name, found, matches, problem, database {system_id, timeline, last_seq, next_xid, lsn}, "
          "position (the record itself, as `position set` takes it, or null)",
  .examples = "postrider position show -c relay.cfg",
  .opts = OPTIONS(DATABASE, KAFKA, JSON, TIMEOUT) },

{ .name = "position set", .group = RELAY, .args = "[JSON]", .max_args = 1, .run = verb_position_set,
  .does = "write another position: events may be repeated or left out",
  .doc =
  "Writes a position record in a Kafka transaction under the relay's own transactional id, so that a relay "
  "that still lives is fenced. Refused while a relay holds the outbox's lock: stop it first.\n\n"
  "JSON is a record as `postrider position show --json` prints it under \"position\". --earliest: publish "
  "again every event the database still has. --now: count everything committed so far as published; what "
  "was not yet on Kafka never will be.",
  .json = "object: name, written, position",
  .examples =
  "postrider position set -c relay.cfg --earliest --dry-run\n"
  "postrider position set -c relay.cfg --now --yes",
  .opts = OPTIONS(
	{ .name = "earliest", .type = CLI_FLAG, .doc = "before the first event there is" },
	{ .name = "now", .type = CLI_FLAG, .doc = "behind the last event committed" },
	YES, DRY_RUN, DATABASE, KAFKA, JSON, TIMEOUT) },

{ .name = "position adopt", .group = RELAY, .args = "", .run = verb_position_adopt,
  .does = "go on with this database after a restore, pg_upgrade or failover",
  .doc =
  "A relay refuses a database that is not the one of its position (another system identifier or "
  "timeline), for its position speaks of transactions that this one may not have. Adopt writes a position "
  "made of this database's identity and a fresh snapshot, as `position set` does. Refused while a relay "
  "holds the outbox's lock.\n\n"
  "Without --from-seq everything visible now counts as published. That is right after pg_upgrade or a "
  "planned switch-over with the relay drained.\n\n"
  "After a restore or an unplanned failover some events may not have been published: --from-seq N publishes "
  "again from event number N on (header outbox-seq of the records tells which were). Those that had "
  "been published come a second time; consumers know them by their id.",
  .json = "object: name, written, position",
  .examples =
  "postrider position show -c relay.cfg\n"
  "postrider position adopt -c relay.cfg --dry-run\n"
  "postrider position adopt -c relay.cfg --from-seq 120001 --yes",
  .opts = OPTIONS(
	{ .name = "from-seq", .arg = "N", .type = CLI_INT, .min = 1, .max = INT64_MAX,
	  .doc = "publish again from this event number on" },
	YES, DRY_RUN, DATABASE, KAFKA, JSON, TIMEOUT) },

{ .name = "show consumers", .group = CONSUMER, .args = "", .run = verb_show_consumers,
  .does = "the consumer groups of a database: where they stand, what they hold back",
  .doc =
  "One part for each group that has run on this database: partitions with the epoch of their owner, lanes and "
  "next offset; keys held back; dead letters; whether it is paused. With brokers also how many records each "
  "partition is behind. NEXT is the lowest of a partition's lanes.",
  .json = "one object a line: group, paused, paused_since, paused_by, lanes_wanted, parked_events, parked_keys, "
          "parked_oldest_seconds, retrying, dead_letters, dead_oldest_seconds, replays, moved_seconds, lag (records, "
          "null without brokers), partitions [{topic, partition, epoch, lane_count, next_offset (-1: nothing yet), "
          "lanes [next offsets], end_offset, lag, moved_seconds}]",
  .examples =
  "postrider show consumers -c consumer.cfg\n"
  "postrider show consumers --conninfo dbname=seat --brokers 127.0.0.1:9092 --json",
  .opts = OPTIONS(GROUP("only this one"), DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "lanes", .group = CONSUMER, .args = "[N|default]", .words = "default", .max_args = 1, .run = verb_lanes,
  .does = "show or change how many lanes each member of a consumer group has",
  .doc =
  "All members follow while they run: each partition is read no further, changes when all that was read of it "
  "is handled, and goes on. Keys stay in order. A paused group changes once it is resumed. 1 to 64; \"default\" "
  "gives the word back to lanes in each member's config. Without an operand it only says what was set here.\n\n"
  "/status.json of a member tells how many partitions have yet to change; `postrider show consumers` shows "
  "the lanes of each.",
  .json = "object: group, lanes (null: as the config says), changed",
  .examples = "postrider lanes 8 -c consumer.cfg\npostrider lanes default --group seat --conninfo dbname=seat",
  .opts = OPTIONS(GROUP("the consumer group"), DATABASE, JSON, TIMEOUT) },

{ .name = "dlq list", .group = CONSUMER, .args = "", .run = verb_dlq_list,
  .does = "messages that were given up on, grouped by cause",
  .doc =
  "A cause is a group, a class and code of failure, and a reason without what differs from one message to the "
  "next (numbers, ids, quoted values). One line per cause, the most frequent first; --all shows the dead letters "
  "one by one.\n\n"
  "--from-topic reads a dead-letter topic instead of the database, one that Spring (kafka_dlt-*) or Kafka Connect "
  "(__connect.errors.*) wrote too. It is read from end to end; an entry is then partition:offset, the class is "
  "spring, connect or unknown, the code the exception.",
  .json = "one object a line. By cause: cause, group, class, code, reason (without what differs), count, oldest, "
          "newest (RFC 3339), oldest_entry, example_entry, example_reason, topics. With --all: entry, group, topic, "
          "partition, offset, key, id, type, class, code, reason, attempts, buried_at, state, note, cause; of a "
          "topic without attempts, state and note",
  .examples =
  "postrider dlq list -c consumer.cfg\n"
  "postrider dlq list -g seat --class sqlstate --code '23*' --all\n"
  "postrider dlq list --from-topic orders-dlt --brokers 127.0.0.1:9092",
  .opts = OPTIONS(FILTER,
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "one by one instead of by cause" },
	{ .name = "state", .arg = "STATE", .type = CLI_STR, .words = "dead retrying retried dropped any", .def = "dead",
	  .doc = "those in this state: dead, retrying, retried, dropped, or any" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "100",
	  .doc = "with --all, at most so many" },
	{ .name = "from-topic", .arg = "TOPIC", .type = CLI_TOPIC, .doc = "read this dead-letter topic" },
	DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "dlq show", .group = CONSUMER, .args = "ENTRY", .min_args = 1, .max_args = 1, .run = verb_dlq_show,
  .does = "one dead letter: headers, payload, failure and history",
  .doc =
  "The payload is indented when it is JSON, and dumped in hexadecimal when it is not. The history names every act: "
  "what, when, by whom, before and after.\n\n"
  "--from-topic reads the record of a dead-letter topic instead; ENTRY is then partition:offset, as `dlq list "
  "--from-topic` names it.",
  .json = "object: entry, group, topic, partition, offset, key, id, message_id, type, class, code, reason, attempts, "
          "state, edited_from, edited_to, note, time (of the record), first_failed_at, buried_at, published_at, headers, "
          "payload (or payload_base64), history [{at, by, what, detail}]. Of a topic: as `dlq list --all`, and headers "
          "[{name, value (or value_hex)}], payload",
  .examples = "postrider dlq show 17\npostrider dlq show 17 --raw > payload\n"
              "postrider dlq show 2:17 --from-topic orders.DLT --brokers 127.0.0.1:9092",
  .opts = OPTIONS(
	{ .name = "raw", .type = CLI_FLAG, .doc = "write the payload's bytes and nothing else" },
	{ .name = "from-topic", .arg = "TOPIC", .type = CLI_TOPIC, .doc = "a record of this dead-letter topic" },
	DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "dlq edit", .group = CONSUMER, .args = "ENTRY", .min_args = 1, .max_args = 1, .run = verb_dlq_edit,
  .does = "mend a dead letter's payload, headers or key; makes a new one",
  .doc =
  "Shows the difference and makes a new dead letter with an id of its own: for the group it is another message. "
  "The old one is dropped, each names the other, and both have it in their history. Nothing is handled before "
  "`postrider dlq retry`.\n\n"
  "Without any of these options, on a terminal, $VISUAL or $EDITOR opens with the "
  "payload, and you are asked before anything is done.",
  .json = "object: entry, changed, made (the new entry or null), id (its id or null)",
  .examples =
  "postrider dlq edit 17\n"
  "postrider dlq show 17 --raw | sed s/EURO/EUR/ | postrider dlq edit 17 --payload -\n"
  "postrider dlq edit 17 --header region=eu --dry-run\n"
  "postrider dlq edit 17 --tombstone",
  .opts = OPTIONS(
	{ .name = "payload", .letter = 'f', .arg = "FILE", .type = CLI_FILE,
	  .doc = "the new payload is in this file; \"-\" is standard input" },
	{ .name = "header", .letter = 'H', .arg = "NAME=VALUE", .type = CLI_PAIR, .many = 1,
	  .doc = "set a header" },
	{ .name = "no-header", .arg = "NAME", .type = CLI_STR, .many = 1, .doc = "take a header away" },
	{ .name = "tombstone", .type = CLI_FLAG, .doc = "take the payload away" },
	{ .name = "key", .letter = 'k', .arg = "KEY", .type = CLI_STR, .doc = "another key" },
	{ .name = "no-key", .type = CLI_FLAG, .doc = "take the key away" },
	{ .name = "bytes", .type = CLI_FLAG, .doc = "the payload was JSON and need not be any more" },
	{ .name = "yes", .letter = 'y', .type = CLI_FLAG, .doc = "after the editor, do not ask" },
	BY, DRY_RUN, DATABASE, JSON, TIMEOUT) },

{ .name = "dlq retry", .group = CONSUMER, .args = "[ENTRY]...", .max_args = 1000, .run = verb_dlq_retry,
  .does = "give dead letters back to their group: one, a canary first, or all",
  .doc =
  "Names entries, or all that a filter finds (--all). The members of the group try them, beside the live messages, "
  "at the rate given; this command watches. Those that fail again become new dead letters.\n\n"
  "--canary gives back one, waits for its end, and goes on with the others only when it got through.\n\n"
  "It may be stopped at any time: the same command goes on with what is still dead. Exit status 0: all got "
  "through. 1: some failed again, or were not begun. 69: the group does not act.\n\n"
  "Refused: those of a sink, which looks at its topics and nowhere else. Publish the event anew once what refused it is "
  "mended.",
  .json = "object: chosen, retried, failed, dropped (by others, meanwhile), waiting (given back, not ended), left (not "
          "begun), canary (retried, failed, waiting or null), failures (the first 20) [{entry, dead_letter, "
          "failure, reason}]. With --dry-run what `dlq list` prints",
  .examples =
  "postrider dlq retry 17\n"
  "postrider dlq retry --canary --cause 3f2a9c01 --rate 50\n"
  "postrider dlq retry --all -g seat --dry-run",
  .opts = OPTIONS(
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "all that the filter finds; without one, all there are" },
	{ .name = "canary", .type = CLI_FLAG, .doc = "one first, the others when it got through" },
	{ .name = "rate", .letter = 'r', .arg = "N", .type = CLI_INT, .min = 1, .max = 100000, .def = "100",
	  .doc = "at most so many a second" },
	{ .name = "wait", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 3600 * PR_SEC, .def = "30s",
	  .doc = "give up watching when none has ended for this long; \"0s\" gives all back and returns" },
	BY, FILTER, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "dlq drop", .group = CONSUMER, .args = "[ENTRY]...", .max_args = 1000, .run = verb_dlq_drop,
  .does = "give dead letters up for good",
  .doc =
  "Names entries, or all that a filter finds (--all). They stay to be read, with who dropped them and why, and are "
  "never tried again.",
  .json = "object: dropped. With --dry-run what `dlq list` prints",
  .examples =
  "postrider dlq drop 17 --note 'a test order' --yes\n"
  "postrider dlq drop --all --cause 3f2a9c01 --dry-run",
  .opts = OPTIONS(
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "all that the filter finds; without one, all there are" },
	NOTE, BY, FILTER, YES, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "dlq note", .group = CONSUMER, .args = "ENTRY TEXT", .min_args = 2, .max_args = 2, .run = verb_dlq_note,
  .does = "write beside a dead letter what is known of it",
  .doc = "Takes the place of the note before; an empty text removes it. The history keeps all of them.",
  .json = "object: entry",
  .examples = "postrider dlq note 17 'the seat was sold twice, ticket 4711'",
  .opts = OPTIONS(BY, DATABASE, JSON, TIMEOUT) },

{ .name = "replay start", .group = CONSUMER, .args = "", .run = verb_replay_start,
  .does = "read a range of a topic again, through the same handler",
  .doc =
  "Makes a job; the members of the group read the range beside their live messages, into the same memory of ids: "
  "what was handled once is suppressed, what was missed is handled. It survives restarts.\n\n"
  "The range is one of: times (the record's), offsets of one partition, numbers of outbox events (header "
  "outbox-seq; the topic is searched for them), or --all that the topic still has. What the group has not come to "
  "yet is left out.\n\n"
  "Refused: records that are older than the ids the group still knows, and any of a group with dedupe = "
  "\"offset\" (known when its -c is given). They could have their effect a second time. And all of a sink: set its "
  "next_offset in inbox.position back while it is stopped; what is there stays, what is missing comes again.",
  .json = "object: job (null with --dry-run), group, topic, records, partitions [{partition, from_offset, to_offset}]; with "
          "--watch that of `replay show`",
  .examples =
  "postrider replay start -c consumer.cfg --from-time -2h --dry-run\n"
  "postrider replay start -c consumer.cfg -t outbox.event.order --from-offset 1200 --to-offset 1300 --partition 0\n"
  "postrider replay start -c consumer.cfg --from-id 88000 --to-id 91000 --watch",
  .opts = OPTIONS(GROUP("the consumer group"),
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, .doc = "the topic", .def = "-c's only one" },
	{ .name = "partition", .letter = 'p', .arg = "N", .type = CLI_INT, .max = 1000000, .many = 1,
	  .doc = "only this partition" },
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "everything the topic still has" },
	{ .name = "from-time", .arg = "TIME", .type = CLI_PAST,
	  .doc = "records since then: RFC 3339 with a zone, or before now, \"-2h\"" },
	{ .name = "to-time", .arg = "TIME", .type = CLI_PAST, .doc = "records before then", .def = "no end" },
	{ .name = "from-offset", .arg = "N", .type = CLI_INT, .max = INT64_MAX, .doc = "this offset and those behind it" },
	{ .name = "to-offset", .arg = "N", .type = CLI_INT, .max = INT64_MAX,
	  .doc = "offsets below this one", .def = "no end" },
	{ .name = "from-id", .arg = "N", .type = CLI_INT, .min = 1, .max = INT64_MAX,
	  .doc = "outbox events with this number and above" },
	{ .name = "to-id", .arg = "N", .type = CLI_INT, .min = 1, .max = INT64_MAX,
	  .doc = "outbox events through this number", .def = "no end" },
	NOTE, WATCH("follow the job until it has ended"), DRY_RUN, PROGRESS, DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "replay list", .group = CONSUMER, .args = "", .run = verb_replay_list,
  .does = "replay jobs, the newest first",
  .doc = "DONE is how much of the range was read; HANDLED had an effect, DUPLICATES were known already.",
  .json = "one object a line: job, group, topic, state (running, paused, done, cancelled, failed), records, done, handled, "
          "duplicates, made_at, made_by, changed_at, changed_by, note",
  .examples = "postrider replay list --state running",
  .opts = OPTIONS(GROUP("only of this one"),
	{ .name = "state", .arg = "STATE", .type = CLI_STR, .words = "running paused done cancelled failed",
	  .doc = "only in this state: running, paused, done, cancelled, failed" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "100",
	  .doc = "at most so many" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "replay show", .group = CONSUMER, .args = "JOB", .min_args = 1, .max_args = 1, .run = verb_replay_show,
  .does = "one replay job, partition by partition",
  .doc = "--watch follows it until it has ended; Ctrl-C ends the watching, not the job. Exit status 1: it failed or was "
         "cancelled.",
  .json = "object: as `replay list`, and partitions [{topic, partition, from_offset, to_offset, next_offset, handled, "
          "duplicates}]",
  .examples = "postrider replay show 3\npostrider replay show 3 --watch",
  .opts = OPTIONS(WATCH("until it has ended"), PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "replay pause", .group = CONSUMER, .args = "JOB", .min_args = 1, .max_args = 1, .run = verb_replay_pause,
  .does = "let a replay job rest; the group's live messages go on",
  .doc = "`postrider replay resume` goes on where it stopped.",
  .json = "object: as `replay show`",
  .examples = "postrider replay pause 3",
  .opts = OPTIONS(DATABASE, JSON, TIMEOUT) },

{ .name = "replay resume", .group = CONSUMER, .args = "JOB", .min_args = 1, .max_args = 1, .run = verb_replay_resume,
  .does = "go on with a paused or failed replay job",
  .doc = "It goes on where it stopped.",
  .json = "object: as `replay show`",
  .examples = "postrider replay resume 3",
  .opts = OPTIONS(DATABASE, JSON, TIMEOUT) },

{ .name = "replay cancel", .group = CONSUMER, .args = "JOB", .min_args = 1, .max_args = 1, .run = verb_replay_cancel,
  .does = "end a replay job before its end",
  .doc = "What it has handled stays handled. A cancelled job cannot be resumed: start another one.",
  .json = "object: as `replay show`",
  .examples = "postrider replay cancel 3 --yes",
  .opts = OPTIONS(YES, DRY_RUN, DATABASE, JSON, TIMEOUT) },

{ .name = "explain-error", .group = CONSUMER, .args = "CODE", .min_args = 1, .max_args = 1, .consumer = 1,
  .run = verb_explain_error,
  .does = "what a consumer would do about a failure, and which rule says so",
  .doc =
  "CODE is what failed, as in the rules of the consumer's config: sqlstate:23505, http:503, http:connect, "
  "exit:1, exit:signal:9, reply:WORD, decode:id, timeout or crash. Five characters alone are a SQLSTATE, three "
  "digits an HTTP status.\n\n"
  "The rules of -c come first, then the built-in ones; without -c only those. Nothing is contacted.",
  .json = "object: class, code, policy (retry, breaker, park, dead_letter, ignore, stop), rule {match, file, "
          "index}, attempts, backoff_seconds, backoff_max_seconds, meaning; null where it does not apply (rule "
          "file and index: of a built-in rule)",
  .examples =
  "postrider explain-error 23505 -c consumer.cfg\n"
  "postrider explain-error http:503 --json",
  .opts = OPTIONS(
	{ .name = "config", .letter = 'c', .arg = "FILE", .type = CLI_FILE, .doc = "the consumer's config file" },
	{ .name = "set", .letter = 'o', .arg = "KEY=VALUE", .type = CLI_PAIR, .many = 1,
	  .doc = "override one key of the config file, as the consumer's -o does" },
	JSON) },
{ .name = "reconcile", .group = SINK, .args = "", .run = verb_reconcile,
  .does = "prove that outbox, topics and sinks hold the same events, or name those that differ",
  .doc =
  "Reads what the topics have in a window of record time (committed records only) and compares it, record by record, "
  "with each sink: its files, line by line (checksums, sizes and manifests too, and whether an hour may be called complete), the ranges that an API has acknowledged, "
  "its table. With the relay's file or --outbox-conninfo also with the rows of the outbox that are still kept, by "
  "their numbers; with --api with what an API says it has (GET /facts). A source that is not given is said not to be "
  "looked at. Nothing is changed, and no group is joined.\n\n"
  "Without a window: all that the topics still have, as far as each sink has come; what a sink has not come to is "
  "counted and no difference. In a window it is one.\n\n"
  "Differences: missing, twice, extra (no such record on the topic), other_id, waiting; of the outbox unpublished, "
  "parked, published_twice, no_row; of files file_missing, file_size, file_changed, file_broken, file_count, "
  "file_foreign, file_unknown (no cut has made it), manifest_missing, manifest_wrong; of the ledger cuts_overlap, "
  "cut_count, past_end (the sink was further than the topic is), ledger_gone (what was published longer ago than handler.files.keep cannot be told: in a window only, else it is counted). Lines are read of NDJSON; of Avro, Parquet and objects of a store the recorded counts are compared, and size and checksum: of such a file it is said how many records are missing, not which.\n\n"
  "Memory does not depend on how many records there are, but for the outbox: a byte for each number in its window.\n\n"
  "Exit status 0: no difference. 3: there is one.",
  .json = "object: from, to (RFC 3339 or null), topics, records (of the topics in the window), outbox (null: not looked "
          "at) {records, unpublished, parked, skipped, published_twice, no_row}, sources [{source, target, group, records, "
          "missing, twice, extra, dead_letters, filtered, waiting, gone (from the topic: not compared), untold (the ledger of them is gone), files, bytes}], not_looked_at [...], differences_total, "
          "differences (the first --limit) [{difference, source, id, topic, partition, offset, path, detail}] (null where "
          "it does not apply)",
  .examples =
  "postrider reconcile -c files.cfg -c relay.cfg --hour -1h\n"
  "postrider reconcile -c files.cfg -c http.cfg -c table.cfg --from 2026-01-31T09:00Z --to 2026-01-31T12:00Z --json\n"
  "# what the platform itself says\n"
  "postrider reconcile -c http.cfg --api http://127.0.0.1:8088 --hour 2026-01-31T09:00Z",
  .opts = OPTIONS(
	{ .name = "config", .letter = 'c', .arg = "FILE", .type = CLI_FILE, .many = 1,
	  .doc = "the config file of a sink, of another one, and of the relay" },
	{ .name = "set", .letter = 'o', .arg = "KEY=VALUE", .type = CLI_PAIR, .many = 1,
	  .doc = "override one key of the sinks' files, as the consumer's -o does" },
	{ .name = "hour", .arg = "TIME", .type = CLI_PAST,
	  .doc = "the hour (UTC) of this time: RFC 3339 with a zone, or before now, \"-1h\"" },
	{ .name = "from", .arg = "TIME", .type = CLI_PAST, .doc = "records since then" },
	{ .name = "to", .arg = "TIME", .type = CLI_PAST, .doc = "records before then", .def = "now" },
	{ .name = "slack", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 365 * 86400 * PR_SEC, .def = "10m",
	  .doc = "records of the window are looked for so long behind it, for times need not be in order" },
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, .many = 1, .doc = "only this one",
	  .def = "those of the sinks" },
	{ .name = "outbox-conninfo", .arg = "CONNINFO", .type = CLI_CONNINFO, .doc = "the outbox' database",
	  .def = "the relay's file's; without one the outbox is not looked at" },
	{ .name = "api", .arg = "URL", .type = CLI_URL, .doc = "ask the API what it has: GET URL/facts" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 10000000, .def = "100",
	  .doc = "show at most so many differences; all are counted" },
	PROGRESS, BROKERS, JSON, TIMEOUT) },

{ .name = "catalogue", .group = SINK, .args = "", .run = verb_catalogue,
  .does = "what payloads look like, what in them is about people, and what has changed",
  .doc =
  "Sinks learn it from every payload: each place with the kinds of values it held, how often it was there, an example, "
  "and what looks like something about a person: email, phone, card (Luhn), iban, ip by most of its values, key by its "
  "name. Examples of these are masked; where rules leave out or mask a part of payloads all are.\n\n"
  "--drift lists what came to be different in a type of which 1,000 payloads had been seen: a new place, or "
  "another kind of value. Sinks go on; it is logged once and counted.\n\n"
  "A path can be used as it is in handler.fields.",
  .json = "one object a line: topic, type, path, kinds, seen, first_seen, last_seen, sample, pii. With --drift: topic, "
          "type, path, kind, what (path, kind), seen_at (of the first record that had it), found_at",
  .examples =
  "postrider catalogue -c sink.cfg --pii\n"
  "postrider catalogue -c sink.cfg -t outbox.event.order --drift",
  .opts = OPTIONS(
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, .doc = "only of this topic" },
	{ .name = "type", .letter = 'T', .arg = "TYPE", .type = CLI_STR, .doc = "only of this type" },
	{ .name = "pii", .type = CLI_FLAG, .doc = "only what looks like something about a person" },
	{ .name = "drift", .type = CLI_FLAG, .doc = "what has changed, the newest first" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 10000000, .def = "10000",
	  .doc = "at most so many lines" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "asyncapi", .group = SINK, .args = "", .run = verb_asyncapi,
  .does = "an AsyncAPI 3.0 document of the topics: types, headers, keys, schemas, examples",
  .doc =
  "Made from the catalogue that sinks keep, or, with --sample, from the newest records of each partition of the topics "
  "(no group is joined). YAML; --json writes JSON.\n\n"
  "A member is required when each object had it. Fields with x-pii look like something about a person; their "
  "examples are always masked.",
  .json = "object: the document, as AsyncAPI 3.0 has it",
  .examples =
  "postrider asyncapi -c sink.cfg > asyncapi.yaml\n"
  "postrider asyncapi -t outbox.event.order --brokers 127.0.0.1:9092 --sample 5000 --json",
  .opts = OPTIONS(
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, .many = 1, .doc = "only this one",
	  .def = "all in the catalogue, or -c's" },
	{ .name = "sample", .arg = "N", .type = CLI_INT, .min = 1, .max = 10000000,
	  .doc = "look at the newest N records of each partition instead of the catalogue" },
	{ .name = "examples", .arg = "HOW", .type = CLI_STR, .words = "masked plain none", .def = "masked",
	  .doc = "masked: letters as x, digits as 9; plain: as they came, but of people; none" },
	{ .name = "title", .arg = "TEXT", .type = CLI_STR, .doc = "the document's title", .def = "Events" },
	{ .name = "api-version", .arg = "VERSION", .type = CLI_STR, .doc = "the document's own version", .def = "1.0.0" },
	DATABASE, BROKERS, JSON, TIMEOUT) },

{ .name = "show sagas", .group = SAGA, .args = "", .run = verb_show_sagas,
  .does = "how many sagas there are, which are stuck, and which take too long",
  .doc =
  "One line for each saga that is defined here. Of states that are an end: how many have ended so, ever. Then those "
  "that wait for a person, the longest first, and steps that take longer than their sla.",
  .json = "one object a line: name, style, states {RUNNING, COMPENSATING, COMPLETED, COMPENSATED, STUCK, ABORTED}, "
          "versions [{version, hash, registered_at, alive}], stuck [{id, version, step, op, why, tries, since, "
          "age_seconds}], late [{id, step, state, since, age_seconds, sla_seconds}] (null: too many sagas to look through)",
  .examples = "postrider show sagas -c engine.cfg\npostrider show sagas -c engine.cfg --json | jq .states.STUCK",
  .opts = OPTIONS(
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "20",
	  .doc = "at most so many stuck ones, and so many late ones" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "saga start", .group = SAGA, .args = "NAME", .min_args = 1, .max_args = 1, .run = verb_saga_start,
  .does = "start a saga; prints its id",
  .doc =
  "As a service does: a row in the outbox of this database, which the relay brings to the engine. The data is a JSON "
  "object; without --data it is {}. A second start with the same id does nothing.\n\n"
  "With --wait it watches, in the engine's database, until the saga has ended. Exit status then 0: COMPLETED. 1: "
  "COMPENSATED or ABORTED. 3: STUCK. 69: not ended in that time.",
  .json = "object: id, name, state (with --wait; null: no engine has taken it yet), why",
  .examples =
  "postrider saga start pay -c engine.cfg --data '{\"payment_id\": \"17\", \"amount\": 30}'\n"
  "postrider saga start pay -c engine.cfg --data @payment.json --wait 30s",
  .opts = OPTIONS(SAGA_DATA("the saga's data: JSON, or a file that holds it; \"@-\" is standard input"),
	{ .name = "id", .arg = "UUID", .type = CLI_UUID, .doc = "the saga's id", .def = "a new one" },
	{ .name = "wait", .arg = "TIME", .type = CLI_DURATION, .min = 0, .max = 3600 * PR_SEC, .def = "0s",
	  .doc = "watch for so long, until it has ended or is stuck" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "saga list", .group = SAGA, .args = "", .run = verb_saga_list,
  .does = "sagas, the youngest first: where they stand and why",
  .doc =
  "Those that are alive; --all shows those that have ended, too, while the engine keeps them (handler.keep). FOR is how "
  "long each is in its state. `postrider show sagas` counts them.",
  .json = "one object a line: id, name, version, state, steps (under way), waits_for_lock, failed_step, why, started_at, "
          "since (in this state), age_seconds, finished_at, due_at (when the engine looks at it again at the latest)",
  .examples =
  "postrider saga list -c engine.cfg --state STUCK\n"
  "postrider saga list -c engine.cfg --name pay --step PAYMENT --older 1m\n"
  "postrider saga list -c engine.cfg --all --json --limit 1000 | jq -r .state | sort | uniq -c",
  .opts = OPTIONS(SAGA_FILTER("any that is no end"),
	{ .name = "step", .arg = "STEP", .type = CLI_STR, .doc = "only those where this step is under way or stuck" },
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "in any state" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000, .def = "100",
	  .doc = "at most so many" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "saga show", .group = SAGA, .args = "ID", .min_args = 1, .max_args = 1, .run = verb_saga_show,
  .does = "one saga: state, why, what is left, and all that has happened",
  .doc =
  "First where it stands; of one that is STUCK the commands that would help. Then its steps and what is due when, its "
  "data, and the timeline: commands, replies, changes of state and the orders of people, each with who gave it.\n\n"
  "The data may hold what is not for every eye.",
  .json = "object: id, name, version, style, state, turned (it goes backward), failed_step, why, started_at, deadline_at, "
          "since, updated_at, finished_at, due_at, part, correlation, waits_for_lock, locks, data, steps [{step, state, "
          "op, tries, generation, due_at, due (reply_overdue, event_overdue, send_again; undo: of all, unless somebody acts), since, why}], left [steps still to be done, "
          "or undone], orders [{entry, order, step, detail, by, at, done_at, outcome (done, refused, null: not yet), "
          "reason}], timeline [{at, what, step, op, command_id, detail, by}]",
  .examples =
  "postrider saga show 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg\n"
  "postrider saga show 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg --json | jq .timeline",
  .opts = OPTIONS(DATABASE, JSON, TIMEOUT) },

{ .name = "saga retry", .group = SAGA, .args = "[ID]...", .max_args = 1000, .run = verb_saga_retry,
  .does = "try the step again that a saga is stuck at, or that waits for its next try",
  .doc =
  "A stuck step begins anew, with all its tries and another command id; one that waits for its next try is sent "
  "now. Names sagas, or all that a filter finds.\n\n" ORDER_EXIT,
  .json = ORDER_JSON,
  .examples =
  "postrider saga retry 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg\n"
  "postrider saga retry -c engine.cfg --name pay --state STUCK --dry-run",
  .opts = OPTIONS(
	{ .name = "step", .arg = "STEP", .type = CLI_STR, .doc = "this step", .def = "the stuck one" },
	SAGA_FILTER("STUCK"), ORDERED, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "saga skip", .group = SAGA, .args = "[ID]...", .max_args = 1000, .run = verb_saga_skip,
  .does = "count a stuck step as done, or as undone, and go on",
  .doc =
  "For what was mended by hand: nobody asks the participant again. Only a step that is STUCK can be skipped.\n\n" ORDER_EXIT,
  .json = ORDER_JSON,
  .examples =
  "postrider saga skip 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e --step QUEUE -c engine.cfg --dry-run\n"
  "postrider saga skip -c engine.cfg --name pay --step QUEUE --older 1h --yes",
  .opts = OPTIONS(
	{ .name = "step", .arg = "STEP", .type = CLI_STR, .doc = "this step; must be said" },
	SAGA_FILTER("STUCK"), ORDERED, YES, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "saga undo", .group = SAGA, .args = "[ID]...", .max_args = 1000, .run = verb_saga_undo,
  .does = "turn a saga around: undo what it has done, from the last step to the first",
  .doc =
  "Also past its pivot, and of one that is COMPLETED, when all that it has done has an undo. With a filter it needs "
  "--state.\n\n" ORDER_EXIT,
  .json = ORDER_JSON,
  .examples =
  "postrider saga undo 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg --dry-run\n"
  "postrider saga undo -c engine.cfg --name pay --state STUCK --yes",
  .opts = OPTIONS(SAGA_FILTER(""), ORDERED, YES, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "saga abort", .group = SAGA, .args = "[ID]...", .max_args = 1000, .run = verb_saga_abort,
  .does = "end a saga as it is; nothing is undone",
  .doc =
  "The last resort: what it has done stays done, its locks are freed, and replies that still come change nothing. With a "
  "filter it needs --state.\n\n" ORDER_EXIT,
  .json = ORDER_JSON,
  .examples = "postrider saga abort 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg --yes",
  .opts = OPTIONS(SAGA_FILTER(""), ORDERED, YES, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "saga edit-data", .group = SAGA, .args = "ID", .min_args = 1, .max_args = 1, .run = verb_saga_edit_data,
  .does = "mend the data of a saga, of which its next commands are made",
  .doc =
  "Shows the difference first. What was sent already is not changed: after it `postrider saga retry` sends the stuck "
  "step's command with the new data.\n\n"
  "Without --data, on a terminal, $VISUAL or $EDITOR opens with the data, and you are asked before anything is "
  "done.\n\n" ORDER_EXIT,
  .json = ORDER_JSON,
  .examples =
  "postrider saga edit-data 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg\n"
  "postrider saga show $ID -c engine.cfg --json | jq '.data + {amount: 30}' |\\\n"
  "  postrider saga edit-data $ID -c engine.cfg --data @- --yes",
  .opts = OPTIONS(SAGA_DATA("the new data: JSON, or a file that holds it; \"@-\" is standard input"), ORDERED,
	{ .name = "yes", .letter = 'y', .type = CLI_FLAG, .doc = "do it; after the editor, do not ask" },
	DRY_RUN, DATABASE, JSON, TIMEOUT) },

{ .name = "saga migrate", .group = SAGA, .args = "[ID]...", .max_args = 1000, .run = verb_saga_migrate,
  .does = "move sagas that are alive to another version of their definition",
  .doc =
  "Sagas in flight stay on the version that they were started with. One may move when every step that it has begun "
  "is in the other version, of the same kind, and no new step comes before one that has begun; those that may not "
  "are told with the reason, and stay. Names sagas, or all of --name that are on --from.\n\n" ORDER_EXIT,
  .json = ORDER_JSON,
  .examples =
  "postrider saga migrate -c engine.cfg --name pay --from 1 --to 2 --dry-run\n"
  "postrider saga migrate 0190a6e0-5b5c-7b7e-8b57-3a5a0f1c2d3e -c engine.cfg --to 2 --yes",
  .opts = OPTIONS(
	{ .name = "name", .arg = "NAME", .type = CLI_STR, .doc = "sagas of this name" },
	{ .name = "from", .arg = "VERSION", .type = CLI_INT, .min = 1, .max = INT32_MAX, .doc = "those on this version" },
	{ .name = "to", .arg = "VERSION", .type = CLI_INT, .min = 1, .max = INT32_MAX, .doc = "to this one" },
	ORDERED, YES, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "saga graph", .group = SAGA, .args = "FILE|NAME[:V]", .min_args = 1, .max_args = 1,
  .run = verb_saga_graph,
  .does = "draw a saga's definition: what is done, and what is undone when a step is refused",
  .doc =
  "FILE is a definition, which is checked as the engine does; NAME one that the engine has registered in its "
  "database, its newest version when none is said. A name holds letters, digits, \"_\" and \"-\" only: all else "
  "is a file, so ./pay is one too.\n\n"
  "Mermaid can be put into a Markdown page as it is, DOT is Graphviz's language, SVG is a whole picture that "
  "needs no other program.",
  .examples =
  "postrider saga graph etc/sagas/pay.cfg\n"
  "postrider saga graph pay:2 -c engine.cfg --format svg > pay.svg",
  .opts = OPTIONS(
	{ .name = "format", .letter = 'f', .arg = "FORMAT", .type = CLI_STR, .words = "mermaid dot svg",
	  .def = "mermaid", .doc = "mermaid, dot or svg" },
	DATABASE, TIMEOUT) },

{ .name = "saga simulate", .group = SAGA, .args = "FILE|NAME[:V]", .min_args = 1, .max_args = 1,
  .run = verb_saga_simulate,
  .does = "walk every way that a saga can go, and see whether its invariants hold at the end",
  .doc =
  "The engine's own transitions are walked against a model of the participants with their barriers: a step is "
  "done, refused, fails or stays silent, an undo fails, the deadline passes, commands, answers and events come in "
  "any order, once, twice, late or never. Nothing is contacted.\n\n"
  "Ways are counted by their mishaps: refusals, failures, answers that do not come, the deadline, orders. Delay, "
  "disorder and doubles are no mishaps, they are tried everywhere. So each example has the fewest mishaps that lead "
  "there, and it is known up to how many of them everything was walked.\n\n"
  "Conditions over data are tried with all values that they tell apart. Besides the definition's invariants it is "
  "checked that what is COMPENSATED has nothing left done that can be undone, that what is COMPLETED is done, that "
  "nothing is done or undone twice, that undoing goes backward, and that there is always a way on. Where a saga is "
  "STUCK nothing is checked: a person is to decide; with --orders these orders are walked too.\n\n"
  "Exit 1: something is violated. 3: nothing is, as far as was walked, which was not to the end. 78: the definition "
  "is wrong.",
  .json = "object: name, version, style, situations, moves, mishaps (all ways with so many were walked; null: "
          "not even those without), all_ways, "
          "complete (false: a bound was hit), violated, ends [{state, what, situations, mishaps, example}], rules "
          "[{rule, invariant, violated, example (or null)}]",
  .examples =
  "postrider saga simulate etc/sagas/pay.cfg\n"
  "postrider saga simulate pay:2 -c engine.cfg --all --json",
  .opts = OPTIONS(
	{ .name = "depth", .letter = 'd', .arg = "N", .type = CLI_INT, .min = 0, .max = 254, .def = "3",
	  .doc = "walk the ways with up to N mishaps" },
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "walk all ways, however many mishaps they have" },
	{ .name = "tries", .arg = "N", .type = CLI_INT, .min = 1, .max = 7, .def = "2",
	  .doc = "a command is sent N times at most, or as often as the definition says when that is less" },
	{ .name = "states", .arg = "N", .type = CLI_INT, .min = 1000, .max = 100000000, .def = "1M",
	  .doc = "stop at so many situations; one takes about 30 bytes and 8 for each step" },
	{ .name = "orders", .type = CLI_FLAG,
	  .doc = "an operator orders retry, skip, undo or abort where it is STUCK, and undo where it is COMPLETED" },
	DATABASE, TIMEOUT, JSON) },

{ .name = "alerts list", .group = ALERTS, .args = "", .run = verb_alerts_list,
  .does = "what administrators are to see to: causes, and how often each came",
  .doc =
  "Alerts are recorded by a consumer of kind push: of dead letters, of messages that failed for good, of sagas that are "
  "stuck. The same cause within alerts.window is one alert. Those that are resolved are left out.\n\n"
  "PENDING is to be sent, SENT was taken by the webhook, FAILED was not (it is tried again), ACKED is being seen to, and "
  "no more repeated.",
  .json = "one object a line: alert, state, times, sent, first_at, last_at, sent_at (or null), cause, command, last_error "
	  "(or null), detail {group, topic, type, ... or saga_id, name, step}",
  .examples = "postrider alerts list -c push-consumer.cfg\n"
	      "postrider alerts list -c push-consumer.cfg --state FAILED --json",
  .opts = OPTIONS(
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, .doc = "also those that are resolved" },
	{ .name = "state", .arg = "STATE", .type = CLI_STR, .words = "PENDING SENT FAILED ACKED RESOLVED", .many = 1,
	  .doc = "only those in this state: PENDING, SENT, FAILED, ACKED, RESOLVED" },
	{ .name = "limit", .letter = 'l', .arg = "N", .type = CLI_INT, .min = 1, .max = 100000, .def = "100",
	  .doc = "at most so many, the newest first" },
	DATABASE, JSON, TIMEOUT) },

{ .name = "alerts show", .group = ALERTS, .args = "ALERT", .min_args = 1, .max_args = 1, .run = verb_alerts_show,
  .does = "one alert: its cause, the command that resolves it, and who did what",
  .doc = "The command is to be run as it stands, once the cause is mended.",
  .json = "object: as alerts list, and history [{at, what (try, sent, failed, ack, resolve), by, note (or null)}], the newest first",
  .examples = "postrider alerts show 17 -c push-consumer.cfg",
  .opts = OPTIONS(DATABASE, JSON, TIMEOUT) },

{ .name = "alerts ack", .group = ALERTS, .args = "ALERT...", .min_args = 1, .max_args = 1000, .run = verb_alerts_ack,
  .does = "say that somebody sees to it: it is not repeated any more",
  .doc = "Who and when is recorded. Exit status 4: there is no such alert.",
  .json = "one object a line: alert, what, changed (false: it was already)",
  .examples = "postrider alerts ack 17 -c push-consumer.cfg --note 'the disk is being replaced'",
  .opts = OPTIONS(ACTED, DATABASE, JSON, TIMEOUT) },

{ .name = "alerts resolve", .group = ALERTS, .args = "ALERT...", .min_args = 1, .max_args = 1000, .run = verb_alerts_resolve,
  .does = "say that it is done: the same cause is a new alert from now on",
  .doc = "Who and when is recorded. It runs nothing: `postrider alerts show` has the command that mends it.",
  .json = "one object a line: alert, what, changed (false: it was already)",
  .examples = "postrider alerts resolve 17 18 -c push-consumer.cfg",
  .opts = OPTIONS(ACTED, DATABASE, JSON, TIMEOUT) },

{ .name = "bench", .group = TRY, .args = "", .run = verb_bench,
  .does = "write a load into the outbox and time the way to Kafka",
  .doc =
  "Inserts events in transactions of --per-transaction rows, at --rate or as fast as one connection can, "
  "and reports the rate of commits and, when the relay answers, how long events took from insert to Kafka's "
  "acknowledgement. The events are real: consumers of the topic see them. So it needs --yes.",
  .json = "object: events, transactions, seconds, events_per_second, commits_per_second, commit_ms {p50, p99, "
          "max}, relay (null, or {acknowledged, seconds, insert_to_ack_ms {p50, p99}})",
  .examples =
  "postrider bench -c relay.cfg --events 10000 --rate 1000 --yes\n"
  "postrider bench -c relay.cfg --events 1M --per-transaction 1000 --yes",
  .opts = OPTIONS(
	{ .name = "events", .arg = "N", .type = CLI_INT, .min = 1, .max = 1000000000, .def = "10000",
	  .doc = "how many events" },
	{ .name = "per-transaction", .arg = "N", .type = CLI_INT, .min = 1, .max = 100000, .def = "1",
	  .doc = "events in one transaction" },
	{ .name = "rate", .arg = "N", .type = CLI_INT, .min = 1, .max = 10000000, .def = "no limit",
	  .doc = "events per second" },
	{ .name = "keys", .arg = "N", .type = CLI_INT, .min = 1, .max = 100000000, .def = "1000",
	  .doc = "how many different keys" },
	{ .name = "payload", .arg = "SIZE", .type = CLI_SIZE, .min = 16, .max = 1 << 20, .def = "168B",
	  .doc = "size of the payload" },
	{ .name = "aggregatetype", .letter = 'a', .arg = "NAME", .type = CLI_STR, .def = "bench",
	  .doc = "aggregatetype of the events" },
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC,
	  .doc = "this topic instead of the relay's route" },
	YES, WAIT, DATABASE, URL, JSON, TIMEOUT) },

{ .name = "demo", .group = TRY, .args = "", .run = verb_demo,
  .does = "the box office before your eyes, with failures",
  .doc =
  "In a checkout of the source it starts the demonstration: a private Postgres, Kafka and Redis, all services of "
  "the box office, a crowd that buys tickets, and the failures. Elsewhere it says how to get there.",
  .examples = "postrider demo\npostrider demo --once",
  .opts = OPTIONS({ .name = "once", .type = CLI_FLAG, .doc = "end by itself, with an exit status" }) },

{ .name = "completion", .group = TRY, .args = "bash|zsh|fish", .words = "bash zsh fish", .min_args = 1,
  .max_args = 1, .run = verb_completion,
  .does = "print a completion script for your shell",
  .doc =
  "bash: put it into ~/.local/share/bash-completion/completions/postrider. zsh: into a directory of $fpath "
  "as _postrider. fish: into ~/.config/fish/completions/postrider.fish.",
  .examples = "source <(postrider completion bash)",
  .opts = (const struct cli_opt[]){ HELP, { .name = NULL } } },

{ .name = "help", .group = TRY, .args = "[VERB]", .max_args = 2, .run = verb_help,
  .does = "this overview, or the help of one verb",
  .doc = "`postrider VERB --help` is the same. --man and --markdown write the whole manual.",
  .examples = "postrider help parked skip\npostrider help --man | man -l -",
  .opts = OPTIONS(
	{ .name = "man", .type = CLI_FLAG, .doc = "the manual as a man page" },
	{ .name = "markdown", .type = CLI_FLAG, .doc = "the manual as Markdown" }) },

{ .name = "version", .group = TRY, .args = "", .run = verb_version,
  .does = "print the version of this program and of its libraries",
  .doc = "Worth giving with every report of a fault.",
  .json = "object: version, librdkafka, libpq, libcurl",
  .examples = "postrider version",
  .opts = OPTIONS(JSON) },

{ .name = NULL } };
/* clang-format on */
