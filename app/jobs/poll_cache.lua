-- What polls look at: records, and their places in the line.
--
-- KEYS: for each poll a record, and the waiting jobs among which it may be; empty: not asked
-- ARGV: for each the job's id
-- Returns for each {record, rank}, either of which may be nothing (false, for a list ends at the first nil).

local told = {}
for number, id in ipairs(ARGV) do
  local waiting = KEYS[2 * number]
  local rank = waiting ~= '' and redis.call('ZRANK', waiting, id)
  told[number] = {redis.call('GET', KEYS[2 * number - 1]), rank}
end
return told
