"""tests/support/demo_shop.py -- the demonstration's small shop: its tables, its clients, and the truth about them.

Business rows, the event and the journal's row are one transaction. Knows no relay.
"""
import contextlib
import random
import threading
import time

PLACES = ("hall A", "hall B", "rooftop", "garden", "studio")
CLIENTS, RATE, CALM_RATE = 3, 240, 40  # transactions per second: during the show, and for playing

SHOP = """
CREATE SCHEMA truth;
CREATE TABLE truth.journal (event_id uuid NOT NULL, topic text NOT NULL, agg text NOT NULL, aggseq bigint NOT NULL,
	txn_tag bigint NOT NULL, type text NOT NULL, payload_md5 uuid, headers jsonb);
COMMENT ON TABLE truth.journal IS 'what the shop committed, for the count at the end; the relay never looks here';

CREATE SEQUENCE reservation_number;
CREATE TABLE reservation (reservation text PRIMARY KEY, guest text NOT NULL, place text NOT NULL, price int NOT NULL,
	state text NOT NULL DEFAULT 'HELD', version int NOT NULL DEFAULT 1, changed_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE payment (payment text PRIMARY KEY, reservation text NOT NULL REFERENCES reservation, amount int NOT NULL,
	paid_at timestamptz NOT NULL DEFAULT now());

-- One event into the outbox, and the same into the journal.
CREATE FUNCTION tell(kind text, agg text, version int, type text, payload jsonb) RETURNS void LANGUAGE sql AS $$
	WITH e AS (SELECT outbox.publish(kind, agg, type, payload, '{"tenant": "seoul"}') AS id)
	INSERT INTO truth.journal SELECT id, 'outbox.event.' || kind, agg, version, 0, type, md5(payload::text)::uuid,
		'{"tenant": "seoul"}' FROM e;
$$;

CREATE FUNCTION reserve(guest text DEFAULT 'you', place text DEFAULT 'rooftop') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	id text := 'R-' || lpad(nextval('reservation_number')::text, 6, '0');
	price int := 10000 + 500 * (length(place) % 7);
BEGIN
	INSERT INTO reservation VALUES (id, guest, place, price);
	PERFORM tell('reservation', id, 1, 'ReservationCreated', jsonb_build_object('reservation', id, 'guest', guest,
		'place', place, 'price', price));
	RETURN id;
END $$;

-- The row lock comes first, then the events: so the order of each key is the order of the locks.
CREATE FUNCTION pay(id text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r reservation;
	p text := replace(id, 'R-', 'P-');
BEGIN
	UPDATE reservation SET state = 'CONFIRMED', version = version + 1, changed_at = now()
	WHERE reservation = id AND state = 'HELD' RETURNING * INTO STRICT r;
	INSERT INTO payment VALUES (p, id, r.price);
	PERFORM tell('payment', p, 1, 'PaymentCompleted', jsonb_build_object('payment', p, 'reservation', id,
		'amount', r.price));
	PERFORM tell('reservation', id, r.version, 'ReservationConfirmed', jsonb_build_object('reservation', id,
		'payment', p));
	RETURN p;
END $$;

CREATE FUNCTION move(id text, place text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r reservation;
BEGIN
	UPDATE reservation SET place = move.place, version = version + 1, changed_at = now()
	WHERE reservation = id AND state = 'HELD' RETURNING * INTO STRICT r;
	PERFORM tell('reservation', id, r.version, 'ReservationMoved', jsonb_build_object('reservation', id,
		'place', move.place));
	RETURN id;
END $$;

CREATE FUNCTION cancel(id text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r reservation;
BEGIN
	UPDATE reservation SET state = 'CANCELLED', version = version + 1, changed_at = now()
	WHERE reservation = id AND state = 'HELD' RETURNING * INTO STRICT r;
	PERFORM tell('reservation', id, r.version, 'ReservationCancelled', jsonb_build_object('reservation', id));
END $$;
"""

