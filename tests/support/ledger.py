"""tests/support/ledger.py -- the ledger that consumers keep of the torture's events, what befalls them, and the audit.

Every event of the truth (truth.journal, load.py) is a transfer from the account that is its key to one that its id
names; the id names the amount too, so that each handler, and the audit, can tell it from id and key alone. Two groups
book all of it: "book" into Postgres, by members with a set-based SQL function and one with a C handler, which take each
other's partitions over; "mail" into an SQLite file by an exec handler, which looks whether an id is there, because its
effects lie outside. Refuses to believe a consumer: what counts is what stands in the books.
"""
import collections
import contextlib
import functools
import glob
import os
import random
import signal
import sqlite3
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import psycopg2  # noqa: E402
import servers  # noqa: E402
from wait import wait_until  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
ACCOUNTS = 60

# No unique constraint on book.effect: what is applied twice stands there twice.
SCHEMA = f"""
CREATE SCHEMA book;
CREATE TABLE book.effect (n bigserial, id uuid, key text, by text DEFAULT current_setting('application_name'));
CREATE TABLE book.account (name text PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE book.refused (key text);
CREATE FUNCTION book.target(id uuid) RETURNS text IMMUTABLE LANGUAGE sql AS $$
	SELECT 'a' || ('x' || right(id::text, 4))::bit(16)::int % {ACCOUNTS} $$;
CREATE FUNCTION book.amount(id uuid) RETURNS int IMMUTABLE LANGUAGE sql AS $$
	SELECT ('x' || substr(id::text, 31, 2))::bit(8)::int $$;
CREATE FUNCTION book.transfer(ids uuid[], keys text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM book.refused AS r WHERE r.key = ANY (keys)) THEN
		RAISE EXCEPTION 'account closed' USING ERRCODE = 'P0001';
	END IF;
	INSERT INTO book.effect (id, key) SELECT u.id, u.key
		FROM unnest(ids, keys) WITH ORDINALITY AS u (id, key, n) ORDER BY u.n;
	INSERT INTO book.account AS a SELECT s.name, sum(s.x) FROM unnest(ids, keys) AS u (id, key),
		LATERAL (VALUES (u.key, -book.amount(u.id)), (book.target(u.id), book.amount(u.id))) AS s (name, x)
		GROUP BY s.name ORDER BY s.name
		ON CONFLICT (name) DO UPDATE SET balance = a.balance + excluded.balance;
END $$;
CREATE FUNCTION book.on_events(ms inbox.message[]) RETURNS void LANGUAGE sql AS $$
	SELECT book.transfer(array_agg(m.id ORDER BY n), array_agg(m.key ORDER BY n))
	FROM unnest(ms) WITH ORDINALITY AS m (id, topic, partition, message_offset, key, type, payload, payload_bytes,
		headers, "time", n) $$;
"""
GROUPS = ("book", "mail")
MEMBERS = (("book", "sql"), ("book", "sql"), ("book", "c"), ("mail", "exec"), ("mail", "exec"))
POINTS = {"sql": ("before_transaction", "committed_before_memory"),
          "c": ("before_transaction", "handled_before_commit", "committed_before_memory"),
          "exec": ("handled_before_recorded", "committed_before_memory")}


class Violated(Exception):
    """What must not happen has happened; the text is the finding."""


def target(id):
    return f"a{int(id[-4:], 16) % ACCOUNTS}"


def amount(id):
    return int(id[30:32], 16)


@functools.lru_cache(None)
def _library():
    path = os.path.join(servers.new_dir("handler"), "ledger_handler.so")
    flags = subprocess.run(["pkg-config", "--cflags", "libpq"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-g", f"-I{servers.ROOT}", *flags, "-o", path,
                    os.path.join(HERE, "ledger_handler.c"), "-lpq"], check=True)
    return path


class Member:
    """One place in a group: its name stays, its processes come and go."""

    def __init__(self, ledger, number, group, kind):
        self.ledger, self.group, self.kind, self.name = ledger, group, kind, f"{group}-{number}"
        self.process = None
        self.all = []

    def start(self, **fault):
        """A process under the member's name; one that is there already stands still or is dead."""
        if self.process is None or self.process.running():
            self.process = self.ledger.process(self.group, self.kind, {"member": self.name})
            self.all.append(self.process)
        self.process.start(**fault)
        return self

    def kill(self):
        for p in self.all:
            p.kill()

    def died_by_itself(self):
        rc = self.process.proc.poll()
        if rc is not None:
            raise Violated(f"{self} ended by itself with {rc}:\n{servers.tail(self.process.log, 12)}")

    def __str__(self):
        return f"member {self.name} ({self.kind})"


