"""tests/fault/test_service_kill.py -- a service that dies in the middle of a request: what its client asks again under
the same Idempotency-Key is done once."""
import http.client
import json

import pytest
from service import Api, Service
from wait import wait_until

pytestmark = pytest.mark.timeout(240)
FAST = {"password": {"passes": 1, "memory": "8kB"}}


@pytest.fixture
def user(empty_db):
    made = []

    def make(**kw):
        made.append(Service("user", empty_db.conninfo, config=FAST, **kw))
        return made[-1]
    make.db = empty_db
    yield make
    for s in made:
        s.kill()


def test_killed_between_the_commit_and_the_answer(user):
    """If we die at service_answered, the user is committed and his client knows nothing: the same request again must
    give him that user, not a conflict and not a second one."""
    body = {"email": "ann@example.org", "password": "secret-1", "name": "Ann"}
    s = user().start(fault="service_answered").wait_ready()
    with pytest.raises((http.client.HTTPException, OSError)):
        Api(s.port).post("/users", body, key="k-1")
    assert s.wait() != 0
    made = user.db.one('SELECT user_id::text FROM "user".user_account')
    s = user().start().wait_ready()
    again = Api(s.port).post("/users", body, key="k-1")
    assert (again.status, again.json) == (201, {"user_id": made})
    assert Api(s.port).post("/users", body, key="k-2").problem == "email-taken"
    assert user.db.query("SELECT type, count(*) FROM outbox.event GROUP BY 1") == [("UserCreated", 1)]


def test_killed_at_any_moment(user):
    """kill -9 while a request is under way, ten times: with its key asked again, each user is there once."""
    s = user().start().wait_ready()
    for n in range(10):
        body = {"email": f"u{n}@example.org", "password": "secret-1", "name": "U"}
        c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=30)
        c.request("POST", "/users", json.dumps(body), {"Content-Type": "application/json", "Idempotency-Key": f"k-{n}"})
        wait_until(lambda: n % 2 or user.db.one('SELECT count(*) FROM "user".user_account') > n, 30, "the row")
        s.kill9()
        c.close()
        s = user().start().wait_ready()
        assert Api(s.port).post("/users", body, key=f"k-{n}").status == 201
    assert user.db.one('SELECT count(*) FROM "user".user_account') == 10
    assert user.db.one("SELECT count(*) FROM outbox.event") == 10
