-- What operators did with one dead letter, oldest first. $1: entry.
SELECT to_char(l.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), l.by, l.what, l.detail
FROM inbox.dead_letter_log AS l WHERE l.entry = $1::bigint ORDER BY l.at
