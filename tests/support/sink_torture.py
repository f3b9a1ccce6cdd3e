#!/usr/bin/python3
"""tests/support/sink_torture.py -- `make torture-sink`: members of a sink die and come back until the time is over.

Rounds go through the targets: NDJSON files with zstd, an API, a table in the consumer's database, a table in another
one. Each has a topic of four partitions, two members, records of all kinds (tombstones, no JSON, aborted ones, older
hours), and a plan of faults drawn from the seed and the round's number alone: kill -9, at a FAULT point too, SIGTERM,
members that freeze, come and go, have other limits, positions set back to zero; Postgres, the broker and the API fail.
In the end nobody mends anything: the sink comes to the end of its topic by itself, `postrider reconcile` says 0
missing, 0 twice, and the target is compared with the topic record by record. Test variant only (FAULT points).

Exit status: 0 all well, 1 something was violated (the line to repeat it is printed), 69 a server of ours did not start.
Refuses to call a round well in which a member ended by itself.
"""
import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import uuid

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import audit  # noqa: E402
import psycopg2  # noqa: E402
import servers  # noqa: E402
from data_platform import Away  # noqa: E402
from inbox import Inbox  # noqa: E402
from ledger import Violated  # noqa: E402
from service import Service  # noqa: E402
from sink import Sink  # noqa: E402
from sink_table import Table  # noqa: E402
from wait import wait_until  # noqa: E402

FAULTS = 12  # in a round
PARTITIONS, MEMBERS = 4, 2
MACHINE = ("sink_sealed_before_record", "sink_recorded_before_publish", "sink_published_before_position", "sink_position_before_memory")
_never = threading.Event()


def pause(seconds):
    """How long a fault lasts: there is nothing to wait for but the time itself."""
    _never.wait(seconds)


class Files:
    points = (*MACHINE, "sink_mid_file", "sink_mid_rename")

    def __init__(self, pg, kafka, _):
        self.sink = Sink(Inbox(pg, kafka, partitions=0), PARTITIONS, compression="zstd")
        self.i = self.sink.i

    def member(self, config, limit):
        return self.sink.consumer(config, {"max_records": limit})

    def hours(self, rnd):
        """How old a record is; most are of now."""
        return rnd.choice((0, 0, 0, 0, 1, 2, 30))

    def sent(self, id):
        """One more record that must be there."""

    def before(self, point):
        """A member is to die there."""

    def trouble(self, number, meanwhile):
        self.i.pg.kill_backend(f"datname = '{self.i.name}' AND application_name LIKE 'postrider-consumer%'")
        meanwhile()

    def check(self):
        self.sink.check(90)
        return ()

    def close(self):
        self.i.close()


class Api(Files):
    """Now and then a record is refused for good; the next one only when that is a dead letter."""
    points = (*MACHINE, "sink_posted_before_position", "sink_split_before_commit")

    def __init__(self, pg, kafka, _):
        self.away = Away(Inbox(pg, kafka, partitions=PARTITIONS))
        self.i = self.away.i
        self.refused, self.refuse = [], True

    def member(self, config, limit):
        return self.away.consumer(config, start=False, max_records=limit)

    def hours(self, rnd):
        return 0

    def sent(self, id):
        if self.refuse:
            self.refuse = False
            self.refused.append(id)
            self._switch(refuse_id=id)
        self.away.ids.append(id)

    def before(self, point):
        if point == "sink_split_before_commit":
            self.refuse = len(set(self.i.dead("id"))) == len(self.refused)

    def _switch(self, **switches):
        answer = self.away.platform.api.post("/switches", switches)
        assert answer.status == 200, answer

    def trouble(self, number, meanwhile):
        p = self.away.platform
        if number % 3 == 0:
            p.service.kill9()
            meanwhile()
            p.service = Service("platform", p.db.conninfo, port=p.service.port).start().wait_ready()
        else:
            self._switch(**({"fail_status": 503, "fail_every": 2, "fail_stored": True} if number % 3 == 1 else {"slow_ms": 300}))
            meanwhile()
            self._switch(fail_status=0, fail_every=1, fail_stored=False, slow_ms=0)

    def check(self):
        self.away.once(self.refused, 90)
        return "--api", self.away.url.rsplit("/", 1)[0]

    def close(self):
        self.away.close()


