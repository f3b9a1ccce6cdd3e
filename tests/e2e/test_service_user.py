"""tests/e2e/test_service_user.py -- postrider-user over real HTTP and Postgres: accounts, logins, tokens, and every
kind of bad input, after which nothing has changed. Each answer is checked against openapi.json."""
import base64
import json
import os
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import servers
from inbox import inbox  # noqa: F401
from service import Api, Service
from wait import wait_until

pytestmark = pytest.mark.timeout(200)
FAST = {"password": {"passes": 1, "memory": "8kB"}}
ANN = {"email": "ann@example.org", "password": "secret-1", "name": "Ann"}


class Users:
    def __init__(self, db, **config):
        self.db = db
        self.service = Service("user", db.conninfo, config={**FAST, **config}).start().wait_ready()
        self.api = Api(self.service.port)

    def make(self, body=None, **kw):
        answer = self.api.post("/users", body or ANN, **kw)
        assert answer.status == 201, answer
        assert answer.headers["Location"] == f"/users/{answer.json['user_id']}"
        return answer.json["user_id"]

    def login(self, body=None, **kw):
        answer = self.api.post("/login", body or {k: ANN[k] for k in ("email", "password")}, **kw)
        return answer.json["access_token"] if answer.status == 200 else answer

    def count(self):
        return self.db.query('SELECT (SELECT count(*) FROM "user".user_account), (SELECT count(*) FROM "user".credential),'
                             " (SELECT count(*) FROM outbox.event), (SELECT count(*) FROM service.idempotency)")[0]


@pytest.fixture(scope="module")
def shared(pg_server):
    """One service for the tests that only ask."""
    db = pg_server.createdb(f"user_{os.getpid()}")
    u = Users(db, login={"attempts": 1000})
    u.id = u.make()
    u.token = u.login()
    yield u
    u.service.kill()
    db.drop()


@pytest.fixture
def users(empty_db):
    made = []

    def make(**config):
        made.append(Users(empty_db, **config))
        return made[-1]
    yield make
    for u in made:
        u.service.kill()


def part(token, i):
    text = token.split(".")[i]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def b64(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_an_account(users):
    """Made, published in the same transaction, shown to its owner and to nobody else."""
    u = users()
    ann = u.make()
    bob = u.make({**ANN, "email": "bob@example.org", "name": "밥 \"; DROP SCHEMA \"user\" CASCADE; --"})
    token = u.login()
    shown = u.api.get(f"/users/{ann}", token=token)
    assert shown.status == 200
    assert {k: shown.json[k] for k in ("user_id", "email", "name", "state")} == {
        "user_id": ann, "email": ANN["email"], "name": "Ann", "state": "ACTIVE"}
    assert u.api.get(f"/users/{bob}", token=token).problem == "not-yours"
    assert u.api.get(f"/users/{ann}").status == 401
    assert u.api.get("/users/not-a-uuid", token=token).status == 404
    events = u.db.query("SELECT aggregatetype, aggregateid, type, payload FROM outbox.event ORDER BY seq")
    assert [e[:3] for e in events] == [("user", ann, "UserCreated"), ("user", bob, "UserCreated")]
    assert events[1][3]["name"].startswith("밥")
    stored = u.db.one('SELECT string_agg(password_hash, \' \') FROM "user".credential')
    assert stored.count("$argon2id$") == 2 and ANN["password"] not in stored
    assert "secret-1" not in u.service.log_text()


@pytest.mark.tsan
def test_a_second_account_with_the_email(users):
    u = users()
    u.make()
    before = u.count()
    assert u.api.post("/users", {**ANN, "email": "ANN@example.org"}).problem == "email-taken"
    assert u.count() == before
    with ThreadPoolExecutor(4) as pool:
        got = [a.status for a in pool.map(lambda _: u.api.post("/users", {**ANN, "email": "x@y.z"}), range(4))]
    assert sorted(got) == [201, 409, 409, 409]


@pytest.mark.asan
@pytest.mark.tsan
def test_idempotency_key(users):
    """The same key and content give the same answer and one account; other content 422; another's key is another."""
    u = users()
    first = u.make(key="k")
    assert u.make(key="k") == first
    assert u.make({"name": "Ann", "password": "secret-1", "email": "ann@example.org"}, key="k") == first
    for other in ({**ANN, "name": "Anna"}, {**ANN, "password": "secret-2"}, {**ANN, "email": "a@b.c"}):
        assert u.api.post("/users", other, key="k").problem == "idempotency-key-reused"
    assert u.count()[0] == 1
    for bad in ("", "x" * 256):
        assert u.api.post("/users", {**ANN, "email": "q@r.s"}, key=bad).status in ((201, 400) if not bad else (400,))
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda _: u.api.post("/users", {**ANN, "email": "six@b.c"}, key="six"), range(6)))
    assert {a.status for a in got} <= {201, 409} and any(a.status == 201 for a in got)
    assert len({a.json["user_id"] for a in got if a.status == 201}) == 1
    assert all(a.problem == "request-in-progress" and a.headers["Retry-After"] for a in got if a.status == 409)
    wait_until(lambda: u.db.one("SELECT count(*) FROM service.idempotency") >= 2, 30)


