"""tests/e2e/test_reconcile.py -- `postrider reconcile`: every way in which outbox, topic and sink may differ, made for real.

The sink's traces are made by tests/support/sink_made.py; that a running sink leaves such ones is shown at the end and in
the sink's own tests.
"""
import http.server
import json
import os
import threading
import time
import urllib.parse

import pytest
import s3
import servers

from data_platform import away  # noqa: F401
from inbox import inbox  # noqa: F401
from outbox import read_topic
from s3_sink import S3Sink
from sink import Sink, final_files
from sink_made import MadeSink, ids, millis, produce, produce_many
from wait import wait_until

WINDOW = ("--from", "2026-01-31T09:00Z", "--to", "2026-01-31T11:00Z")


def run(cli, *args, **kw):
    done = cli("reconcile", *args, "--json", **kw)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert (answer["differences_total"] == 0) == (done.returncode == 0)
    return answer


def kinds(answer):
    return [d["difference"] for d in answer["differences"]]


class Scene:
    """Two partitions of 20 records over two hours, in four files; all is as it should be."""

    def __init__(self, db, kafka, topic, tmp_path, cli, compression="none"):
        self.cli, self.db = cli, db
        kafka.create_topic(topic, 2, {"retention.ms": "-1"})  # the records' times are of long ago
        self.records = {p: [(i, n * 6, {"n": n}) for n, i in enumerate(ids(20))] for p in (0, 1)}
        produce(kafka, topic, [(p, i, m, json.dumps(body).encode(), []) for p in (0, 1) for i, m, body in self.records[p]])
        self.sink = MadeSink(db, tmp_path / "files", topic, kafka.bootstrap, compression=compression)
        self.files = {}
        for p in (0, 1):
            for first in (0, 10):
                self.files[p, first] = self.sink.file(p, first, self.records[p][first:first + 10])
            self.sink.position(p, 20)
        self.sink.manifests()
        self.config = self.sink.config(tmp_path / "sink.cfg")
        self.topic = topic

    def reconcile(self, *args):
        return run(self.cli, "-c", self.config, *args)

    def lines(self, p, first):
        with open(self.files[p, first], encoding="utf-8") as f:
            return f.readlines()

    def rewrite(self, p, first, lines):
        with open(self.files[p, first], "w", encoding="utf-8") as f:
            f.writelines(lines)


def abort_one(kafka, topic):
    from confluent_kafka import Producer
    p = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": topic})
    p.init_transactions(30)
    p.begin_transaction()
    p.produce(topic, b"{}", "k", 0, headers=[("id", ids(1)[0]), ("type", "Made")], timestamp=millis(115))
    p.flush(30)
    p.abort_transaction(30)
    # Its end is on the topic a moment after this was answered; until then nobody reads beyond its begin.
    wait_until(lambda: kafka.end_offsets(topic)[0] == 22, 30, "the transaction's end")


@pytest.fixture
def scene(db, kafka, topic, tmp_path, cli):
    return Scene(db, kafka, topic, tmp_path, cli)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_complete(db, kafka, topic, tmp_path, cli, compression):
    s = Scene(db, kafka, topic, tmp_path, cli, compression)
    for window in ((), WINDOW):
        answer = s.reconcile(*window)
        assert (answer["differences"], answer["records"]) == ([], 40)
        (files,) = answer["sources"]
        assert (files["target"], files["records"], files["missing"], files["files"]) == ("files", 40, 0, 4)
        assert answer["not_looked_at"] == ["outbox", "s3", "http", "table", "api"] and answer["outbox"] is None
    hour = s.reconcile("--hour", "2026-01-31T09:59Z")
    assert hour["records"] == 20 and hour["sources"][0]["records"] == 20 and not hour["differences"]
    assert (hour["from"], hour["to"]) == ("2026-01-31T09:00:00.000000Z", "2026-01-31T10:00:00.000000Z")
    text = cli("reconcile", "-c", s.config, check=True).stdout
    assert "no difference" in text and "table: not looked at" in text and "files of made" in text


def test_a_line_removed(scene):
    lines = scene.lines(1, 10)
    scene.rewrite(1, 10, lines[:4] + lines[5:])
    answer = scene.reconcile(*WINDOW)
    assert sorted(kinds(answer)) == ["file_size", "missing", "file_count"] or sorted(kinds(answer)) == [
        "file_count", "file_size", "missing"]
    (missing,) = [d for d in answer["differences"] if d["difference"] == "missing"]
    assert (missing["id"], missing["topic"], missing["partition"], missing["offset"]) == (
        scene.records[1][14][0], scene.topic, 1, 14)
    text = scene.cli("reconcile", "-c", scene.config, *WINDOW)
    assert text.returncode == 3
    assert f"{scene.records[1][14][0]} {scene.topic} 1:14 is missing in the files of made" in text.stdout


