"""tests/support/servers.py -- private servers for tests: Postgres, Kafka, Redis, relay, CLI.

Everything listens on loopback, keeps its data below one temporary directory
($POSTRIDER_TEST_DIR or a fresh one) and dies with this process: by atexit, and by
the kernel's parent death signal when we are killed. Refuses to touch a server it did
not start.

The parent death signal belongs to the thread that started the child: start servers
from the main thread.
"""
import atexit
import contextlib
import fcntl
import functools
import glob
import hashlib
import itertools
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

from wait import stretched, wait_until

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KAFKA_VERSION = "4.1.1"
VARIANT = os.environ.get("POSTRIDER_VARIANT", "test")

_alive = []  # started servers, in order of start
_test_dir = None
_made_test_dir = False


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "postrider")


def bin_path(program, variant=None):
    """Where `make VARIANT=...` puts a program."""
    variant = variant or VARIANT
    parts = ["build"] + ([] if variant == "plain" else [variant]) + ["bin", program]
    return os.path.join(ROOT, *parts)


def have(program, variant=None):
    return os.access(bin_path(program, variant), os.X_OK)


def _check_reach(path):
    while os.geteuid() == 0 and path != "/":
        if not os.stat(path).st_mode & 0o001:
            raise RuntimeError(f"{path} is closed to user postgres: set POSTRIDER_TEST_DIR to an open directory")
        path = os.path.dirname(path)


def test_dir():
    """The directory of all temporary data of this process; world-traversable."""
    global _test_dir, _made_test_dir
    if _test_dir is None:
        given = os.environ.get("POSTRIDER_TEST_DIR")
        if given:
            os.makedirs(given, exist_ok=True)
            _test_dir = tempfile.mkdtemp(prefix="run-", dir=given)
        else:
            _test_dir = tempfile.mkdtemp(prefix="postrider-")
        _made_test_dir = True
        os.chmod(_test_dir, 0o755)  # Postgres runs as another user when we are root
        _check_reach(_test_dir)
    return _test_dir


def new_dir(name):
    path = tempfile.mkdtemp(prefix=name + "-", dir=test_dir())
    os.chmod(path, 0o755)
    return path


@functools.lru_cache(None)
def _my_ports():
    """Ports that no other process of ours gives away, in turn: below the ephemeral range, so that no outgoing
    connection takes one while its server is down, and each process has its own 400 of them for the same reason."""
    slices = list(range(15000, 32000 - 400, 400))
    random.SystemRandom().shuffle(slices)
    for first in slices:
        path = os.path.join(tempfile.gettempdir(), f"postrider-ports-{os.geteuid()}-{first}.lock")
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until we end
            break
    return itertools.cycle(range(first, first + 400))


def free_port():
    """A free loopback port."""
    for _ in range(400):
        port = next(_my_ports())
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                s.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port found")


@contextlib.contextmanager
def _made_once(path):
    """Whoever makes the cached file first makes it alone; the others wait and find it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".lock", "w", encoding="ascii") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def spawn(argv, *, log, user=None, env=None, cwd=None, death_signal="KILL", stdin=None):
    """Starts argv with stdout and stderr appended to the file `log`."""
    front = ["setpriv", "--pdeathsig", death_signal]
    if user and os.geteuid() == 0:
        front += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    with open(log, "ab") as out:
        return subprocess.Popen(front + list(argv), stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=out,
                                env=env, cwd=cwd or test_dir(), start_new_session=True)


def tail(path, lines=25):
    with contextlib.suppress(OSError), open(path, "rb") as f:
        return "\n".join(f.read()[-20000:].decode("utf-8", "replace").splitlines()[-lines:])
    return "(no log)"


def _all_stopped(pid):
    for task in glob.glob(f"/proc/{pid}/task/*/stat"):
        with contextlib.suppress(OSError), open(task, encoding="utf-8", errors="replace") as f:
            if f.read().rsplit(")", 1)[1].split()[0] not in "TtZX":
                return False
    return True


class Server:
    """A child process with a log file."""
    proc = None
    log = None
    name = "server"

    @property
    def pid(self):
        return self.proc.pid if self.proc else None

    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def signal(self, sig):
        if not self.running():
            raise RuntimeError(f"{self.name} is not running")
        self.proc.send_signal(sig)

    def sigstop(self):
        """SIGSTOP, and back only when every thread has stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: _all_stopped(self.pid), 60, f"{self.name} to stand still")

    def sigcont(self):
        self.signal(signal.SIGCONT)

    def wait(self, timeout=60, patient=True):
        """Waits for the end, longer on a busy machine if patient; returns the exit status (negative: killed by that signal)."""
        for more in (timeout, stretched(timeout) - timeout if patient else 0):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.proc.wait(more)
        raise AssertionError(f"{self.name} did not end in {timeout} s:\n{tail(self.log)}")

    def kill(self):
        """SIGKILL, and reaped; returns the exit status."""
        if not self.proc:
            return None
        if self.proc.poll() is None:
            self.proc.kill()
        rc = self.proc.wait(60)
        self._forget()
        return rc

    def has_to_say(self):
        """Whether its log is worth showing when a test has failed."""
        return True

    def _remember(self):
        if self not in _alive:
            _alive.append(self)

    def _forget(self):
        if self in _alive:
            _alive.remove(self)

    def _died(self):
        return AssertionError(f"{self.name} ended with {self.proc.returncode}:\n{tail(self.log)}")


