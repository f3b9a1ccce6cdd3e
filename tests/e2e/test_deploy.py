"""tests/e2e/test_deploy.py -- Dockerfile, compose.yaml and deploy/k8s without a container engine: held against the schemas of Kubernetes'
API and of Compose files, every program and file they name is there, every configuration passes --check, and what we promise of them
(nobody is root, nothing writes to its image, probes that exist) is so. That the images run is not tested here."""
import functools
import glob
import json
import os
import re
import shutil
import subprocess

import jsonschema
import pytest
import servers
import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
K8S = os.path.join(ROOT, "deploy/k8s")
SERVICES = ("user", "concert", "queue", "reservation", "payment", "order", "platform")
PROGRAMS = {"postrider", "postrider-relay", "postrider-consumer", *(f"postrider-{s}" for s in SERVICES)}
VERSION = open(os.path.join(ROOT, "VERSION"), encoding="ascii").read().strip()


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


@functools.cache
def schema(name):
    found = glob.glob(os.path.join(servers.cache_dir(), "schemas-*", name))
    if not found:
        pytest.skip("the schemas could not be had (make setup)")
    with open(found[0], encoding="utf-8") as f:
        return json.load(f)


def render(folder):
    """All objects of a kustomization."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def plain():
    """The objects as they lie in the files: complete by themselves."""
    return [o for file in ("relay.yaml", "consumer.yaml", "services/base/service.yaml") for o in yaml.safe_load_all(read("deploy/k8s", file))]


def hold(objects):
    """Against the API's schema; strict: a member that the API does not know is an error."""
    for o in objects:
        group, _, version = o["apiVersion"].rpartition("/")
        name = "-".join(x for x in (o["kind"].lower(), group.split(".")[0], version) if x)
        document = schema(name + ".json")
        shared = schema("_definitions.json")
        resolver = jsonschema.RefResolver.from_schema(document, store={shared["$id"]: shared})
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
                  for e in jsonschema.Draft202012Validator(document, resolver=resolver).iter_errors(o)]
        assert not errors, (o["kind"], o["metadata"]["name"], errors)


def pods(objects):
    return [o for o in objects if o["kind"] in ("Deployment", "StatefulSet")]


def test_kubernetes_schema():
    hold(plain())
    wrong = plain()[0]
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(AssertionError, match="livenesProbe"):
        hold([wrong])


def test_kubernetes_rendered():
    """As kubectl apply -k would send them; every service is there, under its own names, with its own secret and configuration."""
    base = render(K8S)
    box = render(os.path.join(K8S, "services"))
    hold(base + box)
    assert len(pods(box)) == len(SERVICES) and len(pods(base)) == 2
    names = [(o["kind"], o["metadata"]["name"]) for o in base + box]
    assert len(set(names)) == len(names)
    maps = {o["metadata"]["name"]: o["data"] for o in base + box if o["kind"] == "ConfigMap"}
    for o in pods(base + box):
        spec = o["spec"]["template"]["spec"]
        c = spec["containers"][0]
        assert c["image"] == f"postrider:{VERSION}"
        volumes = {v["name"]: v for v in spec["volumes"]}
        program, flag, config = c["command"]
        assert program in PROGRAMS and flag == "-c"
        assert os.path.basename(config) in maps[volumes["config"]["configMap"]["name"]]
        if o["metadata"]["name"].split("-")[0] in SERVICES:
            service = o["metadata"]["name"].split("-")[0]
            assert program == f"postrider-{service}" and volumes["secret"]["secret"]["secretName"] == f"postrider-{service}"
        matched = o["spec"]["selector"]["matchLabels"].items()
        assert matched <= o["spec"]["template"]["metadata"]["labels"].items()
        budgets = [b for b in base + box if b["kind"] == "PodDisruptionBudget" and b["spec"]["selector"]["matchLabels"].items() == matched]
        assert len(budgets) == 1, o["metadata"]["name"]


