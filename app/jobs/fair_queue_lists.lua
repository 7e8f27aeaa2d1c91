#!lua flags=allow-oom
-- The fair queue of one model: start-time fair queueing (Goyal, Vin, Cheng 1996); and changes of job records, each
-- together with its step in the queue.
--
-- A job that enters gets a start tag: the virtual time or its owner's last finish tag, whichever is greater. Its finish
-- tag is its start tag plus its milliseconds of audio divided by its weight. The job with the least start tag is served
-- first, and the virtual time is the greatest start tag served so far. So the jobs of one owner keep their order, and an
-- owner who had nothing waiting is served at once, however many jobs of another owner wait.
--
-- To serve a job is to push it onto one of two ready lists, which are RQ queues: one for workers that take any job, one
-- for workers that take short jobs only. Every step ends by filling the ready lists.
--
-- A call consists of conditions and commands: all commands are executed, in order, or none if a condition does not
-- hold. ARGV: six words about the queue, the number of conditions, the conditions, the commands; each condition and
-- command is preceded by the number of its words.
-- Returns {N, position}. N: the number of the first condition that does not hold, or 0. Position: of the job that
-- entered, among all that wait, from 1; or 0.

-- Every owner has two lists of its jobs on no ready list, long and short ones, in the order in which they entered; only
-- the heads of these lists are in the sorted sets by start tag from which jobs are served. So a job that is canceled,
-- which moves up all later jobs of its owner, costs a logarithm of their number: what they move up by is kept in a
-- Fenwick tree (1994) of the owner, from which the tag of a new head is computed.

-- All waiting jobs, by start tag; the heads of the owners' lists, by start tag, long and short ones; and the set of all
-- jobs on these lists.
local waiting, long_heads, short_heads, unserved = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local costs, finish_tags, load, virtual_time = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
-- Of the jobs on the lists number, tag and owner, as they entered; by owner the number of the first job whose tag in
-- `waiting` is not up to date.
local entries, outdated = KEYS[9], KEYS[10]
-- Where the previous release keeps jobs that are on no ready list.
local previous_long, previous_short = KEYS[11], KEYS[12]
local models, queues, any_workers, short_workers = KEYS[13], KEYS[14], KEYS[15], KEYS[16]
local any_ready = { list = KEYS[17], intermediate = KEYS[18], started = KEYS[19], name = ARGV[4] }
local short_ready = { list = KEYS[20], intermediate = KEYS[21], started = KEYS[22], name = ARGV[5] }
local model, jobs_per_worker, heartbeat_timeout = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local entry_prefix = ARGV[6]

local TREE_SIZE = 2 ^ 40 -- numbers of jobs of one owner
local UPDATES = 16 -- of tags in `waiting`, in one call
local MINIMUM_TREE = 1024 -- nodes from which a tree may be built anew

local call = redis.call
local position = 0

local function text(number)
  return string.format('%.17g', number)
end

local function lowest_bit(number) -- numbers exceed the 32 bits of Lua's bit operations
  local bit = 1
  while number % (2 * bit) == 0 do
    bit = 2 * bit
  end
  return bit
end

local function list_of(owner, heads) -- the jobs of one list, by their numbers
  return heads .. ' of ' .. owner
end

local function tree_of(owner) -- the nodes of the owner's tree; and `last`, the number of the job that entered last
  return outdated .. ' of ' .. owner
end

local function add_cost(id, milliseconds, weight, is_short, owner)
  call('HSET', costs, id, table.concat({ milliseconds, weight, is_short, owner }, ' '))
  call('HINCRBY', load, 'milliseconds', milliseconds)
  call('HINCRBY', load, 'jobs of ' .. owner, 1)
  call('HINCRBY', load, 'milliseconds of ' .. owner, milliseconds)
end

local function remove_cost(id, milliseconds, owner)
  call('HDEL', costs, id)
  if call('EXISTS', costs) == 0 then
    call('DEL', load)
    return
  end
  call('HINCRBY', load, 'milliseconds', -milliseconds)
  call('HINCRBY', load, 'milliseconds of ' .. owner, -milliseconds)
  if call('HINCRBY', load, 'jobs of ' .. owner, -1) <= 0 then
    call('HDEL', load, 'jobs of ' .. owner, 'milliseconds of ' .. owner)
  end
