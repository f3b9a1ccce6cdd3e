"""tests/e2e/test_admin_tls.py -- the admin HTTP with TLS: who comes in, who does not, and whom that holds up."""
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess

import pytest
import servers
from outbox import Outbox
from tls import Authority
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
REFUSED = (ssl.SSLError, OSError, http.client.HTTPException)
PATHS = ("/", "/healthz", "/readyz", "/metrics", "/status.json", "/history.json")


class Certs:
    """One authority for both sides, and what it has nothing to do with."""

    def __init__(self):
        self.ca, other = Authority(), Authority("Foreign")
        self.server, self.client = self.ca.issue("server"), self.ca.issue("client", cn="operator")
        self.expired, self.foreign = self.ca.issue("late", days=-1), other.issue("stranger")
        self.other = other

    def config(self, pair=None, mutual=True):
        crt, key = pair or self.server
        return {"cert": crt, "key": key, **({"client_ca": self.ca.crt} if mutual else {})}


def context(certs, pair=None, version=None):
    ctx = ssl.create_default_context(cafile=certs.ca.crt)
    if pair:
        ctx.load_cert_chain(*pair)
    if version:
        ctx.minimum_version = ctx.maximum_version = version
    return ctx


def fetch(port, path, ctx, timeout=20, **more):
    """(status, body)"""
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=ctx, timeout=timeout)) as c:
        c.request("GET", path, **more)
        answer = c.getresponse()
        return answer.status, answer.read().decode()


def serial(port, ctx):
    with socket.create_connection(("127.0.0.1", port), 60) as s, ctx.wrap_socket(s, server_hostname="127.0.0.1") as t:
        return t.getpeercert()["serialNumber"]


@pytest.fixture(scope="module")
def certs():
    return Certs()


@pytest.fixture(scope="module")
def me(certs):
    return context(certs, certs.client)


@pytest.fixture(scope="module")
def post(pg_server, kafka, certs, me):
    """A relay that wants its clients' certificates."""
    with Outbox(pg_server, kafka, "door", config={"http": {"tls": certs.config()}}) as o:
        o.relay.get = lambda path, timeout=20: fetch(o.relay.port, path, me, timeout)
        yield o.start()


def is_well(post):
    """It may be behind for a moment on a busy machine, and says so."""
    wait_until(lambda: post.relay.get("/readyz")[0] == 200, 60, "it to be ready", ignore=REFUSED)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_right(post, certs, version):
    ctx = context(certs, certs.client, version)
    is_well(post)
    for path in PATHS:
        assert fetch(post.relay.port, path, ctx)[0] == 200, path


@pytest.mark.parametrize("who", ["nobody", "foreign", "expired"])
def test_refused(post, certs, who):
    """Before a request is read: no path is open, health neither."""
    pair = None if who == "nobody" else getattr(certs, who)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for path in ("/healthz", "/status.json"):
            with pytest.raises(REFUSED):
                fetch(post.relay.port, path, context(certs, pair, version))
    is_well(post)


