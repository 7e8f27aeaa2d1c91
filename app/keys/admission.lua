-- One request at the door: whether its key is known, and whether its rate has room for it.
--
-- KEYS: the hash of keys; the caller's rate; the caller's quota of today
-- ARGV: the key's id, empty where keys are switched off; its digest, empty where a signature stands for the key;
--       then what counts where keys are switched off: requests a minute, audio seconds a day. 0: no limit.
-- Returns nothing for a key that is not known, else
--   record, rate, requests left (-1: no limit), microseconds until one is allowed (0: this one is),
--   microseconds until the rate is as if nobody had asked, quota, audio seconds used today, seconds left of today

local record, rate, quota = '', tonumber(ARGV[3]), tonumber(ARGV[4])
if ARGV[1] ~= '' then
  record = redis.call('HGET', KEYS[1], ARGV[1])
  if not record then return {} end
  local key = cjson.decode(record)
  if ARGV[2] ~= '' and ARGV[2] ~= key.digest then return {} end
  rate, quota = key.rate, key.audio_seconds
end

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- The generic cell rate algorithm: all that is kept is when the caller will have its whole minute's worth again.
local left, wait, reset = -1, 0, 0
if rate > 0 then
  local minute = 60000000
  local each = minute / rate
  local whole = math.max(now, tonumber(redis.call('GET', KEYS[2]) or now))
  wait = math.max(0, math.ceil(whole + each - minute - now))
  if wait == 0 then
    whole = whole + each
    redis.call('SET', KEYS[2], string.format('%.0f', whole), 'PX', math.ceil((whole - now) / 1000) + 1)
  end
  left = math.max(0, math.floor((now + minute - whole) / each + 1e-6))
  reset = math.ceil(whole - now)
end

local used = 0
if quota > 0 then
  local today = redis.call('HMGET', KEYS[3], 'day', 'used')
  if tonumber(today[1]) == math.floor(clock[1] / 86400) then used = tonumber(today[2]) end
end
return {record, rate, left, wait, reset, quota, string.format('%.3f', used), 86400 - clock[1] % 86400}
