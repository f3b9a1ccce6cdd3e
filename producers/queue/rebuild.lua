-- One step of the rebuild. Only who began the last one goes on: another one who stood still meanwhile does no harm.
-- KEYS: builder, epoch, concerts. ARGV: builder's name, prefix, step; then
--   begin: the epoch ends; then everything under our prefix is deleted, by the builder
--   delete: keys
--   concert: concert, counter, slot, taken, period, admitted, last
--   waiting: concert, then of each number, planned (us)
--   end: mark
local step, prefix = ARGV[3], ARGV[2]
if step == 'begin' then
	redis.call('SET', KEYS[1], ARGV[1])
	redis.call('DEL', KEYS[2])
	return 1
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
	return redis.error_reply('EPOCH another one rebuilds')
end
if step == 'delete' then
	for i = 4, #ARGV do
		if ARGV[i] ~= KEYS[1] then
			redis.call('UNLINK', ARGV[i])
		end
	end
elseif step == 'concert' then
	redis.call('SET', prefix .. ARGV[4] .. ':number', ARGV[5])
	redis.call('HSET', prefix .. ARGV[4] .. ':plan', 'slot', ARGV[6], 'taken', ARGV[7], 'period', ARGV[8],
		'admitted', ARGV[9], 'last', ARGV[10])
elseif step == 'waiting' then
	local waiting = prefix .. ARGV[4] .. ':waiting'
	redis.call('SADD', KEYS[3], ARGV[4])
	for i = 5, #ARGV, 2 do
		redis.call('ZADD', waiting, ARGV[i + 1], string.format('%012d', ARGV[i]))
	end
else
	redis.call('SET', KEYS[2], ARGV[4])
	redis.call('DEL', KEYS[1])
end
return 1
