"""tests/fault/test_torture.py -- `make torture` itself: the seed decides the plan, a round of each mode is well,
and what is violated ends it with the line that repeats it."""
import os
import subprocess
import sys

import pytest
import servers
import torture

SCRIPT = os.path.join(servers.ROOT, "tests", "support", "torture.py")


def test_the_seed_decides_the_plan():
    plans = [[torture.Round(n, seed).plan for n in range(6)] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    drawn = {name for n in range(200) for name, *_ in torture.Round(n, 3).plan}
    assert drawn == set(torture.Round.KINDS)
    for name in drawn:
        assert callable(getattr(torture.Round, f"_{name}"))


@pytest.mark.skipif(not servers.kafka_jars(), reason="no Kafka jars: run make setup")
@pytest.mark.timeout(300)
def test_two_rounds():
    done = subprocess.run([sys.executable, "-B", SCRIPT, "--rounds", "2", "--faults", "3", "--seed", "5"],
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "torture: seed 5"
    assert lines[-1].startswith("torture: ok, 2 rounds")
    assert sum("order kept" in x for x in lines) == 3


def test_a_violation_ends_it_and_can_be_repeated(monkeypatch, capsys):
    """Without servers: a round that finds something."""
    def found(self):
        raise torture.Violated("an event is lost")
    monkeypatch.setattr(torture.Round, "run", found)
    t = torture.Torture(seed=9, seconds=0, rounds=1, only=None, per_round=2)
    assert t.one(0, None, None) is False
    said = capsys.readouterr().out
    assert "an event is lost" in said
    assert "--seed 9 --round 0 --faults 2" in said
