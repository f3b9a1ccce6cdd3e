"""tests/e2e/test_rules.py -- the alert rules, their pages and the dashboard as texts: each alert fires on its trouble and on nothing
less, has a page, and whatever is named exists. That the trouble has these numbers is fault/test_alerts.py's to show."""
import json
import os
import re
import subprocess

import pytest
import rules
import servers
import yaml
from pages import wrong_command

# Of each alert: the series that make it fire at a minute with these labels; then what must not make it fire. A sample a minute.
CASES = {
    "PostriderAbsent": ({"other": "1x20"}, 10, "{}", [{'postrider_up{outbox="o"}': "1x20"}, {'postrider_up{outbox="o"}': "1x7 stale"}]),
    "PostriderProcessDown": (
        {'up{job="postrider-relay",instance="h:1"}': "0x20"}, 10, '{job="postrider-relay",instance="h:1"}',
        [{'up{job="node",instance="h:1"}': "0x20"}, {'up{job="postrider-relay",instance="h:1"}': "1x6 0 0 0 0 1x10"}]),
    "PostriderRelayDown": (
        {'postrider_up{outbox="o",instance="a"}': "1x5 stale"}, 10, '{outbox="o"}',
        [{'postrider_up{outbox="o",instance="a"}': "1x5 stale", 'postrider_up{outbox="o",instance="b"}': "1x20"},
         {'postrider_up{group="g"}': "1x5 stale"}]),
    "PostriderConsumerDown": (
        {'postrider_up{group="g",instance="a"}': "1x5 stale"}, 10, '{group="g"}',
        [{'postrider_up{group="g",instance="a"}': "1x5 stale", 'postrider_up{group="g",instance="b"}': "1x20"}]),
    "PostriderServiceDown": (
        {'postrider_up{service="user",instance="a"}': "1x5 stale"}, 10, '{service="user"}',
        [{'postrider_up{service="user",instance="a"}': "1x5 stale", 'postrider_up{service="user",instance="b"}': "1x20"}]),
    "PostriderStandbyMissing": (
        {'postrider_up{outbox="o",instance="a"}': "1x30", 'postrider_up{outbox="o",instance="b"}': "1x5 stale",
         'postrider_state{outbox="o",instance="b",state="standby"}': "1x5 stale"}, 25, '{outbox="o"}',
        [{'postrider_up{outbox="o",instance="a"}': "1x30"},
         {'postrider_up{outbox="o",instance="a"}': "1x30", 'postrider_up{outbox="o",instance="b"}': "1x30",
          'postrider_state{outbox="o",instance="b",state="standby"}': "1x30"}]),
    "PostriderError": (
        {'postrider_state{outbox="o",instance="a",state="error"}': "1x20", 'postrider_trouble_seconds{outbox="o",instance="a",what="postgres"}': "0x20"},
        10, '{outbox="o"}',
        [{'postrider_state{outbox="o",instance="a",state="error"}': "1x20",
          'postrider_trouble_seconds{outbox="o",instance="a",what="postgres"}': "10+60x20"},
         {'postrider_state{outbox="o",instance="a",state="error"}': "1 0x20", 'postrider_state{outbox="o",instance="a",state="warn"}': "1x20"}]),
    "PostriderServerAway": (
        {'postrider_trouble_seconds{group="g",what="kafka"}': "0+60x20"}, 10, '{group="g",what="kafka"}',
        [{'postrider_trouble_seconds{group="g",what="kafka"}': "100x20"}, {'postrider_trouble_seconds{group="g",what="handler"}': "0+60x20"}]),
    "PostriderPausedLong": (
        {'postrider_state{outbox="o",state="paused"}': "1x90"}, 75, '{outbox="o"}',
        [{'postrider_state{outbox="o",state="paused"}': "1x50 0x40"}]),
    "PostriderHousekeeping": (
        {'postrider_trouble_seconds{outbox="o",what="retention"}': "0+60x30"}, 25, '{outbox="o",what="retention"}',
        [{'postrider_trouble_seconds{outbox="o",what="retention"}': "600x30"}]),
    "PostriderReloadRefused": (
        {'postrider_trouble_seconds{group="g",what="reload"}': "0+60x30"}, 25, '{group="g"}',
        [{'postrider_trouble_seconds{group="g",what="reload"}': "60x30"}]),
    "PostriderRelayStuck": (
        {'postrider_lag_seconds{outbox="o"}': "0+60x20", 'postrider_pending_events{outbox="o"}': "5x20",
         'postrider_parked_events{outbox="o"}': "0x20", 'postrider_waiting_events{outbox="o"}': "0x20"}, 12, '{outbox="o"}',
        [{'postrider_lag_seconds{outbox="o"}': "0+60x20", 'postrider_pending_events{outbox="o"}': "5x20",  # all of them parked
          'postrider_parked_events{outbox="o"}': "5x20", 'postrider_waiting_events{outbox="o"}': "0x20"},
         {'postrider_lag_seconds{outbox="o"}': "0+60x20", 'postrider_pending_events{outbox="o"}': "5x20",  # drains
          'postrider_parked_events{outbox="o"}': "0x20", 'postrider_waiting_events{outbox="o"}': "0x20",
          'postrider_published_total{outbox="o",topic="t"}': "0+9x20"},
         {'postrider_lag_seconds{outbox="o"}': "0+60x20", 'postrider_pending_events{outbox="o"}': "5x20",
          'postrider_parked_events{outbox="o"}': "0x20", 'postrider_waiting_events{outbox="o"}': "0x20",
          'postrider_state{outbox="o",state="paused"}': "1x20"}]),
    "PostriderLagGrowing": (
        {'postrider_lag_seconds{outbox="o"}': "0+60x20"}, 15, '{outbox="o"}',
        [{'postrider_lag_seconds{outbox="o"}': "600-30x20"}, {'postrider_lag_seconds{outbox="o"}': "50x20"},
         {'postrider_lag_seconds{outbox="o"}': "0+60x20", 'postrider_parked_events{outbox="o"}': "1x20", 'postrider_waiting_events{outbox="o"}': "0x20"}]),
    "PostriderSloBurn": (
        {'postrider_insert_to_ack_seconds_bucket{outbox="o",le="5.0"}': "0+80x20", 'postrider_insert_to_ack_seconds_count{outbox="o"}': "0+100x20"},
        15, '{outbox="o"}',
        [{'postrider_insert_to_ack_seconds_bucket{outbox="o",le="5.0"}': "0+95x20", 'postrider_insert_to_ack_seconds_count{outbox="o"}': "0+100x20"},
         # It was late, and is well now.
         {'postrider_insert_to_ack_seconds_bucket{outbox="o",le="5.0"}': "0x5 0+100x20", 'postrider_insert_to_ack_seconds_count{outbox="o"}': "0+100x25"},
         {'postrider_insert_to_ack_seconds_bucket{outbox="o",le="5.0"}': "5x20", 'postrider_insert_to_ack_seconds_count{outbox="o"}': "9x20"}]),
    "PostriderSloBurnSlow": (
        {'postrider_insert_to_ack_seconds_bucket{outbox="o",le="5.0"}': "0+90x60", 'postrider_insert_to_ack_seconds_count{outbox="o"}': "0+100x60"},
        50, '{outbox="o"}',
        [{'postrider_insert_to_ack_seconds_bucket{outbox="o",le="5.0"}': "0+98x60", 'postrider_insert_to_ack_seconds_count{outbox="o"}': "0+100x60"}]),
    "PostriderParked": (
        {'postrider_parked_keys{outbox="o"}': "2x20"}, 10, '{outbox="o"}',
        [{'postrider_parked_keys{outbox="o"}': "2x3 0x20"}, {'postrider_parked_keys{group="g"}': "2x20"}]),
    "PostriderTopicMissing": (
        {'postrider_waiting_events{outbox="o"}': "2x20"}, 10, '{outbox="o"}', [{'postrider_waiting_events{outbox="o"}': "2x3 0x20"}]),
    "PostriderForeignEvents": (
        {'postrider_foreign_xid_events{outbox="o"}': "2x20"}, 10, '{outbox="o"}', [{'postrider_foreign_xid_events{outbox="o"}': "0x20"}]),
    "PostriderProducerRestarts": (
        {'postrider_producer_restarts_total{outbox="o",reason="fatal"}': "1+1x20"}, 15, '{outbox="o",reason="fatal"}',
        [{'postrider_producer_restarts_total{outbox="o",reason="fatal"}': "0 0 1x20"}]),
    "PostriderClockSkew": (
        {'postrider_clock_skew_seconds{outbox="o"}': "-9x20"}, 15, '{outbox="o"}',
        [{'postrider_clock_skew_seconds{outbox="o"}': "2x20"}, {'postrider_clock_skew_seconds{outbox="o"}': "0 0 9 9 0x20"}]),
    "PostriderConsumerStuck": (
        {'postrider_consumer_lag_seconds{group="g",topic="t",partition="0"}': "0+60x20",
         'postrider_consumer_lag_events{group="g",topic="t",partition="0"}': "9x20", 'postrider_parked_events{group="g"}': "1x20",
         'postrider_consumer_lag_events{group="g",topic="t",partition="1"}': "NaN " * 20}, 12, '{group="g"}',
        [{'postrider_consumer_lag_seconds{group="g",topic="t",partition="0"}': "0+60x20",
          'postrider_consumer_lag_events{group="g",topic="t",partition="0"}': "9x20", 'postrider_parked_events{group="g"}': "9x20"},
         {'postrider_consumer_lag_seconds{group="g",topic="t",partition="0"}': "0+60x20",
          'postrider_consumer_lag_events{group="g",topic="t",partition="0"}': "9x20", 'postrider_parked_events{group="g"}': "0x20",
          'postrider_consumer_handled_total{group="g",outcome="handled"}': "0+3x20"}]),
    "PostriderConsumerLagGrowing": (
        {'postrider_consumer_lag_seconds{group="g",topic="t",partition="0"}': "0+60x20"}, 15, '{group="g"}',
        [{'postrider_consumer_lag_seconds{group="g",topic="t",partition="0"}': "900-30x20"},
         {'postrider_consumer_lag_seconds{group="g",topic="t",partition="0"}': "0+60x20", 'postrider_parked_events{group="g"}': "1x20"}]),
    "PostriderHandlerDown": (
        {'postrider_consumer_breaker_open{group="g"}': "1x20"}, 10, '{group="g"}', [{'postrider_consumer_breaker_open{group="g"}': "1x3 0x20"}]),
    "PostriderHandlerHangs": (
        {'postrider_trouble_seconds{group="g",what="hung"}': "0+60x20"}, 10, '{group="g"}', [{'postrider_trouble_seconds{group="g",what="hung"}': "30x20"}]),
    "PostriderMessagesParked": (
        {'postrider_parked_oldest_seconds{group="g"}': "0+60x30"}, 20, '{group="g"}', [{'postrider_parked_oldest_seconds{group="g"}': "300x30"}]),
    "PostriderDeadLetters": (
        {'postrider_dlq_events{group="g"}': "1x20"}, 10, '{group="g"}',
        [{'postrider_dlq_events{group="g"}': "0x20", 'postrider_consumer_handled_total{group="g",outcome="dead_letter"}': "3x20"}]),
    "PostriderRebalanceStorm": (
        {'postrider_consumer_rebalances_total{group="g",instance="a"}': "1+3x20"}, 12, '{group="g"}',
        [{'postrider_consumer_rebalances_total{group="g",instance="a"}': "1 2 3 4x20"}]),
    "PostriderSagaStuck": (
        {'postrider_saga_stuck{group="engine"}': "1x20"}, 10, '{group="engine"}', [{'postrider_saga_stuck{group="engine"}': "1x3 0x20"}]),
    "PostriderUndoingStopped": (
        {'postrider_saga_instances{group="engine",saga="pay",state="COMPENSATING"}': "2x60",
         'postrider_saga_instances{group="engine",saga="pay",state="COMPENSATED"}': "7x60"}, 50, '{group="engine",saga="pay"}',
        [{'postrider_saga_instances{group="engine",saga="pay",state="COMPENSATING"}': "2x60",
          'postrider_saga_instances{group="engine",saga="pay",state="COMPENSATED"}': "7+1x60"}]),
    "PostriderPartStopped": (
        {'postrider_timer_overdue_seconds{group="g"}': "0+60x20"}, 10, '{group="g",what="timers"}',
        [{'postrider_timer_overdue_seconds{group="g"}': "20x20"}, {'postrider_trouble_seconds{group="g",what="saga_clock"}': "60x20"}]),
    "PostriderCanaryMissing": (
        {'postrider_canary_missing{group="g"}': "0x2 1x20"}, 10, '{group="g"}',
        [{'postrider_canary_missing{group="g"}': "0x20", 'postrider_canary_age_seconds{group="g"}': "10x20"},
         {'postrider_canary_missing{group="g"}': "0 1 0x20"}, {'postrider_canary_age_seconds{group="g"}': "NaN " * 20}]),
    "PostriderSinkStopped": (
        {'postrider_trouble_seconds{group="g",what="sink"}': "0+60x20"}, 10, '{group="g"}', [{'postrider_trouble_seconds{group="g",what="sink"}': "60x20"}]),
    "PostriderSinkDrift": (
        {'postrider_sink_drift_total{group="g"}': "3x5 4x10"}, 10, '{group="g"}', [{'postrider_sink_drift_total{group="g"}': "3x20"}]),
    "PostriderAlertsUnsent": (
        {'postrider_trouble_seconds{group="g",what="alerts"}': "0+60x20"}, 10, '{group="g"}', [{'postrider_trouble_seconds{group="g",what="alerts"}': "60x20"}]),
    "PostriderAlertsUnacknowledged": (
        {'postrider_alerts_oldest_seconds{group="g"}': "0+60x90"}, 75, '{group="g"}', [{'postrider_alerts_oldest_seconds{group="g"}': "600x90"}]),
    "PostriderServiceErrors": (
        {'postrider_http_requests_total{service="user",method="GET",route="/x",status="503"}': "0+10x20",
         'postrider_http_requests_total{service="user",method="GET",route="/x",status="200"}': "0+90x20"}, 15, '{service="user"}',
        [{'postrider_http_requests_total{service="user",method="GET",route="/x",status="404"}': "0+50x20",
          'postrider_http_requests_total{service="user",method="GET",route="/x",status="503"}': "0+1x20",
          'postrider_http_requests_total{service="user",method="GET",route="/x",status="200"}': "0+90x20"}]),
}
WHO = r'\b(outbox|group|service|instance)="([^"]*)"'
ALONE = {"PostriderAbsent"}  # about everybody


