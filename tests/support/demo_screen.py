"""tests/support/demo_screen.py -- the demonstration's screen: redrawn in place on a terminal, lines in a pipe.

Draws what the Demo knows; starts, stops and counts nothing. Fits any terminal from 80x24 on; colours
only on a terminal and without NO_COLOR; plain characters where the output is not UTF-8.
"""
import contextlib
import os
import shutil
import sys
import termios
import time

UTF8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
BARS = " ▁▂▃▄▅▆▇█" if UTF8 else " .:-=+*#@"
DONE, NOW, DOT, ARROW, ELLIPSIS = ("✓", "▸", "●", "─▶", "…") if UTF8 else ("+", ">", "*", "->", "...")
STATE_COLOR = {"ok": "32", "warn": "33", "paused": "33", "starting": "33", "standby": "33", "stopping": "33",
               "error": "31", "dead": "31"}


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
        self.next_line, self.states = 0.0, None
        self.tty = None

    def paint(self, code, text):
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def say(self, text=""):
        """A line outside the live view."""
        print(text, flush=True)

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

    def frame(self):
        if self.live:
            self._redraw()
            return
        d = self.demo
        states = (d.health.state, d.seat.health.state)
        if time.monotonic() >= self.next_line or states != self.states:  # a change of state is said at once
            self.next_line, self.states = time.monotonic() + (2 if d.show else 30), states
            self.say(f"{clock(d.elapsed()):>5}    rows committed {d.rows.count:>7,}   records on the topics "
                     f"{d.records.count:>7,}   lag {d.lag():5.2f} s   relay {d.health.state}: {d.health.sentence}")
            numbers = "   ".join(f"{name} {value:>{6 if name == 'handled' else 1}}"
                                 for name, value, _ in self._seat_cells())
            health = d.seat.health
            self.say(f"         group seat: {numbers}   consumer {health.state}: {health.sentence}")

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
        playing = d.finished and d.foot
        top = self._title(width) + [[]] + self._numbers(width) + ([[]] if tall else []) + self._seat(width)
        if height >= 36 or not playing:
            top += [[]] + self._graphs(width, tall)
        top += [[]] + self._health(width, 2 if height >= 36 else 1)
        bottom = self._foot(height)
        room = height - len(top) - len(bottom) - 4  # two headings, two blank lines
        steps = self._steps(width, max(4, room // 2))
        events = self._events(width, max(0, room - len(steps)))
        return (top + [[]] + [[("2", "  What happens here")]] + steps + [[]] + [[("2", self._heading(width))]] + events
                + bottom) if d else []

    def _title(self, width):
        d = self.demo
        way = f" {ARROW} ".join(("orders", "relay", d.broker_name, "consumer", "seat"))
        left = [("1", "  Postrider"), (None, f"   {way}")]
        used = sum(len(t) for _, t in left)
        right = f"{d.delivery.replace('_', ' ')}  {clock(d.elapsed())} "
        if used + len(right) >= width:
            right = f"{clock(d.elapsed())} "
        return [left + [(None, " " * max(1, width - 1 - used - len(right))), ("2", right)]]

    @staticmethod
    def _seconds(lag):
        return f"{lag:.2f} s" if lag < 100 else f"{lag:.0f} s"

    @staticmethod
    def _lag_color(lag):
        return "1" if lag < 1 else "1;33" if lag < 30 else "1;31"

    @staticmethod
    def _table(cells, gap):
        """Names above, values below."""
        names, values = [(None, "  ")], [(None, "  ")]
        for name, value, code in cells:
            w = max(len(name), 7) + gap
            names.append(("2", f"{name:<{w}}"))
            values.append((code, f"{value:<{w}}"))
        return [names, values]

    def _numbers(self, width):
        d = self.demo
        lag = d.lag()
        color = self._lag_color(lag)
        return self._table([
            ("rows committed", f"{d.rows.count:,}", "1"), ("records on the topics", f"{d.records.count:,}", "1"),
            ("on their way", f"{max(0, d.rows.count - d.records.count):,}", color), ("lag", self._seconds(lag), color),
        ], 3 if width < 100 else 8)

    def _seat_cells(self):
        """Of the consumer group: what was applied, and what is held back."""
        seat = self.demo.seat
        lag = seat.health.lag()
        return [("handled", f"{seat.handled:,}", "1"), ("duplicates", f"{seat.health.duplicates:,}", "1"),
                ("parked keys", f"{seat.parked_keys:,}", "1;33" if seat.parked_keys else "1"),
                ("dead letters", f"{seat.dead_letters:,}", "1;31" if seat.dead_letters else "1"),
                ("lag", self._seconds(lag), self._lag_color(lag))]

    def _seat(self, width):
        return self._table([("group", "seat", "1")] + self._seat_cells(), 3 if width < 100 else 6)

    def _graphs(self, width, tall):
        d = self.demo
        room = min(width - 26, 120)
        lines = []
        # All rates on one scale, with the usual rate in the middle; a burst fills its column.
        rates = sorted(d.committed_rate) or [1]
        usual = max(1, rates[len(rates) // 2])
        series = [("committed", d.committed_rate, "/s")] if tall else []
        for name, values, unit in series + [("on topics", d.record_rate, "/s"), ("handled", d.handled_rate, "/s"),
                                            ("lag", d.lag_series, " s")]:
            values = list(values)[-room:]
            # The lag's bars grow with its root: a second must be seen beside ten.
            top = max(values + [4]) if name == "lag" else 2 * usual
            heights = ((v / top) ** (0.5 if name == "lag" else 1) for v in values)
            bar = "".join(BARS[min(len(BARS) - 1, round(h * (len(BARS) - 1)))] for h in heights)
            now = (f"{values[-1]:,.0f}" if name != "lag" else f"{values[-1]:.1f}") if values else "0"
            color = "36" if name != "lag" else "33"
            lines.append([("2", f"  {name:<10} "), (color, f"{bar:>{room}}"), (None, f" {now}{unit}")])
        return lines

    def _health(self, width, most):
        """One word and one sentence of each program, in as many lines each, so that nothing jumps."""
        d = self.demo
        out = []
        for name, health in (("relay", d.health), ("consumer", d.seat.health)):
            color = STATE_COLOR.get(health.state, "33")
            text = health.sentence if health.state == "dead" else f"{health.state}: {health.sentence}"
            lines = wrap(text, width - 17) + [""]
            if most == 1:
                lines = [text]
            out.append([("2", f"  {name:<10} "), (color, f"{DOT} {lines[0]}")])
            out += [[(color, f"               {more}")] for more in lines[1:most]]
        return out

    def _steps(self, width, room):
        """The latest steps, the one of now in bold; older ones shrink to what fits."""
        d = self.demo
        out = []
        steps = list(d.steps)
        for i, (at, text) in enumerate(reversed(steps)):
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
        topic = 26 if width >= 96 else 12
        return topic, 9, 21

    def _heading(self, width):
        topic, key, kind = self._columns(width)
        names = "id, outbox-seq" + (", tenant" if width >= 96 else "")
        return f"  {'Last events':<14}{'topic':<{topic}}{'key':<{key}} {'headers: type':<{kind}} {names}"

    def _events(self, width, room):
        topic, key, kind = self._columns(width)
        out = []
        for at, name, k, headers in list(self.demo.records.last)[-room:] if room else []:
            stamp = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
            name = name if topic > 20 else name.replace("outbox.event.", "")
            event_id = headers.get("id", "?")
            rest = f" {event_id if width >= 120 else event_id[:8] + ELLIPSIS} {headers.get('outbox-seq', '?'):>6}"
            rest += f" {headers.get('tenant', '')}" if width >= 96 else ""
            out.append([("2", f"  {stamp:<14}"), (None, f"{name:<{topic}}"), ("36", f"{k:<{key}}"),
                        (None, f" {headers.get('type', '?'):<{kind}}"), ("2", rest)])
        return out + [[]] * (room - len(out))

    def _foot(self, height):
        d = self.demo
        lines = d.foot if height >= 29 else d.foot[:4]
        return [[]] + [[(code, f"  {text}")] for code, text in lines] if d.foot else []