def test_idempotent_login_stores_no_token(users):
    """The same login twice is the same token, made anew; a wrong password is never answered by a remembered one."""
    u = users()
    u.make()
    token = u.login(key="l")
    assert u.login(key="l") == token
    assert u.login({"email": ANN["email"], "password": "wrong"}, key="l").problem == "wrong-credentials"
    kept = u.db.one("SELECT string_agg(i::text, '') FROM service.idempotency AS i")
    assert token.split(".")[2] not in kept and "secret-1" not in kept


def test_keys_are_forgotten(users):
    u = users(idempotency={"keep": "1s"})
    first = u.make(key="k")
    wait_until(lambda: u.count()[3] == 0, 40, "the key to be forgotten")
    assert u.api.post("/users", ANN, key="k").problem == "email-taken"
    assert u.count()[0] == 1 and first


def test_wrong_password_and_unknown_user_look_the_same(users):
    """They take as long, too: both compute one hash. What the service's process has worked, whoever else is on the machine, within a
    factor, with hashes that dominate."""
    u = users(password={"passes": 2, "memory": "16MB"}, login={"attempts": 1000})
    u.make()
    answers, work = {}, {}
    for email in (ANN["email"], "nobody@example.org") * 9:
        began = u.service.cpu_seconds()
        a = u.api.post("/login", {"email": email, "password": "wrong-1"})
        work[email] = work.get(email, 0) + u.service.cpu_seconds() - began
        answers[email] = (a.status, a.text)
    known, unknown = work.values()
    assert len(set(answers.values())) == 1 and answers[ANN["email"]][0] == 401
    assert known > 0.1 and 0.5 < known / unknown < 2, (known, unknown)


def test_attempts_are_limited(users):
    """Also the right password waits then, also of a user who is not there; a success ends the count."""
    u = users(login={"attempts": 3, "window": "10m"})
    u.make()
    for _ in range(2):
        assert u.login({"email": ANN["email"], "password": "wrong"}).status == 401
    assert isinstance(u.login(), str)
    for email in (ANN["email"], "nobody@example.org"):
        for _ in range(3):
            assert u.login({"email": email, "password": "wrong"}).problem == "wrong-credentials"
        limited = u.login({"email": email.upper(), "password": ANN["password"]})
        assert limited.problem == "too-many-attempts" and 1 <= int(limited.headers["Retry-After"]) <= 600
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: u.login({"email": "many@x.y", "password": "wrong"}), range(8)))
    assert sum(a.status == 401 for a in got) <= 3
    assert u.login().problem == "too-many-attempts"
    u.db.query('UPDATE "user".login_attempt SET window_ends = window_ends - interval \'11m\'')
    assert isinstance(u.login(), str), "the window has ended"
    wait_until(lambda: u.db.one('SELECT count(*) FROM "user".login_attempt') == 0, 45, "windows that have ended to be forgotten")


def test_a_locked_account(users):
    u = users()
    ann = u.make()
    assert u.db.one('SELECT "user".set_state(%s, \'LOCKED\')', (ann,)) is True
    assert u.login().problem == "locked"
    assert u.login({"email": ANN["email"], "password": "wrong"}).problem == "wrong-credentials"


