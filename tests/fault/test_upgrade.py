"""tests/fault/test_upgrade.py -- relays and consumers are replaced by those of the next version, one after another, and by those of the
old one again, while writers write: nothing is lost, comes twice or out of order. The next version is this tree, built again with another
number, and a migration that bears programs which do not know it; what a version really changes is for its own test to show."""
import glob
import os
import re
import shutil
import subprocess

import pytest
import servers
from inbox import ROW
from scene import exactly_once, scene  # noqa: F401
from wait import wait_until

pytestmark = [pytest.mark.timeout(420), pytest.mark.slow]
OLD = open(os.path.join(servers.ROOT, "VERSION"), encoding="ascii").read().strip()
NEXT = "99.0.0"


@pytest.fixture(scope="module")
def next_version():
    """The variant's name for bin_path. Only what names its version is compiled anew."""
    variant = servers.VARIANT
    out = os.path.join(servers.ROOT, "build", "next")
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    shutil.copytree(os.path.dirname(os.path.dirname(servers.bin_path("postrider", variant))) + "/obj", out + "/obj",
                    copy_function=shutil.copy2)
    for source in glob.glob(os.path.join(servers.ROOT, "*", "**", "*.c"), recursive=True):
        with open(source, encoding="utf-8") as f:
            if "PR_VERSION" not in f.read():
                continue
        made = os.path.join(out, "obj", os.path.relpath(source, servers.ROOT)[:-2] + ".o")
        if os.path.exists(made):
            os.unlink(made)
    done = subprocess.run(["make", "-s", f"VARIANT={variant}", "OUT=build/next", f"VERSION={NEXT}",
                           *(f"build/next/bin/{p}" for p in ("postrider", "postrider-relay", "postrider-consumer"))],
                          cwd=servers.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for variant, version in (("next", NEXT), (servers.VARIANT, OLD)):
        said = servers.Cli("postrider-relay", variant).run("--version", check=True).stdout
        assert said == f"postrider-relay {version}\n"
    yield "next"
    shutil.rmtree(out, ignore_errors=True)


def version(daemon):
    return re.search(r'^postrider_build_info\{.*version="([^"]*)"', daemon.get("/metrics")[1], re.M).group(1)


def leads(relay):
    return relay.status()["state"] not in ("standby", "starting")


class Pair:
    """Two relays of one outbox; replace() is what a rollout does: the standby first, then the leader."""

    def __init__(self, scene):
        self.scene = scene
        self.leader = scene.relay().start().wait_ready()
        wait_until(lambda: leads(self.leader), 60, "a leader")
        self.standby = scene.relay().start().wait_ready()

    def replace(self, variant):
        assert self.standby.terminate() == 0
        self.standby = self.scene.relay(variant=variant).start().wait_ready()
        assert self.leader.terminate() == 0
        wait_until(lambda: leads(self.standby), 60, "the standby to take over")
        self.leader, self.standby = self.standby, self.scene.relay(variant=variant).start().wait_ready()
        self.scene.flows(self.leader, 100)


@exactly_once
def test_rolled_forward_and_back(scene, pg_server, kafka, next_version, delivery):  # noqa: F811
    """Relays and two members of a group, to the next version and back again, twice; a writer writes all the time. `postrider init` of
    either version is run in between, as an upgrade does."""
    s = scene(pg_server, kafka, delivery)
    s.db.psql("CREATE SCHEMA app; CREATE TABLE app.effect (n bigserial, id uuid, key text, message_offset bigint, partition int);"
              "CREATE FUNCTION app.on_event(m inbox.message) RETURNS void LANGUAGE sql AS $$ INSERT INTO app.effect"
              " (id, key, message_offset, partition) VALUES (m.id, m.key, m.message_offset, m.partition) $$")
    load = s.load()
    pair = Pair(s)
    members = []

    def member(variant, port=None):
        c = servers.Consumer(s.db.conninfo, kafka.bootstrap, s.name, [s.topic], ROW, variant=variant, port=port,
                             config={"limits": {"batch_events": 50}, "kafka": {"timeout": "5s"}}).start()
        wait_until(lambda: c.get("/healthz")[0] == 200, 60, "the member to serve", ignore=(OSError,))
        return c

    def handled():
        return s.db.one("SELECT count(*) FROM app.effect")
    try:
        members += [member(None), member(None)]
        for variant, number in ((next_version, NEXT), (None, OLD), (next_version, NEXT)):
            done = servers.Cli(variant=variant).run("init", "--conninfo", s.db.conninfo, "--brokers", kafka.bootstrap, "--name", s.name)
            assert done.returncode == 0, done.stderr
            pair.replace(variant)
            for i, old in enumerate(members):
                assert old.terminate() == 0
                members[i] = member(variant, old.port)
                before = handled()
                wait_until(lambda: handled() > before + 50, 60, "the group to go on")
            if number == NEXT:  # its migration, which bears the old programs: going back over it is possible
                s.db.psql("ALTER TABLE outbox.schema_version ADD COLUMN IF NOT EXISTS oldest integer; INSERT INTO outbox.schema_version"
                          " (number, name, oldest) SELECT 9999, '9999_of_next', max(number) FROM outbox.schema_version"
                          " ON CONFLICT DO NOTHING")
            assert {version(d) for d in (pair.leader, pair.standby, *members)} == {number}
        assert load.committed > 500
        r = s.check()
        wait_until(lambda: handled() >= r.journal, 90, f"{r.journal} events handled")
        assert s.db.one("SELECT count(DISTINCT id) FROM app.effect") == handled() == r.journal
        assert s.db.one("SELECT count(*) FROM app.effect WHERE id NOT IN (SELECT event_id FROM truth.journal)") == 0
        assert s.db.one("SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY key ORDER BY message_offset) AS earlier"
                        " FROM app.effect) AS e WHERE earlier > n") == 0
    finally:
        for c in members:
            c.kill()
