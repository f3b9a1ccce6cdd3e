#!/usr/bin/python3
"""tests/fault/effect_handler.py DIRECTORY -- an exec handler for the fault tests: appends "id key seq" of each message
to DIRECTORY/effects. A file DIRECTORY/KEY says how it fails of the key: "die", "hang", or an error code; "gate": it says that it is at it by a file
DIRECTORY/at.KEY and goes on once there is a file DIRECTORY/gate. Refuses nothing else."""
import json
import os
import sys
import time


def main(directory):
    out = os.open(os.path.join(directory, "effects"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for line in sys.stdin:
        m = json.loads(line)
        try:
            with open(os.path.join(directory, m["key"]), encoding="ascii") as f:
                how = f.read()
        except FileNotFoundError:
            how = ""
        if how == "die":
            os._exit(3)
        if how == "hang":
            time.sleep(600)
        if how == "gate":
            with open(os.path.join(directory, "at." + m["key"]), "w", encoding="ascii"):
                pass
            while not os.path.exists(os.path.join(directory, "gate")):
                time.sleep(0.01)
            how = ""
        if how:
            print(json.dumps({"id": m["id"], "error": {"code": how, "message": "poison"}}), flush=True)
            continue
        os.write(out, f"{m['id']} {m['key']} {m['payload']['seq']}\n".encode())
        print(json.dumps({"id": m["id"], "ok": True}), flush=True)


main(sys.argv[1])
