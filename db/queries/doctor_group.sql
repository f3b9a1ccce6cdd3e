-- What a consumer group holds back and gave up on. $1: how commands name the target, $2: the group, $3: the same for the consumer itself.
SELECT 'warn', format('group %s has not run on this database yet', $2::text), 'postrider-consumer ' || $3::text
WHERE NOT EXISTS (SELECT FROM inbox.consumer AS c WHERE c."group" = $2::text)
UNION ALL
SELECT 'warn', format('the group is paused since %s, by %s', to_char(c.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), c.paused_by),
	'postrider resume ' || $1::text
FROM inbox.consumer AS c WHERE c."group" = $2::text AND c.paused_at IS NOT NULL
UNION ALL
SELECT CASE WHEN v.parked_events > 0 THEN 'warn' ELSE 'ok' END,
	CASE WHEN v.parked_events > 0 THEN format('%s message%s of %s key%s held back', v.parked_events, CASE v.parked_events WHEN 1 THEN '' ELSE 's' END,
		v.parked_keys, CASE v.parked_keys WHEN 1 THEN ' is' ELSE 's are' END) ELSE 'no message is held back' END,
	CASE WHEN v.parked_events > 0 THEN 'postrider parked list ' || $1::text END
FROM inbox.overview AS v WHERE v."group" = $2::text
UNION ALL
SELECT CASE WHEN v.dead_letters > 0 THEN 'warn' ELSE 'ok' END,
	CASE WHEN v.dead_letters > 0 THEN format('%s dead letter%s for a decision', v.dead_letters, CASE v.dead_letters WHEN 1 THEN ' waits' ELSE 's wait' END)
		ELSE 'no dead letter waits' END,
	CASE WHEN v.dead_letters > 0 THEN 'postrider dlq list ' || $1::text END
FROM inbox.overview AS v WHERE v."group" = $2::text
