"""tests/support/wait.py -- waiting for a condition instead of sleeping.

Refuses to wait without a bound: every wait ends by success or by a message that
shows what was last seen.
"""
import os
import time


class WaitTimeout(AssertionError):
    """The condition did not come true in time; the text shows the last value."""


def stretched(seconds):
    """So long on a machine that has more to do than processors: as many times as it has, four at most."""
    return seconds * max(1.0, min(4.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))


def wait_until(fn, timeout=30, what=None, interval=0.002, interval_max=0.1, ignore=()):
    """Calls fn until it returns something true and returns that.

    Exceptions of the types in `ignore` count as "not yet" and are shown at the end.
    The interval doubles from interval to interval_max. A busy machine is given more time.
    """
    what = what or getattr(fn, "__name__", "the condition")
    start, given = time.monotonic(), timeout
    last = None
    while True:
        try:
            last = fn()
            if last:
                return last
        except ignore as e:
            last = e
        left = start + given - time.monotonic()
        if left <= 0:
            given = max(given, stretched(timeout))
            left = start + given - time.monotonic()
        if left <= 0:
            raise WaitTimeout(f"waited {given:.4g} s for {what}; last seen: {last!r}")
        time.sleep(min(interval, left))
        interval = min(interval * 2, interval_max)


def wait_all(count, n, timeout, what, interval=0.01, ignore=()):
    """Until count() is n. What a busy machine has in hand is late, not lost: the time is over when so long none has come."""
    seen = [-1]

    def there():
        now = count()
        more, seen[0] = now > seen[0], now
        return (now >= n and "all") or (more and "more")
    try:
        while wait_until(there, timeout, what, interval=interval, ignore=ignore) != "all":
            time.sleep(interval)
    except WaitTimeout as e:
        raise WaitTimeout(f"{e}; {seen} are there") from None


def stays(fn, seconds, what=None, interval=0.05):
    """Asserts that fn stays true for the given time: for "must not happen" tests."""
    what = what or getattr(fn, "__name__", "the condition")
    deadline = time.monotonic() + seconds
    while True:
        seen = fn()
        if not seen:
            raise AssertionError(f"{what} did not stay true; seen: {seen!r}")
        left = deadline - time.monotonic()
        if left <= 0:
            return seen
        time.sleep(min(interval, left))
