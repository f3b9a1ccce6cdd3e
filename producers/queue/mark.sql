INSERT INTO queue.epoch AS e (mark) VALUES ($1) ON CONFLICT (one) DO UPDATE SET mark = excluded.mark, since = now()
