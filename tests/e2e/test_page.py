"""tests/e2e/test_page.py -- the box office in a real browser: log in, queue, seat, pay, confirmed; a failing payment that
gives the seat back; keyboard alone; nothing on the console, nothing without a name, nothing wider than a phone.
POSTRIDER_SHOTS=DIR leaves pictures there.
"""
import os
import re
import shutil
import urllib.request
import uuid

import audit
import pytest
from browser import Browser
from stack import stack  # noqa: F401
from wait import wait_until

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: run make setup")]
STACK = {"options": {"queue": ["admission.users=1", "admission.every=300ms"]}}
SEATS = 48  # of the concert; another one has fewer
SHOTS = os.environ.get("POSTRIDER_SHOTS")


@pytest.fixture(scope="module")
def browser():
    with Browser() as b:
        yield b


@pytest.fixture(scope="module")
def concert(stack):  # noqa: F811
    stack.open_concert("Evening of the slow strings", 40, 2500)
    title = "The Post Riders, live"
    return stack.open_concert(title, SEATS, 4000, schedules=2)[0], title


class Visitor:
    def __init__(self, stack, browser, **more):  # noqa: F811
        self.stack = stack
        self.page = browser.page(**more).go(stack.url("concert") + "/")
        self.page.wait("!document.getElementById('gate').hidden")
        self.email = f"{uuid.uuid4().hex[:10]}@example.org"

    def join(self, name="Ann Example"):
        p = self.page
        p.click("#tab-new")
        p.type("[name=name]", name)
        p.type("[name=email]", self.email)
        p.type("[name=password]", "a-good-password")
        p.click("#gate-go")
        p.wait("!document.getElementById('left').hidden && document.querySelectorAll('#concerts .pick').length >= 2")
        return self

    def to(self, concert):
        p = self.page
        p.click(f"#concerts li[data-key='{concert}'] .pick")
        # Those of the concert that was shown before stay until these are here.
        p.wait(f"document.querySelectorAll('#seats .seat').length === {SEATS} && document.querySelector(\"#concerts li[data-key='{concert}'] .pick\")"
               ".getAttribute('aria-pressed') === 'true'")
        return self

    def turn(self):
        self.page.click("#line-up")
        self.page.wait("/It is your turn/.test(document.getElementById('place-text').textContent)")
        return self

    def choose(self, n=1):
        """The first free seats; their labels."""
        p = self.page
        labels = []
        for _ in range(n):
            label = p.wait("(document.querySelector('.seat[data-state=AVAILABLE][aria-pressed=false]') || {}).title")
            p.click(f".seat[title={css(label)}]")
            labels.append(label.split(",")[0])
        return labels

    def shot(self, name):
        if SHOTS:
            os.makedirs(SHOTS, exist_ok=True)
            self.page.screenshot(os.path.join(SHOTS, name + ".png"))

    def well(self, allowed=()):
        """Nothing went wrong, everything has a name, nothing is cut off."""
        p = self.page
        wrong = [w for w in p.wrong if not any(re.search(a, w) for a in allowed)]
        assert wrong == []
        assert p.nameless() == []
        assert p.js("document.documentElement.scrollWidth <= window.innerWidth"), "the page is wider than its window"
        p.go("about:blank")  # it asks the queue as long as it is open


