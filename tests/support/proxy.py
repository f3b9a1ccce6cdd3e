"""tests/support/proxy.py -- starts and drives the fault proxy (proxy_main.c).

    with Proxy("kafka", upstream_port=kafka.proxied_port, port=kafka.proxy_port) as p:
        p.rule("down", f"kafka:{END_TXN}", 1, "drop+cut")     # the reply to COMMIT is lost
        ...
        p.wait_fired()
"""
import os
import signal
import socket

import servers
from wait import wait_until

# Kafka api keys
PRODUCE, FETCH, LIST_OFFSETS, METADATA = 0, 1, 2, 3
FIND_COORDINATOR, INIT_PRODUCER_ID, ADD_PARTITIONS_TO_TXN, END_TXN = 10, 22, 24, 26


class Proxy(servers.Server):
    """protocol: raw, postgres or kafka; port 0 takes a free one (see .port after start)."""

    def __init__(self, protocol, upstream_port, port=0, variant=None):
        self.name = f"proxy {protocol}"
        self.protocol, self.upstream_port, self.port = protocol, upstream_port, port
        self.dir = servers.new_dir("proxy")
        self.log = os.path.join(self.dir, "proxy.log")
        self.path = os.path.join(self.dir, "control")
        self.program = servers.bin_path("proxy", variant)

    def start(self):
        argv = [self.program, self.protocol, str(self.port), str(self.upstream_port), self.path]
        self.proc = servers.spawn(argv, log=self.log)
        self._remember()

        def ready():
            if not self.running():
                raise self._died()
            with open(self.log, encoding="utf-8") as f:
                return f.readline().endswith("\n")
        wait_until(ready, 30, "the proxy to listen")
        with open(self.log, encoding="utf-8") as f:
            self.port = int(f.readline().split()[1])
        return self

    def stop(self):
        """SIGTERM; a proxy that leaked (ASan) or crashed fails the test here."""
        if self.running():
            self.signal(signal.SIGTERM)
        rc = self.wait(30)
        self._forget()
        if rc:
            raise self._died()

    def __enter__(self):
        return self.start()

    def __exit__(self, exc_type, *_):
        if exc_type:
            self.kill()
        else:
            self.stop()

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def conninfo(self, dbname="postgres", **more):
        more = "".join(f" {k}={v}" for k, v in more.items())
        return f"host=127.0.0.1 port={self.port} dbname={dbname} user=postgres{more}"

    def _ask(self, line):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(self.path)
            s.sendall(line.encode() + b"\n")
            answer = s.makefile().readline().strip()
        if answer.startswith("error:") or not answer:
            raise ValueError(f"proxy: {line!r}: {answer or 'no answer'}")
        return answer

    def rule(self, direction, match, nth=1, action="cut"):
        """See the top of proxy_main.c. match: any, bytes, kafka:KEY, pg:TYPE[:TEXT]."""
        self._ask(f"rule {direction} {match} {nth} {action}")

    def latency(self, ms):
        self._ask(f"latency {int(ms)}")

    def freeze(self):
        """A black hole both ways: connections stay, nothing passes until thaw()."""
        self._ask("freeze")

    def thaw(self):
        self._ask("thaw")

    def refuse(self, on=True):
        """New connections are reset."""
        self._ask(f"refuse {'on' if on else 'off'}")

    def reset_all(self):
        """RST on all connections of now."""
        self._ask("reset")

    def cut_all(self):
        """FIN on all connections of now."""
        self._ask("cut")

    def set_upstream(self, port):
        """For new connections."""
        self._ask(f"upstream {port}")

    def clear(self):
        """No rules, no latency, no freeze; connections in a hole are reset."""
        self._ask("clear")

    def stats(self):
        """Counts since the start: connections, open, fired, dropped, up.messages, down.bytes,
        up.KEY and down.KEY (Kafka api key, or ord() of a Postgres message type)."""
        return {k: int(v) for k, v in (x.split("=") for x in self._ask("stats").split())}

    def wait_fired(self, n=1, timeout=30):
        """Until n rules have fired since the start."""
        wait_until(lambda: self.stats()["fired"] >= n, timeout, f"{n} proxy rules to fire")