def test_plain(post):
    """Somebody speaks HTTP at it: no word of HTTP comes back."""
    with socket.create_connection(("127.0.0.1", post.relay.port), 60) as s:
        s.sendall(b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        got = b""
        with contextlib.suppress(ConnectionError):
            while more := s.recv(4096):
                got += more
    assert b"HTTP" not in got and b"{" not in got
    is_well(post)


def test_the_server_is_checked(post, certs):
    """Whoever trusts another authority does not speak to it."""
    ctx = ssl.create_default_context(cafile=certs.other.crt)
    ctx.load_cert_chain(*certs.client)
    with pytest.raises(ssl.SSLCertVerificationError):
        fetch(post.relay.port, "/", ctx)


def test_slow_handshake(post, certs, me):
    """More clients than there are places begin a handshake and never end it: another one is answered, and they are shown out."""
    hello = b"\x16\x03\x01\x02\x00\x01"  # a record that never comes to its end
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(100):
            slow.append(stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", post.relay.port), 20))))
            slow[-1].sendall(hello)
        is_well(post)
        for s in slow:
            s.settimeout(60)
            with contextlib.suppress(ConnectionError):
                while s.recv(100):
                    pass


def test_too_much(post, me):
    """A body that does not end is refused in the middle of it, in words that its sender can read."""
    with socket.create_connection(("127.0.0.1", post.relay.port), 20) as s, me.wrap_socket(s, server_hostname="127.0.0.1") as t:
        t.settimeout(60)
        with contextlib.suppress(OSError):
            t.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(64):
                t.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    is_well(post)


def test_events_flow(post):
    kind, topic = post.kind()
    post.publish(kind, "k")
    post.read(topic, 1)


def test_renewed(pg_server, kafka, certs, me, tmp_path):
    """SIGHUP takes renewed files; files that are not right are said, and the old ones stay."""
    crt, key = tmp_path / "server.crt", tmp_path / "server.key"

    def put(pair):
        for src, dst in zip(pair, (crt, key)):
            shutil.copyfile(src, f"{dst}.new")
            os.chmod(f"{dst}.new", 0o600)
            os.rename(f"{dst}.new", dst)
    put(certs.server)
    with Outbox(pg_server, kafka, "renew", config={"http": {"tls": certs.config((str(crt), str(key)))}}) as o:
        port = o.relay.port
        o.relay.get = lambda path, timeout=20: fetch(port, path, me, timeout)
        o.start()
        first = serial(port, me)
        put((certs.ca.issue("second")[0], certs.server[1]))  # another key's
        o.relay.hup()
        told = wait_until(lambda: [p for p in o.relay.status()["problems"] if p["what"] == "reload"], 30, "the trouble")
        assert "http.tls.cert" in told[0]["text"], told
        assert serial(port, me) == first
        put(certs.ca.issue("third"))
        o.relay.hup()
        wait_until(lambda: serial(port, me) != first, 30, "the new certificate")
        wait_until(lambda: not o.relay.status()["problems"], 30, "all to be well")


def start(tree, certs, **http):
    """(exit status, what it said) of a relay that shall not start."""
    r = servers.Relay("host=127.0.0.1 port=1", "127.0.0.1:1", config={"http": {"listen": "0.0.0.0:0", **http}})
    done = servers.Cli("postrider-relay").run("-c", r.file, *tree, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_off_loopback(certs, tmp_path):
    """Neither token nor authority of clients: it does not listen. TLS alone is no leave: anybody may ask then."""
    for http in ({}, {"tls": certs.config(mutual=False)}):
        code, text = start(["--check"], certs, **http)
        assert code == 78 and "needs http.token to listen off loopback" in text and "http.tls.client_ca" in text, text
    assert start(["--check"], certs, tls=certs.config())[0] == 0
    code, text = start(["--check"], certs, tls={"cert": certs.server[0]})
    assert code == 78 and "needs http.tls.key" in text
    code, text = start(["--check"], certs, tls={"client_ca": certs.ca.crt})
    assert code == 78 and "needs http.tls.cert" in text


def test_files_that_are_not_right(certs, tmp_path):
    """The start ends with 78 and names the file."""
    crt, key = certs.server
    open_key = shutil.copyfile(key, tmp_path / "open.key")
    os.chmod(open_key, 0o644)
    empty = tmp_path / "empty.crt"
    empty.write_text("")
    for tls, word in ((dict(certs.config(), cert="/nowhere.crt"), "/nowhere.crt"), (dict(certs.config(), key="/nowhere.key"), "/nowhere.key"),
                      (certs.config((crt, str(open_key))), "other users may read it"), (dict(certs.config(), client_ca=str(empty)), "empty.crt"),
                      (certs.config((crt, certs.client[1])), crt)):
        code, text = start([], certs, tls=tls)
        assert code == 78 and word in text, text


def test_consumer(pg_server, kafka, certs, me):
    db = pg_server.createdb(f"door_{os.getpid()}", schema=True)
    topic = kafka.create_topic(f"door.{os.getpid()}", 1)
    c = servers.Consumer(db.conninfo, kafka.bootstrap, f"door{os.getpid()}", [topic], {"kind": "http", "url": "http://127.0.0.1:1/"},
                         {"http": {"tls": certs.config()}})
    c.get = lambda path, timeout=20: fetch(c.port, path, me, timeout)
    try:
        c.start().wait_ready()
        with pytest.raises(REFUSED):
            fetch(c.port, "/healthz", context(certs))
    finally:
        c.kill()
        db.drop()


def test_cli(post, certs):
    """Who asks programs shows a certificate, by options or by the environment."""
    mine = ("--tls-ca", certs.ca.crt, "--tls-cert", certs.client[0], "--tls-key", certs.client[1])
    env = {"POSTRIDER_TLS_CA": certs.ca.crt, "POSTRIDER_TLS_CERT": certs.client[0], "POSTRIDER_TLS_KEY": certs.client[1]}
    assert json.loads(post.run("status", "--json", *mine, check=True).stdout)
    assert json.loads(post.run("status", "--json", env=env, check=True).stdout)
    assert post.run("status", "--tls-ca", certs.ca.crt).returncode != 0
    top = post.cli.run("top", "--json", f"https://127.0.0.1:{post.relay.port}", *mine)
    assert post.name in top.stdout, top.stdout + top.stderr
    done = post.run("doctor", *mine)
    assert f"https://127.0.0.1:{post.relay.port}" in done.stdout and "does not answer" not in done.stdout, done.stdout


def test_ui(post, certs):
    """The page of several programs asks them with a certificate of its own."""
    file = servers.write_config(os.path.join(servers.new_dir("ui"), "ui.cfg"), {
        "listen": "127.0.0.1:0", "relays": [f"https://127.0.0.1:{post.relay.port}"],
        "tls": {"ca": certs.ca.crt, "cert": certs.client[0], "key": certs.client[1]}, "timeout": "20s"})
    ui = subprocess.Popen([post.cli.path, "ui", "-c", file], stdout=subprocess.PIPE, text=True)
    try:
        port = int(ui.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as c:
            c.request("GET", "/")
            page = c.getresponse().read().decode()
        assert post.name in page and "does not answer" not in page
    finally:
        ui.terminate()
        ui.wait(30)
        ui.stdout.close()
