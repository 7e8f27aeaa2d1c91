-- The line of one model's waiting jobs: fair queueing by start tags (Goyal, Vin, Cheng 1996); and changes of jobs'
-- records, each with its step in the line.
--
-- A job that enters gets a start tag, the later of the clock and its owner's last finish tag; its finish tag is its
-- milliseconds of audio, divided by its weight, later. The least start tag is served first, and the clock is the
-- greatest that was served. An owner's jobs so keep their order, and an owner who comes anew is served at once,
-- however many jobs another one has waiting.
--
-- Served means put on one of two ready lists, which are RQ's queues: one for workers that take any job, and one for
-- workers that take short ones only. Every step ends with filling these up.
--
-- A call is conditions and commands: all commands are done, in their order, or none where a condition does not hold.
-- ARGV: six words about the line, the number of conditions, the conditions, and the commands; each of these is the
-- number of its words, and them. Returns the number of the first condition that does not hold, or 0.

local waiting, long, short = KEYS[1], KEYS[2], KEYS[3] -- sorted sets by start tag: all that wait; not on a ready list yet
local jobs, finish, load, clock = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local lines, queues, any_workers, short_workers = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local any = { list = KEYS[12], taken = KEYS[13], started = KEYS[14], name = ARGV[4] }
local brief = { list = KEYS[15], taken = KEYS[16], started = KEYS[17], name = ARGV[5] }
local model, per_worker, silence, entries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[6]

local call = redis.call

local function text(number)
  return string.format('%.17g', number)
end

local function owned(owner) -- the owner's jobs in the line, by start tag
  return long .. ':of:' .. owner
end

local function remember(id, milliseconds, weight, is_short, owner)
  call('HSET', jobs, id, table.concat({ milliseconds, weight, is_short, owner }, ' '))
  call('HINCRBY', load, 'milliseconds', milliseconds)
  call('HINCRBY', load, 'jobs of ' .. owner, 1)
  call('HINCRBY', load, 'milliseconds of ' .. owner, milliseconds)
  call('SADD', lines, model)
end

local function forget(id, milliseconds, owner)
  call('HDEL', jobs, id)
  call('HINCRBY', load, 'milliseconds', -milliseconds)
  call('HINCRBY', load, 'milliseconds of ' .. owner, -milliseconds)
  if call('HINCRBY', load, 'jobs of ' .. owner, -1) <= 0 then
    call('HDEL', load, 'jobs of ' .. owner, 'milliseconds of ' .. owner)
  end
end

local function recall(id)
  local found = call('HGET', jobs, id)
  if found then
    local milliseconds, weight, is_short, owner = string.match(found, '^(%d+) (%S+) (%d) (.*)$')
    return tonumber(milliseconds), tonumber(weight), is_short == '1', owner
  end
end

-- Takes a job's id off the line, wherever in it. Returns whether it was there.
local function strike(id, owner)
  call('ZREM', owned(owner), id)
  return call('ZREM', long, id) + call('ZREM', short, id) > 0
end

local function enter(id, milliseconds, weight, is_short, owner)
  if call('ZSCORE', waiting, id) then
    return
  end
  local start = math.max(tonumber(call('GET', clock) or 0), tonumber(call('HGET', finish, owner) or 0))
  call('HSET', finish, owner, text(start + milliseconds / tonumber(weight)))
  call('ZADD', waiting, text(start), id)
  call('ZADD', is_short == '1' and short or long, text(start), id)
  call('ZADD', owned(owner), text(start), id)
  remember(id, milliseconds, weight, is_short, owner)
end

-- A job that was served before waits again, and somebody else puts it on a ready list.
local function back(id, milliseconds, weight, is_short, owner)
  if call('ZSCORE', waiting, id) then
    strike(id, owner)
    return
  end
  call('ZADD', waiting, call('GET', clock) or 0, id)
  remember(id, milliseconds, weight, is_short, owner)
end

-- Whether a worker has a job, or has just taken it off a ready list.
local function held(id)
  for _, ready in ipairs({ any, brief }) do
    if call('LPOS', ready.taken, id) then
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

