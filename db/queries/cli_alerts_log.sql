SELECT push.rfc3339(l.at), l.what, l.by, l.note FROM push.alert_log AS l WHERE l.alert_id = $1 ORDER BY l.entry DESC LIMIT 200