def css(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize("mode", ["saga", "choreography", "hybrid"])
def test_from_the_queue_to_the_ticket(stack, browser, concert, mode):  # noqa: F811
    v = Visitor(stack, browser, dark=mode == "choreography")
    if mode == "saga":
        v.shot("gate")
    v.join().to(concert[0])
    p = v.page
    p.click("#charge")
    p.wait("document.getElementById('balance').textContent === '10,000'")
    v.turn()
    labels = v.choose(2)
    v.shot(f"chosen-{mode}")
    p.click("#hold")
    p.wait("document.querySelectorAll('#mine .ticket[data-state=HELD]').length === 2")
    p.wait("/pay within \\d+:\\d\\d/.test(document.querySelector('#mine .text').textContent)")
    p.wait("document.querySelectorAll('.seat[data-state=MINE]').length === 2")
    v.shot(f"held-{mode}")
    p.click(f"[name=mode][value={mode}]")
    p.click("#pay")
    p.wait("document.querySelectorAll('#mine .ticket[data-state=CONFIRMED]').length === 2")
    p.wait("document.querySelector('#pays .ticket[data-state=COMPLETED]')")
    p.wait("document.getElementById('balance').textContent === '2,000'")
    p.wait("document.querySelectorAll('.seat[data-state=TICKET]').length === 2")
    p.wait("document.querySelector('#told li[data-what=paid]') && document.querySelector('#told li[data-what=held]')")
    if mode != "hybrid":
        p.wait("document.querySelectorAll('#pays .steps li.DONE').length >= 4")
    assert all(label in p.text("#mine") for label in labels)
    p.click("#mine details summary")
    p.wait("document.querySelectorAll('#mine details[open] .past li').length >= 4")
    v.shot(f"paid-{mode}")
    v.well()
    audit.check(stack)


def test_a_payment_that_fails_gives_the_seat_back(stack, browser, concert):  # noqa: F811
    """No money: a booking is undone before one's eyes, the seat is free again; nothing was taken."""
    v = Visitor(stack, browser).join("Poor Tom").to(concert[0]).turn()
    p = v.page
    label, = v.choose()
    p.click("#book")
    p.wait("document.querySelector('#pays .ticket[data-state=COMPENSATED], #pays .ticket[data-state=FAILED]')")
    p.wait(f"(document.querySelector('.seat[title^={css(label + ',')}]') || {{dataset: {{}}}}).dataset.state === 'AVAILABLE'")
    p.wait("/points|money/i.test(document.getElementById('pays').innerText)")
    p.wait("[...document.querySelectorAll('#mine .ticket')].every(t => ['CANCELLED', 'REJECTED'].includes(t.dataset.state))")
    v.shot("undone")
    v.well()
    audit.check(stack)


def test_given_back_by_hand(stack, browser, concert):  # noqa: F811
    v = Visitor(stack, browser).join().to(concert[0]).turn()
    v.choose()
    v.page.click("#hold")
    v.page.wait("document.querySelector('#mine .ticket[data-state=HELD] .back')")
    v.page.click("#mine .ticket[data-state=HELD] .back")
    v.page.wait("document.querySelector('#mine .ticket[data-state=CANCELLED]')")
    v.well()


def test_two_visitors_see_each_other(stack, browser, concert):  # noqa: F811
    """What one holds, the other one sees as taken within seconds, without touching anything."""
    a, b = (Visitor(stack, browser).join().to(concert[0]) for _ in range(2))
    a.turn()
    label, = a.choose()
    a.page.click("#hold")
    b.page.wait(f"document.querySelector('.seat[title^={css(label + ',')}][data-state=HELD]')")
    a.well()
    b.well()


def test_a_reload_forgets_nothing(stack, browser, concert):  # noqa: F811
    v = Visitor(stack, browser).join("Rea Loader").to(concert[0]).turn()
    v.choose()
    v.page.click("#hold")
    v.page.wait("document.querySelector('#mine .ticket[data-state=HELD]')")
    v.page.js("window.reloading = true")
    v.page.call("Page.reload")
    v.page.wait("!window.reloading && document.readyState === 'complete' && document.querySelector('#mine .ticket[data-state=HELD]')"
                " && /It is your turn/.test(document.getElementById('place-text').textContent)")
    v.page.wait("document.getElementById('name').innerText.includes('Rea Loader')")
    v.well()


def test_by_keyboard_alone(stack, browser, concert):  # noqa: F811
    """Tab, arrows, Enter and Space are enough to hold a seat; the focus is never lost by what is drawn anew."""
    v = Visitor(stack, browser).join().to(concert[0])
    p = v.page
    p.js("document.getElementById('line-up').focus()")
    p.key("Enter")
    p.wait("/It is your turn/.test(document.getElementById('place-text').textContent)")
    p.wait("document.querySelector('#seats .seat[tabindex=\"0\"]')")
    p.js("document.querySelector('#seats .seat[tabindex=\"0\"]').focus()")
    p.key("ArrowRight")
    p.key("ArrowRight")
    for _ in range(30):  # to a free one
        if p.js("document.activeElement.dataset.state === 'AVAILABLE'"):
            break
        p.key("ArrowRight")
    p.key(" ")
    p.wait("document.activeElement.getAttribute('aria-pressed') === 'true'")
    p.key("Tab")
    assert p.js("document.activeElement.id") == "hold"
    p.key("Enter")
    p.wait("document.querySelector('#mine .ticket[data-state=HELD]')")
    v.well()


@pytest.mark.parametrize("width, height, dark", [(360, 740, False), (360, 740, True), (820, 1100, False), (1720, 1000, True)])
def test_on_every_screen(stack, browser, concert, width, height, dark):  # noqa: F811
    v = Visitor(stack, browser, width=width, height=height, dark=dark).join().to(concert[0]).turn()
    v.choose()
    v.page.click("#hold")
    v.page.wait("document.querySelector('#mine .ticket[data-state=HELD]')")
    v.shot(f"wide-{width}{'-dark' if dark else ''}")
    if width < 600:
        v.page.js("document.getElementById('right').scrollIntoView()")
        v.shot(f"wide-{width}{'-dark' if dark else ''}-below")
    v.well()


def test_a_wrong_password_is_said(stack, browser, concert):  # noqa: F811
    v = Visitor(stack, browser)
    v.page.type("[name=email]", v.email)
    v.page.type("[name=password]", "not-this-one")
    v.page.click("#gate-go")
    v.page.wait("/password is wrong/.test(document.getElementById('gate-wrong').textContent)")
    v.well(allowed=[r"401 \(Unauthorized\)"])


def test_a_service_that_is_away_is_said(stack, browser, concert):  # noqa: F811
    """In plain words, and it goes on by itself when the service is back."""
    v = Visitor(stack, browser).join().to(concert[0]).turn()
    v.choose()
    stack.stop("reservation")
    v.page.js("setTimeout(() => document.getElementById('hold').click())")
    wait_until(lambda: v.page.js("document.getElementById('hold').disabled"), 90, "the button to wait")
    stack.restart("reservation")
    v.page.wait("document.querySelector('#mine .ticket[data-state=HELD]')")
    v.well(allowed=["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "503"])


def test_it_needs_no_network(stack, browser, concert):  # noqa: F811
    """One file: whatever it asked for was the page, its configuration, or a service; and its policy lets it do no more."""
    v = Visitor(stack, browser).join().to(concert[0])
    homes = [stack.url(s) for s in ("user", "concert", "queue", "reservation", "payment", "order", "push")]
    assert [a for a in v.page.asked if not a.startswith((*homes, "data:"))] == []
    with urllib.request.urlopen(stack.url("concert") + "/", timeout=60) as r:
        policy = r.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy, policy
    with pytest.raises(Exception, match="Failed to fetch"):
        v.page.js("fetch('http://127.0.0.1:9/').then(r => r.text())")
    v.page.go("about:blank")
