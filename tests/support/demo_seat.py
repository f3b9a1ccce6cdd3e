"""tests/support/demo_seat.py -- the demonstration's second service: seats, in a database of its own, held by a
consumer of the shop's reservation events; what goes wrong there, and the count of what came of each event.

The effects' table has no unique constraint: an event that is applied twice stands there twice. The count reads
both databases and asks no consumer. Refuses to count what is held back (parked, dead letter) as lost.
"""
import collections
import os

import servers
from demo_shop import PLACES, TRUTH
from demo_watch import ConsumerHealth, Rows

GROUP, TOPIC = "seat", "outbox.event.reservation"

TABLES = """
CREATE SCHEMA seat;
CREATE TABLE seat.place (place text PRIMARY KEY);
CREATE TABLE seat.hold (reservation text PRIMARY KEY, place text NOT NULL REFERENCES seat.place, guest text,
	state text NOT NULL, changed_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE VIEW seat.overview AS SELECT place, count(*) FILTER (WHERE state = 'HELD') AS held,
	count(*) FILTER (WHERE state = 'CONFIRMED') AS confirmed, count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled
	FROM seat.hold GROUP BY place ORDER BY place;

CREATE TABLE seat.effect (n bigint GENERATED ALWAYS AS IDENTITY, id uuid, reservation text, type text);
COMMENT ON TABLE seat.effect IS 'one row for each event that was applied, in order, for the count at the end';

-- The consumer's own role; an operator's too, so that the CLI can work with the consumer's config file.
CREATE ROLE seat LOGIN IN ROLE inbox_consumer, inbox_operator;
GRANT USAGE ON SCHEMA seat TO seat;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA seat TO seat;
"""

# The handler: runs in the transaction that records the message. What it raises decides what becomes of it.
HANDLER = """
CREATE OR REPLACE FUNCTION seat.on_event(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CASE m.type
	WHEN 'ReservationCreated' THEN
		INSERT INTO seat.hold (reservation, place, guest, state)
		VALUES (m.key, m.payload ->> 'place', m.payload ->> 'guest', 'HELD')
		ON CONFLICT (reservation) DO UPDATE SET state = 'HELD';
	WHEN 'ReservationConfirmed' THEN
		UPDATE seat.hold SET state = 'CONFIRMED', changed_at = clock_timestamp() WHERE reservation = m.key;
	WHEN 'ReservationCancelled' THEN
		UPDATE seat.hold SET state = 'CANCELLED', changed_at = clock_timestamp() WHERE reservation = m.key;
	{more}
	END CASE;
	INSERT INTO seat.effect (id, reservation, type) VALUES (m.id, m.key, m.type);
END $$;
"""
FIRST = "ELSE RAISE EXCEPTION 'no rule for events of type %', m.type;"
MENDED = """WHEN 'ReservationMoved' THEN
		UPDATE seat.hold SET place = m.payload ->> 'place', changed_at = clock_timestamp() WHERE reservation = m.key;
	ELSE NULL; -- not about seats"""

NUMBERS = """
SELECT (SELECT count(*) FROM seat.effect), (SELECT count(*) FROM inbox.parked WHERE blocking AND due_at IS NOT NULL),
	(SELECT count(*) FROM inbox.dead_letter WHERE state = 'dead'),
	(SELECT count(*) FROM inbox.parked WHERE NOT blocking)
"""

# A place that the service does not know holds its key back until somebody adds it; a table that is missing is a
# deployment half done: the built-in rule, with shorter waits.
RULES = [{"match": "sqlstate:23503", "policy": "park", "attempts": 0, "backoff": "60s"},
         {"match": "sqlstate:42*", "policy": "breaker", "backoff": "500ms", "backoff_max": "1s"}]

EVENTS = f"SELECT event_id::text, agg, aggseq FROM ({TRUTH}) AS t (event_id, topic, agg, aggseq) WHERE topic = '{TOPIC}'"
HELD = """SELECT id FROM inbox.parked UNION SELECT id FROM inbox.dead_letter WHERE state IN ('dead', 'retrying')"""


