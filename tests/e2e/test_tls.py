"""tests/e2e/test_tls.py -- TLS and logins for real: an authority of our own, a broker and a Postgres that want both, and
everything that can be wrong about it. What is wrong is said within seconds with what to do, no secret is shown, and
nothing is lost once it is put right.

Stories: a broker with an expired certificate left the relay "starting" for ten seconds and then at "init transactions:
Timed out waiting for operation to finish" without a hint, for the client's own words were read before the client was
asked for them; and Debian's librdkafka 2.0.2 cannot log in by SCRAM at Kafka 4, which looks like a wrong password.
"""
import json
import os

import pytest

import servers
import tls
from outbox import header, read_topic, unique
from wait import wait_until

DB_SECRET, KAFKA_SECRET, WRONG = "correct-Battery9", "right-Horse7", "wrong-Staple5"


class World:
    """One authority, one broker with a listener for each way to be wrong, one Postgres."""

    def __init__(self):
        self.ca, self.other = tls.Authority(), tls.Authority("Other Authority")
        stores = {"GOOD": {}, "MUTUAL": {}, "SASLPLAIN": {}, "SASLSCRAM": {}, "EXPIRED": {"days": -1},
                  "OTHERNAME": {"names": "DNS:broker.example", "cn": "broker.example"}}
        self.kafka = tls.Kafka({n: self.ca.store(n.lower(), **kw) for n, kw in stores.items()}, self.ca,
                               {"app": KAFKA_SECRET}).start().warm()
        self.pg = tls.postgres(*self.ca.issue("postgres"), DB_SECRET)
        self.made = []

    def close(self):
        for server in self.made:
            server.kill()
        self.kafka.kill()
        self.pg.stop("immediate")

    def outbox(self):
        """A database with schemas and position topic, and its name."""
        db = self.pg.createdb(unique("tls"), schema=True)
        db.query("GRANT outbox_relay, outbox_writer, inbox_consumer, outbox_operator TO app")
        servers.Cli().run("init", "--conninfo", db.conninfo, "--brokers", self.kafka.bootstrap, "--name", db.name,
                          check=True)
        self.kafka.create_topic(f"outbox.event.{db.name}")
        return db

    def secret_file(self, word):
        path = os.path.join(self.ca.dir, unique("secret"))
        with open(path, "w", encoding="ascii") as f:
            f.write(word + "\n")
        os.chmod(path, 0o600)
        return path

    def passfile(self, word):
        return self.secret_file(f"*:*:*:*:{word}")

    def conninfo(self, db, ca=None, secret=DB_SECRET, **more):
        return tls.conninfo(self.pg, db.name, "app", ca or self.ca, passfile=self.passfile(secret), **more)

    def ssl(self, ca=None, *more):
        return ["security.protocol=SSL", f"ssl.ca.location={(ca or self.ca).crt}", *more]

    def sasl(self, secret=KAFKA_SECRET, mechanism="PLAIN"):
        return ["security.protocol=SASL_SSL", f"ssl.ca.location={self.ca.crt}", f"sasl.mechanisms={mechanism}",
                "sasl.username=app", f"sasl.password=file:{self.secret_file(secret)}"]

    def relay(self, db, listener, properties, conninfo=None, **more):
        brokers = self.kafka.at(listener) if listener else self.kafka.bootstrap
        r = servers.Relay(conninfo or self.conninfo(db), brokers, name=db.name,
                          config={"kafka": {"properties": properties}}, **more)
        self.made.append(r)
        return r

    def publish(self, db, n):
        db.query("INSERT INTO outbox.event (aggregatetype, aggregateid, type, payload) "
                 "SELECT %s, 'k', g::text, '{}' FROM generate_series(1, %s) g", (db.name, n))

    def published(self, db, n):
        records = read_topic(self.kafka, f"outbox.event.{db.name}", n)
        return [header(r, "type").decode() for r in records]


@pytest.fixture(scope="module")
def world():
    if not servers.kafka_jars():
        pytest.skip("no Kafka jars: run make setup with Maven Central within reach")
    w = World()
    yield w
    w.close()


def tells(daemon, state, sentence, hint, timeout=60):
    """Waits for the state with those words, in /readyz, /status.json and, once, in the log."""
    def said():
        a = daemon.status()
        return a["state"] == state and sentence in a["sentence"] and hint in a["hint"] and a
    wait_until(said, timeout, f"{state}: {sentence} ({hint})\n{daemon.log_text()[-1500:]}", ignore=(OSError,))
    assert daemon.get("/readyz")[0] == 503
    assert hint in " ".join(p["hint"] for p in daemon.status()["problems"])


def keeps_silent(daemon):
    """No secret in anything that somebody else may read."""
    daemon_says = [daemon.log_text()]
    if daemon.running():
        daemon_says += [daemon.get(page)[1] for page in ("/status.json", "/readyz", "/metrics", "/")]
        for f in ("cmdline", "environ"):
            with open(f"/proc/{daemon.pid}/{f}", encoding="utf-8", errors="replace") as proc:
                daemon_says.append(proc.read())
    daemon_says.append(servers.Cli(daemon.program).run("-c", daemon.file, "--print-config", check=True).stdout)
    for secret in (DB_SECRET, KAFKA_SECRET, WRONG):
        assert not any(secret in text for text in daemon_says), secret


