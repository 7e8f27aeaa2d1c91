-- The second part of the script that begins with `fair_queue_lists.lua`: its steps, and its calls.

local function enter(id, milliseconds, weight, is_short, owner)
  call('SADD', models, model)
  if not call('ZSCORE', waiting, id) then
    local start = math.max(read_virtual_time(), tonumber(call('HGET', finish_tags, owner) or 0))
    call('HSET', finish_tags, owner, text(start + milliseconds / tonumber(weight)))
    call('ZADD', waiting, text(start), id)
    append(id, start, is_short == '1' and short_heads or long_heads, owner)
    add_cost(id, milliseconds, weight, is_short, owner)
  end
  position = call('ZRANK', waiting, id) + 1
end

-- A job that was served before waits again; the caller pushes it onto a ready list.
local function put_back(id, milliseconds, weight, is_short, owner)
  call('SADD', models, model)
  remove_unserved(id)
  call('ZADD', waiting, 'NX', text(read_virtual_time()), id)
  if not read_cost(id) then
    add_cost(id, milliseconds, weight, is_short, owner)
  end
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
  local waited = call('ZREM', waiting, id) == 1 or milliseconds
  local number, list_owner
  if waited then
    number, list_owner = remove_unserved(id)
  end
  if milliseconds then
    remove_cost(id, milliseconds, owner)
  end
  if number and milliseconds then
    move_up(list_owner, number, milliseconds / weight)
  elseif waited or finished == '1' then
    call('LREM', any_ready.list, 0, id)
    call('LREM', short_ready.list, 0, id)
  end
  if finished == '1' and not is_held(id) then
    call('DEL', entry_prefix .. id)
  end
end

-- Tells RQ's entry on which queue it is; where Redis has lost the entry, a part of one would be worse than none.
local function set_origin(id, ready)
  if call('EXISTS', entry_prefix .. id) == 1 then
    call('HSET', entry_prefix .. id, 'origin', ready.name)
  end
end

local function serve(id, start, ready)
  remove_unserved(id)
  if not call('ZSCORE', waiting, id) then -- canceled by a process of the previous release
    return
  end
  call('ZADD', waiting, text(start), id)
  local served = call('GET', virtual_time)
  if not served or start > tonumber(served) then
    call('SET', virtual_time, text(start))
  end
  set_origin(id, ready)
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
      set_origin(left, any_ready)
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

local steps = {
  enter = enter,
  put_back = put_back,
  leave = leave,
  fill = function() end,
  repair = function()
    position = repair() and 1 or 0
  end,
}

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