def test_a_line_twice(scene):
    lines = scene.lines(0, 0)
    scene.rewrite(0, 0, lines + lines[3:4])
    answer = scene.reconcile()
    assert sorted(kinds(answer)) == ["file_count", "file_size", "twice"]
    assert answer["sources"][0]["twice"] == 1
    (twice,) = [d for d in answer["differences"] if d["difference"] == "twice"]
    assert (twice["offset"], twice["partition"], twice["id"]) == (3, 0, scene.records[0][3][0])


def test_two_files_with_the_same_record(scene):
    """Both files say what they hold, and so does the ledger: only the topic tells that one record is in both."""
    scene.sink.file(0, 4, scene.records[0][4:6])
    scene.sink.manifests()
    answer = scene.reconcile()
    assert sorted(kinds(answer)) == ["cuts_overlap", "twice", "twice"]


def test_changed_by_hand(scene):
    """The same size, another digit: only the checksum tells."""
    lines = scene.lines(0, 10)
    scene.rewrite(0, 10, [lines[0].replace('{"n": 10}', '{"n": 11}')] + lines[1:])
    answer = scene.reconcile()
    assert kinds(answer) == ["file_changed"] and answer["differences"][0]["path"] in scene.files[0, 10]


def test_another_id(scene):
    lines = scene.lines(0, 10)
    other = ids(1)[0]
    scene.rewrite(0, 10, [lines[0].replace(scene.records[0][10][0], other)] + lines[1:])
    assert sorted(kinds(scene.reconcile())) == ["file_changed", "other_id"]


def test_a_file_deleted(scene):
    os.unlink(scene.files[0, 0])
    answer = scene.reconcile(*WINDOW)
    assert kinds(answer).count("missing") == 10 and kinds(answer).count("file_missing") == 1
    assert answer["differences_total"] == 11
    few = scene.reconcile(*WINDOW, "--limit", "3")
    assert len(few["differences"]) == 3 and few["differences_total"] == 11


def test_an_extra_file(scene):
    """Somebody's copy beside the original; what begins with a dot is nobody's business."""
    directory = os.path.dirname(scene.files[0, 0])
    for name in ("0-0-9 (copy).ndjson", ".0-0-9.ndjson.tmp"):
        with open(os.path.join(directory, name), "w", encoding="utf-8") as f:
            f.writelines(scene.lines(0, 0))
    answer = scene.reconcile()
    assert kinds(answer) == ["file_unknown"] and answer["differences"][0]["path"].endswith("0-0-9 (copy).ndjson")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_truncated(db, kafka, topic, tmp_path, cli, compression):
    s = Scene(db, kafka, topic, tmp_path, cli, compression)
    size = os.path.getsize(s.files[1, 0])
    os.truncate(s.files[1, 0], size - 7)
    answer = s.reconcile()
    assert {"file_size", "file_broken"} <= set(kinds(answer)) <= {"file_size", "file_broken", "missing"}
    (broken,) = [d for d in answer["differences"] if d["difference"] == "file_broken"]
    assert "ends in the middle" in broken["detail"]


def test_truncated_text(scene):
    os.truncate(scene.files[1, 0], os.path.getsize(scene.files[1, 0]) - 5)
    answer = scene.reconcile()
    assert sorted(kinds(answer)) == ["file_broken", "file_size", "missing"]


def test_garbage(scene):
    lines = scene.lines(0, 0)
    scene.rewrite(0, 0, ["\0" * (len(lines[0]) - 1) + "\n"] + lines[1:])
    answer = scene.reconcile()
    assert {"file_broken", "file_changed", "missing"} == set(kinds(answer))
    assert "line 1 is no record" in [d["detail"] for d in answer["differences"] if d["difference"] == "file_broken"][0]


