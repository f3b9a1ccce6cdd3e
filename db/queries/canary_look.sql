SELECT coalesce(array_to_string(l.took, ' '), ''), l.age, l.missing, l.first_missing
FROM canary.look($1, $2::bigint * interval '1 microsecond', $3::bigint * interval '1 microsecond') AS l
