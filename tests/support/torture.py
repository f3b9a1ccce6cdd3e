#!/usr/bin/python3
"""tests/support/torture.py -- `make torture`: random faults under load until the time is over.

Rounds alternate between exactly_once and at_least_once. Each has a database, a topic, a relay
and five consumers of its own, which keep a ledger (ledger.py), and a plan of faults drawn from
the seed and the round's number alone: the same seed gives the same plan, whatever the machine
does meanwhile. All of them reach Postgres and Kafka through proxies, which fail too. After its
faults a round heals, lets relay and consumers recover by themselves, releases what was parked,
drains, has the independent checker count, and audits the ledger: its sums, each id once, the
order of each key. Test variant only (FAULT points).

Exit status: 0 all well, 1 something was violated (the line to repeat it is printed), 69 a
server of ours did not start. Refuses to hide a fault that did not take: it says so.
"""
import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import checker  # noqa: E402
import ledger  # noqa: E402
import load as loads  # noqa: E402
import psycopg2  # noqa: E402
import servers  # noqa: E402
from ledger import Violated  # noqa: E402
from proxy import Proxy  # noqa: E402
from wait import wait_until  # noqa: E402

KIND, TOPIC = "order", "torture.order"
FAULTS = 9  # in a round
POINTS = {
    "exactly_once": ("events_before_position", "position_before_commit", "committed_before_accounting",
                     "held_back_before_position", "range_dropped"),
    "at_least_once": ("produced_before_acknowledged", "acknowledged_before_position", "held_back_before_position",
                      "range_dropped"),
}
_never = threading.Event()


class Net:
    """The way of relay and consumers to the servers: a proxy before each."""

    def __init__(self, pg, kafka):
        self.pg = Proxy("raw", pg.port).start()
        self.kafka = Proxy("raw", kafka.proxied_port, kafka.proxy_port).start()
        self.brokers = kafka.proxied_bootstrap

    def conninfo(self, dbname):
        return self.pg.conninfo(dbname)

    def heal(self):
        for p in (self.pg, self.kafka):
            p.clear()
            p.refuse(False)


def pause(seconds):
    """How long a fault lasts: there is nothing to wait for but the time itself."""
    _never.wait(seconds)


