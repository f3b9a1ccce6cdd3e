"""tests/support/demo_screen.py -- the demonstration's screen: redrawn in place on a terminal, lines in a pipe.

Draws what the Demo knows; starts, stops and counts nothing. Fits any terminal from 80x24 on; colours
only on a terminal and without NO_COLOR; plain characters where the output is not UTF-8.
"""
import contextlib
import os
import shutil
import sys
import termios
import textwrap
import time

from demo_watch import WAYS

UTF8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
BARS = " ▁▂▃▄▅▆▇█" if UTF8 else " .:-=+*#@"
DONE, NOW, DOT, ARROW, ELLIPSIS = ("✓", "▸", "●", "─▶", "…") if UTF8 else ("+", ">", "*", "->", "...")
STATE_COLOR = {"ok": "32", "standby": "32", "error": "31", "dead": "31"}


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def wrap(text, width):
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return lines + [line]


class Screen:
    """The live view: redrawn in place on a terminal, plain lines elsewhere."""

    def __init__(self, demo):
        self.demo = demo
        self.live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.color = self.live and not os.environ.get("NO_COLOR")
        self.opened = False
        self.next_line, self.said = 0.0, None
        self.tty = None

    def paint(self, code, text):
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def say(self, text=""):
        """A line outside the live view."""
        print(text, flush=True)

    def width(self):
        """0: a pipe's, as wide as a line is."""
        return shutil.get_terminal_size().columns if self.live else 0

    def fill(self, text, indent=0, code=None):
        """Outside the live view, in lines that fit, from the second on indented."""
        for line in textwrap.wrap(text, min(100, self.width() or 100) - 1, subsequent_indent=" " * indent, break_on_hyphens=False):
            self.say(self.paint(code, line) if code else line)

    def open(self):
        if not self.live:
            return
        with contextlib.suppress(termios.error, OSError, ValueError):
            fd = sys.stdin.fileno()
            if os.tcgetpgrp(fd) == os.getpgrp():  # typed keys would be written over the picture
                self.tty = (fd, termios.tcgetattr(fd))
                quiet = termios.tcgetattr(fd)
                quiet[3] &= ~termios.ECHO
                termios.tcsetattr(fd, termios.TCSANOW, quiet)
        self.opened = True
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")

    def close(self):
        if self.tty:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self.tty[0], termios.TCSANOW, self.tty[1])
            self.tty = None
        if self.opened:
            self.opened = False
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.write("\x1b[?25h\x1b[?1049l")
                sys.stdout.flush()

    def step(self, at, text):
        if not self.live:
            self.say(f"{clock(at):>5}  {NOW} {text}")

    # -- lines

    def frame(self):
        if self.live:
            self._redraw()
            return
        d = self.demo
        worst = d.health.worst()[:1]
        if time.monotonic() >= self.next_line or [w[:2] for w in worst] != self.said:  # a change of state is said at once
            self.next_line, self.said = time.monotonic() + (2 if d.show else 30), [w[:2] for w in worst]
            self.say(f"{clock(d.elapsed()):>5}    " + self._words(self._people() + self._facts()))
            well = f"{worst[0][0]} {worst[0][1]}: {worst[0][2]}" if worst else f"all {len(d.health.of)} programs are well"
            self.say(f"         {self._words(self._ways())}   {well}")

    @staticmethod
    def _words(cells):
        return "   ".join(f"{name} {value}" for name, value, _ in cells)

    # -- the picture

    def _redraw(self):
        size = shutil.get_terminal_size()
        width, height = max(40, size.columns), max(10, size.lines)
        lines = self._lines(width, height)[:height]
        out = ["\x1b[?2026h\x1b[H"]
        out += ["\r\n".join(self._cut(line, width) + "\x1b[K" for line in lines), "\x1b[J\x1b[?2026l"]
        sys.stdout.write("".join(out))
        sys.stdout.flush()

    def _cut(self, parts, width):
        """A line is a list of (color code or None, text); cut to the width, then painted."""
        out, left = [], width - 1
        for code, text in parts:
            if len(text) > left:
                text = text[:max(0, left - len(ELLIPSIS))] + ELLIPSIS if left > len(ELLIPSIS) else ""
            left -= len(text)
            out.append(self.paint(code, text) if code and text else text)
        return "".join(out)

    def _lines(self, width, height):
        d = self.demo
        tall = height >= 29
        gap = 3 if width < 100 else 6
        top = self._title(width) + [[("2", f"  {d.page} in your browser: buy a ticket yourself")]] + [[]] * tall
        tables = (self._people(), self._ways(), self._facts())
        wide = [max(len(w) for t in tables for c in t[i:i + 1] for w in c[:2]) + gap for i in range(max(map(len, tables)))]
        for cells in tables:
            top += self._table(cells, wide) + [[]] * tall
        if tall:
            top += [self._undone(), []]
        if tall and (height >= 34 or not d.foot):
            top += self._graphs(width) + [[]]
        top += self._programs(width, 2 if height >= 36 else 1)
        bottom = self._foot(height)
        room = height - len(top) - len(bottom) - 4  # two headings, two blank lines
        steps = self._steps(width, max(3, room // 2))
        events = self._events(width, max(0, room - len(steps)))
        return top + [[]] + [[("2", "  What happens here")]] + steps + ([[]] + [[("2", self._heading(width))]] + events if events else []) + bottom

    def _title(self, width):
        d = self.demo
        left = [("1", "  Postrider"), (None, f"   a box office: {len(d.health.of)} programs, {d.broker_name}, Postgres, Redis")]
        used = sum(len(t) for _, t in left)
        right = f"{d.delivery.replace('_', ' ')}  {clock(d.elapsed())} "
        if used + len(right) >= width:
            right = f"{clock(d.elapsed())} "
        return [left + [(None, " " * max(1, width - 1 - used - len(right))), ("2", right)]]

    @staticmethod
    def _table(cells, wide):
        """Names above, values below, in columns that all tables have."""
        names, values = [(None, "  ")], [(None, "  ")]
        for i, ((name, value, code), w) in enumerate(zip(cells, wide)):
            w *= i < len(cells) - 1  # the last one needs no room behind it
            names.append(("2", f"{name:<{w}}"))
            values.append((code, f"{value:<{w}}"))
        return [names, values]

    def _undone(self):
        """At which step those failed that were undone."""
        at = self.demo.numbers.failed().most_common()
        return [("2", "  undone, by the step that failed: "), ("1;33" if at else "2", "  ".join(f"{step} {n}" for step, n in at) or "none")]

    def _people(self):
        d, n = self.demo, self.demo.numbers
        return [("guests", f"{d.crowd.count['guests'] if d.crowd else 0:,}", "1"), ("queueing", f"{n.waiting:,}", "1"),
                ("their turn", f"{n.active:,}", "1"), ("seats held", f"{n.held:,}", "1"), ("expired", f"{n.expired:,}", "1"),
                ("sold", f"{n.sold:,} of {n.seats:,}", "1;32")]

    def _ways(self):
        """What was paid, by the way of paying; what was undone, and what is under way."""
        n = self.demo.numbers
        stuck = n.sagas("STUCK")
        return [("paid: " * (i == 0) + way, f"{n.paid(way):,}", "1;32") for i, way in enumerate(WAYS)] + [
            ("undone", f"{sum(n.failed().values()):,}", "1;33")] + ([("stuck", f"{stuck:,}", "1;31")] if stuck else [])

    def _facts(self):
        n = self.demo.numbers
        lag = n.facts_lag()
        return [("money taken", f"{n.money:,}", "1"), ("pending", f"{n.pending:,}", "1"), ("events", f"{n.events:,}", "1"),
                ("on topics", f"{self.demo.records.count:,}", "1"), ("facts", f"{n.facts:,}", "1"),
                ("platform lags", f"{lag:.1f} s", "1" if lag < 3 else "1;33" if lag < 30 else "1;31")]

    def _graphs(self, width):
        d = self.demo
        room = min(width - 26, 120)
        lines = []
        for name, values, unit in (("events", d.event_rate, "/s"), ("facts", d.fact_rate, "/s"), ("sold", d.sold_rate, "/s")):
            values = list(values)[-room:]
            rates = sorted(values) or [1]
            top = max(2 * rates[len(rates) // 2], rates[-1] / 2, 1)
            bar = "".join(BARS[min(len(BARS) - 1, round(v / top * (len(BARS) - 1)))] for v in values)
            now = f"{values[-1]:,.0f}" if values else "0"
            lines.append([("2", f"  {name:<10} "), ("36", f"{bar:>{room}}"), (None, f" {now}{unit}")])
        return lines

    def _programs(self, width, most):
        """A dot for each program, by service: the service, its consumers, its relay; below, who is not well."""
        d = self.demo
        groups = {}
        for name in d.health.of:
            groups.setdefault(name.split("-")[0].split(".")[0], []).append(name)
        lines, line, used = [], [(None, "  ")], 2
        for word, names in groups.items():
            if used + len(word) + len(names) + 3 > width:
                lines.append(line)
                line, used = [(None, "  ")], 2
            line += [("2", word + " ")] + [(STATE_COLOR.get(d.health.of[n][0], "33"), DOT) for n in sorted(names)] + [(None, "  ")]
            used += len(word) + len(names) + 3
        lines.append(line)
        worst = d.health.worst()[:most]
        said = [[(STATE_COLOR.get(s, "33"), f"  {n} {s}: {t}" if s != "dead" else f"  {n} {t}")] for n, s, t in worst]
        return lines + said + [[("2", "  all programs are well")] if not worst and i == 0 else [] for i in range(most - len(said))]

    def _steps(self, width, room):
        """The latest steps, the one of now in bold; older ones shrink to what fits."""
        d = self.demo
        out = []
        for i, (at, text) in enumerate(reversed(list(d.steps))):
            now = i == 0 and not d.finished
            lines = wrap(text, width - 12)
            block = [[("32" if not now else "1;33", f"  {NOW if now else DONE} "),
                      ("2", f"{clock(at):>5} "), ("1" if now else "2", f" {lines[0]}")]]
            block += [[(None, " " * 10), ("1" if now else "2", f" {more}")] for more in lines[1:]]
            if out and len(out) + len(block) > room:
                break
            out = block + out
        return out[-room:]

    @staticmethod
    def _columns(width):
        return (26 if width >= 96 else 13), (38 if width >= 110 else 10), 22

    def _heading(self, width):
        topic, key, kind = self._columns(width)
        return f"  {'Last events':<14}{'topic':<{topic}}{'key':<{key}} {'headers: type':<{kind}} outbox-seq"

    def _events(self, width, room):
        topic, key, kind = self._columns(width)
        out = []
        for at, name, k, headers in list(self.demo.records.last)[-room:] if room > 0 else []:
            stamp = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
            name = name if topic > 20 else name.replace("outbox.event.", "")
            k = k if len(k) < key else k[-(key - 2):]
            out.append([("2", f"  {stamp:<14}"), (None, f"{name:<{topic}}"), ("36", f"{k:<{key}}"),
                        (None, f" {headers.get('type', '?'):<{kind}}"), ("2", f" {headers.get('outbox-seq', '?'):>6}")])
        return out + [[]] * (room - len(out))

    def _foot(self, height):
        d = self.demo
        lines = d.foot if height >= 29 else d.foot[:4]
        return [[]] + [[(code, f"  {text}")] for code, text in lines] if d.foot else []
