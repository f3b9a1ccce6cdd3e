SELECT a.alert_id, a.state, a.times, a.sent, extract(epoch FROM clock_timestamp() - a.first_at), push.rfc3339(a.first_at), push.rfc3339(a.last_at),
	a.cause, a.command, push.rfc3339(a.sent_at), a.last_error, a.detail::text
FROM push.admin_alert AS a WHERE a.alert_id = $1