def test_a_manifest(scene):
    top = os.path.join(scene.sink.directory, "_manifest", scene.topic, "dt=2026-01-31")
    with open(os.path.join(top, "hour=09.json"), encoding="utf-8") as f:
        manifest = json.load(f)
    os.unlink(os.path.join(top, "hour=10.json"))
    for change, detail in ((lambda m: m.update(records=19), "sum of records"), (lambda m: m["files"].pop(), "does not list"),
                           (lambda m: m["files"][0].update(sha256="0" * 64), "says otherwise"),
                           (lambda m: m.pop("files"), "no manifest"), (lambda m: m.pop("complete"), "does not say whether")):
        other = json.loads(json.dumps(manifest))
        change(other)
        with open(os.path.join(top, "hour=09.json"), "w", encoding="utf-8") as f:
            json.dump(other, f)
        answer = scene.reconcile()
        assert sorted(kinds(answer)) == ["manifest_missing", "manifest_wrong"]
        assert detail in [d["detail"] for d in answer["differences"] if d["difference"] == "manifest_wrong"][0]


def test_a_manifest_that_says_complete(scene, kafka):
    """Too early: a partition that holds records is not published up to the hour's end, or the clock is not there yet. Never:
    the sink has found it complete, and its manifest does not say so."""
    def wrong():
        answer = scene.reconcile()
        assert set(kinds(answer)) <= {"manifest_wrong"}
        return {d["path"][-7:-5]: d["detail"] for d in answer["differences"]}

    scene.sink.manifests(complete=True)
    assert sorted(wrong()) == ["09", "10"]
    scene.sink.published(0, 120)
    assert "partition 1 is published up to nothing" in wrong()["10"]
    scene.sink.published(1, 119)
    assert list(wrong()) == ["10"] and "partition 1 is published up to 2026-01-31T10:59:00" in wrong()["10"]
    scene.sink.published(1, 120)
    assert not wrong()
    scene.sink.manifests()
    assert not wrong()
    scene.sink.published(-1, 60)
    assert list(wrong()) == ["09"] and "which all hours to 2026-01-31T10:00:00" in wrong()["09"]
    # An hour that is not over for fifty minutes.
    soon = (time.time() * 1000 - millis(0)) / 60000 + 50
    (record,) = ids(1)
    produce(kafka, scene.topic, [(0, record, soon, b"{}", [])])
    scene.sink.file(0, 20, [(record, soon, {})])
    scene.sink.position(0, 21)
    for p in -1, 0, 1:
        scene.sink.published(p, soon + 120)
    scene.sink.manifests(complete=True)
    (detail,) = wrong().values()
    assert "its hour is not over" in detail


def test_not_yet_there(scene, kafka):
    """Without a window what waits is no difference; in a window it is, for the window is not complete."""
    more = ids(3)
    produce(kafka, scene.topic, [(0, i, 119, b"{}", []) for i in more])
    answer = scene.reconcile()
    assert not answer["differences"] and answer["sources"][0]["waiting"] == 3
    answer = scene.reconcile(*WINDOW)
    assert kinds(answer) == ["waiting"] and answer["differences"][0]["offset"] == 20


def test_dead_letters_and_filters(scene, kafka, tmp_path):
    more = ids(2)
    produce(kafka, scene.topic, [(0, more[0], 119, b"{}", []), (0, more[1], 119, b"{}", [("skip", "me")])])
    scene.sink.position(0, 22)
    assert kinds(scene.reconcile()) == ["missing", "missing"]
    scene.db.query("INSERT INTO inbox.dead_letter (\"group\", topic, partition, message_offset, lane_hash, id, class, code, reason, "
                   "attempts) VALUES ('made', %s, 0, 20, 0, %s, 'http', '422', 'no', 1)", (scene.topic, more[0]))
    answer = scene.reconcile()
    assert kinds(answer) == ["missing"] and answer["sources"][0]["dead_letters"] == 1
    scene.config = scene.sink.config(tmp_path / "filter.cfg", tail='filter: { headers = [ "skip=me" ]; };\n')
    answer = scene.reconcile()
    assert answer["sources"][0]["filtered"] == 1 and answer["sources"][0]["missing"] == 1


def test_a_record_that_the_topic_does_not_have(scene, kafka):
    """A record of an aborted transaction in a file: extra, for no reader of committed records has it."""
    abort_one(kafka, scene.topic)
    scene.sink.file(0, 20, [(ids(1)[0], 115, {})])
    scene.sink.manifests()
    scene.sink.position(0, 22)
    answer = scene.reconcile(*WINDOW)
    assert [(d["difference"], d["offset"]) for d in answer["differences"]] == [("extra", 20)]
    assert answer["sources"][0]["extra"] == 1


