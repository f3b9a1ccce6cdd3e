"""bench/queue_room.py -- the waiting room of the example: status checks over HTTP with facts on, beside Redis' own ranks, and
100,000 waiting users who have their turn 1,000 at a time. Refuses to count an answer that is not 200, or a turn that
comes twice, too early or not at all."""
import contextlib
import hashlib
import os
import random
import subprocess
import time

import lab as L
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measures import Result, in_turns, median
from tokens import QUEUE, b64
from waiting import CONCERT, Room

WAITING = 100000
AT_ONCE = 1000
CLIENTS = 50
FILL = """
SET synchronous_commit = off;
INSERT INTO queue.queue_token (concert_id, number, user_id, active_at, expire_at, good_until, kid)
SELECT {concert}, n, gen_random_uuid(), {at}, now() + interval '2 hours', now() + interval '2 hours', 'k' FROM generate_series(1, {n}) AS n;
INSERT INTO queue.queue_counter VALUES ({concert}) ON CONFLICT DO NOTHING;
ANALYZE queue.queue_token;
"""


@contextlib.contextmanager
def filled(lab, at, **config):
    """A service whose Redis was built from WAITING rows."""
    L.program("postrider-queue")
    lab.number += 1
    db = lab.pg.createdb(f"queue{lab.number}")
    r = L.servers.Redis(config={"slowlog-max-len": 100000}).start()
    room = Room(db, r, "plain")
    try:
        room.service(admission={"users": AT_ONCE, "every": "1h"}).terminate()
        room.services.clear()
        db.psql(FILL.format(concert=CONCERT, n=WAITING, at=at))
        r.flush()
        r.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
        room.service(**config)
        yield room
    finally:
        room.close()
        r.kill()
        db.drop()


def requests(room, path):
    """A check of each token, in no order."""
    kid, private = room.db.query("SELECT kid, private_key FROM service.jwt_key")[0]
    key, now = Ed25519PrivateKey.from_private_bytes(bytes(private)), int(time.time())
    head, lines = b64({"alg": "EdDSA", "typ": "JWT", "kid": kid}), []
    for token, user, number in room.db.query("SELECT token_id::text, user_id::text, number FROM queue.queue_token"):
        text = f"{head}." + b64({"iss": QUEUE[0], "aud": QUEUE[1], "sub": user, "jti": token, "concert_id": CONCERT, "number": number,
                                 "active_at": "2030-01-01T00:00:00.000000Z", "active_us": now * 1000000, "iat": now, "exp": now + 7200})
        lines.append(f"GET\t/queue/status\t{text}.{b64(key.sign(text.encode()))}\t\n")
    random.Random(1).shuffle(lines)
    with open(path, "w", encoding="ascii") as f:
        f.writelines(lines)


def checks(lab, room, path):
    s = room.services[0]
    before, cpu = s.metrics(), L.cpu_ticks(s.pid)
    r = lab.run_json([L.program("ask"), str(s.port), str(CLIENTS), "0", path], 120)
    if r["statuses"] != {"200": WAITING}:
        raise L.Failed(f"answers: {r['statuses']}")
    after = s.metrics()
    facts = {k: after[f"postrider_queue_facts_{k}_total"] - before[f"postrider_queue_facts_{k}_total"] for k in ("published", "dropped")}
    return dict(r, **facts, per_second=WAITING / r["seconds"], cpu_us=(L.cpu_ticks(s.pid) - cpu) * 1e6 / WAITING)


def ranks(room):
    done = subprocess.run(["redis-benchmark", "-p", str(room.redis.port), "-c", str(CLIENTS), "-n", str(2 * WAITING), "-r", str(WAITING),
                           "--csv", "ZRANK", f"queue:{CONCERT}:waiting", "__rand_int__"], capture_output=True, text=True, timeout=120, check=True)
    return {"per_second": float(done.stdout.splitlines()[-1].split('","')[1].strip('"'))}


