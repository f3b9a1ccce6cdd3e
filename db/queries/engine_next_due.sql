-- When the next timer of these parts fires, in microseconds from now; NULL: none does
SELECT (extract(epoch FROM saga.next_due($1) - pg_catalog.clock_timestamp()) * 1000000)::bigint
