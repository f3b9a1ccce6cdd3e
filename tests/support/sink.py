"""tests/support/sink.py -- what a sink wrote, compared with the topic record by record. The topic is the truth, read with
read_committed by a client of its own; a file counts when its name says that it is complete. Refuses to ask the consumer
whether it did well.
"""
import base64
import collections
import datetime
import gzip
import hashlib
import json
import os
import re
import subprocess
import time
import uuid

import servers
from wait import WaitTimeout, wait_until

NAME = re.compile(r"^(?P<topic>[^/]+)/(?P<late>late/)?dt=(?P<dt>\d{4}-\d\d-\d\d)/hour=(?P<hour>\d\d)/"
                  r"(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)\.(?P<ext>ndjson(\.gz|\.zst)?|avro|parquet)$")
HOUR_MS = 3600 * 1000


def read_all(kafka, topic, timeout=60):
    """{(partition, offset): message} of everything that is committed in the topic."""
    from confluent_kafka import Consumer, TopicPartition
    ends = {p: n for p, n in kafka.end_offsets(topic).items() if n > 0}
    c = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "truth", "enable.auto.commit": False, "log_level": 0,
                  "enable.partition.eof": True, "isolation.level": "read_committed", "auto.offset.reset": "earliest",
                  "fetch.message.max.bytes": 16 << 20})
    found, at_end = {}, set()
    try:
        c.assign([TopicPartition(topic, p, 0) for p in ends])
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=timeout)
        while len(at_end) < len(ends):
            assert datetime.datetime.now() < deadline, f"{topic} could not be read to its end"
            for m in c.consume(1000, 0.5):
                if m.error():
                    at_end.add(m.partition())
                else:
                    found[m.partition(), m.offset()] = m
    finally:
        c.close()
    return found


def withheld(consumer, what):
    """How many payloads, or values in them ("value"), it left out because no rule could look into them."""
    return sum(v for k, v in consumer.metrics().items() if k.startswith("postrider_sink_withheld_total{") and f'what="{what}"' in k)


def final_files(directory):
    """Paths below the directory whose name says that they are complete data."""
    found = []
    for base, dirs, names in os.walk(directory):
        dirs[:] = [d for d in dirs if d != "_manifest"]
        found += [os.path.relpath(os.path.join(base, n), directory) for n in names if not n.startswith(".")]
    return sorted(found)


def temp_files(directory):
    return sorted(os.path.join(base, n) for base, _, names in os.walk(directory) for n in names if n.startswith("."))


def content(path):
    """The bytes, unpacked by the tools that users have."""
    if path.endswith(".gz"):
        with gzip.open(path) as f:
            return f.read()
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
    with open(path, "rb") as f:
        return f.read()


