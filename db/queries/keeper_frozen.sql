-- Ends backends of this group's lanes (application names that begin with $1) that have waited in the middle of a batch for
-- the rest of it, longer ($2 microseconds) than a batch may take: whoever sent the first half is gone or stands still, and
-- nothing in the server bounds that. Returns their processes.
WITH frozen AS MATERIALIZED (
	SELECT s.pid FROM pg_stat_activity AS s
	WHERE s.datname = current_database() AND s.usename = current_user AND starts_with(s.application_name, $1)
	  AND s.state = 'active' AND s.wait_event = 'ClientRead'
	  AND s.xact_start < clock_timestamp() - $2::bigint * interval '1 microsecond'
)
SELECT f.pid FROM frozen AS f WHERE pg_terminate_backend(f.pid)
