INSERT INTO push.setting AS s (name, value) VALUES ('window', $1), ('configs', $2)
ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value WHERE s.value <> EXCLUDED.value
