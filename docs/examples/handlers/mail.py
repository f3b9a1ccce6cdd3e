#!/usr/bin/env python3
"""docs/examples/handlers/mail.py -- an exec handler: a letter for each message, written into a directory.

    handler: { kind = "exec"; command = ( "/usr/lib/mail/mail.py", "/var/spool/letters" ); };

One process per lane; a line of JSON in, a line out, flushed. stdout is for answers only: print() for people
goes to stderr. What is outside the database may be done and not yet written down when a machine dies, and
then the message comes again: the message's id is the file's name, so that a second letter cannot exist.
"""
import json
import os
import sys


class NotNow(Exception):
    """Worth another try."""


class Refused(Exception):
    """Never will be: a dead letter."""


def path_of(directory, message):
    return os.path.join(directory, message["id"].replace("/", "_") + ".txt")


def do(directory, message):
    payload = message.get("payload")
    if not isinstance(payload, dict) or "to" not in payload:
        raise Refused("there is nobody to write to")
    path = path_of(directory, message)
    if os.path.exists(path):
        return  # done before
    try:
        with open(path + ".part", "w", encoding="utf-8") as f:
            f.write("to: %s\n\n%s\n" % (payload["to"], payload.get("text", "")))
            f.flush()
            os.fsync(f.fileno())
        os.rename(path + ".part", path)  # a letter is there whole or not at all
    except OSError as e:
        raise NotNow(str(e)) from e


def undo(directory, message):
    """The consumer gave the message up: take back what may have been done. Must bear being called twice."""
    try:
        os.unlink(path_of(directory, message))
    except FileNotFoundError:
        pass


def answer(directory, message):
    try:
        (undo if message["op"] == "undo" else do)(directory, message)
    except NotNow as e:
        return {"id": message["id"], "error": {"code": "retry", "message": str(e), "retry_after": 1.5}}
    except Refused as e:
        return {"id": message["id"], "error": {"code": "reject", "message": str(e)}}
    return {"id": message["id"], "ok": True}


def main():
    directory = sys.argv[1]
    for line in sys.stdin:  # ends when the consumer closes it
        print(json.dumps(answer(directory, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
