#!lua flags=allow-oom
-- Replaces a claim, which only its holder may do: by itself, to renew it; by the response; or by nothing.
--
-- KEYS: as of `claim.lua`
-- ARGV: the claim; the new value, empty to remove it; the time in milliseconds after which that expires; the bytes to
--       count for a response, else 0; the bytes that responses may have taken before this one, or 0: any
-- Returns whether the claim was replaced.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end

local size, limit = tonumber(ARGV[4]), tonumber(ARGV[5])
if size > 0 then
  local clock = redis.call('TIME')
  local period = math.max(1, math.ceil(tonumber(ARGV[3]) / 24000)) -- s
  local now = math.floor(clock[1] / period)
  local used = 0
  local counts = redis.call('HGETALL', KEYS[2])
  for index = 1, #counts, 2 do
    if tonumber(counts[index]) < now - 24 then
      redis.call('HDEL', KEYS[2], counts[index])
    else
      used = used + tonumber(counts[index + 1])
    end
  end
  if limit > 0 and used + size > limit then return redis.call('DEL', KEYS[1]) end
  redis.call('HINCRBY', KEYS[2], now, size)
  redis.call('EXPIRE', KEYS[2], 26 * period)
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
