"""tests/e2e/test_cli_alerts.py -- `postrider alerts`: what there is to see to, the command that mends it, and who does."""
import json
import os

import pytest
import servers

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def alerts(db, cli):
    """alerts("list", ...) on a database with three: one new, one sent, one refused by the webhook."""
    with open(os.path.join(servers.ROOT, "consumers/push/schema.sql"), encoding="utf-8") as f:
        db.psql(f.read())
    for n in range(3):
        for _ in range(n + 1):
            db.query("SELECT push.alert(%s, %s, %s, %s)", (f"k{n}", f"cause {n}: it\x1b[31m broke", f"postrider dlq retry -c x.cfg --type T{n} --all",
                                                           json.dumps({"group": "g", "n": n})))
    db.query("SELECT push.alert_done(2, NULL, '1 hour', 'm'), push.alert_done(3, 'the webhook answered 500', '1 hour', 'm')")

    def run(verb, *args, **kw):
        return cli.run("alerts", verb, *args, "--conninfo", db.conninfo, **kw)
    run.db = db
    run.lines = lambda *args: [json.loads(line) for line in run(*args, "--json", check=True).stdout.splitlines()]
    return run


def test_list(alerts):
    told = alerts.lines("list")
    assert [(a["alert"], a["state"], a["times"], a["sent"]) for a in told] == [(3, "FAILED", 3, 0), (2, "SENT", 2, 1), (1, "PENDING", 1, 0)]
    assert told[0]["last_error"] == "the webhook answered 500" and told[0]["detail"] == {"group": "g", "n": 2}
    assert [a["alert"] for a in alerts.lines("list", "--state", "SENT")] == [2]
    text = alerts("list", check=True).stdout
    assert "cause 2" in text and "\x1b[31m" not in text
    assert "more" in alerts("list", "--limit", "1", check=True).stderr


def test_show(alerts):
    text = alerts("show", "3", check=True).stdout
    assert "alert 3  FAILED" in text and "postrider dlq retry -c x.cfg --type T2 --all" in text and "failed by m: the webhook answered 500" in text
    shown = alerts.lines("show", "2")[0]
    assert shown["command"].endswith("T1 --all") and [h["what"] for h in shown["history"]] == ["sent"]


def test_ack_and_resolve(alerts):
    """Who and when is kept; an acknowledged one is repeated no more, a resolved one leaves the list, and its cause is a new alert."""
    assert "alert 2 acknowledged" in alerts("ack", "2", "--by", "ann", "--note", "on it", check=True).stdout
    assert "already" in alerts("ack", "2", check=True).stdout
    assert alerts.db.one("SELECT next_at IS NULL FROM push.admin_alert WHERE alert_id = 2")
    history = alerts.lines("show", "2")[0]["history"]
    assert (history[0]["what"], history[0]["by"], history[0]["note"]) == ("ack", "ann", "on it")
    done = alerts.lines("resolve", "1", "2")
    assert done == [{"alert": 1, "what": "resolve", "changed": True}, {"alert": 2, "what": "resolve", "changed": True}]
    assert [a["alert"] for a in alerts.lines("list")] == [3]
    assert {a["alert"] for a in alerts.lines("list", "--all")} == {1, 2, 3}
    by = alerts.lines("show", "1")[0]["history"][0]["by"]
    assert by and "postgres" in by
    alerts.db.query("SELECT push.alert('k1', 'again', 'x', '{}')")
    assert alerts.lines("list")[0]["cause"] == "again"
    assert not alerts.lines("ack", "1")[0]["changed"]


def test_refusals(alerts, db, cli, empty_db):
    for verb in ("show", "ack", "resolve"):
        assert alerts(verb, "99").returncode == 4
        assert alerts(verb, "x").returncode == 2 and alerts(verb, "-1").returncode == 2 and alerts(verb).returncode == 2
    assert alerts("list", "--state", "NONE").returncode == 2
    other = cli.run("init", "--conninfo", empty_db.conninfo)
    assert other.returncode == 0
    none = cli.run("alerts", "list", "--conninfo", empty_db.conninfo)
    assert none.returncode == 4 and "kind push" in none.stderr
    assert db.one("SELECT count(*) FROM push.alert_log WHERE what IN ('ack', 'resolve')") == 0
