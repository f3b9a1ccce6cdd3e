"""tests/support/pages.py -- the documentation as data: its fences, links, names; and a shell that types what a page says.

A fence's first word says what it is: sh, sql, cfg (behind it a file's name, if it is to be written), json, c, text (what the commands
before it print), or nothing (a sample). `sh norun: why` is for commands that cannot be run here. Refuses to guess: whoever runs a page says what stands
around it (test_docs.py).
"""
import collections
import functools
import glob
import os
import re
import shlex
import signal
import subprocess
import time

import servers
from wait import wait_until

Fence = collections.namedtuple("Fence", "page line word rest norun text")

DAEMON = re.compile(r"postrider-(?:relay|consumer|user|concert|queue|reservation|payment|order|platform) .*-c |postrider ui ")
LOOKS = re.compile(r"postrider (?:tail|status|trace|show|top|explain-error|parked (?:list|show)|dlq (?:list|show)|saga (?:list|show)|alerts (?:list|show)"
                   r"|replay (?:list|show))\b|psql .*-c \"(?:SELECT (?!\w+\.\w+\()|TABLE)|kafka-topics.sh .*--list")


def all_pages():
    found = glob.glob(os.path.join(servers.ROOT, "docs", "**", "*.md"), recursive=True)
    found += [os.path.join(servers.ROOT, n) for n in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "db/README.md")]
    return sorted(os.path.relpath(p, servers.ROOT) for p in found)


@functools.lru_cache(None)
def read(page):
    with open(os.path.join(servers.ROOT, page), encoding="utf-8") as f:
        return f.read()


def fences(page, text=None):
    out, inside = [], None
    for n, line in enumerate((read(page) if text is None else text).splitlines(), 1):
        mark = re.match(r"\s*```(.*)$", line)
        if mark and inside is None:
            word, _, rest = mark[1].strip().partition(" ")
            inside, body = (n, word, rest, rest.partition("norun:")[2].strip() if rest.startswith("norun") else None), []
        elif mark:
            out.append(Fence(page, *inside, "\n".join(body) + "\n"))
            inside = None
        elif inside is not None:
            body.append(line)
    assert inside is None, f"{page}:{inside[0]}: a fence without an end"
    return out


def prose(page):
    """The page without its fences and indented blocks."""
    return re.sub(r"(?ms)^\s*```.*?^\s*```$", "", read(page))


def not_shell(text):
    """What bash says of its syntax; "": nothing."""
    return subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False).stderr


def commands(text):
    """The shell's commands of a fence, each whole: with its here-document, its open quotes, its loop."""
    out, sofar, ends = [], [], None
    for line in text.splitlines():
        if not sofar and (not line.strip() or line.lstrip().startswith("#")):
            continue
        sofar.append(line)
        if ends:
            if line.strip() != ends:
                continue
            ends = None
        else:
            here = re.search(r"<<-?\s*'?(\w+)'?", line)
            if here:
                ends = here[1]
                continue
        whole = "\n".join(sofar)
        if not line.endswith("\\") and not not_shell(whole):
            out.append(whole)
            sofar = []
    assert not sofar, "not a whole command: " + "\n".join(sofar)
    return out


# ---------------------------------------------------------------- links and names

def slug(heading):
    """As GitHub makes an anchor of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.lru_cache(None)
def anchors(page):
    return {slug(h) for h in re.findall(r"(?m)^#{1,6} (.*)$", prose(page))} | set(re.findall(r'<a (?:id|name)="([^"]+)"', read(page)))


def broken_link(page, target):
    """None, or why the link goes nowhere. Those of the web are not tried."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    full = os.path.normpath(os.path.join(servers.ROOT, os.path.dirname(page), path)) if path else os.path.join(servers.ROOT, page)
    if not os.path.exists(full):
        return f"{page}: no file {target}"
    rel = os.path.relpath(full, servers.ROOT)
    if anchor and full.endswith(".md") and anchor not in anchors(rel):
        return f"{page}: {rel} has no heading #{anchor}"
    return None


@functools.lru_cache(None)
def tests():
    """Every test file's name, and every test's."""
    files = {os.path.basename(f): f for f in glob.glob(os.path.join(servers.ROOT, "tests", "*", "test_*.py"))}
    names = set()
    for f in files.values():
        with open(f, encoding="utf-8") as text:
            names |= set(re.findall(r"(?m)^\s*def (test_\w+)", text.read()))
    return set(files), names


# ---------------------------------------------------------------- commands of ours