def text_or_base64(value):
    try:
        text = value.decode()
        return text if "\0" not in text else {"base64": base64.b64encode(value).decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def expected(m):
    """The line's members but for the payload, as contracts 2 has them, of a record of Kafka."""
    headers = dict(m.headers() or [])
    key = m.key()
    if key is not None:
        key = text_or_base64(key)
        key = key if isinstance(key, str) else "base64:" + key["base64"]
    time = datetime.datetime.fromtimestamp(m.timestamp()[1] // 1000, datetime.timezone.utc)
    return {"id": headers["id"].decode() if headers.get("id") is not None else None, "type": (headers.get("type") or b"").decode(errors="replace"),
            "topic": m.topic(), "partition": m.partition(), "offset": m.offset(), "key": key,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{m.timestamp()[1] % 1000:03}000Z",
            "headers": {k: None if v is None else text_or_base64(v) for k, v in headers.items()}}


def _no_constant(word):
    raise ValueError(word)


def is_json(value):
    """As jsonb would take it: no NUL, no half of a pair, no NaN."""
    try:
        json.dumps(json.loads(value.decode(), parse_constant=_no_constant), ensure_ascii=False).encode()
    except ValueError:
        return False
    return b"\\u0000" not in value


def wrong_with(line, m):
    """What is wrong with a line, of the record m; None: nothing."""
    doc = json.loads(line)
    payload = m.value()
    if payload is None:
        end = b'"payload":null}'
    elif is_json(payload):
        end = b'"payload":' + payload.replace(b"\n", b" ").replace(b"\r", b" ") + b"}"
    else:
        end = b'"payload_base64":"' + base64.b64encode(payload) + b'"}'
    if not line.endswith(b"," + end):
        return f"its payload is not the record's: {line[-80:]!r}, not {end[-80:]!r}"
    order = ["id", "type", "topic", "partition", "offset", "key", "time", "headers", end.split(b'"')[1].decode()]
    if list(doc) != order:
        return f"its members are {list(doc)}"
    want = expected(m)
    bad = [k for k in want if doc[k] != want[k]]
    return f"{bad[0]} is {doc[bad[0]]!r}, not {want[bad[0]]!r}" if bad else None


def wrong_with_file(directory, path, truth, seen, only=None):
    """What is wrong with an NDJSON file; seen counts the records."""
    name = NAME.match(path)
    if not name:
        return [f"{path}: no name for a file"]
    found = []
    data = content(os.path.join(directory, path))
    if not data.endswith(b"\n"):
        return [f"{path}: its last line has no end"]
    offsets = []
    for line in data[:-1].split(b"\n"):
        doc = json.loads(line)
        place = doc["partition"], doc["offset"]
        seen[doc["topic"], *place] += 1
        offsets.append(doc["offset"])
        m = truth.get(place)
        if m is None:
            found.append(f"{path}: {place} is not on the topic")
            continue
        said = wrong_with(line, m)
        if said:
            found.append(f"{path}: {place}: {said}")
        hour = datetime.datetime.fromtimestamp(m.timestamp()[1] // HOUR_MS * 3600, datetime.timezone.utc)
        if (name["dt"], name["hour"]) != (hour.strftime("%Y-%m-%d"), hour.strftime("%H")):
            found.append(f"{path}: {place} is of the hour {hour}")
        if doc["partition"] != int(name["partition"]) or doc["topic"] != name["topic"]:
            found.append(f"{path}: {place} is of another partition or topic")
    if offsets != sorted(set(offsets)):
        found.append(f"{path}: its offsets are not ascending")
    if (offsets[0], offsets[-1]) != (int(name["first"]), int(name["last"])):
        found.append(f"{path}: it has offsets {offsets[0]} to {offsets[-1]}")
    return found


def wrong(directory, kafka, topics, without=()):
    """Everything that is wrong with the files below the directory: texts. without: (partition, offset) not to be there."""
    found, seen = [], collections.Counter()
    files = collections.defaultdict(list)
    for path in final_files(directory):
        files[path.split("/")[0]].append(path)
    strange = set(files) - set(topics)
    if strange:
        found.append(f"files of other topics: {sorted(strange)}")
    for topic in topics:
        truth = read_all(kafka, topic)
        for path in files[topic]:
            found += wrong_with_file(directory, path, truth, seen)
        missing = [p for p in truth if not seen[topic, *p] and p not in without]
        twice = [p for p in truth if seen[topic, *p] > 1]
        extra = [p for p in without if seen[topic, *p]]
        if missing:
            found.append(f"{len(missing)} of {len(truth)} records of {topic} are missing, the first {min(missing)}")
        if twice:
            found.append(f"{len(twice)} records of {topic} are there twice, the first {min(twice)}")
        if extra:
            found.append(f"{len(extra)} records of {topic} should not be there, the first {min(extra)}")
    return found


def manifests(directory):
    """{(topic, dt, hour): the manifest}"""
    found = {}
    for base, _, names in os.walk(os.path.join(directory, "_manifest")):
        for n in names:
            if n.startswith("hour="):
                with open(os.path.join(base, n), encoding="utf-8") as f:
                    doc = json.load(f)
                found[doc["topic"], os.path.basename(base)[3:], n[5:7]] = doc
    return found


def wrong_with_manifests(directory):
    """Each file is in its hour's manifest, with the bytes and the sum that it has, and in no other."""
    found, named = [], collections.Counter()
    for (topic, dt, hour), doc in manifests(directory).items():
        for f in doc["files"]:
            named[f["path"]] += 1
            path = os.path.join(directory, f["path"])
            if f"/dt={dt}/hour={hour}/" not in f["path"] or not f["path"].startswith(topic + "/"):
                found.append(f"{f['path']} stands in the manifest of {topic} {dt} {hour}")
            if not os.path.exists(path):
                found.append(f"{f['path']} is in a manifest and not there")
                continue
            with open(path, "rb") as data:
                data = data.read()
            if len(data) != f["bytes"] or hashlib.sha256(data).hexdigest() != f["sha256"]:
                found.append(f"{f['path']} has other bytes than its manifest says")
            if content(path).count(b"\n") != f["records"]:
                found.append(f"{f['path']} has another number of records than its manifest says")
        if doc["records"] != sum(f["records"] for f in doc["files"]) or doc["bytes"] != sum(f["bytes"] for f in doc["files"]):
            found.append(f"the manifest of {topic} {dt} {hour} does not add up")
    found += [f"{p} is in no manifest" for p in final_files(directory) if named[p] != 1]
    return found


class Sink:
    """A sink into files, over an Inbox (tests/support/inbox.py) without a topic: its directory and its members. Records
    of its topic stay, however old their time is."""

    def __init__(self, inbox, partitions=3, **files):
        self.i = inbox
        inbox.topic = inbox.kafka.create_topic("in." + inbox.name, partitions, config={"retention.ms": "-1", "max.message.bytes": str(20 << 20)})
        self.directory = servers.new_dir("sink")
        os.chmod(self.directory, 0o777)
        self.files = {"directory": self.directory, "max_age": "300ms", **files}

    def handler(self, **files):
        return {"kind": "sink", "files": {**self.files, **files}}

    def member(self, config=None, files=(), **more):
        return self.i.member(self.handler(**dict(files)), config, **more)

    def consumer(self, config=None, files=(), **more):
        return self.i.consumer(self.handler(**dict(files)), config, **more)

    def standing(self):
        cuts = self.i.db.query("SELECT partition, first_offset, next_offset, state, records FROM sink.cut ORDER BY 1, 2") \
            if self.i.one("SELECT to_regclass('sink.cut') IS NOT NULL") else []
        return f"{self.i.standing()}; cuts: {cuts[-12:]}; files: {final_files(self.directory)[-12:]}"

    def published(self, timeout=60):
        """Until the positions say that all is published."""
        self.i.flush()
        try:
            self.i.stands(timeout)
        except (AssertionError, WaitTimeout) as e:
            raise AssertionError(f"{e}\n{self.standing()}") from None

    def check(self, timeout=60, topics=None, without=(), manifest=True):
        """All is published, each record once, as it is; nothing half done is left; manifests tell the truth."""
        self.published(timeout)
        found = wrong(self.directory, self.i.kafka, topics or [self.i.topic], without)
        assert not found, "; ".join(found[:5]) + "\n" + self.standing() + "\n" + self.i.logs()
        found = [f for f in self.wrong_cuts() if "refused" not in f]
        assert not found, "; ".join(found[:5]) + "\n" + self.standing()
        if manifest:

            def well():
                found[:] = wrong_with_manifests(self.directory)
                return not found
            try:
                wait_until(well, 60, "the manifests", ignore=(OSError,))
            except WaitTimeout:
                raise AssertionError("; ".join(found[:5]) + "\n" + self.standing()) from None

    def wrong_cuts(self):
        """Cuts below the position are published, and no two of them have an offset in common."""
        found, rows = [], self.cuts()
        found += [f"the cut {r} is not published, and everything is" for r in rows if r[3] != "published"]
        found += [f"the cuts {a} and {b} overlap" for a, b in zip(rows, rows[1:]) if a[0] == b[0] and b[1] < a[2]]
        return found

    def cuts(self):
        return self.i.db.query("SELECT partition, first_offset, next_offset, state, records FROM sink.cut WHERE group_name = %s"
                               " ORDER BY 1, 2", (self.i.group,))

    def put_late_and_good(self, n):
        """n records of now, but each third one of yesterday: the offsets of those, in a topic of one partition."""
        now, late = int(time.time() * 1000), range(3, n, 3)
        for offset in range(n):
            self.i.put("k", json.dumps({"n": offset}), [("id", str(uuid.uuid4())), ("type", "Moved")],
                       timestamp=now - 24 * HOUR_MS if offset in late else now)
        self.i.flush()
        return list(late)

    def buried(self):
        """Offsets of late ones that are dead letters; there are no others."""
        assert set(self.i.dead("class, code")) <= {("decode", "late")}
        return sorted(r[0] for r in self.i.dead("message_offset"))
