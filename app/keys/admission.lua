-- Requests at the door: whether their keys are known, and whether their rates have room for them.
--
-- KEYS: for each request the hash of keys; the caller's rate; the caller's quota of today
-- ARGV: for each the key's id, empty where keys are switched off; its digest, empty where a signature stands for the key;
--       then what counts where keys are switched off: requests a minute, audio seconds a day. 0: no limit.
-- Returns for each nothing for a key that is not known, else
--   priority, rate, requests left (-1: no limit), microseconds until one is allowed (0: this one is),
--   microseconds until the rate is as if nobody had asked, quota, audio seconds used today, seconds left of today

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function admit(records, rates, quotas, key_id, digest, open_rate, open_quota)
  local priority, rate, quota = 1, tonumber(open_rate), tonumber(open_quota)
  if key_id ~= '' then
    local record = redis.call('HGET', records, key_id)
    if not record then return {} end
    local key = cjson.decode(record)
    if digest ~= '' and digest ~= key.digest then return {} end
    priority, rate, quota = key.priority, key.rate, key.audio_seconds
  end

  -- The generic cell rate algorithm: all that is kept is when the caller will have its whole minute's worth again.
  local left, wait, reset = -1, 0, 0
  if rate > 0 then
    local minute = 60000000
    local each = minute / rate
    local whole = math.max(now, tonumber(redis.call('GET', rates) or now))
    wait = math.max(0, math.ceil(whole + each - minute - now))
    if wait == 0 then
      whole = whole + each
      redis.call('SET', rates, string.format('%.0f', whole), 'PX', math.ceil((whole - now) / 1000) + 1)
    end
    left = math.max(0, math.floor((now + minute - whole) / each + 1e-6))
    reset = math.ceil(whole - now)
  end

  local used = 0
  if quota > 0 then
    local today = redis.call('HMGET', quotas, 'day', 'used')
    if tonumber(today[1]) == math.floor(clock[1] / 86400) then used = tonumber(today[2]) end
  end
  return {priority, rate, left, wait, reset, quota, string.format('%.3f', used), 86400 - clock[1] % 86400}
end

local told = {}
for number = 0, #KEYS / 3 - 1 do
  local keys, args = 3 * number, 4 * number
  local well, answer = pcall(
    admit, KEYS[keys + 1], KEYS[keys + 2], KEYS[keys + 3], ARGV[args + 1], ARGV[args + 2], ARGV[args + 3], ARGV[args + 4]
  )
  -- One damaged record must not close the door to others.
  told[number + 1] = well and answer or {err = 'ERR ' .. (type(answer) == 'table' and answer.err or tostring(answer))}
end
return told