BAD_BODIES = [
    (b"", 400, []), (b"{", 400, []), (b"[]", 400, []), (b"null", 400, []), (b'{"email": 1e}', 400, []),
    (b'{"email":"a@b.c","email":"d@e.f","password":"secret-1","name":"A"}', 400, []),
    (b'{"email":"a@b.c","password":"secret-1","name":"A"} x', 400, []),
    (b'{"email":"a@b.c","password":"secret-1","name":"A"}\0', 400, []),
    (b'{"email":"a@b.c","password":"secret-1","name":"A\\u0000B"}', 400, []),
    (b'{"email":"a@b.c","password":"secret-1","name":"\\ud800"}', 400, []),
    (b"[" * 50000, 400, []),
    (b'{"email":"a@b.c","password":"secret-1","name":' + b"[" * 200 + b"]" * 200 + b"}", 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1","name":"\xff"}', 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1"}', 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1","name":null}', 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1","name":""}', 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1","name":"\\u0007"}', 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1","name":7}', 422, ["name"]),
    (b'{"email":"a@b.c","password":"secret-1","name":1e999}', 422, ["name"]),
    (b'{"email":"a@b.c","password":12345678901234567890,"name":"A"}', 422, ["password"]),
    (b'{"email":{"$ne":""},"password":"secret-1","name":"A"}', 422, ["email"]),
    (b'{"email":"no address","password":"secret-1","name":"A"}', 422, ["email"]),
    (b'{"email":"a@b.c","password":"short","name":"A"}', 422, ["password"]),
    (b'{"email":"a@b.c","password":"secret-1","name":"' + b"x" * 201 + b'"}', 422, ["name"]),
    (b'{"email":"' + b"a" * 254 + b'@b.c","password":"secret-1","name":"A"}', 422, ["email"]),
    (b'{"name":"' + b"x" * 70000 + b'"}', 413, []),
]


@pytest.mark.asan
@pytest.mark.parametrize("body,status,members", BAD_BODIES, ids=[repr(b[0][-40:]) for b in BAD_BODIES])
def test_bad_bodies(shared, body, status, members):
    before = shared.count()
    answer = shared.api.post("/users", body, key="bad")
    assert (answer.status, answer.members) == (status, members), answer
    assert shared.count() == before


def test_media_types(shared):
    body = json.dumps({**ANN, "email": "m@n.o"}).encode()
    for bad in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        assert shared.api.post("/users", body, headers={"Content-Type": bad}).status == 415
    assert shared.api.post("/users", body, headers={"Content-Type": "application/json; charset=utf-8"}).status == 201
    assert shared.api.call("PUT", "/users", body, check=False).status == 405
    assert shared.api.call("GET", "/users/", check=False, token=shared.token).status == 404
    assert shared.api.call("GET", f"/users/{shared.id}/x", check=False, token=shared.token).status == 404
    assert shared.api.get("/users/%00", check=False, token=shared.token).status == 400
    assert shared.api.get("/users/'%20OR%201=1", token=shared.token).status == 404


def forged(token, shared):
    """Each of them is refused with 401, by GET /users/{id} and by POST /tokens/verify alike."""
    head, claims, sig = part(token, 0), part(token, 1), token.split(".")[2]
    now = int(time.time())
    yield "none", f'{b64({**head, "alg": "none"})}.{b64(claims)}.'
    yield "none, signed", f'{b64({**head, "alg": "none"})}.{b64(claims)}.{sig}'
    yield "hs256 of the public key", f'{b64({**head, "alg": "HS256"})}.{b64(claims)}.{sig}'
    yield "wrong key", f"{b64(head)}.{b64(claims)}.{b64(os.urandom(64))}"
    yield "unknown key", f'{b64({**head, "kid": "nobody"})}.{b64(claims)}.{sig}'
    yield "no key", f'{b64({"alg": "EdDSA"})}.{b64(claims)}.{sig}'
    yield "crit", f'{b64({**head, "crit": ["exp"]})}.{b64(claims)}.{sig}'
    yield "another's id", f'{token.split(".")[0]}.{b64({**claims, "sub": str(uuid.uuid4())})}.{sig}'
    yield "longer life", f'{token.split(".")[0]}.{b64({**claims, "exp": now + 10 ** 6})}.{sig}'
    yield "cut", token[:-1]
    yield "longer", token + "A"
    yield "another last letter", token[:-1] + ("B" if token[-1] == "A" else "A")
    yield "padded", token + "=="
    yield "two parts", ".".join(token.split(".")[:2])
    yield "four parts", token + ".x"
    yield "no token", "x"
    yield "too long", "a" * 3000
    yield "rubbish", "...."


