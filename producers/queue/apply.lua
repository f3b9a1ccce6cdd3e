-- Changes of tokens that Postgres has committed: who waits is in the sorted set (score: planned time), who does not is
-- not; all of it goes to the log that every process follows. Applying one again does no harm: versions decide in the
-- log, and who is admitted a second time is found in Postgres to be no longer waiting. Who waits again (an undo) must
-- not be taken out by the end that came before: of those the version is kept.
-- KEYS: epoch, seq, log, concerts. ARGV: mark, prefix, entries kept; then of each change concert, number, state,
-- version, expires (us), planned (us).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
	return redis.error_reply('EPOCH another one is in force')
end
for i = 4, #ARGV, 6 do
	local concert, number, state = ARGV[i], ARGV[i + 1], ARGV[i + 2]
	local waiting = ARGV[2] .. concert .. ':waiting'
	local member = string.format('%012d', number)
	if state == 'W' then
		redis.call('ZADD', waiting, ARGV[i + 5], member)
		redis.call('SADD', KEYS[4], concert)
		if tonumber(ARGV[i + 3]) > 1 then
			redis.call('HSET', ARGV[2] .. concert .. ':restored', number, ARGV[i + 3])
		end
	elseif tonumber(redis.call('HGET', ARGV[2] .. concert .. ':restored', number) or 0) < tonumber(ARGV[i + 3]) then
		redis.call('ZREM', waiting, member)
	end
	redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], redis.call('INCR', KEYS[2]) .. '-0',
		'c', concert, 's', state, 'v', ARGV[i + 3], 'e', ARGV[i + 4], 'n', number)
end
return #ARGV
