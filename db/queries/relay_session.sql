-- The relay's reading session: plans that stream by the index on seq, whatever the statistics say, and
-- flushes that do not wait for a synchronous standby.
SELECT set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
	set_config('jit', 'off', false), set_config('max_parallel_workers_per_gather', '0', false),
	set_config('synchronous_commit', 'local', false), set_config('plan_cache_mode', 'force_custom_plan', false)
