"""tests/e2e/test_status_page.py -- the status page in a real browser, in every state: what is wrong and what to type stands at
its top, also without its script; nothing on the console, nothing from another place, nothing wider than its window, nothing
that axe-core finds. `make screenshots` keeps the pictures of
the docs (POSTRIDER_SHOTS=DIR); POSTRIDER_SHOTS_ALL=1 has it keep those of every state and width too.
"""
import glob
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest
import servers
from browser import Broken, Browser
from inbox import inbox  # noqa: F401
from outbox import Outbox, unique
from saga import buy, sagas  # noqa: F401
from wait import wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: run make setup")]
SHOTS, SHOTS_ALL = os.environ.get("POSTRIDER_SHOTS"), os.environ.get("POSTRIDER_SHOTS_ALL")
PICTURES = ("busy", "parked", "joined", "ui-saga")  # of the docs
WIDTHS = (360, 768, 1280, 1920, 2560)
FAST = {"history": {"every": "20ms"}, "environment": {"name": "staging", "colour": "purple"}}


def axe_script():
    found = glob.glob(os.path.join(servers.cache_dir(), "axe-*", "axe.min.js"))
    return open(found[0], encoding="utf-8").read() if found else None


@pytest.fixture(scope="module")
def browser():
    with Browser() as b:
        yield b


@pytest.fixture()
def post(pg_server, kafka):
    with Outbox(pg_server, kafka, "page", config=FAST) as o:
        yield o


def url(daemon):
    return f"http://127.0.0.1:{daemon.port}/"


def look(browser, daemon, **more):
    return browser.page(**more).go(url(daemon))


def state(page):
    return page.js("document.getElementById('health').dataset.state")


def sentence(page):
    return page.text("#sentence")


def shot(page, name):
    if SHOTS:
        os.makedirs(SHOTS, exist_ok=True)
        page.screenshot(os.path.join(SHOTS, name + ".png"))


def whole_shot(page, name):
    """The page as long as it is; for the docs not longer than they have room for."""
    if SHOTS and (SHOTS_ALL or name.endswith(("-light", "-dark"))):
        w, h = page.js("[innerWidth, document.documentElement.scrollHeight]")
        page.resize(w, max(h if SHOTS_ALL else min(h, 960), 400))
        shot(page, name)


def axe(page):
    """What axe-core finds: [(rule, [elements])]. It comes by the debugger, not by the page's policy."""
    script = axe_script()
    if not script:
        return []
    page.js(script + ";0")
    found = page.js("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
                    ".then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary)]))")
    return found


