"""tests/support/tls.py -- certificates made at test time, and servers that want them.

Refuses to reuse a key: each test module makes its own authority, nothing secret is in the tree.
"""
import os
import shutil
import subprocess

import servers

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True)


class Authority:
    """A certificate authority: .crt is what clients trust."""

    def __init__(self, name="Test Authority"):
        self.dir = servers.new_dir("ca")
        self.crt, self.key = self._path("ca.crt"), self._path("ca.key")
        openssl("req", "-x509", *EC, "-keyout", self.key, "-out", self.crt, "-days", "2", "-subj", f"/CN={name}")

    def _path(self, name):
        return os.path.join(self.dir, name)

    def issue(self, label, names="DNS:localhost,IP:127.0.0.1", days=2, cn="localhost"):
        """(certificate, key) files; days=-1: expired since yesterday."""
        crt, key, csr = (self._path(f"{label}.{end}") for end in ("crt", "key", "csr"))
        openssl("req", *EC, "-keyout", key, "-out", csr, "-subj", f"/CN={cn}", "-addext", f"subjectAltName={names}")
        openssl("x509", "-req", "-in", csr, "-CA", self.crt, "-CAkey", self.key, "-CAcreateserial", "-copy_extensions",
                "copy", "-days", str(days), "-out", crt)
        return crt, key

    def store(self, label, **kw):
        """One PEM file with key and chain, as Kafka's keystores are."""
        crt, key = self.issue(label, **kw)
        path = self._path(f"{label}.pem")
        with open(path, "w", encoding="ascii") as out:
            for part in (key, crt, self.crt):
                with open(part, encoding="ascii") as f:
                    out.write(f.read())
        return path


def postgres(crt, key, secret, roles=("app",)):
    """A Postgres with TLS; the named roles need TLS and the password, postgres needs neither."""
    pg = servers.Postgres({"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"})
    certify(pg, crt, key)
    path = os.path.join(pg.data, "pg_hba.conf")
    with open(path, encoding="utf-8") as f:
        rest = f.read()
    with open(path, "w", encoding="utf-8") as f:
        for role in roles:
            f.write(f"hostssl all {role} 127.0.0.1/32 scram-sha-256\nhostnossl all {role} 127.0.0.1/32 reject\n")
        f.write(rest)
    pg.start()
    for role in roles:
        pg.query(f"CREATE ROLE {role} LOGIN PASSWORD '{secret}'")
    return pg


def certify(pg, crt, key):
    """Puts the pair where the server reads it at its start and at a reload."""
    for src, name in ((crt, "server.crt"), (key, "server.key")):
        dst = os.path.join(pg.data, name)
        shutil.copyfile(src, dst)
        os.chmod(dst, 0o600)
        if os.geteuid() == 0:
            shutil.chown(dst, pg.user, pg.user)


def conninfo(pg, dbname, user, ca, **more):
    """As an application across a network has it: the server's certificate and name are checked."""
    words = dict(host="localhost", hostaddr=pg.host, port=pg.port, dbname=dbname, user=user, sslmode="verify-full",
                 sslrootcert=ca.crt, **more)
    return " ".join(f"{k}={v}" for k, v in words.items())


class Kafka(servers.Kafka):
    """A broker with a plain listener for the test and one for each of stores: {"GOOD": file, ...}. SASLPLAIN and
    SASLSCRAM want a login (users: of PLAIN; of SCRAM by password()), MUTUAL wants the client's certificate, too."""

    def __init__(self, stores, ca, users):
        self.ports = {name: servers.free_port() for name in stores}
        proto = {n: "SASL_SSL" if n.startswith("SASL") else "SSL" for n in stores}
        config = {"listener.security.protocol.map": ",".join(
            f"{n}:{p}" for n, p in dict(proto, PLAINTEXT="PLAINTEXT", CONTROLLER="PLAINTEXT").items()),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256"}
        for name, path in stores.items():
            at = f"listener.name.{name.lower()}."
            config |= {at + "ssl.keystore.type": "PEM", at + "ssl.keystore.location": path,
                       at + "ssl.truststore.type": "PEM", at + "ssl.truststore.location": ca.crt}
            if name == "MUTUAL":
                config[at + "ssl.client.auth"] = "required"
            if name == "SASLPLAIN":
                config[at + "sasl.enabled.mechanisms"] = "PLAIN"
                config[at + "plain.sasl.jaas.config"] = \
                    "org.apache.kafka.common.security.plain.PlainLoginModule required " + " ".join(
                        f'user_{user}="{secret}"' for user, secret in users.items()) + ";"
            if name == "SASLSCRAM":
                config[at + "sasl.enabled.mechanisms"] = "SCRAM-SHA-256"
                config[at + "scram-sha-256.sasl.jaas.config"] = \
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        super().__init__(config, quick=True)

    def _write_properties(self):
        mine = [f"PLAINTEXT://127.0.0.1:{self.port}"] + [f"{n}://localhost:{p}" for n, p in self.ports.items()]
        self.config["listeners"] = ",".join(mine + [f"CONTROLLER://127.0.0.1:{self.controller_port}"])
        self.config["advertised.listeners"] = ",".join(mine)
        super()._write_properties()

    def at(self, name):
        return f"localhost:{self.ports[name]}"

    def password(self, user, secret):
        """Makes the user, or changes its password; the broker need not be restarted."""
        done = subprocess.run(self._java("-XX:TieredStopAtLevel=1", "kafka.admin.ConfigCommand", "--bootstrap-server",
                                         self.bootstrap, "--alter", "--entity-type", "users", "--entity-name", user,
                                         "--add-config", f"SCRAM-SHA-256=[iterations=4096,password={secret}]"),
                              capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"no password for {user}: {done.stdout}{done.stderr}")
