#!/usr/bin/python3
"""tests/support/demo.py -- `make demo`: the whole pipeline before your eyes, with failures.

Starts a private Postgres, Kafka and relay with all their data below build/demo; a small
shop commits reservations and payments; the screen shows what was committed and what
stands on the topics, read by a consumer of its own. Then the relay is killed and the broker
stopped while you look, and at the end everything is counted by the independent checker.

ONCE=1 ends by itself: exit status 0 when the count is perfect, 1 when it is not, 69 when a
server did not start. Otherwise it stays up for playing until Ctrl-C, which counts once more.
DEMO_BROKER=mock takes librdkafka's mock broker although the jars are there; DEMO_PACE=0.3
makes the scenes shorter and DEMO_DIR puts the data elsewhere, both for tests.
Refuses to touch anything but its directory, and to run twice in one.
"""
import collections
import contextlib
import ctypes
import fcntl
import glob
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import termios
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import servers  # noqa: E402

HERE = os.path.abspath(os.environ.get("DEMO_DIR") or os.path.join(servers.ROOT, "build", "demo"))
PACE = float(os.environ.get("DEMO_PACE") or 1)
ENV_FILE = os.path.join(HERE, "env")
VARIANT = os.environ.get("POSTRIDER_VARIANT", "plain")
TOPICS = {"outbox.event.reservation": 6, "outbox.event.payment": 6}
PLACES = ("hall A", "hall B", "rooftop", "garden", "studio")
CLIENTS, RATE, CALM_RATE = 3, 240, 40  # transactions per second: during the show, and for playing

SHOP = """
CREATE SCHEMA truth;
CREATE TABLE truth.journal (event_id uuid NOT NULL, topic text NOT NULL, agg text NOT NULL, aggseq bigint NOT NULL,
	txn_tag bigint NOT NULL, type text NOT NULL, payload_md5 uuid, headers jsonb);
COMMENT ON TABLE truth.journal IS 'what the shop committed, for the count at the end; the relay never looks here';

CREATE SEQUENCE reservation_number;
CREATE TABLE reservation (reservation text PRIMARY KEY, guest text NOT NULL, place text NOT NULL, price int NOT NULL,
	state text NOT NULL DEFAULT 'HELD', version int NOT NULL DEFAULT 1, changed_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE payment (payment text PRIMARY KEY, reservation text NOT NULL REFERENCES reservation, amount int NOT NULL,
	paid_at timestamptz NOT NULL DEFAULT now());

-- One event into the outbox, and the same into the journal.
CREATE FUNCTION tell(kind text, agg text, version int, type text, payload jsonb) RETURNS void LANGUAGE sql AS $$
	WITH e AS (SELECT outbox.publish(kind, agg, type, payload, '{"tenant": "seoul"}') AS id)
	INSERT INTO truth.journal SELECT id, 'outbox.event.' || kind, agg, version, 0, type, md5(payload::text)::uuid,
		'{"tenant": "seoul"}' FROM e;
$$;

CREATE FUNCTION reserve(guest text DEFAULT 'you', place text DEFAULT 'rooftop') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	id text := 'R-' || lpad(nextval('reservation_number')::text, 6, '0');
	price int := 10000 + 500 * (length(place) % 7);
BEGIN
	INSERT INTO reservation VALUES (id, guest, place, price);
	PERFORM tell('reservation', id, 1, 'ReservationCreated', jsonb_build_object('reservation', id, 'guest', guest,
		'place', place, 'price', price));
	RETURN id;
END $$;

-- The row lock comes first, then the events: so the order of each key is the order of the locks.
CREATE FUNCTION pay(id text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r reservation;
	p text := replace(id, 'R-', 'P-');
BEGIN
	UPDATE reservation SET state = 'CONFIRMED', version = version + 1, changed_at = now()
	WHERE reservation = id AND state = 'HELD' RETURNING * INTO STRICT r;
	INSERT INTO payment VALUES (p, id, r.price);
	PERFORM tell('payment', p, 1, 'PaymentCompleted', jsonb_build_object('payment', p, 'reservation', id,
		'amount', r.price));
	PERFORM tell('reservation', id, r.version, 'ReservationConfirmed', jsonb_build_object('reservation', id,
		'payment', p));
	RETURN p;
END $$;

CREATE FUNCTION cancel(id text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r reservation;
BEGIN
	UPDATE reservation SET state = 'CANCELLED', version = version + 1, changed_at = now()
	WHERE reservation = id AND state = 'HELD' RETURNING * INTO STRICT r;
	PERFORM tell('reservation', id, r.version, 'ReservationCancelled', jsonb_build_object('reservation', id));
END $$;
"""

