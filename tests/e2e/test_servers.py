"""tests/e2e/test_servers.py -- the test servers themselves: what other tests lean on."""
import os
import signal
import subprocess
import sys
import time

import psycopg2
import pytest
import servers
from confluent_kafka import Consumer, Producer, TopicPartition
from wait import WaitTimeout, stays, wait_until


def test_wait_until_shows_the_last_value():
    with pytest.raises(WaitTimeout, match=r"waited 0\.\d+ s for seven; last seen: 0"):
        wait_until(lambda: 0, 0.05, "seven")
    with pytest.raises(AssertionError, match="did not stay true"):
        stays(lambda: False, 1)


def test_postgres_is_durable_and_private(pg_server):
    assert pg_server.query("SHOW fsync")[0][0] == "on"
    assert pg_server.query("SHOW listen_addresses")[0][0] == "127.0.0.1"
    assert pg_server.query("SHOW max_prepared_transactions")[0][0] == "20"
    assert os.path.commonpath([pg_server.data, servers.test_dir()]) == servers.test_dir()


def test_committed_rows_survive_an_immediate_stop_and_a_kill(own_pg):
    pg = own_pg()
    pg.query("CREATE TABLE t (a int)")
    pg.query("INSERT INTO t VALUES (1)")
    pg.restart("immediate")
    pg.query("INSERT INTO t VALUES (2)")
    pg.kill()
    pg.start()
    assert pg.query("SELECT a FROM t ORDER BY a") == [(1,), (2,)]


def test_fresh_cluster_has_its_own_system_identifier(own_pg, pg_server):
    ask = "SELECT system_identifier FROM pg_control_system()"
    assert own_pg(fresh=True).query(ask) != pg_server.query(ask)


def test_kill_backend_finds_its_victim_only(empty_db):
    victim = empty_db.connect(application_name="victim")
    other = empty_db.connect(application_name="other")
    assert empty_db.pg.kill_backend("application_name = 'victim'") == [victim.get_backend_pid()]
    with pytest.raises(psycopg2.Error), victim.cursor() as cur:
        wait_until(lambda: cur.execute("SELECT 1"), 30)
    with other.cursor() as cur:
        cur.execute("SELECT 1")


def _produce(kafka, topic, n, **conf):
    p = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, **conf})
    for i in range(n):
        p.produce(topic, str(i).encode(), b"k")
    assert p.flush(60) == 0


def _read(kafka, topic):
    c = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "x", "enable.auto.commit": False, "log_level": 0})
    c.assign([TopicPartition(topic, 0, 0)])
    end = kafka.end_offsets(topic)[0]
    got = []
    wait_until(lambda: got.extend(c.consume(100, 0.2)) or len(got) >= end, 60)
    c.close()
    return [int(m.value()) for m in got]


def test_acknowledged_records_survive_a_broker_kill_and_a_restart(own_kafka):
    kafka = own_kafka(warm=False)
    kafka.create_topic("t", 1)
    _produce(kafka, "t", 5, acks="all")
    kafka.kill()
    kafka.start()
    _produce(kafka, "t", 3, acks="all")
    kafka.restart()
    assert _read(kafka, "t") == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_frozen_broker_answers_again_after_sigcont(own_kafka):
    kafka = own_kafka(warm=False)
    kafka.create_topic("t", 1)
    kafka.sigstop()
    try:
        with pytest.raises(Exception, match="(?i)timed out|transport"):
            kafka._metadata(0.5)
    finally:
        kafka.sigcont()
    _produce(kafka, "t", 1)
    assert _read(kafka, "t") == [0]


