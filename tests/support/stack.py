"""tests/support/stack.py -- all services at work: one Postgres, one Kafka, one Redis, and every program of etc/services
as it is shipped, with nothing changed but the addresses; and a client who uses them as a person does.

A program is known by its file's name: "payment", "payment-consumer", "payment-relay". Each may be stopped, killed, and
started again, and may have further instances. Refuses to change what a file says otherwise than by options that the
test names, and to call anything settled that is still under way.
"""
import contextlib
import glob
import os
import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import servers
from service import Api
from wait import WaitTimeout, wait_until

SERVICES = ("user", "concert", "queue", "reservation", "payment", "order")
EVENTS = ("user", "concert", "queue", "reservation", "payment", "order", "push", "timer", "saga", "scheduler")
COMMANDS = ("user", "concert", "queue", "reservation", "payment", "order", "push", "scheduler")
TOPICS = ["outbox.saga.inbox", "outbox.dead-letter", *(f"outbox.event.{e}" for e in EVENTS), *(f"outbox.command.{c}" for c in COMMANDS)]
FINAL_SAGA = ("COMPLETED", "COMPENSATED", "ABORTED")
SHIPPED = os.path.join(servers.ROOT, "etc", "services")
SAGAS = "/usr/local/share/postrider/"
SINK, FILES = "platform-sink", "/var/lib/postrider/platform"  # the platform's files, and where they are as shipped

# Slugs of what may be otherwise in a moment.
NOT_YET = ("not-held", "turn-over", "in-progress", "no-such-concert", "no-such-seat", "not-your-turn", "unknown-user", "no-such-reservation")

# What only a test wants: less memory and time for the hash of a password, and files that are soon complete.
QUICK = {SINK: ["handler.files.max_age=300ms"], "user": ["password.passes=1", "password.memory=8kB", "login.attempts=1000000"]}

_ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")
_DATABASE = re.compile(r"host=127\.0\.0\.1 dbname=(\w+)")
_VALUE = re.compile(r"^(\s*)#(\w+ = .*;)$")


def shipped():
    """{name: text} of the configuration files of all programs."""
    found = {}
    for path in sorted(glob.glob(os.path.join(SHIPPED, "*.cfg"))):
        with open(path, encoding="utf-8") as f:
            found[os.path.basename(path)[:-4]] = f.read()
    return found


def program_of(name, text):
    """A file with a group is a consumer's, one with a name a relay's; any other is of the service it is named after."""
    word = "consumer" if re.search(r"^group = ", text, re.M) else "relay" if re.search(r"^name = ", text, re.M) else name
    return f"postrider-{word}"


def relays():
    """Names of the outboxes of all relays."""
    return re.findall(r'^name = "([^"]+)"', "\n".join(shipped().values()), re.M)


class Process(servers.Daemon):
    """One program on its shipped file; i: which of its instances."""

    def __init__(self, stack, name, i=0, options=()):
        text = stack.files[name]
        self.program = program_of(name, text)
        self.stack, self.name = stack, name if i == 0 else f"{name}.{i}"
        self.kind = self.program.split("-")[1]
        self.variant = stack.variant
        self.dir = servers.new_dir(self.name)
        self.log = os.path.join(self.dir, f"{self.name}.log")
        default = re.search(r'^http: *\{[^}]*?listen = "127\.0\.0\.1:(\d+)"', text, re.M).group(1)
        self.port = stack.port(default) if i == 0 else servers.free_port()
        self.override = [f"http.listen=127.0.0.1:{self.port}"] * (i > 0) + list(options)
        self.argv_front, self.env = [], {}
        self.file = os.path.join(stack.dir, f"{self.name}.cfg")
        with open(self.file, "w", encoding="utf-8") as f:
            f.write(stack.addressed(text))

    @property
    def api(self):
        return Api(self.port)

    def has_to_say(self):
        """Of so many only those who complain."""
        return not self.running() or "level=error" in servers.tail(self.log, 40)

    @property
    def group(self):
        return re.search(r'^group = "([^"]+)"', self.stack.files[self.name.split(".")[0]], re.M).group(1)


