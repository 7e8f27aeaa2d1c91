-- Charges audio seconds to a caller's day (UTC), or gives them back.
--
-- KEYS: the caller's quota of today
-- ARGV: seconds, negative to give back; the quota; the day that they were charged to when giving back, else empty
-- Returns 1 or 0 (there is no room for them), seconds used today, today

local day = math.floor(redis.call('TIME')[1] / 86400)
local today = redis.call('HMGET', KEYS[1], 'day', 'used')
local used = 0
if tonumber(today[1]) == day then used = tonumber(today[2]) end
local seconds = tonumber(ARGV[1])
local allowed = 1
if seconds < 0 then
  if tonumber(ARGV[3]) ~= day then seconds = 0 end
elseif used + seconds > tonumber(ARGV[2]) then
  allowed, seconds = 0, 0
end
used = math.max(0, used + seconds)
redis.call('HSET', KEYS[1], 'day', day, 'used', string.format('%.3f', used))
redis.call('EXPIRE', KEYS[1], 172800)
return {allowed, string.format('%.3f', used), day}
