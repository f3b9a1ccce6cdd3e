-- A batch that Postgres has: it is no longer owed, and everybody hears of it.
-- KEYS: epoch, seq, log, batch, batches. ARGV: mark, entries kept, name of the batch; then of each group concert, state,
-- version, expires (us), numbers ("1-900,902").
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
	return redis.error_reply('EPOCH another one is in force')
end
for i = 4, #ARGV, 5 do
	redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], redis.call('INCR', KEYS[2]) .. '-0',
		'c', ARGV[i], 's', ARGV[i + 1], 'v', ARGV[i + 2], 'e', ARGV[i + 3], 'n', ARGV[i + 4])
end
redis.call('DEL', KEYS[4])
redis.call('ZREM', KEYS[5], ARGV[3])
return 1
