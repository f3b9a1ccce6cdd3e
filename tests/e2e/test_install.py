"""tests/e2e/test_install.py -- make install into an empty directory: the programs run from there, the units are what
systemd accepts, and as closed as we say."""
import json
import os
import re
import shutil
import subprocess

import pytest
import servers

pytestmark = pytest.mark.timeout(300)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SERVICES = ("user", "concert", "queue", "reservation", "payment", "order", "platform")
PROGRAMS = ("postrider", "postrider-relay", "postrider-consumer", *(f"postrider-{s}" for s in SERVICES))
EXPOSED_MOST = 15  # of 100, as systemd-analyze security counts: network and a user that is not the instance's own


def run(*argv, env=None, **kw):
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, env=env, **kw)


def make(*args):
    done = run("make", "-s", f"VARIANT={servers.VARIANT}", *args, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What is installed lies where it will be: units can be verified. PREFIX is the empty directory."""
    place = tmp_path_factory.mktemp("install") / "opt"
    make("install", f"PREFIX={place}")
    return place


def test_destdir(tmp_path):
    """A packager's way: all below DESTDIR, and no word of DESTDIR in what is installed."""
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert os.listdir(tmp_path) == ["usr"]
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.parent.name != "bin":
            assert str(tmp_path) not in file.read_text(), file
            assert "/usr/local" not in file.read_text() or file.suffix == ".h", file
    unit = (tmp_path / "usr/lib/systemd/system/postrider-relay@.service").read_text()
    assert "ExecStart=/usr/bin/postrider-relay -c /etc/postrider/relay/%i.cfg" in unit
    assert (tmp_path / "usr/lib/sysusers.d/postrider.conf").exists() and (tmp_path / "usr/lib/tmpfiles.d/postrider.conf").exists()


def test_programs_run(place):
    version = open(os.path.join(ROOT, "VERSION"), encoding="ascii").read().strip()
    assert sorted(os.listdir(place / "bin")) == sorted(PROGRAMS)
    for program in PROGRAMS:
        done = run(place / "bin" / program, "--version")
        assert done.returncode == 0 and done.stdout.split()[:2] == [program, version], done
    for program in PROGRAMS:  # its manual says what --help says
        page = (place / f"share/man/man1/{program}.1").read_text().replace("\\-", "-")
        assert page.startswith(".") and f"\n{program} - " in page and "SYNOPSIS" in page
    for program, sample in (("relay", "relay.cfg"), ("consumer", "consumer.cfg"), *((s, f"services/{s}.cfg") for s in SERVICES)):
        done = run(place / "bin" / f"postrider-{program}", "--check", "-c", place / "share/postrider" / sample)
        assert done.returncode == 0 and done.stdout == "configuration ok\n", done
    engine = run(place / "bin/postrider-consumer", "--check", "-c", place / "share/postrider/services/engine-consumer.cfg")
    assert engine.returncode == 0, engine.stderr  # it finds the sagas that were installed with it


def units(place):
    return sorted((place / "lib/systemd/system").iterdir())


def test_units(place):
    """Each program has one; systemd takes every line of it."""
    assert [u.name for u in units(place)] == sorted(f"postrider-{p}@.service" for p in ("relay", "consumer", *SERVICES))
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    for unit in units(place):
        text = unit.read_text()
        assert "@bindir@" not in text and "@service@" not in text and "@common@" not in text
        for line in ("Type=notify", "WatchdogSec=60", "NoNewPrivileges=yes", "User=postrider"):
            assert f"\n{line}\n" in text, (unit.name, line)
        assert re.search(r"^LoadCredential=pg_service\.conf:/etc/postrider/credentials/", text, re.M)
        one = unit.with_name(unit.name.replace("@.", "@8080."))
        shutil.copy(unit, one)
        done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", one)
        one.unlink()
        said = [line for line in (done.stdout + done.stderr).splitlines() if "postrider" in line]
        assert done.returncode == 0 and not said, done.stdout + done.stderr


def test_units_are_closed(place):
    """The score of systemd-analyze security, lower is better; a line taken away from a unit shows here."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    for unit in units(place):
        done = run("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSED_MOST}", unit)
        assert done.returncode == 0, done.stdout[-300:] + done.stderr
        open_door = unit.with_name("open@.service")
        open_door.write_text(unit.read_text().replace("ProtectSystem=strict\n", "").replace("CapabilityBoundingSet=\n", ""))
        done = run("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSED_MOST}", open_door)
        open_door.unlink()
        assert done.returncode != 0


def test_credentials(place, tmp_path):
    """What LoadCredential= puts into $CREDENTIALS_DIRECTORY is found by that name; without systemd the name is explained."""
    cfg = tmp_path / "relay.cfg"
    cfg.write_text('name = "orders";\nsource: { conninfo = "service=orders"; };\nkafka: { brokers = "127.0.0.1:9092"; properties = ('
                   '"security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=relay",'
                   ' "sasl.password=file:${CREDENTIALS_DIRECTORY}/kafka.password" ); };\n')
    (tmp_path / "kafka.password").write_text("hush-hush\n")
    env = {k: v for k, v in os.environ.items() if k != "CREDENTIALS_DIRECTORY"}
    relay = place / "bin/postrider-relay"
    done = run(relay, "--check", "-c", cfg, env={**env, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    shown = run(relay, "--print-config", "-c", cfg, env={**env, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert shown.returncode == 0 and "hush" not in shown.stdout
    done = run(relay, "--check", "-c", cfg, env=env)
    assert done.returncode == 78 and "CREDENTIALS_DIRECTORY is not set" in done.stderr and "LoadCredential" in done.stderr
    (tmp_path / "kafka.password").write_text("\n")  # what the unit gives where there is no file
    done = run(relay, "--check", "-c", cfg, env={**env, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert done.returncode == 78 and "is empty" in done.stderr
    assert json.dumps(done.stderr).count("hush") == 0


def test_packages(tmp_path):
    """debian/*.install share out all that is installed, each file to one package; the changelog's version is VERSION's."""
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert run("sh", os.path.join(ROOT, "debian/place.sh"), tmp_path).returncode == 0
    taken = {}
    for package in ("postrider", "postrider-examples"):
        with open(os.path.join(ROOT, f"debian/{package}.install"), encoding="ascii") as f:
            for pattern in f.read().split():
                found = list(tmp_path.glob(pattern))
                assert found, f"{package}: {pattern} is nothing"
                for file in (x for top in found for x in ([top] if top.is_file() else top.rglob("*")) if x.is_file()):
                    assert taken.setdefault(file, package) == package, file
    left = [str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*") if x.is_file() and x not in taken]
    assert not left
    with open(os.path.join(ROOT, "VERSION"), encoding="ascii") as v, open(os.path.join(ROOT, "debian/changelog"), encoding="utf-8") as c:
        assert c.readline().startswith(f"postrider ({v.read().strip()}) ")
    services = {p for f, p in taken.items() if f.name.endswith("@.service") and f.name not in ("postrider-relay@.service", "postrider-consumer@.service")}
    assert services == {"postrider-examples"}
    for script in ("debian/postrider.postrm", "debian/place.sh", "debian/build.sh", "deploy/systemd/install.sh", "docs/man/program.sh"):
        assert run("sh", "-n", os.path.join(ROOT, script)).returncode == 0


def test_purge(tmp_path):
    """The configuration and the secrets go; a file that a sink has not been rid of stays, and so does who else is in /etc/postrider."""
    with open(os.path.join(ROOT, "debian/postrider.postrm"), encoding="ascii") as f:
        script = tmp_path / "postrm"
        script.write_text(f.read().replace("/etc/", f"{tmp_path}/etc/").replace("/var/", f"{tmp_path}/var/"))
    for name in ("etc/postrider/relay/a.cfg", "etc/postrider/credentials/relay-a/http.token", "etc/postrider/services/user.cfg",
                 "var/lib/postrider/consumer/sink/x.ndjson", "var/lib/postrider/consumer/idle/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "var/lib/postrider/consumer/idle/y").unlink()
    assert run("sh", script, "remove").returncode == 0 and (tmp_path / "etc/postrider/relay/a.cfg").exists()
    assert run("sh", script, "purge").returncode == 0
    left = sorted(str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*") if x.is_file())
    assert left == ["etc/postrider/services/user.cfg", "postrm", "var/lib/postrider/consumer/sink/x.ndjson"]
    assert not (tmp_path / "var/lib/postrider/consumer/idle").exists()
