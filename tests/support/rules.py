"""tests/support/rules.py -- the alert rules as data, and the same rules in a hurry.

hurry(text, factor) is the generator behind tests that cause trouble for real: the rules of etc/prometheus with every
length of time divided by factor. That is: for: and keep_firing_for:, the windows [5m], the lengths after offset, and
each number that something is compared with whose name ends in seconds. Shares, counts and buckets (le) stay. By
default a minute becomes a second. Nothing is copied by hand: what the test judges by is the file that is shipped.

Refuses a rule in which seconds are compared the other way round, for that number would keep its length.
"""
import os
import re

import servers
import yaml

RULES = os.path.join(servers.ROOT, "etc/prometheus/postrider.rules.yml")
DASHBOARD = os.path.join(servers.ROOT, "etc/grafana/postrider.json")
RUNBOOKS = os.path.join(servers.ROOT, "docs/runbooks")
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LENGTH = r"(?:[0-9]+(?:ms|[smhdw]))+"
# metric{labels} with what closes functions around it, an operator, a number.
SECONDS = re.compile(r"(seconds(?:\{[^}]*\})?\)*\s*(?:[<>]=?|==)\s*)([0-9.]+)(?![0-9.a-z])")
REVERSED = re.compile(r"[0-9]\s*[<>]=?\s*[a-z_:(]*seconds\b")
NAME = re.compile(r"\bpostrider_[a-z0-9_]+")


def seconds(length):
    """"1h30m" -> 5400"""
    return sum(float(n) * UNITS[u] for n, u in re.findall(r"([0-9]+)(ms|[smhdw])", length))


def length(s):
    return f"{max(1, round(s * 1000))}ms"


def hurry_expr(expr, factor=60):
    if REVERSED.search(expr):
        raise ValueError(f"the metric belongs on the left of its seconds: {expr}")
    expr = re.sub(rf"\[({LENGTH})\]", lambda m: f"[{length(seconds(m[1]) / factor)}]", expr)
    expr = re.sub(rf"\boffset ({LENGTH})", lambda m: f"offset {length(seconds(m[1]) / factor)}", expr)
    return SECONDS.sub(lambda m: f"{m[1]}{float(m[2]) / factor:g}", expr)


def load():
    with open(RULES, encoding="utf-8") as f:
        return yaml.safe_load(f)


def rules():
    return [r for g in load()["groups"] for r in g["rules"]]


def alerts():
    """{name: rule}"""
    return {r["alert"]: r for r in rules() if "alert" in r}


def hurry(path, factor=60):
    """Writes them to path; returns it."""
    tree = load()
    for r in (r for g in tree["groups"] for r in g["rules"]):
        r["expr"] = hurry_expr(r["expr"], factor)
        for key in ("for", "keep_firing_for"):
            if key in r:
                r[key] = length(seconds(r[key]) / factor)
    with open(path, "w", encoding="utf-8") as f:
        yaml.safe_dump(tree, f, sort_keys=False)
    return path


def metrics_of(expr):
    """Names of our series in an expression; what rules record is named level:metric:operation."""
    return set(NAME.findall(re.sub(r"\w+:[\w:]+", "", expr)))


def recorded_in(expr):
    return set(re.findall(r"\b[a-z_]+:postrider_\w+:\w+", expr))
