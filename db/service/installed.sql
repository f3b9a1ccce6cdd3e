INSERT INTO service.installed (number, sha256) VALUES ($1::integer, $2)
ON CONFLICT (number) DO UPDATE SET sha256 = excluded.sha256, applied_at = now()
