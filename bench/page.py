"""bench/page.py -- does looking at a relay slow it down? A backlog drained while somebody asks its page, status, metrics and
history a thousand times a second and others hold connections with requests that never end, beside the same drain in peace.
Refuses a run in which nobody was answered."""
import contextlib
import json
import os
import socket
import subprocess
import threading
import time

import lab as L
import servers
from measures import MODES, Result, in_turns, median, pick

PATHS = ("/", "/status.json", "/metrics", "/history.json")
RATE, CONNECTIONS, LORIS = 1000, 16, 200


class Crowd:
    """Asks for some seconds. A request of a slow one grows by a byte twice a second; one that is shown out comes back."""

    def __init__(self, seconds):
        self.path = os.path.join(servers.new_dir("page"), "requests")
        with open(self.path, "w", encoding="ascii") as f:
            f.writelines(f"GET\t{PATHS[i % len(PATHS)]}\t\t\n" for i in range(int(RATE * seconds)))
        self.over = threading.Event()

    def begin(self, relay):
        def opened():
            with contextlib.closing(socket.create_connection(("127.0.0.1", relay.port), 1)):
                return True
        L.wait_until(opened, 20, "the relay's port", ignore=(OSError,))
        self.over.clear()
        self.slow = threading.Thread(target=self.drip, args=(relay.port,), daemon=True)
        self.slow.start()
        self.asking = subprocess.Popen([L.program("ask"), str(relay.port), str(CONNECTIONS), str(RATE), self.path],
                                       stdout=subprocess.PIPE, text=True)

    def answered(self):
        """Answers 200 a second, once all is asked."""
        said = json.loads(self.asking.communicate(timeout=120)[0])
        return said["statuses"].get("200", 0) / said["seconds"]

    def drip(self, port):
        with contextlib.ExitStack() as stack:
            conns = {}
            while not self.over.wait(0.5):
                for i in range(LORIS):
                    try:
                        if i not in conns:
                            conns[i] = stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port), 1)))
                            conns[i].sendall(b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
                        conns[i].sendall(b"x")
                    except OSError:
                        conns.pop(i, None)

    def end(self):
        self.over.set()
        self.slow.join()
        self.asking.kill()
        self.asking.wait()
        self.asking.stdout.close()


def drain(lab, rows, mode, events, crowd=None):
    """As lab.drain, but counted at the topic's end: the relay's port is not ours alone."""
    with lab.copy(rows) as db, lab.topic("bench") as (prefix, topic):
        relay = lab.relay(db, mode, prefix)
        began = time.monotonic()
        relay.start()
        try:
            if crowd:
                crowd.begin(relay)
            L.wait_until(lambda: sum(lab.kafka.end_offsets(topic).values()) >= events, 300, "all events on the topic")
            r = {"events_per_second": events / (time.monotonic() - began)}
            if crowd:
                r["answers_per_second"] = crowd.answered()
            assert relay.terminate() == 0
        finally:
            if crowd:
                crowd.end()
            relay.stop()
    return r


def page(lab, opt):
    """A drain while its page is asked 1,000 times a second, beside slow clients, against one in peace."""
    rows, crowd = lab.rows(opt.rows), Crowd(max(3, opt.rows / 200000))
    for mode in MODES:
        base, ours = in_turns(opt.rounds, lambda mode=mode: drain(lab, rows, mode, opt.rows), lambda mode=mode: drain(lab, rows, mode, opt.rows, crowd))
        yield Result("page", f"{mode}, {median(pick(ours, 'answers_per_second')):,.0f} answers/s, {LORIS} slow ones", "ev/s",
                     median(pick(ours, "events_per_second")), "nobody asks", median(pick(base, "events_per_second")),
                     None, {"asked": ours, "peace": base})


MEASURES = {"page": page}
