#!/usr/bin/python3
"""tests/support/alert_hook.py -- what stands at the other end of alerts.url: takes what is posted, remembers it, and can refuse,
be slow, or answer nothing.

    alert_hook.py [PORT]           prints each alert as a line of JSON; ends with Ctrl-C

Refuses bodies that are no JSON with 400, as a real one does.
"""
import http.server
import json
import sys
import threading


class Hook:
    """status: of the answers to come; fails: so many of them answer 500 first; gate: cleared, they hang."""

    def __init__(self, port=0, show=False):
        self.taken, self.tries, self.status, self.fails = [], [], 200, 0
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    body = json.loads(text)
                except ValueError:
                    body = None
                hook.gate.wait(60)
                with hook.lock:
                    failing = hook.fails > 0
                    hook.fails -= failing
                    status = 400 if body is None else 500 if failing else hook.status
                    seen = {"body": body, "headers": dict(self.headers), "status": status}
                    hook.tries.append(seen)
                    if status // 100 == 2:
                        hook.taken.append(seen)
                if show:
                    print(json.dumps(seen), flush=True)
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args):
                pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/alerts"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def stop(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    h = Hook(int(sys.argv[1]) if len(sys.argv) > 1 else 9090, show=True)
    print(h.url, file=sys.stderr)
    h.server.serve_forever()
