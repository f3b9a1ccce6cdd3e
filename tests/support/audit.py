#!/usr/bin/python3
"""tests/support/audit.py -- whether everything balances: money, seats, reservations, payments, tokens, orders, receipts,
what the data platform got, and that nothing is under way, held back or buried.

    audit.py [FILE]        FILE: shell assignments as `make demo` leaves them in build/demo/env (the default); without it
                           the environment's POSTRIDER_<SERVICE>_CONNINFO

Reads the databases with its own eyes and asks no service; of the platform's files it takes the word of `postrider
reconcile`. Prints a table; exit status 0: all balances, 1: something does
not, 3: it cannot be told (a database does not answer, or a part is not there at all). Used by the demonstration, the
tests and the torture alike. Refuses to count what is still under way as wrong money: settle first.
"""
import collections
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIVE = ("HELD", "PAID", "CONFIRMED")
# What the checker compares records with. Facts of the queue are written in batches, by nobody who holds the token's row: they come in any order.
RECORDS = """SELECT id, topic, agg, CASE WHEN type = 'QueueStatusChecked' THEN 0 ELSE aggseq END, tag, type, md5, headers
FROM ({}) AS o (id, topic, agg, aggseq, tag, type, md5, headers) WHERE topic LIKE 'outbox.event.%'"""
COMMITS = """SELECT e.topic, e.key, e.type, e.before FROM (
	SELECT o.*, lag(o.type) OVER of_key AS before, lag(o.at) OVER of_key AS at_before FROM (
		SELECT seq, coalesce(topic, 'outbox.event.' || aggregatetype) AS topic, aggregateid AS key, type, pg_xact_commit_timestamp(xid::xid) AS at
		FROM outbox.event WHERE type <> 'QueueStatusChecked') AS o
	WINDOW of_key AS (PARTITION BY o.topic, o.key ORDER BY o.seq)) AS e
WHERE e.topic LIKE 'outbox.event.%' AND e.at < e.at_before"""
SHOWN = 4  # examples of what is wrong, per line


class CannotTell(Exception):
    """A database that the question needs does not answer."""


class Line:
    """One question: how many were looked at, and what is wrong."""

    def __init__(self, name, what):
        self.name, self.what, self.count, self.wrong = name, what, 0, []