class Stack:
    """options: {"payment": ["gateway.url=http://..."], ...}, each as a program's -o takes it; instances: {"queue": 3};
    without: names that are not started; kafka, pg, redis: servers that others started; platform_dir: where the platform's files go."""

    def __init__(self, options=None, instances=None, without=(), variant=None, pg=None, kafka=None, redis=None, quick=True,
                 servers_config=None, platform_dir=None):
        self.variant = variant or servers.VARIANT
        self.options = {k: list(v) for k, v in (options or {}).items()}
        self.quick, self.servers_config = quick, servers_config or {}
        self.instances, self.without = instances or {}, set(without)
        self.pg, self.kafka, self.redis = pg, kafka, redis
        self.own = [w for w, s in (("pg", pg), ("kafka", kafka), ("redis", redis)) if s is None]
        self.dir = servers.new_dir("stack")
        self.platform_dir = platform_dir or servers.new_dir("platform")
        self.files = {n: t for n, t in shipped().items() if servers.have(program_of(n, t), self.variant)}
        self.ports, self.process, self.databases = {}, {}, {}
        self._reader = None

    @property
    def mock(self):
        """librdkafka's mock broker: no transactions that hold, topics made before."""
        return getattr(self.kafka, "mock", False)

    # -- addresses

    def port(self, default):
        """The port that stands for one of the shipped ones."""
        if default == "9092":
            return self.kafka.port
        if default == "6379":
            return self.redis.port
        return self.ports.setdefault(default, servers.free_port())

    def url(self, service):
        return f"http://127.0.0.1:{self.process[service].port}" if service in self.process else \
            f"http://127.0.0.1:{self.port({'push': '8087'}[service])}"

    def _known(self, port):
        return port in ("9092", "6379") or 8081 <= int(port) <= 8089 or 9479 <= int(port) <= 9499

    def _address(self, m):
        return f"127.0.0.1:{self.port(m.group(1))}" if self._known(m.group(1)) else m.group(0)

    def addressed(self, text):
        """The file with our addresses instead of the shipped ones, the defaults in it (commented out) too."""
        lines = []
        for line in text.splitlines():
            ports = _ADDRESS.findall(line)
            if ports and all(map(self._known, ports)):
                line = _VALUE.sub(r"\1\2", line)
            line = _DATABASE.sub(lambda m: self.pg.conninfo(m.group(1)), _ADDRESS.sub(self._address, line))
            lines.append(line.replace(SAGAS, os.path.join(servers.ROOT, "etc") + "/").replace(FILES, self.platform_dir))
        return "\n".join(lines) + "\n"

    # -- start

    def start(self, timeout=240):
        begin = time.monotonic()
        self._start_servers()
        names = [n for n in self.files if n not in self.without]
        for name in names:
            for i in range(self.instances.get(name, 1)):
                self._make(name, i)
        self._prepare(names)
        first = [p for p in self.process.values() if p.kind not in ("consumer", "relay")]
        for p in first:
            p.start()
        self._ready(first, timeout)  # each service brings its own schema: its consumer's function is in it
        rest = [p for p in self.process.values() if p not in first]
        for p in rest:
            p.start()
        self._ready(rest, timeout)
        self.took = time.monotonic() - begin
        return self

    def _start_servers(self):
        """Side by side; from this thread, whose death they follow."""
        own = self.kafka is None
        if own:
            self.kafka = servers.Kafka(quick=self.quick, heap="384m").start(wait=False)
        if self.pg is None:
            self.pg = servers.Postgres(config={
                "max_connections": 400, "track_commit_timestamp": "on", "shared_buffers": "64MB", "max_wal_size": "2GB", **self.servers_config}).start()
        if self.redis is None:
            self.redis = servers.Redis().start()
        if own:
            self.kafka.wait_ready(180)
            self.kafka.warm()

    def _make(self, name, i):
        options = (QUICK.get(name, []) if self.quick else []) + self.options.get(name, [])
        if self.mock and program_of(name, self.files[name]) == "postrider-relay":
            options += ["delivery=at_least_once", "kafka.timeout=1s"]
        p = Process(self, name, i, options)
        self.process[p.name] = p
        return p

    def _prepare(self, names):
        """Topics; databases with what `postrider init` makes; each relay's topic of positions."""
        made = {} if self.mock else self._make_topics()
        have = {r[0] for r in self.pg.query("SELECT datname FROM pg_database")}
        for word in sorted({m for n in names for m in _DATABASE.findall(self.files[n])}):
            self.databases[word] = servers.Database(self.pg, word) if word in have else self.pg.createdb(word, schema=True)
        relays = [p for p in self.process.values() if p.kind == "relay"]
        if not self.mock:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda p: servers.Cli(variant=self.variant).run("init", "-c", p.file, check=True), relays))
        for f in made.values():
            f.result(60)

    def _make_topics(self):
        from confluent_kafka.admin import NewTopic
        there = self.kafka.topics()
        new = [NewTopic(t, 2, 1) for t in TOPICS if t not in there]
        return self.kafka.admin.create_topics(new) if new else {}

    @staticmethod
    def _ready(processes, timeout):
        for p in processes:
            p.wait_ready(timeout)

    # -- one program

    def __getitem__(self, name):
        return self.process[name]

    def kill(self, *names):
        """kill -9."""
        for n in names:
            self.process[n].kill()

    def stop(self, *names):
        """SIGTERM, and its end; programs that belong together by their front: stop("payment*")."""
        stopping = [p for n in names for p in self.named(n) if p.running()]
        for p in stopping:
            p.signal(15)
        for p in stopping:
            p.wait(90)
            p._forget()

    def named(self, name):
        if name.endswith("*"):
            return [p for n, p in self.process.items() if re.split(r"[-.]", n)[0] == name[:-1]]
        return [self.process[name]]

    def restart(self, *names, timeout=120):
        """Starts what was stopped, and waits for it."""
        starting = [p for n in names for p in self.named(n) if not p.running()]
        for p in starting:
            p.start()
        self._ready(starting, timeout)

    def add(self, name):
        """One more instance of a program."""
        n = sum(p == name or p.startswith(name + ".") for p in self.process)
        p = self._make(name, n)
        self._ready([p.start()], 200)
        return p

    def set(self, name, *options):
        """Restarts a program with other options; without any: with its own."""
        p = self.process[name]
        p.override = [o for o in p.override if o.startswith("http.listen=")] + (QUICK.get(name, []) if self.quick else []) + [
            *self.options.get(name, []), *options]
        if p.running():
            self.stop(name)
        self.restart(name)

    def api(self, service, instance=0):
        if service in ("push",):
            return Api(self.port("8087"))
        return Api(self.process[service if not instance else f"{service}.{instance}"].port)

    def db(self, word):
        return self.databases[word]

    def running(self):
        return [n for n, p in self.process.items() if p.running()]

    def close(self):
        for p in list(self.process.values()):
            p.kill()
        if self._reader:
            self._reader.close()
        for word in self.own:
            server = getattr(self, word)
            if server is None:
                continue
            if word == "pg":
                with contextlib.suppress(Exception):
                    server.stop("immediate")
            else:
                server.kill()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    # -- whether anything is under way

    def ends(self):
        """{(topic, partition): last stable offset} of those that have any record."""
        from confluent_kafka import Consumer, TopicPartition
        if self._reader is None:
            self._reader = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "stack-ends", "log_level": 0,
                                     "isolation.level": "read_committed"})
        there = self._reader.list_topics(timeout=30).topics
        # The offset of the time -1 is the end: all partitions in one request, where get_watermark_offsets takes 0.1 s each.
        ends = self._reader.offsets_for_times([TopicPartition(t, p, -1) for t in TOPICS if t in there for p in there[t].partitions], 30)
        assert not any(e.error for e in ends), ends
        return {(e.topic, e.partition): e.offset for e in ends if e.offset > 0}

    def unpublished(self):
        """Outboxes with rows that their relay owes."""
        # Not the sequence: what was rolled back has drawn from it too.
        sql = "SELECT coalesce((SELECT max(seq) FROM outbox.event), 0) > (SELECT coalesce(max(published_seq), 0) FROM outbox.relay)"
        return [w for w, d in self.databases.items() if f"{w}-relay" in self.process and d.one(sql)]

    def unhandled(self):
        """Consumers with records that they have not handled."""
        consumers = [p for p in self.process.values() if p.kind == "consumer" and "." not in p.name]
        at = {p.name: self._positions(p, self.files[p.name]) for p in consumers}
        ends, late = self.ends(), []  # after the positions: whoever is at the end then has handled all
        for p in consumers:
            topics = self._topics(self.files[p.name])
            behind = {k: (at[p.name].get(k, -1), n) for k, n in ends.items() if k[0] in topics and at[p.name].get(k, -1) < n}
            if behind:
                late.append((p.name, behind))
        return late

    @staticmethod
    def _topics(text):
        """What a consumer reads: names, and patterns that begin with ^."""
        words = [w.replace("\\\\", "\\") for w in re.findall(r'"([^"]+)"', re.search(r"topics = \(([^)]*)\)", text).group(1))]
        return {t for w in words for t in ([x for x in TOPICS if re.match(w, x)] if w.startswith("^") else [w])}

    def _positions(self, p, text):
        word = _DATABASE.search(text)
        if word:
            return {(t, n): at for t, n, at in self.databases[word.group(1)].query(
                'SELECT topic, partition, min(next_offset) FROM inbox.position WHERE "group" = %s GROUP BY topic, partition',
                (p.group,))}
        return {}

    def live_sagas(self):
        if "engine" not in self.databases:
            return []
        return [r[0] for r in self.databases["engine"].query(
            "SELECT id::text || ' ' || name || ' ' || state FROM saga.instance WHERE NOT (state = ANY (%s))",
            (list(FINAL_SAGA),))]

    def parked(self):
        """Messages that wait for another try."""
        return [(w, *r) for w, d in self.databases.items() for r in d.query(
            "SELECT \"group\", topic, type, left(reason, 200) FROM inbox.parked LIMIT 3")]

    def outside(self):
        """What the payment service has yet to ask of the gateway and the tax server."""
        return "payment" in self.databases and "payment" in self.process and self.databases["payment"].query(
            "SELECT kind, payment_id::text, attempts, answer FROM payment.gateway_request WHERE state = 'PENDING' LIMIT 3")

    def under_way(self, but=()):
        """What is not done yet, as one text; "": nothing. but: what is not asked."""
        for what in ("unpublished", "unhandled", "live_sagas", "parked", "outside"):
            found = what not in but and getattr(self, what)()
            if found:
                return f"{what}: {str(found)[:600]}"
        return ""

    def settle(self, timeout=120, but=()):
        """Until nothing is under way, twice in a row, and nothing came to a topic meanwhile: what goes from one service to the next
        may be just behind each look."""
        last = [""]

        def quiet():
            ends = self.ends()
            last[0] = self.under_way(but) or self.under_way(but) or ("" if self.ends() == ends else "records came meanwhile")
            return not last[0]
        try:
            wait_until(quiet, timeout, "all to be handled", interval=0.05, interval_max=0.3)
        except WaitTimeout as e:
            raise AssertionError(f"{e}; {last[0]}\n{self.complaints()}") from None

    def complaints(self):
        """What the programs say of themselves, where it is not well."""
        said = []
        for p in self.process.values():
            if not p.running():
                said.append(f"--- {p.name} does not run")
                continue
            with contextlib.suppress(OSError, ValueError, KeyError):
                status, body = p.get("/readyz")
                if status != 200:
                    said.append(f"--- {p.name}: {body.strip()[:400]}\n{servers.tail(p.log, 4)}")
        for id in [x.split()[0] for x in self.live_sagas() if "STUCK" in x][:2]:
            rows = self.databases["engine"].query("SELECT at::text, what, step, op, detail FROM saga.log WHERE saga_id = %s ORDER BY seq", (id,))
            said.append(f"--- saga {id}\n" + "\n".join(" ".join(str(x) for x in r if x) for r in rows))
        return "\n".join(said)

    # -- for people: build/demo/env

    def env(self):
        """The shell assignments of contracts 7."""
        values = {"POSTRIDER_BROKERS": self.kafka.bootstrap, "POSTRIDER_REDIS": self.redis.address}
        for word in self.databases:
            name = word.upper()
            values[f"POSTRIDER_{name}_CONNINFO"] = self.databases[word].conninfo
            if word in self.process:
                values[f"POSTRIDER_{name}_URL"] = self.url(word)
        if "push-consumer" in self.process:
            values["POSTRIDER_PUSH_URL"] = self.url("push")
        if SINK in self.process:
            values["POSTRIDER_PLATFORM_DIR"] = self.platform_dir
        return values

    # -- the story's people and things

    def open_concert(self, title, seats=20, price=1000, schedules=1, known=True):
        """A concert with seats as an operator opens it: (concert_id, [schedule_id]); known: to all who need it."""
        import json
        plan = [{"starts_at": "2030-01-0%dT19:00:00Z" % (i + 1), "rows": 1, "seats_per_row": seats, "price": price}
                for i in range(schedules)]
        db = self.db("concert")
        made = db.one("SELECT concert.open(%s, %s)", (title, json.dumps(plan)))
        concert_id = str(made["concert_id"] if isinstance(made, dict) else made)
        rows = db.query("SELECT schedule_id::text FROM concert.concert_schedule WHERE concert_id = %s ORDER BY schedule_id",
                        (concert_id,))
        if known:
            wait_until(lambda: self._known_everywhere(concert_id, seats * schedules), 90, f"concert {concert_id} to be known")
        return concert_id, [r[0] for r in rows]

    def _known_everywhere(self, concert_id, seats):
        return self.db("queue").query("SELECT 1 FROM queue.concert_copy WHERE concert_id = %s", (concert_id,)) and self.db("reservation").one(
            "SELECT count(*) FROM reservation.seat WHERE concert_id = %s", (concert_id,)) == seats

    def person(self, name=None, points=0):
        """Somebody with an account, logged in, with so many points."""
        p = Person(self, name)
        if points:
            p.charge(points)
        return p


