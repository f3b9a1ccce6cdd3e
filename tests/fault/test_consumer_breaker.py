"""A breaker that one event alone keeps open. See also test_consumer_poison.py and test_consumer_review.py."""
import pytest
from inbox import ROW, SET, inbox  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("handler", [ROW, SET], ids=["row", "set"])
def test_one_event_does_not_keep_the_breaker_open(inbox, handler):  # noqa: F811
    """Story: a receiver answered 500 to one event, always, and to no other. The breaker took it for a dead downstream,
    probed with that event for ever, and a whole topic stood still behind it. Now such a probe is parked after a while,
    another one is tried, and what gets through closes the breaker."""
    i = inbox(partitions=1)
    i.poison("k1", "53100", seq=2)
    i.send(40, keys=4)
    c = i.consumer(handler, {"errors": [{"match": "sqlstate:53100", "policy": "breaker", "backoff": "5ms",
                                         "backoff_max": "20ms"}]}).start()
    bad = i.keys["k1"][1:]
    wait_until(lambda: i.count() == 40 - len(bad), 60, "the other keys to flow")
    assert i.dead() == []
    assert c.get("/readyz")[0] == 503
    i.wait_state(c, "warn")  # the key is parked, and its tries leave the breaker closed
    opened, tries = c.log_text().count("msg=handler"), i.one("SELECT last_value FROM app.tries")
    wait_until(lambda: i.one("SELECT last_value FROM app.tries") > tries + 3, 60, "the parked event to be tried again")
    assert c.log_text().count("msg=handler") == opened
    i.cure()
    i.check()
    i.wait_state(c, "ok")
    assert i.parked() == []
