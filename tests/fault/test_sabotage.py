"""tests/fault/test_sabotage.py -- the checker proves itself.

Each test plays one schedule twice: the honest relay must pass it, and a relay with one
known flaw (SABOTAGE in the sources, test builds only) must be found out by the checker.
A flaw that is not found here would not be found in a torture run either.
"""
import subprocess

import pytest

import schedules
from schedules import quiet_pg, stage  # noqa: F401 (fixtures)
import servers

pytestmark = pytest.mark.timeout(600)

# The flaw, the schedule that shows it, what the checker calls it, the mode.
CASES = [
    ("cursor_by_seq", schedules.late_commit, "LOST", "exactly_once"),
    ("xmin_horizon", schedules.three_transactions, "ORDER", "exactly_once"),
    ("order_by_xid", schedules.three_transactions, "ORDER", "exactly_once"),
    ("no_n_bound", schedules.newest_writer, "LOST", "exactly_once"),
    ("bound_after_snapshot", schedules.commit_between_reads, "LOST", "exactly_once"),
    ("position_outside_transaction", schedules.death_after_commit, "DUP", "exactly_once"),
    ("position_before_delivery", schedules.undelivered, "LOST", "at_least_once"),
    ("position_read_to_lso", schedules.pinned_position, "DUP", "exactly_once"),
]


@pytest.mark.parametrize("flaw, play, kind, delivery", CASES, ids=[c[0] for c in CASES])
def test_sabotage_is_caught(stage, flaw, play, kind, delivery):  # noqa: F811
    """The honest relay passes, the flawed one is convicted of what the flaw does."""
    honest = schedules.played(play, stage, delivery)
    assert honest.ok, honest.report()
    flawed = schedules.played(play, stage, delivery, sabotage=flaw)
    assert kind in flawed.violations, f"{flaw} was not caught:\n{flawed.report()}"


def test_sabotage_no_barrier(stage, own_pg):  # noqa: F811
    """A relay that does not wait for the log to be flushed publishes what a crash then undoes."""
    for flaw in (None, "no_barrier"):
        st = stage(pg=own_pg(config={"autovacuum": "off"}))
        result = schedules.ghost(st, **({"sabotage": flaw} if flaw else {}))
        assert result.records == 2, result.report()
        if flaw:
            assert "PHANTOM" in result.violations, f"{flaw} was not caught:\n{result.report()}"
        else:
            assert result.ok, result.report()


def test_every_sabotage_has_its_case():
    """A flaw that somebody adds to the sources needs its schedule here; those of sagas have theirs in test_saga_sabotage.py."""
    found = subprocess.run(["grep", "-rhoE", r"\bSABOTAGE\([a-z0-9_]+\)", "relay", "lib", "--include=*.c"],
                           cwd=servers.ROOT, capture_output=True, text=True, check=True).stdout
    names = {line[len("SABOTAGE("):-1] for line in found.split() if not line.startswith("SABOTAGE(saga_")}
    assert names == {c[0] for c in CASES} | {"no_barrier"}