def well(page, name, allowed=(), away=True):
    """Nothing went wrong, everything has a name and enough contrast in both looks, nothing is wider than its window."""
    for width in WIDTHS:
        page.resize(width, 900)
        wide = page.js("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{width}: the page is wider than its window: {wide}"
        whole_shot(page, f"{name}-{width}")
    page.resize(1280, 900)
    for dark in (False, True):
        page.look(dark)
        assert axe(page) == [], f"dark {dark}"
        if SHOTS_ALL or name in PICTURES:
            whole_shot(page, f"{name}-{'dark' if dark else 'light'}")
            page.resize(1280, 900)
    assert page.nameless() == []
    assert [w for w in page.wrong if not any(re.search(a, w) for a in allowed)] == []
    home = page.js("location.origin")
    assert [a for a in page.asked if not a.startswith((home, "data:", "about:"))] == []
    if away:
        page.go("about:blank")


def box(page, title):
    """What the picture says of one box, as a screen reader hears it."""
    desc = page.js("document.querySelector('#pipeline svg desc').textContent")
    return next((d for d in desc.split("; ") if d.startswith(title + ":")), desc)


# ---------------------------------------------------------------- the relay

def test_idle_and_busy(post, browser):
    post.start()
    page = look(browser, post.relay)
    page.wait("document.getElementById('health').dataset.state === 'ok'")
    assert "everything flows" in sentence(page)
    assert "staging" in page.text("header") and page.js("getComputedStyle(document.querySelector('.env')).backgroundColor") == "rgb(102, 57, 186)"
    kind, topic = post.kind(2)
    post.many(kind, [f"k{n}" for n in range(3000)])
    post.read(topic, 3000)
    page.wait(f"document.body.innerText.includes('{topic}')")
    page.wait("/3,000/.test(document.querySelector('.scroll td').textContent)")
    assert box(page, "Postgres") == "Postgres: ok, connected" and box(page, "Kafka") == "Kafka: ok, connected"
    wait_until(lambda: "lag 0." in box(page, "Relay"), 30, "the picture's lag to be gone")
    curves = page.js("[...document.querySelectorAll('figure')].map(f => [f.innerText, f.querySelector('path:last-child').getAttribute('d').length])")
    assert len(curves) == 5 and all(n > 5 for _, n in curves), curves
    well(page, "busy")


def test_history(post):
    post.start()
    wait_until(lambda: len(json.loads(post.relay.get("/history.json")[1])["series"]["lag_seconds"]) > 3, 20, "samples")
    h = json.loads(post.relay.get("/history.json")[1])
    assert h["every_seconds"] == 0.02
    assert set(h["series"]) == {"lag_seconds", "created_per_second", "published_per_second", "pending_events", "held_events"}
    assert len({len(s) for s in h["series"].values()}) == 1
    wait_until(lambda: len(json.loads(post.relay.get("/history.json")[1])["series"]["lag_seconds"]) == 360, 150, "a full hour")
    size = len(post.relay.get("/")[1])
    assert size < 100_000, f"the page with a whole hour has {size} bytes"


def test_without_its_script(post, browser):
    """The first screen is whole: state, sentence, picture, numbers, curves; it asks for itself again."""
    post.start()
    page = browser.page()
    page.call("Emulation.setScriptExecutionDisabled", {"value": True})
    page.call("Page.navigate", {"url": url(post.relay)})
    words = {"everything flows", "staging", f"Outbox {post.name}: ok", "Pending events", "Lag", "Postgres", "Kafka", "Relay"}
    missing = []

    def whole():  # of one and the same document: the next one may be half there already
        text = text_of(page)
        missing[:] = [w for w in words if w not in text]
        return not missing
    try:
        wait_until(whole, 60, "the page without script", ignore=(Broken,))
    except AssertionError as e:
        raise AssertionError(f"{e}; it does not say {missing}") from None
    before = len(page.asked)
    wait_until(lambda: page.call("DOM.getDocument", {"depth": 0}) and len(page.asked) > before, 60, "the page to ask for itself again", ignore=(Broken,))
    assert page.wrong == []
    page.call("Emulation.setScriptExecutionDisabled", {"value": False})
    page.go("about:blank")


def text_of(page):
    """As the browser lays it out, without running a script of the page."""
    root = page.call("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    html = page.call("DOM.getOuterHTML", {"nodeId": root})["outerHTML"]
    return re.sub(r"\s+", " ", re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", html, flags=re.S)).replace(" : ", ": ")


def test_policy_lets_nothing_else_in(post, browser):
    post.start()
    with urllib.request.urlopen(url(post.relay), timeout=10) as r:
        policy, body = r.headers["Content-Security-Policy"], r.read()
    assert "default-src 'none'" in policy and "unsafe" not in policy and len(body) < 100_000
    page = look(browser, post.relay)
    page.js("document.body.insertAdjacentHTML('beforeend', '<p id=x style=\"color: red\">')")
    assert page.js("getComputedStyle(document.getElementById('x')).color") != "rgb(255, 0, 0)"
    with pytest.raises(Exception, match="Failed to fetch"):
        page.js("fetch('http://127.0.0.1:9/').then(r => r.text())")
    page.go("about:blank")


def test_a_relay_that_ends_is_said(post, browser):
    """What stands there is old: the page says so, and goes on when the relay is back on its port."""
    post.start()
    page = look(browser, post.relay)
    page.wait("document.getElementById('age').textContent === 'live'")
    assert post.relay.terminate() == 0
    page.wait("!document.getElementById('stale').hidden")
    assert "No answer since" in page.text("#stale")
    post.start()
    page.wait("document.getElementById('stale').hidden && document.getElementById('age').textContent === 'live'")
    well(page, "again", allowed=["ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET"])


def test_parked(post, browser):
    """An event that Kafka refuses: the sentence names the command; the box and its word are amber."""
    post.start()
    kind, _ = post.kind(config={"max.message.bytes": "1000"})
    post.publish(kind, "poor", json.dumps({"x": os.urandom(4000).hex()}))
    page = look(browser, post.relay)
    page.wait("/1 event of 1 key is parked/.test(document.getElementById('sentence').textContent)")
    assert state(page) == "warn" and "postrider parked list" in sentence(page)
    assert box(page, "Relay").startswith("Relay: warn")
    well(page, "parked")


def test_waiting_for_a_topic(post, browser):
    """Names that could be markup are text."""
    post.start()
    post.publish("nowhere", "k", topic="no.such.topic")
    page = look(browser, post.relay)
    page.wait("document.getElementById('health').dataset.state === 'warn' && document.querySelector('.scroll caption')"
              " && document.querySelector('.scroll').innerText.includes('no.such.topic')")
    well(page, "waiting")


def test_standby(post, browser):
    post.start()
    with_lock = servers.Relay(post.db.conninfo, post.kafka.bootstrap, name=post.name, config=FAST)
    try:
        with_lock.start()
        page = look(browser, with_lock)
        page.wait("document.getElementById('health').dataset.state === 'standby'")
        assert "another relay holds the lock" in sentence(page)
        well(page, "standby")
    finally:
        with_lock.kill()


def test_kafka_down(pg_server, own_kafka, browser):
    kafka = own_kafka(warm=False)
    with Outbox(pg_server, kafka, "page", config={**FAST, "environment": {"name": "production", "colour": "red"}}) as post:
        post.start()
        kind, topic = post.kind()
        post.publish(kind, "k")
        page = look(browser, post.relay)
        page.wait("document.getElementById('health').dataset.state === 'ok'")
        kafka.kill()
        post.publish(kind, "k")
        page.wait("document.getElementById('health').dataset.state === 'error'")
        assert "Kafka" in sentence(page) or "broker" in sentence(page), sentence(page)
        assert "What to do" in sentence(page)
        page.wait("/Kafka: error, no connection/.test(document.querySelector('#pipeline desc').textContent)")
        said = page.wait("document.getElementById('say').textContent")
        assert said.startswith("Outbox") and "error" in said, "a screen reader is told"
        well(page, "kafka-down")


def test_by_keyboard(post, browser):
    """Everything that can be done, by Tab and Enter; what is drawn anew takes no focus away."""
    post.start()
    kind, topic = post.kind()
    post.publish(kind, "k")
    page = look(browser, post.relay)
    page.wait(f"document.body.innerText.includes('{topic}')")
    page.key("Tab")
    assert page.js("document.activeElement.className") == "skip"
    seen = []
    for _ in range(12):
        page.key("Tab")
        seen.append(page.js("document.activeElement.id || document.activeElement.className || document.activeElement.textContent"))
        if seen[-1] == "theme":
            break
    assert seen[:2] == ["hold", "theme"], seen
    before = page.js("getComputedStyle(document.body).backgroundColor")
    page.key("Enter")
    assert page.js("getComputedStyle(document.body).backgroundColor") != before
    page.key("Tab")
    assert page.js("document.activeElement.className") == "scroll"
    asked = len(page.asked)
    wait_until(lambda: page.js("1") and len(page.asked) > asked + 1, 60, "the page to be drawn anew twice")
    assert page.js("document.activeElement.className") == "scroll"
    page.js("document.getElementById('hold').focus()")
    page.key("Enter")
    assert page.js("document.getElementById('hold').getAttribute('aria-pressed')") == "true"
    assert "paused" in page.text("#age")
    well(page, "keyboard")


# ---------------------------------------------------------------- the consumer

def test_dead_letters(inbox, browser):  # noqa: F811
    i = inbox(partitions=3)
    c = i.consumer(config=FAST).start().wait_ready()
    i.send(60)
    i.put("k", "{}", [("id", "no uuid")])
    i.flush()
    i.wait_dead(1)
    page = look(browser, c)
    page.wait("/1 dead letter waits/.test(document.getElementById('sentence').textContent)")
    assert "postrider dlq list" in sentence(page)
    assert "1 dead, 0 parked" in box(page, "Consumer")

    def rows():
        return page.js("[...document.querySelectorAll('tbody tr')].map(r => [...r.children].map(c => c.textContent))")
    assert [r[:2] for r in rows()] == [[i.topic, str(p)] for p in range(3)], rows()
    wait_until(lambda: all(r[2] == "0.0 s" for r in rows()), 60, "nothing to be behind")
    wait_until(lambda: all(r == "\u2192 steady" for r in page.js("[...document.querySelectorAll('tbody td:nth-child(4)')].map(c => c.textContent)")),
               60, "trends")
    well(page, "dead-letters")


def test_parked_messages(inbox, browser):  # noqa: F811
    i = inbox(partitions=1)
    i.poison("k1", "P0001")
    c = i.consumer(config={**FAST, "errors": [{"match": "sqlstate:P0001", "policy": "park", "attempts": 0, "backoff": "1h"}]}).start().wait_ready()
    i.send(20, keys=3)
    i.flush()
    page = look(browser, c)
    page.wait("document.getElementById('health').dataset.state === 'warn' && /parked/.test(document.getElementById('sentence').textContent)")
    wait_until(lambda: "growing" in page.text("dl"), 90, "the lag to be said to grow")
    well(page, "parked-messages")


def test_stuck_saga(sagas, browser):  # noqa: F811
    """A saga whose undoing is refused waits for a person: the engine's page says so, and what to type."""
    s = sagas(definitions={"buy.cfg": buy(timeout="5s", undos=2)}, config=FAST).start()
    s.part["money"].db.psql("INSERT INTO app.closed VALUES ('undo PAYMENT')")
    id, = s.begin([{"script": {"TICKET": "refuse"}}])
    s.wait_state(id, "STUCK")
    page = look(browser, s.engine.consumer)
    page.wait("/stuck/.test(document.getElementById('sentence').textContent)")
    assert state(page) == "warn" and "postrider saga list --state STUCK" in sentence(page)
    assert box(page, "Sagas").startswith("Sagas: warn")
    well(page, "stuck-saga")


# ---------------------------------------------------------------- several programs as one page

@pytest.fixture()
def ui(tmp_path):
    """Starts postrider ui on a file of these settings; gives its address."""
    started = []

    def make(relays=(), consumers=(), databases=(), more=""):
        """more: further settings."""
        def strings(v):
            return "[" + ", ".join(f'"{x}"' for x in v) + "]"
        groups = ", ".join(f'{{ name = "{n}"; conninfo = "{c}"; }}' for n, c in databases)
        file = tmp_path / "ui.cfg"
        file.write_text(f'listen = "127.0.0.1:0"; relays = {strings(relays)}; consumers = {strings(consumers)};'
                        f' databases = ({groups}); environment: {{ name = "production"; colour = "red"; }}; {more}')
        file.chmod(0o600)
        p = subprocess.Popen([servers.bin_path("postrider"), "ui", "-c", str(file)], stdout=subprocess.PIPE, text=True)
        started.append(p)
        return p.stdout.readline().strip()
    yield make
    for p in started:
        p.terminate()
        assert p.wait(30) == 0


def test_joined(pg_server, kafka, inbox, ui, browser):  # noqa: F811
    """A relay, a consumer, and one that does not answer: the worst is named first, the picture shows both ends."""
    i = inbox(partitions=2)
    c = i.consumer(config=FAST).start().wait_ready()
    i.put("k", "{}", [("id", "no uuid")])
    i.flush()
    i.wait_dead(1)
    with Outbox(pg_server, kafka, "page", config=FAST) as post:
        post.start()
        page = browser.page().go(ui([url(post.relay)[:-1]], [url(c)[:-1]], [("inbox", i.conninfo), ("outbox", post.db.conninfo)]))
        page.wait("document.getElementById('health').dataset.state === 'ok'")
        assert "everything flows through 2 programs" in sentence(page) and "production" in page.text("header")
        kind, _ = post.kind()
        first, event, behind = [post.publish(kind, "order-7", '{"card": "very-secret"}') for _ in range(3)]
        post.publish(kind, "order-8")
        post.publish(kind, "order-7")
        for q in (event, "order-7"):
            found = browser.page().go(page.js("location.origin") + "/event?q=" + q)
            assert event in found.text("main") and "order-7" in found.text("main") and "very-secret" not in found.text()
            if q == event:  # with the one before it and the one behind it, each with where it has come to
                parts = found.js("[...document.querySelectorAll('h3')].map(h => h.innerText + ' ' + h.nextElementSibling.innerText)")
                assert [p.split("\n")[0].split(" id")[0] for p in parts] == ["Before it, of the same key", "This event", "Behind it, of the same key"]
                assert [x in p for p, x in zip(parts, (first, event, behind))] == [True] * 3, parts
            well(found, "event")
        assert box(page, "Relay").startswith("Relay: ok") and "1 dead" in box(page, "Consumer")
        assert [h.split(" ")[0] for h in page.js("[...document.querySelectorAll('.part h2')].map(h => h.innerText)")] == ["Outbox", "Group"]
        c.kill()
        page.wait("document.getElementById('health').dataset.state === 'away'")
        assert "does not answer" in sentence(page) and box(page, "Consumer") == "Consumer: away, lag not known"
        well(page, "joined")


def test_look_ups(inbox, ui, browser):  # noqa: F811
    """Dead letters by cause, without their payloads; what fails says why."""
    i = inbox(partitions=1)
    c = i.consumer(config=FAST).start().wait_ready()
    for n in range(3):
        i.put("k", '{"card": "very-secret"}', [("id", "no uuid")])
    i.flush()
    i.wait_dead(3)
    home = ui([], [url(c)[:-1]], [("inbox", i.conninfo), ("nowhere", "host=127.0.0.1 port=1 dbname=x")])
    page = browser.page().go(home)
    page.follow("a[href='/dlq']")
    page.wait("document.querySelector('tbody td')")
    rows = page.js("[...document.querySelectorAll('tbody tr')].map(r => r.innerText)")
    assert len(rows) == 1 and "\t3\t" in rows[0] and i.group in rows[0], rows
    assert "could not be looked up" in page.text("main") and "very-secret" not in page.text()
    for path in ("sagas?state=STUCK", "jobs"):
        page.go(home + path)
        assert "could not be looked up" in page.text("main")
    well(page, "look-up")
    for bad in ("saga?id=--help", "sagas?state=-x", "saga?id=" + "0" * 36, "event?q=--help", "saga"):
        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.urlopen(home + bad, timeout=20)
        assert e.value.code == 400, bad


def test_a_look_up_that_may_not_look(post, ui):
    """Who may not look has not seen that there is nothing."""
    post.start()
    kind, _ = post.kind()
    id_ = post.publish(kind, "1")
    login = unique("uilogin")
    post.sql(f"CREATE ROLE {login} LOGIN IN ROLE outbox_writer")
    try:
        home = ui([url(post.relay)[:-1]], [], [("outbox", post.db.conninfo.replace("user=postgres", f"user={login}"))])
        with urllib.request.urlopen(home + "event?q=" + id_, timeout=60) as r:
            said = r.read().decode()
        assert "permission denied" in said and "as far as could be looked" in said and "No such event" not in said, said
    finally:
        post.sql(f"DROP ROLE {login}")


def test_look_up_a_saga(sagas, ui, browser):  # noqa: F811
    s = sagas(definitions={"buy.cfg": buy(timeout="5s", undos=2)}, config=FAST).start()
    s.part["money"].db.psql("INSERT INTO app.closed VALUES ('undo PAYMENT')")
    id, = s.begin([{"script": {"TICKET": "refuse"}}])
    s.wait_state(id, "STUCK")
    page = browser.page().go(ui([url(p.relay)[:-1] for p in s.parts], [url(p.consumer)[:-1] for p in s.parts],
                                [("engine", s.db.conninfo)]))
    page.wait("/stuck/.test(document.getElementById('sentence').textContent)")
    assert box(page, "Sagas").startswith("Sagas: warn")
    page.follow("a[href='/sagas?state=STUCK']")
    page.follow(f"tbody a[href^='/saga?'][href$='id={id}']")
    page.wait("document.querySelectorAll('table').length >= 2")
    text = page.text("main")
    assert "STUCK" in text and "PAYMENT" in text and "timeline" in text
    well(page, "saga")
