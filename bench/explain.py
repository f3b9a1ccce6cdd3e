"""bench/explain.py -- what the indexes of a request's path are worth: each query of the reservation service on a million
reservations, as it is and, in a transaction that is rolled back, without its index. Refuses to print a query whose plan
does not name that index."""
import json
import statistics

import lab as L
from fill import fill
from measures import Result
from service import Service

ROWS = 1000000
TABLES = ("reservation", "reservation_history", "seat", "user_copy", "token_copy")
FILL = """
CREATE FUNCTION pg_temp.u(kind text, i bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
	$$ SELECT (kind || '0000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid $$;
INSERT INTO reservation.seat SELECT i, 1, 1 + i / 1000, 'S', 100, 1 FROM generate_series(1, {rows} / 3) AS i;
INSERT INTO reservation.user_copy SELECT pg_temp.u('a', i), 'ACTIVE', 1 FROM generate_series(1, {rows} / 20) AS i;
INSERT INTO reservation.token_copy SELECT pg_temp.u('b', i), pg_temp.u('a', i), 1, 'ACTIVE', now(), 1, now() FROM generate_series(1, {rows} / 20) AS i;
INSERT INTO reservation.reservation (reservation_id, user_id, concert_id, schedule_id, seat_id, label, price, token_id, status, claim_no, payment_id)
SELECT pg_temp.u('d', i), pg_temp.u('a', 1 + i % ({rows} / 20)), 1, 1, 1 + i % ({rows} / 3), 'S', 100, pg_temp.u('b', 1 + i % ({rows} / 20)),
	CASE WHEN i < {rows} / 4 THEN 'PAID' ELSE 'CANCELLED' END, 1, CASE WHEN i < {rows} / 4 THEN pg_temp.u('e', i) END
FROM generate_series(1, {rows}) AS i;
INSERT INTO reservation.reservation_history SELECT pg_temp.u('d', i), 1, NULL, 'REQUESTED', NULL, 'x', NULL, pg_temp.u('c', i), NULL, now()
FROM generate_series(1, {rows}) AS i
"""
LIVE = "claim_no IS NOT NULL AND status IN ('REQUESTED', 'HELD', 'PAID', 'CONFIRMED')"
# (what asks, table, index, whether it is a constraint, query)
QUERIES = (
    ("whether a seat is taken", "reservation", "reservation_claim", False,
     f"SELECT seat_id FROM reservation.reservation WHERE seat_id = 4711 AND {LIVE}"),
    ("a user's reservations, the newest 50", "reservation", "reservation_user", False,
     "SELECT * FROM reservation.reservation WHERE user_id = 'a0000000-0000-7000-8000-000000000007' AND reservation_id <"
     " 'ffffffff-ffff-ffff-ffff-ffffffffffff' ORDER BY reservation_id DESC LIMIT 50"),
    ("a reservation", "reservation", "reservation_pkey", True,
     "SELECT * FROM reservation.reservation WHERE reservation_id = 'd0000000-0000-7000-8000-000000000007'"),
    ("its history", "reservation_history", "reservation_history_pkey", True,
     "SELECT * FROM reservation.reservation_history WHERE reservation_id = 'd0000000-0000-7000-8000-000000000007'"),
    ("what a payment is for", "reservation", "reservation_payment", False,
     "SELECT reservation_id FROM reservation.reservation WHERE payment_id = 'e0000000-0000-7000-8000-000000000007'"),
    ("whether a token has any, of one that has none", "reservation", "reservation_token", False,
     "SELECT FROM reservation.reservation WHERE token_id = 'b0000000-0000-7000-8000-0000ffffffff' LIMIT 1"),
    ("a seat of a schedule", "seat", "seat_pkey", True, "SELECT * FROM reservation.seat WHERE seat_id = 4711 AND schedule_id = 5"),
    ("a queue token", "token_copy", "token_copy_pkey", True,
     "SELECT * FROM reservation.token_copy WHERE token_id = 'b0000000-0000-7000-8000-000000000007'"),
)


def timed(cur, sql, times):
    """(milliseconds, median; the plan's text)."""
    seen = []
    for _ in range(times):
        cur.execute("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + sql)
        plan = cur.fetchone()[0][0]
        seen.append(plan["Execution Time"])
    return statistics.median(seen), json.dumps(plan["Plan"])


def explain(lab, opt):
    """Queries of the reservation service's requests on 1,000,000 rows, with and without their index."""
    L.program("postrider-reservation")
    rows = min(ROWS, opt.rows)
    db = lab.pg.createdb("explain")
    Service("reservation", db.conninfo, variant="plain").start().wait_ready().kill()
    fill(db, [f"reservation.{t}" for t in TABLES], FILL.format(rows=rows))
    conn = db.connect(autocommit=False)
    try:
        for what, table, index, constraint, sql in QUERIES:
            with conn.cursor() as cur:
                have, plan = timed(cur, sql, 5)
                if f'"{index}"' not in plan:
                    raise L.Failed(f"{what}: not by {index}: {plan}")
                cur.execute(f"ALTER TABLE reservation.{table} DROP CONSTRAINT {index}" if constraint else f"DROP INDEX reservation.{index}")
                less, other = timed(cur, sql, 3)
            conn.rollback()
            yield Result("explain", what, "ms", have, f"no {index}", less, ("ratio", "<=", 0.1), {"plan": plan, "without": other})
    finally:
        conn.close()
        db.drop()


MEASURES = {"explain": explain}