class Person:
    """Uses the services over HTTP; every answer is checked against the service's openapi.json."""
    password = "a-good-password"

    def __init__(self, stack, name=None):
        self.stack = stack
        self.name = name or f"guest {uuid.uuid4().hex[:6]}"
        self.email = f"{uuid.uuid4().hex}@example.org"
        self.apis = {}
        self.queue_token = None
        made = self.call("user", "POST", "/users", {"email": self.email, "password": self.password, "name": self.name})
        assert made.status == 201, made
        self.id = made.json["user_id"]
        self.log_in()

    def log_in(self):
        answer = self.call("user", "POST", "/login", {"email": self.email, "password": self.password})
        assert answer.status == 200, answer
        self.token = answer.json["access_token"]

    def api(self, service):
        if service not in self.apis:
            self.apis[service] = _shared_api(self.stack, service)
        return self.apis[service]

    def call(self, service, method, path, body=None, **kw):
        kw.setdefault("token", getattr(self, "token", None))
        return self.api(service).call(method, path, body, **kw)

    def get(self, service, path, **kw):
        return self.call(service, "GET", path, **kw)

    # -- money

    def charge(self, amount, key=None):
        answer = self.known(lambda: self.call("payment", "POST", f"/balances/{self.id}/charge", {"amount": amount}, key=key))
        assert answer.status in (200, 201), answer
        return answer.json["balance"]

    def balance(self):
        return self.get("payment", f"/balances/{self.id}").json["balance"]

    # -- the queue

    def line_up(self, concert_id, key=None):
        answer = self.known(lambda: self.call("queue", "POST", "/queue/tokens", {"concert_id": concert_id}, key=key))
        assert answer.status in (200, 201), answer  # 200: the place that he has already
        self.queue_token = answer.json["token"]
        return answer.json

    def place(self):
        """The answer to the question where I stand."""
        return self.call("queue", "GET", "/queue/status", token=self.queue_token)

    def wait_turn(self, timeout=90):
        wait_until(lambda: self.place().json.get("state") == "AVAILABLE", timeout, f"{self.name}'s turn", interval=0.02)
        return self

    def admitted(self, concert_id, timeout=90):
        self.line_up(concert_id)
        return self.wait_turn(timeout)

    # -- seats

    def seats(self, schedule_id, state="available"):
        answer = self.get("concert", f"/schedules/{schedule_id}/seats" + (f"?state={state}" if state else ""))
        assert answer.status == 200, answer
        return answer.json["seats"]

    def ask(self, schedule_id, seat_ids, key=None, **kw):
        """POST /reservations as it is answered."""
        return self.call("reservation", "POST", "/reservations", {"schedule_id": schedule_id, "seat_ids": list(seat_ids),
                                                                  "queue_token": self.queue_token}, key=key, **kw)

    @staticmethod
    def known(ask, timeout=60):
        """The answer, once what it is about has come round: a busy machine takes longer than http.patience."""
        last = []

        def told():
            last[:] = [ask()]
            if last[0].status == 503:
                return "keys that tokens are checked with" not in last[0].json["detail"]
            return last[0].status not in (404, 409, 422) or last[0].json["type"].rpartition("/")[2] not in NOT_YET
        with contextlib.suppress(WaitTimeout):
            wait_until(told, timeout, "it to be known")
        return last[0]

    def reserve(self, schedule_id, seat_ids):
        """The reservations' ids, once they are asked for."""
        answer = self.known(lambda: self.ask(schedule_id, seat_ids))
        assert answer.status == 202, answer
        return answer.json["reservation_ids"]

    def hold(self, schedule_id, seat_ids, timeout=90):
        ids = self.reserve(schedule_id, seat_ids)
        for i in ids:
            self.wait_reservation(i, "HELD", timeout=timeout)
        return ids

    def reservation(self, id):
        answer = self.get("reservation", f"/reservations/{id}")
        assert answer.status == 200, answer
        return answer.json

    def wait_reservation(self, id, *states, timeout=90):
        return self._until(lambda: self.reservation(id), "reservation", id, states, timeout)

    def _until(self, look, what, id, states, timeout):
        seen = {}

        def there():
            seen.update(look())
            return seen["state"] in states
        try:
            wait_until(there, timeout, f"{what} {id} to be {' or '.join(states)}", interval=0.01)
        except WaitTimeout as e:
            raise AssertionError(f"{e}; it is {seen}\n{self.stack.complaints()}") from None
        return dict(seen)

    # -- payment

    def ask_pay(self, reservation_ids, mode="saga", key=None):
        return self.call("payment", "POST", f"/payments?mode={mode}",
                         {"reservation_ids": list(reservation_ids), "token": self.queue_token}, key=key)

    def pay(self, reservation_ids, mode="saga"):
        answer = self.known(lambda: self.ask_pay(reservation_ids, mode))
        assert answer.status == (200 if mode == "hybrid" else 202), answer
        return answer.json

    def payment(self, id):
        answer = self.get("payment", f"/payments/{id}")
        assert answer.status == 200, answer
        return answer.json

    def wait_payment(self, id, *states, timeout=90):
        return self._until(lambda: self.payment(id), "payment", id, states, timeout)

    def saga(self, id, service="payment"):
        answer = self.get(service, f"/sagas/{id}")
        assert answer.status == 200, answer
        return answer.json

    def wait_saga(self, id, *states, service="payment", timeout=90):
        return self._until(lambda: self.saga(id, service), "saga", id, states, timeout)

    def book(self, schedule_id, seat_ids, key=None):
        return self.call("reservation", "POST", "/bookings", {"schedule_id": schedule_id, "seat_ids": list(seat_ids),
                                                              "queue_token": self.queue_token}, key=key)

    # -- orders

    def order(self, *prices):
        items = [{"sku": f"sku-{i}", "quantity": 1, "unit_price": p} for i, p in enumerate(prices or (500,))]
        answer = self.known(lambda: self.call("order", "POST", "/orders", {"items": items}))
        assert answer.status == 201, answer
        return answer.json["order_id"]

    def pay_order(self, id, mode="saga"):
        return self.call("order", "POST", f"/orders/{id}/pay?mode={mode}")

    def wait_order(self, id, *states, timeout=90):
        return self._until(lambda: self.get("order", f"/orders/{id}").json, "order", id, states, timeout)

    # -- what the service tells me

    def notifications(self):
        answer = self.get("push", "/notifications")
        assert answer.status == 200, answer
        return answer.json["notifications"]

    def told(self, *what, timeout=90):
        """Messages of one of these kinds."""
        return wait_until(lambda: [n for n in self.notifications() if n["what"] in what], timeout,
                          f"{self.name} to be told of {' or '.join(what)}", interval=0.02)


def _shared_api(stack, service):
    """One document of each service, read once."""
    made = stack.__dict__.setdefault("_apis", {})
    if service not in made:
        made[service] = stack.api(service)
        with contextlib.suppress(ValueError):
            made[service].document()
    return made[service]


@pytest.fixture(scope="module")
def stack(request):
    """All services, started once for the file: module variables STACK = {...} are the Stack's arguments."""
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    with Stack(**getattr(request.module, "STACK", {})) as s:
        yield s
