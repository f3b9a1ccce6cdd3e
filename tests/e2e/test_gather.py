"""tests/e2e/test_gather.py -- limits.gather: a stream of events goes in fewer and larger transactions, and nobody waits who
is alone."""
import time

from outbox import Outbox, by_key

GATHER = 8


def test_a_stream_gathers_and_a_lone_event_does_not_wait(pg_server, kafka):
    """A Kafka transaction costs relay, broker and readers some 10 ms of CPU whatever is in it: a service whose relay made 60 a
    second of a stream had a third of its requests' CPU spent on them."""
    with Outbox(pg_server, kafka, "gather", config={"limits": {"gather": f"{GATHER}s"}}) as o:
        kind, topic = o.kind()
        o.start()

        def shipments():
            return next(v for k, v in o.relay.metrics().items() if k.startswith("postrider_batch_events_count"))
        begin = time.monotonic()
        o.publish(kind, "k", type="0")
        o.read(topic, 1)
        assert time.monotonic() - begin < GATHER
        before, began = shipments(), time.monotonic()
        for i in range(1, 41):
            o.publish(kind, "k", type=str(i))
        took = time.monotonic() - began
        assert by_key(o.read(topic, 41)) == {"k": [str(i) for i in range(41)]}
        assert shipments() - before <= 3 + took / GATHER
        assert o.relay.terminate() == 0
