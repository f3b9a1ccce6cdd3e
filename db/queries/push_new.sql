SELECT n.user_id, n.place, push.shown(n) FROM push.notification AS n WHERE n.place > $1 ORDER BY n.place LIMIT 500