end

-- Returns milliseconds, weight, owner, whether it is short; nothing for a job that does not wait.
local function read_cost(id)
  local found = call('HGET', costs, id)
  if found then
    local milliseconds, weight, is_short, owner = string.match(found, '^(%d+) (%S+) (%d) (.*)$')
    return tonumber(milliseconds), tonumber(weight), owner, is_short == '1'
  end
end

-- The milliseconds, divided by the weight, of the canceled jobs of an owner up to a number.
local function canceled_before(owner, number)
  local sum = 0
  while number > 0 do
    sum = sum + tonumber(call('HGET', tree_of(owner), string.format('%.0f', number)) or 0)
    number = number - lowest_bit(number)
  end
  return sum
end

local function add_canceled(owner, number, share)
  while number <= TREE_SIZE do
    local node = string.format('%.0f', number)
    local sum = tonumber(call('HGET', tree_of(owner), node) or 0)
    call('HSET', tree_of(owner), node, text(sum + share))
    number = number + lowest_bit(number)
  end
end

-- Returns number, start tag and owner of a job on a list; nothing for another job.
local function read_entry(id)
  local found = call('HGET', entries, id)
  if found then
    local number, tag, owner = string.match(found, '^(%d+) (%S+) (.*)$')
    number = tonumber(number)
    return number, tonumber(tag) - canceled_before(owner, number), owner
  end
end

-- The start tag of a job on a list; its upper bound where Redis has lost the entry.
local function start_of(id)
  local _, start = read_entry(id)
  return start or tonumber(call('ZSCORE', waiting, id))
end

local function update_head(owner, heads)
  local id = call('ZRANGE', list_of(owner, heads), 0, 0)[1]
  while id do
    local start = start_of(id)
    if start then
      call('ZADD', heads, text(start), id)
      return
    end
    call('ZREM', list_of(owner, heads), id)
    id = call('ZRANGE', list_of(owner, heads), 0, 0)[1]
  end
end

-- Returns the job with the least start tag, and the tag.
local function first(heads)
  local found = call('ZRANGE', heads, 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2] or 'inf')
end

-- Where Redis has lost the virtual time, no job that waits may be later than it: new owners would overtake all others.
local function read_virtual_time()
  local found = call('GET', virtual_time)
  if found then
    return tonumber(found)
  end
  local _, long_start = first(long_heads)
  local _, short_start = first(short_heads)
  local start = math.min(long_start, short_start)
  return start < math.huge and start or 0
end

local function append(id, start, heads, owner)
  local number = call('HINCRBY', tree_of(owner), 'last', 1)
  local tag = text(start + canceled_before(owner, number))
  call('HSET', entries, id, table.concat({ number, tag, owner }, ' '))
  call('ZADD', list_of(owner, heads), number, id)
  call('SADD', unserved, id)
  if call('ZCARD', list_of(owner, heads)) == 1 then
    call('ZADD', heads, text(start), id)
  end
end

-- Removes a job from the list that it is on. Returns its number and owner; nothing for a job that is on none.
local function remove_unserved(id)
  local number, _, owner = read_entry(id)
  local was_head = { [long_heads] = call('ZREM', long_heads, id) == 1, [short_heads] = call('ZREM', short_heads, id) == 1 }
  if call('SREM', unserved, id) == 0 and not number and not was_head[long_heads] and not was_head[short_heads] then
    return
  end
  if not owner then -- Redis has lost the entry
    _, _, owner = read_cost(id)
  end
  if not owner then
    return
  end
  call('HDEL', entries, id)
  for heads, was_first in pairs(was_head) do
    call('ZREM', list_of(owner, heads), id)
    if was_first then
      update_head(owner, heads)
    end
  end
  if call('EXISTS', list_of(owner, long_heads), list_of(owner, short_heads)) == 0 then
    call('DEL', tree_of(owner))
    call('HDEL', outdated, owner)
  end
  return number, owner
end

