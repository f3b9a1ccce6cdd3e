-- Schema canary: events that only prove the way. Run whole when its text has changed: all of it may be run again. Written by
-- consumers of kind canary only. A bird is written beside its event, in one transaction; it is back when a lane of its group
-- has handled that event. Both times are this server's, so they can be compared. Lock order: the group's advisory lock, then
-- birds; lanes take birds only.
CREATE SCHEMA IF NOT EXISTS canary;

CREATE TABLE IF NOT EXISTS canary.bird (
	id         uuid PRIMARY KEY,
	"group"    text COLLATE "C" NOT NULL,
	written_at timestamptz NOT NULL,
	back_at    timestamptz,
	told       boolean NOT NULL DEFAULT false
);
CREATE INDEX IF NOT EXISTS bird_written ON canary.bird ("group", written_at);

-- Another group's birds, and those that are forgotten, are stepped over.
CREATE OR REPLACE FUNCTION canary.came_back(messages inbox.message[], flock text) RETURNS void LANGUAGE sql AS $$
	UPDATE canary.bird AS b SET back_at = clock_timestamp()
	FROM unnest(messages) AS m WHERE b.id = m.id AND b."group" = flock AND b.back_at IS NULL
$$;

-- One look of one member: took, the seconds of each bird that came back and that nobody told yet; age, since the newest that is
-- back was written; missing, those that are late, and the first of them. Writes the next bird when it is due. Sixteen keys: all
-- partitions of a usual topic, and never more keys than that to be held back.
CREATE OR REPLACE FUNCTION canary.look(flock text, every interval, late interval, OUT took float8[], OUT age float8,
	OUT missing bigint, OUT first_missing uuid) LANGUAGE plpgsql AS $$
DECLARE
	now timestamptz;
	newest timestamptz;
	last timestamptz;
	bird uuid := outbox.uuid7();
BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended('canary ' || flock, 0));
	now := clock_timestamp();
	WITH new AS (UPDATE canary.bird AS b SET told = true WHERE b."group" = flock AND b.back_at IS NOT NULL AND NOT b.told
		RETURNING extract(epoch FROM b.back_at - b.written_at)::float8 AS s)
	SELECT coalesce(array_agg(n.s), '{}') INTO took FROM new AS n;
	SELECT max(b.written_at) FILTER (WHERE b.back_at IS NOT NULL), max(b.written_at),
		extract(epoch FROM now - coalesce(max(b.written_at) FILTER (WHERE b.back_at IS NOT NULL), min(b.written_at), now))::float8,
		count(*) FILTER (WHERE b.back_at IS NULL AND b.written_at < now - late)
	INTO newest, last, age, missing FROM canary.bird AS b WHERE b."group" = flock;
	IF missing > 0 THEN
		SELECT b.id INTO first_missing FROM canary.bird AS b WHERE b."group" = flock AND b.back_at IS NULL ORDER BY b.written_at LIMIT 1;
	END IF;
	-- What never came is forgotten a day after a younger one did.
	DELETE FROM canary.bird AS b WHERE b."group" = flock
		AND b.written_at < newest - CASE WHEN b.told THEN interval '0' ELSE interval '1 day' END;
	IF last IS NULL OR last <= now - every THEN
		INSERT INTO canary.bird (id, "group", written_at) VALUES (bird, flock, now);
		PERFORM outbox.publish('canary', 'canary-' || floor(random() * 16), 'Canary',
			jsonb_build_object('group', flock, 'written_at', now), id => bird);
	END IF;
END
$$;