def put_right(world, db, relay, **config):
    """Restarted as it should be, it publishes what was committed meanwhile, once, in order."""
    if relay.running():
        assert relay.terminate() == 0
    relay.rewrite(config)
    relay.start().wait_ready()
    assert world.published(db, 3) == ["1", "2", "3"]
    keeps_silent(relay)
    assert relay.terminate() == 0


def test_all_of_it(world):
    """Relay by PLAIN over TLS, consumer by a certificate of its own, the CLI: all with verify-full."""
    db = world.outbox()
    relay = world.relay(db, "SASLPLAIN", world.sasl()).start().wait_ready()
    world.publish(db, 3)
    assert world.published(db, 3) == ["1", "2", "3"]
    db.psql("""CREATE TABLE public.effect (type text); GRANT ALL ON public.effect TO app;
        CREATE FUNCTION public.f(m inbox.message) RETURNS void LANGUAGE sql AS 'INSERT INTO public.effect VALUES (m.type)'""")
    crt, key = world.ca.issue("client", cn="app")
    consumer = servers.Consumer(world.conninfo(db), world.kafka.at("MUTUAL"), db.name, [f"outbox.event.{db.name}"],
                                {"kind": "sql", "function": "public.f"}, config={"kafka": {"properties": world.ssl(
                                    None, f"ssl.certificate.location={crt}", f"ssl.key.location={key}")}})
    world.made.append(consumer)
    consumer.start().wait_ready()
    wait_until(lambda: db.query("SELECT type FROM public.effect") == [("1",), ("2",), ("3",)], 60, "the effect")
    users = db.query("SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app'")
    assert users == [(True,)]
    shown = json.loads(servers.Cli().run("position", "show", "-c", relay.file, "--json", check=True).stdout)
    assert shown, shown
    for daemon in (relay, consumer):
        keeps_silent(daemon)
        with open(f"/proc/{daemon.pid}/limits", encoding="ascii") as f:  # what is in memory stays there
            assert next(x for x in f if x.startswith("Max core file size")).split()[4:6] == ["0", "0"]
        assert daemon.terminate() == 0


KAFKA_TROUBLE = {
    "authority": ("GOOD", lambda w: w.ssl(w.other), "is refused: self-signed certificate in certificate chain",
                  "ssl.ca.location"),
    "expired": ("EXPIRED", lambda w: w.ssl(), "is refused: certificate has expired", "renew the broker's certificate"),
    "name": ("OTHERNAME", lambda w: w.ssl(), "is refused: hostname mismatch", "advertised.listeners"),
    "ours": ("MUTUAL", lambda w: w.ssl(), "refuses our TLS certificate", "ssl.key.location"),
    "password": ("SASLPLAIN", lambda w: w.sasl(WRONG), "refuses the login", "sasl.password"),
    "plain": ("GOOD", lambda w: ["compression.codec=none"], "no broker", "security.protocol"),
}


@pytest.mark.parametrize("trouble,delivery", [(t, "exactly_once") for t in KAFKA_TROUBLE] + [
    ("expired", "at_least_once"), ("password", "at_least_once")])
def test_kafka_refuses_the_relay(world, trouble, delivery):
    listener, properties, sentence, hint = KAFKA_TROUBLE[trouble]
    db = world.outbox()
    quick = {"kafka": {"timeout": "3s" if trouble == "plain" else "60s", "properties": properties(world)}}
    relay = world.relay(db, listener, [], delivery=delivery)
    relay.rewrite(quick)
    relay.start()
    world.publish(db, 3)
    tells(relay, "error", sentence, hint)
    keeps_silent(relay)
    told = [line for line in relay.log_text().splitlines() if sentence in line]
    assert len(told) == 1 and (hint in told[0] or trouble == "plain"), told
    put_right(world, db, relay, kafka={"brokers": world.kafka.at("GOOD"), "properties": world.ssl(), "timeout": "10s"})


POSTGRES_TROUBLE = {
    "authority": ({"ca": "other"}, "certificate verify failed", "openssl s_client -starttls postgres", None),
    "name": ({"host": "db.example"}, 'does not match host name "db.example"', "connect by a name", None),
    "password": ({"secret": WRONG}, "password authentication failed", "check user and password", 77),
    "no tls": ({"sslmode": "disable"}, "no encryption", "sslmode=verify-full", 77),
}


@pytest.mark.parametrize("trouble", POSTGRES_TROUBLE)
def test_postgres_refuses_the_relay(world, trouble):
    how, sentence, hint, status = POSTGRES_TROUBLE[trouble]
    db = world.outbox()
    how = dict(how, ca=getattr(world, how["ca"])) if "ca" in how else how
    bad = world.conninfo(db, how.get("ca"), how.get("secret", DB_SECRET))
    for word in ("host", "sslmode"):
        if word in how:
            bad = " ".join(f"{word}={how[word]}" if w.startswith(word + "=") else w for w in bad.split())
    relay = world.relay(db, None, [], bad).start()
    world.publish(db, 3)
    if status:
        assert relay.wait() == status
        assert sentence in relay.log_text() and hint in relay.log_text()
    else:
        tells(relay, "error", sentence, hint)
    keeps_silent(relay)
    put_right(world, db, relay, source={"conninfo": world.conninfo(db)})


