"""tests/e2e/test_ui_write.py -- what a person may do on the page of `postrider ui` who has typed its token: every refusal, by
raw HTTP, leaves the database as it was; every deed touches what was shown and nothing else, and says there who did it.
"""
import html
import http.client
import json
import re
import shutil
import urllib.parse

import pytest
from browser import Broken
from inbox import inbox  # noqa: F401
from outbox import Outbox
from saga import buy, sagas  # noqa: F401
from test_status_page import FAST, browser, ui, url, well  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(300)
TOKEN = "correct-horse-battery"
MORE = f'write_token = "{TOKEN}";'


class Person:
    """Whoever asks as a browser does, by raw HTTP; keeps the cookie."""

    def __init__(self, home):
        self.host, self.cookie, self.at = urllib.parse.urlsplit(home).netloc, None, None

    def ask(self, method, path, fields=None, headers=None, body=None):
        """(status, headers, text); headers of None are left out."""
        given = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded", "Cookie": self.cookie,
                 "Origin": f"http://{self.host}" if method == "POST" else None, **(headers or {})}
        c = http.client.HTTPConnection(self.host, timeout=60)
        try:
            c.request(method, path, urllib.parse.urlencode(fields) if fields is not None else body,
                      {k: v for k, v in given.items() if v is not None})
            r = c.getresponse()
            return r.status, r.headers, r.read().decode()
        finally:
            c.close()

    def get(self, path):
        status, _, text = self.ask("GET", path, headers={"Sec-Fetch-Site": None, "Content-Type": None})
        self.at = path
        return status, text

    def form(self, path, action):
        """The fields that a form of this page carries, and the page."""
        status, text = self.get(path)
        assert status == 200, text
        return hidden(text, action), text

    def login(self, token=TOKEN, who="Kim"):
        fields, _ = self.form("/login", "/login")
        status, headers, text = self.ask("POST", "/login", {**fields, "token": token, "who": who})
        if status == 303:
            self.cookie = headers["Set-Cookie"].split(";")[0]
        return status, headers, text

    def act(self, path, count=None, **typed):
        """Opens what would be done, and does it: (status, text)."""
        fields, text = self.form(path, "/act")
        n = re.search(r"type how many are touched: (\d+)", text).group(1)
        status, _, text = self.ask("POST", "/act", {**fields, **typed, "count": n if count is None else count})
        return status, text


def hidden(text, action):
    form = re.search(rf'<form[^>]*action="{action}".*?</form>', text, re.S).group(0)
    return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form))


@pytest.fixture()
def three(inbox, ui):  # noqa: F811
    """Three dead letters of one cause; an address of the page; a person who has logged in."""
    i = inbox(partitions=1)
    c = i.consumer(config=FAST).start().wait_ready()
    for k in ("k1", "k2", "k3"):
        i.poison(k, "P0001", seq=1)
    i.send(9, keys=4)
    i.wait_dead(3)
    home = ui([], [url(c)[:-1]], [("inbox", i.conninfo)], MORE)
    p = Person(home)
    assert p.login()[0] == 303
    return i, home, p


def there(page, selector):
    """On the page that comes next: whole, and with this in it."""
    wait_until(lambda: page.js(f"document.readyState === 'complete' && !!document.querySelector({json.dumps(selector)})"), 90, selector,
               ignore=(Broken,))


def entries(i, where="true"):
    return [e for e, in i.db.query(f"SELECT entry FROM inbox.dead_letter WHERE {where} ORDER BY entry")]


def acts(i):
    return i.db.query("SELECT entry, by, what FROM inbox.dead_letter_log WHERE what NOT IN ('bury', 'dead') ORDER BY entry, what, by")


def cause_of(p):
    status, text = p.get("/dlq")
    assert status == 200
    return html.unescape(re.search(r'href="(/act\?deed=retry-cause[^"]*)"', text).group(1))


# ---------------------------------------------------------------- who is let in