class Rows(Files):
    points = ("sink_sealed_before_record", "sink_copied_before_commit")

    def __init__(self, pg, kafka, number, db=None):
        self.i = Inbox(pg, kafka, partitions=PARTITIONS)
        self.table = Table(self.i, "append", db=db)

    def member(self, config, limit):
        return self.table.consumer(config, start=False, max_records=limit)

    def hours(self, rnd):
        return 0

    def check(self):
        self.table.check(timeout=90)
        return ()


class RowsElsewhere(Rows):
    points = (*MACHINE, "sink_rows_before_commit", "sink_rows_committed_before_position")

    def __init__(self, pg, kafka, number):
        self.theirs = pg.createdb(f"rows_{number}_{os.getpid()}")
        super().__init__(pg, kafka, number, self.theirs)

    def close(self):
        super().close()
        self.theirs.drop()


TARGETS = {"files": Files, "api": Api, "table": Rows, "table elsewhere": RowsElsewhere}


class Load(threading.Thread):
    """Records of all kinds until it is told to stop."""

    def __init__(self, target, seed):
        super().__init__(daemon=True)
        self.target, self.i, self.rnd = target, target.i, random.Random(seed)
        self.stopping, self.count, self.aborted, self.error = threading.Event(), 0, 0, None
        self.broker = threading.Lock()  # ours while it is up

    def run(self):
        try:
            while not self.stopping.wait(0.05):
                with self.broker:
                    for _ in range(self.rnd.randrange(25)):
                        self._one()
                    self.i.flush(60)
                    if self.rnd.random() < 0.05:
                        self._abort()
        except Exception as e:  # pylint: disable=broad-except
            self.error = e

    def _payload(self):
        kind = self.rnd.randrange(20)
        if kind == 0:
            return None
        if kind == 1:
            return b"\xff no JSON \0"
        return json.dumps({"n": self.count, "text": "x" * self.rnd.choice((5, 300, 300, 20000 if kind == 2 else 30))}).encode()

    def _one(self):
        id = str(uuid.UUID(int=self.rnd.getrandbits(128), version=4))
        self.count += 1
        self.target.sent(id)
        old = self.target.hours(self.rnd)
        more = {"timestamp": int((time.time() - old * 3600) * 1000)} if old else {}
        self.i.put(f"k{self.rnd.randrange(17)}".encode(), self._payload(), [("id", id.encode()), ("type", b"Moved")], **more)

    def _abort(self):
        """Offsets that nobody may see."""
        from confluent_kafka import Producer
        p = Producer({"bootstrap.servers": self.i.kafka.bootstrap, "transactional.id": f"{self.i.name}-aborts", "transaction.timeout.ms": 5000,
                      "log_level": 0, "reconnect.backoff.max.ms": 200})
        p.init_transactions(30)
        p.begin_transaction()
        for _ in range(3):
            p.produce(self.i.topic, b"never", b"k", headers=[("id", str(uuid.uuid4()).encode()), ("type", b"Never")])
        p.flush(30)
        p.abort_transaction(30)
        self.aborted += 3

    def stop(self):
        self.stopping.set()
        self.join(60)
        if self.error:
            raise AssertionError(f"the load ended: {self.error!r}")