class Count:
    """What came of each committed reservation event, and of each reservation."""

    def __init__(self, orders, seats):
        with orders.connect(autocommit=False) as c, c.cursor() as cur:
            cur.execute(EVENTS)
            truth = {i: (key, seq) for i, key, seq in cur.fetchall()}
            cur.execute("SELECT reservation, place, state FROM reservation")
            wanted = set(cur.fetchall())
        with seats.connect(autocommit=False) as c, c.cursor() as cur:
            cur.execute("SELECT id::text FROM seat.effect ORDER BY n")
            effects = [i for i, in cur.fetchall()]
            cur.execute(HELD)
            held = {i for i, in cur.fetchall()}
            cur.execute("SELECT reservation, place, state FROM seat.hold")
            got = set(cur.fetchall())
        times = collections.Counter(effects)
        missing = [i for i in truth if i not in times]
        self.events, self.effects, self.held = len(truth), len(effects), sum(i in held for i in missing)
        self.lost = len(missing) - self.held
        self.twice = sum(n - 1 for n in times.values())
        self.invented = sum(i not in truth for i in times)
        self.keys = len({key for key, _ in truth.values()})
        self.disorder = self._disorder([truth[i] for i in effects if i in truth])
        waiting = {truth[i][0] for i in missing if i in held}
        self.differ = len({r for r, _, _ in wanted ^ got} - waiting)

    @staticmethod
    def _disorder(applied):
        """Keys in which a later event was applied before an earlier one."""
        at, bad = {}, set()
        for key, seq in applied:
            if seq < at.get(key, seq):
                bad.add(key)
            at[key] = seq
        return len(bad)

    def ok(self):
        return not (self.lost or self.twice or self.invented or self.disorder or self.differ)

    def verdict(self):
        same = "=" if self.events == self.effects + self.held else "<>"
        held = f" + {self.held} held back" if self.held else ""
        return (f"seats: reservation events {self.events} {same} effects {self.effects}{held}, {self.lost} lost, "
                f"{self.twice} applied twice, {self.invented} invented, order {'BROKEN' if self.disorder else 'kept'}")

    def table(self, duplicates):
        return [("events", self.events, "of reservations, of the committed rows above"),
                ("effects", self.effects, "in the database of the seat service"),
                ("lost", self.lost, "committed, without an effect" + (f"; {self.held} held back" if self.held else "")),
                ("applied twice", self.twice, f"{duplicates:,} duplicates were suppressed"),
                ("invented", self.invented, "effects of what was not committed"),
                ("out of order", self.disorder, f"of {self.keys:,} keys"),
                ("seats differ", self.differ, "from the shop's reservations, by place and state")]