def test_without_a_token_nothing_can_be_done(inbox, ui):  # noqa: F811
    """Not configured: no login, no deed, no link to one."""
    i = inbox(partitions=1)
    c = i.consumer(config=FAST).start().wait_ready()
    p = Person(ui([], [url(c)[:-1]], [("inbox", i.conninfo)]))
    for method, path in (("GET", "/login"), ("POST", "/login"), ("GET", "/act?deed=note&db=0&entry=1"), ("POST", "/act"), ("POST", "/logout")):
        assert p.ask(method, path, {} if method == "POST" else None)[0] == 404, path
    for path in ("/", "/dlq", "/parked"):
        status, text = p.get(path)
        assert status == 200 and "Log in" not in text and "/act" not in text, path


def test_login(three):
    i, home, p = three
    status, headers, _ = Person(home).login(who="")
    cookie = headers["Set-Cookie"]
    assert status == 303 and headers["Location"] == "/"
    assert all(x in cookie for x in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=3600")) and TOKEN not in cookie
    status, headers, _ = Person(home).ask("POST", "/login", {**Person(home).form("/login", "/login")[0], "token": TOKEN},
                                          headers={"Host": p.host, "Origin": f"https://{p.host}"})
    assert status == 303 and "; Secure" in headers["Set-Cookie"]
    # A form of nobody's, a name that is none, no token.
    stamp = Person(home).form("/login", "/login")[0]["form"]
    for fields, want in (({"token": TOKEN}, 403), ({"token": TOKEN, "form": "1.00"}, 403), ({"token": TOKEN, "form": stamp[:-1] + "x"}, 403),
                         ({"form": stamp}, 400), ({"form": stamp, "token": TOKEN, "who": "a\nb"}, 400),
                         ({"form": stamp, "token": TOKEN, "who": "x" * 61}, 400)):
        assert Person(home).ask("POST", "/login", fields)[0] == want, fields
    # Logging out ends the pass, not only the cookie.
    fields, _ = p.form("/dlq", "/logout")
    assert p.ask("POST", "/logout", {"form": "0" * 64})[0] == 403
    status, headers, _ = p.ask("POST", "/logout", fields)
    assert status == 303 and "Max-Age=0" in headers["Set-Cookie"]
    assert p.ask("POST", "/act", {})[0] == 403 and p.ask("POST", "/logout", fields)[0] == 403


def test_wrong_tokens_are_bounded(three):
    """Five in a minute, then not even the right one is looked at; who is in stays in."""
    _, home, p = three
    for wrong in ("", "x", TOKEN + "x", TOKEN[:-1], TOKEN.upper()):
        assert Person(home).login(wrong)[0] == 403
    status, headers, text = Person(home).login()
    assert status == 429 and int(headers["Retry-After"]) == 60 and "Too many" in text
    assert p.get(cause_of(p))[0] == 200


def test_a_pass_ends(inbox, ui):  # noqa: F811
    i = inbox(partitions=1)
    c = i.consumer(config=FAST).start().wait_ready()
    p = Person(ui([], [url(c)[:-1]], [("inbox", i.conninfo)], MORE + ' write_life = "1s";'))
    assert p.login()[0] == 303
    wait_until(lambda: p.ask("GET", "/act?deed=note&db=0&entry=1")[0] == 303, 60, "the pass to end")
    assert p.ask("POST", "/act", {})[0] == 403


# ---------------------------------------------------------------- what is refused

def test_refusals_change_nothing(three):
    i, home, p = three
    path = cause_of(p)
    before = i.db.query("SELECT entry, state, note FROM inbox.dead_letter ORDER BY entry"), acts(i)
    fields, text = p.form(path, "/act")
    assert "touched: 3" in text
    good = {**fields, "count": "3"}
    stranger = Person(home)
    assert stranger.get(path)[0] == 303  # to the login
    other = Person(home)
    assert other.login(who="Lee")[0] == 303
    for who, given, headers, want in (
            (stranger, good, {}, 403),
            (other, good, {}, 403),  # another's form
            (p, good, {"Cookie": "postrider_ui=" + "0" * 64}, 403),
            (p, good, {"Cookie": f"{p.cookie}; {p.cookie}"}, 403),
            (p, good, {"Sec-Fetch-Site": None}, 403),
            (p, good, {"Sec-Fetch-Site": "none"}, 403),
            (p, good, {"Sec-Fetch-Site": "same-site"}, 403),
            (p, good, {"Sec-Fetch-Site": "cross-site"}, 403),
            (p, good, {"Origin": "http://127.0.0.1:1"}, 403),
            (p, good, {"Origin": "null"}, 403),
            (p, good, {"Content-Type": "text/plain"}, 415),
            (p, good, {"Content-Type": "application/json"}, 415),
            (p, good, {"Content-Type": "multipart/form-data; boundary=x"}, 415),
            (p, {**good, "form": "0" * 64}, {}, 403),
            (p, {k: v for k, v in good.items() if k != "form"}, {}, 403),
            (p, {**good, "plan": "0" * 64}, {}, 409)):
        status, _, said = who.ask("POST", "/act", given, headers)
        assert status == want, (given, headers, said)
    for body in ("a=%zz", "a", "form=1&form=2", "=x", "a=%00", "a=%ff", "&".join(f"a{n}=1" for n in range(40))):
        assert p.ask("POST", "/act", body=body)[0] == 400, body
    status, headers, _ = p.ask("GET", "/act?" + urllib.parse.urlencode(good))
    assert status == 400
    assert p.ask("PUT", "/act", good)[0] == 405 and p.ask("GET", "/logout")[0] == 405
    assert p.ask("POST", "/act", body="count=" + "1" * (900 << 10))[0] == 413
    for bad in ("deed=x&db=0&entry=1", "deed=note&db=9&entry=1", "deed=note&db=0&entry=-1", "deed=note&db=0", "deed=retry-saga&db=0&id=--yes",
                "deed=retry-cause&db=0&cause=x&group=" + i.group, "deed=retry-event&db=0&topic=t&key=" + "k" * 256):
        assert p.get("/act?" + bad)[0] == 400, bad
    assert (i.db.query("SELECT entry, state, note FROM inbox.dead_letter ORDER BY entry"), acts(i)) == before
    # What was tried in vain has not used the form up; a wrong count has.
    status, _, text = p.ask("POST", "/act", {**good, "count": "2"})
    assert status == 422 and "type 3 to confirm" in text and hidden(text, "/act")["plan"] != good["plan"]
    assert p.ask("POST", "/act", good)[0] == 409
    assert (i.db.query("SELECT entry, state, note FROM inbox.dead_letter ORDER BY entry"), acts(i)) == before


def test_a_set_that_has_changed_is_left_alone(three):
    """What is done is what was shown: one that came or went meanwhile makes it another set."""
    i, _, p = three
    fields, _ = p.form(cause_of(p), "/act")
    first = entries(i)[0]
    i.db.query("SELECT inbox.dlq_drop(ARRAY[%s]::bigint[], 'by another')", (first,))
    status, _, text = p.ask("POST", "/act", {**fields, "count": "3"})
    assert status == 409 and "It was 3, now it is 2." in text
    assert entries(i, "state = 'dead'") == entries(i)[1:]
    # The page holds the form for what there is now; it is good once.
    fields = hidden(text, "/act")
    assert p.ask("POST", "/act", {**fields, "count": "2"})[0] == 200
    assert p.ask("POST", "/act", {**fields, "count": "2"})[0] == 409
    assert [a for a in acts(i) if a[2] == "retry"] == [(e, "Kim (ui)", "retry") for e in entries(i)[1:3]]


# ---------------------------------------------------------------- what is done

def test_dead_letters(three):
    """A note, an edit with its payload, a retry of one and of the cause, a drop; each with who did it."""
    i, home, p = three
    a, b, c = entries(i)
    stranger = Person(home)
    assert '"seq"' not in html.unescape(stranger.get(f"/letter?db=0&entry={a}")[1])
    status, text = p.get(f"/letter?db=0&entry={a}")
    assert status == 200 and '"seq"' in html.unescape(text)
    note = "-- it's \"mine\" <b>; ticket 7"
    assert p.act(f"/act?deed=note&db=0&entry={a}", note=note)[0] == 200
    assert i.db.one("SELECT note FROM inbox.dead_letter WHERE entry = %s", (a,)) == note
    # The payload goes and comes as it is: a number that is no double, an end of a line.
    was = json.loads(i.db.one("SELECT convert_from(payload, 'UTF8') FROM inbox.dead_letter WHERE entry = %s", (a,)))
    new = json.dumps({**was, "n": 12345678901234567890}, indent=1) + "\n"
    status, text = p.act(f"/act?deed=edit&db=0&entry={a}", payload="no json")
    assert status == 409 and "was JSON, the new one is not" in text
    status, text = p.act(f"/act?deed=edit&db=0&entry={a}", payload=new.replace("\n", "\r\n"))
    assert status == 200, text
    made = i.db.one("SELECT edited_to FROM inbox.dead_letter WHERE entry = %s", (a,))
    assert i.db.one("SELECT convert_from(payload, 'UTF8') FROM inbox.dead_letter WHERE entry = %s", (made,)) == new
    shown = p.form(f"/act?deed=edit&db=0&entry={made}", "/act")[1]
    assert html.unescape(re.search(r'<textarea id="payload"[^>]*>\n(.*?)</textarea>', shown, re.S).group(1)) == new
    assert p.get(f"/act?deed=edit&db=0&entry={a}")[0] == 409  # it is dropped
    assert p.act(f"/act?deed=drop&db=0&entry={b}")[0] == 200
    i.cure()
    status, text = p.act(f"/act?deed=retry&db=0&entry={c}")  # it watches for five seconds
    assert status == 200 and ("Done." in text or "given back and not ended" in text), text
    status, text = p.act(cause_of(p))
    assert status == 200 and "Done." in text, text
    wait_until(lambda: entries(i, "state = 'retried'") == [c, made], 60, "both to be handled")
    assert {x for x in acts(i) if x[1] != "consumer" and x[2] in ("note", "edit", "drop", "retry")} == {
        (a, "Kim (ui)", "note"), (a, "Kim (ui)", "edit"), (made, "Kim (ui)", "edit"), (b, "Kim (ui)", "drop"), (c, "Kim (ui)", "retry"),
        (made, "Kim (ui)", "retry")}
    assert i.db.one("SELECT count(*) FROM app.effect WHERE payload ->> 'n' = '12345678901234567890'") == 1


def test_messages_that_a_group_holds_back(inbox, ui):  # noqa: F811
    i = inbox(partitions=1)
    for k in ("k1", "k2"):
        i.poison(k, "P0001", seq=2)
    c = i.consumer(config={**FAST, "errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start().wait_ready()
    i.send(20, keys=3)
    i.flush()
    wait_until(lambda: i.db.one("SELECT count(*) FROM inbox.parked WHERE due_at IS NOT NULL") == 2, 60, "both keys to be held back")
    p = Person(ui([], [url(c)[:-1]], [("inbox", i.conninfo)], MORE))
    assert "/act" not in p.get("/parked")[1]
    assert p.login(who="")[0] == 303
    of = {k: o for k, o in i.db.query("SELECT key, message_offset FROM inbox.parked WHERE due_at IS NOT NULL")}
    text = html.unescape(p.get("/parked")[1])
    links = re.findall(r'href="(/act\?deed=(?:retry|skip)-message[^"]*)"', text)
    assert len(links) == 4
    skip = next(x for x in links if "skip" in x and x.endswith(f"offset={of['k1']}"))
    retry = next(x for x in links if "retry" in x and x.endswith(f"offset={of['k2']}"))
    assert p.act(skip)[0] == 200
    skipped = "SELECT l.by, l.what FROM inbox.dead_letter AS d JOIN inbox.dead_letter_log AS l USING (entry) WHERE d.key = 'k1'"
    wait_until(lambda: i.db.query(skipped), 60, "the group to skip it")
    assert i.db.query(skipped) == [("ui", "skip")]
    i.cure()
    status, text = p.act(retry)
    assert status == 200 and ("released" in text or "has not done" in text), text
    wait_until(lambda: not i.parked(), 60, "everything to go on")
    assert p.get(retry)[0] == 409 and "no such message any more" in p.get(retry)[1]


def test_events_that_the_relay_holds_back(pg_server, kafka, ui):  # noqa: F811
    with Outbox(pg_server, kafka, "uw", config=FAST) as post:
        post.start()
        kind, topic = post.kind(config={"max.message.bytes": "1000"})
        large = json.dumps({"x": "0123456789abcdef" * 300})
        for n, key in enumerate(("a", "b", "b")):
            post.publish(kind, key, large if n < 2 else "{}")
        post.publish(kind, "a", large)
        post.wait_parked(4)
        p = Person(ui([url(post.relay)[:-1]], [], [("outbox", post.db.conninfo)], MORE))
        assert p.login()[0] == 303
        text = html.unescape(p.get("/parked")[1])
        links = re.findall(r'href="(/act\?deed=[^"]*-event[^"]*)"', text)
        skip = next(x for x in links if "skip" in x and x.endswith("key=b"))
        retry = next(x for x in links if "retry" in x and x.endswith("key=a"))
        first = post.one("SELECT seq FROM outbox.parked WHERE key = 'b' ORDER BY seq LIMIT 1")
        assert p.act(skip)[0] == 200
        wait_until(lambda: post.one("SELECT count(*) FROM outbox.parked WHERE key = 'b'") == 0, 60, "the relay to skip it")
        assert post.sql("SELECT seq, skipped_by FROM outbox.skipped") == [(first, "Kim (ui)")]
        status, text = p.act(retry)
        assert status == 200 and ("still parked" in text.replace("_", " ") or "has not done" in text), text
        assert post.one("SELECT count(*) FROM outbox.parked WHERE key = 'a'") == 2


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: run make setup")
def test_a_stuck_saga(sagas, ui, browser):  # noqa: F811
    """In a browser: logged in by the keyboard, a wrong count, the right one; who did it is recorded."""
    s = sagas(definitions={"buy.cfg": buy(timeout="5s", undos=2)}, config=FAST).start()
    s.part["money"].db.psql("INSERT INTO app.closed VALUES ('undo PAYMENT')")
    id, = s.begin([{"script": {"TICKET": "refuse"}}])
    s.wait_state(id, "STUCK")
    home = ui([], [url(s.engine.consumer)[:-1]], [("engine", s.db.conninfo)], MORE)
    page = browser.page().go(home)
    page.follow("a[href='/login']")
    there(page, "#token")
    page.type("#who", "Robin")
    page.type("#token", TOKEN)
    page.key("Enter")
    there(page, "form[action='/logout']")
    assert "You act as Robin (ui)" in page.text()
    page.go(f"{home}saga?db=0&id={id}")
    desc = page.js("document.querySelector('.saga desc').textContent")
    assert "PAYMENT: stuck" in desc and "TICKET: not done" in desc, desc
    well(page, "ui-saga", away=False)
    page.follow("a[href^='/act?deed=skip-step']")
    there(page, "#count")
    well(page, "ui-confirm", away=False)
    page.type("#count", "2")
    page.key("Enter")
    there(page, ".wrong")
    assert "type 1 to confirm" in page.text(".wrong")
    page.wrong.clear()  # the console tells of the refusal
    page.type("#count", "1")
    page.key("Enter")
    there(page, "[role=status]")
    assert "Done." in page.text("[role=status]"), page.text("main")
    s.wait_state(id, "COMPENSATED")
    assert ("skip", "Robin (ui)") in s.db.query('SELECT what, by FROM saga."order" WHERE saga_id = %s', (id,))
    page.go(f"{home}saga?db=0&id={id}")
    assert "/act?" not in page.js("document.body.innerHTML")