# The journal, and whatever somebody published by hand meanwhile: behind the events of its key so far.
TRUTH = """
SELECT event_id, topic, agg, aggseq * 1000000, txn_tag, type, payload_md5, headers FROM truth.journal
UNION ALL
SELECT h.id, h.topic, h.aggregateid, h.rank + 1000000 * coalesce((SELECT max(j.aggseq) FROM truth.journal AS j
		JOIN outbox.event AS x ON x.id = j.event_id
		WHERE j.topic = h.topic AND j.agg = h.aggregateid AND x.seq < h.seq), 0),
	0, h.type, coalesce(md5(h.payload::text), md5(h.payload_bytes))::uuid, CASE WHEN h.headers <> '{}' THEN
	(SELECT jsonb_object_agg(k.key, CASE jsonb_typeof(k.value) WHEN 'string' THEN k.value #>> '{}'
		ELSE k.value::text END) FROM jsonb_each(h.headers) AS k) END
FROM (SELECT e.*, t.topic AS to_topic, row_number() OVER (PARTITION BY e.aggregateid ORDER BY e.seq) AS rank
	FROM outbox.event AS e CROSS JOIN LATERAL (SELECT coalesce(e.topic, 'outbox.event.' || e.aggregatetype)) AS t (topic)
	WHERE NOT EXISTS (SELECT FROM truth.journal AS j WHERE j.event_id = e.id)) AS h
WHERE h.to_topic IN ('outbox.event.reservation', 'outbox.event.payment')
""".replace("h.topic", "h.to_topic")


class Stopped(BaseException):
    """Somebody wants us to end: Ctrl-C, a signal, a closed pipe."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Failed(Exception):
    """The demonstration itself could not go on; the text says where."""


# ---------------------------------------------------------------- the mock broker

def mock_broker(topics):
    """Runs librdkafka's mock cluster in this process for ever; prints its address."""
    k = ctypes.CDLL("librdkafka.so.1")
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(k, name).restype = ctypes.c_void_p
    k.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    why = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(k.rd_kafka_conf_new())
    k.rd_kafka_conf_set(conf, b"log_level", b"0", why, 512)
    rk = ctypes.c_void_p(k.rd_kafka_new(0, conf, why, 512))
    cluster = ctypes.c_void_p(k.rd_kafka_mock_cluster_new(rk, 1))
    for spec in topics:
        name, n = spec.rsplit(":", 1)
        if k.rd_kafka_mock_topic_create(cluster, name.encode(), int(n), 1):
            sys.exit(f"mock broker: cannot create {name}")
    print(k.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    while True:
        signal.pause()


class MockKafka(servers.Server):
    """The mock broker in a process of its own. It keeps its records in memory: it is frozen, not stopped."""
    name = "mock broker"

    def __init__(self):
        self.log = os.path.join(servers.new_dir("mock"), "mock.log")

    def start(self):
        topics = [f"{t}:{n}" for t, n in dict(TOPICS, **{"postrider.positions.orders": 1}).items()]
        self.proc = servers.spawn([sys.executable, "-B", os.path.abspath(__file__), "--mock-broker", *topics],
                                  log=self.log)
        self._remember()

        def address():
            if not self.running():
                raise self._died()
            with open(self.log, encoding="utf-8") as f:
                return f.readline().strip()
        self.bootstrap = servers.wait_until(address, 20, "the mock broker's address")
        return self


# ---------------------------------------------------------------- the shop

class Shop:
    """Clients that commit business rows and events in one transaction each; some roll back."""

    def __init__(self, conninfo):
        self.conninfo, self.rate = conninfo, RATE
        self.lock = threading.Lock()
        self.transactions = self.rolled_back = 0
        self.pending = {}   # (key, type) committed and not yet read back -> when
        self.early = set()  # read back before we heard of our own commit
        self.error = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(CLIENTS)]

    def start(self):
        for t in self._threads:
            t.start()

    def stop(self):
        self._stop.set()
        for t in self._threads:
            t.join(10)

    def seen(self, key, kind):
        with self.lock:
            if self.pending.pop((key, kind), None) is None:
                self.early.add((key, kind))
                if len(self.early) > 10000:  # published by hand
                    self.early.pop()

    def lag(self):
        """Age of the oldest event that was committed and not yet read back from the topic."""
        with self.lock:
            oldest = next(iter(self.pending.values()), None)
        return 0.0 if oldest is None else max(0.0, time.monotonic() - oldest)

    def _committed(self, events):
        now = time.monotonic()
        with self.lock:
            self.transactions += 1
            for e in events:
                if e in self.early:
                    self.early.discard(e)
                else:
                    self.pending[e] = now

    def _client(self, index):
        import psycopg2
        try:
            conn = psycopg2.connect(self.conninfo, connect_timeout=5, application_name="shop")
            rnd, held, due = random.Random(), [], time.monotonic() + index / RATE
            with contextlib.closing(conn), conn.cursor() as cur:
                while not self._stop.is_set():
                    self._one(conn, cur, rnd, held)
                    due = max(due + CLIENTS / self.rate, time.monotonic() - 0.05)
                    self._stop.wait(max(0, due - time.monotonic()))
        except psycopg2.Error as e:
            self.error = str(e).strip()

    def _one(self, conn, cur, rnd, held):
        what = "reserve" if len(held) < 8 or rnd.random() < 0.5 else "pay" if rnd.random() < 0.8 else "cancel"
        back = rnd.random() < 0.1
        if what == "reserve":
            cur.execute("SELECT reserve(%s, %s)", (f"guest {rnd.randrange(1000)}", rnd.choice(PLACES)))
            which = cur.fetchone()[0]
            events = [(which, "ReservationCreated")]
        else:
            which = held.pop(rnd.randrange(len(held)))
            cur.execute(f"SELECT {what}(%s)", (which,))
            events = [(which, "ReservationCancelled")] if what == "cancel" else [
                (which.replace("R-", "P-"), "PaymentCompleted"), (which, "ReservationConfirmed")]
        if back:
            conn.rollback()
            with self.lock:
                self.rolled_back += 1
        else:
            conn.commit()
            self._committed(events)
        if (what == "reserve") != back:
            held.append(which)