class Ledger:
    """db: where the truth is. net: how members reach the servers (.conninfo(dbname), .brokers)."""

    def __init__(self, seed, number, say=print):
        self.number, self.say = number, say
        rnd = random.Random(f"{seed}:{number}:ledger")
        self.config = {
            "lanes": rnd.choice((1, 2, 4)),
            "database": {"timeout": "3s"}, "kafka": {"timeout": rnd.choice(("2s", "5s"))},
            "limits": {"batch_events": rnd.choice((20, 300, 2000)), "crashes": 100},
            "errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "200ms",
                        "backoff_max": "1s"}],
        }
        self.members, self.guests = [], []
        self.parked = 0

    def start(self, pg, kafka, net, topic):
        self.pg, self.kafka, self.net, self.topic = pg, kafka, net, topic
        self.db = pg.createdb(f"ledger_{self.number}", schema=True)
        self.db.psql(SCHEMA)
        self.dir = servers.new_dir("mail")
        self.members = [Member(self, n, *m).start() for n, m in enumerate(MEMBERS)]
        return self

    def full(self, group):
        return f"{group}-{self.number}"

    def process(self, group, kind, more):
        handler = {"sql": lambda: {"kind": "sql", "function": "book.on_events"},
                   "c": lambda: {"kind": "c", "library": _library()},
                   "exec": lambda: {"kind": "exec", "command": [os.path.join(HERE, "ledger_handler.py"), self.dir]}}[kind]()
        return servers.Consumer(self.net.conninfo(self.db.name), self.net.brokers, self.full(group), [self.topic], handler,
                                config={**self.config, **more})

    def pick(self, number):
        m = self.members[number % len(self.members)]
        m.died_by_itself()
        self.say(f"  {m}")
        return m

    def stop(self):
        for p in self.guests:
            p.kill()
        for m in self.members:
            m.kill()

    # -- what befalls them; each undoes itself

    def _member_kill(self, number, meanwhile):
        m = self.pick(number)
        m.process.kill9()
        meanwhile()
        m.start()

    def _member_term(self, number, meanwhile):
        m = self.pick(number)
        rc = m.process.terminate(40)
        if rc != 0:
            raise Violated(f"SIGTERM ended {m} with {rc}:\n{servers.tail(m.process.log, 12)}")
        meanwhile()
        m.start()

    def _member_freeze(self, number, meanwhile):
        m = self.pick(number)
        m.process.sigstop()
        meanwhile()
        m.process.sigcont()

    def _member_point(self, number, meanwhile):
        m = self.pick(number)
        m.process.kill9()
        points = POINTS[m.kind]
        point = f"{points[number % len(points)]}:{1 + number // 100}"
        m.start(fault=point)
        try:
            m.process.wait(5, patient=False)
        except AssertionError:
            self.say(f"  ({point} was not passed in 5 s)")
            m.process.kill9()
        if m.process.proc.returncode != -signal.SIGKILL:
            m.died_by_itself()
        meanwhile()
        m.start()

    def _member_frozen_and_replaced(self, number, meanwhile):
        """Another process comes under the name of one that stands still: that one must be fenced when it wakes."""
        m = self.pick(number)
        elder = m.process
        elder.sigstop()
        m.start()
        meanwhile()
        elder.sigcont()
        with contextlib.suppress(AssertionError):
            if elder.wait(3, patient=False) == 0:
                raise Violated(f"{m} was replaced and ended with 0:\n{servers.tail(elder.log, 12)}")
        elder.kill9()

    def _member_comes_and_goes(self, number, meanwhile):
        """One more, without a name: partitions wander at once, twice."""
        group, kind = MEMBERS[number % len(MEMBERS)]
        guest = self.process(group, kind, {"http": {"listen": "127.0.0.1:0"}}).start()
        self.guests.append(guest)
        meanwhile()
        guest.kill9() if number % 2 else guest.signal(signal.SIGTERM)

    def _subprocess_kill(self, number, _):
        """The exec handler's own process."""
        for m in self.members:
            if m.kind == "exec" and m.process.running():
                for pid in _children(m.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _accounts_closed(self, number, meanwhile):
        """Some keys are refused for a while: they wait in the order of their events, the others do not."""
        keys = [f"a{(number + k) % ACCOUNTS}" for k in range(5)]
        self._sql(lambda: self.db.query("INSERT INTO book.refused SELECT unnest(%s)", (keys,)))
        meanwhile()
        self._sql(self.count_parked)
        self._sql(self.reopen)

    def _lanes_change(self, number, _):
        self._sql(lambda: self.db.query("SELECT inbox.set_lanes(%s, %s)",
                                        (self.full(GROUPS[number % 2]), 1 + number // 100 % 4)))

    def _sql(self, do):
        try:
            return do()
        except (psycopg2.Error, OSError) as e:
            self.say(f"  (did not take: {str(e).splitlines()[0]})")
            return None

    def count_parked(self):
        self.parked = max(self.parked, self.db.one("SELECT count(*) FROM inbox.parked"))

    def reopen(self):
        self.db.query("DELETE FROM book.refused")

    # -- the end

    def recovered(self, when):
        """Every member finds its way alone."""
        self.reopen()
        for m in self.members:
            m.died_by_itself()
            try:
                wait_until(lambda p=m.process: p.status()["state"] in ("ok", "warn"), 90, f"{m} to recover",
                           ignore=(OSError,))
            except AssertionError as e:
                m.died_by_itself()
                raise Violated(f"{when}: {e}; it says {m.process.get('/readyz')[1]}\n"
                               f"{servers.tail(m.process.log, 12)}") from None

    def drained(self, timeout=120):
        """Until the positions stand at the end and nothing is parked: after that nothing may come any more."""
        ends = {p: n for p, n in self.kafka.end_offsets(self.topic).items() if n > 0}
        for group in map(self.full, GROUPS):
            def done(group=group):
                rows = dict(self.db.query("SELECT partition, min(next_offset) FROM inbox.position WHERE \"group\" = %s"
                                          " AND topic = %s GROUP BY partition", (group, self.topic)))
                parked = self.db.one("SELECT count(*) FROM inbox.parked WHERE \"group\" = %s", (group,))
                last[:] = [rows, parked]
                return parked == 0 and all(rows.get(p, -1) >= n for p, n in ends.items())
            last = []
            try:
                wait_until(done, timeout, f"group {group}", interval=0.05)
            except AssertionError:
                raise Violated(f"group {group} has not reached {ends} after {timeout} s, positions and parked: {last}\n"
                               f"{self.logs()}") from None

    def logs(self):
        return "\n".join(f"--- {m}\n{servers.tail(m.process.log, 6)}" for m in self.members)

    def audit(self, journal):
        """journal: [(id, key, seq)] of what was committed. Returns how many transfers each group booked."""
        found = self.db.query("SELECT 'dead letter ' || id || ' ' || class || ' ' || code || ' ' || reason"
                              " FROM inbox.dead_letter LIMIT 3")
        with contextlib.closing(sqlite3.connect(os.path.join(self.dir, "ledger.db"), timeout=30)) as mail:
            books = {"book": (self.db.query("SELECT id::text, key FROM book.effect ORDER BY n"),
                              dict(self.db.query("SELECT name, balance FROM book.account"))),
                     "mail": (mail.execute("SELECT id, key FROM effect ORDER BY n").fetchall(),
                              dict(mail.execute("SELECT name, balance FROM account")))}
        found = [f for f, in found]
        for group, (effects, balances) in books.items():
            found += [f"{group}: {text}" for text in wrong(journal, effects, balances)]
        if found:
            raise Violated("the ledger: " + "; ".join(found) + "\n" + self.logs())
        return len(journal)

    def end(self):
        for m in self.members:
            rc = m.process.terminate(40)
            if rc != 0:
                raise Violated(f"SIGTERM ended {m}, drained, with {rc}:\n{servers.tail(m.process.log, 12)}")

    def tidy(self):
        self.db.drop()


def _children(pid):
    found = set()
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as f:
            found |= set(map(int, f.read().split()))
    return found


def wrong(journal, effects, balances):
    """What is wrong with a group's books, as a list of texts."""
    found, seqs = [], {id: (key, seq) for id, key, seq in journal}
    times = collections.Counter(id for id, _ in effects)
    for word, ids in (("booked twice", [i for i, n in times.items() if n > 1]),
                      ("lost", [i for i in seqs if i not in times]),
                      ("booked and never committed", [i for i in times if i not in seqs])):
        if ids:
            found.append(f"{len(ids)} {word}, the first {ids[0]} {seqs.get(ids[0])}")
    last = {}
    for id, key in effects:
        seq = seqs.get(id, (key, 0))[1]
        if seq < last.get(key, 0):
            found.append(f"{key}: {seq} was booked after {last[key]}")
            break
        last[key] = seq
    if sum(balances.values()) != 0:
        found.append(f"the sum of all accounts is {sum(balances.values())}")
    expected = collections.Counter()
    for id, key, _ in journal:
        expected[key] -= amount(id)
        expected[target(id)] += amount(id)
    differ = [k for k in {*expected, *balances} if expected[k] != balances.get(k, 0)]
    if differ:
        found.append(f"{len(differ)} accounts differ, the first {differ[0]}: {balances.get(differ[0])} for "
                     f"{expected[differ[0]]}")
    return found
