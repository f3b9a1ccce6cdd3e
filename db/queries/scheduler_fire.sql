SELECT f.fired, f.last_at, f.last_id FROM scheduler.fire($1, $2, $3) AS f
