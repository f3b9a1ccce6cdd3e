-- Batches that were admitted a while ago and are still owed: their process is gone, or slow. Whoever asks takes them on.
-- KEYS: epoch, batches. ARGV: mark, prefix, age (us). Gives name, numbers, name, numbers, ...
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
	return redis.error_reply('EPOCH another one is in force')
end
local time = redis.call('TIME')
local before = string.format('%.0f', time[1] * 1000000 + time[2] - tonumber(ARGV[3]))
local names, found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'LIMIT', 0, 16), {}
for _, name in ipairs(names) do
	found[#found + 1] = name
	found[#found + 1] = redis.call('GET', ARGV[2] .. 'batch:' .. name) or ''
end
return found
