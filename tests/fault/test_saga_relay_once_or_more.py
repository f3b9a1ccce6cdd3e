"""tests/fault/test_saga_relay_once_or_more.py -- sagas over relays that deliver at least once: starts, commands and replies
come twice when a relay dies, and money and seats balance all the same.

A short walk; test_saga_walk.py is the long one, over relays that deliver exactly once.
"""
import random

import pytest
from outbox import header, read_topic
from saga import INBOX, dies, saga_module  # noqa: F401
from test_saga_walk import cases, completes
from wait import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def walk(saga_module):  # noqa: F811
    s = saga_module(delivery="at_least_once")
    if not s.engine.consumer.running():
        s.start()
    yield s
    for p in s.parts:
        p.relay.kill()
        p.relay.start()
    s.ready()


@pytest.mark.parametrize("part", ["engine", "money"])
def test_relay_dies_in_between(walk, part):
    """Story: a relay dies when Kafka has its records and the database does not know: all of them come again, also starts of
    sagas that are over by then."""
    relay = (walk.engine if part == "engine" else walk.part[part]).relay
    ids = walk.begin(random.Random(part).sample(cases(7), 25))
    for point in ("acknowledged_before_position:1", "produced_before_acknowledged:2"):
        relay.kill()
        dies(relay, point, 60)
    relay.start()
    walk.wait_over(ids, 90)
    wait_until(lambda: completes(walk), 90, "a saga to be completed")
    walk.check(timeout=60)
    records = [header(r, "id") for t in (INBOX, *(f"{walk.name}.{w}" for w in ("money", "seats", "post")))
               for r in read_topic(walk.kafka, t)]
    if part == "engine":  # the post office gives what it carries a new id
        assert len(records) > len(set(records)), "nothing came twice"