-- A job waits no more, if it did. Where it had not been served, its owner's later jobs move up. `over`: RQ's entry
-- goes too, unless a worker has it.
local function leave(id, over)
  local milliseconds, weight, _, owner = recall(id)
  if milliseconds then
    local start = call('ZSCORE', waiting, id) or '-inf'
    call('ZREM', waiting, id)
    forget(id, milliseconds, owner)
    if strike(id, owner) then
      local gained = -milliseconds / weight
      for _, later in ipairs(call('ZRANGE', owned(owner), start, '+inf', 'BYSCORE')) do
        call('ZINCRBY', owned(owner), text(gained), later)
        call('ZINCRBY', waiting, text(gained), later)
        local lane = call('ZSCORE', short, later) and short or long
        call('ZINCRBY', lane, text(gained), later)
      end
      if call('HEXISTS', finish, owner) == 1 then
        call('HINCRBYFLOAT', finish, owner, text(gained))
      end
    else
      call('LREM', any.list, 0, id)
      call('LREM', brief.list, 0, id)
    end
  end
  if over == '1' and not held(id) then
    call('DEL', entries .. id)
  end
end

local function serve(id, ready)
  local start = call('ZSCORE', waiting, id)
  local _, _, _, owner = recall(id)
  strike(id, owner or '')
  if start and tonumber(start) > tonumber(call('GET', clock) or 0) then
    call('SET', clock, start)
  end
  call('HSET', entries .. id, 'origin', ready.name)
  call('SADD', queues, ready.list)
  call('RPUSH', ready.list, id)
  ready.room = ready.room - 1
  ready.idle = ready.idle - 1
end

local function look(ready, workers)
  local listed = call('LLEN', ready.list)
  ready.room = math.max(per_worker * workers, ready.least) - listed
  ready.idle = workers - listed - call('LLEN', ready.taken) - call('ZCARD', ready.started)
end

local function first(lane)
  local found = call('ZRANGE', lane, 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2] or 'inf')
end

-- To workers that do nothing first; then the ready lists. A short job never waits behind a long one on a ready list
-- while there are workers for short ones.
local function fill()
  local seconds = call('TIME')
  local since = tonumber(seconds[1]) + tonumber(seconds[2]) / 1e6 - silence
  local for_short = call('ZCOUNT', short_workers, since, '+inf')
  any.least, brief.least = per_worker, 0 -- something is ready for a worker that starts
  if for_short == 0 then -- the last one has gone
    local left = call('RPOP', brief.list)
    while left do
      call('SADD', queues, any.list)
      call('HSET', entries .. left, 'origin', any.name)
      call('LPUSH', any.list, left)
      left = call('RPOP', brief.list)
    end
  end
  look(any, call('ZCOUNT', any_workers, since, '+inf') - for_short)
  look(brief, for_short)
  while true do
    local a_long, long_start = first(long)
    local a_short, short_start = first(short)
    local short_first = a_short and (short_start < long_start or (short_start == long_start and a_short < a_long))
    local next = short_first and a_short or a_long
    if not next then
      call('DEL', finish) -- nobody waits for a turn: nobody has had more than a share
      return
    elseif a_short and brief.idle > 0 then
      serve(a_short, brief)
    elseif any.idle > 0 then
      serve(next, any)
    elseif a_short and brief.room > 0 then
      serve(a_short, brief)
    elseif for_short == 0 and any.room > 0 then
      serve(next, any)
    elseif a_long and any.room > 0 then
      serve(a_long, any)
    else
      return
    end
  end
end

local steps = { enter = enter, back = back, leave = leave, fill = function() end }

local function figure(field)
  return tonumber(call('HGET', load, field) or 0)
end

local conditions = {
  absent = function(key)
    return call('EXISTS', key) == 0
  end,
  present = function(key)
    return call('EXISTS', key) == 1
  end,
  same = function(key, digest)
    local found = call('GET', key)
    return found and redis.sha1hex(found) == digest
  end,
  -- No more wait than so many jobs and milliseconds: of all owners, and of one.
  room = function(most, milliseconds)
    return call('ZCARD', waiting) < tonumber(most) and figure('milliseconds') < tonumber(milliseconds)
  end,
  share = function(most, milliseconds, owner)
    return figure('jobs of ' .. owner) < tonumber(most) and figure('milliseconds of ' .. owner) < tonumber(milliseconds)
  end,
}

local place = 7 -- of the argument that was read last

local function phrase()
  local first = place + 2
  place = place + 1 + tonumber(ARGV[place + 1])
  return unpack(ARGV, first, place)
end

local function holds(condition, ...)
  return conditions[condition](...)
end

local function obey(command, step, ...)
  if command ~= 'LINE' then
    return call(command, step, ...)
  end
  steps[step](...)
  fill()
end

for number = 1, tonumber(ARGV[7]) do
  if not holds(phrase()) then
    return number
  end
end
while place < #ARGV do
  obey(phrase())
end
return 0