def queue_status(lab, opt):
    """Status checks of 100,000 who wait, over HTTP, from 50 connections, each published as a fact."""
    path = os.path.join(L.servers.test_dir(), "checks")
    with filled(lab, "now() + interval '1 hour'", admission={"users": AT_ONCE, "every": "1h"}, http={"threads": os.cpu_count()}) as room:
        requests(room, path)
        room.redis.call("CONFIG", "SET", "slowlog-log-slower-than", "-1")
        first = checks(lab, room, path)  # each token is seen for the first time: its signature is verified
        ours, theirs = in_turns(opt.rounds, lambda: checks(lab, room, path), lambda: ranks(room))
    rate = median([r["per_second"] for r in ours])
    yield Result("queue", f"status checks over HTTP, {CLIENTS} connections, facts on", "1/s", rate, f"ZRANK from {CLIENTS} clients",
                 median([r["per_second"] for r in theirs]), ("value", ">=", 20000), {"rounds": ours, "ranks": theirs})
    yield Result("queue", "the same, CPU of the service", "us", median([r["cpu_us"] for r in ours]), "a token seen the first time",
                 first["cpu_us"])
    yield Result("queue", "the same, p99", "ms", median([r["p99_ms"] for r in ours]), "p50", median([r["p50_ms"] for r in ours]))
    yield Result("queue", "facts published of 100 checks", "%", median([100 * r["published"] / WAITING for r in ours]), "dropped",
                 median([100 * r["dropped"] / WAITING for r in ours]))


def script_ms(room, name):
    with open(os.path.join(L.ROOT, "producers", "queue", f"{name}.lua"), "rb") as f:
        sha = hashlib.sha1(f.read()).hexdigest()
    return [e[2] / 1000 for e in room.redis.call("SLOWLOG", "GET", "-1", timeout=60) if e[3][:2] == ["EVALSHA", sha]]


def run_delay(pid):
    """Seconds that a process was ready to run and another one ran; Redis works on one thread."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
        return int(f.read().split()[1]) / 1e9


def paced_pops(room):
    """The same number taken off a sorted set by one command, at the pace of the turns: milliseconds of each. Its worst is what
    this machine adds to a command of Redis that needs a third of a millisecond."""
    room.redis.call("DEL", "bench")
    room.redis.pipeline([("ZADD", "bench", i, f"{i:012d}") for i in range(WAITING)])
    room.redis.call("SLOWLOG", "RESET")
    for _ in range(WAITING // AT_ONCE):
        room.redis.call("ZPOPMIN", "bench", AT_ONCE)
        time.sleep(0.05)
    return [e[2] / 1000 for e in room.redis.call("SLOWLOG", "GET", "-1") if e[3][0] == "ZPOPMIN"]


def queue_turns(lab, opt):
    """100,000 who wait are let in, 1,000 every 100 ms: none twice, too early or not at all, and what it costs Redis."""
    with filled(lab, "now()", admission={"users": AT_ONCE, "every": "100ms"}) as room:
        began, waited = time.monotonic(), run_delay(room.redis.pid)
        L.wait_until(lambda: room.db.one("SELECT count(*) FROM queue.queue_token WHERE state = 'WAITING'") == 0, 120, "all turns", interval=0.1)
        took = time.monotonic() - began
        if room.numbers(room.activated()) != list(range(1, WAITING + 1)):
            raise L.Failed("the turns are not those of 1 .. 100,000, each once, in their order")
        if room.db.one("SELECT count(*) FROM queue.queue_token WHERE activated_at < active_at"):
            raise L.Failed("somebody was let in too early")
        admit, settle = ([ms for ms in script_ms(room, name)] for name in ("admit", "settle"))
        busy = sorted(admit)[-len(settle):]  # the others found that it was nobody's turn
        waited = run_delay(room.redis.pid) - waited
        pops = paced_pops(room)
    yield Result("queue", f"{AT_ONCE:,} let in: time of Redis, the worst of {len(settle)}", "ms", max(busy) + max(settle),
                 f"ZPOPMIN, the worst of {len(pops)}", max(pops), ("value", "<=", 5.0),
                 {"admit": median(busy), "settle": median(settle), "batches": len(settle), "admit_ms": sorted(busy)[-10:],
                  "settle_ms": sorted(settle)[-10:], "pops_ms": sorted(pops)[-10:], "redis_waited_for_a_cpu_s": waited})
    yield Result("queue", f"{AT_ONCE:,} let in: time of Redis, median", "ms", median(busy) + median(settle), f"ZPOPMIN of {AT_ONCE:,}, median",
                 median(pops))
    yield Result("queue", f"{WAITING:,} let in, {AT_ONCE:,} every 100 ms", "s", took, "as planned", WAITING / AT_ONCE * 0.1)


def queue(lab, opt):
    """The waiting room: status checks, then turns."""
    yield from queue_status(lab, opt)
    yield from queue_turns(lab, opt)


MEASURES = {"queue": queue}
