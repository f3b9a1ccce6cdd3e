-- What the outbox holds back. $1: how commands name the target, $2: the brokers.
SELECT CASE WHEN l.parked_events > 0 THEN 'warn' ELSE 'ok' END,
	CASE WHEN l.parked_events > 0 THEN format('%s event%s behind %s key%s parked', l.parked_events, CASE l.parked_events WHEN 1 THEN '' ELSE 's' END,
		l.parked_keys, CASE l.parked_keys WHEN 1 THEN ' is' ELSE 's are' END) ELSE 'no event is parked' END,
	CASE WHEN l.parked_events > 0 THEN 'postrider parked list ' || $1 END
FROM outbox.lag AS l
UNION ALL
SELECT 'fail', format('%s event%s for topic %s, which cannot be written to: %s', sum(w.events), CASE sum(w.events) WHEN 1 THEN ' waits' ELSE 's wait' END,
		w.topic, coalesce(max(w.reason), 'it is not there')),
	format('kafka-topics.sh --bootstrap-server %s --create --topic %s', $2::text, w.topic)
FROM outbox.waiting AS w GROUP BY w.topic
UNION ALL
SELECT 'warn', format('the relay is paused since %s, by %s', to_char(r.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), r.paused_by),
	'postrider resume ' || $1
FROM outbox.relay AS r WHERE r.paused_at IS NOT NULL
UNION ALL
SELECT 'warn', format('the oldest event that is not published is %s s old', round(l.lag_seconds::numeric)), 'postrider status ' || $1
FROM outbox.lag AS l WHERE l.lag_seconds > 30
