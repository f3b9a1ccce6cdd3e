"""tests/fault/test_torture.py -- `make torture` itself: the seed decides the plan, a round of each mode is well,
and what is violated ends it with the line that repeats it."""
import collections
import os
import subprocess
import sys

import ledger
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
        whose = ledger.Ledger if torture.Round.KINDS[name][0] == "member" else torture.Round
        assert callable(getattr(whose, f"_{name}"))


@pytest.mark.skipif(not servers.kafka_jars(), reason="no Kafka jars: run make setup")
@pytest.mark.timeout(700)
def test_two_rounds():
    done = subprocess.run([sys.executable, "-B", SCRIPT, "--rounds", "2", "--faults", "3", "--seed", "5"],
                          capture_output=True, text=True, timeout=660)
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
    assert t.one(0, None, None, None) is False
    said = capsys.readouterr().out
    assert "an event is lost" in said
    assert "--seed 9 --round 0 --faults 2" in said


BOOKS = [("00000000-0000-0000-0000-0000000" + f"{n:02x}0" + f"{k:02x}", f"a{n % 3}", n // 3 + 1) for n, k in
         ((0, 7), (1, 9), (2, 7), (3, 0), (4, 1), (5, 59))]


def kept(journal):
    """The books as they must be: (effects, balances)."""
    balances = collections.Counter()
    for id, key, _ in journal:
        balances[key] -= ledger.amount(id)
        balances[ledger.target(id)] += ledger.amount(id)
    return [(id, key) for id, key, _ in journal], dict(balances)


def test_the_audit_finds_what_is_wrong():
    """Without servers: books that are right, and each way in which they can be wrong."""
    effects, balances = kept(BOOKS)
    assert ledger.wrong(BOOKS, effects, balances) == []
    off = {**balances, "a0": balances.get("a0", 0) + 1}
    for word, books in (("booked twice", (effects + effects[:1], balances)), ("lost", (effects[:-1], balances)),
                        ("never committed", (effects + [("f" * 36, "a1")], balances)),
                        ("was booked after", (effects[3:] + effects[:3], balances)),
                        ("sum of all accounts", (effects, off)), ("accounts differ", (effects, off))):
        assert any(word in text for text in ledger.wrong(BOOKS, *books)), word
