"""tests/fault/test_silent_broker.py -- a broker that says nothing any more is said to be silent.

Story: `make demo` stopped the broker, and for ten seconds (the commit's timeout; in
at_least_once for thirty) the relay's word was "ok: everything flows" over a growing lag,
for no call had failed yet. What is produced and not acknowledged for two seconds is stuck.
"""
import pytest

from wait import wait_until


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_state_says_so_before_any_timeout(delivery, db, own_kafka, relay, cli, outbox_name):
    kafka = own_kafka()
    cli("init", "--conninfo", db.conninfo, "--brokers", kafka.bootstrap, "--name", outbox_name, check=True)
    kafka.create_topic("outbox.event.order")
    r = relay(db.conninfo, kafka.bootstrap, name=outbox_name, delivery=delivery,
              config={"kafka": {"timeout": "5m"}}).start().wait_ready()
    publish = "SELECT outbox.publish('order', 'k', 'Created', '{}')"
    db.query(publish)
    wait_until(lambda: r.status()["position"]["seq"] == 1, 60, "the first event to be acknowledged")
    kafka.sigstop()
    db.query(publish)
    said = wait_until(lambda: (s := r.status())["state"] == "error" and s, 30, "the relay to notice the silence")
    assert "acknowledged" in said["sentence"] and said["hint"]
    assert said["lag_seconds"] > 1
    assert r.get("/readyz")[0] == 503
    kafka.sigcont()
    wait_until(lambda: (s := r.status())["state"] == "ok" and s["position"]["seq"] == 2, 60, "all to be well again")