# ---------------------------------------------------------------- Postgres

def pg_bindir():
    found = glob.glob("/usr/lib/postgresql/*/bin/postgres")
    if found:
        return os.path.dirname(max(found, key=lambda p: float(p.split("/")[4])))
    bindir = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.exists(os.path.join(bindir, "postgres")):
        raise RuntimeError(f"no Postgres server in {bindir}: run make setup")
    return bindir


def _clean_env(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "POSTRIDER_FAULT", "POSTRIDER_SABOTAGE"))}
    env.update(more)
    return env


def _pg_user():
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _chown_tree(path, user):
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{user}:", path], check=True)


def _initdb(bindir, data):
    front = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(front + [os.path.join(bindir, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-E",
                                   "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"],
                          capture_output=True, text=True, env=_clean_env(), cwd="/")
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stdout}{done.stderr}")


class Postgres(Server):
    """A private cluster. The initialised cluster is cached and copied: such clusters
    share their system identifier; fresh=True runs initdb for one with its own."""
    _schemas = 0  # databases with our schemas

    def __init__(self, config=None, fresh=False, port=None):
        self.name = "postgres"
        self.bindir = pg_bindir()
        self.user = _pg_user()
        self.dir = new_dir("pg")
        self.data = os.path.join(self.dir, "data")
        self.log = os.path.join(self.dir, "postgres.log")
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.config = {
            "listen_addresses": self.host, "unix_socket_directories": self.dir, "max_connections": 200,
            "max_prepared_transactions": 20, "wal_level": "replica", "shared_buffers": "128MB",
            "max_wal_size": "4GB", "fsync": "on", "logging_collector": "off", "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] %q%a ", "restart_after_crash": "on", "timezone": "UTC",
        }
        self.config.update(config or {})
        os.chmod(self.dir, 0o755)
        if os.geteuid() == 0:
            shutil.chown(self.dir, self.user)
        self._make_cluster(fresh)

    def _make_cluster(self, fresh):
        if fresh:
            _initdb(self.bindir, self.data)
        else:
            subprocess.run(["cp", "-a", self._template(), self.data], check=True)
            _chown_tree(self.data, self.user)

    def _template(self):
        version = subprocess.run([os.path.join(self.bindir, "postgres"), "--version"], capture_output=True, text=True,
                                 check=True).stdout
        key = hashlib.sha256((version + "trust UTF8 C.UTF-8").encode()).hexdigest()[:12]
        path = os.path.join(cache_dir(), f"pgdata-{key}")
        with _made_once(path):
            if not os.path.exists(os.path.join(path, "PG_VERSION")):
                shutil.rmtree(path + ".half", ignore_errors=True)  # of somebody who was killed
                aside = os.path.join(self.dir, "template")
                _initdb(self.bindir, aside)
                subprocess.run(["cp", "-a", aside, path + ".half"], check=True)
                shutil.rmtree(aside)
                os.rename(path + ".half", path)
        return path

    def start(self, timeout=120):
        argv = [os.path.join(self.bindir, "postgres"), "-D", self.data, "-p", str(self.port)]
        for k, v in self.config.items():
            argv += ["-c", f"{k}={v}"]
        deadline = time.monotonic() + timeout
        while True:
            self.proc = spawn(argv, log=self.log, user=self.user, env=_clean_env(), cwd=self.dir, death_signal="QUIT")
            self._remember()
            wait_until(lambda: not self.running() or self.accepts(), deadline - time.monotonic(), "Postgres to accept")
            if self.running():
                return self
            # After kill() the old backends hold the shared memory until they notice.
            if time.monotonic() > deadline or "is still in use" not in tail(self.log, 5):
                raise self._died()

    def accepts(self):
        import psycopg2
        try:
            psycopg2.connect(self.conninfo(), connect_timeout=5).close()
            return True
        except psycopg2.Error:
            return False

    def stop(self, mode="fast", timeout=60):
        """mode: fast, immediate or smart. Returns the exit status."""
        if self.running():
            self.signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "smart": signal.SIGTERM}[mode])
            self.wait(timeout)
        self._forget()
        return self.proc.returncode if self.proc else None

    def restart(self, mode="fast"):
        self.stop(mode)
        return self.start()

    def reload(self):
        self.signal(signal.SIGHUP)

    def conninfo(self, dbname="postgres", user="postgres", **more):
        """A libpq conninfo over TCP on loopback."""
        more = "".join(f" {k}={v}" for k, v in more.items())
        return f"host={self.host} port={self.port} dbname={dbname} user={user}{more}"

    def connect(self, dbname="postgres", autocommit=True, **more):
        import psycopg2
        c = psycopg2.connect(self.conninfo(dbname, **more), connect_timeout=20)
        c.autocommit = autocommit
        return c

    def query(self, sql, args=None, dbname="postgres"):
        """Rows of one statement in its own connection; [] when it returns none."""
        with contextlib.closing(self.connect(dbname)) as c, c.cursor() as cur:
            cur.execute(sql, args)
            return cur.fetchall() if cur.description else []

    def psql(self, sql, dbname="postgres", check=True):
        """Runs psql on sql (many statements allowed); returns its stdout, unaligned."""
        done = subprocess.run([os.path.join(self.bindir, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d",
                               self.conninfo(dbname), "-f", "-"], input=sql, capture_output=True, text=True,
                              env=_clean_env(), timeout=300)
        if check and done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout

    def createdb(self, name, schema=False):
        """schema: with what `postrider init` makes: from the second on copied, which costs a third of making it."""
        template = self._schema_template() if schema else None
        self.query(f'CREATE DATABASE "{name}"' + (f" TEMPLATE {template}" if template else ""))
        db = Database(self, name)
        if schema and not template:
            Cli().run("init", "--conninfo", db.conninfo, check=True)
        return db

    def _schema_template(self):
        self._schemas += 1
        if self._schemas == 2:
            template = self.createdb("postrider_template")
            Cli().run("init", "--conninfo", template.conninfo, check=True)
        return "postrider_template" if self._schemas >= 2 else None

    def dropdb(self, name):
        """Postgres waits five seconds for the sessions that it has ended, and then refuses."""
        import psycopg2
        wait_until(lambda: self.query(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)') == [], 30, f"database {name} to go",
                   ignore=(psycopg2.errors.ObjectInUse,))

    def backends(self, where="true"):
        """Pids of client backends; where is SQL over pg_stat_activity."""
        return [r[0] for r in self.query("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
                                         f"backend_type = 'client backend' AND ({where})")]

    def kill_backend(self, where, sig=None):
        """pg_terminate_backend, or the given signal (SIGKILL makes the postmaster restart
        all of them). Returns the pids."""
        pids = self.backends(where)
        for pid in pids:
            if sig is None:
                self.query("SELECT pg_terminate_backend(%s)", (pid,))
            else:
                with contextlib.suppress(ProcessLookupError):  # it was just leaving
                    os.kill(pid, sig)
        return pids

    def stop_backend(self, where):
        """SIGSTOPs matching backends, and back only when they have stopped; returns their pids for cont_backend."""
        pids = self.kill_backend(where, signal.SIGSTOP)
        wait_until(lambda: all(map(_all_stopped, pids)), 30, "the sessions to stand still")
        return pids

    @staticmethod
    def cont_backend(pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Database:
    """One database of a Postgres: what a test gets."""

    def __init__(self, pg, name):
        self.pg, self.name = pg, name

    @property
    def conninfo(self):
        return self.pg.conninfo(self.name)

    def connect(self, autocommit=True, **more):
        return self.pg.connect(self.name, autocommit, **more)

    def query(self, sql, args=None):
        return self.pg.query(sql, args, self.name)

    def one(self, sql, args=None):
        return self.query(sql, args)[0][0]

    def psql(self, sql, check=True):
        return self.pg.psql(sql, self.name, check)

    def drop(self):
        self.pg.dropdb(self.name)


# ---------------------------------------------------------------- Kafka

def kafka_jars():
    """The jar directory, or None when make setup could not get it."""
    path = os.path.join(cache_dir(), f"kafka-{KAFKA_VERSION}")
    return path if os.path.exists(os.path.join(path, f"kafka_2.13-{KAFKA_VERSION}.jar")) else None


KAFKA_DEFAULTS = {
    "process.roles": "broker,controller", "node.id": "1", "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT", "auto.create.topics.enable": "false", "num.partitions": "1",
    "offsets.topic.replication.factor": "1", "offsets.topic.num.partitions": "5",
    "transaction.state.log.replication.factor": "1", "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5", "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1", "min.insync.replicas": "1",
    "group.initial.rebalance.delay.ms": "0", "group.min.session.timeout.ms": "1000",
    # KIP-848: what a classic member says itself is the broker's there.
    "group.consumer.min.heartbeat.interval.ms": "300", "group.consumer.heartbeat.interval.ms": "300",
    "group.consumer.min.session.timeout.ms": "1000", "group.consumer.session.timeout.ms": "4000",
    "num.network.threads": "2", "num.io.threads": "4",
    "background.threads": "2", "log.cleaner.dedupe.buffer.size": "16777216",
    # A broker killed and started again waits for the end of its predecessor's session.
    "broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "300",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000", "log.retention.check.interval.ms": "5000",
    # A test's records may say any time; a log of old ones alone would be deleted under it.
    "log.retention.ms": "-1", "log.cleaner.backoff.ms": "500",
}


class Kafka(Server):
    """A real single-node broker (KRaft).

    config: extra server properties. proxy_port: adds a second listener whose advertised
    port is that one; point a proxy from it to self.proxied_port. quick: JIT with the
    first compiler only, for short runs on few cores."""

    def __init__(self, config=None, proxy_port=None, auto_create=False, heap="512m", quick=False,
                 archiving=None):
        self.name = "kafka"
        self.quick = quick
        self.archiving = archiving
        self.jars = kafka_jars()
        if not self.jars:
            raise RuntimeError("the Kafka jars are missing: run make setup")
        self.heap = heap
        self.dir = new_dir("kafka")
        self.data = os.path.join(self.dir, "data")
        self.log = os.path.join(self.dir, "kafka.log")
        self.port = free_port()
        self.controller_port = free_port()
        self.proxy_port = proxy_port
        self.proxied_port = free_port() if proxy_port else None
        self.config = dict(KAFKA_DEFAULTS)
        if auto_create:
            self.config["auto.create.topics.enable"] = "true"
        self.config.update(config or {})
        self._admin = None
        self._write_properties()
        self._format()

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    @property
    def proxied_bootstrap(self):
        return f"127.0.0.1:{self.proxy_port}"

    def _write_properties(self):
        p = dict(self.config)
        listen = [f"PLAINTEXT://127.0.0.1:{self.port}"]
        advertise = list(listen)
        if self.proxy_port:
            listen.append(f"PROXIED://127.0.0.1:{self.proxied_port}")
            advertise.append(f"PROXIED://127.0.0.1:{self.proxy_port}")
        p.setdefault("listeners", ",".join(listen + [f"CONTROLLER://127.0.0.1:{self.controller_port}"]))
        p.setdefault("advertised.listeners", ",".join(advertise))
        p.setdefault("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT")
        p["controller.quorum.voters"] = f"1@127.0.0.1:{self.controller_port}"
        p["log.dirs"] = self.data
        self.properties = os.path.join(self.dir, "server.properties")
        with open(self.properties, "w", encoding="utf-8") as f:
            f.writelines(f"{k}={v}\n" for k, v in p.items())
        with open(os.path.join(self.dir, "log4j2.properties"), "w", encoding="utf-8") as f:
            f.write("status=error\nappender.c.type=Console\nappender.c.name=c\nappender.c.layout.type=PatternLayout\n"
                    "appender.c.layout.pattern=%d %p %m (%c{1})%n\nrootLogger.level=warn\n"
                    "rootLogger.appenderRef.c.ref=c\n")

    def _java(self, *more):
        return ["java", f"-Xmx{self.heap}", f"-Xms{self.heap}", "-XX:+UseSerialGC",
                f"-Dlog4j2.configurationFile={self.dir}/log4j2.properties", "-cp", f"{self.jars}/*", *more]

    def _archive(self):
        """Path of the class archive (CDS) that halves the broker's start; made once per JRE
        and jar directory from a broker that starts, answers and stops."""
        java = os.path.realpath(shutil.which("java") or "java")
        key = hashlib.sha256(f"{java} {os.stat(java).st_mtime} {os.stat(self.jars).st_mtime}".encode()).hexdigest()[:12]
        path = os.path.join(cache_dir(), f"kafka-{KAFKA_VERSION}-{key}.jsa")
        if self.archiving:
            return path
        with _made_once(path):
            if not os.path.exists(path):
                other = Kafka(archiving=path + ".half").start().warm()
                other.stop(120)
                if os.path.exists(path + ".half"):
                    os.rename(path + ".half", path)
        return path

    def _format(self):
        """A formatted storage is two small files; made once, then copied."""
        cached = os.path.join(cache_dir(), f"kafka-storage-{KAFKA_VERSION}")
        with _made_once(cached):
            if not os.path.exists(os.path.join(cached, "meta.properties")):
                done = subprocess.run(self._java("kafka.tools.StorageTool", "format", "-t", "cG9zdHJpZGVyLXRlc3Rz", "-c",
                                                 self.properties), capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"formatting Kafka's storage failed: {done.stdout}{done.stderr}")
                shutil.rmtree(cached + ".half", ignore_errors=True)
                shutil.copytree(self.data, cached + ".half")
                os.rename(cached + ".half", cached)
        if not os.path.exists(self.data):
            shutil.copytree(cached, self.data)

    def start(self, timeout=150, wait=True):
        archive = self._archive()
        flags = [f"-XX:ArchiveClassesAtExit={self.archiving}"] if self.archiving else [
            "-Xshare:auto", "-Xlog:cds=off", f"-XX:SharedArchiveFile={archive}"]
        if self.quick:
            flags.append("-XX:TieredStopAtLevel=1")
        self.proc = spawn(self._java(*flags, "kafka.Kafka", self.properties), log=self.log, cwd=self.dir)
        self._remember()
        if wait:
            self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout=150):
        """Until metadata names the broker: the port alone opens earlier."""
        def answers():
            if not self.running():
                raise self._died()
            with socket.socket() as s:
                s.settimeout(1)
                if s.connect_ex(("127.0.0.1", self.port)):
                    return False
            return bool(self._metadata(5).brokers)
        from confluent_kafka import KafkaException
        wait_until(answers, timeout, "Kafka to answer", interval=0.05, ignore=(KafkaException,))
        return self

    def warm(self, timeout=120):
        """Makes the broker create its transaction and group topics now, not in a test."""
        from confluent_kafka import Producer
        p = Producer({"bootstrap.servers": self.bootstrap, "transactional.id": f"warm-{uuid.uuid4()}",
                      "log_level": 0})
        p.init_transactions(timeout)
        return self

    def stop(self, timeout=60):
        """SIGTERM: a clean shutdown."""
        if self.running():
            self.signal(signal.SIGTERM)
            self.wait(timeout)
        self._forget()

    def restart(self):
        self.stop()
        return self.start()

    @property
    def admin(self):
        if self._admin is None:
            from confluent_kafka.admin import AdminClient
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0,
                                       "socket.timeout.ms": 30000, "reconnect.backoff.max.ms": 200})
        return self._admin

    def _metadata(self, timeout=30, topic=None):
        return self.admin.list_topics(topic, timeout) if topic else self.admin.list_topics(timeout=timeout)

    def members(self, group, timeout=30):
        """Client ids of a classic group's members."""
        return [m.client_id for g in self.admin.list_groups(group, timeout) for m in g.members]

    def topics(self):
        """{name: number of partitions}, internal topics left out."""
        return {n: len(t.partitions) for n, t in self._metadata().topics.items() if not n.startswith("__")}

    @staticmethod
    def _unless_fenced(ask, what, timeout):
        """Asks again while the broker is fenced: a busy machine has kept it from its heartbeat for a moment, and none is there to take a
        partition."""
        from confluent_kafka import KafkaError, KafkaException

        def done():
            try:
                ask().result(timeout)
            except KafkaException as e:
                if e.args[0].code() != KafkaError.INVALID_REPLICATION_FACTOR:
                    raise
                return False
            return True
        wait_until(done, timeout, what)

    def create_topic(self, name, partitions=1, config=None, timeout=60):
        from confluent_kafka.admin import NewTopic
        self._unless_fenced(lambda: self.admin.create_topics([NewTopic(name, partitions, 1, config=config or {})])[name], f"topic {name}", timeout)
        wait_until(lambda: self.topics().get(name) == partitions and all(
            p.leader >= 0 for p in self._metadata().topics[name].partitions.values()), timeout, f"topic {name}")
        return name

    def add_partitions(self, name, total, timeout=60):
        from confluent_kafka.admin import NewPartitions
        self._unless_fenced(lambda: self.admin.create_partitions([NewPartitions(name, total)])[name], f"{total} partitions of {name}", timeout)
        wait_until(lambda: self.topics().get(name) == total, timeout, f"{total} partitions of {name}")

    def delete_topic(self, name, timeout=60):
        self.admin.delete_topics([name])[name].result(timeout)
        wait_until(lambda: name not in self.topics(), timeout, f"topic {name} to go")
        # The broker says so before its logs are shut: until then it takes records that go with them.
        logs = re.compile(re.escape(name) + r"-\d+")
        wait_until(lambda: not any(map(logs.fullmatch, os.listdir(self.data))) or name in self.topics(), timeout, f"the logs of {name} to go")

    def set_topic_config(self, name, config, timeout=60):
        """Replaces the topic's own settings by config. The broker shows a change before its logs go by it, and takes one after the
        other: when a second one is shown (flush.ms, at its largest either way), the first is in force."""
        from confluent_kafka.admin import ConfigResource
        config = {k: str(v) for k, v in config.items()}
        for wanted in (config, {**config, "flush.ms": str(2 ** 63 - 2)}):
            r = ConfigResource(ConfigResource.Type.TOPIC, name, set_config=wanted)
            self.admin.alter_configs([r])[r].result(timeout)
            wait_until(lambda: wanted.items() <= self.topic_config(name).items(), timeout, f"{name} to have {wanted}")

    def topic_config(self, name, timeout=30):
        from confluent_kafka.admin import ConfigResource
        r = ConfigResource(ConfigResource.Type.TOPIC, name)
        return {k: e.value for k, e in self.admin.describe_configs([r])[r].result(timeout).items()}

    def end_offsets(self, topic, isolation="read_committed", timeout=30):
        """{partition: high watermark or last stable offset}."""
        from confluent_kafka import Consumer, TopicPartition
        c = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "none", "isolation.level": isolation,
                      "log_level": 0})
        try:
            parts = c.list_topics(topic, timeout).topics[topic].partitions
            return {p: c.get_watermark_offsets(TopicPartition(topic, p), timeout)[1] for p in parts}
        finally:
            c.close()


