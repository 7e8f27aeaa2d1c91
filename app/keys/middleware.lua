-- Requests at the door: whether their keys are known, whether their rates have room for them, and what polls look at.
--
-- KEYS: for each request the hash of keys; the caller's rate; the caller's quota of today; for polls the
--       record and the waiting jobs among which it may be, else empty
-- ARGV: for each the key's id, empty where keys are switched off; its digest, empty where a signature stands for the key;
--       then what counts where keys are switched off: requests a minute, audio seconds a day. 0: no limit;
--       for polls the job's id, else empty
-- Returns for each nothing for a key that is not known, else
--   priority, rate, requests left (-1: no limit), microseconds until one is allowed (0: this one is),
--   microseconds until the rate is as if nobody had asked, quota, audio seconds used today, seconds left of today,
--   and for polls that are let in the record and its rank, either of which may be nothing

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function admit(records, rates, quotas, job, line, key_id, digest, open_rate, open_quota, job_id)
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

  -- A list ends at its first nil; false is nothing, too.
  local record, rank = false, false
  if job_id ~= '' and wait == 0 then
    record = redis.call('GET', job)
    rank = line ~= '' and redis.call('ZRANK', line, job_id)
  end
  local day_left = 86400 - clock[1] % 86400
  return {priority, rate, left, wait, reset, quota, string.format('%.3f', used), day_left, record, rank}
end

local told = {}
for number = 0, #KEYS / 5 - 1 do
  local first, last = 5 * number + 1, 5 * number + 5
  local given = {unpack(KEYS, first, last)}
  for place = first, last do given[#given + 1] = ARGV[place] end
  local well, answer = pcall(admit, unpack(given))
  -- One damaged record must not close the door to others.
  told[number + 1] = well and answer or {err = 'ERR ' .. (type(answer) == 'table' and answer.err or tostring(answer))}
end
return told