@pytest.mark.asan
def test_forged_tokens(shared):
    assert shared.api.get(f"/users/{shared.id}", token=shared.token).status == 200
    for name, bad in forged(shared.token, shared):
        answer = shared.api.get(f"/users/{shared.id}", token=bad)
        assert answer.problem == "unauthorized", (name, answer)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer"), name
        verdict = shared.api.post("/tokens/verify", {"token": bad})
        assert verdict.status == 200 and verdict.json["valid"] is False and verdict.json["reason"], name
    assert shared.api.get(f"/users/{shared.id}", headers={"Authorization": "Basic YTpi"}).status == 401


def test_a_good_token(shared):
    jwt = pytest.importorskip("jwt", reason="PyJWT")
    verdict = shared.api.post("/tokens/verify", {"token": shared.token})
    assert verdict.json["valid"] is True and verdict.json["user_id"] == shared.id
    jwks = shared.api.get("/.well-known/jwks.json")
    assert "max-age" in jwks.headers["Cache-Control"]
    key = jwt.algorithms.OKPAlgorithm.from_jwk(json.dumps(
        next(k for k in jwks.json["keys"] if k["kid"] == part(shared.token, 0)["kid"])))
    claims = jwt.decode(shared.token, key, algorithms=["EdDSA"], audience="postrider", issuer="postrider-user")
    assert claims["sub"] == shared.id
    assert "private" not in jwks.text and '"d"' not in jwks.text


def test_an_expired_token(users):
    u = users(jwt={"life": "1s"})
    ann = u.make()
    token = u.login()
    expired = wait_until(lambda: (a := u.api.get(f"/users/{ann}", token=token)).status == 401 and a, 30, "its end")
    assert "expired" in expired.json["detail"]
    assert u.api.post("/tokens/verify", {"token": token}).json == {"valid": False, "reason": "the token has expired"}


@pytest.mark.asan
@pytest.mark.tsan
def test_keys_rotate(users):
    """A new key is published before it signs; tokens of the old one are good until they expire; then it is gone, also
    when the next rotation comes before that."""
    u = users(jwt={"life": "9s", "rotate": "4s", "ahead": "2s"})
    u.make()
    token = u.login()
    old = part(token, 0)["kid"]
    kids = lambda: [k["kid"] for k in u.api.get("/.well-known/jwks.json").json["keys"]]  # noqa: E731
    wait_until(lambda: len(kids()) > 1, 45, "a new key")
    new = wait_until(lambda: (k := part(t := u.login(), 0)["kid"]) != old and t, 45, "the new key to sign")
    assert part(new, 0)["kid"] in kids()
    assert u.api.post("/tokens/verify", {"token": new}).json["valid"] is True
    wait_until(lambda: old not in kids(), 60, "the old key to go")
    wait_until(lambda: u.db.one("SELECT count(*) FROM service.jwt_key") > 1, 20)
    assert len(kids()) <= 6
    assert u.api.post("/tokens/verify", {"token": token}).json["valid"] is False


def test_two_processes_share_keys_and_idempotency(users):
    u = users()
    ann = u.make(key="k")
    token = u.login()
    v = Users(u.db)
    try:
        assert v.make(key="k") == ann
        assert v.api.get(f"/users/{ann}", token=token).status == 200
        assert len(v.api.get("/.well-known/jwks.json").json["keys"]) == 1
    finally:
        v.service.kill()