def test_topics_are_not_made_by_accident(kafka, topic):
    kafka.create_topic(topic, 3, {"cleanup.policy": "compact"})
    assert kafka.topics()[topic] == 3
    assert kafka.topic_config(topic)["cleanup.policy"] == "compact"
    kafka.add_partitions(topic, 4)
    assert kafka.topics()[topic] == 4
    assert kafka.topic_config(topic)["min.insync.replicas"] == "1"
    kafka.delete_topic(topic)
    assert topic not in kafka.topics()
    p = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0, "message.timeout.ms": 800,
                  "topic.metadata.propagation.max.ms": 100})
    failed = []
    p.produce(topic, b"x", on_delivery=lambda e, m: failed.append(e))
    wait_until(lambda: p.poll(0.05) is not None and failed, 60)
    assert failed[0] is not None
    assert topic not in kafka.topics()


def test_config_writer_escapes_and_nests(tmp_path):
    path = servers.write_config(tmp_path / "a.cfg", {
        "name": 'a"b\\', "limits": {"n": 3, "on": True}, "list": ["x", "y"], "kafka": {"properties": []}})
    assert open(path, encoding="utf-8").read() == (
        'name = "a\\"b\\\\";\nlimits: {\n  n = 3;\n  on = true;\n};\nlist = ( "x", "y" );\n'
        'kafka: {\n  properties = (  );\n};\n')


def test_servers_die_with_the_process_that_started_them():
    """kill -9 of a test run must not leave a postmaster behind."""
    script = ("import sys, time; sys.path.insert(0, sys.argv[1]); import servers; p = servers.Postgres().start();"
              "print(p.pid, servers.test_dir(), flush=True); time.sleep(600)")
    child = subprocess.Popen([sys.executable, "-B", "-c", script, os.path.join(servers.ROOT, "tests", "support")],
                             stdout=subprocess.PIPE, text=True, env=dict(os.environ, POSTRIDER_TEST_DIR=servers.new_dir("orphan")))
    pid = int(child.stdout.readline().split()[0])
    assert os.path.exists(f"/proc/{pid}")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2] == "Z",
               60, "the postmaster to end", ignore=(OSError,))  # it may go between the look and the reading


# ---------------------------------------------------------------- lint

LINT_TREE = {
    "lib/a.c": '/* lib/a.c -- fine. */\n#include "lib/a.h"\n#include <stdio.h>\n',
    "lib/a.h": "/* lib/a.h -- fine. */\n",
    "relay/r.c": '/* relay/r.c -- fine. */\n#include "relay/r.h"\n\n#include "lib/a.h"\n#include "producers/outbox.h"\n\n'
                 "void r(void);\nvoid r(void)\n{\n\t/* If we die here, nothing. */\n\tFAULT(told);\n\tif (SABOTAGE(bad))\n"
                 "\t\treturn;\n}\n",
    "relay/r.h": "/* relay/r.h -- fine. */\n",
    "tests/fault/test_a.py": 'POINTS = ["told"]\nSABOTAGE = ["bad"]\n',
    "lib/relay_conf.c": "/* lib/relay_conf.c -- fine. */\n"
                        "/* clang-format off */\nconst struct pr_opt x[] = {\n\t{ \"limits.n\", PR_OPT_INT },\n"
                        "\t{ \"inside\", PR_OPT_INT,\n\t\t.flags = PR_OPT_HIDDEN },\n",
    "lib/program_conf_table.h": "/* lib/program_conf_table.h -- fine. */\n/* clang-format off */\n\t{ \"both\", PR_OPT_INT },\n",
    "etc/relay.cfg": "limits: {\n\t#n = 1;\n};\n#both = 1;\n",
    "docs/reference/relay-config.md": "### `limits.n`\n### `both`\n",
    "x.sh": "true\n",
}