def promtool(*args, input=None):
    done = subprocess.run(["promtool", *args], input=input, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def case(name, n, series, at, want):
    """Each has names of its own, so that all can be told in one story: to begin one takes promtool longer than to tell it."""
    series = {re.sub(WHO, rf'\1="\2 {name} {n}"', s): v for s, v in series.items()}
    want = want and re.sub(WHO, rf'\1="\2 {name} {n}"', want)
    mine = "" if name in ALONE else ",%s=~'.* %s %d'" % (re.search(WHO, " ".join(series))[1], name, n)
    by = ", ".join(re.findall(r"(\w+)=", want or ""))
    return {"input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [{
                "expr": f"count by ({by}) (ALERTS{{alertname='{name}',alertstate='firing'{mine}}})",
                "eval_time": f"{at}m", "exp_samples": [{"labels": want, "value": 1}] if want else []}]}


def test_each_fires_and_does_not(tmp_path):
    stories = [{"interval": "1m", "name": "all", "input_series": [], "promql_expr_test": []}]
    for name, (fires, at, want, quiet) in CASES.items():
        assert quiet, name
        for n, series in enumerate([fires, *quiet]):
            told = case(name, n, series, at, None if n else want)
            if name in ALONE:
                stories.append({"interval": "1m", "name": name, **told})
            else:
                for key in told:
                    stories[0][key] += told[key]
    with open(tmp_path / "tests.yml", "w", encoding="utf-8") as f:
        yaml.safe_dump({"rule_files": [rules.RULES], "evaluation_interval": "1m", "tests": stories}, f, width=1000)
    promtool("test", "rules", f.name)