def test_what_the_topic_has_dropped(scene, kafka):
    """It cannot be compared, and that is said."""
    from confluent_kafka import Consumer, TopicPartition
    from confluent_kafka.admin import ConfigResource
    assert scene.reconcile(*WINDOW)["sources"][0]["gone"] == 0
    (change,) = kafka.admin.alter_configs([ConfigResource("topic", scene.topic, {"retention.ms": "1000"})]).values()
    change.result(30)
    c = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": scene.topic})
    wait_until(lambda: all(c.get_watermark_offsets(TopicPartition(scene.topic, p))[0] == 20 for p in (0, 1)), 60)
    c.close()
    answer = scene.reconcile(*WINDOW)
    assert (answer["records"], answer["differences"]) == (0, [])
    assert answer["sources"][0]["gone"] == 40
    assert "40 no longer on the topic" in scene.cli("reconcile", "-c", scene.config, *WINDOW).stdout


def test_an_api_has_acknowledged(scene, kafka, tmp_path):
    sink = MadeSink(scene.db, tmp_path, scene.topic, kafka.bootstrap, group="posted")
    for p in (0, 1):
        sink.position(p, 20)
        sink.cut(p, 0, scene.records[p][:12], target="http")
    sink.cut(0, 12, scene.records[0][12:], target="http")
    sink.cut(1, 15, scene.records[1][15:], target="http")
    config = sink.config(tmp_path / "http.cfg", 'http: { url = "http://127.0.0.1:1/events"; };')
    answer = run(scene.cli, "-c", config, "-c", scene.config)
    assert [(s["target"], s["records"], s["missing"]) for s in answer["sources"]] == [("http", 37, 3), ("files", 40, 0)]
    assert sorted((d["partition"], d["offset"]) for d in answer["differences"]) == [(1, 12), (1, 13), (1, 14)]


def test_a_table(scene, kafka, tmp_path):
    scene.db.psql('CREATE SCHEMA platform; CREATE TABLE platform.event (id text, type text, topic text, partition int, "offset" '
                  'bigint, key text, "time" timestamptz, payload jsonb)')
    for p in (0, 1):
        for n, (ident, minutes, _) in enumerate(scene.records[p]):
            scene.db.query("INSERT INTO platform.event VALUES (%s, 'Made', %s, %s, %s, 'k', "
                           "'2026-01-31T09:00Z'::timestamptz + %s * interval '1 minute', '{}')",
                           (ident, scene.topic, p, n, minutes))
    sink = MadeSink(scene.db, tmp_path, scene.topic, kafka.bootstrap, group="rows")
    for p in (0, 1):
        sink.position(p, 20)
    config = sink.config(tmp_path / "table.cfg", 'table: { table = "platform.event"; };')
    answer = run(scene.cli, "-c", config, *WINDOW)
    assert answer["sources"][0]["records"] == 40 and not answer["differences"]
    scene.db.query("DELETE FROM platform.event WHERE partition = 1 AND \"offset\" = 7")
    scene.db.query("INSERT INTO platform.event SELECT * FROM platform.event WHERE partition = 0 AND \"offset\" = 3")
    answer = run(scene.cli, "-c", config, *WINDOW)
    assert sorted((d["difference"], d["partition"], d["offset"]) for d in answer["differences"]) == [
        ("missing", 1, 7), ("twice", 0, 3)]


def test_files_that_are_not_read(scene, tmp_path):
    """Avro and Parquet: size, checksum and what is recorded, against the records of the topic in their range and hour."""
    config = scene.sink.config(tmp_path / "avro.cfg", f'files: {{ directory = "{scene.sink.directory}"; format = "avro"; }};')
    answer = run(scene.cli, "-c", config)
    assert (answer["differences"], answer["sources"][0]["records"], answer["sources"][0]["files"]) == ([], 40, 4)
    scene.db.query("UPDATE sink.file SET records = 9 WHERE partition = 1 AND first_offset = 10")
    scene.db.query("UPDATE sink.cut SET records = 9 WHERE partition = 1 AND first_offset = 10")
    answer = run(scene.cli, "-c", config)
    assert sorted(kinds(answer)) == ["file_count", "manifest_wrong"] and answer["sources"][0]["missing"] == 1
    scene.db.query("DELETE FROM sink.cut WHERE partition = 0 AND first_offset = 0")
    answer = run(scene.cli, "-c", config)
    assert kinds(answer).count("missing") == 10 and kinds(answer).count("file_unknown") == 1
    with open(scene.files[0, 10], "ab") as f:
        f.write(b"x")
    assert "file_size" in kinds(run(scene.cli, "-c", config))


