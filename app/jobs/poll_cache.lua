-- Reads what polls need: records, and the ranks of jobs in the fair queue.
--
-- KEYS: for each poll the record, and the waiting jobs among which to look up the rank (empty: no rank needed)
-- ARGV: for each poll the job's id
-- Returns for each {record, rank}; false where there is none (nil would end the list).

local function read(record, waiting, id)
  return {redis.call('GET', record), waiting ~= '' and redis.call('ZRANK', waiting, id)}
end

local replies = {}
for number, id in ipairs(ARGV) do
  local ok, reply = pcall(read, KEYS[2 * number - 1], KEYS[2 * number], id)
  -- A key of another type fails its own poll only.
  replies[number] = ok and reply or {err = type(reply) == 'table' and reply.err or tostring(reply)}
end
return replies
