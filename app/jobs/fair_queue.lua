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

-- Sorted sets by start tag: all waiting jobs; those of them that are on no ready list yet, long and short ones.
local waiting, long, short = KEYS[1], KEYS[2], KEYS[3]
local costs, finish_tags, load, virtual_time = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local models, queues, any_workers, short_workers = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local any_ready = { list = KEYS[12], intermediate = KEYS[13], started = KEYS[14], name = ARGV[4] }
local short_ready = { list = KEYS[15], intermediate = KEYS[16], started = KEYS[17], name = ARGV[5] }
local model, jobs_per_worker, heartbeat_timeout = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local entry_prefix = ARGV[6]

local call = redis.call
local position = 0

local function text(number)
  return string.format('%.17g', number)
end

local function owner_key(owner) -- the owner's jobs on no ready list yet, by start tag
  return long .. ':of:' .. owner
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

-- Removes a job that is on no ready list yet. Returns whether there was one.
local function remove_unserved(id, owner)
  call('ZREM', owner_key(owner), id)
  return call('ZREM', long, id) + call('ZREM', short, id) > 0
end

local function enter(id, milliseconds, weight, is_short, owner)
  if not call('ZSCORE', waiting, id) then
    local start = math.max(tonumber(call('GET', virtual_time) or 0), tonumber(call('HGET', finish_tags, owner) or 0))
    call('HSET', finish_tags, owner, text(start + milliseconds / tonumber(weight)))
    call('ZADD', waiting, text(start), id)
    call('ZADD', is_short == '1' and short or long, text(start), id)
    call('ZADD', owner_key(owner), text(start), id)
    add_cost(id, milliseconds, weight, is_short, owner)
  end
  position = call('ZRANK', waiting, id) + 1
end

-- A job that was served before waits again; the caller pushes it onto a ready list.
local function put_back(id, milliseconds, weight, is_short, owner)
  if call('ZSCORE', waiting, id) then
    remove_unserved(id, owner)
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
    local start = call('ZSCORE', waiting, id) or '-inf'
    call('ZREM', waiting, id)
    remove_cost(id, milliseconds, owner)
    if remove_unserved(id, owner) then
      local shift = text(-milliseconds / weight)
      for _, later in ipairs(call('ZRANGE', owner_key(owner), start, '+inf', 'BYSCORE')) do
        call('ZINCRBY', owner_key(owner), shift, later)
        call('ZINCRBY', waiting, shift, later)
        call('ZINCRBY', call('ZSCORE', short, later) and short or long, shift, later)
      end
      if call('HEXISTS', finish_tags, owner) == 1 then
        call('HINCRBYFLOAT', finish_tags, owner, shift)
      end
    else
      call('LREM', any_ready.list, 0, id)
      call('LREM', short_ready.list, 0, id)
    end
  end
  if finished == '1' and not is_held(id) then
    call('DEL', entry_prefix .. id)
  end
end

local function serve(id, ready)
  local start = call('ZSCORE', waiting, id)
  local _, _, owner = read_cost(id)
  remove_unserved(id, owner or '')
  if start and tonumber(start) > tonumber(call('GET', virtual_time) or 0) then
    call('SET', virtual_time, start)
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
local function first(unserved)
  local found = call('ZRANGE', unserved, 0, 0, 'WITHSCORES')
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
    local first_long, long_start = first(long)
    local first_short, short_start = first(short)
    local is_short_next = first_short
      and (short_start < long_start or (short_start == long_start and first_short < first_long))
    local next = is_short_next and first_short or first_long
    if not next then
      call('DEL', finish_tags) -- no owner is ahead of its share when no job waits for its turn
      return
    elseif first_short and short_ready.idle > 0 then
      serve(first_short, short_ready)
    elseif any_ready.idle > 0 then
      serve(next, any_ready)
    elseif first_short and short_ready.room > 0 then
      serve(first_short, short_ready)
    elseif short_count == 0 and any_ready.room > 0 then
      serve(next, any_ready)
    elseif first_long and any_ready.room > 0 then
      serve(first_long, any_ready)
    else
      return
    end
  end
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
  listed = function(jobs, ...) -- fewer jobs than these are in the lists
    local count = 0
    for _, list in ipairs({ ... }) do
      count = count + call('ZCARD', list)
    end
    return count < tonumber(jobs)
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
end

for number = 1, tonumber(ARGV[7]) do
  if not holds(next_words()) then
    return { number, 0 }
  end
end
while cursor < #ARGV do
  execute(next_words())
end
return { 0, position }