def test_while_the_sink_is_at_work(scene):
    """A file that has its name and whose cut is recorded is known, also when the position does not tell yet. A manifest is made behind
    its files: for half a minute it need not list them, afterwards it must."""
    scene.db.query("UPDATE sink.cut SET state = 'recorded' WHERE partition = 1 AND first_offset = 10")
    scene.db.query("UPDATE inbox.position SET next_offset = 10 WHERE partition = 1")
    path = os.path.join(scene.sink.directory, "_manifest", scene.topic, "dt=2026-01-31", "hour=10.json")
    with open(path, encoding="utf-8") as f:
        whole = json.load(f)
    assert kinds(scene.reconcile()) == ["manifest_wrong"]  # it lists what is not published
    files = [f for f in whole["files"] if f["partition"] == 0]
    with open(path, "w", encoding="utf-8") as f:
        json.dump({**whole, "files": files, "records": 10}, f)
    assert kinds(scene.reconcile()) == []
    scene.db.query("UPDATE sink.cut SET state = 'published', published_at = now() WHERE partition = 1 AND first_offset = 10")
    assert kinds(scene.reconcile()) == []
    scene.db.query("UPDATE sink.cut SET published_at = now() - interval '1 minute' WHERE partition = 1 AND first_offset = 10")
    assert kinds(scene.reconcile()) == ["manifest_wrong"]


def test_topics_by_a_pattern(scene, kafka, tmp_path):
    """A sink reads what matches; what it has not come to is no difference, another's topic is not looked at."""
    path = scene.sink.config(tmp_path / "pattern.cfg")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    with open(path, "w", encoding="utf-8") as f:
        f.write(text.replace(f'"{scene.topic}"', f'"^{scene.topic}(.more)?$"'))
    for more in (".more", ".others"):
        kafka.create_topic(scene.topic + more, 1)
        produce(kafka, scene.topic + more, [(0, ids(1)[0], 0, b"{}", [])])
    answer = run(scene.cli, "-c", path)
    assert (answer["topics"], answer["records"], answer["differences"]) == ([scene.topic, scene.topic + ".more"], 41, [])
    assert (answer["sources"][0]["records"], answer["sources"][0]["waiting"]) == (40, 1)


def test_sinks_of_different_topics(scene, kafka, tmp_path):
    """Nothing is missing from a sink that does not read the topic, and it waits for nothing there."""
    other = MadeSink(scene.db, tmp_path / "others", scene.topic + ".o", kafka.bootstrap, group="others")
    kafka.create_topic(other.topic, 1, {"retention.ms": "-1"})
    records = [(i, n, {}) for n, i in enumerate(ids(5))]
    produce(kafka, other.topic, [(0, i, m, b"{}", []) for i, m, _ in records])
    other.file(0, 0, records)
    other.position(0, 5)
    other.manifests()
    answer = run(scene.cli, "-c", scene.config, "-c", other.config(tmp_path / "others.cfg"), *WINDOW)
    assert not answer["differences"], answer["differences"]
    assert [(s["records"], s["waiting"]) for s in answer["sources"]] == [(40, 0), (5, 0)]


@pytest.mark.parametrize("types, found", [(["!Other"], (1, 0)), (["Ma*"], (1, 0)), (["!Other", "M*"], (1, 0)), (["!Ma*"], (0, 1))])
def test_a_filter(scene, tmp_path, types, found):
    """What the sink leaves out by its filter is not missing; what it takes is."""
    scene.rewrite(0, 0, scene.lines(0, 0)[:-1])
    answer = run(scene.cli, "-c", scene.sink.config(tmp_path / "filter.cfg", tail=f"filter: {{ types = {json.dumps(types)}; }};\n"))
    (source,) = answer["sources"]
    assert (source["missing"], source["filtered"]) == found