def test_postgres_away(own_pg):
    """503 with Retry-After while it is down; what needs no database goes on; all is well when it is back. Also when the
    service starts first."""
    pg = own_pg()
    db = pg.createdb("user")
    pg.stop("immediate")
    s = Service("user", db.conninfo, config=FAST).start()
    try:
        api = Api(s.port)
        away = wait_until(lambda: api.post("/users", ANN), 20, "an answer", ignore=(OSError,))
        assert away.status == 503 and away.headers["Retry-After"] == "1"
        assert s.get("/healthz")[0] == 200 and s.get("/readyz")[0] == 503
        assert json.loads(s.get("/readyz")[1])["ready"] is False
        pg.start()
        s.wait_ready()
        wait_until(lambda: api.post("/users", ANN).status in (201, 409), 20, "an account")
        token = api.post("/login", ANN).json["access_token"]
        pg.stop("immediate")
        assert api.post("/login", ANN).status == 503
        assert api.post("/tokens/verify", {"token": token}).json["valid"] is True
        wait_until(lambda: s.get("/readyz")[0] == 503, 20)
        pg.start()
        wait_until(lambda: api.post("/login", ANN).status == 200, 20, "a login")
        s.wait_ready()
    finally:
        s.kill()


def test_a_frozen_postgres_holds_nobody_for_long(own_pg):
    pg = own_pg()
    db = pg.createdb("user")
    s = Service("user", db.conninfo, config={**FAST, "database": {"timeout": "500ms"}}).start().wait_ready()
    try:
        api = Api(s.port)
        wait_until(lambda: api.post("/users", ANN).status in (201, 409), 30, "an account")  # half a second may pass on a busy machine
        for pid in [pg.pid, *pg.backends()]:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                got = list(pool.map(lambda n: api.post("/login", {**ANN, "email": f"{n}@x.y"}).status, range(16)))
            assert set(got) == {503} and time.monotonic() - began < 25  # a client gives up after 30
            assert s.get("/healthz")[0] == 200
        finally:
            for pid in [int(p) for p in os.popen(f"pgrep -P {pg.pid}").read().split()] + [pg.pid]:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: api.post("/login", ANN).status == 200, 30, "a login")
    finally:
        s.kill()


def test_logins_do_not_eat_the_machine(users):
    """Hashes are computed by http.heavy at a time, some wait, the rest are told to come again; what is cheap goes on."""
    u = users(password={"passes": 3, "memory": "64MB"}, http={"heavy": 1, "workers": 4}, login={"attempts": 1000})
    u.make()
    with ThreadPoolExecutor(16) as pool:
        logins = [pool.submit(u.api.post, "/login", ANN) for _ in range(16)]
        began = time.monotonic()
        assert u.api.get("/users/" + str(uuid.uuid4())).status == 401
        cheap = time.monotonic() - began
        got = [f.result() for f in logins]
    assert {a.status for a in got} == {200, 503} and cheap < 20
    assert all(a.headers["Retry-After"] == "1" for a in got if a.status == 503)
    assert u.service.peak_rss_kb() < 250_000


