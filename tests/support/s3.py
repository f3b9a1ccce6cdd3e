"""tests/support/s3.py -- an object store that speaks S3 and checks signatures (s3proxy, over a directory), and a
man in the middle who answers in its place, slowly, by half or not at all.

Refuses to ask the sink whether it did well: what is in the bucket is read from the store's directory.
"""
import contextlib
import hashlib
import hmac
import http.client
import os
import re
import signal
import socket
import threading
import time
import urllib.parse
import xml.sax.saxutils

import servers
from wait import wait_until

ACCESS, SECRET = "AKIDPOSTRIDER", "not-a-secret-of-anybody"


def jars():
    """The classpath of the store; None when make setup could not get it."""
    with open(os.path.join(servers.ROOT, "etc/s3proxy/pom.xml"), encoding="utf-8") as f:
        version = re.search(r"<artifactId>s3proxy</artifactId>\s*<version>(.*?)</version>", f.read()).group(1)
    path = os.path.join(servers.cache_dir(), f"s3proxy-{version}")
    return os.path.join(path, "*") if os.path.exists(os.path.join(path, f"s3proxy-{version}.jar")) else None


class Store(servers.Server):
    """One store; buckets are directories below .data."""

    name = "s3proxy"

    def __init__(self):
        self.port = servers.free_port()
        self.dir = servers.new_dir("s3")
        self.data = os.path.join(self.dir, "data")
        self.log = os.path.join(self.dir, "s3proxy.log")
        os.mkdir(self.data)
        with open(os.path.join(self.dir, "s3proxy.conf"), "w", encoding="ascii") as f:
            f.write(f"""s3proxy.endpoint=http://127.0.0.1:{self.port}
s3proxy.authorization=aws-v4
s3proxy.identity={ACCESS}
s3proxy.credential={SECRET}
jclouds.provider=filesystem-nio2
jclouds.filesystem.basedir={self.data}
""")
        with open(os.path.join(self.dir, "logback.xml"), "w", encoding="ascii") as f:
            f.write('<configuration><appender name="S" class="ch.qos.logback.core.ConsoleAppender"><encoder><pattern>'
                    '%level %msg%n</pattern></encoder></appender><root level="warn"><appender-ref ref="S"/></root>'
                    '</configuration>')

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout=60):
        argv = ["java", "-Xmx192m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
                f"-Dlogback.configurationFile={self.dir}/logback.xml", "-cp", jars(), "org.gaul.s3proxy.Main",
                "--properties", os.path.join(self.dir, "s3proxy.conf")]
        self.proc = servers.spawn(argv, log=self.log)
        self._remember()

        def ready():
            if not self.running():
                raise self._died()
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return True
            except OSError:
                return False
        wait_until(ready, timeout, "the object store to listen")
        return self

    def stop(self):
        if self.running():
            self.signal(signal.SIGTERM)
        self.wait(60)
        self._forget()

    def bucket(self, name):
        os.mkdir(os.path.join(self.data, name))
        return name

    def _ask(self, method, path, query, body=b""):
        """One signed request; its answer's body."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        path = urllib.parse.quote(path)
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"127.0.0.1:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": stamp}
        names = ";".join(headers)
        request = "\n".join([method, path, query, *(f"{k}:{v}" for k, v in headers.items()), "", names, digest])
        key = ("AWS4" + SECRET).encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        headers["Authorization"] = (f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope},SignedHeaders={names},"
                                    f"Signature={hmac.digest(key, text.encode(), 'sha256').hex()}")
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            c.request(method, f"{path}?{query}", body or None, headers)
            r = c.getresponse()
            answer = r.read().decode()
            assert r.status == 200, answer
            return answer
        finally:
            c.close()

    def put(self, bucket, key, data):
        """An object, as anybody may put one: without a word of whose it is."""
        self._ask("PUT", f"/{bucket}/{key}", "", data)

    def begin(self, bucket, key):
        """An upload under way; its id."""
        return re.search("<UploadId>(.*?)</UploadId>", self._ask("POST", f"/{bucket}/{key}", "uploads=")).group(1)

    def uploads(self, bucket):
        """[(key, id)] of what is under way."""
        body = self._ask("GET", f"/{bucket}", "uploads=")
        return [(re.search("<Key>(.*?)</Key>", u).group(1), re.search("<UploadId>(.*?)</UploadId>", u).group(1))
                for u in re.findall("<Upload>.*?</Upload>", body, re.S)]

    def objects(self, bucket, under=""):
        """{key: bytes} of what everybody sees; parts under way are none of it."""
        found = {}
        top = os.path.join(self.data, bucket)
        for at, _, files in os.walk(os.path.join(top, under)):
            for name in files:
                path = os.path.join(at, name)
                key = os.path.relpath(path, top)
                # The store writes beside the object, under its name with a uuid behind, and moves it there.
                if not key.startswith(".mpus") and not name.endswith((".tmp", ".part")) and not re.search(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", name):
                    with contextlib.suppress(FileNotFoundError), open(path, "rb") as f:
                        found[key] = f.read()
        return found


class Between:
    """Listens beside the store and passes requests on. rules: a list of [pattern of "METHOD path?query", how often,
    what]; what is a status (500: answered in the store's place, with code), "half" (the answer is cut in its midst),
    "lost" (passed on, and the answer never comes: the connection is cut), "cut" (cut in the midst of the request's
    body, which the store never sees), ("slow", seconds)."""

    def __init__(self, store):
        self.store, self.rules, self.seen = store, [], []
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def rule(self, pattern, what, times=1):
        with self._lock:
            self.rules.append([re.compile(pattern), times, what])

    def clear(self):
        with self._lock:
            self.rules.clear()

    def count(self, pattern):
        with self._lock:
            return sum(bool(re.search(pattern, s)) for s in self.seen)

    def close(self):
        self._stopped.set()
        self._socket.close()

    def _accept(self):
        while True:
            try:
                c, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(c,), daemon=True).start()

    def _what(self, line):
        with self._lock:
            self.seen.append(line)
            for r in self.rules:
                if r[1] > 0 and r[0].search(line):
                    r[1] -= 1
                    return r[2]
        return None

    def _serve(self, c):
        with c, c.makefile("rb") as f:
            try:
                while self._one(c, f):
                    pass
            except OSError:
                pass

    def _one(self, c, f):
        line = f.readline().decode("ascii")
        if not line.strip():
            return False
        method, target, _ = line.split(" ", 2)
        headers = []
        while (h := f.readline().decode("latin-1").rstrip("\r\n")):
            name, value = h.split(":", 1)
            headers.append((name.strip(), value.strip()))
        length = int(next((v for k, v in headers if k.lower() == "content-length"), 0))
        what = self._what(f"{method} {target}")
        if what == "cut":
            f.read(length // 2)
            return False
        body = f.read(length)
        if isinstance(what, tuple) and what[0] == "slow":
            self._stopped.wait(what[1])
        elif isinstance(what, tuple):
            return self._answer(c, method, *what)
        return self._pass(c, method, target, headers, body, what)

    @staticmethod
    def _answer(c, method, status, code, more=""):
        text = f"<Error><Code>{xml.sax.saxutils.escape(code)}</Code><Message>by the test</Message>{more}</Error>"
        body = b"" if method == "HEAD" else text.encode()
        c.sendall(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return True

    def _pass(self, c, method, target, headers, body, what):
        up = http.client.HTTPConnection("127.0.0.1", self.store.port, timeout=60)
        try:
            up.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                up.putheader(name, f"127.0.0.1:{self.port}" if name.lower() == "host" else value)
            up.endheaders(body)
            r = up.getresponse()
            data = r.read()
        finally:
            up.close()
        if what == "lost":
            return False
        size = r.getheader("Content-Length") if method == "HEAD" else len(data)
        head = [f"HTTP/1.1 {r.status} {r.reason}"]
        head += [f"{k}: {v}" for k, v in r.getheaders()
                 if k.lower() not in ("content-length", "transfer-encoding", "connection")]
        head.append(f"Content-Length: {size or 0}")
        c.sendall("\r\n".join(head).encode("latin-1") + b"\r\n\r\n")
        if what == "half":
            c.sendall(data[:len(data) // 2])
            return False
        c.sendall(data)
        return True