def test_files_that_reach_over_a_slice(db, kafka, topic, tmp_path, cli):
    """What reconcile looks at at a time is 262,144 offsets. A file that is not read, and begins before such a border and ends
    behind it, was never compared, and its 50 records too few were no difference."""
    first, n = 262100, 262200
    kafka.create_topic(topic, 1, {"retention.ms": "-1"})
    produce_many(kafka, topic, n)
    sink = MadeSink(db, tmp_path / "files", topic, kafka.bootstrap)
    sink.blob(0, 0, first, first)
    sink.blob(0, first, n, n - first)
    sink.position(0, n)
    config = sink.config(tmp_path / "avro.cfg", f'files: {{ directory = "{sink.directory}"; format = "avro"; manifest = false; }};')
    answer = run(cli, "-c", config)
    assert (answer["differences"], answer["sources"][0]["records"]) == ([], n)
    for change, missing, extra in (-50, 50, 0), (20, 0, 20):
        db.query("UPDATE sink.file SET records = %s WHERE first_offset = %s", (n - first + change, first))
        db.query("UPDATE sink.cut SET records = %s WHERE first_offset = %s", (n - first + change, first))
        answer = run(cli, "-c", config)
        (source,) = answer["sources"]
        assert kinds(answer) == ["file_count"] and f"the topic has {n - first} " in answer["differences"][0]["detail"]
        assert (source["missing"], source["extra"], source["records"]) == (missing, extra, n + change)


def test_a_topic_made_anew(scene, kafka):
    """Files and ledger are of the topic that had this name before. Somebody has set the position back: it tells nothing."""
    kafka.delete_topic(scene.topic)
    kafka.create_topic(scene.topic, 2, {"retention.ms": "-1"})
    produce(kafka, scene.topic, [(0, i, 1, b"{}", []) for i in ids(12)])
    for p in 0, 1:
        scene.sink.position(p, 0)
    answer = scene.reconcile()
    found = {(d["partition"], d["offset"]) for d in answer["differences"] if d["difference"] == "past_end"}
    assert found == {(0, 12), (1, 0)} and "other_id" in kinds(answer)


def test_an_aborted_transaction_is_no_record(scene, kafka):
    abort_one(kafka, scene.topic)
    scene.sink.position(0, 22)
    assert not scene.reconcile()["differences"]


# ---------------------------------------------------------------- the outbox

def outbox(db, kafka, relay, name, topic):
    """Ten events through a relay, which is gone when this returns; their ids in order."""
    kafka.create_topic(topic, 1)
    servers.Cli().run("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", name, check=True)
    made = [db.one("SELECT outbox.publish('t', 'k', 'Made', '{}', topic => %s)::text", (topic,)) for _ in range(10)]
    r = relay(db.conninfo, kafka.bootstrap, name=name).start()
    wait_until(lambda: db.query("SELECT 1 FROM outbox.relay WHERE published_seq >= 10"), 60, "all to be published")
    r.stop()
    read_topic(kafka, topic, 10, 60)  # the transaction's end is there, too
    return made


def test_the_outbox(db, kafka, relay, outbox_name, topic, cli):
    made = outbox(db, kafka, relay, outbox_name, topic)
    front = ("-t", topic, "--brokers", kafka.bootstrap, "--outbox-conninfo", db.conninfo)
    answer = run(cli, *front)
    assert answer["records"] == 10 and answer["outbox"] == {
        "records": 10, "unpublished": 0, "parked": 0, "skipped": 0, "published_twice": 0, "no_row": 0}
    assert answer["not_looked_at"] == ["files", "s3", "http", "table", "api"] and not answer["differences"]
    assert not run(cli, *front, "--from", "-1h")["differences"]
    # In the outbox only; and a row that somebody deleted.
    late = db.one("SELECT outbox.publish('t', 'k', 'Made', '{}', topic => %s)::text", (topic,))
    db.psql(f"SET session_replication_role = replica; DELETE FROM outbox.event WHERE id = '{made[4]}'")
    answer = run(cli, *front)
    assert sorted((d["difference"], d["id"]) for d in answer["differences"]) == sorted(
        [("unpublished", late), ("no_row", made[4])])
    assert answer["outbox"]["unpublished"] == 1 and answer["outbox"]["no_row"] == 1
    text = cli("reconcile", *front)
    assert text.returncode == 3 and f"{late} {topic} was not published" in text.stdout


def test_published_twice(db, kafka, relay, outbox_name, topic, cli):
    """A record that somebody copied, with its headers."""
    from confluent_kafka import Consumer, Producer, TopicPartition
    outbox(db, kafka, relay, outbox_name, topic)
    c = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    c.assign([TopicPartition(topic, 0, 0)])
    m = wait_until(lambda: (x := c.poll(1)) and not x.error() and x, 30, "the first record")
    c.close()
    p = Producer({"bootstrap.servers": kafka.bootstrap})
    p.produce(topic, m.value(), m.key(), 0, headers=m.headers())
    assert p.flush(30) == 0
    answer = run(cli, "-t", topic, "--brokers", kafka.bootstrap, "--outbox-conninfo", db.conninfo)
    assert kinds(answer) == ["published_twice"] and answer["outbox"]["published_twice"] == 1


