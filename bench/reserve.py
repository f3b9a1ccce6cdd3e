"""bench/reserve.py -- requests for seats of the example: POST /reservations of the reservation service over HTTP, each user with
tokens that were never seen before, each seat free; its consumer, its relay and Kafka at work on the same cores, and without
them. Beside it, in turns: the skeleton answering without a database, the same call in SQL by pgbench, and the service that gives
each request a transaction of its own. Refuses to count an answer that is not 202, and a run in which an accepted request is not
in the table, or is there twice."""
import contextlib
import json
import os
import subprocess


import lab as L
from measures import Result, in_turns, median
from stack import Stack, shipped
from tokens import QUEUE, USER, Issuer

CONNECTIONS = 200
RATE = 1000
ASKED = 9000  # a run; one by one a third
WARM = 45000
SEATS = 300000  # the last ones are pgbench's
MINE = ("reservation", "reservation-consumer", "reservation-relay")
FILL = """
SET synchronous_commit = off;
INSERT INTO reservation.seat (seat_id, concert_id, schedule_id, label, price) SELECT i, 1, 1 + i / 1000, 'S-' || i, 1000 FROM generate_series(1, {seats}) AS i;
INSERT INTO reservation.user_copy SELECT {user}, 'ACTIVE', 1 FROM generate_series(1, {users}) AS i;
INSERT INTO reservation.token_copy SELECT {token}, {user}, 1, 'ACTIVE', now(), 1 FROM generate_series(1, {users}) AS i;
VACUUM ANALYZE reservation.seat, reservation.user_copy, reservation.token_copy;
"""
# The bare call, of random users and seats, each its own transaction.
CALL = """\\set u random(1, {seats})
\\set s random({first}, {seats})
SELECT reservation.request(('00000000-0000-7000-8000-' || lpad(:u::text, 12, '0'))::uuid, ('00000000-0000-7000-9000-' || lpad(:u::text, 12, '0'))::uuid, 1, 1 + :s / 1000, ARRAY[:s]);
"""


def user(i):
    return f"00000000-0000-7000-8000-{i:012d}"


def token(i):
    return f"00000000-0000-7000-9000-{i:012d}"


