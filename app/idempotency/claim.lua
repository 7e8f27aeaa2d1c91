-- Claims the request of an Idempotency-Key, or returns what is known about it.
--
-- KEYS: the claim or response; the bytes of the API key's responses, by period of their time of storage
-- ARGV: the claim; its lease and the retention of responses in milliseconds; the bytes that these may take
-- Returns {the claim, the earlier one or the response; 0}, or {nothing, seconds until bytes expire} without room.

local found = redis.call('GET', KEYS[1])
if found then return {found, 0} end

-- A period is a 24th of the retention: its bytes count until the last of them has expired.
local clock = redis.call('TIME')
local period = math.max(1, math.ceil(tonumber(ARGV[3]) / 24000)) -- s
local oldest = math.floor(clock[1] / period) - 24
local used, first = 0, math.huge
local counts = redis.call('HGETALL', KEYS[2])
for index = 1, #counts, 2 do
  local number = tonumber(counts[index])
  if number >= oldest then
    used = used + tonumber(counts[index + 1])
    first = math.min(first, number)
  end
end
if used >= tonumber(ARGV[4]) then return {false, (first + 25) * period - clock[1]} end

redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {ARGV[1], 0}
