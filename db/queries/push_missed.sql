-- Of one user, behind a place and not above another
SELECT n.user_id, n.place, push.shown(n) FROM push.notification AS n
WHERE n.user_id = $1 AND n.place > $2 AND n.place <= $3 ORDER BY n.place LIMIT 501
