"""tests/support/browser.py -- a headless Chromium, driven by the DevTools protocol over a pipe: no port, no library.

A page remembers what went wrong in it (errors on the console, exceptions, requests that got no answer); the test asks
for that at the end. Refuses to leave a browser behind: it ends with its pipe, and by the parent death signal.
"""
import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time

import servers
from wait import wait_until


class Broken(Exception):
    """The browser refused a command, or a script threw."""


def _as_3_and_4(read, write):
    """Where Chromium looks for its pipe; by way of numbers that are neither."""
    read, write = fcntl.fcntl(read, fcntl.F_DUPFD, 10), fcntl.fcntl(write, fcntl.F_DUPFD, 10)
    os.dup2(read, 3)
    os.dup2(write, 4)


class Browser:
    def __init__(self, width=1280, height=900):
        self.dir = servers.new_dir("chromium")
        self.size = (width, height)
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        argv = ["setpriv", "--pdeathsig", "KILL", shutil.which("chromium") or "chromium", "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu",
                "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--no-default-browser-check", "--mute-audio", "--hide-scrollbars", "--renderer-process-limit=1",
                f"--user-data-dir={self.dir}", f"--window-size={width},{height}"] + ["--no-sandbox"] * (os.geteuid() == 0) + ["about:blank"]
        with open(os.path.join(self.dir, "chromium.log"), "wb") as log:
            self.proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(3, 4),
                                         preexec_fn=lambda: _as_3_and_4(theirs_in, theirs_out), start_new_session=True, env={**os.environ, "HOME": self.dir})
        os.close(theirs_in)
        os.close(theirs_out)
        self.ids, self.answers, self.pages, self.text = itertools.count(1), {}, {}, b""
        self.call("Browser.getVersion", timeout=60)

    # -- the protocol

    def send(self, method, params=None, session=None):
        n = next(self.ids)
        message = {"id": n, "method": method, "params": params or {}, **({"sessionId": session} if session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return n

    def call(self, method, params=None, session=None, timeout=60):
        return self.answer(self.send(method, params, session), method, timeout)

    def answer(self, n, method, timeout):
        end = time.monotonic() + timeout
        while n not in self.answers:
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"the browser did not answer {method} within {timeout} s")
            self.read(left)
        answer = self.answers.pop(n)
        if "error" in answer:
            raise Broken(f"{method}: {answer['error'].get('message')}")
        return answer["result"]

    def read(self, seconds=0):
        """Takes what the browser said meanwhile."""
        if not select.select([self.into], [], [], seconds)[0]:
            return
        data = os.read(self.into, 1 << 20)
        if not data:
            raise AssertionError("the browser has ended:\n" + servers.tail(os.path.join(self.dir, "chromium.log")))
        *whole, self.text = (self.text + data).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self.answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].heard(message["method"], message["params"])

    def page(self, width=None, height=None, dark=False):
        """A page with storage of its own, as of another person."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(*(width or self.size[0], height or self.size[1]))
        page.look(dark)
        return page

    def close(self):
        if self.proc.poll() is None:
            os.killpg(self.proc.pid, signal.SIGKILL)
        self.proc.wait(30)
        os.close(self.out)
        os.close(self.into)
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Page:
    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.wrong = []  # errors on the console, exceptions
        self.asked = []  # addresses of all requests

    def heard(self, method, params):
        if method == "Runtime.exceptionThrown":
            d = params["exceptionDetails"]
            self.wrong.append("exception: " + (d.get("exception") or {}).get("description", d["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.wrong.append("console: " + " ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.wrong.append(f"log: {params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def call(self, method, params=None, timeout=90):
        return self.browser.call(method, params, self.session, timeout)

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1,
                                                         "mobile": width < 600})

    def look(self, dark):
        self.call("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"}]})

    def go(self, url):
        self.call("Page.navigate", {"url": url})
        self.wait("document.readyState === 'complete'", 90, url)
        return self

    def js(self, text):
        """The value of an expression; a promise is awaited."""
        got = self.call("Runtime.evaluate", {"expression": text, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in got:
            d = got["exceptionDetails"]
            raise Broken((d.get("exception") or {}).get("description", d["text"]))
        return got["result"].get("value")

    def wait(self, condition, timeout=90, what=None):
        """Until the expression is true in the page; gives its value, true for an element."""
        condition = f"(v => v instanceof Node ? true : v)({condition})"
        try:
            # Asked of a page that is just leaving, or of one that has not all yet, the expression may throw.
            return wait_until(lambda: self.js(condition), timeout, what or condition, interval=0.02, ignore=(Broken,))
        except AssertionError as e:
            raise AssertionError(f"{e}\nthe page says: {self.text()[:1500]}\n{self.wrong}") from None

    def click(self, selector):
        """A real click in the middle of the element, once it can be clicked."""
        q = json.dumps(selector)
        at = self.wait(f"(() => {{ const e = document.querySelector({q}); if (!e || e.disabled || !e.offsetParent) return null;"
                       "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
                       "const x = r.left + r.width / 2, y = r.top + r.height / 2, over = document.elementFromPoint(x, y);"
                       "return over && (e === over || e.contains(over)) ? [x, y] : null })()", 90, f"{selector} to be there for a click")
        # Both at once: what is drawn anew between them would be pressed and another one released, which is no click.
        sent = [self.browser.send("Input.dispatchMouseEvent", {"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1}, self.session)
                for kind in ("mousePressed", "mouseReleased")]
        for n in sent:
            self.browser.answer(n, "Input.dispatchMouseEvent", 90)

    def follow(self, selector):
        """A click on a link, until the page behind it is there: what is asked next is not asked of this one."""
        self.js("window.thisPage = true")
        self.click(selector)
        self.wait("!('thisPage' in window) && document.readyState === 'complete'", 90, f"the page behind {selector}")

    def type(self, selector, text):
        self.click(selector)
        self.call("Input.insertText", {"text": text})

    def key(self, key, code=None, n=0):
        """One key: "Tab", "Enter", "ArrowRight", " "."""
        code = n or {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", {"type": kind, "key": key, "windowsVirtualKeyCode": code,
                                                 **({"text": text} if text and kind == "keyDown" else {})})

    def text(self, selector="body"):
        return self.js(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''")

    def nameless(self):
        """Controls that a screen reader could not name, by role."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "radio", "checkbox", "combobox", "link", "slider"}
        return [n["role"]["value"] for n in nodes if not n.get("ignored") and n.get("role", {}).get("value") in roles
                and not n.get("name", {}).get("value", "").strip()]

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": False})["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))
        return path
