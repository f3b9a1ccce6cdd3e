#!/usr/bin/python3
"""bench/run.py -- `make bench`: starts a private Postgres and Kafka, takes the measures,
prints a table of ratios and writes bench/results/<name>-<time>.json. Refuses to touch a
server it did not start. Exit status 1 when a measure could not be taken, or, with
STRICT=1, when a target is missed.

Environment: MEASURES=drain,consume,curve_payload (default: all)  ROWS=1000000  ROUNDS=3  DURATION=15
RIVALS=1 (Debezium, Connect, and other listeners, beside us)  FULL=1 (10 M rows, curves)  STRICT=1  NAME=bench"""
import datetime
import json
import os
import platform
import subprocess
import sys
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import consumers as C  # noqa: E402
import explain as E  # noqa: E402
import flash as F  # noqa: E402
import lab as L  # noqa: E402
import measures as M  # noqa: E402
import page as W  # noqa: E402
import platform_away as P  # noqa: E402
import queue_room as Q  # noqa: E402
import reserve as R  # noqa: E402
import sagas as S  # noqa: E402
import sinks as K  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


QUIET = 0.05  # above this share of the CPU used by strangers, numbers are not worth keeping


class Options:
    def __init__(self, env):
        self.rows = int(env.get("ROWS") or 1000000)
        self.rounds = int(env.get("ROUNDS") or 3)
        self.seconds = float(env.get("DURATION") or 15)
        self.full = env.get("FULL") not in (None, "", "0")
        self.rivals = env.get("RIVALS") not in (None, "", "0")
        self.strict = env.get("STRICT") not in (None, "", "0")
        self.stall, self.idle, self.insert, self.bulk = 8.0, 10.0, 4, 200000
        self.name = env.get("NAME") or "bench"
        self.only = [m for m in (env.get("MEASURES") or "").split(",") if m]


def number(v):
    if v is None:
        return "-"
    if v == int(v) and abs(v) < 1000:
        return str(int(v))
    return f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.1f}" if abs(v) >= 10 else f"{v:.3f}"


def line(r):
    must = ""
    if r.must:
        must = f"{'ratio ' if r.must[0] == 'ratio' else ''}{r.must[1]} {number(r.must[2])}"
    ratio = "-" if r.ratio is None else f"{r.ratio:.2f}" if r.ratio >= 0.01 else f"{r.ratio:.4f}"
    verdict = {None: "", True: "ok", False: "MISSED"}[r.reached]
    return (f"{r.what:<52} {number(r.value):>10} {r.unit:<7} {ratio:>7} x {number(r.base):>9} "
            f"{r.baseline:<24} {must:<14} {verdict}")


def chosen(opt):
    known = {}
    for m in (M, C, S, Q, R, E, F, K, P, W):
        known.update(m.MEASURES)
    if opt.full or "flat" in opt.only:
        known.update(M.FULL)
    if opt.rivals or "rivals" in opt.only:
        import rivals
        known["rivals"] = rivals.rivals
    if opt.rivals or "consume_rivals" in opt.only:
        known.update(C.RIVALS)
    if opt.rivals or "saga_rival" in opt.only:
        known.update(S.RIVALS)
    if opt.rivals or "sink_rivals" in opt.only:
        known.update(K.RIVALS)
    if opt.full or any(m.startswith("curve_") for m in opt.only):
        import curves
        known.update(curves.CURVES)
    for m in opt.only:
        if m not in known:
            sys.exit(f"bench: no measure {m}; there are: {', '.join(known)}")
    return {m: f for m, f in known.items() if not opt.only or m in opt.only}


def machine():
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), "")
    return {"cpus": os.cpu_count(), "cpu": model, "kernel": platform.release(),
            "loadavg_at_start": os.getloadavg()[0]}


def commit():
    done = subprocess.run(["git", "-C", L.ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip()


def write(opt, results, failures, about):
    folder = os.path.join(HERE, "results")
    os.makedirs(folder, exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    path = os.path.join(folder, f"{opt.name}-{now:%Y%m%dT%H%M%SZ}.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"time": now.isoformat(timespec="seconds"), "commit": commit(), "machine": about,
                   "rows": opt.rows, "rounds": opt.rounds, "failures": failures,
                   "results": [r.json() for r in results]}, f, indent=1)
        f.write("\n")
    return path


def main():
    opt = Options(os.environ)
    todo = chosen(opt)
    about = machine()
    results, failures = [], {}
    # Only Debezium needs the logical log; the others do without.
    lab = L.Lab(say=lambda text: print(text, file=sys.stderr, flush=True),
                wal_level="logical" if "rivals" in todo else "replica")
    about["postgres"] = lab.pg.query("SHOW server_version")[0][0]
    about["kafka"] = L.servers.KAFKA_VERSION
    print(f"value, ratio to the baseline of the same run, baseline; medians of {opt.rounds} rounds in turns\n")
    for name, take in todo.items():
        print(f"{name}: {(take.__doc__ or '').strip().splitlines()[0]}", flush=True)
        others = L.Others()
        try:
            for r in take(lab, opt):
                results.append(r)
                print("  " + line(r), flush=True)
        except (L.Failed, AssertionError, RuntimeError, OSError, subprocess.SubprocessError) as e:
            failures[name] = str(e)
            print(f"  FAILED: {e}", flush=True)
            if os.environ.get("TRACE"):
                traceback.print_exc()
        about.setdefault("cpu_share_of_others", {})[name] = share = round(others.share(), 3)
        if share > QUIET:
            print(f"  NOT QUIET: programs that are not ours used {share:.0%} of the CPU meanwhile", flush=True)
    lab.close()
    print(f"\nwrote {os.path.relpath(write(opt, results, failures, about))}")
    missed = [r.what for r in results if r.reached is False]
    if missed:
        print(f"{len(missed)} of {sum(r.must is not None for r in results)} targets missed")
    return 1 if failures or (opt.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