class Seat:
    """The service: its database, its consumer, its scenes. demo: who tells the story."""

    def __init__(self, demo, config_link):
        self.demo, self.config_link = demo, config_link
        self.db = self.consumer = self.health = self.rows = None

    # -- start

    def prepare(self, pg, brokers, variant, config):
        self.variant = variant
        self.db = pg.createdb("seat")
        servers.Cli(variant=variant).run("init", "--conninfo", self.db.conninfo, check=True)
        self.db.psql(TABLES + HANDLER.format(more=FIRST))
        self.add_places(PLACES)
        self.consumer = servers.Consumer(
            pg.conninfo("seat", user="seat"), brokers, GROUP, [TOPIC], {"kind": "sql", "function": "seat.on_event"},
            servers._merge({"errors": RULES}, config), variant=variant)
        os.symlink(self.consumer.file, self.config_link)
        self.consumer.start()

    def add_places(self, places):
        self.db.query("INSERT INTO seat.place SELECT unnest(%s)", (list(places),))

    def watch(self):
        self.rows, self.health = Rows(self.db, NUMBERS), ConsumerHealth(self.consumer)
        return self.rows, self.health

    # -- what the screen shows

    @property
    def handled(self):
        return self.rows.count

    @property
    def parked_keys(self):
        return self.rows.row[1] if self.rows.row else 0

    @property
    def dead_letters(self):
        return self.rows.row[2] if self.rows.row else 0

    def flows(self):
        return self.health.state == "ok" and self.health.lag() < 0.5

    # -- the scenes; each yields once per frame

    def cli(self, *args):
        """Runs the CLI as an operator would; fails as the demonstration fails."""
        log = os.path.join(servers.new_dir("cli"), "out")
        argv = [servers.bin_path("postrider", self.variant), *args, "-c", self.consumer.file]
        proc = servers.spawn(argv, log=log, env=servers._clean_env())
        yield from self.demo.until(lambda: proc.poll() is not None, 60, f"postrider {args[0]} {args[1]}")
        if proc.returncode:
            raise AssertionError(f"postrider {' '.join(args)}: exit {proc.returncode}\n{servers.tail(log)}")

    def story(self):
        demo = self.demo
        yield from demo.until(self.flows, 60, "the consumer to catch up")
        yield from self.poison()
        yield from self.outage()
        yield from self.kill()
        yield from self.mend()
        yield from self.replay()

    def poison(self):
        demo, orders = self.demo, self.demo.db
        demo.step("Two poison events for the seat service: a place it never heard of, a type it has no rule for. One parks "
                  "its key, one becomes a dead letter; the others flow.")
        self.strange = orders.one("SELECT reserve('the mayor', 'balcony')")
        orders.query("SELECT pay(%s)", (self.strange,))  # waits behind the first
        orders.query("SELECT move(reserve('the mayor''s wife', 'studio'), 'garden')")
        yield from demo.until(lambda: self.parked_keys == 1 and self.dead_letters == 1, 30, "the poison to be held back")
        before = self.handled
        yield from demo.until(lambda: self.handled > before, 30, "the others to flow")
        yield from demo.seconds(3)

    def outage(self):
        demo = self.demo
        demo.step("A migration goes wrong: the table seat.hold is gone. The breaker opens: nothing is handled, nothing "
                  "is buried, one message probes.")
        self.db.query("ALTER TABLE seat.hold RENAME TO hold_old")
        yield from demo.until(lambda: self.health.breaker_open() and self.health.state == "error", 30,
                              "the breaker to open")
        yield from demo.seconds(3)
        self.db.query("ALTER TABLE seat.hold_old RENAME TO hold")
        demo.step("The table is back: a probe gets through, the breaker closes, what had waited is handled.")
        yield from demo.until(lambda: not self.health.breaker_open() and self.health.state == "warn", 30,
                              "the breaker to close")
        yield from demo.seconds(2)

    def kill(self):
        demo = self.demo
        demo.step(f"kill -9 {self.consumer.pid}: the consumer dies in the middle of its work. Its offsets stand in the "
                  "seat database, beside the effects.")
        self.consumer.kill9()
        yield from demo.until(lambda: self.health.state == "dead", 10, "its death to be seen")
        yield from demo.seconds(2.5)
        before = self.db.one("SELECT count(*) FROM seat.effect")
        self.consumer.start()
        demo.step("The consumer is started again: it takes its partitions over under a new epoch and goes on; what was "
                  "parked is still parked.")
        yield from demo.until(lambda: self.handled > before and self.health.state == "warn", 60,
                              "the consumer to go on after its death")
        yield from demo.seconds(2)

    def mend(self):
        demo = self.demo
        demo.step("The balcony is added to the seat service; postrider parked retry asks the key to try again: both its "
                  "events go through, in order.")
        self.add_places(["balcony"])
        yield from self.cli("parked", "retry", "-t", TOPIC, "-k", self.strange, "--wait", "30s")
        yield from demo.until(lambda: self.parked_keys == 0, 30, "the key to be free")
        yield from demo.seconds(1)
        demo.step("A new seat.on_event has a rule for that type; postrider dlq retry gives the dead letter back, and it "
                  "goes through.")
        self.db.psql(HANDLER.format(more=MENDED))
        yield from self.cli("dlq", "retry", "--all")
        yield from demo.until(lambda: self.dead_letters == 0 and self.flows(), 30, "the consumer to be well again")
        yield from demo.seconds(1)

    def replay(self):
        demo = self.demo
        demo.step("postrider replay start --all: the consumer reads the whole topic again through the same handler. All "
                  "are duplicates; no effect is applied twice.")
        yield from self.cli("replay", "start", "--all", "--watch")
        yield from demo.until(self.flows, 60, "the consumer to be level again")
        yield from demo.seconds(1)

    # -- the end

    def settle(self):
        """Until each committed event has an effect or is held back; what is missing is for the count to say."""
        want = self.demo.db.one(f"SELECT count(*) FROM ({EVENTS}) AS e")
        held = len(self.db.query(HELD))
        yield from self.demo.until(lambda: self.handled >= want - held, 30, "the last effect")

    def count(self):
        return Count(self.demo.db, self.db)
