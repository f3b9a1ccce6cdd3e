INSERT INTO sink.watermark AS w (group_name, topic, partition, watermark)
VALUES ($1, $2, $3::int, 'epoch'::timestamptz + $4::bigint * interval '1 microsecond')
ON CONFLICT (group_name, topic, partition) DO UPDATE SET watermark = greatest(w.watermark, EXCLUDED.watermark)
