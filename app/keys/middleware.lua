#!lua flags=allow-oom
-- Authentication of requests: looks up their keys, applies their rate limits, counts them, and reads what polls will
-- need.
--
-- KEYS: for each request the hash of keys; the caller's rate; the caller's quota of today; what the keys of the
--       caller's usage begin with; for polls the record and the queue of waiting jobs in which it may be, else empty
-- ARGV: for each the key's id, empty where authentication is off; its digest, empty for a signed URL;
--       then the limits where authentication is off: requests a minute, audio seconds a day. 0: no limit;
--       seconds that a day of usage is kept;
--       for polls the job's id, else empty
-- Returns for each nothing for an unknown key, else
--   priority, rate, requests left (-1: no limit), microseconds until a request is allowed (0: this one is),
--   microseconds until all requests of a minute are available again, quota, audio seconds used today,
--   seconds left of today, and for polls that are allowed the record and its rank, either of which may be nil

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function authenticate(
  records, rates, quotas, usage, job, queue, key_id, digest, open_rate, open_quota, retention, job_id
)
  local priority, rate, quota = 1, tonumber(open_rate), tonumber(open_quota)
  if key_id ~= '' then
    local record = redis.call('HGET', records, key_id)
    if not record then return {} end
    local key = cjson.decode(record)
    if digest ~= '' and digest ~= key.digest then return {} end
    priority, rate, quota = key.priority, key.rate, key.audio_seconds
  end

  local day = usage .. math.floor(clock[1] / 86400)
  if redis.call('HINCRBY', day, 'requests', 1) == 1 then redis.call('EXPIRE', day, retention) end

  -- The generic cell rate algorithm: stores only the time at which all requests of a minute are available again.
  local left, wait, reset = -1, 0, 0
  if rate > 0 then
    local minute = 60000000
    local interval = minute / rate
    local full = math.max(now, tonumber(redis.call('GET', rates) or now))
    wait = math.max(0, math.ceil(full + interval - minute - now))
    if wait == 0 then
      full = full + interval
      redis.call('SET', rates, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
    end
    left = math.max(0, math.floor((now + minute - full) / interval + 1e-6))
    reset = math.ceil(full - now)
  end

  local used = 0
  if quota > 0 then
    local today = redis.call('HMGET', quotas, 'day', 'used')
    if tonumber(today[1]) == math.floor(clock[1] / 86400) then used = tonumber(today[2]) end
  end

  -- false and not nil, which would end the array of the reply.
  local record, rank = false, false
  if job_id ~= '' and wait == 0 then
    record = redis.call('GET', job)
    rank = queue ~= '' and redis.call('ZRANK', queue, job_id)
  end
  local day_left = 86400 - clock[1] % 86400
  return {priority, rate, left, wait, reset, quota, string.format('%.3f', used), day_left, record, rank}
end

local replies = {}
for number = 0, #KEYS / 6 - 1 do
  local first, last = 6 * number + 1, 6 * number + 6
  local arguments = {unpack(KEYS, first, last)}
  for index = first, last do arguments[#arguments + 1] = ARGV[index] end
  local ok, reply = pcall(authenticate, unpack(arguments))
  -- A damaged record fails its own request only.
  replies[number + 1] = ok and reply or {err = 'ERR ' .. (type(reply) == 'table' and reply.err or tostring(reply))}
end
return replies