def lint(tmp_path, **change):
    """Runs lint.sh on LINT_TREE with files replaced: {"lib/a.c": text}."""
    script = os.path.join(servers.ROOT, "tests", "support", "lint.sh")
    with open(script, encoding="utf-8") as f:
        tree = {**LINT_TREE, "tests/support/lint.sh": f.read(), ".clang-format": open(
            os.path.join(servers.ROOT, ".clang-format"), encoding="utf-8").read(), **change}
    for name, text in tree.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    env = dict(os.environ, GIT_CEILING_DIRECTORIES=str(tmp_path), PYTHON=sys.executable)
    return subprocess.run(["sh", str(tmp_path / "tests/support/lint.sh")], capture_output=True, text=True, env=env)


def test_lint_is_content_with_a_good_tree(tmp_path):
    done = lint(tmp_path)
    assert done.returncode == 0 and ", 0 failed" in done.stdout, done.stdout


@pytest.mark.parametrize("name, text, says", [
    ("lib/a.c", '/* lib/a.c -- x. */\n#include "relay/r.h"\n', 'lib/a.c:2: a file of lib/ may not include "relay/r.h"'),
    ("lib/a.c", '/* lib/a.c -- x. */\n#include "producers/outbox.h"\n', "may not include"),
    ("relay/r.h", '/* relay/r.h -- x. */\n#include "cli/cli.h"\n', "may not include"),
    ("relay/r.c", "/* relay/r.c -- x. */\nvoid r(void);\nvoid r(void)\n{\n\tFAULT(told);\n\tSABOTAGE(bad);\n}\n",
     'FAULT(told) has no comment "If we die here"'),
    ("tests/fault/test_a.py", 'SABOTAGE = ["bad"]\n', "FAULT(told) has no test"),
    ("tests/fault/test_a.py", 'POINTS = ["told"]\n', "no test turns SABOTAGE(bad) on"),
    ("relay/q.c", "/* relay/q.c -- x. */\nvoid q(void);\nvoid q(void)\n{\n\t/* If we die here, too. */\n\tFAULT(told);\n}\n",
     "FAULT(told) is also in"),
    ("etc/relay.cfg", "#n = 1;\n#both = 1;\n", "option limits.n is not in etc/relay.cfg"),
    ("etc/relay.cfg", "limits: {\n\t#n = 1;\n};\n", "option both is not in etc/relay.cfg"),
    ("docs/reference/relay-config.md", "", "option limits.n is not in docs"),
    ("lib/a.h", "/* lib/b.h -- x. */\n", "lib/a.h:1: does not begin with"),
    ("x.sh", "if true\n", "x.sh: "),
    ("tests/a.py", "def\n", "tests/a.py:1: "),
    ("tests/e2e/test_a.py", "", "test_a.py: two test files have this name"),
])
def test_lint_finds(tmp_path, name, text, says):
    done = lint(tmp_path, **{name: text})
    assert done.returncode == 1 and says in done.stdout and ", 1 failed" in done.stdout, done.stdout


def test_lint_finds_a_bad_format(tmp_path):
    done = lint(tmp_path, **{"lib/a.c": "/* lib/a.c -- x. */\nint  a ;\n"})
    if "skip  C files are formatted" in done.stdout:
        pytest.skip("no clang-format 14 here")
    assert done.stdout.count("not as clang-format writes it") == 1 and "lib/a.c:2:" in done.stdout, done.stdout


def test_redis_is_flushed_emptied_by_a_kill_and_kept_when_asked_to(own_redis):
    r = own_redis()
    assert r.call("SET", "a", "1") == "OK" and r.call("GET", "a") == "1" and r.call("GET", "b") is None
    with pytest.raises(RuntimeError, match="WRONGTYPE"):
        r.call("ZCARD", "a")
    r.flush()
    assert r.call("GET", "a") is None
    assert r.pipeline([("INCR", "n")] * 2500)[-1] == 2500
    r.kill()
    assert r.start().call("GET", "n") is None
    kept = own_redis(persist=True)
    kept.call("ZADD", "z", 1, "x")
    kept.kill()
    assert kept.start().call("ZRANGE", "z", 0, -1) == ["x"]
    assert kept.restart().call("ZCARD", "z") == 1