# ---------------------------------------------------------------- the watchers

class Watcher(threading.Thread):
    """A thread that looks again and again until it is told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopping = threading.Event()

    def stop(self):
        self.stopping.set()
        self.join(5)


class Records(Watcher):
    """What a read_committed consumer finds on the topics. Knows nothing of the relay."""

    def __init__(self, brokers, shop):
        super().__init__()
        self.brokers, self.shop = brokers, shop
        self.count = 0
        self.last = collections.deque(maxlen=60)
        self.ready = threading.Event()

    def run(self):
        from confluent_kafka import Consumer, TopicPartition
        c = Consumer({"bootstrap.servers": self.brokers, "group.id": "demo-viewer", "isolation.level": "read_committed",
                      "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10,
                      "reconnect.backoff.max.ms": 200, "log_level": 0})
        c.assign([TopicPartition(t, p, 0) for t, n in TOPICS.items() for p in range(n)])
        while not self.stopping.is_set():
            if not self.ready.is_set() and self._ends_known(c):
                self.ready.set()
            for m in c.consume(1000, 0.05):
                if m.error() is None:
                    self._take(m)
        c.close()

    @staticmethod
    def _ends_known(c):
        """The consumer talks to the broker that leads the partitions: what comes now is not late for its sake."""
        from confluent_kafka import KafkaException
        try:
            return all(c.get_watermark_offsets(tp, 1) for tp in c.assignment())
        except KafkaException:
            return False

    def _take(self, m):
        headers = {k: v.decode("utf-8", "replace") for k, v in m.headers() or ()}
        key = (m.key() or b"").decode("utf-8", "replace")
        self.count += 1
        self.shop.seen(key, headers.get("type", ""))
        self.last.append((time.time(), m.topic(), key, headers))


class Rows(Watcher):
    """Counts the committed events in the database."""

    def __init__(self, db):
        super().__init__()
        self.db, self.count = db, 0

    def run(self):
        import psycopg2
        conn = None
        while not self.stopping.is_set():
            start = time.monotonic()
            try:
                conn = conn or self.db.connect()
                with conn.cursor() as cur:
                    cur.execute("SELECT count(*) FROM outbox.event")
                    self.count = cur.fetchone()[0]
            except psycopg2.Error:
                conn = None
            # A count costs more as the table grows: never more than a twentieth of the time.
            self.stopping.wait(max(0.2, 20 * (time.monotonic() - start)))


class Health(Watcher):
    """State and sentence as the relay's own /status.json tells them."""

    def __init__(self, relay):
        super().__init__()
        self.relay, self.state, self.sentence = relay, "starting", ""

    def run(self):
        while not self.stopping.is_set():
            try:
                status = self.relay.status()
                self.state, self.sentence = status["state"], status["sentence"]
            except (OSError, ValueError, KeyError):
                if self.relay.running():
                    self.state, self.sentence = "starting", "the relay is starting"
                else:
                    self.state, self.sentence = "dead", "the relay is not running"
            self.stopping.wait(0.2)