class Round:
    """One sink, its members, and what they meet."""
    KINDS = {  # shortest, longest seconds
        "kill": (0, 1), "term": (0, 0), "point": (0, 0.5), "freeze": (0.2, 9), "come_and_go": (0.5, 4), "other_limit": (0, 0),
        "from_zero": (0, 0), "trouble": (0.5, 3), "postgres": (0, 2), "broker": (0, 2)}

    def __init__(self, number, seed, pg=None, kafka=None, say=print, faults=FAULTS):
        self.number, self.pg, self.kafka, self.say = number, pg, kafka, say
        self.rnd = random.Random(f"{seed}:{number}")
        self.word = list(TARGETS)[number % len(TARGETS)]
        self.limits = [self.rnd.choice((7, 40, 300, 2000)) for _ in range(MEMBERS)]
        self.lanes, self.named = self.rnd.choice((1, 2, 4)), self.rnd.choice((True, False))
        self.plan = [self._draw() for _ in range(faults)]
        self.load_seed = self.rnd.randrange(1 << 30)
        self.deaths, self.target, self.load, self.members = 0, None, None, []

    def _draw(self):
        """Half of all are deaths at a point: that is where records could be lost."""
        name = self.rnd.choice([*sorted(self.KINDS), *["point"] * 8])
        least, most = self.KINDS[name]
        return name, self.rnd.uniform(least, most), self.rnd.randrange(1000), self.rnd.uniform(0.1, 1)

    def run(self):
        self.target = TARGETS[self.word](self.pg, self.kafka, self.number)
        self.load = Load(self.target, self.load_seed)
        self.members = [self._member(n).start() for n in range(MEMBERS)]
        self.load.start()
        for name, seconds, number, gap in self.plan:
            pause(gap)
            self.say(f"{name.replace('_', ' ')}{f' for {seconds:.1f} s' if seconds else ''}")
            getattr(self, f"_{name}")(number, lambda s=seconds: pause(s))
        self._end()

    def _member(self, n, limit=None):
        """With a name it takes its own partitions over at once; without one they wander when it leaves. A dead one is missed
        after six seconds. n: which; a guest's is none of ours."""
        return self.target.member({"lanes": self.lanes, "http": {"listen": "127.0.0.1:0"},
                                   "kafka": {"properties": ["session.timeout.ms=6000"]}, **({"member": f"m{n}"} if self.named and n < MEMBERS else {})},
                                  limit or self.limits[n])

    def _pick(self, number):
        m = self.members[number % len(self.members)]
        self._lives(m)
        return m

    @staticmethod
    def _lives(m):
        rc = m.proc.poll()
        if rc is not None:
            raise Violated(f"{m.name} ended by itself with {rc}:\n{servers.tail(m.log, 20)}")

    # -- faults

    def _kill(self, number, meanwhile):
        m = self._pick(number)
        m.kill9()
        self.deaths += 1
        meanwhile()
        m.start()

    def _term(self, number, _):
        m = self._pick(number)
        rc = m.terminate(60)
        if rc != 0:
            raise Violated(f"SIGTERM ended {m.name} with {rc}:\n{servers.tail(m.log, 20)}")
        m.start()

    def _point(self, number, meanwhile):
        m = self._pick(number)
        m.kill9()
        point = self.target.points[number % len(self.target.points)]
        self.target.before(point)
        point += f":{1 + number // (500 if 'split' in point else 200)}"
        m.start(fault=point)
        try:
            m.wait(12, patient=False)
            if m.proc.returncode != -signal.SIGKILL:
                self._lives(m)
            self.say(f"  died at {point}")
        except AssertionError:
            self.say(f"  ({point} was not passed in 12 s)")
            m.kill9()
        self.deaths += 1
        meanwhile()
        m.start()

    def _freeze(self, number, meanwhile):
        """Up to a while that makes others its heirs: it wakes up with what is theirs now."""
        m = self._pick(number)
        m.sigstop()
        meanwhile()
        m.sigcont()

    def _come_and_go(self, number, meanwhile):
        guest = self._member(MEMBERS, 1 + number).start()
        meanwhile()
        self._lives(guest)
        (guest.kill9 if number % 2 else guest.terminate)()

    def _other_limit(self, number, _):
        n = number % len(self.members)
        self._pick(number).kill9()
        self.deaths += 1
        self.members[n] = self._member(n, 1 + number).start()

    def _from_zero(self, *_):
        """As an operator who has the group begin anew."""
        for m in self.members:
            self._lives(m)
            m.kill9()
        self.deaths += len(self.members)
        self.target.i.db.query("UPDATE inbox.position SET next_offset = 0, epoch = epoch + 1")
        for m in self.members:
            m.start()

    def _trouble(self, number, meanwhile):
        self.target.trouble(number, meanwhile)

    def _postgres(self, _, meanwhile):
        self.pg.stop("immediate")
        meanwhile()
        self.pg.start(60)

    def _broker(self, _, meanwhile):
        with self.load.broker:
            self.kafka.kill()
            meanwhile()
            self.kafka.start()

    # -- the end

    def _end(self):
        self.load.stop()
        self.i.stands(120)
        for m in self.members:
            self._lives(m)
        more = self.target.check()
        answer = audit.reconcile(servers.bin_path("postrider"), self.members[0].file, *more)
        self.missing, self.twice = (sum(s[k] for s in answer["sources"]) for k in ("missing", "twice"))
        if answer["differences"] or any(s["waiting"] for s in answer["sources"]) or answer["records"] != self.load.count:
            raise Violated(f"of {self.load.count} records that were sent reconcile says: {json.dumps(answer)[:3000]}\n"
                           f"cuts that overlap: {self._overlaps()}\n{self.i.logs()}")
        for m in self.members:
            rc = m.terminate(60)
            if rc != 0:
                raise Violated(f"SIGTERM ended {m.name} with {rc} when all was done:\n{servers.tail(m.log, 20)}")

    def _overlaps(self):
        return self.i.db.query("SELECT a.partition, a.first_offset, a.next_offset, a.records, a.state, a.epoch, a.recorded_at::text, a.published_at::text"
                               " FROM sink.cut AS a WHERE EXISTS (SELECT FROM sink.cut AS b WHERE a.partition = b.partition AND a.first_offset <>"
                               " b.first_offset AND a.first_offset < b.next_offset AND b.first_offset < a.next_offset) ORDER BY 1, 2")

    @property
    def i(self):
        return self.target.i

    def close(self):
        if self.load:
            self.load.stopping.set()
        if self.target:
            self.target.close()