-- Returns the owner's jobs on both lists whose numbers are at least this one, in their order, at most so many of each.
local function jobs_from(owner, number, most)
  local found = {}
  for _, heads in ipairs({ long_heads, short_heads }) do
    for _, id in ipairs(call('ZRANGE', list_of(owner, heads), number, '+inf', 'BYSCORE', 'LIMIT', 0, most)) do
      found[#found + 1] = { id = id, heads = heads, number = tonumber(call('ZSCORE', list_of(owner, heads), id)) }
    end
  end
  table.sort(found, function(one, other)
    return one.number < other.number
  end)
  return found
end

-- Gives an owner's jobs new numbers from 1 and an empty tree: it would grow as long as the owner has waiting jobs.
local function renumber(owner)
  local jobs = jobs_from(owner, 0, -1)
  for _, job in ipairs(jobs) do
    job.start = start_of(job.id)
  end
  call('DEL', tree_of(owner), list_of(owner, long_heads), list_of(owner, short_heads))
  for _, job in ipairs(jobs) do
    if job.start then
      append(job.id, job.start, job.heads, owner)
    end
  end
  call('HSET', outdated, owner, 1)
end

-- The later jobs of an owner move up by the share of one that was canceled.
local function move_up(owner, number, share)
  if call('EXISTS', tree_of(owner)) == 1 then
    add_canceled(owner, number, share)
    update_head(owner, long_heads)
    update_head(owner, short_heads)
    local first = tonumber(call('HGET', outdated, owner) or number)
    call('HSET', outdated, owner, string.format('%.0f', math.min(first, number)))
    local jobs = call('ZCARD', list_of(owner, long_heads)) + call('ZCARD', list_of(owner, short_heads))
    if call('HLEN', tree_of(owner)) > MINIMUM_TREE + 8 * jobs then
      renumber(owner)
    end
  end
  if call('HEXISTS', finish_tags, owner) == 1 then
    call('HINCRBYFLOAT', finish_tags, owner, text(-share))
  end
end

-- Brings tags in `waiting` up to date, a bounded number of them: positions of jobs behind a canceled one are upper
-- bounds until then.
local function update_tags()
  local left = UPDATES
  while left > 0 do
    local owner, from = unpack(call('HRANDFIELD', outdated, 1, 'WITHVALUES'))
    if not owner then
      return
    end
    local jobs = jobs_from(owner, from, left)
    for index = 1, math.min(#jobs, left) do
      local start = start_of(jobs[index].id)
      if start then
        call('ZADD', waiting, 'XX', text(start), jobs[index].id) -- one that was canceled does not wait again
      end
    end
    if #jobs > left then
      call('HSET', outdated, owner, jobs[left + 1].number)
    elseif #jobs == left then
      call('HSET', outdated, owner, jobs[left].number + 1)
    else
      call('HDEL', outdated, owner)
    end
    left = left - #jobs
  end
end

-- Puts jobs on lists in the order of their start tags, and their owners' next jobs behind them.
local function append_all(jobs)
  table.sort(jobs, function(one, other)
    return one.start < other.start or (one.start == other.start and one.id < other.id)
  end)
  for _, job in ipairs(jobs) do
    local milliseconds, weight, owner = read_cost(job.id)
    append(job.id, job.start, job.heads, owner)
    local finish = job.start + milliseconds / weight
    if finish > tonumber(call('HGET', finish_tags, owner) or 0) then
      call('HSET', finish_tags, owner, text(finish))
    end
  end
end

-- Takes over the jobs that the previous release keeps, while processes of both run.
local function adopt()
  if call('EXISTS', previous_long, previous_short) == 0 then
    return
  end
  local jobs = {}
  for previous, heads in pairs({ [previous_long] = long_heads, [previous_short] = short_heads }) do
    local found = call('ZRANGE', previous, 0, -1, 'WITHSCORES')
    for index = 1, #found, 2 do
      local id, start = found[index], tonumber(found[index + 1])
      local _, _, owner = read_cost(id)
      if owner then
        call('ZADD', waiting, 'NX', text(start), id)
        call('DEL', previous_long .. ':of:' .. owner)
        jobs[#jobs + 1] = { id = id, start = start, heads = heads }
      end
    end
  end
  append_all(jobs)
  call('DEL', previous_long, previous_short)
end

-- Whether the keys agree with each other. Looks at every owner, not at every job.
local function is_whole()
  local listed, on_lists = call('SCARD', unserved), 0
  if call('HLEN', costs) ~= call('ZCARD', waiting) or call('HLEN', entries) ~= listed then
    return false
  end
  for _, heads in ipairs({ long_heads, short_heads }) do
    for _, id in ipairs(call('ZRANGE', heads, 0, -1)) do
      local number, _, owner = read_entry(id)
      if not number or call('ZRANGE', list_of(owner, heads), 0, 0)[1] ~= id then
        return false
      end
      local last, last_number = unpack(call('ZRANGE', list_of(owner, heads), -1, -1, 'WITHSCORES'))
      local last_start, finish = start_of(last), tonumber(call('HGET', finish_tags, owner))
      local numbers = tonumber(call('HGET', tree_of(owner), 'last'))
      if not (numbers and last_start and finish) or numbers < tonumber(last_number) or finish < last_start then
        return false
      end
      on_lists = on_lists + call('ZCARD', list_of(owner, heads))
    end
  end
  local sums = { milliseconds = 0, ['jobs of'] = 0, ['milliseconds of'] = 0 }
  local found = call('HGETALL', load)
  for index = 1, #found, 2 do
    local noun = string.match(found[index], '^%a+ of') or found[index]
    sums[noun] = (sums[noun] or 0) + tonumber(found[index + 1])
  end
  return on_lists == listed
    and sums['jobs of'] == call('HLEN', costs)
    and sums['milliseconds of'] == sums.milliseconds
    and sums.milliseconds >= 0
end

-- Returns the start tags, by id, of the jobs that were on lists as far as the entries and `unserved` tell.
local function listed_starts()
  local starts = {}
  local function add(id)
    local start, bound = start_of(id), tonumber(call('ZSCORE', waiting, id))
    starts[id] = start and math.min(start, bound or start) -- where the tree is lost, the entry's tag is too late
  end
  for _, id in ipairs(call('HKEYS', entries)) do
    add(id)
  end
  for _, id in ipairs(call('SMEMBERS', unserved)) do
    add(id)
  end
  return starts
end

-- Deletes what `append` writes, of all owners that any key names.
local function clear_lists()
  local owners = call('HKEYS', finish_tags)
  for _, key in ipairs({ outdated, load }) do
    for _, field in ipairs(call('HKEYS', key)) do
      owners[#owners + 1] = string.match(field, '^jobs of (.*)$') or field
    end
  end
  for _, key in ipairs({ costs, entries }) do
    for _, found in ipairs(call('HVALS', key)) do
      owners[#owners + 1] = string.match(found, '^%d+ %S+ %d (.*)$') or string.match(found, '^%d+ %S+ (.*)$')
    end
  end
  for _, owner in ipairs(owners) do
    call('DEL', tree_of(owner), list_of(owner, long_heads), list_of(owner, short_heads))
  end
  call('DEL', long_heads, short_heads, unserved, entries, outdated)
end

-- Builds the queue anew from what there is, if Redis has lost a part of it. Jobs of which too much is lost leave it:
-- their records tell that they wait, so that housekeeping puts them back. Returns whether a part was lost.
local function repair()
  if is_whole() then
    return false
  end
  local starts, jobs, kept = listed_starts(), {}, {}
  for id, start in pairs(starts) do
    local _, _, owner, is_short = read_cost(id)
    if owner then
      call('ZADD', waiting, text(start), id)
      jobs[#jobs + 1] = { id = id, start = start, heads = is_short and short_heads or long_heads }
    end
  end
  clear_lists()
  for _, ready in ipairs({ any_ready, short_ready }) do
    for _, id in ipairs(call('LRANGE', ready.list, 0, -1)) do
      if read_cost(id) then
        call('ZADD', waiting, 'NX', text(read_virtual_time()), id)
      end
    end
  end
  for _, id in ipairs(call('ZRANGE', waiting, 0, -1)) do
    local milliseconds, weight, owner, is_short = read_cost(id)
    if owner then
      kept[#kept + 1] = { id, milliseconds, weight, is_short and 1 or 0, owner }
    else
      call('ZREM', waiting, id)
    end
  end
  call('DEL', costs, load)
  for _, job in ipairs(kept) do
    add_cost(unpack(job))
  end
  append_all(jobs)
  return true
end
