"""tests/fault/test_consumer_broker.py -- the broker dies under consumers and comes back: they wait for it, however
long, and go on by themselves."""
from inbox import ROW, inbox  # noqa: F401
from wait import stays, wait_until


def test_broker_away_about_as_long_as_a_session(own_kafka, inbox):  # noqa: F811
    """Story: the broker was killed and away for about as long as a session lasts. A commit that had waited for it,
    signed with the member's id of before, came after its next join: Kafka took it for a stranger's under the same
    name and shut the member out, so the consumer ended with status 5."""
    kafka = own_kafka()
    i = inbox(kafka_=kafka, partitions=3)
    c = i.consumer(ROW).start().wait_ready()
    i.send(200)
    i.check()
    with i.stream(rate=200):
        i.flows(600)
        kafka.kill()
        stays(c.running, 7)
        kafka.start()
        sent = len(i.sent)
        wait_until(lambda: not c.running() or i.count() >= sent, 120, "the input of until now to be applied")
        stays(c.running, 3)
    i.check(timeout=60)
