"""tests/e2e/test_under_load.py -- the whole relay at work, also under ASan and TSan: writers, a poison
event, a topic that comes late, a reload, a lost connection and a drain, and the checker's verdict."""
import os
import sys

import pytest
from wait import wait_until

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fault"))
from scene import both, scene  # noqa: E402,F401

pytestmark = [pytest.mark.asan, pytest.mark.tsan, pytest.mark.timeout(180)]


@both
def test_everything_at_once(scene, pg_server, kafka, delivery):  # noqa: F811
    """Every thread of the relay has something to do at the same time; sanitizers see what they share."""
    s = scene(pg_server, kafka, delivery)
    relay = s.relay({"retention": {"partition_events": 1000, "every": "1s"}})
    relay.start().wait_ready(60)
    s.load(rate=100)
    s.flows(relay, 50, timeout=60)
    late = f"{s.kind}.late"
    s.db.query("SELECT outbox.publish(%s, 'k', 'Late', '{}')", (late,))
    wait_until(lambda: s.waiting() == 1, 60, "an event to wait for its topic")
    relay.rewrite({"limits": {"poll_max": "5ms"}})
    relay.hup()
    wait_until(lambda: "configuration reloaded" in relay.log_text(), 60, "the reload")
    pg_server.kill_backend(f"application_name = 'postrider-relay {s.name} data'")
    kafka.create_topic(f"outbox.event.{late}", 1)
    wait_until(lambda: s.waiting() == 0, 60, "the late topic's event to leave")
    s.flows(relay, 50, timeout=60)
    s.check(deaths=None, settle=60)
    s.drained(relay, 60)
    assert relay.terminate(60) == 0, relay.log_text()[-3000:]
    assert "Sanitizer" not in relay.log_text(), relay.log_text()[-6000:]