def test_files_are_well_formed():
    assert set(CASES) == set(rules.alerts())
    promtool("check", "rules", "--lint-fatal", rules.RULES)
    promtool("check", "config", os.path.join(servers.ROOT, "etc/prometheus/prometheus.yml"))
    for name, r in rules.alerts().items():
        assert r["labels"]["severity"] in ("page", "ticket")
        assert r["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        assert set(r["annotations"]) == {"summary", "runbook_url", "command"}
        assert "$labels" in r["annotations"]["summary"] or name in ("PostriderAbsent", "PostriderAlertsUnacknowledged"), name


def test_thresholds_have_reasons():
    """A comment of its own stands above each alert."""
    with open(rules.RULES, encoding="utf-8") as f:
        text = f.read()
    for name in rules.alerts():
        before = text[:text.index(f"- alert: {name}\n")].rstrip()
        assert before.splitlines()[-1].strip().startswith("# "), f"{name} does not say why its threshold is what it is"


# ---------------------------------------------------------------- in a hurry

def test_hurry():
    assert rules.hurry_expr('a_seconds{x="5"} > 60 and rate(b_total[5m]) > 60 offset 1h30m') == \
        'a_seconds{x="5"} > 1 and rate(b_total[5000ms]) > 60 offset 90000ms'
    assert rules.hurry_expr('max(abs(a_seconds)) > 5', 10) == 'max(abs(a_seconds)) > 0.5'
    assert rules.hurry_expr('b{le="5"} > 0.06 and o:lag:seconds > o:lag:seconds offset 5m') == \
        'b{le="5"} > 0.06 and o:lag:seconds > o:lag:seconds offset 5000ms'
    with pytest.raises(ValueError, match="on the left"):
        rules.hurry_expr("60 < a_seconds")


def test_hurry_finds_all(tmp_path):
    """No length of time keeps its own: for:, windows, and every comparison with a number of seconds."""
    path = rules.hurry(str(tmp_path / "hurry.yml"))
    promtool("check", "rules", path)
    with open(path, encoding="utf-8") as f:
        quick = [r for g in yaml.safe_load(f)["groups"] for r in g["rules"]]
    for slow, r in zip(rules.rules(), quick, strict=True):
        for field in ("for", "expr"):
            assert not re.search(r"[0-9](?<!0)[smhd]\b", re.sub(r"[0-9]+ms|rate\w+", "", str(r.get(field, "")))), r
        compared = len(re.findall(r"seconds\)*\s*(?:[<>]=?|==)\s*[0-9]", re.sub(r"\{[^}]*\}", "", slow["expr"])))
        assert len(rules.SECONDS.findall(slow["expr"])) == compared, slow["expr"]


# ---------------------------------------------------------------- pages

def pages():
    return sorted(f[:-3] for f in os.listdir(rules.RUNBOOKS) if f != "README.md")


def page(name):
    with open(os.path.join(rules.RUNBOOKS, f"{name}.md"), encoding="utf-8") as f:
        return f.read()


def commands(text):
    return re.findall(r"(?m)(?:^|[`$;&|(] ?)(postrider [a-z][^`\n]*)", text)


def test_each_alert_has_a_page_and_each_page_an_alert():
    assert pages() == sorted(rules.alerts())
    index = page("README")
    for name, r in rules.alerts().items():
        assert f"[{name}]({name}.md)" in index, f"{name} is not in the index"
        text = page(name)
        assert text.startswith(f"# {name}\n"), name
        assert re.findall(r"(?m)^## (.*)$", text) == [
            "What it means", "Who is affected", "Look", "Mend", "When to worry", "Why it may be false"], name
        assert re.findall(r"(?m)^Severity: (\w+)\.", text) == [r["labels"]["severity"]], name
    assert len(re.findall(r"(?m)^\| \[", index)) == len(rules.alerts())


def test_commands_exist():
    """Every postrider command of the pages and of the alerts, with its options."""
    assert wrong_command("postrider dlq list --group x") is None
    assert "no --nothing" in wrong_command("postrider dlq list --nothing") and "there is no" in wrong_command("postrider nothing")
    wrong, n = [], 0
    for name, r in rules.alerts().items():
        command = re.sub(r"\{\{ with [^}]*\}\}|\{\{ end \}\}", "", r["annotations"]["command"])
        for line in [re.sub(r"\{\{[^}]*\}\}", "x", command)] + commands(page(name)):
            if line.startswith("postrider "):
                wrong.append((name, wrong_command(line)))
                n += 1
    assert [w for w in wrong if w[1]] == [] and n > 3 * len(rules.alerts())


def test_the_alerts_command_is_on_its_page():
    """Whoever comes from the alert finds there what he has typed already."""
    for name, r in rules.alerts().items():
        first = re.split(r" ?\{\{", r["annotations"]["command"])[0].split(" --")[0]
        assert first in page(name), (name, first)


# ---------------------------------------------------------------- names of series



def sources():
    """{name: (type, labels)} as the C files declare them: what an engine, a sink or a push consumer adds, too."""
    out = {}
    files = subprocess.run(["git", "ls-files", "lib", "relay", "consumers", "producers"], cwd=servers.ROOT, capture_output=True,
                           text=True, check=True).stdout.split()
    for f in (f for f in files if f.endswith(".c")):
        with open(os.path.join(servers.ROOT, f), encoding="utf-8") as text:
            for m in re.finditer(r'(pr_\w+_new|counter)\(\s*([^;]*?)"(postrider_[a-z_]+)"\s*,\s*([^;]*)', text.read()):
                kind = "histogram" if "histogram" in m[1] else "counter" if "PR_COUNTER" in m[2] or m[1] == "counter" else "gauge"
                labels = re.match(r'"([a-z,]*)"', m[4]) if m[1] not in ("pr_gauge_new", "counter") else None
                out[m[3]] = (kind, set(labels[1].split(",")) - {""} if labels else set())
    return out


def check_series(expr, known):
    """What is wrong with the series in an expression."""
    wrong = []
    for name in rules.metrics_of(expr):
        base = re.sub(r"_(bucket|count|sum)$", "", name) if name not in known else name
        if base not in known:
            wrong.append(f"nobody tells {name}")
            continue
        kind, labels = known[base]
        if kind == "histogram" and base == name:
            wrong.append(f"{name} is a histogram")
        for used in re.findall(re.escape(name) + r"\{([^}]*)\}", expr):
            for bound in re.findall(r'le="([^"]*)"', used):
                if not re.fullmatch(r"\d+\.\d+", bound):
                    wrong.append(f"{name}: a bound is told as 5.0, not as {bound}")
            for label in re.findall(r"(\w+)[=!]~?=?", re.sub(r'"[^"]*"', "", used)):
                if label not in labels | {"outbox", "group", "service", "le", "instance"}:
                    wrong.append(f"{name} has no label {label}")
    return wrong


def test_series_of_the_rules_exist():
    known = sources()
    assert known["postrider_consumer_lag_seconds"] == ("gauge", {"topic", "partition"}) and known["postrider_trouble_seconds"] == ("gauge", {"what"})
    recorded = {r["record"] for r in rules.rules() if "record" in r}
    for r in rules.rules():
        assert check_series(r["expr"], known) == [], r
        assert rules.recorded_in(r["expr"]) <= recorded, r
    assert len(check_series('postrider_nothing > 1 and postrider_up{nolabel="x"} == 1', known)) == 2
    # Such a rule never fired, and its own unit test said that it did.
    assert check_series('postrider_insert_to_ack_seconds_bucket{le="5"}', known)


def test_words_of_the_rules_exist():
    """state= and what= are words that the programs say; a word that nobody says would make an alert that never fires."""
    said = set()
    for f in ("relay/health.c", "consumers/health.c", "lib/service.c", "lib/saga_core.c", "lib/saga_text.c", "lib/saga_core_orders.c"):
        path = os.path.join(servers.ROOT, f)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as text:
                said |= set(re.findall(r'"([A-Za-z_]+)"', text.read()))
    for r in rules.rules():
        for words in re.findall(r'(?:state|what|outcome)=~?"([^"]*)"', r["expr"]):
            assert set(words.split("|")) <= said, (r, words)


# ---------------------------------------------------------------- the dashboard

@pytest.fixture(scope="module")
def dashboard():
    with open(rules.DASHBOARD, encoding="utf-8") as f:
        return json.load(f)


def exprs(dashboard):
    """[(panel, expression)], with Grafana's variables put in."""
    out = [(p["title"], t["expr"]) for p in dashboard["panels"] for t in p.get("targets", ())]
    out += [("annotations", a["expr"]) for a in dashboard["annotations"]["list"]]
    return [(title, e.replace("$__rate_interval", "5m").replace("$outbox", ".*").replace("$group", ".*")) for title, e in out]


def test_dashboard_is_well_formed(dashboard):
    """Ids are unique, panels lie beside each other and not upon each other, each has a title, says what it shows, and asks something."""
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(set(ids)) == len(ids) and dashboard["uid"] == "postrider"
    taken = {}
    for p in dashboard["panels"]:
        g = p["gridPos"]
        assert g["x"] + g["w"] <= 24, p["title"]
        for cell in ((x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])):
            assert taken.setdefault(cell, p["title"]) == p["title"], f"{p['title']} lies upon {taken[cell]}"
        if p["type"] != "row":
            assert p["title"] and p["description"].endswith(".") and p["targets"], p["id"]
            assert all(t["legendFormat"] for t in p["targets"]) and p["fieldConfig"]["defaults"]["unit"], p["title"]
            assert len({t["refId"] for t in p["targets"]}) == len(p["targets"]), p["title"]
    assert {v["name"] for v in dashboard["templating"]["list"]} == {"datasource", "outbox", "group"}
    rows = [p["title"] for p in dashboard["panels"] if p["type"] == "row"]
    assert rows == ["Now", "Objective", "Throughput", "Relay", "Consumers", "Sagas", "Data platform and people", "Services and processes"]