def test_kubernetes_closed():
    """Nobody is root, nothing can be written but what is mounted for it, no token of the API lies about, and both probes exist."""
    routes = read("relay/health.c") + read("consumers/health.c") + read("lib/service.c")
    for o in pods(plain()):
        spec = o["spec"]["template"]["spec"]
        c = spec["containers"][0]
        assert o["spec"]["replicas"] >= 2 and spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 64000
        assert c["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in c["resources"]["limits"] and "cpu" in c["resources"]["requests"]
        port = {p["name"]: p["containerPort"] for p in c["ports"]}["http"]
        for probe in ("livenessProbe", "readinessProbe"):
            assert c[probe]["httpGet"]["port"] == "http" and f'"{c[probe]["httpGet"]["path"]}"' in routes
        assert c["livenessProbe"]["httpGet"]["path"] == "/healthz"  # /readyz would restart it when Kafka is away
        assert port in (9470, 9471, 8080)
    assert re.search(r"useradd .*--uid 64000 ", read("Dockerfile"))


@pytest.mark.parametrize("program,file", [("relay", "deploy/k8s/config/relay.cfg"), ("consumer", "deploy/k8s/config/consumer.cfg"),
                                          ("relay", "deploy/compose/relay.cfg"), ("consumer", "deploy/compose/consumer.cfg"),
                                          *((s, f"deploy/k8s/services/{s}/{s}.cfg") for s in SERVICES)])
def test_configurations(program, file, tmp_path):
    for name in ("kafka.password", "http.token"):
        (tmp_path / name).write_text("secret-for-the-check\n")
    more = ["-o", f"http.token=file:{tmp_path}/http.token"] if "compose" in file else []
    done = servers.Cli(f"postrider-{program}").run("--check", "-c", os.path.join(ROOT, file), *more,
                                                   env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert done.returncode == 0 and done.stdout == "configuration ok\n", done.stderr


def test_compose_schema():
    jsonschema.Draft7Validator(schema("compose_spec.json")).validate(yaml.safe_load(read("compose.yaml")))


def test_compose():
    """What is mounted is there, what is waited for exists and can be waited for so, and only the pages are to be had, from this host."""
    c = yaml.safe_load(read("compose.yaml"))
    ignored = read(".gitignore").splitlines()
    for name, s in c["services"].items():
        for volume in s.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert os.path.exists(os.path.join(ROOT, source)), (name, source)
            else:
                assert source in c["volumes"]
        for other, on in s.get("depends_on", {}).items():
            assert other in c["services"]
            assert on["condition"] != "service_healthy" or "test" in c["services"][other]["healthcheck"]
        for port in s.get("ports", []):
            assert port.startswith("127.0.0.1:")
        if s["image"].startswith("postrider"):
            assert s["image"] == f"postrider:{VERSION}" and s["command"][0] in PROGRAMS and s["read_only"] and s["cap_drop"] == ["ALL"]
        for secret in s.get("secrets", []):
            assert secret in c["secrets"]
    for secret in c["secrets"].values():
        assert secret["file"].lstrip(".") in ignored


def test_dockerfile():
    """The rules of a linter that need no engine: each stage is pinned, lists of packages go, nobody is root at the end, no command is a
    shell's; and the packages of the second stage are those that the programs are linked with."""
    lines = re.sub(r"\\\n", " ", read("Dockerfile")).splitlines()
    words = [re.split(r"\s+", line.strip(), maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    assert [w[1].split()[0] for w in words if w[0] == "FROM"] == ["debian:12-slim", "debian:12-slim"]
    last = words[[i for i, w in enumerate(words) if w[0] == "FROM"][-1]:]
    assert any(w == ["USER", "64000:64000"] for w in last)
    for w in words:
        if w[0] in ("CMD", "ENTRYPOINT"):
            assert json.loads(w[1])
        if w[0] == "HEALTHCHECK":
            argv = json.loads(w[1][w[1].index("CMD") + 4:])
            assert argv[0] in PROGRAMS
        if w[0] == "RUN" and "apt-get install" in w[1]:
            assert "--no-install-recommends" in w[1] and "apt-get update" in w[1]
    runtime = next(w[1] for w in last if w[0] == "RUN")
    assert "rm -rf /var/lib/apt/lists/*" in runtime
    if not shutil.which("dpkg-query") or servers.VARIANT not in ("plain", "test"):
        pytest.skip("no dpkg here, or programs with sanitizers")
    needed = set()
    for program in PROGRAMS:
        out = subprocess.run(["objdump", "-p", servers.bin_path(program)], capture_output=True, text=True, check=True).stdout
        needed |= set(re.findall(r"NEEDED +(\S+)", out))
    for soname in needed - {s for s in needed if re.match(r"lib(c|m|pthread|gcc_s|dl)\.so|ld-linux", s)}:
        owner = subprocess.run(["dpkg-query", "-S", f"*/{soname}"], capture_output=True, text=True, check=False).stdout
        packages = {line.split(":")[0] for line in owner.splitlines()}
        assert any(re.search(rf"\b{re.escape(p)}(?=[\s\\])", runtime) for p in packages), (soname, packages)


def test_what_is_copied_is_there():
    """The build stage takes its packages from etc/packages.txt by a range of lines that has to stay one."""
    text = read("etc/packages.txt")
    block = re.search(r"^# build\n(.*?)\n\n", text, re.M | re.S).group(1)
    names = [line.split("#")[0].strip() for line in block.splitlines()]
    assert {"gcc", "make", "librdkafka-dev", "libhiredis-dev"} <= set(names) and all(re.fullmatch(r"[a-z0-9.+-]+", n) for n in names)