# ---------------------------------------------------------------- Redis

class Redis(Server):
    """A private Redis, on a port of loopback and a Unix socket. persist=False: nothing outlives its process, as after a
    machine's loss; True: every write is on disk before it is answered, and start() finds it again."""

    def __init__(self, persist=False, port=None, config=None):
        self.name = "redis"
        self.dir = new_dir("redis")
        self.log = os.path.join(self.dir, "redis.log")
        self.socket = os.path.join(self.dir, "redis.sock")
        self.port = port or free_port()
        self.config = {"bind": "127.0.0.1", "port": self.port, "unixsocket": self.socket, "dir": self.dir, "save": "",
                       "appendonly": "yes" if persist else "no", "appendfsync": "always", "daemonize": "no",
                       "databases": 16, "loglevel": "warning"}
        self.config.update(config or {})

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self, timeout=90):
        argv = ["redis-server"]
        for k, v in self.config.items():
            argv += [f"--{k}", str(v)]
        self.proc = spawn(argv, log=self.log, env=_clean_env(), cwd=self.dir)
        self._remember()
        wait_until(lambda: not self.running() or self.accepts(), timeout, "Redis to answer")
        if not self.running():
            raise self._died()
        return self

    def accepts(self):
        try:
            return self.call("PING") == "PONG"
        except (OSError, RuntimeError):  # it is not up, or it loads what it has on disk
            return False

    def stop(self, timeout=30):
        """SIGTERM; start() again gives an empty one, or with persist the same."""
        if self.running():
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.wait(timeout)
        self._forget()

    def restart(self):
        self.stop()
        return self.start()

    def flush(self):
        self.call("FLUSHALL")

    def call(self, *args, timeout=30):
        """One command: a str, an int, None or a list of them; RuntimeError is what Redis refused."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as s, s.makefile("rb") as f:
            s.sendall(self._encode(args))
            return self._reply(f)

    def pipeline(self, commands, timeout=60):
        """Many commands on one connection; their replies."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as s, s.makefile("rb") as f:
            replies = []
            for i in range(0, len(commands), 1000):
                part = commands[i:i + 1000]
                s.sendall(b"".join(map(self._encode, part)))
                replies += [self._reply(f) for _ in part]
            return replies

    @staticmethod
    def _encode(args):
        parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)

    def _reply(self, f):
        line = f.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RuntimeError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            n = int(rest)
            return None if n < 0 else f.read(n + 2)[:-2].decode("utf-8", "replace")
        if kind == b"*":
            n = int(rest)
            return None if n < 0 else [self._reply(f) for _ in range(n)]
        return rest


