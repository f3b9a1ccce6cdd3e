"""tests/support/collector.py -- a server shaped like an OpenTelemetry collector: POST /v1/traces with OTLP JSON.

It reads every request as strictly as the protocol's JSON mapping is written (ids in hex, 64-bit numbers as
strings, enumerations as numbers, no field that the schema does not have) and keeps what it found wrong. Refuses
to be lenient: a real collector may be.
"""
import collections
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Span = collections.namedtuple("Span", "trace id parent name kind start end attributes status resource")
VALUES = {"stringValue": str, "intValue": str, "boolValue": bool}


def _only(what, given, wanted, optional=()):
    assert isinstance(given, dict), f"{what} is no object"
    assert set(wanted) <= set(given) <= set(wanted) | set(optional), f"{what} has {sorted(given)}"


def _attributes(given):
    out = {}
    assert isinstance(given, list)
    for a in given:
        _only("an attribute", a, ("key", "value"))
        ((kind, value),) = a["value"].items()
        assert kind in VALUES and isinstance(value, VALUES[kind]), f"{a['key']} is {a['value']}"
        assert kind != "intValue" or re.fullmatch(r"-?\d+", value), f"{a['key']} is {value}"
        assert a["key"] not in out, f"{a['key']} comes twice"
        out[a["key"]] = int(value) if kind == "intValue" else value
    return out


def _span(s, resource):
    _only("a span", s, ("traceId", "spanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes", "status"),
          ("parentSpanId",))
    assert re.fullmatch(r"[0-9a-f]{32}", s["traceId"]) and set(s["traceId"]) != {"0"}, s["traceId"]
    for name in ("spanId", "parentSpanId"):
        assert name not in s or (re.fullmatch(r"[0-9a-f]{16}", s[name]) and set(s[name]) != {"0"}), s[name]
    for name in ("startTimeUnixNano", "endTimeUnixNano"):
        assert isinstance(s[name], str) and re.fullmatch(r"\d{19}", s[name]), s[name]
    assert type(s["kind"]) is int and s["kind"] in (4, 5), s["kind"]
    _only("a status", s["status"], (), ("code", "message"))
    assert s["status"].get("code", 0) in (0, 2), s["status"]
    start, end = int(s["startTimeUnixNano"]), int(s["endTimeUnixNano"])
    assert start <= end
    return Span(s["traceId"], s["spanId"], s.get("parentSpanId"), s["name"], s["kind"], start, end,
                _attributes(s["attributes"]), s["status"], resource)


def read(body):
    """The spans of an ExportTraceServiceRequest; AssertionError: it is none."""
    spans = []
    request = json.loads(body)
    _only("the request", request, ("resourceSpans",))
    for r in request["resourceSpans"]:
        _only("resourceSpans", r, ("resource", "scopeSpans"))
        _only("the resource", r["resource"], ("attributes",))
        resource = _attributes(r["resource"]["attributes"])
        for scope in r["scopeSpans"]:
            _only("scopeSpans", scope, ("scope", "spans"))
            _only("the scope", scope["scope"], ("name", "version"))
            spans += [_span(s, resource) for s in scope["spans"]]
    return spans


class Collector:
    """judge(n of the request) -> status, or (status, headers, body). gate: an Event that answers wait for."""

    def __init__(self, judge=lambda n: 200, port=0):
        self.judge, self.taken, self.wrong, self.headers = judge, [], [], []
        self.requests = 0
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, text = outer.take(self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # who asked has gone

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def take(self, path, headers, body):
        with self.lock:
            n = self.requests
            self.requests += 1
            self.headers.append(headers)
        spans = []
        try:
            assert path == "/v1/traces" and headers["Content-Type"] == "application/json", (path, headers)
            spans = read(body)
        except (AssertionError, ValueError, KeyError, TypeError) as e:
            self.wrong.append(f"{type(e).__name__}: {e} in {body[:300]}")
        self.gate.wait()
        verdict = self.judge(n)
        status, more, text = verdict if isinstance(verdict, tuple) else (verdict, {}, b"{}")
        if status == 200:
            with self.lock:
                self.taken += spans
        return status, {"Content-Type": "application/json", **more}, text

    def spans(self, **where):
        """Taken ones with these fields."""
        assert not self.wrong, self.wrong[0]
        with self.lock:
            return [s for s in self.taken if all(getattr(s, k) == v for k, v in where.items())]

    def of(self, *ids):
        """Taken ones of messages with these ids, by when they began."""
        return sorted((s for s in self.spans() if s.attributes["messaging.message.id"] in ids), key=lambda s: s.start)

    def close(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
