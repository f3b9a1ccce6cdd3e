"""tests/fault/test_sink_torture.py -- `make torture-sink` itself: the seed decides the plan, every point of the sink is drawn, a round
of each target is well, and a sink with a flaw does not get through it."""
import glob
import os
import re
import subprocess
import sys

import pytest
import servers
import sink_torture as torture

SCRIPT = os.path.join(servers.ROOT, "tests", "support", "sink_torture.py")


def test_the_seed_decides_the_plan():
    plans = [[torture.Round(n, seed).plan for n in range(8)] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    drawn = {name for n in range(100) for name, *_ in torture.Round(n, 3).plan}
    assert drawn == set(torture.Round.KINDS)
    assert all(callable(getattr(torture.Round, f"_{name}")) for name in drawn)


def test_every_point_is_drawn():
    """But those of the object store and of late records that are refused, which have tests of their own."""
    there = set()
    for path in glob.glob(os.path.join(servers.ROOT, "consumers", "sink", "*.c")):
        with open(path, encoding="utf-8") as f:
            found = set(re.findall(r"\bFAULT\((\w+)\)", f.read()))
        there |= found if not path.endswith("/s3.c") else set()
    assert there - {"sink_buried_before_commit"} == {p for t in torture.TARGETS.values() for p in t.points}


@pytest.mark.skipif(not servers.kafka_jars(), reason="no Kafka jars: run make setup")
@pytest.mark.timeout(620)
def test_a_round_of_each():
    done = subprocess.run([sys.executable, "-B", SCRIPT, "--rounds", "4", "--faults", "3", "--seed", "2"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "torture: seed 2"
    assert re.fullmatch(r"torture: ok, 4 rounds, \d+ deaths, \d+ records, 0 missing, 0 twice", lines[-1])
    assert sum(x.endswith("0 missing, 0 twice") for x in lines) == 5


class Flawed(torture.Round):
    """Its members have the flaw, and die with their files published and their position not."""
    flaw = None

    def _draw(self):
        return "point", 0.1, torture.Files.points.index("sink_published_before_position"), 0.5

    def _member(self, n, limit=None):
        m = super()._member(n, limit)
        m.env["POSTRIDER_SABOTAGE"] = self.flaw
        return m


@pytest.mark.parametrize("flaw", ["sink_position_first", "sink_no_record"])
@pytest.mark.timeout(400)
def test_flaws_are_found_out(pg_server, kafka, flaw, capsys):
    class This(Flawed):
        pass
    This.flaw = flaw
    t = torture.Torture(seed=1, seconds=0, rounds=1, only=None, per_round=3)
    real, torture.Round = torture.Round, This
    try:
        assert t.one(0, pg_server, kafka) is False
    finally:
        torture.Round = real
    said = capsys.readouterr().out
    assert "VIOLATED" in said and ("missing" in said or "twice" in said or "overlap" in said), said
    assert "--seed 1 --round 0 --faults 3" in said