class Audit:
    """conninfos: {"payment": conninfo, ...}; expect: {"stuck": 1, "parked": 0, "dead letters": 2}: what is meant to be
    there of the things that else are wrong; sink: (postrider, the file of the platform's sink)."""

    def __init__(self, conninfos, expect=None, brokers=None, delivery="exactly_once", sink=None):
        self.brokers, self.delivery, self.counted = brokers, delivery, None
        self.sink, self.reconciled = sink, None
        self.conninfos, self.expect = conninfos, {"stuck": 0, "parked": 0, "dead letters": 0, **(expect or {})}
        self.lines, self._connections, self._kept = [], {}, {}

    # -- reading

    def has(self, *databases):
        return all(d in self.conninfos for d in databases)

    def query(self, database, sql, args=None):
        import psycopg2
        try:
            if database not in self._connections:
                c = psycopg2.connect(self.conninfos[database], connect_timeout=10, application_name="audit")
                c.set_session(isolation_level="REPEATABLE READ", readonly=True)
                self._connections[database] = c
            with self._connections[database].cursor() as cur:
                cur.execute(sql, args)
                return cur.fetchall()
        except psycopg2.Error as e:
            raise CannotTell(f"database {database}: {str(e).strip()}") from None

    def dicts(self, database, table, columns, where="true"):
        """Rows as dicts, read once; ids as text."""
        key = (database, table)
        if key not in self._kept:
            names = [c.split(" AS ")[-1].strip().strip('"') for c in columns]
            self._kept[key] = [dict(zip(names, r)) for r in self.query(
                database, f"SELECT {', '.join(columns)} FROM {table} WHERE {where}")]
        return self._kept[key]

    @property
    def payments(self):
        return self.dicts("payment", "payment.payment", [
            "payment_id::text AS payment_id", "user_id::text AS user_id", "mode", "state", "amount", "token_id::text AS token_id",
            "order_id::text AS order_id", "reservation_ids::text[] AS reservation_ids", "refunded_at",
            "cancel_saga::text AS cancel_saga"])

    @property
    def ledger(self):
        return self.dicts("payment", "payment.balance_ledger", [
            "user_id::text AS user_id", "amount", "what", "cause::text AS cause"])

    @property
    def reservations(self):
        return self.dicts("reservation", "reservation.reservation", [
            "reservation_id::text AS reservation_id", "user_id::text AS user_id", "seat_id::text AS seat_id", "claim_no", "status AS state",
            "price", "payment_id::text AS payment_id", "token_id::text AS token_id", "timer_id::text AS timer_id"])

    @property
    def seats(self):
        return self.dicts("concert", "concert.seat", [
            "seat_id::text AS seat_id", "concert_id::text AS concert_id", "state", "claim_no",
            "reservation_id::text AS reservation_id", "price"])

    # -- the questions

    def line(self, name, what):
        self.lines.append(Line(name, what))
        return self.lines[-1]

    def run(self):
        try:
            for needs, question in ((("payment",), self.money), (("payment",), self.payments_and_ledger),
                                    (("reservation", "payment"), self.reservations_and_payments),
                                    (("reservation",), self.seats_once), (("concert", "reservation"), self.seats_and_reservations),
                                    (("concert",), self.status), (("queue", "payment"), self.tokens),
                                    (("order", "payment"), self.orders), (("payment",), self.receipts),
                                    (("engine",), self.sagas), ((), self.held_back), (("platform",), self.facts),
                                    (("scheduler", "reservation"), self.timers), ((), self.commits)):
                if self.has(*needs):
                    question()
            if self.sink:
                self.files()
            if self.brokers:
                self.records()
        finally:
            for c in self._connections.values():
                with contextlib.suppress(Exception):
                    c.close()
            self._connections.clear()
        return self

    def money(self):
        """Each balance is the sum of its ledger, and none is negative."""
        line = self.line("balances", "each is the sum of its ledger")
        sums = collections.Counter()
        for e in self.ledger:
            sums[e["user_id"]] += e["amount"]
        balances = dict(self.query("payment", "SELECT user_id::text, balance FROM payment.balance"))
        line.count = len(balances)
        for user in balances.keys() | sums.keys():
            if balances.get(user, 0) != sums[user] or sums[user] < 0:
                line.wrong.append(f"user {user}: balance {balances.get(user, 0)}, ledger {sums[user]}")
        total = sum(balances.values())
        line.what += f"; {total:,} in all"

    def payments_and_ledger(self):
        """Money is gone exactly for the payments that stand."""
        line = self.line("payments", "money is gone for those that are COMPLETED, and for no other")
        taken, known, times = collections.Counter(), set(), collections.Counter()
        for e in self.ledger:
            if e["what"] != "CHARGE":
                taken[e["cause"]] -= e["amount"]
                times[e["cause"], e["what"]] += 1
        for p in self.payments:
            known.add(p["payment_id"])
            want = p["amount"] if p["state"] == "COMPLETED" else 0
            if p["state"] == "PENDING":
                line.wrong.append(f"payment {p['payment_id']} ({p['mode']}) is still PENDING")
            elif taken[p["payment_id"]] != want:
                line.wrong.append(f"payment {p['payment_id']} is {p['state']} of {p['amount']}, {taken[p['payment_id']]} was taken")
            if (p["state"] == "CANCELLED") != (p["refunded_at"] is not None) and p["amount"] and p["state"] != "FAILED":
                line.wrong.append(f"payment {p['payment_id']} is {p['state']}, refunded at {p['refunded_at']}")
        line.count = len(self.payments)
        line.wrong += [f"{n} of money gone for {i}, which is no payment" for i, n in taken.items() if n and i not in known]
        line.wrong += [f"{what} {n} times for {i}" for (i, what), n in times.items() if n > 1]

    def reservations_and_payments(self):
        """A seat that is CONFIRMED is paid by one payment that stands, and what is paid is CONFIRMED."""
        line = self.line("reservations", "CONFIRMED and paid are the same ones")
        paid, by_id = {}, {r["reservation_id"]: r for r in self.reservations}
        for p in self.payments:
            for r in p["reservation_ids"] or () if p["state"] == "COMPLETED" else ():
                if r in paid:
                    line.wrong.append(f"reservation {r} is paid twice: {paid[r]['payment_id']}, {p['payment_id']}")
                paid[r] = p
                if r not in by_id:
                    line.wrong.append(f"payment {p['payment_id']} is for reservation {r}, which does not exist")
        for r in self.reservations:
            p = paid.get(r["reservation_id"])
            if (r["state"] == "CONFIRMED") != (p is not None):
                line.wrong.append(f"reservation {r['reservation_id']} is {r['state']}, "
                                  + (f"paid by {p['payment_id']}" if p else "and nobody paid it"))
            elif p and (p["user_id"] != r["user_id"] or r["payment_id"] not in (None, p["payment_id"])):
                line.wrong.append(f"reservation {r['reservation_id']} names payment {r['payment_id']}, {p['payment_id']} paid it")
            if r["state"] in ("REQUESTED", "PAID"):
                line.wrong.append(f"reservation {r['reservation_id']} is still {r['state']}")
        for p in self.payments:
            want = sum(by_id[r]["price"] or 0 for r in p["reservation_ids"] or () if r in by_id)
            if p["reservation_ids"] and p["amount"] != want:
                line.wrong.append(f"payment {p['payment_id']} is of {p['amount']}, its seats cost {want}")
        line.count = len(self.reservations)
        line.what += f"; {sum(r['state'] == 'CONFIRMED' for r in self.reservations):,} confirmed"

    def seats_once(self):
        line = self.line("seats", "none has two reservations that live")
        live = collections.defaultdict(list)
        for r in self.reservations:
            if r["state"] in LIVE:
                live[r["seat_id"]].append(r["reservation_id"])
        line.count = len(live)
        line.wrong += [f"seat {s}: {ids}" for s, ids in live.items() if len(ids) > 1]

    def seats_and_reservations(self):
        """What the concert shows of a seat is what its reservation says."""
        line = self.line("seat map", "each seat is as its live reservation says")
        live = {r["seat_id"]: r for r in self.reservations if r["state"] in LIVE}
        want = {"HELD": "HELD", "PAID": "RESERVED", "CONFIRMED": "RESERVED"}
        for s in self.seats:
            r = live.pop(s["seat_id"], None)
            if s["state"] != (want[r["state"]] if r else "AVAILABLE"):
                line.wrong.append(f"seat {s['seat_id']} is {s['state']} (claim {s['claim_no']}), its reservation "
                                  + (f"{r['reservation_id']} {r['state']} (claim {r['claim_no']})" if r else "does not exist"))
            elif r and (r["reservation_id"] != s["reservation_id"] or r["claim_no"] != s["claim_no"]):
                line.wrong.append(f"seat {s['seat_id']}: claim {s['claim_no']} of {s['reservation_id']} there, claim "
                                  f"{r['claim_no']} of {r['reservation_id']} here")
        line.wrong += [f"seat {s} of reservation {r['reservation_id']} does not exist" for s, r in live.items()]
        line.count = len(self.seats)
        line.what += f"; {sum(s['state'] == 'RESERVED' for s in self.seats):,} sold"

    def status(self):
        line = self.line("concerts", "SOLD_OUT when no seat is left, and only then")
        left, there = collections.Counter(), collections.Counter()
        for s in self.seats:
            there[s["concert_id"]] += 1
            left[s["concert_id"]] += s["state"] != "RESERVED"
        rows = self.query("concert", "SELECT concert_id::text, status FROM concert.concert")
        line.count = len(rows)
        for i, status in rows:
            want = "SOLD_OUT" if there[i] and not left[i] else "AVAILABLE"
            if status != want:
                line.wrong.append(f"concert {i} is {status} with {left[i]} of {there[i]} seats left")

    def tokens(self):
        """A place in the queue is used up by the payment that stands, and by none that was undone; a hybrid payment leaves it, and a
        purchase that the user cancels does not give it back."""
        line = self.line("tokens", "used up by the payments that stand")
        states = dict(self.query("queue", "SELECT token_id::text, state FROM queue.queue_token"))
        line.count = len(states)
        stands = {p["token_id"] for p in self.payments if p["token_id"] and p["state"] == "COMPLETED" and p["mode"] != "hybrid"}
        cancelled = {p["token_id"] for p in self.payments if p["cancel_saga"]}
        undone = {p["token_id"] for p in self.payments if p["token_id"] and p["state"] != "COMPLETED"} - stands - cancelled
        for t in stands:
            if states.get(t) not in ("COMPLETED", "EXPIRED"):
                line.wrong.append(f"token {t} of a payment that stands is {states.get(t, 'unknown')}")
        line.wrong += [f"token {t} is COMPLETED, its payment does not stand" for t in undone if states.get(t) == "COMPLETED"]

    def orders(self):
        line = self.line("orders", "PAID by one payment that stands each")
        rows = self.query("order", 'SELECT order_id::text, state, amount, payment_id::text FROM "order".orders')
        by_order = collections.defaultdict(list)
        for p in self.payments:
            if p["order_id"] and p["state"] == "COMPLETED":
                by_order[p["order_id"]].append(p)
        line.count = len(rows)
        for i, state, amount, payment in rows:
            stands = by_order.pop(i, [])
            if state == "PAYING":
                line.wrong.append(f"order {i} is still PAYING")
            elif len(stands) != (state == "PAID"):
                line.wrong.append(f"order {i} is {state} with {len(stands)} payments that stand")
            elif stands and (stands[0]["amount"] != amount or payment not in (None, stands[0]["payment_id"])):
                line.wrong.append(f"order {i} of {amount} names payment {payment}; {stands[0]['payment_id']} is of {stands[0]['amount']}")
        line.wrong += [f"payment {p['payment_id']} is for order {i}, which does not exist" for i, ps in by_order.items() for p in ps]

    def receipts(self):
        """Issued for what stands, void for what does not; a tax server that refuses touches no payment."""
        line = self.line("receipts", "issued for what stands, void for what does not")
        rows = dict(self.query("payment", "SELECT payment_id::text, state FROM payment.cash_receipt"))
        line.count = len(rows)
        for p in self.payments:
            has = rows.pop(p["payment_id"], None)
            good = {"COMPLETED": (None, "ISSUED", "REFUSED"), "CANCELLED": (None, "VOIDED", "NONE", "REFUSED")}
            if has not in good.get(p["state"], (None, "NONE", "VOIDED")):
                line.wrong.append(f"payment {p['payment_id']} is {p['state']}, its receipt {has}")
        line.wrong += [f"receipt of {i}, which is no payment" for i in rows]

    def sagas(self):
        line = self.line("sagas", "all are over")
        rows = self.query("engine", "SELECT state, count(*), min(id::text) FROM saga.instance GROUP BY state")
        line.count = sum(n for _, n, _ in rows)
        for state, n, example in rows:
            if state == "STUCK" and n == self.expect["stuck"] or state in ("COMPLETED", "COMPENSATED", "ABORTED"):
                continue
            line.wrong.append(f"{n} {state}, {example} for one")
        line.what += "; " + ", ".join(f"{n:,} {s.lower()}" for s, n, _ in sorted(rows)) if rows else ""

    def held_back(self):
        """Nothing is parked, nothing is a dead letter, in no database; refused events of the relays count as both."""
        line = self.line("held back", "nothing is parked, nothing is a dead letter")
        parked, dead = [], []
        for d in sorted(self.conninfos):
            parked += [f"{d}: {r}" for r in self.query(d, "SELECT \"group\", topic, key, type, reason FROM inbox.parked")] \
                if self._there(d, "inbox.parked") else []
            dead += [f"{d}: {r}" for r in self.query(d, "SELECT \"group\", topic, type, reason FROM inbox.dead_letter"
                                                     " WHERE state IN ('dead', 'retrying')")] if self._there(d, "inbox.dead_letter") else []
            line.count += 1
        for word, found in (("parked", parked), ("dead letters", dead)):
            if len(found) != self.expect[word]:
                line.wrong += [f"{len(found)} {word}"] + found[:SHOWN]

    def _there(self, database, relation):
        return self.query(database, "SELECT to_regclass(%s) IS NOT NULL", (relation,))[0][0]

    def facts(self):
        """Every event of every outbox is a fact at the data platform, once, and nothing else is."""
        line = self.line("facts", "each event of an outbox is one at the data platform")
        got = {r[0] for r in self.query("platform", "SELECT event_id FROM platform.fact")}
        want = {}
        for d in sorted(self.conninfos):
            if d == "platform" or not self._there(d, "outbox.event"):
                continue
            for i, topic, kind in self.query(d, "SELECT id::text, coalesce(topic, 'outbox.event.' || aggregatetype), type"
                                                " FROM outbox.event"):
                if topic.startswith("outbox.event."):
                    want[i] = f"{d}: {kind} on {topic}"
        line.count = len(got)
        conflicts = self.query("platform", "SELECT coalesce(sum(conflicts), 0) FROM platform.tally")[0][0]
        if conflicts:
            line.wrong.append(f"{conflicts} came again with another content")
        missing, invented = want.keys() - got, got - want.keys()
        if missing:
            kinds = collections.Counter(want[i] for i in missing)
            line.wrong += [f"{len(missing)} missing: " + ", ".join(f"{n} of {k}" for k, n in kinds.most_common(SHOWN))]
        if invented:
            line.wrong.append(f"{len(invented)} that nobody published, {sorted(invented)[0]} for one")

    def files(self):
        """Every record of every topic of events is in one of the platform's files, and in one only."""
        line = self.line("files", "each record of a topic is in one file of the platform")
        self.reconciled = r = reconcile(*self.sink)
        (files,) = r["sources"]
        line.count = files["records"]
        if files["waiting"]:
            line.wrong.append(f"{files['waiting']} wait for the sink")
        line.wrong += [" ".join(str(d[k]) for k in ("difference", "id", "topic", "partition", "offset", "path", "detail") if d[k] is not None)
                       for d in r["differences"]]

    def timers(self):
        """A hold has a timer while it lasts; one that came back has another one, and its first fires for nothing."""
        line = self.line("timers", "armed for what is held, none failed")
        if not self._there("scheduler", "scheduler.timer"):
            raise CannotTell("the scheduler's table is not there")
        rows = self.query("scheduler", "SELECT timer_id::text, state, kind FROM scheduler.timer")
        line.count = len(rows)
        held = {r["timer_id"]: r["reservation_id"] for r in self.reservations if r["state"] == "HELD"}
        armed = {i for i, state, kind in rows if state == "ARMED" and kind == "hold"}
        line.wrong += [f"hold {r} has no timer" for i, r in held.items() if i not in armed]
        line.wrong += [f"timer {i} is {s}" for i, s, _ in rows if s == "FAILED"]

    def commits(self):
        """One aggregate's events were committed in the order of their seq: whoever writes one holds the aggregate's lock. A topic shows the
        contrary only when a relay looks in that very moment."""
        line = self.line("commits", "each aggregate's events were committed in their order")
        for d in sorted(self.conninfos):
            if not self._there(d, "outbox.event"):
                continue
            if self.query(d, "SHOW track_commit_timestamp") != [("on",)]:
                raise CannotTell("track_commit_timestamp is off")
            line.count += self.query(d, "SELECT count(*) FROM outbox.event")[0][0]
            line.wrong += [f"{d}: {kind} of {key} on {topic} was committed before the {before} that was written before it"
                           for topic, key, kind, before in self.query(d, COMMITS)]

    def records(self):
        """Every event of every outbox is a record of its topic, unharmed and in order: counted by the checker."""
        import checker
        line = self.line("records", "each event of an outbox is one on its topic, in order")
        self.counted = collections.Counter()
        for d in sorted(self.conninfos):
            mine = [t for t, in self.query(d, "SELECT DISTINCT coalesce(topic, 'outbox.event.' || aggregatetype) FROM outbox.event")
                    if t.startswith("outbox.event.")] if self._there(d, "outbox.event") else []
            if not mine:
                continue
            sql = RECORDS.format(checker.OUTBOX)
            r = checker.check(self.conninfos[d], self.brokers, mine, self.delivery, settle=10, journal_sql=sql)
            self.counted.update({"rows": r.journal, "records": r.records, **r.counts})
            line.wrong += [f"{d}: {k} {n}: {(r.excerpts[k] or [''])[0]}" for k, n in r.violations.items()]
        line.count = self.counted["records"]

    def count(self):
        """Rows and records in one line, for people and for tests."""
        c = self.counted
        order = "kept" if not c["ORDER"] and not c["PARTITION_MOVED"] else "BROKEN"
        return (f"count: committed rows {c['rows']} {'=' if c['records'] == c['rows'] else '<>'} records {c['records']}, "
                f"{c['LOST']} lost, {c['DUP']} duplicated, {c['PHANTOM']} invented, order {order}")

    def found(self):
        """What reconcile said, in one line."""
        r, (files,) = self.reconciled, self.reconciled["sources"]
        return (f"reconcile: {r['records']} records on {len(r['topics'])} topics, {files['records']} in {files['files']} files, "
                f"{files['missing']} missing, {files['twice']} twice")

    # -- the verdict

    @property
    def wrong(self):
        return [f"{x.name}: {w}" for x in self.lines for w in x.wrong]

    @property
    def ok(self):
        return bool(self.lines) and not self.wrong

    def table(self, width=0):
        """width: of the screen; 0: as wide as it is."""
        out = []
        for x in self.lines:
            front = f"  {'ok' if not x.wrong else 'WRONG':<6}{x.name:<14}{x.count:>9,}   "
            more = x.wrong[:SHOWN] + [f"... {len(x.wrong) - SHOWN} more"] * (len(x.wrong) > SHOWN)
            for text in (x.what, *more):
                for part in textwrap.wrap(text, width - len(front) - 1) if width else [text]:
                    out.append(front + part)
                    front = " " * len(front)
        return "\n".join(out)

    def verdict(self):
        """In one line, for people and for tests."""
        if self.ok:
            return f"audit: {len(self.lines)} questions, all balances"
        return f"audit: {len(self.lines)} questions, {len(self.wrong)} things do not balance"


