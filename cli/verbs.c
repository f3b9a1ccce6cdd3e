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
	  .def = "http.listen of -c, else $POSTRIDER_URL, else http://127.0.0.1:9470" }
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
#define FILTER \
	GROUP("only of this consumer group"), \
	{ .name = "topic", .letter = 't', .arg = "TOPIC", .type = CLI_TOPIC, \
	  .doc = "only messages that came from this topic" }, \
	{ .name = "type", .letter = 'T', .arg = "TYPE", .type = CLI_STR, .doc = "only messages of this type" }, \
	{ .name = "cause", .arg = "CAUSE", .type = CLI_STR, .doc = "only of this cause, as `dlq list` names it" }, \
	{ .name = "class", .arg = "CLASS", .type = CLI_STR, \
	  .doc = "only failures of this class: sqlstate, http, exit, reply, decode, timeout, crash" }, \
	{ .name = "code", .arg = "CODE", .type = CLI_STR, \
	  .doc = "only failures with this code; * at the end matches any rest: \"23*\"" }, \
	{ .name = "since", .arg = "TIME", .type = CLI_PAST, \
	  .doc = "only those buried since then: RFC 3339 with a zone, or before now, \"-10m\"" }, \
	{ .name = "until", .arg = "TIME", .type = CLI_PAST, .doc = "only those buried before then" }
#define NOTE \
	{ .name = "note", .arg = "TEXT", .type = CLI_STR, .doc = "why: kept with it" }
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
	{ .name = "class", .arg = "CLASS", .type = CLI_STR, \
	  .doc = "only keys whose first message failed so (of a group): sqlstate, http, exit, reply, decode, timeout, crash" }, \
	{ .name = "code", .arg = "CODE", .type = CLI_STR, \
	  .doc = "only with this code (of a group); * at the end matches any rest: \"23*\"" }
#define NAMED \
	{ .name = "no-key", .type = CLI_FLAG, .doc = "messages without a key (of a group): each stands for itself" }, \
	{ .name = "offset", .arg = "N", .type = CLI_INT, .max = INT64_MAX, .doc = "the message at this offset (of a group)" }
#define MATCHING \
	{ .name = "all", .letter = 'a', .type = CLI_FLAG, \
	  .doc = "the first message of every key that the other options match (of a group)" }
#define OPTIONS(...) (const struct cli_opt[]){ __VA_ARGS__, HELP, { .name = NULL } }

#define SET_UP "Set up"
#define LOOK   "Look"
#define EVENTS "Events"
#define HELD   "Held back events"
#define RELAY  "The relay"
#define CONSUMER "Consumers"
#define TRY    "Try and learn"

const struct cli_verb cli_verbs[] = {
{ .name = "init", .group = SET_UP, .args = "", .run = verb_init,
  .does = "install or upgrade schemas outbox and inbox, and make the position topic",
  .doc =
  "Applies the migrations that the database does not have yet and makes the first partitions. It may be "
  "run again at any time, also while services write, and by two people at once: what is there stays.\n\n"
  "With brokers and a name (or -c) it also makes the relay's position topic, postrider.positions.NAME: one "
  "partition, compacted.\n\n"
  "--print writes the migrations as plain SQL for another migration tool and contacts nothing.",
  .json = "object: database, migrations (applied now), schema_version, partitions (ready), topic (name or null), "
          "topic_created",
  .examples =
  "postrider init --conninfo dbname=orders\n"
  "postrider init -c relay.cfg\n"
  "# the SQL itself, for Flyway or sqitch\n"
  "postrider init --print > outbox.sql",
  .opts = OPTIONS(DATABASE, KAFKA,
	{ .name = "print", .type = CLI_FLAG, .doc = "write the SQL to standard output, change nothing" },
	JSON, TIMEOUT) },

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
          "lag_events, handled {handled, duplicate, filtered, ignored, parked, dead_letter}, events_per_second, "
          "parked_events, parked_keys, dead_letters, retrying, replays, breaker {open, failures, "
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
	{ .name = "id", .arg = "UUID", .type = CLI_UUID, .doc = "the message (of a group)" },
	MATCHING, FAILURE, WAIT, DRY_RUN, DATABASE, JSON, TIMEOUT) },

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
	MATCHING, FAILURE, YES, DRY_RUN, WAIT, DATABASE, JSON, TIMEOUT) },

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
	WAIT, DRY_RUN, DATABASE, JSON, TIMEOUT) },

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
	DRY_RUN, DATABASE, JSON, TIMEOUT) },

{ .name = "dlq retry", .group = CONSUMER, .args = "[ENTRY]...", .max_args = 1000, .run = verb_dlq_retry,
  .does = "give dead letters back to their group: one, a canary first, or all",
  .doc =
  "Names entries, or all that a filter finds (--all). The members of the group try them, beside the live messages, "
  "at the rate given; this command watches. Those that fail again become new dead letters.\n\n"
  "--canary gives back one, waits for its end, and goes on with the others only when it got through.\n\n"
  "It may be stopped at any time: the same command goes on with what is still dead. Exit status 0: all got "
  "through. 1: some failed again, or were not begun. 69: the group does not act.",
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
	FILTER, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

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
	NOTE, FILTER, YES, DRY_RUN, PROGRESS, DATABASE, JSON, TIMEOUT) },

{ .name = "dlq note", .group = CONSUMER, .args = "ENTRY TEXT", .min_args = 2, .max_args = 2, .run = verb_dlq_note,
  .does = "write beside a dead letter what is known of it",
  .doc = "Takes the place of the note before; an empty text removes it. The history keeps all of them.",
  .json = "object: entry",
  .examples = "postrider dlq note 17 'the seat was sold twice, ticket 4711'",
  .opts = OPTIONS(DATABASE, JSON, TIMEOUT) },

{ .name = "replay start", .group = CONSUMER, .args = "", .run = verb_replay_start,
  .does = "read a range of a topic again, through the same handler",
  .doc =
  "Makes a job; the members of the group read the range beside their live messages, into the same memory of ids: "
  "what was handled once is suppressed, what was missed is handled. It survives restarts.\n\n"
  "The range is one of: times (the record's), offsets of one partition, numbers of outbox events (header "
  "outbox-seq; the topic is searched for them), or --all that the topic still has. What the group has not come to "
  "yet is left out.\n\n"
  "Refused: records that are older than the ids the group still knows, and any of a group with dedupe = "
  "\"offset\" (known when its -c is given). They could have their effect a second time.",
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
  .does = "the whole pipeline before your eyes, with failures",
  .doc =
  "In a checkout of the source it starts the demonstration: a private Postgres, Kafka and relay, a producer, "
  "and the failures. Elsewhere it says how to get there.",
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
