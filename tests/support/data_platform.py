"""tests/support/data_platform.py -- drives postrider-platform over real HTTP: what it is sent, how it is to misbehave, and what
it says it has. Refuses an answer that its openapi.json does not have.
"""
import bisect
import collections
import json
import uuid

import pytest
from service import Api, Service
from wait import WaitTimeout, wait_until

JSON, LINES = "application/json", "application/x-ndjson"


class Platform:
    def __init__(self, db, **config):
        self.db = db
        self.service = Service("platform", db.conninfo, config=config).start().wait_ready()
        self.api = Api(self.service.port)

    def send(self, body, media=JSON, key=None, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        return self.api.call("POST", "/events", data, headers={"Content-Type": media, **headers}, key=key)

    def taken(self, *a, **kw):
        answer = self.send(*a, **kw)
        assert answer.status == 200, answer
        return tuple(answer.json[k] for k in ("stored", "duplicates", "conflicts"))

    def counts(self):
        c = self.api.get("/counts").json
        return tuple(c[k] for k in ("stored", "duplicates", "conflicts"))

    def switch(self, **switches):
        answer = self.api.post("/switches", {"slow_ms": 0, "fail_status": 0, "fail_every": 1, "fail_stored": False, "retry_after": 0,
                                             "refuse_id": "", **switches})
        assert answer.status == 200, answer
        return answer.json

    def facts(self, query=""):
        answer = self.api.get(f"/facts{query}")
        assert answer.status == 200, answer
        return answer.json


class Away:
    """An inbox whose topic is copied to a platform."""

    def __init__(self, i, config=None):
        self.i = i
        self.platform = Platform(i.pg.createdb(i.name + "p"), **(config or {}))
        self.url = f"http://127.0.0.1:{self.platform.service.port}/events"
        self.ids = []

    def consumer(self, config=None, start=True, **more):
        http = {"url": self.url, "max_records": 20, "max_age": "100ms", "timeout": "5s", **more}
        c = self.i.consumer({"kind": "sink", "http": http}, config={"lanes": 2, **(config or {})})
        return c.start() if start else c

    def send(self, n, keys=7, payload=None, **more):
        """n events; their ids, in order."""
        ids = []
        for k in range(n):
            ids.append(str(uuid.uuid4()))
            self.i.put(f"k{k % keys}".encode(), json.dumps(payload or {"n": len(self.ids) + k, "text": "차"}).encode(),
                       [("id", ids[-1].encode()), ("type", b"Paid")], **more)
        self.i.flush()
        self.ids += ids
        return ids

    def stored(self):
        return self.platform.counts()[0]

    def arrives(self, n, timeout=60):
        try:
            wait_until(lambda: self.stored() >= n, timeout, f"{n} facts", ignore=(KeyError,))  # its database may be away
        except WaitTimeout as e:
            raise AssertionError(f"{e}: {self.platform.counts()}; {self.i.standing()}\n{self.i.logs()}") from None

    def once(self, without=(), timeout=60):
        """All that was sent is there once, nothing came twice, each partition in order, and positions stand at the end."""
        ids = [i for i in self.ids if i not in set(without)]
        self.arrives(len(ids), timeout)
        self.i.stands(timeout)
        assert self.platform.counts() == (len(ids), 0, 0), self.i.logs()
        rows = self.platform.db.query("SELECT event_id, partition, message_offset, received_at FROM platform.fact ORDER BY 2, 3")
        assert sorted(r[0] for r in rows) == sorted(ids)
        self._in_order(rows)

    def _in_order(self, rows):
        """Of each partition no batch came before the one in front of it."""
        cuts = collections.defaultdict(list)
        for partition, first in self.i.db.query("SELECT partition, first_offset FROM sink.cut ORDER BY 1, 2"):
            cuts[partition].append(first)
        times = collections.defaultdict(list)
        for _, partition, offset, at in rows:
            times[partition, bisect.bisect_right(cuts[partition], offset)].append(at)
        places = sorted(times)
        for a, b in zip(places, places[1:]):
            assert a[0] != b[0] or max(times[a]) <= min(times[b]), (a, b)

    def close(self):
        self.platform.service.kill()
        for c in self.i.consumers:
            c.kill()
        self.platform.db.drop()


@pytest.fixture
def away(inbox):
    made = []

    def make(platform=None, **more):
        made.append(Away(inbox(**more), platform))
        return made[-1]
    yield make
    for a in made:
        a.close()
