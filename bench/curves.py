"""bench/curves.py -- how the cost grows with the work: sweeps of one quantity at a time,
drawn as SVG by hand. Refuses to smooth: a point is one run. Baseline of each curve is
its own first point (the least work); "flat" means within 10 % of it."""
import contextlib
import math
import os
import time
from xml.sax.saxutils import escape

import lab as L
import measures as M
from lab import Failed

HERE = os.path.dirname(os.path.abspath(__file__))
MODE = "exactly_once"
ROWS = 300000


# ---------------------------------------------------------------- sweeps: [(x, {series: y})]

def backlog(lab, opt):
    """Events/s and memory against the backlog; the start itself (a backlog of one row) taken off."""
    with lab.copy(lab.rows(1)) as db:
        start = lab.drain(db, MODE, 1)["wall"]
    top = 7 if opt.full else 6
    for n in [10 ** e for e in range(4, top + 1)]:
        with lab.copy(lab.rows(n)) as db:
            r = lab.drain(db, MODE, n)
        yield n, point(r, rate=n / max(r["wall"] - start, 0.001))


def payload(lab, opt):
    """Bytes/s and memory against the size of one payload."""
    for size in (100, 1000, 10000, 100000, 1000000):
        n = max(200, min(ROWS, 300000000 // size))
        with large(lab, n, size) as db:
            r = lab.drain(db, MODE, n)
        yield size, dict(point(r), **{"MB/s": r["steady_events_per_second"] * size / 1e6})


def topics(lab, opt):
    """Events/s and memory against the number of topics (one partition each)."""
    for n in (1, 10, 100, 1000):
        with lab.copy(lab.rows(ROWS, topics=n)) as db:
            r = drain_topics(lab, db, n)
        yield n, point(r)


def keys(lab, opt):
    """Events/s and memory against the number of keys (one key: one partition)."""
    for n in (1, 100, 10000, 1000000):
        with lab.copy(lab.rows(max(ROWS, n), keys=n)) as db:
            r = lab.drain(db, MODE, max(ROWS, n))
        yield n, point(r)


def open_transactions(lab, opt):
    """Events/s and memory against transactions that have published and not ended."""
    for n in (0, 10, 100, 500):
        with lab.copy(lab.rows(ROWS)) as db, contextlib.ExitStack() as stack:
            for _ in range(n):
                c = stack.enter_context(contextlib.closing(db.connect(autocommit=False)))
                c.cursor().execute("SELECT outbox.publish('bench', 'open', 'Open', '{}')")
            yield n, point(lab.drain(db, MODE, ROWS))


def partitions(lab, opt):
    """What an idle turn costs Postgres, against the ranges kept for retention."""
    for n in (0, 50, 200):
        db = lab.empty()
        retain(db, n)
        lab.count_statements(db)
        with lab.topic() as (prefix, _):
            relay = lab.relay(db, MODE, prefix).start()
            try:
                lab.watch(relay, n * 100, time.monotonic())
                time.sleep(2)
                r = M.quiet_window(lab, db, 5, relay)
                r["peak_rss_kb"] = relay.peak_rss_kb()
            finally:
                relay.stop()
        db.drop()
        if not r["turns"]:
            raise Failed("no turn seen")
        yield n, {"ms of Postgres a turn": 1000 * r["backend_cpu"] / r["turns"], "MB RSS": r["peak_rss_kb"] / 1024}


SWEEPS = {"backlog": (backlog, "rows waiting"), "payload": (payload, "bytes a payload"),
          "topics": (topics, "topics"), "keys": (keys, "keys"),
          "open_transactions": (open_transactions, "open transactions"),
          "partitions": (partitions, "ranges retained")}


def point(r, rate=None):
    return {"ev/s": rate or r["steady_events_per_second"], "MB RSS": r["peak_rss_kb"] / 1024}


# ---------------------------------------------------------------- helpers of single sweeps

@contextlib.contextmanager
def large(lab, n, size):
    """n rows whose payload does not compress to nothing."""
    db = lab.empty()
    db.psql(f"""
WITH pool AS MATERIALIZED (SELECT string_agg(md5(i::text), '') AS text FROM generate_series(1, {size // 32 + 1}) AS i)
INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload)
SELECT 'bench', 'key-' || (i % 10000), 'Large', jsonb_build_object('n', i, 'pad', left(pool.text, {max(1, size - 26)}))
FROM pool, generate_series(1, {n}) AS i;
VACUUM ANALYZE outbox.event; CHECKPOINT;""")
    try:
        yield db
    finally:
        db.drop()


def drain_topics(lab, db, n):
    from confluent_kafka.admin import NewTopic
    if n == 1:
        return lab.drain(db, MODE, ROWS)
    lab.number += 1
    prefix = f"many{lab.number}"
    names = [f"{prefix}.bench{i}" for i in range(n)]
    for f in lab.kafka.admin.create_topics([NewTopic(t, 1, 1) for t in names], request_timeout=120).values():
        f.result(120)
    try:
        relay = lab.relay(db, MODE, prefix, limits={"topics": n + 10})
        t0 = time.monotonic()
        relay.start()
        try:
            r = L.drained(lab.watch(relay, ROWS, t0), ROWS)
            r["peak_rss_kb"] = relay.peak_rss_kb()
        finally:
            relay.stop()
    finally:
        for f in lab.kafka.admin.delete_topics(names, request_timeout=120).values():
            f.result(120)
    return r


def retain(db, n):
    """n ranges with 100 rows each, as a long retention leaves them."""
    width = db.one("SELECT min(to_seq - from_seq) FROM outbox.partitions")
    for i in range(n):
        db.psql("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) SELECT 'bench', 'k' || i, 'T', '{}' "
                f"FROM generate_series(1, 100) AS i; SELECT setval('outbox.event_seq', {(i + 1) * width});"
                "SELECT outbox.make_partitions();")
    db.psql("VACUUM ANALYZE outbox.event;")


# ---------------------------------------------------------------- drawing

W, H, LEFT, RIGHT, TOP, GAP = 640, 190, 90, 20, 40, 50


def nice(v):
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(v) >= size:
            return f"{v / size:g}{unit}"
    return f"{v:.3g}"


def ticks(high):
    """A few round numbers from 0 to just above high."""
    step = 10 ** math.floor(math.log10(high / 4 or 1)) if high > 0 else 1
    step *= next(m for m in (1, 2, 2.5, 5, 10) if high / (step * m) <= 5)
    return [step * i for i in range(int(high / step) + 2)]


def panel(series, points, y0, x_of):
    values = [(x, y[series]) for x, y in points if series in y]
    marks = ticks(max(y for _, y in values))
    def y_of(v):
        return y0 + H - H * v / marks[-1]
    out = [f'<text x="{LEFT}" y="{y0 - 8}" class="s">{series}</text>']
    for m in marks:
        out.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y_of(m):.1f}" y2="{y_of(m):.1f}" class="g"/>'
                   f'<text x="{LEFT - 6}" y="{y_of(m) + 4:.1f}" text-anchor="end">{nice(m)}</text>')
    for x, _ in values:
        out.append(f'<text x="{x_of(x):.1f}" y="{y0 + H + 16}" text-anchor="middle">{nice(x)}</text>')
    path = " ".join(f"{x_of(x):.1f},{y_of(v):.1f}" for x, v in values)
    out.append(f'<polyline points="{path}" class="l"/>')
    for x, v in values:
        out.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(v):.1f}" r="3"><title>{nice(x)}: {nice(v)}</title></circle>')
    return out


