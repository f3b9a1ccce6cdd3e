#!/usr/bin/python3
"""tests/support/ledger_handler.py DIRECTORY -- the torture's exec handler: books each message in DIRECTORY/ledger.db, once
per id, for the effects lie outside the consumer's transaction and may be asked for again. Refuses nothing."""
import json
import os
import sqlite3
import sys

SCHEMA = """
PRAGMA journal_mode = wal;
CREATE TABLE IF NOT EXISTS effect (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, key TEXT);
CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, balance INTEGER);
"""
MOVE = "INSERT INTO account VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET balance = balance + excluded.balance"
ACCOUNTS = 60


def book(db, id, key):
    db.execute("BEGIN IMMEDIATE")
    if db.execute("INSERT OR IGNORE INTO effect (id, key) VALUES (?, ?)", (id, key)).rowcount:
        amount = int(id[30:32], 16)
        db.execute(MOVE, (key, -amount))
        db.execute(MOVE, (f"a{int(id[-4:], 16) % ACCOUNTS}", amount))
    db.execute("COMMIT")


def main(directory):
    db = sqlite3.connect(os.path.join(directory, "ledger.db"), timeout=60, isolation_level=None)
    db.executescript(SCHEMA)
    db.execute("PRAGMA synchronous = off")  # processes die here, the machine does not
    for line in sys.stdin:
        m = json.loads(line)
        book(db, m["id"], m["key"])
        print(json.dumps({"id": m["id"], "ok": True}), flush=True)


main(sys.argv[1])
