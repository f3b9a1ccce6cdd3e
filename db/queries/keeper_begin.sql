-- Notes how long the group needs its ids ($2 and the horizon $3 in microseconds), and says since when they are all
-- there when that is not long enough: the group is older than that, and a message within the horizon may come again.
SELECT to_char(k.since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
FROM inbox.keep($1, $2::bigint * interval '1 microsecond') AS k (since)
JOIN inbox.consumer AS c ON c."group" = $1
WHERE k.since > now() - $3::bigint * interval '1 microsecond' AND k.since > c.made_at
