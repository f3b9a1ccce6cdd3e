#!/usr/bin/python3
"""tests/support/shell.py -- `make shell`: a private Postgres and Kafka, and a shell that knows them: for the tutorial
(docs/tutorial.md), whose commands a test types into the same surroundings.

PGHOST, PGPORT, PGUSER and POSTRIDER_BROKERS are set, our programs are on the PATH, and so is a stand-in for the few
options of kafka-topics.sh that the documentation uses: Kafka's own comes with Kafka. Everything is gone when the shell
ends. Refuses to begin where Kafka's jars are missing.
"""
import os
import shutil
import stat
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import servers  # noqa: E402

TOPICS = """#!{python} -B
# kafka-topics.sh: a stand-in for Kafka's own, which comes with Kafka; --create and --list only.
import argparse, sys
from confluent_kafka.admin import AdminClient, NewTopic
p = argparse.ArgumentParser(prog="kafka-topics.sh", allow_abbrev=False)
p.add_argument("--bootstrap-server", required=True)
what = p.add_mutually_exclusive_group(required=True)
what.add_argument("--create", action="store_true")
what.add_argument("--list", action="store_true")
p.add_argument("--topic", required="--create" in sys.argv)
p.add_argument("--partitions", type=int, default=1)
a = p.parse_args()
admin = AdminClient({{"bootstrap.servers": a.bootstrap_server, "log_level": 0}})
if a.list:
    print("\\n".join(sorted(admin.list_topics(timeout=10).topics)))
else:
    try:
        admin.create_topics([NewTopic(a.topic, a.partitions, 1)])[a.topic].result(30)
    except Exception as e:
        sys.exit(f"kafka-topics.sh: {{e}}")
    print(f"Created topic {{a.topic}}.")
"""


def surroundings(pg, brokers, directory):
    """The environment of the shell; what it needs besides lies in `directory`."""
    tools = os.path.join(directory, "tools")
    os.makedirs(tools, exist_ok=True)
    path = os.path.join(tools, "kafka-topics.sh")
    with open(path, "w", encoding="ascii") as f:
        f.write(TOPICS.format(python=sys.executable))
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    ours = os.path.dirname(servers.bin_path("postrider"))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "POSTRIDER_"))}
    return env | {"PATH": ":".join([ours, tools, pg.bindir, os.environ["PATH"]]), "PGHOST": pg.host, "PGPORT": str(pg.port),
                  "PGUSER": "postgres", "POSTRIDER_BROKERS": brokers, "PAGER": "cat", "PSQLRC": os.devnull}


def main():
    servers.VARIANT = os.environ.get("POSTRIDER_VARIANT", "plain")  # what `make` builds, and nothing else
    if not servers.kafka_jars():
        print("shell: Kafka's jars are missing: make setup fetches them", file=sys.stderr)
        return 69
    pg, kafka = servers.Postgres().start(), servers.Kafka(quick=True).start().warm()
    here = servers.new_dir("shell")
    env = surroundings(pg, kafka.bootstrap, here)
    print(f"Postgres on port {pg.port}, Kafka at {kafka.bootstrap}: gone when this shell ends (exit). docs/tutorial.md begins here.", flush=True)
    shell = os.environ.get("SHELL") or shutil.which("bash") or "sh"
    return subprocess.run([shell, "-i"] if sys.stdin.isatty() else [shell], cwd=here, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