# ---------------------------------------------------------------- our programs

def newer_librdkafka():
    """The directory of a librdkafka.so.1 newer than Debian's, for LD_LIBRARY_PATH; None when make setup could not get
    it."""
    with open(os.path.join(ROOT, "etc", "librdkafka", "requirements.txt"), encoding="ascii") as f:
        wheel = re.search(r"^confluent-kafka==(\S+)", f.read(), re.M).group(1)
    path = os.path.join(cache_dir(), f"librdkafka-of-{wheel}")
    return path if os.path.exists(os.path.join(path, "librdkafka.so.1")) else None


def _conf_value(v):
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, (int, float)):
        return str(v)
    if isinstance(v, (list, tuple)):
        return "( " + ", ".join(_conf_value(x) for x in v) + " )"
    if isinstance(v, dict):  # an element of a list
        return "{ " + " ".join(f"{k} = {_conf_value(x)};" for k, x in v.items()) + " }"
    return '"' + str(v).replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_config(path, tree):
    """Writes a dict as a libconfig file; nested dicts are groups."""
    def lines(d, indent):
        for k, v in d.items():
            if isinstance(v, dict):
                yield f"{indent}{k}: {{"
                yield from lines(v, indent + "  ")
                yield f"{indent}}};"
            else:
                yield f"{indent}{k} = {_conf_value(v)};"
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines(tree, "")) + "\n")
    return path