# ---------------------------------------------------------------- what really runs

@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_running_sink(inbox, cli, compression):
    """What a sink of files has left behind is complete; so is an hour of it; a line taken away is found."""
    s = Sink(inbox(partitions=0), 3, compression=compression, max_records=37)
    for n in range(300):
        s.i.put(f"k{n % 11}", json.dumps({"seq": n}), [("id", ids(1)[0]), ("type", "Moved")],
                timestamp=millis(n % 130) if n % 3 else 0)
    s.i.put("k", None, [("type", "Gone")])
    s.i.put("k", b"\xff", [("id", "no uuid at all"), ("type", "Odd")])
    m = s.member()
    m.start()
    s.check(60)
    m.stop()
    answer = run(cli, "-c", m.file)
    assert not answer["differences"], answer["differences"][:5]
    assert answer["records"] == answer["sources"][0]["records"] == 302
    hour = run(cli, "-c", m.file, "--hour", "2026-01-31T10:00Z")
    assert not hour["differences"] and 0 < hour["records"] == hour["sources"][0]["records"] < 302
    if compression == "none":
        path = os.path.join(s.directory, final_files(s.directory)[0])
        with open(path, encoding="utf-8") as f:
            lines = f.readlines()
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(lines[1:])
        assert kinds(run(cli, "-c", m.file)).count("missing") == 1


@pytest.mark.parametrize("mode", ["append", "scd2", "upsert"])
def test_a_running_table(inbox, cli, mode):
    """In the table of each mode; a row that somebody deletes is found where it can be."""
    i = inbox(partitions=0)
    i.topic = i.kafka.create_topic("in." + i.name, 2, config={"retention.ms": "-1"})
    for n in range(60):
        i.put(f"k{n % 11}", json.dumps({"seq": n}), [("id", ids(1)[0]), ("type", "Moved")], timestamp=millis(n))
    i.put("k1", None, [("id", ids(1)[0]), ("type", "Gone")], timestamp=millis(61))
    m = i.member({"kind": "sink", "table": {"table": "platform_events", "mode": mode, "max_age": "300ms", "max_records": 7,
                                            **({} if mode == "append" else {"key": ["key"]})}})
    m.start()
    i.flush()
    i.stands(60)
    m.stop()
    answer = run(cli, "-c", m.file, *WINDOW)
    assert not answer["differences"], answer["differences"][:5]
    assert answer["records"] == 61 and answer["sources"][0]["records"] == {"append": 61, "scd2": 60, "upsert": 10}[mode]
    i.db.query("UPDATE inbox.position SET next_offset = 0, epoch = epoch + 1")
    m = i.member({**m.config["handler"], "table": {**m.config["handler"]["table"], "max_records": 1000}}).start()
    i.stands(60)
    m.stop()
    assert not run(cli, "-c", m.file)["differences"], "read again from zero, by cuts of another size"
    i.db.query("DELETE FROM platform_events WHERE (partition, \"offset\") = (SELECT partition, \"offset\" FROM platform_events "
               "ORDER BY 1, 2 LIMIT 1)")
    assert kinds(run(cli, "-c", m.file)) == ([] if mode == "upsert" else ["missing"])


def test_a_running_sink_of_objects(inbox, cli):
    """What the store says of its objects; one that somebody deletes, and one that somebody overwrites, are found."""
    if not s3.jars():
        pytest.skip("no object store: run make setup with Maven Central within reach")
    store = s3.Store().start()
    try:
        s = S3Sink(inbox(partitions=0), store, prefix="raw/")
        s.i.send(200)
        m = s.consumer().start()
        s.check(manifest=True)  # they are written behind their files: a dead one writes none
        m.stop()
        answer = run(cli, "-c", m.file)
        (source,) = answer["sources"]
        assert not answer["differences"] and source["target"] == "s3" and source["files"] > 0
        assert answer["records"] == source["records"] == 200
        s.i.db.query("UPDATE sink.cut SET published_at = published_at - interval '1 minute'")
        manifest = next(k for k in store.objects(s.bucket) if k.startswith("raw/_manifest/in."))
        os.rename(os.path.join(store.data, s.bucket, manifest), os.path.join(store.dir, "manifest"))
        assert kinds(run(cli, "-c", m.file)) == ["manifest_missing"]
        os.rename(os.path.join(store.dir, "manifest"), os.path.join(store.data, s.bucket, manifest))
        path, size = s.i.db.query("SELECT path, bytes FROM sink.file ORDER BY path LIMIT 1")[0]
        store.put(s.bucket, "raw/" + path, bytes(size))
        assert kinds(run(cli, "-c", m.file)) == ["file_changed"]
        s.i.db.query("UPDATE sink.file SET bytes = bytes + 1 WHERE path = (SELECT min(path) FROM sink.file)")
        s.i.db.query("UPDATE sink.file SET path = path || '.gone' WHERE path = (SELECT max(path) FROM sink.file)")
        found = set(kinds(run(cli, "-c", m.file)))
        assert {"file_size", "file_missing", "missing"} <= found, found
    finally:
        store.stop()


