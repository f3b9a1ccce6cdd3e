-- docs/examples/handlers/seat.sql -- two SQL handlers that hold seats for reservations: one called for
-- each message, one for a whole batch. Both run inside the transaction that records the offset.
--
--   handler: { kind = "sql"; function = "seat.on_event"; };    -- or "seat.on_events"
--
-- Events: SeatRequested {"seat_id": 7, "reservation_id": "..."} and SeatReleased {"seat_id": 7, ...}, with
-- the seat as their key: those of one seat come in order. No duplicate ever comes here.
CREATE SCHEMA IF NOT EXISTS seat;

CREATE TABLE IF NOT EXISTS seat.seat (
	seat_id        bigint PRIMARY KEY,
	reservation_id uuid,		-- NULL: free
	changes        bigint NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS seat.refusal (
	reservation_id uuid PRIMARY KEY,
	seat_id        bigint NOT NULL,
	reason         text NOT NULL
);

-- One message. What it raises decides what becomes of the message, by the SQLSTATE: an unknown seat is
-- refused with 23503, which is about this message and makes it a dead letter.
CREATE OR REPLACE FUNCTION seat.on_event(message inbox.message) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	seat_no     bigint := (message.payload ->> 'seat_id')::bigint;
	reservation uuid   := (message.payload ->> 'reservation_id')::uuid;
BEGIN
	IF message.type = 'SeatReleased' THEN
		UPDATE seat.seat SET reservation_id = NULL, changes = changes + 1
		 WHERE seat_id = seat_no AND reservation_id = reservation;
		RETURN;
	END IF;
	UPDATE seat.seat SET reservation_id = reservation, changes = changes + 1
	 WHERE seat_id = seat_no AND reservation_id IS NULL;
	IF FOUND THEN
		RETURN;
	END IF;
	IF NOT EXISTS (SELECT FROM seat.seat WHERE seat_id = seat_no) THEN
		RAISE EXCEPTION 'there is no seat %', seat_no USING ERRCODE = 'foreign_key_violation';
	END IF;
	-- Taken is an answer, not an error: it is written down like any other effect.
	INSERT INTO seat.refusal (reservation_id, seat_id, reason)
	VALUES (reservation, seat_no, 'taken');
END
$$;

-- The same effect undone, for a message whose attempts are used up:
--   handler: { ...; undo_function = "seat.undo_event"; };
-- It compares as text: a message whose reservation_id is no uuid failed for that, and must not fail here again.
CREATE OR REPLACE FUNCTION seat.undo_event(message inbox.message) RETURNS void
LANGUAGE sql AS $$
	UPDATE seat.seat SET reservation_id = NULL, changes = changes + 1
	 WHERE reservation_id::text = lower(message.payload ->> 'reservation_id');
$$;

-- A table for the set-based one: how many seats a show has sold, one row a show.
CREATE TABLE IF NOT EXISTS seat.sold (
	show_id bigint PRIMARY KEY,
	seats   bigint NOT NULL
);

-- A whole batch in one statement: some ten times as fast. ORDER BY keeps two lanes that touch the same
-- rows from locking them crosswise. If it raises, the batch is halved until the one message that makes it
-- raise is alone; the others commit.
CREATE OR REPLACE FUNCTION seat.on_events(messages inbox.message[]) RETURNS void
LANGUAGE sql AS $$
	INSERT INTO seat.sold AS s (show_id, seats)
	SELECT (m.payload ->> 'show_id')::bigint, count(*)
	  FROM unnest(messages) AS m
	 GROUP BY 1
	 ORDER BY 1
	    ON CONFLICT (show_id) DO UPDATE SET seats = s.seats + excluded.seats;
$$;
