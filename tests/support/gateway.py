"""tests/support/gateway.py -- a payment gateway and a tax server to play with, in this process: POST /approvals,
/cancellations, /receipts, /voids. Idempotent by key, as a good one is; told to, it refuses, breaks, is late, acts and
does not say so, or answers twice. What it has done is the truth that tests compare with.
"""
import http.server
import json
import threading

PATHS = {"/approvals": "approve", "/cancellations": "cancel", "/receipts": "issue", "/voids": "void"}


class Outside:
    """plan["approve"] = ["error", "ok"]: what the next requests meet, then "ok". Words: ok, refuse, error (500), busy (503
    with Retry-After), garbage, lost (acts, and hangs up without an answer), silent (does nothing, and never answers),
    late (acts when release() is called; the client may have gone), twice (two answers on one connection)."""

    def __init__(self):
        self.mutex = threading.Lock()
        self.plan, self.requests = {}, []
        self.answers = {}     # key: what was answered to it
        self.approved, self.cancelled, self.issued, self.voided = {}, set(), {}, set()
        self.gate, self.late = threading.Event(), 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.serve(self, PATHS[self.path], self.headers["Idempotency-Key"], body)

            def log_message(self, *_):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def release(self):
        self.gate.set()

    def count(self, kind):
        return sum(k == kind for k, _ in self.requests)

    def charged(self):
        """{payment: amount} of what stands: approved, and not cancelled after that."""
        return {k: v for k, v in self.approved.items() if k not in self.cancelled}

    def serve(self, http_, kind, key, body):
        with self.mutex:
            self.requests.append((kind, key))
            word = (self.plan.get(kind) or ["ok"]).pop(0) if self.plan.get(kind) else "ok"
        if word == "late":
            with self.mutex:
                self.late += 1
            self.gate.wait(60)
        if word in ("error", "busy", "garbage"):
            self.say(http_, {"error": 500, "busy": 503, "garbage": 200}[word], {"what": "?"} if word != "garbage" else None,
                     {"Retry-After": "1"} if word == "busy" else {})
            return
        if word == "silent":
            self.gate.wait(60)
            http_.close_connection = True
            return
        with self.mutex:
            if key not in self.answers:
                self.answers[key] = self.act(kind, body, word)
            status, answer = self.answers[key]
            if status == 404:
                del self.answers[key]  # it may be known later
        if word == "lost":
            http_.close_connection = True
            return
        for _ in range(2 if word == "twice" else 1):
            self.say(http_, status, answer)

    def act(self, kind, body, word):
        payment = body["payment_id"]
        if word == "refuse":
            return 402, {"reason": "the card is stolen"}
        if kind == "approve":
            self.approved[payment] = body["amount"]
            self.cancelled.discard(payment)
            return 201, {"approval_id": f"A-{payment[:8]}"}
        if kind == "cancel":
            if payment not in self.approved:
                return 404, {"reason": "no such approval"}
            self.cancelled.add(payment)
            return 200, {"cancellation_id": f"C-{payment[:8]}"}
        if kind == "issue":
            self.issued[payment] = f"T-{len(self.issued) + 1}"
            return 201, {"receipt_no": self.issued[payment]}
        self.voided.add(body["receipt_no"])
        return 200, {"receipt_no": body["receipt_no"]}

    @staticmethod
    def say(http_, status, body, headers=None):
        data = b"<html>" if body is None else json.dumps(body).encode()
        try:
            http_.send_response(status)
            for k, v in (headers or {}).items():
                http_.send_header(k, v)
            http_.send_header("Content-Type", "application/json")
            http_.send_header("Content-Length", str(len(data)))
            http_.end_headers()
            http_.wfile.write(data)
            http_.wfile.flush()
        except OSError:
            pass  # the client has gone
