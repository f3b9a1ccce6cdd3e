"""tests/e2e/test_openapi.py -- each service against its own openapi.json, by a machine that has no opinion of its own:
schemathesis makes requests from the document, good ones and every kind of bad one. No answer may be our own fault (5xx),
none may be other than the document says, and what the document forbids must be refused."""
import os
import re
import subprocess
import sys

import pytest
import servers
from stack import SERVICES, program_of, shipped, stack  # noqa: F401
from wait import wait_until

pytestmark = pytest.mark.timeout(600)
FILES = shipped()
# A 503 is our own fault here: a busy machine is no database, and no Redis, that is away.
PATIENT = {s: ["database.timeout=1m", "http.timeout=1m"] + ["redis.timeout=10s"] * (s == "queue") for s in SERVICES}
STACK = {"without": [n for n, t in FILES.items() if program_of(n, t) in ("postrider-consumer", "postrider-relay")], "options": PATIENT}
EXAMPLES = os.environ.get("POSTRIDER_FUZZ_EXAMPLES", "4")  # for each operation, beside those at each bound

# positive_data_acceptance: a good request may be refused all the same, the email is taken.
UNFIT = "positive_data_acceptance"


def schemathesis():
    """The folder that make setup has fetched it into."""
    with open(os.path.join(servers.ROOT, "etc", "schemathesis", "requirements.txt"), encoding="utf-8") as f:
        version = re.search(r"^schemathesis==(\S+)", f.read(), re.M).group(1)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(cache, "postrider", f"schemathesis-{version}")
    if not os.path.isdir(os.path.join(path, "schemathesis")):
        pytest.skip(f"no schemathesis {version}: run make setup with PyPI within reach")
    return path


@pytest.fixture(scope="module")
def ann(stack):  # noqa: F811
    """Somebody with something of everything that can be had without consumers, so that not all is 404."""
    p = stack.person("ann")
    p.things = {"GET /users/{id}": p.id}
    for service, *ask in (("order", "GET", "/orders"), ("payment", "GET", "/payments"), ("reservation", "GET", "/reservations"),
                          ("queue", "POST", "/queue/tokens", {"concert_id": "1"})):
        if service in stack.process:
            wait_until(lambda: p.call(service, *ask).status != 503, 120, f"{service} to have the keys of tokens")  # noqa: B023
    if "order" in stack.process:
        order = p.order(500)
        p.things |= {"GET /orders/{id}": order, "POST /orders/{id}/pay": p.order(700), "GET /sagas/{id}": p.pay_order(order).json["saga_id"]}
    if "concert" in stack.process:
        concert, [schedule] = stack.open_concert("for machines", known=False)
        p.things |= {"GET /concerts/{id}": concert, "GET /concerts/{id}/schedules": concert, "GET /schedules/{id}/seats": schedule}
    return p


def configure(path, things, document):
    with open(path, "w", encoding="utf-8") as f:
        for operation, id in things.items():
            if operation.split(" ")[1] in document["paths"]:
                f.write(f'[[operations]]\ninclude-name = "{operation}"\nparameters = {{ "path.id" = "{id}" }}\n')


def run(stack, service, ann, dir):  # noqa: F811
    path = schemathesis()
    configure(dir / "schemathesis.toml", ann.things, stack.api(service).document())
    return subprocess.run(
        [sys.executable, "-B", "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", f"{stack.url(service)}/openapi.json", "-H", f"Authorization: Bearer {ann.token}",
         "--checks", "all", "--exclude-checks", UNFIT, "--phases", "coverage,fuzzing", "--max-examples", EXAMPLES,
         "--seed", os.environ.get("POSTRIDER_SEED", "1"), "--suppress-health-check", "all", "--no-shrink", "--continue-on-failure",
         "--generation-database", "none", "--warnings", "off"],
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}, cwd=dir, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("service", [s for s in (*SERVICES, "platform") if s in FILES])
def test_answers_as_documented(stack, ann, service, tmp_path):  # noqa: F811
    r = run(stack, service, ann, tmp_path)
    assert r.returncode == 0, f"{r.stdout[-6000:]}\n{r.stderr[-2000:]}\n{servers.tail(stack[service].log, 5)}"
    assert int(re.search(r"(\d+) generated", r.stdout).group(1)) > 0, r.stdout
    assert stack[service].running()
