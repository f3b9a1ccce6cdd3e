"""tests/fault/test_saga_sabotage.py -- the audit of sagas proves itself.

Each play runs twice: honest engine and services must pass, and with a known flaw (SABOTAGE in lib/saga_core.c, test builds
only; or a service that does not listen to its barrier) what the services hold must not balance.
"""
import subprocess
import uuid

import pytest
import servers
from confluent_kafka import Producer
from saga import INBOX, buy, sagas  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(300)


def barrier_off(sagas, flaw):  # noqa: F811
    """An answer is lost, the command comes again, and the service does it again."""
    s = sagas(definitions={"buy.cfg": buy(timeout="3s")}).start()
    s.over = s.begin([{"post": {"PAYMENT": "lost:1"}, "script": {"PAYMENT": "deaf" if flaw else "done"}} for _ in range(5)])
    return s


def undo_of_the_refused(sagas, flaw):  # noqa: F811
    """A payment that was refused is paid back all the same, by a service that does not listen to its barrier."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s")})
    s.engine.consumer.env = {"POSTRIDER_SABOTAGE": flaw} if flaw else {}
    s.start()
    s.over = s.begin([{"script": {"PAYMENT": "refuse", "undo PAYMENT": "deaf"}} for _ in range(5)])
    return s


def any_command(sagas, flaw):  # noqa: F811
    """A late yes to the first order of a payment, from a service that has lost it since; the engine has ordered anew and
    must not take the old answer for the new one's."""
    s = sagas(definitions={"buy.cfg": buy(timeout="60s", undos=2)})
    s.engine.consumer.env = {"POSTRIDER_SABOTAGE": flaw} if flaw else {}
    s.start()
    s.part["money"].consumer.terminate()
    s.over = s.begin(1)
    id, = s.over
    wait_until(lambda: s.steps(id).get("PAYMENT") == "DOING", 45, "the payment to be ordered")
    p = Producer({"bootstrap.servers": s.kafka.bootstrap, "log_level": 0})
    h = {"id": str(uuid.uuid4()), "type": "SagaReply", "saga-id": id, "saga-step": "PAYMENT", "saga-op": "do",
         "saga-command-id": str(uuid.uuid4()), "saga-outcome": "done"}
    p.produce(INBOX, b"{}", id, headers=[(k, v.encode()) for k, v in h.items()])
    assert p.flush(10) == 0
    wait_until(lambda: s.log(id, "unknown") or s.steps(id)["PAYMENT"] == "DONE", 45, "the old answer to be seen")
    if s.steps(id)["PAYMENT"] == "DONE":  # it sells what was not paid
        s.wait_state(id, "COMPLETED")
        s.found = s.wrong()
    s.part["money"].consumer.start()
    return s


CASES = [("barrier", barrier_off, "money"), ("saga_undo_failed_step", undo_of_the_refused, "money"),
         ("saga_any_command_id", any_command, "0 of money")]


@pytest.mark.parametrize("flaw, play, finding", CASES, ids=[c[0] for c in CASES])
def test_sabotage_is_caught(sagas, flaw, play, finding):  # noqa: F811
    """The honest ones pass, the flawed one is convicted of what the flaw does."""
    s = play(sagas, None)
    s.wait_over(s.over)
    s.check()
    s = play(sagas, flaw)
    s.wait_over(s.over)
    s.quiet()
    found = getattr(s, "found", None) or s.wrong()
    assert any(finding in x for x in found), f"{flaw} was not caught: {found}"


def test_every_sabotage_has_its_case():
    """A flaw that somebody adds to the sources needs its play here."""
    found = subprocess.run(["grep", "-rhoE", r"\bSABOTAGE\(saga_[a-z0-9_]+\)", "lib", "consumers", "--include=*.c"],
                           cwd=servers.ROOT, capture_output=True, text=True, check=True).stdout
    assert {line[len("SABOTAGE("):-1] for line in found.split()} == {c[0] for c in CASES[1:]}