def test_a_certificate_expires_under_the_relay(world):
    """Renewed and reloaded on the server, the relay goes on by itself."""
    db = world.outbox()
    relay = world.relay(db, "GOOD", world.ssl()).start().wait_ready()
    try:
        tls.certify(world.pg, *world.ca.issue("past", days=-1))
        world.pg.reload()
        # Those that are let in while the server still has the old one, too; then there is none to cut.
        wait_until(lambda: (world.pg.kill_backend("usename = 'app'"), relay.status()["state"] == "error")[1], 60,
                   "the relay to notice")
        world.publish(db, 3)
        tells(relay, "error", "certificate verify failed", "has expired")
    finally:
        tls.certify(world.pg, *world.ca.issue("renewed"))
        world.pg.reload()
    assert world.published(db, 3) == ["1", "2", "3"]
    relay.wait_ready()
    keeps_silent(relay)


@pytest.mark.parametrize("trouble", ("expired", "password"))
def test_kafka_refuses_the_consumer(world, trouble):
    listener, properties, sentence, hint = KAFKA_TROUBLE[trouble]
    db = world.outbox()
    db.psql("""CREATE TABLE public.effect (type text); GRANT ALL ON public.effect TO app;
        CREATE FUNCTION public.f(m inbox.message) RETURNS void LANGUAGE sql AS 'INSERT INTO public.effect VALUES (m.type)'""")
    relay = world.relay(db, "GOOD", world.ssl()).start()
    world.publish(db, 3)
    consumer = servers.Consumer(world.conninfo(db), world.kafka.at(listener), db.name, [f"outbox.event.{db.name}"],
                                {"kind": "sql", "function": "public.f"}, config={"kafka": {"properties": properties(world)}})
    world.made.append(consumer)
    consumer.start()
    tells(consumer, "error", sentence, hint)
    keeps_silent(consumer)
    assert consumer.terminate() == 0
    consumer.rewrite({"kafka": {"brokers": world.kafka.at("GOOD"), "properties": world.ssl()}})
    consumer.start().wait_ready()
    wait_until(lambda: db.query("SELECT type FROM public.effect") == [("1",), ("2",), ("3",)], 60, "the effect")
    relay.kill()
    consumer.kill()


@pytest.mark.parametrize("trouble,status", (("expired", 69), ("password", 77)))
def test_kafka_refuses_the_operator(world, trouble, status):
    listener, properties, sentence, hint = KAFKA_TROUBLE[trouble]
    db = world.outbox()
    relay = world.relay(db, listener, properties(world))
    done = servers.Cli().run("position", "show", "-c", relay.file)
    assert done.returncode == status and sentence in done.stderr and hint in done.stderr, done
    assert WRONG not in done.stdout + done.stderr


def test_scram(world):
    """A password that was set right on the broker is taken without a restart. The right one is not enough for librdkafka
    before 2.6.1 at Kafka 4, and the hint says so."""
    db = world.outbox()
    relay = world.relay(db, "SASLSCRAM", world.sasl(mechanism="SCRAM-SHA-256"))
    newer = servers.newer_librdkafka()
    world.publish(db, 3)
    if newer:
        world.kafka.password("app", WRONG)
        relay.start(env={"LD_LIBRARY_PATH": newer})
        tells(relay, "error", "refuses the login", "check sasl.mechanisms, sasl.username and sasl.password")
    world.kafka.password("app", KAFKA_SECRET)
    if newer:
        assert world.published(db, 3) == ["1", "2", "3"]
        relay.wait_ready()
        keeps_silent(relay)
        relay.kill()
    before = len(relay.log_text()) if newer else 0
    relay.start()
    wait_until(lambda: "librdkafka=" in relay.log_text()[before:], 60, "the relay's first line")
    if "librdkafka=2.0.2" in relay.log_text()[before:]:
        tells(relay, "error", "refuses the login", "librdkafka 2.0.2 cannot log in by SCRAM at Kafka 4")
        keeps_silent(relay)
    else:
        relay.wait_ready()


@pytest.mark.parametrize("program", ("postrider-relay", "postrider-consumer"))
def test_pages_off_loopback_want_a_token(world, program):
    """Said by --check, before anything listens."""
    word = program.split("-")[1]
    cfg = os.path.join(servers.ROOT, "etc", f"{word}.cfg")
    done = servers.Cli(program).run("-c", cfg, "--check", "-o", "http.listen=*:9999")
    assert done.returncode == 78 and "http.listen" in done.stderr and "http.token" in done.stderr, done.stderr
    token = world.secret_file(WRONG)
    servers.Cli(program).run("-c", cfg, "--check", "-o", "http.listen=*:9999", "-o", f"http.token=file:{token}", check=True)
