#!lua flags=allow-oom
-- Charges audio seconds to a caller's day (UTC), refunds them, or corrects an earlier charge.
--
-- KEYS: the caller's quota of today; the call, which counts once though it may be sent again after a lost reply
-- ARGV: seconds, may be negative; the quota; for a correction the day of the charge, else empty
-- Returns 1 or 0 (the quota does not suffice), seconds used today, today

local day = math.floor(redis.call('TIME')[1] / 86400)
local today = redis.call('HMGET', KEYS[1], 'day', 'used')
local used = 0
if tonumber(today[1]) == day then used = tonumber(today[2]) end
local seconds = tonumber(ARGV[1])
if ARGV[3] ~= '' then
  -- Without a quota, or on another day, there is no charge to correct.
  if tonumber(today[1]) ~= day or tonumber(ARGV[3]) ~= day then return {1, string.format('%.3f', used), day} end
elseif used + seconds > tonumber(ARGV[2]) and redis.call('EXISTS', KEYS[2]) == 0 then
  return {0, string.format('%.3f', used), day}
end
if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', 120) then return {1, string.format('%.3f', used), day} end
used = math.max(0, used + seconds)
redis.call('HSET', KEYS[1], 'day', day, 'used', string.format('%.3f', used))
redis.call('EXPIRE', KEYS[1], 172800)
return {1, string.format('%.3f', used), day}
