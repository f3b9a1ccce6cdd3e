-- Schema concert: concerts, their schedules and seats, as sold. Run whole when its text has changed: all of it may be
-- run again. Written by the consumer of group concert; postrider-concert only reads.
--
-- Who has a seat is decided by the reservation service, which numbers the claims of each seat. What we hear of them comes
-- by several topics, so in any order; a seat keeps what is needed to make the same of it in each:
--   the highest claim has the seat, lower ones are stale; a claim that ended stays ended (released);
--   of one claim the newest version of its reservation counts (confirmed), and, beside it, whether a payment has
--   reserved the seat (reserved_by: the saga, or the payment of a hybrid one), until that payment is undone.
-- Lock order: concert by id, seat by id, saga.barrier. All of a batch is locked before its first message is handled: the
-- concert's row is what its seats queue up for, so that its status can be derived from them.
CREATE SCHEMA IF NOT EXISTS concert;

CREATE TABLE IF NOT EXISTS concert.concert (
	concert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	title      text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
	status     text NOT NULL DEFAULT 'AVAILABLE' CHECK (status IN ('AVAILABLE', 'SOLD_OUT')),
	version    bigint NOT NULL DEFAULT 1,
	created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS concert.concert_schedule (
	schedule_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	concert_id  bigint NOT NULL REFERENCES concert.concert,
	starts_at   timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS concert_schedule_concert ON concert.concert_schedule (concert_id, schedule_id);

CREATE TABLE IF NOT EXISTS concert.seat (
	seat_id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	schedule_id         bigint NOT NULL REFERENCES concert.concert_schedule,
	concert_id          bigint NOT NULL,
	label               text NOT NULL CHECK (length(label) BETWEEN 1 AND 40),
	price               bigint NOT NULL CHECK (price BETWEEN 0 AND 9007199254740992),
	claim_no            bigint NOT NULL DEFAULT 0,
	reservation_id      uuid,
	reservation_version bigint NOT NULL DEFAULT 0,
	confirmed           boolean NOT NULL DEFAULT false,
	reserved_by         uuid,
	reserved_at         timestamptz,
	released            boolean NOT NULL DEFAULT true,
	state               text NOT NULL GENERATED ALWAYS AS (CASE WHEN released THEN 'AVAILABLE'
		WHEN confirmed OR reserved_by IS NOT NULL THEN 'RESERVED' ELSE 'HELD' END) STORED,
	version             bigint NOT NULL DEFAULT 1,
	UNIQUE (schedule_id, label),
	CHECK ((state = 'RESERVED') = (reserved_at IS NOT NULL))
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS seat_schedule ON concert.seat (schedule_id, seat_id);
CREATE INDEX IF NOT EXISTS seat_state ON concert.seat (schedule_id, state, seat_id);
CREATE INDEX IF NOT EXISTS seat_unsold ON concert.seat (concert_id) WHERE state <> 'RESERVED';

-- How many seats were reserved in which hour: what is popular is a sum over the last of them, however many seats there
-- are. A reservation that is undone is taken out of its hour again.
CREATE TABLE IF NOT EXISTS concert.sold (
	hour       timestamptz NOT NULL,
	concert_id bigint NOT NULL REFERENCES concert.concert,
	seats      bigint NOT NULL,
	PRIMARY KEY (hour, concert_id)
);

-- What came too late or did not fit, and was ignored.
CREATE TABLE IF NOT EXISTS concert.ignored (
	entry      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at         timestamptz NOT NULL DEFAULT now(),
	seat_id    bigint,
	claim_no   bigint,
	what       text NOT NULL,
	why        text NOT NULL,
	message_id uuid
);
CREATE INDEX IF NOT EXISTS ignored_at ON concert.ignored (at);

-- ---------------------------------------------------------------- who shows seats is told what has changed

-- Channel concert_changed, with the commit: "c <concert>" or "s <schedule> <concert>".
CREATE OR REPLACE FUNCTION concert.tell_concert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_notify('concert_changed', 'c ' || coalesce(NEW.concert_id, OLD.concert_id));
	RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION concert.tell_seat() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_notify('concert_changed', format('s %s %s', NEW.schedule_id, NEW.concert_id));
	RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION concert.tell_seats() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_notify('concert_changed', format('s %s %s', c.schedule_id, c.concert_id))
	FROM (SELECT DISTINCT schedule_id, concert_id FROM changed) AS c;
	RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS tell ON concert.concert;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON concert.concert FOR EACH ROW EXECUTE FUNCTION concert.tell_concert();
DROP TRIGGER IF EXISTS tell ON concert.concert_schedule;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON concert.concert_schedule
	FOR EACH ROW EXECUTE FUNCTION concert.tell_concert();
-- A seat's bookkeeping that nobody sees is no change.
DROP TRIGGER IF EXISTS tell ON concert.seat;
CREATE TRIGGER tell AFTER UPDATE ON concert.seat FOR EACH ROW
	WHEN ((OLD.state, OLD.label, OLD.price) IS DISTINCT FROM (NEW.state, NEW.label, NEW.price))
	EXECUTE FUNCTION concert.tell_seat();
DROP TRIGGER IF EXISTS tell_new ON concert.seat;
CREATE TRIGGER tell_new AFTER INSERT ON concert.seat REFERENCING NEW TABLE AS changed
	FOR EACH STATEMENT EXECUTE FUNCTION concert.tell_seats();
DROP TRIGGER IF EXISTS tell_gone ON concert.seat;
CREATE TRIGGER tell_gone AFTER DELETE ON concert.seat REFERENCING OLD TABLE AS changed
	FOR EACH STATEMENT EXECUTE FUNCTION concert.tell_seats();

-- ---------------------------------------------------------------- HTTP

-- In plpgsql, whose statements are planned once a session.

-- A page of a list: what is asked for, and where the next one begins; NULL: this is the last.
-- GET /concerts
CREATE OR REPLACE FUNCTION concert.list(most integer, after bigint) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
	RETURN (SELECT jsonb_build_object(
			'concerts', coalesce(jsonb_agg(jsonb_build_object('concert_id', p.concert_id::text, 'title', p.title,
				'status', p.status) ORDER BY p.concert_id) FILTER (WHERE p.n <= most), '[]'),
			'next', CASE WHEN count(*) > most THEN (max(p.concert_id) FILTER (WHERE p.n <= most))::text END)
		FROM (SELECT c.*, row_number() OVER (ORDER BY c.concert_id) AS n FROM concert.concert AS c
			WHERE c.concert_id > coalesce(after, 0) ORDER BY c.concert_id LIMIT most + 1) AS p);
END
$$;

-- GET /concerts/popular: most seats reserved within the window, which begins with a whole hour. Not knowing the window, the
-- planner would take a third of the table for it, and read all.
CREATE OR REPLACE FUNCTION concert.popular(most integer, popular_window interval) RETURNS jsonb LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
BEGIN
	RETURN (SELECT jsonb_build_object('concerts', coalesce(jsonb_agg(jsonb_build_object('concert_id', c.concert_id::text,
			'title', c.title, 'status', c.status, 'reserved', p.seats) ORDER BY p.seats DESC, c.concert_id), '[]'))
		FROM (SELECT s.concert_id, sum(s.seats) AS seats FROM concert.sold AS s
			WHERE s.hour >= date_trunc('hour', now() - popular_window)
			GROUP BY s.concert_id HAVING sum(s.seats) > 0 ORDER BY sum(s.seats) DESC, s.concert_id LIMIT most) AS p
		JOIN concert.concert AS c ON c.concert_id = p.concert_id);
END
$$;

-- GET /concerts/{id}
CREATE OR REPLACE FUNCTION concert.show(concert bigint) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
	RETURN (SELECT jsonb_build_object('concert_id', c.concert_id::text, 'title', c.title, 'status', c.status,
			'created_at', service.rfc3339(c.created_at))
		FROM concert.concert AS c WHERE c.concert_id = concert);
END
$$;

CREATE OR REPLACE FUNCTION concert.free_seats(schedule bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
	RETURN (SELECT count(*) FROM concert.seat AS s WHERE s.schedule_id = schedule AND s.state = 'AVAILABLE');
END
$$;

-- GET /concerts/{id}/schedules
CREATE OR REPLACE FUNCTION concert.schedules(concert bigint, most integer, after bigint) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN
	RETURN (SELECT jsonb_build_object(
			'schedules', coalesce(jsonb_agg(jsonb_build_object('schedule_id', p.schedule_id::text,
				'starts_at', service.rfc3339(p.starts_at), 'free_seats', concert.free_seats(p.schedule_id))
				ORDER BY p.schedule_id) FILTER (WHERE p.n <= most), '[]'),
			'next', CASE WHEN count(p.n) > most THEN (max(p.schedule_id) FILTER (WHERE p.n <= most))::text END)
		FROM concert.concert AS c LEFT JOIN LATERAL (
			SELECT s.*, row_number() OVER (ORDER BY s.schedule_id) AS n FROM concert.concert_schedule AS s
			WHERE s.concert_id = c.concert_id AND s.schedule_id > coalesce(after, 0) ORDER BY s.schedule_id LIMIT most + 1) AS p ON true
		WHERE c.concert_id = concert GROUP BY c.concert_id);
END
$$;

-- GET /schedules/{id}/seats. Two statements: each state's index gives the page in its order.
CREATE OR REPLACE FUNCTION concert.seats(schedule bigint, wanted text, most integer, after bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
	page jsonb;
BEGIN
	IF NOT EXISTS (SELECT FROM concert.concert_schedule AS s WHERE s.schedule_id = schedule) THEN
		RETURN NULL;
	END IF;
	IF wanted IS NULL THEN
		SELECT jsonb_agg(to_jsonb(p) ORDER BY p.seat_id) INTO page FROM (
			SELECT s.seat_id, s.label, s.price, s.state FROM concert.seat AS s
			WHERE s.schedule_id = schedule AND s.seat_id > coalesce(after, 0) ORDER BY s.seat_id LIMIT most + 1) AS p;
	ELSE
		SELECT jsonb_agg(to_jsonb(p) ORDER BY p.seat_id) INTO page FROM (
			SELECT s.seat_id, s.label, s.price, s.state FROM concert.seat AS s
			WHERE s.schedule_id = schedule AND s.state = wanted AND s.seat_id > coalesce(after, 0)
			ORDER BY s.seat_id LIMIT most + 1) AS p;
	END IF;
	RETURN (SELECT jsonb_build_object(
		'seats', coalesce(jsonb_agg(e.v || jsonb_build_object('seat_id', e.v ->> 'seat_id') ORDER BY e.n)
			FILTER (WHERE e.n <= most), '[]'),
		'next', CASE WHEN count(*) > most THEN page -> (most - 1) ->> 'seat_id' END)
		FROM jsonb_array_elements(page) WITH ORDINALITY AS e (v, n));
END
$$;

-- ---------------------------------------------------------------- an operator opens a concert

CREATE OR REPLACE FUNCTION concert.refuse_arguments(problem text, advice text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'concert: ' || problem, HINT = advice;
END
$$;

-- A number of JSON, or digits in a string; NULL when it is neither.
CREATE OR REPLACE FUNCTION concert.number(v jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN jsonb_typeof(v) IN ('number', 'string') AND v #>> '{}' ~ '^[0-9]{1,18}$' THEN (v #>> '{}')::bigint END
$$;

-- A, B, ... Z, AA, AB, ...
CREATE OR REPLACE FUNCTION concert.row_name(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN n > 702 THEN 'R' || n WHEN n > 26 THEN chr(64 + ((n - 1) / 26)::integer) || chr(65 + ((n - 1) % 26)::integer)
		ELSE chr(64 + n::integer) END
$$;

-- The seats of one schedule as concert.open gets them.
CREATE OR REPLACE FUNCTION concert.wanted_seats(schedule jsonb) RETURNS TABLE (n bigint, label text, price bigint)
LANGUAGE plpgsql IMMUTABLE AS $$
#variable_conflict use_column
DECLARE
	rows bigint := concert.number(schedule -> 'rows');
	per_row bigint := concert.number(schedule -> 'seats_per_row');
	each_price bigint := concert.number(schedule -> 'price');
BEGIN
	IF jsonb_typeof(schedule -> 'seats') = 'array' THEN
		RETURN QUERY SELECT e.n, e.v ->> 'label', coalesce(concert.number(e.v -> 'price'), each_price)
		FROM jsonb_array_elements(schedule -> 'seats') WITH ORDINALITY AS e (v, n);
	ELSIF rows > 0 AND per_row > 0 AND rows <= 1000000 AND per_row <= 1000000 AND rows * per_row <= 1000000 AND each_price IS NOT NULL THEN
		RETURN QUERY SELECT (r - 1) * per_row + s, concert.row_name(r) || '-' || s, each_price
		FROM generate_series(1, rows) AS r, generate_series(1, per_row) AS s;
	ELSE
		PERFORM concert.refuse_arguments('the schedule ' || outbox.shown(schedule::text) || ' has no seats',
			'Give {"starts_at", "rows", "seats_per_row", "price"}, at most 1000000 seats, or {"starts_at", "seats": [{"label", "price"}]}.');
	END IF;
END
$$;

-- SELECT concert.open('Spring', '[{"starts_at": "2027-05-01T20:00:00Z", "rows": 10, "seats_per_row": 20, "price": 5000}]');
-- seats may also be given one by one: "seats": [{"label": "A-1", "price": 9000}, ...]. Publishes ConcertCreated and
-- ScheduleOpened, a thousand seats an event. Returns {"concert_id", "schedules": [{"schedule_id", "seats"}]}.
CREATE OR REPLACE FUNCTION concert.open(title text, schedules jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
	c concert.concert;
	wanted jsonb;
	schedule bigint;
	made bigint;
	opened jsonb := '[]';
BEGIN
	IF jsonb_typeof(schedules) IS DISTINCT FROM 'array' OR jsonb_array_length(schedules) = 0 THEN
		PERFORM concert.refuse_arguments('a concert has a list of schedules', 'Give [{"starts_at": ..., ...}, ...].');
	END IF;
	INSERT INTO concert.concert AS n (title) VALUES (open.title) RETURNING n.* INTO c;
	PERFORM outbox.publish('concert', c.concert_id::text, 'ConcertCreated',
		jsonb_build_object('concert_id', c.concert_id::text, 'title', c.title, 'status', c.status));
	FOR wanted IN SELECT e.v FROM jsonb_array_elements(schedules) WITH ORDINALITY AS e (v, n) ORDER BY e.n LOOP
		INSERT INTO concert.concert_schedule AS n (concert_id, starts_at)
		VALUES (c.concert_id, (wanted ->> 'starts_at')::timestamptz) RETURNING n.schedule_id INTO schedule;
		INSERT INTO concert.seat (schedule_id, concert_id, label, price)
		SELECT schedule, c.concert_id, w.label, w.price FROM concert.wanted_seats(wanted) AS w ORDER BY w.n;
		GET DIAGNOSTICS made = ROW_COUNT;
		IF made = 0 THEN
			PERFORM concert.refuse_arguments('a schedule has no seats', 'Give it at least one.');
		END IF;
		PERFORM outbox.publish('concert', c.concert_id::text, 'ScheduleOpened', jsonb_build_object(
			'concert_id', c.concert_id::text, 'schedule_id', schedule::text, 'starts_at', wanted_at.t, 'seats', part.seats))
		FROM (SELECT service.rfc3339((wanted ->> 'starts_at')::timestamptz) AS t) AS wanted_at, (
			SELECT i.n, jsonb_agg(jsonb_build_object('seat_id', i.seat_id::text, 'label', i.label, 'price', i.price)
				ORDER BY i.seat_id) AS seats
			FROM (SELECT s.*, (row_number() OVER (ORDER BY s.seat_id) - 1) / 1000 AS n
				FROM concert.seat AS s WHERE s.schedule_id = schedule) AS i
			GROUP BY i.n ORDER BY i.n) AS part;
		opened := opened || jsonb_build_object('schedule_id', schedule::text, 'seats', made);
	END LOOP;
	RETURN jsonb_build_object('concert_id', c.concert_id::text, 'schedules', opened);
END
$$;

-- ---------------------------------------------------------------- what becomes of a seat

-- Why the seat of this id cannot be meant; NULL: it fits. What is NULL is not compared.
CREATE OR REPLACE FUNCTION concert.misfit(s concert.seat, id bigint, schedule bigint, concert bigint, price bigint) RETURNS text
LANGUAGE sql STABLE AS $$
	SELECT CASE
		WHEN s.seat_id IS NULL THEN format('there is no seat %s', id)
		WHEN s.concert_id <> concert THEN format('seat %s is not one of concert %s', id, concert)
		WHEN s.schedule_id <> schedule THEN format('seat %s is not one of schedule %s', id, schedule)
		WHEN s.price <> misfit.price THEN format('seat %s costs %s, not %s', id, s.price, misfit.price)
	END
$$;

-- Why this claim does not have the seat, or cannot have it; NULL: it has, or will.
CREATE OR REPLACE FUNCTION concert.stale(s concert.seat, claim bigint, reservation uuid) RETURNS text LANGUAGE sql STABLE AS $$
	SELECT CASE
		WHEN claim < s.claim_no THEN format('claim %s of seat %s is stale, %s is the current one', claim, s.seat_id, s.claim_no)
		WHEN claim > s.claim_no THEN NULL
		WHEN s.reservation_id <> reservation THEN format('claim %s of seat %s is that of reservation %s', claim, s.seat_id, s.reservation_id)
		WHEN s.released THEN format('claim %s of seat %s has ended', claim, s.seat_id)
	END
$$;

-- How many seats were reserved in that hour; the concert's row is locked.
CREATE OR REPLACE FUNCTION concert.count_sold(concert bigint, at timestamptz, n integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO concert.sold AS s (hour, concert_id, seats) VALUES (date_trunc('hour', at), concert, n)
	ON CONFLICT (hour, concert_id) DO UPDATE SET seats = s.seats + EXCLUDED.seats;
END
$$;

CREATE OR REPLACE FUNCTION concert.publish_seat(s concert.seat, type text, payment uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM outbox.publish('concert', s.concert_id::text, type, jsonb_build_object('concert_id', s.concert_id::text,
		'schedule_id', s.schedule_id::text, 'seat_id', s.seat_id::text, 'reservation_id', s.reservation_id,
		'claim_no', s.claim_no)
		|| CASE WHEN payment IS NULL THEN '{}' ELSE jsonb_build_object('payment_id', payment, 'hybrid_id', payment) END,
		CASE WHEN payment IS NULL THEN '{}' ELSE jsonb_build_object('correlation-id', payment) END);
END
$$;

-- The one place that changes a seat, by what is said of one of its claims:
--   HELD, CONFIRMED  its reservation is in that state, as of version (NULL: not known)
--   RESERVE          a payment takes it: by is the saga or payment
--   UNRESERVE        the payment by is undone (NULL: whoever's it is)
--   RELEASE          the claim has ended
-- Returns whether it was taken into account: not when the claim is stale or has ended. The caller has locked the concert
-- and the seat. payment: of a hybrid one, said in the events, which its saga definition knows them by (hybrid_id).
CREATE OR REPLACE FUNCTION concert.change(seat bigint, claim bigint, reservation uuid, what text, by uuid DEFAULT NULL,
	version bigint DEFAULT NULL, payment uuid DEFAULT NULL) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
	was concert.seat;
	s concert.seat;
BEGIN
	SELECT * INTO was FROM concert.seat AS x WHERE x.seat_id = seat;
	IF was.seat_id IS NULL OR claim < was.claim_no OR claim = was.claim_no AND was.released THEN
		RETURN false;
	END IF;
	s := was;
	IF claim > was.claim_no THEN
		s.claim_no := claim;
		s.reservation_id := reservation;
		s.reservation_version := 0;
		s.confirmed := false;
		s.reserved_by := NULL;
		s.released := false;
	END IF;
	CASE what
	WHEN 'HELD', 'CONFIRMED' THEN
		IF version IS NULL THEN
			s.confirmed := s.confirmed OR what = 'CONFIRMED';
		ELSIF version > s.reservation_version THEN
			s.reservation_version := version;
			s.confirmed := what = 'CONFIRMED';
		END IF;
	WHEN 'RESERVE' THEN
		-- Of two hybrid payments the newer one (uuid7) has it: it began when the other was over, whose undo may be late.
		s.reserved_by := CASE WHEN payment IS NULL THEN coalesce(s.reserved_by, by) ELSE greatest(s.reserved_by, by) END;
	WHEN 'UNRESERVE' THEN
		IF by IS NULL OR s.reserved_by = by THEN
			s.reserved_by := NULL;
			s.confirmed := false;
		END IF;
	WHEN 'RELEASE' THEN
		s.released := true;
		s.reserved_by := NULL;
		s.confirmed := false;
	END CASE;
	IF s IS NOT DISTINCT FROM was THEN
		IF payment = s.reserved_by THEN
			PERFORM concert.publish_seat(s, 'SeatReserved', payment);
		END IF;
		RETURN true;
	END IF;
	s.state := CASE WHEN s.released THEN 'AVAILABLE' WHEN s.confirmed OR s.reserved_by IS NOT NULL THEN 'RESERVED' ELSE 'HELD' END;
	IF was.state = 'RESERVED' AND (s.state <> 'RESERVED' OR s.claim_no <> was.claim_no) THEN
		PERFORM concert.count_sold(was.concert_id, was.reserved_at, -1);
		s.reserved_at := NULL;
	END IF;
	IF s.state = 'RESERVED' AND s.reserved_at IS NULL THEN
		s.reserved_at := clock_timestamp();
		PERFORM concert.count_sold(s.concert_id, s.reserved_at, 1);
	END IF;
	UPDATE concert.seat AS x SET claim_no = s.claim_no, reservation_id = s.reservation_id,
		reservation_version = s.reservation_version, confirmed = s.confirmed, reserved_by = s.reserved_by,
		reserved_at = s.reserved_at, released = s.released, version = x.version + 1 WHERE x.seat_id = seat;
	IF s.claim_no <> was.claim_no AND was.state <> 'AVAILABLE' THEN
		PERFORM concert.publish_seat(was, 'SeatReleased', NULL);	-- its own end will be told, too late
		was.state := 'AVAILABLE';
	END IF;
	IF s.state <> was.state OR payment = s.reserved_by THEN	-- its payment waits to be told, whatever was before
		PERFORM concert.publish_seat(s, CASE s.state WHEN 'AVAILABLE' THEN 'SeatReleased' WHEN 'HELD' THEN 'SeatHeld'
			ELSE 'SeatReserved' END, payment);
	END IF;
	RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION concert.ignore(m inbox.message, seat bigint, claim bigint, why text) RETURNS void LANGUAGE sql AS $$
	INSERT INTO concert.ignored (seat_id, claim_no, what, why, message_id)
	VALUES (seat, claim, concat_ws(' ', m.type, m.payload ->> 'status'), left(why, 500), m.id)
$$;

-- The owner does not accept it: whoever's reservation or payment it is must hear. p: what was said of the seat.
CREATE OR REPLACE FUNCTION concert.refuse_seat(p jsonb, concert jsonb, payment uuid, why text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	id text := coalesce(concert.number(concert)::text, '0');
BEGIN
	PERFORM outbox.publish('concert', id, 'SeatRefused', jsonb_strip_nulls(jsonb_build_object('concert_id', id,
		'schedule_id', concert.number(p -> 'schedule_id')::text, 'seat_id', concert.number(p -> 'seat_id')::text,
		'reservation_id', service.uuid_of(p ->> 'reservation_id'), 'claim_no', concert.number(p -> 'claim_no'),
		'payment_id', payment, 'hybrid_id', payment, 'reason', why)),
		CASE WHEN payment IS NULL THEN '{}' ELSE jsonb_build_object('correlation-id', payment) END);
END
$$;

-- ---------------------------------------------------------------- messages: events

-- ReservationUpdated. One without a claim never had a seat.
CREATE OR REPLACE FUNCTION concert.on_reservation(m inbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	p jsonb := m.payload;
	status text := p ->> 'status';
	ends boolean := status IN ('CANCELLED', 'EXPIRED', 'REJECTED');
	seat bigint := concert.number(p -> 'seat_id');
	claim bigint := concert.number(p -> 'claim_no');
	reservation uuid := service.uuid_of(p ->> 'reservation_id');
	s concert.seat;
	why text;
BEGIN
	IF nullif(p -> 'claim_no', 'null') IS NULL OR status = 'REQUESTED' THEN
		RETURN;
	END IF;
	IF seat IS NULL OR claim IS NULL OR claim = 0 OR reservation IS NULL OR status IS NULL THEN
		PERFORM concert.refuse_arguments('seat_id, claim_no, reservation_id or status of the event is missing or wrong',
			'Its producer must be mended.');
	END IF;
	SELECT * INTO s FROM concert.seat AS x WHERE x.seat_id = seat;
	why := concert.misfit(s, seat, concert.number(p -> 'schedule_id'), concert.number(p -> 'concert_id'),
		CASE WHEN NOT ends THEN concert.number(p -> 'price') END);
	IF why IS NULL AND s.claim_no = claim AND s.reservation_id <> reservation THEN
		why := concert.stale(s, claim, reservation);
	END IF;
	IF why IS NOT NULL AND status = 'HELD' THEN
		PERFORM concert.refuse_seat(p, p -> 'concert_id', NULL, why);
	ELSIF why IS NOT NULL OR claim < s.claim_no OR claim = s.claim_no AND s.released AND NOT ends THEN
		PERFORM concert.ignore(m, seat, claim, coalesce(why, concert.stale(s, claim, reservation)));
	ELSIF ends THEN
		PERFORM concert.change(seat, claim, reservation, 'RELEASE');
	ELSIF status IN ('HELD', 'PAID', 'CONFIRMED') THEN
		PERFORM concert.change(seat, claim, reservation, CASE status WHEN 'CONFIRMED' THEN status ELSE 'HELD' END,
			version => concert.number(p -> 'version'));
	ELSE
		PERFORM concert.ignore(m, seat, claim, 'no state of a reservation that is known here');
	END IF;
END
$$;

-- The seats that a message names, in the order of their ids, each once. NULL members: missing or wrong.
CREATE OR REPLACE FUNCTION concert.named(seats jsonb)
RETURNS TABLE (seat_id bigint, claim_no bigint, reservation_id uuid, schedule_id bigint, concert_id bigint, price bigint, v jsonb)
LANGUAGE sql IMMUTABLE AS $$
	SELECT DISTINCT ON (1) concert.number(e -> 'seat_id'), concert.number(e -> 'claim_no'), service.uuid_of(e ->> 'reservation_id'),
		concert.number(e -> 'schedule_id'), concert.number(e -> 'concert_id'), concert.number(e -> 'price'), e
	FROM jsonb_array_elements(CASE jsonb_typeof(seats) WHEN 'array' THEN seats ELSE '[]' END) AS e ORDER BY 1
$$;

-- Why the seats cannot be taken, and what was said of the first that cannot; NULL: all of them can.
CREATE OR REPLACE FUNCTION concert.refusal(seats jsonb, concert jsonb, schedule jsonb, OUT why text, OUT v jsonb)
LANGUAGE plpgsql STABLE AS $$
BEGIN
	IF jsonb_typeof(seats) IS DISTINCT FROM 'array' OR jsonb_array_length(seats) NOT BETWEEN 1 AND 1000 THEN
		why := 'seats is no list of 1 to 1000 seats';
		RETURN;
	END IF;
	SELECT r.why, r.v INTO why, v FROM (
		SELECT n.v, CASE
			WHEN n.seat_id IS NULL OR n.claim_no IS NULL OR n.claim_no = 0 OR n.reservation_id IS NULL
				THEN 'seats: seat_id, claim_no or reservation_id is missing or wrong'
			ELSE coalesce(concert.misfit(s, n.seat_id, coalesce(n.schedule_id, concert.number(schedule)),
				coalesce(n.concert_id, concert.number(concert)), n.price), concert.stale(s, n.claim_no, n.reservation_id)) END AS why
		FROM concert.named(seats) AS n LEFT JOIN concert.seat AS s ON s.seat_id = n.seat_id) AS r
	WHERE r.why IS NOT NULL ORDER BY r.why LIMIT 1;
END
$$;

-- What an undo has to know of these seats as they are now; what they cost; the concert that they are of.
CREATE OR REPLACE FUNCTION concert.effect(seats jsonb, OUT effect jsonb, OUT price bigint, OUT concert bigint)
LANGUAGE plpgsql STABLE AS $$
BEGIN
	SELECT jsonb_build_object('seats', jsonb_agg(jsonb_build_object('seat_id', n.seat_id, 'claim_no', n.claim_no,
		'reservation_id', n.reservation_id, 'prior', s.state, 'reserved_by', s.reserved_by))), sum(s.price), min(s.concert_id)
	INTO effect, price, concert FROM concert.named(seats) AS n JOIN concert.seat AS s ON s.seat_id = n.seat_id;
END
$$;

-- PaymentCompleted of a hybrid payment: its seats become RESERVED, or its reservations and money must go back. Through
-- the barrier, so that an undo (UnreserveSeat, step CONCERT) knows. Returns the concert whose status is to be told.
CREATE OR REPLACE FUNCTION concert.on_payment(m inbox.message) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	p jsonb := m.payload;
	payment uuid := service.uuid_of(p ->> 'payment_id');
	refused record;
	e record;
	n record;
BEGIN
	IF p ->> 'mode' IS DISTINCT FROM 'hybrid' THEN
		RETURN NULL;
	END IF;
	IF payment IS NULL THEN
		PERFORM concert.refuse_arguments('payment_id of the event is missing or wrong', 'Its producer must be mended.');
	END IF;
	IF NOT saga.barrier(payment, 'CONCERT', 'do', coalesce(m.id, payment), '{"seats": []}') THEN
		RETURN NULL;
	END IF;
	refused := concert.refusal(p -> 'seats', p -> 'concert_id', NULL);
	IF refused.why IS NOT NULL THEN
		PERFORM concert.refuse_seat(coalesce(refused.v, '{}'), p -> 'concert_id', payment, refused.why);
		RETURN NULL;
	END IF;
	e := concert.effect(p -> 'seats');
	PERFORM saga.set_effect(payment, 'CONCERT', e.effect);
	FOR n IN SELECT * FROM concert.named(p -> 'seats') LOOP
		PERFORM concert.change(n.seat_id, n.claim_no, n.reservation_id, 'RESERVE', payment, payment => payment);
	END LOOP;
	RETURN e.concert;
END
$$;

-- ---------------------------------------------------------------- messages: commands

-- HoldSeat and ReserveSeat: all seats or none. Returns the concert whose status is to be told, as the others below do.
CREATE OR REPLACE FUNCTION concert.take(m inbox.message) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	p jsonb := m.payload;
	refused record := concert.refusal(p -> 'seats', p -> 'concert_id', p -> 'schedule_id');
	saga uuid := saga.header_uuid(m.headers, 'saga-id');
	e record;
	n record;
BEGIN
	IF refused.why IS NOT NULL THEN
		PERFORM saga.refuse(m, refused.why);
		RETURN NULL;
	END IF;
	e := concert.effect(p -> 'seats');
	PERFORM saga.set_effect(m, e.effect);
	FOR n IN SELECT * FROM concert.named(p -> 'seats') LOOP
		PERFORM concert.change(n.seat_id, n.claim_no, n.reservation_id, CASE m.type WHEN 'HoldSeat' THEN 'HELD' ELSE 'RESERVE' END, saga);
	END LOOP;
	PERFORM saga.done(m, jsonb_build_object('price', e.price));
	RETURN CASE m.type WHEN 'ReserveSeat' THEN e.concert END;
END
$$;

-- ReleaseSeat and UnreserveSeat. As an undo what the do recorded, and of a payment only what is still its own; as a
-- step of its own (a sale is cancelled) the seats that it names. A claim that is no longer the seat's has nothing to give.
CREATE OR REPLACE FUNCTION concert.give_back(m inbox.message) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	undo boolean := m.headers ->> 'saga-op' = 'undo';
	seats jsonb := CASE WHEN undo THEN saga.effect(m) -> 'seats' ELSE m.payload -> 'seats' END;
	n record;
	at bigint;
BEGIN
	IF NOT undo THEN
		IF jsonb_typeof(seats) IS DISTINCT FROM 'array' OR jsonb_array_length(seats) NOT BETWEEN 1 AND 1000 OR EXISTS (
			SELECT FROM concert.named(seats) AS x LEFT JOIN concert.seat AS s ON s.seat_id = x.seat_id
			WHERE s.seat_id IS NULL OR x.claim_no IS NULL) THEN
			PERFORM saga.refuse(m, 'seats is no list of 1 to 1000 seats, each with claim_no');
			RETURN NULL;
		END IF;
		PERFORM saga.set_effect(m, (concert.effect(seats)).effect);
	END IF;
	FOR n IN SELECT x.*, s.claim_no AS current, s.concert_id AS of FROM concert.named(seats) AS x
		JOIN concert.seat AS s ON s.seat_id = x.seat_id ORDER BY x.seat_id LOOP
		at := n.of;
		IF n.current = n.claim_no THEN
			PERFORM concert.change(n.seat_id, n.claim_no, n.reservation_id,
				CASE m.type WHEN 'ReleaseSeat' THEN 'RELEASE' ELSE 'UNRESERVE' END,
				CASE WHEN undo THEN saga.header_uuid(m.headers, 'saga-id') END);
		END IF;
	END LOOP;
	PERFORM saga.done(m);
	RETURN CASE m.type WHEN 'UnreserveSeat' THEN at END;
END
$$;

-- The undo of an UnreserveSeat that was a step of its own: what was reserved is so again, where the claim has the seat yet.
CREATE OR REPLACE FUNCTION concert.take_again(m inbox.message) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	n record;
	at bigint;
BEGIN
	FOR n IN SELECT x.*, s.claim_no AS current, s.concert_id AS of, x.v ->> 'prior' AS prior, service.uuid_of(x.v ->> 'reserved_by') AS payer
		FROM concert.named(saga.effect(m) -> 'seats') AS x JOIN concert.seat AS s ON s.seat_id = x.seat_id ORDER BY x.seat_id LOOP
		at := n.of;
		IF n.current = n.claim_no AND n.prior = 'RESERVED' THEN
			PERFORM concert.change(n.seat_id, n.claim_no, n.reservation_id, 'RESERVE',
				coalesce(n.payer, saga.header_uuid(m.headers, 'saga-id')));
		END IF;
	END LOOP;
	PERFORM saga.done(m);
	RETURN at;
END
$$;

-- The status is never put back but derived: UpdateConcertStatus and RestoreConcertStatus do the same.
CREATE OR REPLACE FUNCTION concert.update_status(m inbox.message) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	id bigint := concert.number(m.payload -> 'concert_id');
BEGIN
	IF id IS NULL OR NOT EXISTS (SELECT FROM concert.concert AS c WHERE c.concert_id = id) THEN
		IF m.headers ->> 'saga-op' = 'undo' THEN
			PERFORM saga.done(m);
		ELSE
			PERFORM saga.refuse(m, 'there is no such concert');
		END IF;
		RETURN NULL;
	END IF;
	PERFORM saga.done(m, jsonb_build_object('status', concert.derive(id)));
	RETURN id;
END
$$;

CREATE OR REPLACE FUNCTION concert.on_command(m inbox.message) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	undo boolean := m.headers ->> 'saga-op' = 'undo';
BEGIN
	IF NOT coalesce(m.headers, '{}') ? 'saga-id' THEN
		PERFORM concert.refuse_arguments(format('a command %s outside of a saga', outbox.shown(m.type)), 'Its headers say whose it is.');
	END IF;
	IF NOT saga.barrier(m) THEN
		RETURN NULL;
	END IF;
	CASE
	WHEN m.type IN ('HoldSeat', 'ReserveSeat') AND NOT undo THEN
		RETURN concert.take(m);
	WHEN m.type = 'ReserveSeat' THEN
		RETURN concert.take_again(m);
	WHEN m.type IN ('ReleaseSeat', 'UnreserveSeat') THEN
		RETURN concert.give_back(m);
	WHEN m.type IN ('UpdateConcertStatus', 'RestoreConcertStatus') THEN
		RETURN concert.update_status(m);
	ELSE
		PERFORM saga.refuse(m, format('the concert service knows no command %s', left(m.type, 60)));
		RETURN NULL;
	END CASE;
END
$$;

-- ---------------------------------------------------------------- the status, and the batch

-- SOLD_OUT when no seat is other than RESERVED. The caller has the concert's lock: whoever reserves or gives back a seat
-- meanwhile waits for it, and derives it after us.
CREATE OR REPLACE FUNCTION concert.derive(id bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN CASE WHEN EXISTS (SELECT FROM concert.seat AS s WHERE s.concert_id = id AND s.state <> 'RESERVED')
		THEN 'AVAILABLE' ELSE 'SOLD_OUT' END;
END
$$;

-- Sets the status when another one is derived; tells it for each of the messages that did something, or else once
-- when it has changed. told: places in messages.
CREATE OR REPLACE FUNCTION concert.settle(id bigint, messages inbox.message[], told integer[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	now_status text := concert.derive(id);
	place integer;
	free bigint;
BEGIN
	UPDATE concert.concert AS c SET status = now_status, version = c.version + 1
	WHERE c.concert_id = id AND c.status <> now_status;
	IF FOUND AND cardinality(told) = 0 THEN
		told := ARRAY[cardinality(messages)];
	END IF;
	IF cardinality(told) = 0 THEN
		RETURN;
	END IF;
	SELECT sum(concert.free_seats(s.schedule_id)) INTO free FROM concert.concert_schedule AS s WHERE s.concert_id = id;
	FOREACH place IN ARRAY told LOOP
		PERFORM inbox.carry(messages[place]);
		PERFORM outbox.publish('concert', id::text, 'ConcertStatusUpdated',
			jsonb_build_object('concert_id', id::text, 'status', now_status, 'free_seats', coalesce(free, 0)));
	END LOOP;
END
$$;

-- The function of the consumer: topics outbox.command.concert, outbox.event.reservation, outbox.event.payment. On the
-- events' topics what is not for us passes by. All below it goes by ids: the planner, who takes a list in JSON for a hundred
-- rows, would read all seats of a small hall for it.
CREATE OR REPLACE FUNCTION concert.on_messages(messages inbox.message[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
	seats bigint[];
	concerts bigint[];
	told bigint[];	-- of each message the concert whose status it has to tell
	m inbox.message;
	id bigint;
BEGIN
	SELECT array_agg(DISTINCT w.seat) INTO seats FROM unnest(messages) AS x,
		LATERAL (SELECT concert.number(x.payload -> 'seat_id') AS seat WHERE x.type = 'ReservationUpdated'
			UNION ALL SELECT n.seat_id FROM concert.named(x.payload -> 'seats') AS n
			UNION ALL SELECT n.seat_id FROM concert.named(CASE WHEN x.headers ->> 'saga-op' = 'undo'
				THEN saga.effect(x) END -> 'seats') AS n) AS w
	WHERE w.seat IS NOT NULL;
	SELECT array_agg(DISTINCT c.id) INTO concerts FROM (
		SELECT s.concert_id AS id FROM concert.seat AS s WHERE s.seat_id = ANY (seats)
		UNION SELECT concert.number(x.payload -> 'concert_id') FROM unnest(messages) AS x	-- of a seat that is not there too
		WHERE x.type LIKE '%ConcertStatus' OR x.type = 'ReservationUpdated' OR x.payload ->> 'mode' = 'hybrid') AS c;
	PERFORM FROM concert.concert AS c WHERE c.concert_id = ANY (concerts) ORDER BY c.concert_id FOR NO KEY UPDATE;
	PERFORM FROM concert.seat AS s WHERE s.seat_id = ANY (seats) ORDER BY s.seat_id FOR NO KEY UPDATE;
	FOREACH m IN ARRAY messages LOOP
		id := NULL;
		PERFORM inbox.carry(m);
		IF m.topic LIKE 'outbox.command.%' OR m.headers ? 'saga-op' THEN
			id := concert.on_command(m);
		ELSIF m.type = 'ReservationUpdated' THEN
			PERFORM concert.on_reservation(m);
		ELSIF m.type = 'PaymentCompleted' THEN
			id := concert.on_payment(m);
		END IF;
		told := told || id;
	END LOOP;
	FOR id IN SELECT c.concert_id FROM concert.concert AS c WHERE c.concert_id = ANY (concerts) ORDER BY c.concert_id LOOP
		PERFORM concert.settle(id, messages, ARRAY(SELECT t.n::integer FROM unnest(told) WITH ORDINALITY AS t (concert_id, n)
			WHERE t.concert_id = id ORDER BY t.n));
	END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION concert.on_message(m inbox.message) RETURNS void LANGUAGE sql AS $$
	SELECT concert.on_messages(ARRAY[m])
$$;

-- Forgets what was ignored long ago, and hours that no window reaches; a bounded number at a time.
CREATE OR REPLACE FUNCTION concert.forget(keep interval) RETURNS void LANGUAGE sql AS $$
	DELETE FROM concert.ignored WHERE entry IN (SELECT i.entry FROM concert.ignored AS i WHERE i.at < now() - keep
		ORDER BY i.at LIMIT 5000 FOR UPDATE SKIP LOCKED);
	DELETE FROM concert.sold WHERE (hour, concert_id) IN (SELECT s.hour, s.concert_id FROM concert.sold AS s
		WHERE s.hour < now() - interval '100 days' ORDER BY s.hour LIMIT 5000 FOR UPDATE SKIP LOCKED);
$$;
