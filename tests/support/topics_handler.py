#!/usr/bin/python3
"""tests/support/topics_handler.py DIRECTORY -- an exec handler without a database: each try of a message is a JSON
line of DIRECTORY/tries, each effect one of DIRECTORY/effects, and both say when. A file DIRECTORY/KEY says how it fails of
the key: "fail N CODE" up to its N-th attempt, "kill" the consumer, "hold PATH" while that file is there. Refuses
nothing else."""
import json
import os
import signal
import sys
import time


def append(path, what):
    f = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    os.write(f, (json.dumps(what) + "\n").encode())
    os.close(f)


def how(directory, key):
    try:
        with open(os.path.join(directory, key or "none"), encoding="ascii") as f:
            return f.read().split() or [""]
    except FileNotFoundError:
        return [""]


def main(directory):
    for line in sys.stdin:
        m = json.loads(line)
        seen = {k: m[k] for k in ("op", "id", "topic", "partition", "offset", "key", "time", "attempt")}
        seen.update(seq=(m.get("payload") or {}).get("seq"), at=time.time(), by=os.getppid())
        append(os.path.join(directory, "tries"), seen)
        word, *rest = how(directory, m["key"])
        if word == "kill":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        while word == "hold" and os.path.exists(rest[0]):
            time.sleep(0.005)
        if word == "fail" and m["attempt"] <= int(rest[0]) and m["op"] == "do":
            print(json.dumps({"id": m["id"], "error": {"code": rest[1], "message": "no\u00a0luck"}}), flush=True)
            continue
        append(os.path.join(directory, "effects"), seen)
        print(json.dumps({"id": m["id"], "ok": True}), flush=True)


main(sys.argv[1])
