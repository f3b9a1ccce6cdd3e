"""tests/e2e/test_hang.py -- a C handler that does not come back: a lane's thread cannot be ended, so the consumer says which record
it is at and since when; and, where the config says so, the watchdog starts the process anew until the record is held back."""
import json
import re

import pytest
from inbox import c_handler, inbox  # noqa: F401
from test_notify import Manager
from wait import wait_until

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def gate(tmp_path):
    """The handler stands still as long as it is there."""
    path = tmp_path / "gate"
    path.touch()
    return path


def hung(i, c):
    return c.metric(f'postrider_trouble_seconds{{group="{i.group}",what="hung"}}')


@pytest.mark.asan
@pytest.mark.tsan
def test_told(inbox, gate):  # noqa: F811
    """State, sentence, metric, log and status name the record; the process is alive, and who waits is not killed. When the handler
    comes back all is well, and each effect is there once: the session that stood idle had been ended by the server."""
    i = inbox(partitions=1)
    i.poison("k1", "wait")
    i.event("k1")
    i.flush()
    c = i.consumer(c_handler(str(gate), timeout="1s")).start()
    answer = i.wait_state(c, "error", timeout=60)
    told = re.fullmatch(r'the handler has not come back for (\d+) s: record 0 of partition 0 of "(.*)"', answer["sentence"])
    assert told and told.group(2) == i.topic and int(told.group(1)) >= 1, answer
    assert f"gdb -p {c.pid}" in answer["hint"] and i.topic in answer["checks"]["hung"]
    problem, = (p for p in json.loads(c.get("/status.json")[1])["problems"] if p["what"] == "hung")
    assert problem["severity"] == "error" and problem["seconds"] >= 0
    wait_until(lambda: hung(i, c) > 12, 60, "more time than the watchdog would give it")
    assert c.get("/healthz")[0] == 200
    gate.unlink()
    i.wait_state(c, "ok", timeout=60)
    wait_until(lambda: hung(i, c) == 0, 30, "the trouble to be over")
    i.send(20)
    i.check()


def test_started_anew(inbox, gate, tmp_path):  # noqa: F811
    """handler.hang = "restart": /healthz answers 503 and no sign of life is sent. Started anew (here as systemd does) it meets the
    record again; one that hangs each time is held back as one that crashes, and all others go on."""
    i = inbox(partitions=1)
    i.poison("k1", "wait")
    i.event("k1")
    i.send(20, keys=4, prefix="other")
    m = Manager(str(tmp_path / "notify"))
    c = i.consumer(c_handler(str(gate), timeout="1s", hang="restart"), {"limits": {"crashes": 2, "batch_events": 1}}, env=m.env())

    def hangs():
        c.start()
        wait_until(lambda: c.get("/healthz")[0] == 503, 60, "/healthz to tell", ignore=(OSError,))
        assert json.loads(c.get("/healthz")[1])["thread"] == "handler"
        wait_until(lambda: (m.status() or "").startswith("hung: the handler"), 45, "STATUS to tell")
        c.kill()
    hangs()
    hangs()
    c.start()
    i.wait_parked(1, timeout=60)
    assert i.parked("key, class") == [("k1", "crash")]
    i.wait_count(20, where="key LIKE 'other%'")
    assert c.get("/healthz")[0] == 200 and hung(i, c) == 0
    m.socket.close()
