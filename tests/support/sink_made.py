"""tests/support/sink_made.py -- what a sink of files (or an API, or a table) leaves behind, made by hand from a topic: files,
the ledger in schema sink, positions, manifests. So that what compares them can be shown every way in which they may
differ, also those that a sink never makes.

Refuses to be a sink: nothing here is atomic.
"""
import datetime
import gzip
import hashlib
import json
import os
import subprocess
import uuid

import servers

SCHEMA = os.path.join(servers.ROOT, "consumers/sink/schema.sql")
HOUR = datetime.datetime(2026, 1, 31, 9, tzinfo=datetime.timezone.utc)


def millis(minutes):
    """Record time, so many minutes after HOUR."""
    return int(HOUR.timestamp() * 1000) + int(minutes * 60000)


def produce(kafka, topic, records):
    """records: (partition, id, minutes, payload bytes or None, more headers). Partitions get them in this order."""
    from confluent_kafka import Producer
    # A retry may not change the order; one at a time, as in inbox.py.
    p = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True, "max.in.flight": 1})
    for partition, ident, minutes, payload, headers in records:
        p.produce(topic, payload, "k" + ident[:4], partition, headers=[("id", ident), ("type", "Made"), *headers],
                  timestamp=millis(minutes))
    assert p.flush(30) == 0


def produce_many(kafka, topic, n, minutes=0):
    """So many small records of one time into partition 0."""
    from confluent_kafka import Producer
    p = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True, "max.in.flight": 1, "linger.ms": 50,
                  "queue.buffering.max.messages": n + 1})
    for _ in range(n):
        p.produce(topic, b"1", None, 0, timestamp=millis(minutes))
    assert p.flush(60) == 0


def ids(n):
    return [str(uuid.uuid4()) for _ in range(n)]


class MadeSink:
    """The files of group over topic, whose records are known: lists of (id, minutes, payload) by partition."""

    def __init__(self, db, directory, topic, brokers, group="made", compression="none"):
        self.db, self.directory, self.topic, self.group = db, str(directory), topic, group
        self.brokers, self.compression = brokers, compression
        self.paths = []
        db.psql(open(SCHEMA, encoding="utf-8").read())

    def config(self, path, handler=None, **more):
        handler = handler or (f'files: {{ directory = "{self.directory}"; compression = "{self.compression}"; '
                              f'max_records = 5; }};')
        with open(path, "w", encoding="utf-8") as f:
            f.write(f'group = "{self.group}";\ndatabase: {{ conninfo = "{self.db.conninfo}"; }};\n'
                    f'kafka: {{ brokers = "{self.brokers}"; topics = [ "{self.topic}" ]; }};\n'
                    f'handler: {{ kind = "sink"; {handler} }};\n' + more.get("tail", ""))
        return str(path)

    def line(self, partition, offset, record):
        ident, minutes, payload = record
        at = (HOUR + datetime.timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return json.dumps({"id": ident, "type": "Made", "topic": self.topic, "partition": partition, "offset": offset,
                           "key": "k" + ident[:4], "time": at, "headers": {}, "payload": payload}) + "\n"

    def cut(self, partition, first, records, target="files", state="published"):
        """The ledger's row."""
        self.db.query("INSERT INTO sink.cut VALUES (%s, %s, %s, %s, %s, %s, %s, 1, %s, 0)", (
            self.group, self.topic, partition, first, first + len(records), target, state, len(records)))

    def file(self, partition, first, records, cut=True):
        """One cut of one hour: the file, its row, its cut."""
        hour = HOUR + datetime.timedelta(hours=int(records[0][1] // 60))
        ext = {"none": "", "gzip": ".gz", "zstd": ".zst"}[self.compression]
        path = (f"{self.topic}/dt={hour:%Y-%m-%d}/hour={hour:%H}/{partition}-{first}-{first + len(records) - 1}"
                f".ndjson{ext}")
        data = "".join(self.line(partition, first + i, r) for i, r in enumerate(records)).encode()
        full = os.path.join(self.directory, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if self.compression == "zstd":
            data = b"".join(subprocess.run(["zstd", "-c"], input=part, capture_output=True, check=True).stdout
                            for part in (data[:len(data) // 2], data[len(data) // 2:]))
        elif self.compression == "gzip":
            data = gzip.compress(data[:10], mtime=0) + gzip.compress(data[10:], mtime=0)
        with open(full, "wb") as f:
            f.write(data)
        if cut:
            self.cut(partition, first, records)
        self.db.query("INSERT INTO sink.file VALUES (%s, %s, %s, %s, %s, NULL, %s, %s, %s, %s, %s, %s, NULL, NULL, false)", (
            self.group, self.topic, partition, first, path, hour, len(records), len(data),
            hashlib.sha256(data).digest(), first, first + len(records) - 1))
        self.paths.append(path)
        return full

    def blob(self, partition, first, after, records):
        """A cut of one hour and its file, of a kind that is not read."""
        path, data = f"{self.topic}/dt={HOUR:%Y-%m-%d}/hour={HOUR:%H}/{partition}-{first}-{after - 1}.avro", b"x"
        full = os.path.join(self.directory, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as f:
            f.write(data)
        self.db.query("INSERT INTO sink.cut VALUES (%s, %s, %s, %s, %s, 'files', 'published', 1, %s, 0)",
                      (self.group, self.topic, partition, first, after, records))
        self.db.query("INSERT INTO sink.file VALUES (%s, %s, %s, %s, %s, NULL, %s, %s, 1, %s, %s, %s, NULL, NULL, false)", (
            self.group, self.topic, partition, first, path, HOUR, records, hashlib.sha256(data).digest(), first, after - 1))

    def position(self, partition, offset):
        self.db.query("SELECT count(*) FROM inbox.claim(%s, ARRAY[%s], ARRAY[%s], 1)", (self.group, self.topic, partition))
        self.db.query('UPDATE inbox.position SET next_offset = %s WHERE "group" = %s AND topic = %s AND partition = %s',
                      (offset, self.group, self.topic, partition))

    def published(self, partition, minutes):
        """All that the partition had by then is published; of -1: manifests say so of the topic."""
        self.db.query("INSERT INTO sink.watermark VALUES (%s, %s, %s, %s) ON CONFLICT ON CONSTRAINT watermark_pkey DO UPDATE "
                      "SET watermark = EXCLUDED.watermark",
                      (self.group, self.topic, partition, HOUR + datetime.timedelta(minutes=minutes)))

    def manifests(self, complete=False):
        rows = self.db.query("SELECT hour, path, partition, first_offset, last_offset, records, bytes, encode(sha256, 'hex') "
                             "FROM sink.file WHERE group_name = %s ORDER BY path", (self.group,))
        for hour in {r[0] for r in rows}:
            files = [dict(zip(("path", "partition", "first_offset", "last_offset", "records", "bytes", "sha256"), r[1:]))
                     for r in rows if r[0] == hour]
            utc = hour.astimezone(datetime.timezone.utc)
            path = os.path.join(self.directory, f"_manifest/{self.topic}/dt={utc:%Y-%m-%d}/hour={utc:%H}.json")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as f:
                json.dump({"topic": self.topic, "complete": complete, "records": sum(r["records"] for r in files), "files": files}, f)