# ---------------------------------------------------------------- the screen

UTF8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
BARS = " ▁▂▃▄▅▆▇█" if UTF8 else " .:-=+*#@"
DONE, NOW, DOT, ARROW, ELLIPSIS = ("✓", "▸", "●", "─▶", "…") if UTF8 else ("+", ">", "*", "->", "...")
STATE_COLOR = {"ok": "32", "warn": "33", "paused": "33", "starting": "33", "standby": "33", "stopping": "33",
               "error": "31", "dead": "31"}


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def short(path):
    """A path of ours from the checkout, any other one in full."""
    return os.path.relpath(path, servers.ROOT) if path.startswith(servers.ROOT + os.sep) else path


def wrap(text, width):
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return lines + [line]


class Screen:
    """The live view: redrawn in place on a terminal, plain lines elsewhere."""

    def __init__(self, demo):
        self.demo = demo
        self.live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.color = self.live and not os.environ.get("NO_COLOR")
        self.opened = False
        self.next_line = 0.0
        self.tty = None

    def paint(self, code, text):
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def say(self, text=""):
        """A line outside the live view."""
        print(text, flush=True)

    def open(self):
        if not self.live:
            return
        with contextlib.suppress(termios.error, OSError, ValueError):
            fd = sys.stdin.fileno()
            if os.tcgetpgrp(fd) == os.getpgrp():  # typed keys would be written over the picture
                self.tty = (fd, termios.tcgetattr(fd))
                quiet = termios.tcgetattr(fd)
                quiet[3] &= ~termios.ECHO
                termios.tcsetattr(fd, termios.TCSANOW, quiet)
        self.opened = True
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")

    def close(self):
        if self.tty:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self.tty[0], termios.TCSANOW, self.tty[1])
            self.tty = None
        if self.opened:
            self.opened = False
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.write("\x1b[?25h\x1b[?1049l")
                sys.stdout.flush()

    def step(self, at, text):
        if not self.live:
            self.say(f"{clock(at):>5}  {NOW} {text}")

    def frame(self):
        if self.live:
            self._redraw()
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + (2 if self.demo.show else 30)
            d = self.demo
            self.say(f"{clock(d.elapsed()):>5}    rows committed {d.rows.count:>7,}   records on the topics "
                     f"{d.records.count:>7,}   lag {d.lag():5.2f} s   relay {d.health.state}: {d.health.sentence}")

    def _redraw(self):
        size = shutil.get_terminal_size()
        width, height = max(40, size.columns), max(10, size.lines)
        lines = self._lines(width, height)[:height]
        out = ["\x1b[?2026h\x1b[H"]
        out += ["\r\n".join(self._cut(line, width) + "\x1b[K" for line in lines), "\x1b[J\x1b[?2026l"]
        sys.stdout.write("".join(out))
        sys.stdout.flush()

    def _cut(self, parts, width):
        """A line is a list of (color code or None, text); cut to the width, then painted."""
        out, left = [], width - 1
        for code, text in parts:
            if len(text) > left:
                text = text[:max(0, left - len(ELLIPSIS))] + ELLIPSIS if left > len(ELLIPSIS) else ""
            left -= len(text)
            out.append(self.paint(code, text) if code and text else text)
        return "".join(out)

    def _lines(self, width, height):
        d = self.demo
        tall = height >= 29
        top = self._title(width) + [[]] + self._numbers(width) + [[]] + self._graphs(width) + [[]] + self._relay(width)
        bottom = self._foot(width)
        room = height - len(top) - len(bottom) - 4  # two headings, two blank lines
        steps = self._steps(width, max(3, room // 2) if tall else max(2, room - 6))
        events = self._events(width, max(2, room - len(steps)))
        return (top + [[]] + [[("2", "  What happens here")]] + steps + [[]] + [[("2", self._heading(width))]] + events
                + bottom) if d else []

    def _title(self, width):
        d = self.demo
        left = [("1", "  Postrider"), (None, f"   Postgres {ARROW} relay {ARROW} {d.broker_name}")]
        right = f"{d.delivery.replace('_', ' ')}   {clock(d.elapsed())} "
        gap = width - 1 - sum(len(t) for _, t in left) - len(right)
        return [left + [(None, " " * max(1, gap)), ("2", right)]]

    def _numbers(self, width):
        d = self.demo
        lag = d.lag()
        lag_color = "1" if lag < 1 else "1;33" if lag < 30 else "1;31"
        cells = [("rows committed", f"{d.rows.count:,}", "1"), ("records on the topics", f"{d.records.count:,}", "1"),
                 ("on their way", f"{max(0, d.rows.count - d.records.count):,}", lag_color),
                 ("lag", f"{lag:.2f} s" if lag < 100 else f"{lag:.0f} s", lag_color)]
        gap = 3 if width < 100 else 8
        names, values = [(None, "  ")], [(None, "  ")]
        for name, value, code in cells:
            w = max(len(name), 7) + gap
            names.append(("2", f"{name:<{w}}"))
            values.append((code, f"{value:<{w}}"))
        return [names, values]

    def _graphs(self, width):
        d = self.demo
        room = min(width - 26, 120)
        lines = []
        # Both rates on one scale, with the usual rate in the middle; a burst fills its column.
        rates = sorted(d.committed_rate) or [1]
        usual = max(1, rates[len(rates) // 2])
        for name, series, unit in (("committed", d.committed_rate, "/s"), ("on topics", d.record_rate, "/s"),
                                   ("lag", d.lag_series, " s")):
            values = list(series)[-room:]
            # The lag's bars grow with its root: a second must be seen beside ten.
            top = max(values + [4]) if name == "lag" else 2 * usual
            heights = ((v / top) ** (0.5 if name == "lag" else 1) for v in values)
            bar = "".join(BARS[min(len(BARS) - 1, round(h * (len(BARS) - 1)))] for h in heights)
            now = (f"{values[-1]:,.0f}" if name != "lag" else f"{values[-1]:.1f}") if values else "0"
            color = "36" if name != "lag" else "33"
            lines.append([("2", f"  {name:<10} "), (color, f"{bar:>{room}}"), (None, f" {now}{unit}")])
        return lines

    def _relay(self, width):
        d = self.demo
        color = STATE_COLOR.get(d.health.state, "33")
        text = d.health.sentence
        if d.health.state != "dead":
            text = f"{d.health.state}: {text}"
        lines = wrap(text, width - 14)[:2] + [""]
        return [[(None, "  relay    "), (color, f"{DOT} {lines[0]}")], [(color, f"             {lines[1]}")]]

    def _steps(self, width, room):
        """The latest steps, the one of now in bold; older ones shrink to what fits."""
        d = self.demo
        out = []
        steps = list(d.steps)
        for i, (at, text) in enumerate(reversed(steps)):
            now = i == 0 and not d.finished
            lines = wrap(text, width - 12)
            block = [[("32" if not now else "1;33", f"  {NOW if now else DONE} "),
                      ("2", f"{clock(at):>5} "), ("1" if now else "2", f" {lines[0]}")]]
            block += [[(None, " " * 10), ("1" if now else "2", f" {more}")] for more in lines[1:]]
            if out and len(out) + len(block) > room:
                break
            out = block + out
        return out[-room:]

    @staticmethod
    def _columns(width):
        topic = 26 if width >= 96 else 12
        return topic, 9, 21

    def _heading(self, width):
        topic, key, kind = self._columns(width)
        names = "id, outbox-seq" + (", tenant" if width >= 96 else "")
        return f"  {'Last events':<14}{'topic':<{topic}}{'key':<{key}} {'headers: type':<{kind}} {names}"

    def _events(self, width, room):
        topic, key, kind = self._columns(width)
        out = []
        for at, name, k, headers in list(self.demo.records.last)[-room:]:
            stamp = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
            name = name if topic > 20 else name.replace("outbox.event.", "")
            event_id = headers.get("id", "?")
            rest = f" {event_id if width >= 120 else event_id[:8] + ELLIPSIS} {headers.get('outbox-seq', '?'):>6}"
            rest += f" {headers.get('tenant', '')}" if width >= 96 else ""
            out.append([("2", f"  {stamp:<14}"), (None, f"{name:<{topic}}"), ("36", f"{k:<{key}}"),
                        (None, f" {headers.get('type', '?'):<{kind}}"), ("2", rest)])
        return out + [[]] * (room - len(out))

    def _foot(self, width):
        d = self.demo
        return [[]] + [[(code, f"  {text}")] for code, text in d.foot] if d.foot else []


# ---------------------------------------------------------------- the demonstration

class Demo:
    def __init__(self, once):
        self.once = once
        self.delivery = "exactly_once"
        self.broker_name = "Kafka"
        self.started = time.monotonic()
        self.steps = []
        self.foot = []
        self.show = True       # the part with the failures; afterwards it is for playing
        self.finished = False
        self.leave = False     # Ctrl-C while playing
        self.result = None
        self.committed_rate, self.record_rate, self.lag_series = (collections.deque(maxlen=400) for _ in range(3))
        self._sampled = (time.monotonic(), 0, 0)
        self.pg = self.kafka = self.relay = self.shop = self.records = self.rows = self.health = None
        self.screen = Screen(self)

    def elapsed(self):
        return time.monotonic() - self.started

    def lag(self):
        return self.shop.lag()

    # -- start

    def prepare(self):
        say = self.screen.say
        say("Postrider: rows of an outbox in Postgres, published to Kafka by a relay")
        if self._mock():
            self.delivery, self.broker_name = "at_least_once", "librdkafka's mock broker"
            say("  Kafka's jars are not here (make setup fetches them), so librdkafka's mock\n"
                "  broker stands in for it, and the relay runs at_least_once: a crash may\n"
                "  repeat events.")
        say(f"  servers     data in {short(servers.test_dir())}, gone at the end")
        self.pg = servers.Postgres(fresh=True, config={"unix_socket_directories": "", "shared_buffers": "64MB",
                                                       "max_wal_size": "1GB"}).start()
        self.db = self.pg.createdb("orders")
        say(f"  Postgres    {self.pg.query('SHOW server_version')[0][0].split()[0]}, port {self.pg.port}")
        self._start_broker()
        say(f"  {'mock broker' if self._mock() else 'Kafka':<12}"
            f"{'in a process of its own' if self._mock() else servers.KAFKA_VERSION}, {self.kafka.bootstrap}")
        self._init()
        self.relay = servers.Relay(self.db.conninfo, self.kafka.bootstrap, delivery=self.delivery, variant=VARIANT,
                                   config={"kafka": {"timeout": "1s"}} if self._mock() else {})
        self.relay.start().wait_ready(60)
        say(f"  relay       http://127.0.0.1:{self.relay.port}")
        self._write_env()

    def _mock(self):
        return os.environ.get("DEMO_BROKER") == "mock" or not servers.kafka_jars()

    def _start_broker(self):
        if self._mock():
            self.kafka = MockKafka().start()
            return
        self.kafka = servers.Kafka(quick=True).start().warm()
        for topic, n in TOPICS.items():
            self.kafka.create_topic(topic, n)

    def _init(self):
        argv = ["init", "--conninfo", self.db.conninfo]
        if not self._mock():
            argv += ["--brokers", self.kafka.bootstrap, "--name", "orders"]
        servers.Cli(variant=VARIANT).run(*argv, check=True)
        self.db.psql(SHOP)

    def _write_env(self):
        values = {"POSTRIDER_BROKERS": self.kafka.bootstrap, "POSTRIDER_ORDERS_CONNINFO": self.db.conninfo,
                  "POSTRIDER_RELAY_URL": f"http://127.0.0.1:{self.relay.port}"}
        with open(ENV_FILE + ".new", "w", encoding="utf-8") as f:
            f.writelines(f"{k}={shlex.quote(v)}\n" for k, v in values.items())
        os.rename(ENV_FILE + ".new", ENV_FILE)

    def go_live(self):
        self.shop = Shop(self.db.conninfo)
        self.records, self.rows = Records(self.kafka.bootstrap, self.shop), Rows(self.db)
        self.health = Health(self.relay)
        for w in (self.records, self.rows, self.health):
            w.start()
        if not self.records.ready.wait(60):
            raise Failed("the consumer did not find its topics within 60 s")
        self.screen.say("ready")
        self.started = time.monotonic()
        self.screen.open()
        self.shop.start()

    # -- what is shown; each part yields once per frame

    def step(self, text):
        self.steps.append((self.elapsed(), text))
        self.screen.step(*self.steps[-1])

    @staticmethod
    def seconds(n):
        end = time.monotonic() + n * PACE
        while time.monotonic() < end:
            yield

    @staticmethod
    def until(true, timeout, what):
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end:
                raise Failed(f"waited {timeout} s for {what}")
            yield

    def flows(self):
        return self.health.state == "ok" and self.lag() < 0.5

    def story(self):
        self.step("A shop commits reservations and payments, each with its event in the same transaction; one in ten "
                  "rolls back.")
        yield from self.until(lambda: self.records.count > 0, 30, "the first record")
        yield from self.seconds(6)
        yield from self.kill_the_relay()
        yield from self.stop_the_broker()
        yield from self.count()

    def kill_the_relay(self):
        self.step(f"kill -9 {self.relay.pid}: the relay dies in the middle of its work. The shop does not notice; rows "
                  "wait in Postgres.")
        self.relay.kill9()
        yield from self.seconds(4)
        self.relay.start()
        self.step("The relay is started again: it " + ("fences its dead self, " if self.delivery == "exactly_once" else "")
                  + "reads its position from Kafka and goes on from there.")
        yield from self.until(self.flows, 60, "the relay to catch up after its death")
        yield from self.seconds(5)

    def stop_the_broker(self):
        if self._mock():
            self.step("The broker freezes: nothing can be published, the lag grows, the relay says why.")
            self.kafka.sigstop()
            yield from self.seconds(7)
            self.kafka.sigcont()
        else:
            self.step(f"kill -9 {self.kafka.pid}: the broker is gone. Nothing can be published, the lag grows, the relay "
                      "says why.")
            self.kafka.kill()
            yield from self.seconds(7)
            self.kafka.start(wait=False)
        self.step("The broker comes back: what had waited goes out, in order.")
        yield from self.until(self.flows, 90, "the relay to catch up after the broker's return")
        yield from self.seconds(4)

    def count(self):
        """Stops the shop, waits for the last record, and has the checker count."""
        self.step("The shop closes. When the last record has arrived, everything is counted from both ends.")
        self.shop.stop()
        if self.shop.error:
            raise Failed(f"the shop lost its database: {self.shop.error}")
        with contextlib.suppress(Failed):  # what is missing is for the checker to say
            yield from self.until(lambda: self.lag() == 0, 30, "the last record")
        done = []
        checking = threading.Thread(target=self._check, args=(done,), daemon=True)
        checking.start()
        yield from self.until(lambda: done, 180, "the checker")
        if isinstance(done[0], Exception):
            raise Failed(f"the checker could not finish: {done[0]}")
        self.result = done[0]
        self.step(self.verdict())

    def _check(self, done):
        import checker
        try:
            done.append(checker.check(self.db.conninfo, self.kafka.bootstrap, list(TOPICS), self.delivery, settle=5,
                                      journal_sql=TRUTH))
        except Exception as e:  # pylint: disable=broad-except
            done.append(e)

    def verdict(self):
        """The count in one line, made to be read by people and by tests."""
        c = self.result.counts
        order = "kept" if not c["ORDER"] and not c["PARTITION_MOVED"] else "BROKEN"
        records = self.result.records
        return (f"count: committed rows {self.result.journal} {'=' if records == self.result.journal else '<>'} records "
                f"{records}, {c['LOST']} lost, {c['DUP']} duplicated, {c['PHANTOM']} invented, order {order}")

    # -- playing

    def play(self):
        psql = f"psql '{self.db.conninfo}'"
        self.foot = [
            ("2", "It stays up for playing, until Ctrl-C. Paste into another terminal:"),
            (None, f'{psql} -c "SELECT reserve()"'),
            (None, f"build/bin/postrider status --url http://127.0.0.1:{self.relay.port}"),
            (None, f"kcat -b {self.kafka.bootstrap} -C -t outbox.event.payment -o -5"),
        ]
        if not self.screen.live:
            for _, text in self.foot:
                self.screen.say(text)
        self.show = False
        counted = self.shop
        self.shop = Shop(self.db.conninfo)
        self.shop.rate, self.shop.rolled_back, self.shop.transactions = CALM_RATE, counted.rolled_back, counted.transactions
        self.records.shop = self.shop
        self.shop.start()
        while not self.leave:
            yield
        self.foot = []
        yield from self.count()

    # -- the loop

    def run(self, parts):
        for _ in parts:
            self._sample()
            self.screen.frame()
            time.sleep(0.1)
        self._sample()
        self.screen.frame()

    def _sample(self):
        now = time.monotonic()
        then, rows, records = self._sampled
        if now - then < 0.5:
            return
        self.committed_rate.append(max(0, self.rows.count - rows) / (now - then))
        self.record_rate.append(max(0, self.records.count - records) / (now - then))
        self.lag_series.append(self.lag())
        self._sampled = (now, self.rows.count, self.records.count)

    def perfect(self):
        r = self.result
        return r is not None and r.ok and (r.records == r.journal or self.delivery == "at_least_once")

    def closing(self):
        """What stays on the terminal when all is over."""
        say, c, r = self.screen.say, self.result.counts, self.result
        if self.screen.live:
            for at, text in self.steps[:-1]:
                lines = wrap(text, min(90, shutil.get_terminal_size().columns - 10))
                say(self.screen.paint("2", f"  {clock(at):>5}  {lines[0]}"))
                for more in lines[1:]:
                    say(self.screen.paint("2", f"         {more}"))
        say()
        order = c["ORDER"] + c["PARTITION_MOVED"]
        rows = [("committed rows", r.journal, f"{self.shop.rolled_back:,} transactions rolled back: none of theirs may show"),
                ("records", r.records, "read back from the topics, read_committed"),
                ("lost", c["LOST"], "committed, not on the topics"),
                ("duplicated", c["DUP"], "more than once" + ("" if self.delivery == "exactly_once"
                                                             else ": allowed, the relay ran at_least_once")),
                ("invented", c["PHANTOM"], "on the topics, not committed"),
                ("damaged", c["CORRUPT"], "key, value or headers differ"),
                ("out of order", order, f"within each of {r.aggregates:,} keys")]
        for name, n, what in rows:
            say(f"  {name:<15}{n:>9,}   " + self.screen.paint("2", what))
        say()
        say("  " + self.screen.paint("1;32" if self.perfect() else "1;31", self.verdict()))
        if not r.ok:
            say(r.report())

    def stop(self):
        for w in (self.shop, self.records, self.rows, self.health):
            if w:
                w.stop()


def die_with_parent():
    """When make is killed, nobody else would tell us."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise Stopped(143)


def open_directory():
    """build/demo, or, where user postgres may not enter the checkout (/root is closed), a temporary
    directory; the link build/demo/elsewhere remembers it."""
    link = os.path.join(HERE, "elsewhere")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link)
    try:
        servers._check_reach(HERE)
        return HERE
    except RuntimeError:
        made = tempfile.mkdtemp(prefix="postrider-demo-")
        os.chmod(made, 0o755)
        os.symlink(made, link)
        return made


def take_directory():
    """Locks build/demo, removes what a killed predecessor left, and sets where servers keep their data."""
    os.makedirs(HERE, exist_ok=True)
    lock = open(os.path.join(HERE, "lock"), "a", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"demo: another one runs in {short(HERE)}; end it first")
    for left in glob.glob(os.path.join(HERE, "run-*")) + [os.path.realpath(os.path.join(HERE, "elsewhere"))]:
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(ENV_FILE)
    os.environ["POSTRIDER_TEST_DIR"] = open_directory()
    servers.test_dir()
    return lock


def watch_signals(demo):
    def stop(sig, _):
        if sig == signal.SIGINT and not demo.show and not demo.leave:
            demo.leave = True  # playing: count once more, then end; a second one ends at once
            return
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)  # cleaning up is short; let it finish
        raise Stopped(128 + sig)
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN:  # nohup
            signal.signal(s, stop)


def act(demo):
    """The whole demonstration; returns the exit status."""
    demo.prepare()
    demo.go_live()
    demo.run(demo.story())
    demo.finished = True
    if not demo.once and demo.perfect():
        demo.run(demo.play())
    demo.screen.close()
    demo.closing()
    return 0 if demo.perfect() else 1


def clean_up(demo):
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    with contextlib.suppress(OSError, ValueError):
        demo.screen.close()
    demo.stop()
    servers.stop_all()
    for path in (ENV_FILE, os.path.join(HERE, "elsewhere")):
        with contextlib.suppress(OSError):
            if os.path.islink(path):
                shutil.rmtree(os.path.realpath(path), ignore_errors=True)
            os.unlink(path)


def main():
    if sys.argv[1:2] == ["--mock-broker"]:
        return mock_broker(sys.argv[2:])
    demo = Demo(once=os.environ.get("ONCE", "") not in ("", "0"))
    rc = 70
    try:
        watch_signals(demo)
        die_with_parent()
        lock = take_directory()
        with lock:
            rc = act(demo)
    except Stopped as e:
        rc = e.code
        demo.screen.close()
        with contextlib.suppress(OSError):
            print(f"demo: stopped after {clock(demo.elapsed())}; nothing is left running", file=sys.stderr)
    except BrokenPipeError:
        rc = 141
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    except (Failed, AssertionError, RuntimeError) as e:
        rc = 69
        demo.screen.close()
        print(f"demo: {e}", file=sys.stderr)
        for server in (demo.relay, demo.kafka, demo.pg):
            if server and os.path.exists(server.log):
                print(f"\nlast words of {server.name}:\n{servers.tail(server.log, 8)}", file=sys.stderr)
    finally:
        clean_up(demo)
    return rc


if __name__ == "__main__":
    sys.exit(main())
