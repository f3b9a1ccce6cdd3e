-- Whose turn it is: of a concert's waiting those whose planned time has come, the first ones first, as many as this
-- period still lets in. They are kept as a batch until Postgres has it (settle.lua), so that nobody falls through when
-- the process dies that admitted them.
-- KEYS: epoch, waiting, plan, batch, batches, concerts. ARGV: mark, users, every (us), most, concert, name of the batch.
-- Gives the numbers, "17,18,21"; '' when it is nobody's turn.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
	return redis.error_reply('EPOCH another one is in force')
end
local time = redis.call('TIME')
local now, users, every = time[1] * 1000000 + time[2], tonumber(ARGV[2]), tonumber(ARGV[3])
local plan = redis.call('HMGET', KEYS[3], 'period', 'admitted', 'last')
local period = math.floor(now / every) * every
local admitted = tonumber(plan[1]) == period and tonumber(plan[2]) or 0
local room = math.min(users - admitted, tonumber(ARGV[4]))
if room <= 0 then
	return ''
end
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, room)
if #due == 0 then
	if redis.call('EXISTS', KEYS[2]) == 0 then
		redis.call('SREM', KEYS[6], ARGV[5])
	end
	return ''
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, #due - 1)
local numbers = table.concat(due, ',')
redis.call('SET', KEYS[4], numbers)
redis.call('ZADD', KEYS[5], string.format('%.0f', now), ARGV[6])
redis.call('HSET', KEYS[3], 'period', string.format('%.0f', period), 'admitted', admitted + #due,
	'last', math.max(tonumber(plan[3]) or 0, tonumber(due[#due])))
return numbers
