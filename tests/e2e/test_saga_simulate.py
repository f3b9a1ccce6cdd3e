"""tests/e2e/test_saga_simulate.py -- `postrider saga simulate`: the samples of etc/sagas hold on every way that was walked,
their tables of ends are those of tests/golden/saga_simulate (made by UPDATE_GOLDEN=1, to be read before they are
committed); a definition that loses money is told so with the way there; and the walk notices what is wrong on purpose in
the transitions themselves.
"""
import json
import os

import pytest

import servers

GOLDEN = f"{servers.ROOT}/tests/golden/saga_simulate"
WALKS = f"{servers.ROOT}/tests/golden/saga_walk"
SAMPLES = ["pay", "order", "book", "pay-choreography", "order-choreography", "reserve", "pay-hybrid", "cancel",
           "cancel-order"]


def is_golden(name, text):
    path = f"{GOLDEN}/{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        os.makedirs(GOLDEN, exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
    with open(path, encoding="utf-8") as f:
        assert text == f.read()


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_hold(cli, name):
    r = cli("saga", "simulate", f"{servers.ROOT}/etc/sagas/{name}.cfg", "--depth", 2)
    assert (r.returncode, r.stderr) == (0, "")
    is_golden(name, r.stdout)


def test_money_without_a_seat(cli):
    """A condition that skips the seat and not the payment: completed, and the money is gone."""
    r = cli("saga", "simulate", f"{WALKS}/forgotten.cfg")
    assert r.returncode == 1
    assert "violated   MONEY.applied == SEAT.applied\n           MONEY done, SEAT skipped -> COMPLETED\n" in r.stdout
    is_golden("forgotten", r.stdout)


def test_json(cli):
    r = cli("saga", "simulate", f"{WALKS}/forgotten.cfg", "--json")
    assert r.returncode == 1 and r.stdout.count("\n") == 1
    o = json.loads(r.stdout)
    assert (o["name"], o["version"], o["style"], o["mishaps"]) == ("forgotten", 1, "orchestration", 3)
    assert (o["complete"], o["all_ways"], o["violated"]) == (True, False, True)
    bad = [x for x in o["rules"] if x["violated"]]
    assert bad == [{"rule": "MONEY.applied == SEAT.applied", "invariant": True, "violated": True,
                    "example": "MONEY done, SEAT skipped -> COMPLETED"}]
    assert all(x["example"] is None for x in o["rules"] if not x["violated"])
    assert {"state": "COMPENSATED", "what": "nothing to undo", "situations": 4, "mishaps": 1,
            "example": "MONEY refused -> COMPENSATED"} in o["ends"]


def test_all_ways(cli):
    o = json.loads(cli("saga", "simulate", f"{WALKS}/watched.cfg", "--all", "--json").stdout)
    assert o["all_ways"] and o["complete"] and not o["violated"]


def test_orders_are_walked_too(cli):
    o = json.loads(cli("saga", "simulate", f"{WALKS}/queue.cfg", "--orders", "--json").stdout)
    assert not o["violated"]
    assert [e["example"] for e in o["ends"] if e["state"] == "ABORTED"][0].endswith("ordered: abort -> ABORTED")


def test_a_bound_that_was_hit_is_no_success(cli):
    r = cli("saga", "simulate", f"{WALKS}/sale.cfg", "--states", 1000)
    assert r.returncode == 3
    assert "stopped at the bound of 1,000 situations" in r.stderr and "--states raises the bound" in r.stderr
    assert "\nok " not in r.stdout and "so far ok  MONEY.applied == SALE.applied" in r.stdout
    o = json.loads(cli("saga", "simulate", f"{WALKS}/sale.cfg", "--states", 1000, "--json").stdout)
    assert not o["complete"] and not o["all_ways"]


def test_what_is_no_definition(cli):
    r = cli("saga", "simulate", f"{servers.ROOT}/tests/golden/saga_bad/send_root.cfg")
    assert r.returncode == 78 and r.stdout == "" and "send_root.cfg:5: steps[0].do.send" in r.stderr
    assert cli("saga", "simulate", "./none.cfg").returncode == 78
    r = cli("saga", "simulate", f"{servers.ROOT}/etc/sagas/pay.cfg", "--all", "--depth", 2)
    assert r.returncode == 2 and "--all and --depth exclude each other" in r.stderr


@pytest.mark.parametrize("sabotage, rule", [
    ("saga_undo_failed_step", "undone is what was done or may be, the last first"),
    ("saga_any_command_id", "completed: every step is done that was not skipped"),
])
def test_sabotage_is_noticed(cli, sabotage, rule):
    r = cli("saga", "simulate", f"{WALKS}/queue.cfg", "--depth", 1, "--json", env={"POSTRIDER_SABOTAGE": sabotage})
    assert r.returncode == 1
    assert rule in [x["rule"] for x in json.loads(r.stdout)["rules"] if x["violated"]]