class Torture:
    def __init__(self, seed, seconds, rounds, only, per_round):
        self.seed, self.seconds, self.rounds, self.only, self.per_round = seed, seconds, rounds, only, per_round
        self.start = time.monotonic()
        self.done = self.deaths = self.records = 0

    def say(self, text):
        t = int(time.monotonic() - self.start)
        print(f"{t // 60:>4}:{t % 60:02d}  {text}", flush=True)

    def numbers(self):
        if self.only is not None:
            yield self.only
            return
        n = 0
        while n < self.rounds if self.rounds else n == 0 or time.monotonic() - self.start < self.seconds:
            yield n
            n += 1

    def run(self):
        print(f"torture: seed {self.seed}", flush=True)
        pg = servers.Postgres(config={"shared_buffers": "64MB", "checkpoint_timeout": "30s"}).start()
        kafka = servers.Kafka(quick=True).start().warm()
        for n in self.numbers():
            if not self.one(n, pg, kafka):
                return 1
        print(f"torture: ok, {self.done} rounds, {self.deaths} deaths, {self.records} records, 0 missing, 0 twice", flush=True)
        return 0

    def one(self, n, pg, kafka):
        r = Round(n, self.seed, pg, kafka, self.say, self.per_round)
        self.say(f"round {n}: {r.word}, {'named' if r.named else 'nameless'} members, lanes {r.lanes}, max_records {' and '.join(map(str, r.limits))}")
        try:
            r.run()
        except (Violated, AssertionError, audit.CannotTell, psycopg2.Error) as e:
            self.say(f"round {n}: VIOLATED: {e}")
            print(f"torture: violated; again: tests/support/sink_torture.py --seed {self.seed} --round {n} --faults {self.per_round}", flush=True)
            if os.environ.get("POSTRIDER_KEEP"):
                print(f"torture: the servers' data is in {servers.test_dir()}", flush=True)
            return False
        finally:
            r.close()
        self.done += 1
        self.deaths += r.deaths
        self.records += r.load.count
        self.say(f"round {n}: ok, {r.load.count} records ({r.load.aborted} aborted ones between them), {r.deaths} deaths, {r.missing} missing, {r.twice} twice")
        return True


def main():
    p = argparse.ArgumentParser(description="Members of a sink die and come back; prints its seed, each fault and a verdict.")
    p.add_argument("--seconds", type=float, default=600, help="begin no new round after that long")
    p.add_argument("--seed", type=int, help="the plan of a former run; without it a new one")
    p.add_argument("--rounds", type=int, help="so many rounds instead of a time (4: one of each target)")
    p.add_argument("--round", type=int, help="only this round of the seed's plan")
    p.add_argument("--faults", type=int, default=FAULTS, help="faults in a round")
    a = p.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if a.seed is None else a.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return Torture(seed, a.seconds, a.rounds, a.round, a.faults).run()
    except KeyboardInterrupt:
        print("torture: stopped", file=sys.stderr)
        return 130
    except (AssertionError, RuntimeError) as e:
        print(f"torture: {e}", file=sys.stderr)
        return 69
    finally:
        servers.stop_all()


if __name__ == "__main__":
    sys.exit(main())
