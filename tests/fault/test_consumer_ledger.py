"""tests/fault/test_consumer_ledger.py -- the ledger: transfers between accounts while consumers, broker and Postgres are
killed. Each transfer is booked once, no money appears or vanishes, and every balance is what it must be.

POSTRIDER_TRANSFERS=1000000 (make torture TRANSFERS=1000000) makes the long run of it; a few thousand otherwise. And once
the whole way: outbox, relay, topic, consumer.
"""
import collections
import itertools
import os
import random
import signal
import threading
import time

import psycopg2
import pytest
import servers
from inbox import inbox  # noqa: F401
from outbox import header, read_topic
from wait import wait_until

TRANSFERS = int(os.environ.get("POSTRIDER_TRANSFERS", "4000"))
ACCOUNTS = 1000
OPENING = 1000
STEP = max(50, TRANSFERS // 100)  # between two faults

LEDGER = f"""
CREATE TABLE app.account (n int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO app.account SELECT g, {OPENING} FROM generate_series(0, {ACCOUNTS - 1}) AS g;
CREATE TABLE app.transfer (n bigserial, id uuid, source int, seq int, target int, amount int);
CREATE FUNCTION app.book(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	f int := (m.payload ->> 'from')::int;
	t int := (m.payload ->> 'to')::int;
	x int := (m.payload ->> 'amount')::int;
BEGIN
	INSERT INTO app.transfer (id, source, seq, target, amount) VALUES (m.id, f, (m.payload ->> 'seq')::int, t, x);
	UPDATE app.account SET balance = balance + CASE WHEN n = f THEN -x ELSE x END WHERE n = least(f, t);
	UPDATE app.account SET balance = balance + CASE WHEN n = f THEN -x ELSE x END WHERE n = greatest(f, t);
END $$;
"""


class Ledger:
    """Servers of its own, two members, a writer, and somebody who kills them all."""

    def __init__(self, i, seed):
        self.i, self.rnd = i, random.Random(seed)
        i.db.psql(LEDGER)
        self.expected = [OPENING] * ACCOUNTS
        self.members = [i.consumer({"kind": "sql", "function": "app.book"}, {"limits": {"batch_events": 200}}).start()
                        for _ in range(2)]
        self.writer = threading.Thread(target=self.write, daemon=True)
        self.written = 0

    def write(self):
        rnd = random.Random(7)
        for n in range(TRANSFERS):
            f, t = rnd.sample(range(ACCOUNTS), 2)
            x = rnd.randrange(1, 100)
            self.expected[f] -= x
            self.expected[t] += x
            self.i.event(f"a{f}", {"from": f, "to": t, "amount": x})
            self.written = n + 1
            if n % 100 == 0:
                self.i.producer.poll(0)
                while len(self.i.producer) > 100000:
                    self.i.producer.poll(0.1)
                if TRANSFERS <= 20000:
                    time.sleep(0.1)  # so that all of the short run is under fire

    def booked(self):
        """How many, about: by the positions, because counting a million rows is work. What is true is counted at the end."""
        return int(self.i.one("SELECT coalesce(sum(done), 0) FROM (SELECT avg(greatest(next_offset, 0)) AS done"
                              " FROM inbox.position GROUP BY partition) AS p"))

    def moves(self, more):
        """Until so many more are booked, or all."""
        goal = min(self.wait(lambda: self.booked() + 1) - 1 + more, TRANSFERS)
        self.wait(lambda: self.booked() >= goal)

    @staticmethod
    def wait(fn):
        return wait_until(fn, 120, "bookings", interval=0.02, ignore=(psycopg2.OperationalError,))

    # -- faults

    def kill_member(self):
        c = self.rnd.choice(self.members)
        c.kill9()
        c.start()

    def point(self):
        c = self.rnd.choice(self.members)
        c.kill9()
        c.start(fault=self.rnd.choice(("before_transaction", "committed_before_memory")) + ":5")
        wait_until(lambda: not c.running() or self.booked() == TRANSFERS, 120, "it to die",
                   ignore=(psycopg2.OperationalError,))
        c.kill()
        c.start()

    def freeze_member(self):
        c = self.rnd.choice(self.members)
        c.sigstop()
        self.moves(1)
        c.sigcont()

    def terminate_sessions(self):
        self.i.pg.kill_backend(f"datname = '{self.i.name}' AND application_name LIKE 'postrider-consumer%'")

    def stop_postgres(self):
        self.i.pg.stop("immediate")
        self.i.pg.start()

    def kill_broker(self):
        self.i.kafka.kill()
        self.i.kafka.start()

    def run(self):
        faults = [self.kill_member, self.stop_postgres, self.point, self.terminate_sessions, self.kill_broker,
                  self.freeze_member, self.kill_member]
        self.writer.start()
        began, rounds = time.monotonic(), 0
        for fault in itertools.chain(faults, (self.rnd.choice(faults) for _ in itertools.count())):
            self.moves(STEP)
            if rounds >= len(faults) and self.booked() >= TRANSFERS * 0.9:
                break
            if TRANSFERS > 20000:
                print(f"{time.monotonic() - began:6.0f} s  {self.booked():8} booked  {fault.__name__}", flush=True)
            fault()
            rounds += 1
            if rounds >= len(faults) and TRANSFERS <= 20000:
                break
        self.writer.join()
        self.i.flush(120)
        return rounds

    def check(self):
        assert sum(self.i.kafka.end_offsets(self.i.topic).values()) == TRANSFERS, "the input"
        self.i.stands(60 + TRANSFERS // 1000)
        assert self.i.dead() == [] and self.i.parked() == []
        missing = set(self.i.sent) - {r[0] for r in self.i.db.query("SELECT id::text FROM app.transfer")}
        assert not missing, self.whereabouts(missing)
        assert self.i.db.query("SELECT count(*), count(DISTINCT id) FROM app.transfer") == [(TRANSFERS, TRANSFERS)]
        assert self.i.one("SELECT count(*) FROM (SELECT seq - lag(seq, 1, 0) OVER (PARTITION BY source ORDER BY n) AS step"
                          " FROM app.transfer) AS t WHERE step <> 1") == 0, "booked out of order"
        assert self.i.one("SELECT sum(balance) FROM app.account") == ACCOUNTS * OPENING
        assert self.i.db.query("SELECT balance FROM app.account ORDER BY n") == [(x,) for x in self.expected]

    def whereabouts(self, missing):
        """Where on the topic that stands which was not booked."""
        records = read_topic(self.i.kafka, self.i.topic, TRANSFERS, 300)
        at = sorted((r.partition, r.offset) for r in records if header(r, "id").decode() in missing)
        runs = []
        for p, n in at:  # neighbours of one lane are near each other
            if not runs or runs[-1][0] != p or n - runs[-1][2] > 20:
                runs.append([p, n, n, 0])
            runs[-1][2:] = [n, runs[-1][3] + 1]
        seen = self.i.one("SELECT count(*) FROM inbox.seen WHERE message_id = ANY (%s::uuid[])", (list(missing),))
        return (f"{len(missing)} are not booked, {seen} of them are in inbox.seen; {len(at)} are on the topic, "
                f"[partition, from, to, how many]: {runs[:30]}\n{self.i.logs()}")


@pytest.mark.timeout(400 + TRANSFERS // 300)
def test_ledger(inbox, own_pg, own_kafka):  # noqa: F811
    """Money is conserved through kills of everything."""
    ledger = Ledger(inbox(pg=own_pg(config={"max_wal_size": "1GB"}), kafka_=own_kafka(), partitions=4), seed=3)
    assert ledger.run() >= 7
    ledger.check()


def test_lanes_that_lock_the_same_rows(inbox):  # noqa: F811
    """Story: each batch of 200 transfers locked a third of all accounts, in whatever order they came. Every one of them
    met a deadlock with another lane's, after the server's deadlock_timeout of a second; it was tried three times more,
    then halved, doubled again when that went well, and after the first seconds nothing was booked any more. A lane
    that collided stays with small batches for a while."""
    i = inbox(partitions=4)
    i.db.psql(LEDGER + f"ALTER DATABASE \"{i.name}\" SET deadlock_timeout = '200ms';")
    rnd = random.Random(5)
    for _ in range(5000):
        f, t = rnd.sample(range(ACCOUNTS), 2)
        i.event(f"a{f}", {"from": f, "to": t, "amount": 1})
    i.flush()
    c = i.consumer({"kind": "sql", "function": "app.book"}, {"lanes": 4, "limits": {"batch_events": 200}}).start()
    i.stands(60)
    assert i.db.query("SELECT count(*), count(DISTINCT id) FROM app.transfer") == [(5000, 5000)]
    assert c.metric("postrider_consumer_retries_total") < 60  # seen: 9; and more than 100 before
    assert i.dead() == [] and i.parked() == []


@pytest.mark.timeout(240)
def test_the_whole_way(inbox, kafka):  # noqa: F811
    """outbox.publish in one database, relay, topic, consumer, effects in another; relay and consumer are killed on the
    way. What was committed there has its effect here, once and in order."""
    i = inbox(partitions=0)
    word = i.name
    source = i.pg.createdb(word + "src")
    relay = None
    try:
        servers.Cli().run("init", "--conninfo", source.conninfo, "--brokers", kafka.bootstrap, "--name", word, check=True)
        i.topic = kafka.create_topic("outbox.event." + word, 3)
        relay = servers.Relay(source.conninfo, kafka.bootstrap, name=word, config={"limits": {"batch_events": 50}}).start()
        c = i.consumer().start()
        seqs = collections.Counter()
        for n in range(12):
            keys = [f"k{(n * 7 + k) % 11}" for k in range(40)]
            rows = []
            for key in keys:
                seqs[key] += 1
                rows.append((key, seqs[key]))
            with source.connect(autocommit=False) as conn, conn.cursor() as cur:
                for key, seq in rows:
                    cur.execute("SELECT outbox.publish(%s, %s, 'Moved', jsonb_build_object('seq', %s::int))::text",
                                (word, key, seq))
                    id = cur.fetchone()[0]
                    if n % 4 != 3:
                        i.sent[id] = (key, seq)
                if n % 4 == 3:
                    conn.rollback()
                    seqs.subtract(keys)
            conn.close()
            if n % 3 == 0:
                i.wait_count(1)
                relay.kill9()
                relay.start()
            elif n % 3 == 1:
                c.kill9()
                c.start()
        i.check(timeout=120)
        assert len(i.sent) == 9 * 40
    finally:
        if relay:
            relay.kill()
        source.drop()
