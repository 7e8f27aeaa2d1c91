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
  call('SADD', models, model)
end

local function remove_cost(id, milliseconds, owner)
  call('HDEL', costs, id)
  call('HINCRBY', load, 'milliseconds', -milliseconds)
  call('HINCRBY', load, 'milliseconds of ' .. owner, -milliseconds)
  if call('HINCRBY', load, 'jobs of ' .. owner, -1) <= 0 then
    call('HDEL', load, 'jobs of ' .. owner, 'milliseconds of ' .. owner)
  end
end

-- Returns milliseconds, weight, owner; nothing for a job that does not wait.
local function read_cost(id)
  local found = call('HGET', costs, id)
  if found then
    local milliseconds, weight, owner = string.match(found, '^(%d+) (%S+) %d (.*)$')
    return tonumber(milliseconds), tonumber(weight), owner
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

local function update_head(owner, heads)
  local id = call('ZRANGE', list_of(owner, heads), 0, 0)[1]
  if id then
    local _, start = read_entry(id)
    call('ZADD', heads, text(start), id)
  end
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
  if not number then
    return
  end
  call('SREM', unserved, id)
  call('HDEL', entries, id)
  for _, heads in ipairs({ long_heads, short_heads }) do
    if call('ZREM', list_of(owner, heads), id) == 1 and call('ZREM', heads, id) == 1 then
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
    _, job.start = read_entry(job.id)
  end
  call('DEL', tree_of(owner), list_of(owner, long_heads), list_of(owner, short_heads))
  for _, job in ipairs(jobs) do
    append(job.id, job.start, job.heads, owner)
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
    local _, found = unpack(call('HSCAN', outdated, 0, 'COUNT', 1))
    local owner, first = found[1], tonumber(found[2])
    if not owner then
      return
    end
    local jobs = jobs_from(owner, first, left)
    for index = 1, math.min(#jobs, left) do
      local _, start = read_entry(jobs[index].id)
      call('ZADD', waiting, text(start), jobs[index].id)
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

local function enter(id, milliseconds, weight, is_short, owner)
  if not call('ZSCORE', waiting, id) then
    local start = math.max(tonumber(call('GET', virtual_time) or 0), tonumber(call('HGET', finish_tags, owner) or 0))
    call('HSET', finish_tags, owner, text(start + milliseconds / tonumber(weight)))
    call('ZADD', waiting, text(start), id)
    append(id, start, is_short == '1' and short_heads or long_heads, owner)
    add_cost(id, milliseconds, weight, is_short, owner)
  end
  position = call('ZRANK', waiting, id) + 1
end

-- A job that was served before waits again; the caller pushes it onto a ready list.
local function put_back(id, milliseconds, weight, is_short, owner)
  if call('ZSCORE', waiting, id) then
    remove_unserved(id)
    return
  end
  call('ZADD', waiting, call('GET', virtual_time) or 0, id)
  add_cost(id, milliseconds, weight, is_short, owner)
end

-- Whether a worker has a job, or has just taken it off a ready list.
local function is_held(id)
  for _, ready in ipairs({ any_ready, short_ready }) do
    if call('LPOS', ready.intermediate, id) then
      return true
    end
    for _, execution in ipairs(call('ZRANGE', ready.started, 0, -1)) do
      if string.sub(execution, 1, #id + 1) == id .. ':' then
        return true
      end
    end
  end
  return false
end

-- A job stops waiting, if it waits. If it was not served, its owner's later jobs move up by its share. `finished`:
-- RQ's entry is deleted too, unless a worker has it.
local function leave(id, finished)
  local milliseconds, weight, owner = read_cost(id)
  if milliseconds then
    call('ZREM', waiting, id)
    remove_cost(id, milliseconds, owner)
    local number = remove_unserved(id)
    if number then
      move_up(owner, number, milliseconds / weight)
    else
      call('LREM', any_ready.list, 0, id)
      call('LREM', short_ready.list, 0, id)
    end
  end
  if finished == '1' and not is_held(id) then
    call('DEL', entry_prefix .. id)
  end
end

local function serve(id, start, ready)
  remove_unserved(id)
  if not call('ZSCORE', waiting, id) then -- canceled by a process of the previous release
    return
  end
  call('ZADD', waiting, text(start), id)
  if start > tonumber(call('GET', virtual_time) or 0) then
    call('SET', virtual_time, text(start))
  end
  call('HSET', entry_prefix .. id, 'origin', ready.name)
  call('SADD', queues, ready.list)
  call('RPUSH', ready.list, id)
  ready.room = ready.room - 1
  ready.idle = ready.idle - 1
end

-- Sets how many jobs a ready list has room for, and how many of its workers are idle.
local function count_room(ready, workers)
  local listed = call('LLEN', ready.list)
  ready.room = math.max(jobs_per_worker * workers, ready.minimum) - listed
  ready.idle = workers - listed - call('LLEN', ready.intermediate) - call('ZCARD', ready.started)
end

-- Returns the job with the least start tag, and the tag.
local function first(heads)
  local found = call('ZRANGE', heads, 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2] or 'inf')
end

-- Serves idle workers first, then fills the ready lists. While there are workers for short jobs, no short job waits
-- behind a long one on a ready list.
local function fill()
  local seconds = call('TIME')
  local since = tonumber(seconds[1]) + tonumber(seconds[2]) / 1e6 - heartbeat_timeout
  local short_count = call('ZCOUNT', short_workers, since, '+inf')
  any_ready.minimum, short_ready.minimum = jobs_per_worker, 0 -- something is ready for a worker that starts
  if short_count == 0 then -- there are none, or no more: other workers take what was ready for them
    local left = call('RPOP', short_ready.list)
    while left do
      call('SADD', queues, any_ready.list)
      call('HSET', entry_prefix .. left, 'origin', any_ready.name)
      call('LPUSH', any_ready.list, left)
      left = call('RPOP', short_ready.list)
    end
  end
  count_room(any_ready, call('ZCOUNT', any_workers, since, '+inf') - short_count)
  count_room(short_ready, short_count)
  while true do
    local first_long, long_start = first(long_heads)
    local first_short, short_start = first(short_heads)
    local is_short_next = first_short
      and (short_start < long_start or (short_start == long_start and first_short < first_long))
    local next = is_short_next and first_short or first_long
    local next_start = is_short_next and short_start or long_start
    if not next then
      call('DEL', finish_tags) -- no owner is ahead of its share when no job waits for its turn
      return
    elseif first_short and short_ready.idle > 0 then
      serve(first_short, short_start, short_ready)
    elseif any_ready.idle > 0 then
      serve(next, next_start, any_ready)
    elseif first_short and short_ready.room > 0 then
      serve(first_short, short_start, short_ready)
    elseif short_count == 0 and any_ready.room > 0 then
      serve(next, next_start, any_ready)
    elseif first_long and any_ready.room > 0 then
      serve(first_long, long_start, any_ready)
    else
      return
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
    for _, id in ipairs(call('ZRANGE', previous, 0, -1)) do
      local _, _, owner = read_cost(id)
      if owner then
        jobs[#jobs + 1] = { id = id, start = tonumber(call('ZSCORE', previous, id)), heads = heads, owner = owner }
      end
    end
  end
  table.sort(jobs, function(one, other)
    return one.start < other.start or (one.start == other.start and one.id < other.id)
  end)
  for _, job in ipairs(jobs) do
    append(job.id, job.start, job.heads, job.owner)
    call('DEL', previous_long .. ':of:' .. job.owner)
  end
  call('DEL', previous_long, previous_short)
end

local steps = { enter = enter, put_back = put_back, leave = leave, fill = function() end }

local function load_of(field)
  return tonumber(call('HGET', load, field) or 0)
end

local conditions = {
  absent = function(key)
    return call('EXISTS', key) == 0
  end,
  present = function(key)
    return call('EXISTS', key) == 1
  end,
  unchanged = function(key, digest)
    local found = call('GET', key)
    return found and redis.sha1hex(found) == digest
  end,
  -- Fewer jobs and milliseconds wait than these: of all owners, and of one.
  room = function(jobs, milliseconds)
    return call('ZCARD', waiting) < tonumber(jobs) and load_of('milliseconds') < tonumber(milliseconds)
  end,
  share = function(jobs, milliseconds, owner)
    return load_of('jobs of ' .. owner) < tonumber(jobs)
      and load_of('milliseconds of ' .. owner) < tonumber(milliseconds)
  end,
}

local cursor = 7 -- the index of the argument that was read last

local function next_words()
  local from = cursor + 2
  cursor = cursor + 1 + tonumber(ARGV[cursor + 1])
  return unpack(ARGV, from, cursor)
end

local function holds(condition, ...)
  return conditions[condition](...)
end

local function execute(command, step, ...)
  if command ~= 'FAIRQUEUE' then
    return call(command, step, ...)
  end
  steps[step](...)
  fill()
  update_tags()
end

adopt()
for number = 1, tonumber(ARGV[7]) do
  if not holds(next_words()) then
    return { number, 0 }
  end
end
while cursor < #ARGV do
  execute(next_words())
end
return { 0, position }
