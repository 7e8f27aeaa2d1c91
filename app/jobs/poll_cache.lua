-- Reads what polls need: records, and the ranks of jobs in the fair queue.
--
-- KEYS: for each poll the record, and the waiting jobs among which to look up the rank (empty: no rank needed)
-- ARGV: for each poll the job's id
-- Returns for each {record, rank}; false where there is none (nil would end the list).

local replies = {}
for number, id in ipairs(ARGV) do
  local waiting = KEYS[2 * number]
  local rank = waiting ~= '' and redis.call('ZRANK', waiting, id)
  replies[number] = {redis.call('GET', KEYS[2 * number - 1]), rank}
end
return replies