class Round:
    """One outbox, its relay, its consumers, its load, and the faults they meet."""

    def __init__(self, number, seed, pg=None, kafka=None, net=None, say=print, faults=FAULTS):
        self.number, self.pg, self.kafka, self.net, self.say = number, pg, kafka, net, say
        self.ledger = ledger.Ledger(seed, number, say)
        self.rnd = random.Random(f"{seed}:{number}")
        self.delivery = ("exactly_once", "at_least_once")[number % 2]
        self.name = f"torture-{number}"
        self.config = {
            "kafka": {"timeout": self.rnd.choice(("2s", "5s", "10s"))},
            "limits": {"batch_events": self.rnd.choice((20, 300, 10000))},
            "retention": {"keep": "0s", "every": "200ms", "partition_events": self.rnd.choice((1000, 5000)), "ahead": 8},
        }
        self.plan = [self._draw() for _ in range(faults)]
        self.load_seed = self.rnd.randrange(1 << 30)
        self.relays = []
        self.db = self.load = self.result = None

    # -- the plan: everything random is drawn here, before anything happens

    KINDS = {  # name: (what it touches, shortest, longest seconds)
        "relay_kill": ("relay", 0, 1), "relay_term": ("relay", 0, 0), "relay_freeze": ("relay", 0.2, 8),
        "relay_point": ("relay", 0, 0), "relay_second": ("relay", 0.5, 2), "relay_frozen_and_replaced": ("relay", 1, 3),
        "backend_terminate": ("pg", 0, 0), "backend_kill": ("pg", 0, 0), "backend_freeze": ("pg", 0.5, 7),
        "postgres_immediate": ("pg", 0, 2), "postgres_kill": ("pg", 0, 1),
        "broker_kill": ("kafka", 0, 3), "broker_stop": ("kafka", 0, 1), "broker_freeze": ("kafka", 0.5, 12),
        "poison": ("load", 0, 0), "big_transaction": ("load", 0, 0), "late_commit": ("load", 0.5, 3),
        "late_prepared": ("load", 0.5, 3),
        "member_kill": ("member", 0, 1), "member_term": ("member", 0, 0), "member_freeze": ("member", 0.2, 14),
        "member_point": ("member", 0, 0), "member_frozen_and_replaced": ("member", 1, 3),
        "member_comes_and_goes": ("member", 0.5, 3), "subprocess_kill": ("member", 0, 0),
        "accounts_closed": ("member", 0.5, 3), "lanes_change": ("member", 0, 0),
        "net_cut": ("net", 0, 0), "net_reset": ("net", 0, 0), "net_hole": ("net", 0.5, 8),
        "net_refuse": ("net", 0.5, 4), "net_slow": ("net", 1, 4),
    }

    def _draw(self, without=None, nested=False):
        """(name, seconds, number, gap before it, a fault inside it or None)"""
        name = self.rnd.choice(sorted(n for n, f in self.KINDS.items() if f[0] != without))
        touches, least, most = self.KINDS[name]
        seconds, number, gap = self.rnd.uniform(least, most), self.rnd.randrange(1000), self.rnd.uniform(0.1, 1.5)
        inside = None
        if not nested and most >= 1 and self.rnd.random() < 0.35:
            inside = self._draw(touches, True)
        return name, seconds, number, gap, inside

    # -- start and end

    def start(self):
        self.db = self.pg.createdb(self.name.replace("-", "_"))
        servers.Cli().run("init", "--conninfo", self.db.conninfo, "--brokers", self.kafka.bootstrap, "--name", self.name,
                          check=True)
        self.topic = f"{TOPIC}.{self.number}"
        self.kafka.create_topic(self.topic, 3, {"max.message.bytes": "20000"})
        self.config["route"] = {"topic": f"torture.${{aggregatetype}}.{self.number}"}
        self._start_relay().wait_ready(30)
        self.ledger.start(self.pg, self.kafka, self.net, self.topic)
        self.load = loads.Load(self.db.conninfo, aggregates=60, kinds=(KIND,), clients=3, rate=120, async_commit=0.1,
                               seed=self.load_seed)
        self.load.start()

    def _start_relay(self, **fault):
        relay = servers.Relay(self.net.conninfo(self.db.name), self.net.brokers, name=self.name, delivery=self.delivery,
                              config=self.config)
        self.relays.append(relay.start(**fault))
        return relay

    @property
    def relay(self):
        return self.relays[-1]

    def run(self):
        self.start()
        for name, seconds, number, gap, inside in self.plan:
            pause(gap)
            self._strike(name, seconds, number, inside)
        self.heal()
        self.count()
        self.audit()

    def _strike(self, name, seconds, number, inside, indent=""):
        self.say(f"{indent}{name.replace('_', ' ')}{f' for {seconds:.1f} s' if seconds else ''}"
                 f"{': ' + self._point(number) if name == 'relay_point' else ''}")

        def meanwhile(share=1.0):
            if inside:
                pause(seconds * share / 2)
                self._strike(*inside[:3], None, indent + "  ")
            pause(seconds * share / (2 if inside else 1))
        whose = self.ledger if self.KINDS[name][0] == "member" else self
        getattr(whose, f"_{name}")(number, meanwhile)

    def _point(self, number):
        points = POINTS[self.delivery]
        return f"{points[number % len(points)]}:{1 + number // 100}"

    # -- faults; each undoes itself, so that none hides the next

    def _died_by_itself(self, relay):
        rc = relay.proc.poll()
        if rc is not None:
            raise Violated(f"the relay ended by itself with {rc}:\n{servers.tail(relay.log, 12)}")

    def _relay_kill(self, _, meanwhile):
        self._died_by_itself(self.relay)
        self.relay.kill9()
        meanwhile()
        self._start_relay()

    def _relay_term(self, _, meanwhile):
        self._died_by_itself(self.relay)
        rc = self.relay.terminate(40)
        if rc != 0:
            raise Violated(f"SIGTERM ended the relay with {rc}:\n{servers.tail(self.relay.log, 12)}")
        meanwhile()
        self._start_relay()

    def _relay_freeze(self, _, meanwhile):
        self._died_by_itself(self.relay)
        relay = self.relay
        relay.sigstop()
        meanwhile()
        relay.sigcont()

    def _relay_point(self, number, meanwhile):
        self._died_by_itself(self.relay)
        self.relay.kill9()
        relay = self._start_relay(fault=self._point(number))
        try:
            relay.wait(5, patient=False)
        except AssertionError:
            self.say("  (not passed in 5 s)")
            relay.kill9()
        if relay.proc.returncode != -signal.SIGKILL:
            raise Violated(f"the relay ended by itself with {relay.proc.returncode}:\n{servers.tail(relay.log, 12)}")
        meanwhile()
        self._start_relay()

    def _relay_second(self, _, meanwhile):
        """Two for a while; the elder dies and the younger takes over."""
        elder = self.relay
        self._start_relay()
        meanwhile()
        self._died_by_itself(elder)
        elder.kill9()

    def _relay_frozen_and_replaced(self, _, meanwhile):
        """The elder loses its lock while frozen, and wakes beside its successor: it must be fenced."""
        elder = self.relay
        self._died_by_itself(elder)
        elder.sigstop()
        self._sql(lambda: self.pg.kill_backend(self._backends("postrider%")))
        self._start_relay()
        meanwhile()
        elder.sigcont()
        pause(1)
        self._died_by_itself(elder)
        elder.kill9()

    def _backends(self, application):
        return f"datname = '{self.db.name}' AND application_name LIKE '{application}'"

    def _sql(self, do):
        """Postgres may be the fault of the moment: then this one does not take."""
        try:
            return do()
        except (psycopg2.Error, OSError) as e:
            self.say(f"  (did not take: {str(e).splitlines()[0]})")
            return None

    def _backend_terminate(self, number, _):
        self._sql(lambda: self.pg.kill_backend(self._backends(("postrider%", "load")[number % 2])))

    def _backend_kill(self, number, _):
        """kill -9 of one backend: Postgres ends all sessions and recovers."""
        pids = self._sql(lambda: self.pg.backends(self._backends("%"))) or []
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[number % len(pids)], signal.SIGKILL)

    def _backend_freeze(self, _, meanwhile):
        pids = self._sql(lambda: self.pg.stop_backend(self._backends("postrider%"))) or []
        meanwhile()
        self.pg.cont_backend(pids)

    def _postgres_immediate(self, _, meanwhile):
        self.pg.stop("immediate")
        meanwhile()
        self.pg.start(60)

    def _postgres_kill(self, _, meanwhile):
        self.pg.kill()
        meanwhile()
        self.pg.start(60)

    def _broker_kill(self, _, meanwhile):
        self.kafka.kill()
        meanwhile()
        self.kafka.start()

    def _broker_stop(self, _, meanwhile):
        self.kafka.stop(60)
        meanwhile()
        self.kafka.start()

    def _broker_freeze(self, _, meanwhile):
        self.kafka.sigstop()
        meanwhile()
        self.kafka.sigcont()

    def _proxies(self, number):
        return ((self.net.pg,), (self.net.kafka,), (self.net.pg, self.net.kafka))[number % 3]

    def _net_cut(self, number, _):
        for p in self._proxies(number):
            p.cut_all()

    def _net_reset(self, number, _):
        for p in self._proxies(number):
            p.reset_all()

    def _net_hole(self, number, meanwhile):
        """Nothing passes, and nobody says so."""
        for p in self._proxies(number):
            p.freeze()
        meanwhile()
        for p in self._proxies(number):
            p.thaw()

    def _net_refuse(self, number, meanwhile):
        for p in self._proxies(number):
            p.refuse()
            p.reset_all()
        meanwhile()
        for p in self._proxies(number):
            p.refuse(False)

    def _net_slow(self, number, meanwhile):
        for p in self._proxies(number):
            p.latency(20 + number % 200)
        meanwhile()
        for p in self._proxies(number):
            p.latency(0)

    def _write(self, cur, aggs, size, tag):
        cur.execute("SELECT truth.txn(%s, %s, 1, 'publish', %s, %s, false)", (KIND, aggs, tag, size))

    def _poison(self, number, _):
        """An event larger than its topic takes, of a key that others are busy with."""
        def do():
            with contextlib.closing(self.db.connect()) as c, c.cursor() as cur:
                self._write(cur, [f"a{number % 60}"], 60000, -1000 - number)
        self._sql(do)

    def _big_transaction(self, number, _):
        self._sql(lambda: loads.bulk(self.db.conninfo, 3000, keys=100 + number, kind=KIND, size=100))

    def _late_commit(self, number, meanwhile):
        """An early seq commits late."""
        def do():
            with contextlib.closing(self.db.connect(autocommit=False)) as c, c.cursor() as cur:
                self._write(cur, [f"late{number}"], 100, -5000 - number)
                meanwhile()
                c.commit()
        self._sql(do)

    def _late_prepared(self, number, meanwhile):
        """The same, prepared: it outlives a crash of the server."""
        name = f"late{self.number}_{number}"

        def prepare():
            with contextlib.closing(self.db.connect()) as c, c.cursor() as cur:
                cur.execute("BEGIN")
                self._write(cur, [f"prepared{number}"], 100, -9000 - number)
                cur.execute(f"PREPARE TRANSACTION '{name}'")
        self._sql(prepare)
        meanwhile()
        self._sql(lambda: self.db.query(f"COMMIT PREPARED '{name}'"))

    # -- the end

    def heal(self):
        """Everything is back; relay and consumers must find their way alone."""
        self.net.heal()
        for name, in self.pg.query("SELECT gid FROM pg_prepared_xacts WHERE database = %s", (self.db.name,)):
            self.db.query(f"COMMIT PREPARED '{name}'")
        for r in self.relays[:-1]:
            r.kill()
        self.recovered("after the faults")
        self.ledger.recovered("after the faults")
        self.load.stop(60)
        self.kafka.set_topic_config(self.topic, {"max.message.bytes": "1000000"})
        wait_until(self._nothing_parked, 90, "the parked events to be released", interval=0.2, interval_max=1)

    def recovered(self, when, states=("ok", "warn")):
        self._died_by_itself(self.relay)
        try:
            wait_until(lambda: self.relay.status()["state"] in states, 90, "the relay to recover", ignore=(OSError,))
        except AssertionError as e:
            self._died_by_itself(self.relay)
            raise Violated(f"{when}: {e}; it says {self.relay.get('/readyz')[1]}\n"
                           f"{servers.tail(self.relay.log, 12)}") from None

    def _nothing_parked(self):
        keys = self.db.query("SELECT DISTINCT topic, key FROM outbox.parked")
        for topic, key in keys:
            self.db.query("SELECT outbox.parked_request_key(%s, %s, 'retry')", (topic, key))
        return not keys

    def count(self):
        self.result = r = checker.check(self.db.conninfo, self.kafka.bootstrap, self.topic, self.delivery, settle=60,
                                        journal_sql=checker.JOURNAL.replace("SELECT event_id, topic,",
                                                                            f"SELECT event_id, '{self.topic}',"))
        if not r.ok:
            raise Violated(r.report() + f"\nlast words of the relay:\n{servers.tail(self.relay.log, 12)}")
        gone = self.load.lost_by_postgres()
        if gone:
            raise Violated(f"Postgres lost {len(gone)} acknowledged transactions: the journal proves nothing")
        self.recovered("after draining", ("ok",))
        wait_until(lambda: self.relay.status()["lag_seconds"] == 0, 30, "the lag to be 0")
        rc = self.relay.terminate(40)
        if rc != 0:
            raise Violated(f"SIGTERM ended the drained relay with {rc}:\n{servers.tail(self.relay.log, 12)}")

    def audit(self):
        self.ledger.drained()
        self.booked = self.ledger.audit(self.db.query("SELECT event_id::text, agg, aggseq FROM truth.journal"))
        self.ledger.end()

    def stop(self):
        with contextlib.suppress(AssertionError):
            if self.load:
                self.load.stop(60)
        for r in self.relays:
            r.kill()
        self.ledger.stop()

    def tidy(self):
        self.ledger.tidy()
        self.db.drop()
        self.kafka.delete_topic(self.topic)


