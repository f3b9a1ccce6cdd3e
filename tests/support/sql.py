"""tests/support/sql.py -- what tests of the SQL interfaces do again and again: roles that log in, calls that must be
refused, sessions that wait for each other.

Refuses to end a transaction that a test left open otherwise than by rolling it back.
"""
import contextlib
import threading
import uuid

import psycopg2
import pytest
from wait import wait_until


def refused(call, *args, **kw):
    """The server's word on a call that must fail: (SQLSTATE, message, hint or detail)."""
    with pytest.raises(psycopg2.Error) as e:
        call(*args, **kw)
    return e.value.pgcode, e.value.diag.message_primary, e.value.diag.message_hint or e.value.diag.message_detail or ""


@contextlib.contextmanager
def login(db, *roles):
    """A fresh login role that was granted the given ones, and a connection as that role."""
    name = f"login_{uuid.uuid4().hex[:12]}"
    db.query(f"CREATE ROLE {name} LOGIN")
    for role in roles:
        db.query(f"GRANT {role} TO {name}")
    conn = db.connect(user=name)
    try:
        yield conn
    finally:
        conn.close()
        db.query(f"DROP OWNED BY {name}")
        db.query(f"DROP ROLE {name}")


def run(conn, sql, args=None):
    with conn.cursor() as cur:
        cur.execute(sql, args)
        return cur.fetchall() if cur.description else []


@contextlib.contextmanager
def session(db):
    """A connection with an open transaction; rolled back unless the test commits."""
    with contextlib.closing(db.connect(autocommit=False)) as c:
        yield c


class Call(threading.Thread):
    """Runs a call beside the test; result() gives what it returned, or raises what it raised."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.value, self.error = call, None, None
        self.start()

    def run(self):
        try:
            self.value = self.call()
        except psycopg2.Error as e:
            self.error = e

    def result(self):
        self.join(60)
        assert not self.is_alive(), "still running"
        if self.error:
            raise self.error
        return self.value


def wait_blocked(db, conn):
    wait_until(lambda: db.one("SELECT coalesce(bool_or(wait_event_type = 'Lock'), false) FROM pg_stat_activity "
                              "WHERE pid = %s", (conn.info.backend_pid,)), 20, "the session to wait for a lock")


def ask(on, sql, args=None):
    """On a connection, or on one of its own when it is a database."""
    return on.query(sql, args) if hasattr(on, "query") else run(on, sql, args)