def reconcile(postrider, config, *more):
    """The answer of `postrider reconcile`."""
    done = subprocess.run([postrider, "reconcile", "-c", config, "--json", *more], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise CannotTell(f"reconcile: {done.stderr.strip()}")
    return json.loads(done.stdout)


def of_stack(stack, expect=None, brokers=None):
    """brokers: the topics are read too, which takes a few seconds."""
    import servers
    sink = stack.process.get("platform-sink")
    return Audit({w: d.conninfo for w, d in stack.databases.items()}, expect, brokers, "at_least_once" if stack.mock else "exactly_once",
                 sink and (servers.bin_path("postrider", stack.variant), sink.file)).run()


def check(stack, timeout=150, expect=None):
    """Waits until nothing is under way; then everything must balance."""
    stack.settle(timeout)
    a = of_stack(stack, expect)
    assert a.ok, "\n" + a.table() + "\n" + stack.complaints()
    return a


def conninfos(file):
    values = dict(os.environ)
    if file:
        with open(file, encoding="utf-8") as f:
            for line in f:
                name, _, value = line.strip().partition("=")
                values[name] = "".join(shlex.split(value))
    found = {k[len("POSTRIDER_"):-len("_CONNINFO")].lower(): v for k, v in values.items()
             if k.startswith("POSTRIDER_") and k.endswith("_CONNINFO")}
    own = {v for k, v in found.items() if f"dbname={k}" in v.split()}
    return {k: v for k, v in found.items() if f"dbname={k}" in v.split() or v not in own}  # other names of a database: once


def main(argv):
    default = os.path.join(ROOT, "build", "demo", "env")
    file = argv[0] if argv else default if os.path.exists(default) else None
    if len(argv) > 1 or argv[:1] in (["-h"], ["--help"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        found = conninfos(file)
        if not found:
            raise CannotTell("no POSTRIDER_<SERVICE>_CONNINFO is set, and build/demo/env is not there")
        config = os.path.join(os.path.dirname(file or ""), "etc", "platform-sink.cfg")
        a = Audit(found, sink=(os.path.join(ROOT, "build", "bin", "postrider"), config) if os.path.exists(config) else None).run()
    except (CannotTell, OSError) as e:
        print(f"audit: cannot tell: {e}", file=sys.stderr)
        return 3
    print(a.table(shutil.get_terminal_size().columns if sys.stdout.isatty() else 0))
    print(a.verdict())
    return 0 if a.ok else 1 if a.lines else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