# The journal, and whatever somebody published by hand meanwhile: behind the events of its key so far.
TRUTH = """
SELECT event_id, topic, agg, aggseq * 1000000, txn_tag, type, payload_md5, headers FROM truth.journal
UNION ALL
SELECT h.id, h.topic, h.aggregateid, h.rank + 1000000 * coalesce((SELECT max(j.aggseq) FROM truth.journal AS j
		JOIN outbox.event AS x ON x.id = j.event_id
		WHERE j.topic = h.topic AND j.agg = h.aggregateid AND x.seq < h.seq), 0),
	0, h.type, coalesce(md5(h.payload::text), md5(h.payload_bytes))::uuid, CASE WHEN h.headers <> '{}' THEN
	(SELECT jsonb_object_agg(k.key, CASE jsonb_typeof(k.value) WHEN 'string' THEN k.value #>> '{}'
		ELSE k.value::text END) FROM jsonb_each(h.headers) AS k) END
FROM (SELECT e.*, t.topic AS to_topic, row_number() OVER (PARTITION BY e.aggregateid ORDER BY e.seq) AS rank
	FROM outbox.event AS e CROSS JOIN LATERAL (SELECT coalesce(e.topic, 'outbox.event.' || e.aggregatetype)) AS t (topic)
	WHERE NOT EXISTS (SELECT FROM truth.journal AS j WHERE j.event_id = e.id)) AS h
WHERE h.to_topic IN ('outbox.event.reservation', 'outbox.event.payment')
""".replace("h.topic", "h.to_topic")


class Shop:
    """Clients that commit business rows and events in one transaction each; some roll back."""

    def __init__(self, conninfo):
        self.conninfo, self.rate = conninfo, RATE
        self.lock = threading.Lock()
        self.transactions = self.rolled_back = 0
        self.pending = {}   # (key, type) committed and not yet read back -> when
        self.early = set()  # read back before we heard of our own commit
        self.error = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(CLIENTS)]

    def start(self):
        for t in self._threads:
            t.start()

    def stop(self):
        self._stop.set()
        for t in self._threads:
            t.join(10)

    def seen(self, key, kind):
        with self.lock:
            if self.pending.pop((key, kind), None) is None:
                self.early.add((key, kind))
                if len(self.early) > 10000:  # published by hand
                    self.early.pop()

    def lag(self):
        """Age of the oldest event that was committed and not yet read back from the topic."""
        with self.lock:
            oldest = next(iter(self.pending.values()), None)
        return 0.0 if oldest is None else max(0.0, time.monotonic() - oldest)

    def _committed(self, events):
        now = time.monotonic()
        with self.lock:
            self.transactions += 1
            for e in events:
                if e in self.early:
                    self.early.discard(e)
                else:
                    self.pending[e] = now

    def _client(self, index):
        import psycopg2
        try:
            conn = psycopg2.connect(self.conninfo, connect_timeout=5, application_name="shop")
            rnd, held, due = random.Random(), [], time.monotonic() + index / RATE
            with contextlib.closing(conn), conn.cursor() as cur:
                while not self._stop.is_set():
                    self._one(conn, cur, rnd, held)
                    due = max(due + CLIENTS / self.rate, time.monotonic() - 0.05)
                    self._stop.wait(max(0, due - time.monotonic()))
        except psycopg2.Error as e:
            self.error = str(e).strip()

    def _one(self, conn, cur, rnd, held):
        what = "reserve" if len(held) < 8 or rnd.random() < 0.5 else "pay" if rnd.random() < 0.8 else "cancel"
        back = rnd.random() < 0.1
        if what == "reserve":
            cur.execute("SELECT reserve(%s, %s)", (f"guest {rnd.randrange(1000)}", rnd.choice(PLACES)))
            which = cur.fetchone()[0]
            events = [(which, "ReservationCreated")]
        else:
            which = held.pop(rnd.randrange(len(held)))
            cur.execute(f"SELECT {what}(%s)", (which,))
            events = [(which, "ReservationCancelled")] if what == "cancel" else [
                (which.replace("R-", "P-"), "PaymentCompleted"), (which, "ReservationConfirmed")]
        if back:
            conn.rollback()
            with self.lock:
                self.rolled_back += 1
        else:
            conn.commit()
            self._committed(events)
        if (what == "reserve") != back:
            held.append(which)