def test_dashboard_asks_what_exists(dashboard, tmp_path):
    """promtool takes each expression, and each series in them is told by a program or recorded by the rules."""
    recorded, known = {r["record"] for r in rules.rules() if "record" in r}, sources()
    asked = exprs(dashboard)
    path = tmp_path / "dashboard.yml"
    with open(path, "w", encoding="utf-8") as f:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": [
            {"record": f"panel:{n}:x", "expr": e} for n, (_, e) in enumerate(asked)]}]}, f)
    promtool("check", "rules", str(path))
    for title, e in asked:
        assert check_series(e, known) == [] and rules.recorded_in(e) <= recorded, title
    labels = {name: kinds[1] for name, kinds in known.items()}
    for title, t in ((p["title"], t) for p in dashboard["panels"] for t in p.get("targets", ())):
        for used in re.findall(r"\{\{(\w+)\}\}", t["legendFormat"]):
            has = set().union({"outbox", "group", "service", "le", "instance"}, *(labels.get(m, labels.get(re.sub(r"_(bucket|count|sum)$", "", m), set()))
                                                                              for m in rules.metrics_of(t["expr"])))
            assert used in has and (" by (" not in t["expr"] or used in t["expr"]), (title, used)


def test_pages_name_what_the_dashboard_has(dashboard):
    rows = {p["title"] for p in dashboard["panels"] if p["type"] == "row"}
    for name in pages():
        assert set(re.findall(r"row \*(\w+)\*", page(name))) <= rows, name