def test_a_rude_client(shared):
    """A header dripped byte by byte, and a body that never comes, hold nobody else up."""
    with socket.create_connection(("127.0.0.1", shared.service.port)) as slow:
        slow.sendall(b"POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
        assert shared.api.post("/tokens/verify", {"token": "x"}).status == 200
        slow.settimeout(60)
        assert slow.recv(1000)[:20] in (b"", b"HTTP/1.1 408 Request ")


def test_metrics_and_documents(shared):
    text = shared.service.get("/metrics")[1]
    assert 'postrider_http_requests_total{service="user",method="POST",route="/users",status="201"}' in text
    assert 'postrider_http_request_seconds_count{service="user",route="/login"}' in text
    assert shared.id not in text and "example.org" not in text
    doc = shared.api.document()
    for path, item in doc["paths"].items():
        for method in item:
            answer = shared.api.raw(method.upper(), path.replace("{id}", shared.id), b"{}" if method == "post" else None,
                                    {"Content-Type": "application/json"})
            assert answer.status not in (404, 405), (method, path, answer)


def test_our_own_fault_is_500(users):
    """A broken function: the client learns nothing of it, the log does, and nothing is kept for the key."""
    u = users()
    u.db.psql('ALTER TABLE "user".credential RENAME COLUMN password_hash TO hash')
    broken = u.api.post("/users", ANN, key="k", check=False)
    assert broken.problem == "internal" and "password_hash" not in broken.text
    assert "password_hash" in u.service.log_text()
    u.db.psql('ALTER TABLE "user".credential RENAME COLUMN hash TO password_hash')
    assert u.make(key="k")


NOT_YET = """CREATE TABLE public.come (what text); CREATE SEQUENCE public.tries;
CREATE OR REPLACE FUNCTION "user".show(caller uuid, wanted uuid) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM nextval('public.tries');
	IF NOT EXISTS (SELECT FROM public.come) THEN
		PERFORM service.await(409, 'not-yet', 'it has not come');
	END IF;
	RETURN (SELECT to_jsonb(u) - 'login' FROM (SELECT user_id, email, name, state, service.rfc3339(created_at) AS created_at
		FROM "user".user_account WHERE user_id = wanted) AS u);
END $$"""


@pytest.mark.asan
def test_what_may_come_in_a_moment_is_awaited(users):
    """service.await: the call is repeated until what was missing has come; http.patience ends it with the refusal, and
    half of the workers at most wait so: the others are refused at once and cheap things go on."""
    u = users(http={"patience": "30s", "workers": 4})
    ann = u.make()
    token = u.login()
    u.db.psql(NOT_YET)
    ask = lambda: u.api.get(f"/users/{ann}", token=token, check=False, timeout=60)  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask) for _ in range(8)]
        wait_until(lambda: sum(w.done() for w in waiting) == 6, 20, "those who may not wait")
        assert [w.result().problem for w in waiting if w.done()] == ["not-yet"] * 6
        assert u.api.post("/users", {**ANN, "email": "b@c.d"}).status == 201
        wait_until(lambda: u.db.one("SELECT last_value FROM tries") > 20, 20, "the call to be repeated")
        u.db.psql("INSERT INTO come VALUES ('it')")
        got = [w.result() for w in waiting]
    assert sorted(a.status for a in got) == [200] * 2 + [409] * 6


def test_patience_ends(users):
    u = users(http={"patience": "300ms"})
    ann = u.make()
    token = u.login()
    u.db.psql(NOT_YET)
    began = time.monotonic()
    refused = u.api.get(f"/users/{ann}", token=token, check=False)
    assert (refused.status, refused.problem) == (409, "not-yet") and time.monotonic() - began > 0.2
    tries = u.db.one("SELECT last_value FROM tries")
    assert 1 < tries < 14
    u.service.terminate()
    hasty = Users(u.db, http={"patience": "0s"})
    try:
        u.db.psql(NOT_YET.split(";", 2)[2])
        assert hasty.api.get(f"/users/{ann}", token=token, check=False).problem == "not-yet"
        assert u.db.one("SELECT last_value FROM tries") == tries + 1
    finally:
        hasty.service.kill()


def test_config(cli):
    user = servers.Cli("postrider-user")
    sample = os.path.join(servers.ROOT, "etc", "services", "user.cfg")
    assert user("-c", sample, "--check").returncode == 0
    with open(sample, encoding="utf-8") as f:
        assert user("--print-sample").stdout == f.read()
    wrong = user("-c", sample, "-o", "jwt.lief=1h", "--check")
    assert wrong.returncode == 78 and "jwt.life" in wrong.stderr
    assert user("-c", sample, "-o", "http.workers=0", "--check").returncode == 78
    slow = user("-c", sample, "-o", "jwt.rotate=1m", "--check")
    assert slow.returncode == 78 and "jwt.ahead" in slow.stderr
    assert "jwt.life" in user("-c", sample, "-o", "jwt.rotate=20m", "-o", "jwt.life=10h", "--check").stderr


