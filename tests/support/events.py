#!/usr/bin/python3
"""tests/support/events.py -- what each event looks like: reads every events.json, checks records against them, and
writes docs/reference/events.md.

    events.py print                the document
    events.py check                whether docs/reference/events.md is that, and the files are in order

An events.json is a list of {"type", "topic", "key", "when", "fields": {name: "type: meaning"}, "optional": [...]}; key
names the payload's member that the record's key is, or several of which it is one ("payment_id or user_id"). A type of
the same members as another of the same file says "same_as" instead of fields. Types: uuid, id (digits in a string),
string, integer, boolean, time (RFC 3339), object, any; a "[]" behind makes a list of it, a "?" at the end allows null.
Refuses members that nobody declared, so that the document cannot lag behind.
"""
import glob
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOCUMENT = os.path.join(ROOT, "docs", "reference", "events.md")
MEMBERS = {"type", "topic", "key", "when", "fields", "optional", "same_as"}

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
TYPES = {
    "uuid": lambda v: isinstance(v, str) and _UUID.fullmatch(v),
    "id": lambda v: isinstance(v, str) and re.fullmatch(r"[0-9]{1,19}", v),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "time": lambda v: isinstance(v, str) and _TIME.fullmatch(v),
    "object": lambda v: isinstance(v, dict),
    "any": lambda v: True,
}


def fits(kind, value):
    if kind.endswith("?"):
        return value is None or fits(kind[:-1], value)
    if kind.endswith("[]"):
        return isinstance(value, list) and all(fits(kind[:-2], v) for v in value)
    return bool(TYPES[kind](value))


def sources():
    return sorted(glob.glob(os.path.join(ROOT, "producers", "*", "events.json"))
                  + glob.glob(os.path.join(ROOT, "consumers", "*", "events.json")))


class Events:
    def __init__(self):
        self.wrong, self.rooms, self.of = [], {}, {}
        for path in sources():
            name = os.path.relpath(path, ROOT)
            with open(path, encoding="utf-8") as f:
                try:
                    entries = json.load(f)
                except ValueError as e:
                    self.wrong.append(f"{name}: {e}")
                    continue
            self._read(name, entries)

    def _read(self, name, entries):
        room = os.path.basename(os.path.dirname(name))
        mine = {}
        for e in entries:
            where = f"{name}: {e.get('type')}"
            unknown, missing = set(e) - MEMBERS, {"type", "topic", "key", "when"} - set(e)
            if unknown or missing:
                self.wrong.append(f"{where}: unknown {sorted(unknown)}, missing {sorted(missing)}")
                continue
            if "same_as" in e:
                if e["same_as"] not in mine:
                    self.wrong.append(f"{where}: same_as {e['same_as']}, which is not before it")
                    continue
                e = {**e, "fields": mine[e["same_as"]]["fields"], "optional": mine[e["same_as"]].get("optional", [])}
            self._check(where, e)
            if (e["topic"], e["type"]) in self.of:
                self.wrong.append(f"{where}: declared twice")
            mine[e["type"]] = self.of[e["topic"], e["type"]] = e
        self.rooms[room] = list(mine.values())

    def _check(self, where, e):
        for field, text in e["fields"].items():
            kind, _, meaning = text.partition(":")
            if kind.rstrip("?").removesuffix("[]").rstrip("?") not in TYPES or not meaning.strip():
                self.wrong.append(f"{where}: {field} is {text!r}, not \"type: meaning\"")
        for field in e.get("optional", []):
            if field not in e["fields"]:
                self.wrong.append(f"{where}: optional {field} is not a field")
        for field in e["key"].split(" or "):
            if field not in e["fields"]:
                self.wrong.append(f"{where}: the key {field} is not a field")

    def problems(self, topic, kind, key, payload):
        """What is wrong with a record, as texts. payload: parsed."""
        e = self.of.get((topic, kind))
        if e is None:
            return [f"{topic}: {kind} is declared nowhere"]
        where, out = f"{topic}: {kind}", []
        if not isinstance(payload, dict):
            return [f"{where}: the payload is no object"]
        for field, value in payload.items():
            if field not in e["fields"]:
                out.append(f"{where}: {field} is not declared")
            elif not fits(e["fields"][field].partition(":")[0], value):
                out.append(f"{where}: {field} is {json.dumps(value)[:80]}, not {e['fields'][field].partition(':')[0]}")
        for field in e["fields"]:
            if field not in payload and field not in e.get("optional", []):
                out.append(f"{where}: {field} is missing")
        if key not in [str(payload.get(f)) for f in e["key"].split(" or ")]:
            out.append(f"{where}: the key {key!r} is not its {e['key']}")
        return out

    # -- the document

    def document(self):
        out = ["# Events", "",
               "Every event that the services publish: topic, key, when, and the payload's members. All are JSON, in snake_case; ids",
               "are strings, money is an integer of the smallest unit, times are RFC 3339 in UTC. Generated from the",
               "`events.json` of each service by `tests/support/events.py print`; `tests/e2e/test_events.py` holds every record of a",
               "whole run against it. The record's headers `id`, `type` and the rest are those of the relay.", ""]
        for room in sorted(self.rooms):
            out += [f"## {room}", ""]
            for e in self.rooms[room]:
                out += self._section(e, self.rooms[room])
        return "\n".join(out).rstrip() + "\n"

    def _section(self, e, room):
        head = [f"### {e['type']}", "", f"`{e['topic']}`, key `{e['key'].replace(' or ', '` or `')}`: {e['when']}.", ""]
        twin = next(x for x in room if x["fields"] == e["fields"] and x.get("optional", []) == e.get("optional", []))
        if twin is not e:
            return head + [f"Members as of [{twin['type']}](#{twin['type'].lower()}).", ""]
        rows = ["| member | type | |", "|---|---|---|"]
        for field, text in e["fields"].items():
            kind, _, meaning = text.partition(":")
            may = ", or missing" if field in e.get("optional", []) else ""
            kind = kind.replace("?", " or null")
            rows.append(f"| `{field}` | {kind}{may} | {meaning.strip().replace('|', chr(92) + '|')} |")
        return head + rows + [""]


def main(argv):
    events = Events()
    for w in events.wrong:
        print(w)
    if argv == ["print"]:
        sys.stdout.write(events.document())
    elif argv == ["check"]:
        have = open(DOCUMENT, encoding="utf-8").read() if os.path.exists(DOCUMENT) else ""
        if have != events.document():
            print("docs/reference/events.md is not what the events.json say: tests/support/events.py print > docs/reference/events.md")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 1 if events.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