class World:
    """The service, its consumer and its relay on the bench's servers, as they are shipped; users come once."""

    def __init__(self, lab):
        L.program("postrider-reservation")
        self.lab, self.next = lab, 1
        self.users, self.queue = Issuer(*USER), Issuer(*QUEUE)
        self.stack = Stack(options={"reservation": [f"jwt.jwks={self.users.url}", f"queue.jwks={self.queue.url}"]},
                           without=set(shipped()) - set(MINE), variant="plain", pg=lab.pg, kafka=lab.kafka).start()
        self.db = self.stack.db("reservation")
        sql = "('00000000-0000-7000-%s-' || lpad(i::text, 12, '0'))::uuid"
        self.db.psql(FILL.format(seats=SEATS, users=SEATS, user=sql % 8000, token=sql % 9000))

    def close(self):
        self.stack.close()
        self.users.close()
        self.queue.close()

    @property
    def service(self):
        return self.stack["reservation"]

    def requests(self, n, path):
        """A file of n requests, each of another user for another seat."""
        with open(path, "w", encoding="ascii") as f:
            for i in range(self.next, self.next + n):
                body = {"schedule_id": str(1 + i // 1000), "seat_ids": [str(i)], "queue_token": self.queue.token(user(i), jti=token(i), concert_id="1")}
                f.write(f"POST\t/reservations\t{self.users.token(user(i))}\t{json.dumps(body)}\n")
        self.next += n

    def pids(self):
        """{who: pids} of all that spends CPU for us."""
        return {"service": [self.service.pid], "others": [p.pid for n, p in self.stack.process.items() if n != "reservation" and p.running()]}

    def ask(self, n, rate=0):
        path = os.path.join(L.servers.test_dir(), "requests")
        self.requests(n, path)
        before = self.db.one("SELECT count(*) FROM reservation.reservation")
        cpu = {k: sum(map(L.cpu_ticks, pids)) for k, pids in self.pids().items()}
        pg = L.tree_ticks(self.lab.pg.pid)
        r = self.lab.run_json([L.program("ask"), str(self.service.port), str(CONNECTIONS), str(rate), path], 180)
        if r["statuses"] != {"202": n}:
            raise L.Failed(f"answers: {r['statuses']}")
        if self.db.one("SELECT count(*) FROM reservation.reservation") - before != n:
            raise L.Failed("what was accepted is not what is there")
        tick = os.sysconf("SC_CLK_TCK")
        return dict(r, per_second=n / r["seconds"], postgres_us=(L.tree_ticks(self.lab.pg.pid) - pg) / tick * 1e6 / n,
                    **{f"{k}_us": (sum(map(L.cpu_ticks, pids)) - cpu[k]) * 1e6 / n for k, pids in self.pids().items()})

    def decided(self):
        """Waits until nothing that was asked for is left to the consumer."""
        L.wait_until(lambda: not self.db.one("SELECT count(*) FROM reservation.reservation WHERE status = 'REQUESTED'"), 300,
                     "all that was asked for to be decided", interval=0.2)

    def warm(self):
        for _ in range(WARM // ASKED):
            self.ask(ASKED)
            self.decided()

    def echo(self, n, rate=0):
        """The skeleton alone: an answer without a token, a body or a database."""
        path = os.path.join(L.servers.test_dir(), "echo")
        with open(path, "w", encoding="ascii") as f:
            f.write("GET\t/healthz\t\t\n" * n)
        r = self.lab.run_json([L.program("ask"), str(self.service.port), str(CONNECTIONS), str(rate), path], 60)
        return dict(r, per_second=n / r["seconds"])

    def bare(self, n=2000, clients=8):
        """The call by pgbench, each its own transaction."""
        path = os.path.join(L.servers.test_dir(), "call.sql")
        with open(path, "w", encoding="ascii") as f:
            f.write(CALL.format(seats=SEATS, first=SEATS - 20000))
        pg = L.tree_ticks(self.lab.pg.pid)
        done = subprocess.run([os.path.join(L.servers.pg_bindir(), "pgbench"), "-n", "-c", str(clients), "-t", str(n // clients), "-f", path,
                               self.db.conninfo], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise L.Failed(done.stderr[:300])
        rate = next(float(x.split("=")[1].split()[0]) for x in done.stdout.splitlines() if x.startswith("tps ="))
        return {"per_second": rate, "postgres_us": (L.tree_ticks(self.lab.pg.pid) - pg) / os.sysconf("SC_CLK_TCK") * 1e6 / n}


def pick(runs, key):
    return median([r[key] for r in runs])


def reserve(lab, opt):
    """Requests for seats over HTTP: how many a second, what each costs, and how long one takes at 1,000 a second."""
    world = World(lab)
    with contextlib.closing(world):
        world.stack.stop("reservation-consumer", "reservation-relay")
        world.ask(500)
        ours, echo = in_turns(opt.rounds, lambda: world.ask(ASKED), lambda: world.echo(5 * ASKED))
        bare = [world.bare() for _ in range(opt.rounds)]
        world.stack.set("reservation", "batch.most=1")
        single = [world.ask(ASKED // 3) for _ in range(opt.rounds)]
        world.stack.set("reservation")
        yield Result("reserve", f"requests accepted, {CONNECTIONS} connections", "1/s", pick(ours, "per_second"), "GET /healthz", pick(echo, "per_second"),
                     None, {"rounds": ours, "echo": echo})
        yield Result("reserve", "the same, beside the call in SQL", "1/s", pick(ours, "per_second"), "pgbench, 8 clients", pick(bare, "per_second"),
                     None, {"bare": bare})
        yield Result("reserve", "the same, beside one by one", "1/s", pick(ours, "per_second"), "batch.most = 1", pick(single, "per_second"),
                     None, {"single": single})
        for key, who in (("service_us", "the service"), ("postgres_us", "Postgres")):
            yield Result("reserve", f"CPU of {who} for a request", "us", pick(ours, key), "batch.most = 1", pick(single, key))
        world.stack.restart("reservation-consumer", "reservation-relay")
        world.decided()
        lab.settle("reserve", world.warm)
        full, echo = in_turns(opt.rounds, lambda: world.ask(ASKED), lambda: world.echo(5 * ASKED))
        yield Result("reserve", "accepted, its consumer, relay and Kafka at work", "1/s", pick(full, "per_second"), "GET /healthz", pick(echo, "per_second"),
                     ("value", ">=", 3000), {"rounds": full, "echo": echo})
        world.decided()  # of the burst: a thousand a second is all that there is to do
        paced, echo = in_turns(opt.rounds, lambda: world.ask(5 * RATE, RATE), lambda: world.echo(5 * RATE, RATE))
        yield Result("reserve", f"p99 at {RATE:,}/s, the same at work", "ms", pick(paced, "p99_ms"), "GET /healthz", pick(echo, "p99_ms"),
                     ("value", "<=", 50.0), {"rounds": paced, "echo": echo})
        yield Result("reserve", f"p50 at {RATE:,}/s", "ms", pick(paced, "p50_ms"), "GET /healthz", pick(echo, "p50_ms"))
        world.decided()
        if world.db.one("SELECT count(*) FROM reservation.reservation WHERE seat_id <= %s AND status <> 'HELD'", (SEATS - 20000,)):
            raise L.Failed("a seat that only one asked for is not held")


MEASURES = {"reserve": reserve}
