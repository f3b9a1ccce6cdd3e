"""tests/support/together.py -- requests that a service finds waiting at the same time, so that it answers them together
(lib/service_many.c): its workers for them are held up by a lock on a table, the others are sent meanwhile.

Refuses to guess: the requests are in the service's queue before the lock is given up, since its one thread has answered
what was asked behind them.
"""
import http.client
import json

import psycopg2
from service import Api, Answer
from wait import wait_until


class Sent:
    """A request that was sent; answer() waits for it. None: the service has died."""

    def __init__(self, port, path, body, token=None, key=None):
        self.conn = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.conn.connect()
        h = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {}),
             **({"Idempotency-Key": key} if key else {})}
        self.conn.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), h)

    def answer(self):
        try:
            r = self.conn.getresponse()
            return Answer(r.status, dict(r.getheaders()), r.read())
        except (http.client.HTTPException, OSError):
            return None
        finally:
            self.conn.close()


class Together:
    """with Together(port, conninfo, table, first) as t: t.send(path, body, ...) each; then t.go() and the answers. first: as many
    (path, body, token) as the service may handle batches at a time; they are answered too, and wait for the table."""

    def __init__(self, port, conninfo, table, first):
        self.port, self.table, self.first, self.sent, self.first_answers = port, table, first, [], None
        self.lock = psycopg2.connect(conninfo)
        self.look = psycopg2.connect(conninfo)
        self.look.autocommit = True

    def blocked(self):
        """Process ids of those who wait for the table."""
        with self.look.cursor() as c:
            c.execute("SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass", (self.table,))
            return [r[0] for r in c.fetchall()]

    def __enter__(self):
        with self.lock.cursor() as c:
            c.execute(f"LOCK TABLE {self.table} IN ACCESS EXCLUSIVE MODE")
        self.before = []
        for path, body, token in self.first:
            self.before.append(Sent(self.port, path, body, token))
            wait_until(lambda: len(self.blocked()) == len(self.before), 20, "a worker to wait for the table")
        return self

    def send(self, path, body, token=None, key=None):
        self.sent.append(Sent(self.port, path, body, token, key))

    def go(self):
        """The answers, in the order in which they were sent."""
        self.queued()
        self.release()
        return self.answers()

    def queued(self):
        for _ in range(3):
            assert Api(self.port).raw("GET", "/healthz").status == 200

    def release(self):
        self.lock.rollback()

    def first_answered(self):
        """Waits for the answers to those that were sent first: each has a worker, which may be later than the others' work."""
        self.first_answers = self.first_answers or [s.answer() for s in self.before]

    def answers(self):
        self.first_answered()
        return [s.answer() for s in self.sent]

    def __exit__(self, *_):
        self.lock.close()
        self.look.close()
