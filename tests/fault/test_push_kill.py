"""tests/fault/test_push_kill.py -- members of push die while they send, and where an alert has been posted and nobody knows it: each
notification is sent once, each alert arrives."""
import json
import signal
import uuid

import pytest
from alert_hook import Hook
from inbox import inbox  # noqa: F401
from tokens import USER, Issuer
import servers
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
KIND = {"kind": "push"}


@pytest.fixture
def users():
    with Issuer(*USER) as issuer:
        yield issuer


@pytest.fixture
def hook():
    h = Hook().start()
    yield h
    h.stop()


def member(i, users, hook=None):
    return i.member(KIND, {"dedupe": "offset", "push": {"listen": f"127.0.0.1:{servers.free_port()}", "jwks": users.url},
                           "alerts": {"timeout": "20s", **({"url": hook.url} if hook else {})}})


def put(i, kind, payload, key="k"):
    i.put(key, json.dumps(payload), [("id", str(uuid.uuid4())), ("type", kind)])


def test_dies_behind_the_post(inbox, users, hook):  # noqa: F811
    """The webhook has taken the alert, and the member dies before it has recorded that: another sends it once its hold is over, with the same
    Idempotency-Key."""
    i = inbox()
    m = member(i, users, hook)
    put(i, "PaidFailed", {"group": "g", "key": "k", "id": "x", "topic": "t", "partition": 0, "offset": 1, "attempts": 5, "class": "timeout",
                          "code": "", "cause": "slow"})
    i.flush()
    m.start(fault="push_alert_posted_before_recorded")
    assert m.wait(60) == -signal.SIGKILL
    assert len(hook.taken) == 1 and i.one("SELECT sent FROM push.admin_alert") == 0
    i.db.query("UPDATE push.admin_alert SET next_at = now()")  # the hold: ten such timeouts, and 10 s
    member(i, users, hook).start()
    wait_until(lambda: i.one("SELECT sent FROM push.admin_alert") == 1, 60, "it to be recorded")
    assert len({t["headers"]["Idempotency-Key"] for t in hook.taken}) == 1 and len(hook.taken) == 2


def test_killed_again_and_again(inbox, users):  # noqa: F811
    """Two members, killed and started while events come: every user is told once of each, the places have their order."""
    i = inbox()
    members = [member(i, users).start() for _ in range(2)]
    people = [str(uuid.uuid4()) for _ in range(20)]
    n = 0
    for turn in range(4):
        for _ in range(100):
            put(i, "ReservationHeld", {"reservation_id": str(uuid.uuid4()), "user_id": people[n % 20], "label": "A"}, people[n % 20])
            n += 1
        i.flush()
        have = i.one("SELECT CASE WHEN to_regclass('outbox.event') IS NULL THEN 0 ELSE (SELECT count(*) FROM outbox.event) END")
        wait_until(lambda: i.one("SELECT count(*) FROM outbox.event") > have, 60, "some to be sent")
        members[turn % 2].kill9()
        members[turn % 2].start()
    wait_until(lambda: i.one("SELECT count(*) FROM push.notification WHERE state = 'SENT'") == n, 90, "all to be sent")
    assert i.db.query("SELECT count(*), count(DISTINCT place) FROM push.notification") == [(n, n)]
    assert i.db.query("SELECT count(*), count(DISTINCT payload ->> 'notification_id') FROM outbox.event WHERE type = 'NotificationSent'") == [(n, n)]
    i.stands()