@functools.lru_cache(None)
def verbs():
    """{"dlq list": {"--group", "-g", ...}} of all verbs, as the program tells them."""
    out, verb = {}, None
    for line in servers.Cli().run("help", "--markdown", check=True).stdout.splitlines():
        if line.startswith("## postrider "):
            verb = line[len("## postrider "):]
            out[verb] = set()
        elif verb and line.startswith("| `-"):
            out[verb] |= set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", line.split("`")[1]))
    return out


@functools.lru_cache(None)
def options(program):
    """What a daemon's --help names."""
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", servers.Cli(program).run("--help", check=True).stdout))


def wrong_command(line):
    """None, or what is wrong with a command of one of our programs: its verb, or an option. Places to fill in may stay."""
    simple = re.split(r" \| | [0-9]?>+ ?| && |; | &$|\)", line, maxsplit=1)[0]
    words = shlex.split(simple, comments=True)
    program, words = os.path.basename(words[0]), words[1:]
    several = re.search(r"\|(?=\w)", simple) and next((w for w in words[:2] if "|" in w), None)
    if several:  # `dlq list|show`: each of them
        return next(filter(None, (wrong_command(simple.replace(several, one)) for one in several.split("|"))), None)
    if program == "postrider" and any(v.startswith(" ".join(words) + " ") for v in verbs()):
        return None  # a family of verbs, by its name
    if program == "postrider":
        known = verbs()
        verb = " ".join(words[:2]) if " ".join(words[:2]) in known else " ".join(words[:1])
        if verb not in known and verb not in ("--version", "--help"):
            return f"there is no {line!r}"
        may = known.get(verb, set()) | {"-h", "--help", "--version"}
    else:
        may = options(program)
    unknown = {w.split("=")[0] for w in words if re.match(r"--?[a-zA-Z]", w)} - may
    return f"{line!r}: no {' '.join(sorted(unknown))}" if unknown else None


def our_commands(text):
    """Commands of ours in a fence or in backticks, wherever they begin."""
    return re.findall(r"(?m)(?:^|[`$;&|(] ?|    )(postrider(?:-[a-z]+)? [a-z-][^`\n]*)", text)


# ---------------------------------------------------------------- typing

def pattern(line):
    """An expected line as a regular expression: `...` is anything, blanks are as wide as they like."""
    parts = [r"\s+".join(re.escape(w) for w in part.split()) for part in line.split("...")]
    edges = [(part[:1].isspace(), part[-1:].isspace()) for part in line.split("...")]
    text = ".*".join(parts[i] and (r"\s*" if i and edges[i][0] else "") + parts[i] + (r"\s*" if i + 1 < len(parts) and edges[i][1] else "")
                     for i in range(len(parts)))
    return re.compile(text if "..." in line else rf"^\s*{text}\s*$")


def missing_line(expected, output):
    """The first expected line that the output does not have behind the ones before it; None: all are there."""
    lines = iter(output.splitlines())
    for want in expected.splitlines():
        if want.strip() and not any(pattern(want).search(got) for got in lines):
            return want
    return None


class Typist:
    """One bash that stays: jobs, variables and the directory outlive a command. A command must end with 0, or with what
    `# exit status N` behind it says. What only looks is asked again until it says what the page says it does; a daemon
    goes to the background, as in a terminal of its own."""

    def __init__(self, env, cwd, replace=(), patience=40, argv=("bash", "--norc")):
        self.replace, self.patience, self.n = list(replace), patience, 0
        self.io = servers.new_dir("typed")
        with open(os.path.join(self.io, "shell.log"), "wb") as log:
            self.proc = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.PIPE, stdout=log, stderr=log,
                                         cwd=cwd, env=env, text=True, start_new_session=True)
        self._send("set -m")
        self.cwd = self.once("pwd")[1].strip()

    def _send(self, line):
        self.proc.stdin.write(line + "\n")
        self.proc.stdin.flush()

    def once(self, command):
        """(exit status, output) of one command."""
        self.n += 1
        base = os.path.join(self.io, str(self.n))
        with open(base + ".sh", "w", encoding="utf-8") as f:
            f.write(command + "\n")
        self._send(f". {base}.sh >{base}.out 2>&1 </dev/null; echo $? >{base}.new; mv {base}.new {base}.rc")
        wait_until(lambda: os.path.exists(base + ".rc") or self.proc.poll() is not None, 60, f"{command!r} to end")
        with open(base + ".out", encoding="utf-8", errors="replace") as f:
            out = f.read()
        assert self.proc.poll() is None, f"the shell ended at {command!r}: {out}"
        with open(base + ".rc", encoding="ascii") as f:
            return int(f.read()), out

    def said(self, text):
        for old, new in self.replace:
            text = text.replace(old, new)
        return text

    def write(self, name, text):
        path = os.path.join(self.cwd, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.said(text))

    def command(self, command, expected=""):
        command = self.said(command)
        wanted = re.search(r"# exit status (\d+)", command)
        wanted = int(wanted[1]) if wanted else 0
        if DAEMON.match(command) and not re.search(r"--(check|print-|help|version)|&\s*$", command):
            command = re.sub(r"\s+#.*", "", command) + f" >{self.io}/daemon-{self.n}.log 2>&1 &"
        if DAEMON.match(command) and command.rstrip().endswith("&"):
            command = "setpriv --pdeathsig KILL " + command
        deadline = time.monotonic() + (self.patience if LOOKS.search(command) else 0)
        while True:
            status, out = self.once(command)
            missing = missing_line(expected, out)
            if status == wanted and missing is None:
                return out
            if time.monotonic() >= deadline:
                raise AssertionError(f"{command}\nexit status {status}, the page says {wanted}; "
                                     + (f"no line {missing!r} in:\n" if missing else "it said:\n") + out + self.logs())
            time.sleep(0.1)

    def page(self, some):
        """The fences of a page in order: sh is typed, the text behind it is what its last command prints."""
        typed = 0
        for i, fence in enumerate(some):
            if fence.word == "cfg" and fence.rest:
                self.write(fence.rest, fence.text)
            if fence.word != "sh" or fence.norun is not None:
                continue
            expected = some[i + 1].text if i + 1 < len(some) and some[i + 1].word == "text" else ""
            todo = commands(fence.text)
            for k, command in enumerate(todo):
                try:
                    self.command(command, expected if k + 1 == len(todo) else "")
                except AssertionError as e:
                    raise AssertionError(f"{fence.page}:{fence.line}: {e}") from None
                typed += 1
        return typed

    def logs(self):
        found = glob.glob(os.path.join(self.cwd, "*.log")) + glob.glob(os.path.join(self.io, "daemon-*.log"))
        return "".join(f"\n--- {os.path.basename(f)}\n{servers.tail(f, 8)}" for f in found)

    def end(self):
        """Its jobs are groups of their own: each is killed, then the shell."""
        if self.proc.poll() is None:
            _, out = self.once("jobs -p")
            for pid in out.split():
                try:
                    os.killpg(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.proc.stdin.close()
        self.proc.wait(60)
