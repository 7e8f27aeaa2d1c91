#!lua flags=allow-oom
-- Charges audio seconds to a caller's day (UTC), refunds them, or corrects an earlier charge; and counts them as usage.
--
-- KEYS: the caller's quota of today; what the keys of its usage begin with; the call, which counts once though it may be
--       sent again after a lost reply
-- ARGV: seconds, may be negative; the quota, 0: none; for a correction the day of the charge, else empty; seconds that a
--       day of usage is kept
-- Returns 1 or 0 (the quota does not suffice), seconds used today, today

local day = math.floor(redis.call('TIME')[1] / 86400)
local seconds, quota, charged_on = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local today = redis.call('HMGET', KEYS[1], 'day', 'used')
local has_quota_of_today = tonumber(today[1]) == day
local used = has_quota_of_today and tonumber(today[2]) or 0
if redis.call('EXISTS', KEYS[3]) == 1 then return {1, string.format('%.3f', used), day} end
if not charged_on and quota > 0 and used + seconds > quota then return {0, string.format('%.3f', used), day} end
redis.call('SET', KEYS[3], 1, 'EX', 120)

local usage = KEYS[2] .. (charged_on or day)
redis.call('HINCRBYFLOAT', usage, 'audio_seconds', ARGV[1])
redis.call('EXPIRE', usage, ARGV[4])

-- Without a quota, or on another day, there is no charge to correct.
local is_charged = not charged_on and quota > 0 or charged_on == day and has_quota_of_today
if is_charged then
  used = math.max(0, used + seconds)
  redis.call('HSET', KEYS[1], 'day', day, 'used', string.format('%.3f', used))
  redis.call('EXPIRE', KEYS[1], 172800)
end
return {1, string.format('%.3f', used), day}