def svg(title, x_name, points):
    """One panel per series; x is logarithmic, 0 stands left of 1."""
    names = list(dict.fromkeys(k for _, y in points for k in y))
    logs = [math.log10(x) if x > 0 else -0.5 for x, _ in points]
    low, high = min(logs), max(logs)
    def x_of(x):
        at = math.log10(x) if x > 0 else -0.5
        return LEFT + 20 + (W - RIGHT - LEFT - 40) * (at - low) / ((high - low) or 1)
    height = TOP + len(names) * (H + GAP)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {height}" width="{W}" height="{height}">',
           "<style>text{font:12px sans-serif;fill:#333}.t{font-size:14px;font-weight:bold}.s{font-weight:bold}"
           ".g{stroke:#ddd}.l{fill:none;stroke:#06c;stroke-width:2}circle{fill:#06c}</style>",
           '<rect width="100%" height="100%" fill="#fff"/>',
           f'<text x="{LEFT}" y="18" class="t">{escape(title)}</text>']
    for i, name in enumerate(names):
        out += panel(name, points, TOP + i * (H + GAP), x_of)
    out.append(f'<text x="{W - RIGHT}" y="{height - 6}" text-anchor="end">{x_name}</text></svg>')
    return "\n".join(out) + "\n"


def curve(name):
    """One sweep as a measure of its own: run, drawn, and its worst point compared."""
    sweep, x_name = SWEEPS[name]

    def take(lab, opt):
        points = []
        for x, y in sweep(lab, opt):
            points.append((x, y))
            lab.say(f"  {x:,} {x_name}: " + ", ".join(f"{v:,.1f} {k}" for k, v in y.items()))
        folder = os.path.join(HERE, "results")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{opt.name}-{name}.svg"), "w", encoding="utf-8") as f:
            f.write(svg((sweep.__doc__ or name).strip().rstrip("."), x_name, points))
        yield from ends(name, points)

    take.__doc__ = sweep.__doc__
    return take


CURVES = {f"curve_{name}": curve(name) for name in SWEEPS}

FLAT = {"ev/s": ("ratio", ">=", 0.9), "MB RSS": ("value", "<=", 64.0), "ms of Postgres a turn": ("value", "<=", 0.5)}


def ends(name, points):
    """The worst point of each series beside the first one."""
    first_x, first = points[0]
    for series, base in first.items():
        worst = min if series.endswith("/s") else max
        x, y = worst(((x, y[series]) for x, y in points[1:]), key=lambda p: p[1])
        must = FLAT.get(series)
        if name == "payload" and series == "ev/s":
            must = None
        yield M.Result("curves", f"{name}: {x:,}", series, y, f"at {first_x:,}", base, must,
                       {"points": points} if series == list(first)[0] else None)