class Torture:
    def __init__(self, seed, seconds, rounds, only, per_round):
        self.seed, self.seconds, self.rounds, self.only, self.per_round = seed, seconds, rounds, only, per_round
        self.start = time.monotonic()
        self.faults = self.events = self.duplicates = self.done = 0

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
        kafka = servers.Kafka(quick=True, proxy_port=servers.free_port()).start().warm()
        net = Net(pg, kafka)
        for n in self.numbers():
            if not self.one(n, pg, kafka, net):
                return 1
        print(f"torture: ok, {self.done} rounds, {self.faults} faults, {self.events} events, nothing lost, nothing "
              f"invented, order kept, {self.duplicates} duplicated in at_least_once, none in exactly_once; booked once each "
              f"by both groups, the sums are right", flush=True)
        return 0

    def one(self, n, pg, kafka, net):
        r = Round(n, self.seed, pg, kafka, net, self.say, self.per_round)
        self.say(f"round {n}: {r.delivery}, kafka.timeout {r.config['kafka']['timeout']}, batch_events "
                 f"{r.config['limits']['batch_events']}, partition_events {r.config['retention']['partition_events']}; consumers: lanes "
                 f"{r.ledger.config['lanes']}, batch_events {r.ledger.config['limits']['batch_events']}")
        try:
            r.run()
        except (Violated, AssertionError, psycopg2.Error) as e:
            self.say(f"round {n}: VIOLATED: {e}")
            print(f"torture: violated; again: tests/support/torture.py --seed {self.seed} --round {n} "
                  f"--faults {self.per_round}", flush=True)
            if os.environ.get("POSTRIDER_KEEP"):
                print(f"torture: the servers' data is in {servers.test_dir()}", flush=True)
            return False
        finally:
            r.stop()
        self.done += 1
        self.faults += sum(1 + bool(inside) for *_, inside in r.plan)
        self.events += r.result.journal
        self.duplicates += r.result.counts["DUP"]
        self.say(f"round {n}: ok, {r.result.journal} events, {r.result.records} records, {r.result.counts['DUP']} "
                 f"duplicated{' (allowed)' if r.result.counts['DUP'] else ''}, order kept; {r.booked} booked by each group, "
                 f"up to {r.ledger.parked} parked on the way")
        r.tidy()
        return True


def main():
    p = argparse.ArgumentParser(description="Random faults under load; prints its seed, each fault and a verdict.")
    p.add_argument("--seconds", type=float, default=600, help="begin no new round after that long")
    p.add_argument("--seed", type=int, help="the plan of a former run; without it a new one")
    p.add_argument("--rounds", type=int, help="so many rounds instead of a time (2: one of each mode)")
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