def _merge(base, more):
    for k, v in more.items():
        if isinstance(v, dict) and isinstance(base.get(k), dict):
            _merge(base[k], v)
        else:
            base[k] = v
    return base


_METRIC = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)")


class Daemon(Server):
    """One of our daemons with a config file of its own.

    config: nested dict merged over the defaults ({"limits": {"batch_events": 10}});
    override: list of "path=value" for -o; env: POSTRIDER_FAULT, POSTRIDER_SABOTAGE, ..."""
    program = None

    def __init__(self, name, config, more, override, env, variant, argv_front, port=None):
        self.name = name
        self.variant = variant or VARIANT
        word = self.program.split("-")[1]
        self.dir = new_dir(word)
        self.log = os.path.join(self.dir, f"{word}.log")
        self.port = port or free_port()
        self.override = list(override)
        self.argv_front = list(argv_front)
        self.env = dict(env or {})
        self.config = _merge(dict(config, http={"listen": f"127.0.0.1:{self.port}"}), more or {})
        self.file = write_config(os.path.join(self.dir, f"{word}.cfg"), self.config)

    def start(self, env=None, **fault):
        """env adds to the environment; fault="name", sabotage="name" and hold="name:/path" are short for it."""
        more = dict(self.env, **(env or {}))
        for k, v in fault.items():
            if k not in ("fault", "sabotage", "hold"):
                raise TypeError(f"start() has no argument {k}")
            more[f"POSTRIDER_{k.upper()}"] = v
        argv = self.argv_front + [bin_path(self.program, self.variant), "-c", self.file]
        for o in self.override:
            argv += ["-o", o]
        self.proc = spawn(argv, log=self.log, env=_clean_env(**more), cwd=self.dir)
        self._remember()
        return self

    def rewrite(self, config):
        """Merges config into the file (for SIGHUP tests)."""
        write_config(self.file, _merge(self.config, config))

    def get(self, path, timeout=20):
        """(status, body) of its HTTP port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def wait_ready(self, timeout=90):
        last = []

        def ready():
            if not self.running():
                raise self._died()
            try:
                status, body = self.get("/readyz")
            except OSError:
                return False
            last[:] = [status, body]
            return status == 200
        try:
            wait_until(ready, timeout, f"{self.name} to be ready")
        except AssertionError as e:
            raise AssertionError(f"{e}; /readyz said {last}\n{tail(self.log)}") from None
        return self

    def kill9(self):
        return self.kill()

    def terminate(self, timeout=60):
        """SIGTERM; returns the exit code."""
        self.signal(signal.SIGTERM)
        rc = self.wait(timeout)
        self._forget()
        return rc

    def stop(self):
        self.kill()

    def hup(self):
        self.signal(signal.SIGHUP)

    def metrics(self):
        """{'name': sum over labels, 'name{labels}': value}."""
        out = {}
        for line in self.get("/metrics")[1].splitlines():
            m = _METRIC.match(line)
            if m:
                v = float(m.group(3))
                out[m.group(1)] = out.get(m.group(1), 0.0) + v
                if m.group(2):
                    out[m.group(1) + m.group(2)] = v
        return out

    def metric(self, name, default=0.0):
        return self.metrics().get(name, default)

    def status(self):
        return json.loads(self.get("/status.json")[1])

    def cpu_seconds(self):
        """What all its threads have worked so far."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as f:
            user, system = f.read().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def rss_kb(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return next(int(x.split()[1]) for x in f if x.startswith("VmRSS"))

    def peak_rss_kb(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return next(int(x.split()[1]) for x in f if x.startswith("VmHWM"))

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()


class Relay(Daemon):
    """postrider-relay."""
    program = "postrider-relay"

    def __init__(self, conninfo, brokers, name="orders", delivery="exactly_once", config=None, override=(), env=None,
                 variant=None, argv_front=()):
        self.outbox = name
        super().__init__(f"relay {name}", {
            "name": name, "source": {"conninfo": conninfo}, "kafka": {"brokers": brokers}, "delivery": delivery,
        }, config, override, env, variant, argv_front)


class Consumer(Daemon):
    """postrider-consumer. conninfo None: without a database. handler: {"kind": "sql", "function": "..."}; port: for one that stands in for
    another, since the member's name in the group comes of it."""
    program = "postrider-consumer"

    def __init__(self, conninfo, brokers, group, topics, handler, config=None, override=(), env=None, variant=None,
                 argv_front=(), port=None):
        self.group = group
        super().__init__(f"consumer {group}", {
            "group": group, **({"database": {"conninfo": conninfo}} if conninfo else {}),
            "kafka": {"brokers": brokers, "topics": list(topics)}, "handler": dict(handler),
        }, config, override, env, variant, argv_front, port)


class Cli:
    """The operator's CLI `postrider` (or another of our programs)."""

    def __init__(self, program="postrider", variant=None):
        self.path = bin_path(program, variant)

    def run(self, *args, check=False, timeout=120, input=None, env=None):
        """CompletedProcess with text stdout and stderr; check=True asserts exit 0."""
        done = subprocess.run([self.path, *map(str, args)], capture_output=True, text=True, timeout=timeout,
                              input=input, stdin=subprocess.DEVNULL if input is None else None,
                              env=_clean_env(**(env or {})), cwd=test_dir())
        if check and done.returncode:
            raise AssertionError(f"{os.path.basename(self.path)} {' '.join(map(str, args))}: exit {done.returncode}\n"
                                 f"{done.stdout}{done.stderr}")
        return done

    __call__ = run


def stop_all():
    """Kills what still runs, youngest first, and removes the temporary data."""
    for server in reversed(list(_alive)):
        with contextlib.suppress(Exception):
            if isinstance(server, Postgres):
                server.proc.send_signal(signal.SIGCONT)
                server.stop("immediate", 10)
            else:
                server.kill()
    _alive.clear()
    if _made_test_dir and not os.environ.get("POSTRIDER_KEEP"):
        shutil.rmtree(_test_dir, ignore_errors=True)


atexit.register(stop_all)


def main(argv):
    """servers.py postgres|kafka|both -- COMMAND...: runs it with PR_TEST_CONNINFO, PR_TEST_BROKERS set."""
    if len(argv) < 3 or argv[0] not in ("postgres", "kafka", "both") or argv[1] != "--":
        print(main.__doc__, file=sys.stderr)
        return 2
    env = dict(os.environ)
    if argv[0] != "kafka":
        env["PR_TEST_CONNINFO"] = Postgres().start().conninfo()
    if argv[0] != "postgres":
        env["PR_TEST_BROKERS"] = Kafka(quick=True).start().bootstrap
    return subprocess.run(argv[2:], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