def test_a_running_api(away, cli):
    """What the API has acknowledged, and what it says itself."""
    a = away()
    a.send(90)
    c = a.consumer()
    a.once()
    c.stop()
    url = a.url.rsplit("/", 1)[0]
    answer = run(cli, "-c", c.file, "--api", url)
    assert not answer["differences"] and [(s["target"], s["records"]) for s in answer["sources"]] == [("http", 90), ("api", 90)]
    a.platform.switch(refuse_id=(refused := a.send(1))[0])
    c.start()
    a.once(without=refused)
    c.stop()
    answer = run(cli, "-c", c.file, "--api", url)
    assert not answer["differences"] and [s["dead_letters"] for s in answer["sources"]] == [1, 1], answer["differences"]
    a.platform.db.query("DELETE FROM platform.fact WHERE event_id = %s", (a.ids[7],))
    answer = run(cli, "-c", c.file, "--api", url)
    assert [(d["difference"], d["source"], d["id"]) for d in answer["differences"]] == [("missing", "facts of the API", a.ids[7])]


class Facts(http.server.BaseHTTPRequestHandler):
    """GET /facts as postrider-platform answers it, 50 at a time."""

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        after = query.get("after", [""])[0]
        page = [f for f in self.server.facts if f["id"] > after][:50]
        body = json.dumps({"facts": page, "next": page[-1]["id"] if len(page) == 50 else None}).encode()
        self.server.asked.append(query)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_what_an_api_says(scene, cli):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Facts)
    server.asked = []
    server.facts = sorted(({"id": i, "topic": scene.topic, "partition": p, "offset": n} for p in (0, 1)
                           for n, (i, _, _) in enumerate(scene.records[p])), key=lambda f: f["id"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        answer = run(cli, "-c", scene.config, "--api", url, *WINDOW)
        assert not answer["differences"] and [s["target"] for s in answer["sources"]] == ["files", "api"]
        assert answer["sources"][1]["records"] == 40
        assert server.asked[0]["from"] == ["2026-01-31T09:00:00.000000Z"]
        gone = server.facts.pop(13)
        server.facts += [{"id": f"z{n}", "topic": scene.topic, "partition": 0, "offset": 3} for n in range(40)]
        answer = run(cli, "-c", scene.config, "--api", url)
        assert sorted((d["difference"], d["partition"], d["offset"]) for d in answer["differences"]) == sorted(
            [("missing", gone["partition"], gone["offset"]), ("twice", 0, 3)])
        assert len(server.asked) == 3
    finally:
        server.shutdown()
    done = cli("reconcile", "-c", scene.config, "--api", "http://127.0.0.1:1")
    assert done.returncode == 69 and "nothing listens" in done.stderr


# ---------------------------------------------------------------- refusals

def test_refuses(scene, cli, tmp_path, db, kafka):
    assert cli("reconcile").returncode == 2
    done = cli("reconcile", "-c", scene.config, "--hour", "-1h", "--from", "-2h")
    assert done.returncode == 2 and "without --from" in done.stderr
    done = cli("reconcile", "-c", scene.config, "--from", "-1h", "--to", "-2h")
    assert done.returncode == 2 and "empty" in done.stderr
    other = tmp_path / "sql.cfg"
    other.write_text(f'group = "g";\ndatabase: {{ conninfo = "{db.conninfo}"; }};\nkafka: {{ brokers = "{kafka.bootstrap}"; '
                     'topics = [ "a" ]; };\nhandler: { kind = "sql"; function = "a.b"; };\n')
    done = cli("reconcile", "-c", other)
    assert done.returncode == 2 and "no sink" in done.stderr
    done = cli("reconcile", "-c", scene.config, "-t", "no-such-topic")
    assert done.returncode == 4
