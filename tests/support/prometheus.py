"""tests/support/prometheus.py -- a real Prometheus that judges by our rules, a minute of them in a second.

Refuses to say that an alert fires before Prometheus says it.
"""
import json
import os
import urllib.parse
import urllib.request

import rules
import servers
import yaml
from wait import WaitTimeout, wait_until


class Prometheus(servers.Server):
    """Scrapes what .watch() names, each second."""

    def __init__(self, factor=60):
        self.name = "prometheus"
        self.port = servers.free_port()
        self.dir = servers.new_dir("prometheus")
        self.log = os.path.join(self.dir, "prometheus.log")
        self.targets = os.path.join(self.dir, "targets.json")
        self.watched = {}
        self._write()
        self.file = os.path.join(self.dir, "prometheus.yml")
        with open(self.file, "w", encoding="utf-8") as f:
            yaml.safe_dump({
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": [rules.hurry(os.path.join(self.dir, "rules.yml"), factor)],
                "scrape_configs": [{"job_name": "postrider-test", "file_sd_configs": [
                    {"files": [self.targets], "refresh_interval": "1s"}]}],
            }, f)

    def _write(self):
        with open(self.targets + ".json", "w", encoding="utf-8") as f:
            json.dump([{"targets": [f"127.0.0.1:{p}" for p in self.watched]}], f)
        os.rename(self.targets + ".json", self.targets)

    def start(self):
        self.proc = servers.spawn([
            "prometheus", f"--config.file={self.file}", f"--storage.tsdb.path={self.dir}/data", "--log.level=warn",
            f"--web.listen-address=127.0.0.1:{self.port}"], log=self.log)
        self._remember()

        def ready():
            if not self.running():
                raise AssertionError(servers.tail(self.log))
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as r:
                return r.status == 200
        wait_until(ready, 60, "Prometheus to be ready", ignore=(OSError,))
        return self

    def watch(self, *daemons):
        for d in daemons:
            self.watched[d.port] = d.name
        self._write()
        return daemons[0]

    def get(self, path, **query):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as r:
            return json.load(r)["data"]

    def query(self, expr):
        """[(labels, number)]"""
        return [(s["metric"], float(s["value"][1])) for s in self.get("query", query=expr)["result"]]

    def firing(self, name, **labels):
        return [a for a in self.get("alerts")["alerts"] if a["state"] == "firing" and
                {"alertname": name, **labels}.items() <= a["labels"].items()]

    def fires(self, name, timeout=150, **labels):
        """Until it fires with these labels; returns it."""
        try:
            return wait_until(lambda: self.firing(name, **labels), timeout, f"{name} to fire", interval_max=0.5, ignore=(OSError,))[0]
        except WaitTimeout as e:
            label, who = next(iter(labels.items()), ("job", "postrider-test"))
            seen = sorted((m["__name__"], m.get("what") or m.get("state") or m.get("outcome") or "", v)
                          for m, v in self.query(f'{{{label}="{who}",__name__=~".*postrider_.*",__name__!~".*_bucket"}}') if v)
            alerts = [(a["labels"]["alertname"], a["state"]) for a in self.get("alerts")["alerts"] if a["labels"].get(label) == who]
            raise AssertionError(f"{e}; alerts {alerts}; what is not 0: {seen}") from None

    def ends(self, name, timeout=120, **labels):
        wait_until(lambda: not self.firing(name, **labels), timeout, f"{name} to end", interval_max=0.5, ignore=(OSError,))
