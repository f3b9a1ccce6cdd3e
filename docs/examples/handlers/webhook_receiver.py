#!/usr/bin/env python3
"""webhook_receiver.py -- a receiver for handler.kind = "http" that applies each event once.

    WEBHOOK_SECRET=whsec_... ./webhook_receiver.py --port 8080 --database seats.db

    handler: { kind = "http"; url = "http://127.0.0.1:8080/events"; secret = "env:WEBHOOK_SECRET"; undo = true; };

What any receiver has to do, in any language:
  1. verify the signature over the bytes as they came, before reading them as JSON
     (Standard Webhooks, https://www.standardwebhooks.com: libraries exist for many languages);
  2. record webhook-id in the same transaction as the effect, and do nothing when it is there
     already: a request may come again, after a crash of either side or a lost answer;
  3. answer 2xx only after the commit. 4xx: this event never will be taken (it becomes a
     dead letter). 503 or 429, with Retry-After if you like: not now.
Events of one key come one after another, events of different keys at the same time.

This one keeps seats in SQLite: {"seat": "A1", "user": "ann"} holds a seat, "op": "undo" frees it.
It needs Python 3.9 and nothing else. GET /seats shows what it holds.
"""
import argparse
import base64
import hashlib
import hmac
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 16 << 20
TOLERANCE_S = 300  # older or newer than this: somebody replays it, or a clock is wrong

SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS seat (name TEXT PRIMARY KEY, user TEXT NOT NULL, times INTEGER NOT NULL);
"""


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status, why):
        super().__init__(why)
        self.status, self.why = status, why


def secret_keys(text):
    """Keys of "whsec_<base64>", several separated by spaces while one is being replaced."""
    keys = []
    for word in text.split():
        if not word.startswith("whsec_"):
            raise ValueError("a secret begins with whsec_")
        coded = word[len("whsec_"):]
        keys.append(base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True))
    return keys


def verify(keys, headers, body, now):
    """The id of a request that one of the keys signed a moment ago; Refused for any other."""
    message_id = headers.get("webhook-id", "")
    stamp = headers.get("webhook-timestamp", "")
    if not message_id or not stamp.isascii() or not stamp.isdigit():
        raise Refused(401, "webhook-id or webhook-timestamp is missing")
    if abs(now - int(stamp[:12])) > TOLERANCE_S:
        raise Refused(401, "webhook-timestamp is too far from now")
    signed = f"{message_id}.{stamp}.".encode() + body
    wanted = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()) for key in keys]
    for given in headers.get("webhook-signature", "").split():
        version, _, signature = given.partition(",")
        if version == "v1" and any(hmac.compare_digest(signature.encode(), w) for w in wanted):
            return message_id
    raise Refused(401, "no signature fits")


class Seats:
    """The receiver's own database."""

    def __init__(self, path):
        self.lock = threading.Lock()  # SQLite has one writer anyway
        self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + SCHEMA)

    def apply(self, message_id, event):
        """One transaction: the id, and what follows from it. False: nothing was left to do."""
        payload = event.get("payload")
        if not isinstance(payload, dict) or not isinstance(payload.get("seat"), str):
            raise Refused(422, 'the payload is not {"seat": "...", "user": "..."}')
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                act = self.undo if event.get("op") == "undo" else self.do
                done = act(message_id, event, payload["seat"], str(payload.get("user")))
                self.db.execute("COMMIT")
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
        return done

    def do(self, message_id, _, seat, user):
        if not self.db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (message_id, time.time())).rowcount:
            return False
        self.db.execute("INSERT INTO seat VALUES (?, ?, 1) ON CONFLICT (name) DO UPDATE "
                        "SET user = excluded.user, times = times + 1", (seat, user))
        return True

    def undo(self, _, event, seat, user):
        """Takes back what the event of that id did, if it did anything, and forgets the id: an operator
        may send the dead letter again. (webhook-id of an undo is another one, for receivers that only
        remember ids.)"""
        if not self.db.execute("DELETE FROM seen WHERE id = ?", (event.get("id"),)).rowcount:
            return False
        self.db.execute("DELETE FROM seat WHERE name = ? AND user = ?", (seat, user))
        return True

    def all(self):
        with self.lock:
            rows = self.db.execute("SELECT name, user, times FROM seat ORDER BY name").fetchall()
        return [{"seat": name, "user": user, "times": times} for name, user, times in rows]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    timeout = 120
    keys = []
    seats = None

    def do_POST(self):
        try:
            body = self.read_body()
            message_id = verify(self.keys, self.headers, body, time.time())
            try:
                event = json.loads(body)
            except ValueError:
                raise Refused(400, "the body is not JSON") from None
            if not isinstance(event, dict):
                raise Refused(400, "the body is not a JSON object")
            self.answer(200, {"new": self.seats.apply(message_id, event)})
        except Refused as e:
            self.answer(e.status, {"error": e.why})
        except sqlite3.Error as e:
            self.answer(503, {"error": str(e)}, {"Retry-After": "1"})

    def do_GET(self):
        if self.path == "/seats":
            self.answer(200, self.seats.all())
        else:
            self.answer(404, {"error": "try /seats"})

    def read_body(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True  # what follows would be read as a request
            raise Refused(413, f"the body must have a length, of at most {MAX_BODY} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise Refused(400, "the body broke off")
        return body

    def answer(self, status, doc, headers=None):
        text = json.dumps(doc).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: a free one; the line on stdout names it")
    parser.add_argument("--database", default="seats.db")
    args = parser.parse_args()
    try:
        Handler.keys = secret_keys(os.environ.get("WEBHOOK_SECRET", ""))
    except ValueError as e:
        sys.exit(f"WEBHOOK_SECRET: {e}")
    if not Handler.keys:
        sys.exit("WEBHOOK_SECRET is not set: make one with  echo whsec_$(openssl rand -base64 32)")
    Handler.seats = Seats(args.database)
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"listening on http://{args.host}:{server.server_port}/events", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