def test_drains(users):
    """SIGTERM: what is at work is answered, exit 0."""
    u = users(password={"passes": 3, "memory": "64MB"})
    u.make()
    with ThreadPoolExecutor(1) as pool:
        login = pool.submit(u.api.post, "/login", ANN)
        wait_until(lambda: u.db.one('SELECT count(*) FROM "user".login_attempt') == 1, 30, "the login to begin")
        assert u.service.terminate() == 0
        assert login.result().status == 200


def test_a_changed_schema_is_run_again(users):
    """A text whose sum differs from the one that was run; one that has run is not run again."""
    u = users()
    u.make()
    u.service.terminate()
    was = u.db.query("SELECT number, sha256, applied_at FROM service.installed ORDER BY 1")
    u.db.psql("UPDATE service.installed SET sha256 = 'old' WHERE number = 1; DROP FUNCTION \"user\".show(uuid, uuid)")
    again = Users(u.db)
    try:
        now = u.db.query("SELECT number, sha256, applied_at FROM service.installed ORDER BY 1")
        assert now[0] == was[0] and now[1][1] == was[1][1] and now[1][2] > was[1][2]
        assert isinstance(again.login(), str)
    finally:
        again.service.kill()


def test_check_user(users):
    """Step USER of a saga: answered in the same transaction; asked twice, undone, undone before done."""
    u = users()
    ann = u.make()
    u.db.query('SELECT "user".set_state(%s, \'LOCKED\')', (u.make({**ANN, "email": "l@m.n"}),))

    def command(user_id, op="do", saga=None, kind="CheckUser"):
        saga = saga or str(uuid.uuid4())
        headers = {"saga-id": saga, "saga-name": "order", "saga-step": "USER", "saga-op": op,
                   "saga-command-id": str(uuid.uuid5(uuid.UUID(saga), op)), "saga-reply-to": "outbox.saga.inbox"}
        u.db.psql(f"""SELECT "user".on_command((jsonb_populate_record(NULL::inbox.message, '{json.dumps({
            "id": str(uuid.uuid4()), "topic": "outbox.command.user", "partition": 0, "message_offset": 1,
            "key": str(user_id), "type": kind, "payload": {"user_id": user_id}, "headers": headers})}')))""")
        return saga, [h["saga-outcome"] for (h,) in u.db.query(
            "SELECT headers FROM outbox.event WHERE headers ->> 'saga-id' = %s AND headers ->> 'saga-op' = %s ORDER BY seq",
            (saga, op))]
    saga, outcome = command(ann)
    assert outcome == ["done"]
    assert command(ann, saga=saga)[1] == ["done", "done"]
    assert command(ann, "undo", saga)[1] == ["done"]
    for bad in (str(uuid.uuid4()), "no uuid", None, 7):
        assert command(bad)[1] == ["refused"], bad
    locked = u.db.one('SELECT user_id::text FROM "user".user_account WHERE state = \'LOCKED\'')
    assert command(locked)[1] == ["refused"]
    assert command(ann, kind="DropUser")[1] == ["refused"]
    late, undone = command(ann, "undo")
    assert undone == ["done"]
    command(ann, saga=late)
    assert u.count()[0] == 2


def test_check_user_through_kafka(inbox):  # noqa: F811
    """The same by a consumer, with the function's name as etc/services/user-consumer.cfg has it; its group's database is
    the user's."""
    i = inbox(partitions=1)
    u = Users(i.db)
    try:
        ann, saga = u.make(), str(uuid.uuid4())
        i.consumer({"kind": "sql", "function": "user.on_command"}).start()
        headers = {"id": str(uuid.uuid4()), "type": "CheckUser", "saga-id": saga, "saga-name": "order", "saga-step": "USER",
                   "saga-op": "do", "saga-command-id": str(uuid.uuid4()), "saga-reply-to": "outbox.saga.inbox"}
        i.put(ann.encode(), json.dumps({"user_id": ann}), [(k, v.encode()) for k, v in headers.items()])
        i.flush()
        reply = "SELECT headers ->> 'saga-outcome', payload FROM outbox.event WHERE headers ->> 'saga-id' = %s"
        wait_until(lambda: i.db.query(reply, (saga,)) == [("done", {"user_id": ann, "state": "ACTIVE"})], 60, "the reply")
    finally:
        u.service.kill()
