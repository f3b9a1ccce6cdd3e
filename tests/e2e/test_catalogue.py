"""tests/e2e/test_catalogue.py -- what sinks learn of payloads: places, kinds, people, drift; and that rules mask what leaves."""
import hashlib
import hmac
import json
import os
import uuid

import pytest
import servers
from inbox import inbox  # noqa: F401
from sink import Sink, content, final_files, withheld
from wait import wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def sink(inbox):  # noqa: F811
    def make(partitions=1, **files):
        return Sink(inbox(partitions=0), partitions, **files)
    return make


def put(s, payload, kind="Ordered", key="k"):
    s.i.put(key, payload if payload is None or isinstance(payload, bytes) else json.dumps(payload),
            [("id", str(uuid.uuid4())), ("type", kind), ("user", "jo")])


def catalogue(cli, s, *args):
    done = cli("catalogue", "--conninfo", s.i.db.conninfo, "--json", *args, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_path(rows):
    return {r["path"]: r for r in rows}


def counted(cli, s, n, *args):
    """Until the database has been told of n payloads: what is new it is told at once, how many there were every ten seconds."""
    wait_until(lambda: by_path(catalogue(cli, s, *args)).get("payload", {}).get("seen") == n, 60, "all of the records counted")


def test_learns(sink, cli):
    s = sink(partitions=2)
    for n in range(20):
        put(s, {"id": n, "user": {"email": f"u{n}@example.com", "first_name": "Jo"}, "items": [{"sku": "A-1", "price": 1.5}] * (n % 3),
                "card": "4111 1111 1111 1111", "note": None if n % 2 else "x"}, key=f"k{n}")
    put(s, None)
    put(s, b"not json")
    put(s, {"a": 1}, kind="Paid")
    s.member().start()
    s.check()
    counted(cli, s, 21, "-T", "Ordered")
    paths = by_path(catalogue(cli, s, "-T", "Ordered"))
    assert set(paths) == {"payload", "payload.id", "payload.user", "payload.user.email", "payload.user.first_name", "payload.items",
                          "payload.items[]", "payload.items[].sku", "payload.items[].price", "payload.card", "payload.note"}
    assert paths["payload"]["kinds"] == ["null", "object"]
    assert paths["payload.note"]["kinds"] == ["null", "string"]
    assert paths["payload.items[].price"]["kinds"] == ["number"] and paths["payload.items[].price"]["sample"] == "1.5"
    assert paths["payload.user.email"]["pii"] == ["email", "key"] and "@" in paths["payload.user.email"]["sample"]
    assert "example" not in paths["payload.user.email"]["sample"]
    assert paths["payload.card"]["pii"] == ["card", "key"] and paths["payload.card"]["sample"] == '"9999 9999 9999 9999"'
    assert paths["payload.user.first_name"]["pii"] == ["key"]
    assert {r["path"] for r in catalogue(cli, s, "-T", "Ordered", "--pii")} == {
        "payload.user.email", "payload.user.first_name", "payload.card"}
    assert set(by_path(catalogue(cli, s, "-T", "Paid"))) == {"payload", "payload.a"}
    assert catalogue(cli, s, "--drift") == []
    text = cli("catalogue", "--conninfo", s.i.db.conninfo, check=True).stdout
    assert "payload.items[].sku" in text and "email,key" in text


def test_drift(sink, cli):
    """A type of which a thousand payloads were seen gets a new place and another kind of value: told once, counted, and all goes on."""
    s = sink()
    for n in range(1100):
        put(s, {"n": n, "who": "x"})
    m = s.member()
    m.start()
    s.check()
    counted(cli, s, 1100)  # of more than one cut, too
    assert catalogue(cli, s, "--drift") == []
    for _ in range(2):
        put(s, {"n": "1", "who": "x", "new": {"deep": True}})
        s.check()
    rows = {(r["path"], r["kind"], r["what"]) for r in catalogue(cli, s, "--drift", "-t", s.i.topic)}
    assert rows == {("payload.n", "string", "kind"), ("payload.new", "object", "path"), ("payload.new.deep", "boolean", "path")}
    lines = [line for line in m.log_text().splitlines() if "payloads have changed" in line]
    assert len(lines) == 3 and any("path=payload.n kind=string" in line for line in lines), lines
    assert catalogue(cli, s)[1]["kinds"] == ["integer", "string"]


def test_rules(sink, tmp_path):
    """What leaves is what the rules let pass: in payload, key and headers; numbers keep their digits."""
    s = sink()
    key_file = tmp_path / "key"
    key_file.write_text("secret")
    os.chmod(tmp_path, 0o755)
    fields = [("payload.user.email", "hash"), ("payload.cards[].number", "redact"), ("payload.internal", "drop"),
              ("payload.total", "rename", "amount"), ("key", "hash"), ("headers.user", "drop")]
    s.i.put("jo@example.com", b'{"user":{"email":"jo@example.com"},"cards":[{"number":"4111","x":1},7],"internal":[1],'
            b'"total":12345678901234567890.10}', [("id", str(uuid.uuid4())), ("type", "T"), ("user", "jo")])
    put(s, b"not json")
    put(s, b'[{"user":[{"email":"jo@example.com"},"jo@example.com"]},{"cards":{"number":"4111"}}]')
    put(s, '"jo@example.com"')
    put(s, None)
    handler = {**s.handler(), "hash_key": f"file:{key_file}", "fields": [
        {"path": f[0], "action": f[1], **({"to": f[2]} if len(f) > 2 else {})} for f in fields]}
    c = s.i.consumer(handler).start()
    s.published()
    lines = [line for f in final_files(s.directory) for line in content(os.path.join(s.directory, f)).splitlines()]
    digest = hmac.new(b"secret", b"jo@example.com", hashlib.sha256).hexdigest()
    assert lines[0].endswith(b'"payload":{"user":{"email":"' + digest.encode() + b'"},"cards":[{"number":"[redacted]","x":1},null],'
                             b'"amount":12345678901234567890.10}}')
    first, *others, gone = map(json.loads, lines)
    assert first["key"] == digest and "user" not in first["headers"]
    # What has another form than the rules hides nothing less, and what they cannot read at all is no tombstone.
    assert [r.get("payload") for r in others] == [None, [{"user": [{"email": digest}, None]}, {"cards": None}], None]
    assert [r.get("payload_base64") for r in others] == ["", None, ""] and gone["payload"] is None and "payload_base64" not in gone
    assert withheld(c, "payload") == 2 and withheld(c, "value") == 3
    assert "left out of a record what handler.fields could not look into" in c.log_text() and b"jo@" not in b"".join(lines)
    samples = [r[0] for r in s.i.db.query("SELECT sample FROM sink.catalogue WHERE sample IS NOT NULL")]
    assert samples and not any("4111" in t or "jo@" in t for t in samples)


def test_names_of_people_are_told_nobody(sink, cli):
    """Objects by mail address, of which the rules let nothing out: the addresses stood as paths in the catalogue and in the log."""
    s = sink()
    for n in range(1100):
        put(s, {"id": n, "by": {"dropped": {f"ann{n}@example.com": {"phone": 1}}, "open": {f"jo{n}@example.com": {"phone": n}}}})
    c = s.i.member({**s.handler(), "fields": [{"path": "payload.by.dropped", "action": "drop"}]}).start()
    s.published()
    counted(cli, s, 1100)
    put(s, {"id": 0, "by": {"dropped": {"Ann Smith": 1}, "open": {"jo@example.com": {"more": 1}}}})
    s.published()
    places = {"payload", "payload.id", "payload.by", "payload.by.dropped", "payload.by.open", "payload.by.open.*",
              "payload.by.open.*.phone", "payload.by.open.*.more"}
    wait_until(lambda: set(by_path(catalogue(cli, s))) == places, 60, "the last place to be known")
    assert [r["path"] for r in catalogue(cli, s, "--drift")] == ["payload.by.open.*.more"]
    wait_until(lambda: "payloads have changed" in c.log_text(), 30, "the change to be told")
    assert not [x for x in ("@", "Ann") if x in c.log_text()]


def test_bad_rules_are_refused(sink):
    s = sink()
    c = s.i.consumer({**s.handler(), "fields": [{"path": "payload.a", "action": "drop"}, {"path": "payload.a[1]", "action": "drop"}]})
    done = servers.Cli("postrider-consumer")("-c", c.file, "--check")
    assert done.returncode == 78
    text = done.stderr
    assert "handler.fields[1].path" in text and "is not a path" in text


def test_no_catalogue(empty_db, cli):
    done = cli("catalogue", "--conninfo", empty_db.conninfo)
    assert done.returncode == 4 and "no catalogue" in done.stderr
