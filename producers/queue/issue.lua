-- The next number of a concert and the time that is planned for it: users at a time, every so often.
-- KEYS: epoch, counter, plan. ARGV: mark, users, every (us). Gives number, planned time (us), numbers before it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
	return redis.error_reply('EPOCH another one is in force')
end
local time = redis.call('TIME')
local now, users, every = time[1] * 1000000 + time[2], tonumber(ARGV[2]), tonumber(ARGV[3])
local number = redis.call('INCR', KEYS[2])
local plan = redis.call('HMGET', KEYS[3], 'slot', 'taken', 'last')
local current = math.floor(now / every) * every
local slot, taken = tonumber(plan[1]) or current, tonumber(plan[2]) or 0
if slot < current then
	slot, taken = current, 0
end
if taken >= users then
	slot, taken = slot + every, 0
end
redis.call('HSET', KEYS[3], 'slot', string.format('%.0f', slot), 'taken', taken + 1)
local planned = math.max(slot, now)
return { number, string.format('%.0f', planned), math.max(number - (tonumber(plan[3]) or 0), 1) }
