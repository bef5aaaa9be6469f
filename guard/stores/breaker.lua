-- The circuit breaker on Redis: one hash per circuit, one script for all that is done to it.
--
-- KEYS[1]  the circuit's hash
-- ARGV     channel, the circuit's key, operation, and then
--   acquire   token for a probe, lease in ms
--   record    token, outcome, failure threshold, success threshold, cooldown in ms
--   override  forced_open | forced_closed | disabled | none, reason
--   merge     snapshot as JSON, token of the released probe or ''
--   read
--
-- Returns {allowed, retry_after_ms, token, event, from_state, to_state, snapshot}; the snapshot is JSON, with times in
-- seconds from now, so that two stores need not agree on what time it is. Every change is published on the channel.
-- Time is this server's. The rules are those of sql/functions/circuit_breaker.sql and circuit_breaker_stores.sql.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local NUMBERS = {
  'generation', 'failure_count', 'success_count', 'open_until', 'probe_until', 'opened_at', 'closed_at', 'failed_at',
  'override_revision',
}
local FIELDS = {
  'state', 'probe_token', 'override', 'override_reason',
  'generation', 'failure_count', 'success_count', 'open_until', 'probe_until', 'opened_at', 'closed_at', 'failed_at',
  'override_revision',
}
local WEEK = 7 * 24 * 3600 * 1000

local function load()
  local values = redis.call('HMGET', KEYS[1], unpack(FIELDS))
  local circuit = {}
  for i, field in ipairs(FIELDS) do
    circuit[field] = values[i] or nil
  end
  for _, field in ipairs(NUMBERS) do
    circuit[field] = tonumber(circuit[field])
  end
  circuit.state = circuit.state or 'closed'
  circuit.generation = circuit.generation or 0
  circuit.failure_count = circuit.failure_count or 0
  circuit.success_count = circuit.success_count or 0
  circuit.override_revision = circuit.override_revision or 0
  return circuit
end

local function ahead(moment) return moment and (moment - now) / 1000 end
local function behind(moment) return moment and (now - moment) / 1000 end

local function snapshot(circuit)
  return cjson.encode({
    state = circuit.state,
    generation = circuit.generation,
    failure_count = circuit.failure_count,
    success_count = circuit.success_count,
    open_for = ahead(circuit.open_until),
    probe_token = circuit.probe_token,
    probe_for = ahead(circuit.probe_until),
    opened_ago = behind(circuit.opened_at),
    closed_ago = behind(circuit.closed_at),
    failed_ago = behind(circuit.failed_at),
    override = circuit.override,
    override_reason = circuit.override_reason,
    override_revision = circuit.override_revision,
  })
end

-- `brief` says in one string what a reader needs to see that a circuit has not changed; see RedisStore.unchanged.
local function save(circuit)
  local values = { 'brief', table.concat({
    circuit.override or circuit.state,
    string.format('%.0f:%.0f:%.0f', circuit.generation, circuit.failure_count, circuit.override_revision),
  }, ':') }
  for _, field in ipairs(FIELDS) do
    if circuit[field] ~= nil then
      values[#values + 1] = field
      local value = circuit[field]
      values[#values + 1] = type(value) == 'number' and string.format('%.0f', value) or value
    end
  end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(values))
  redis.call('PEXPIRE', KEYS[1], WEEK)
  redis.call('PUBLISH', ARGV[1], cjson.encode({ key = ARGV[2], snapshot = snapshot(circuit) }))
end

local function reply(circuit, allowed, retry_after, token, event, from)
  return {
    allowed and 1 or 0, math.ceil(retry_after or 0), token or '', event or '', from or '',
    circuit.override or circuit.state, snapshot(circuit),
  }
end

-- What a call through a closed circuit gets instead of a lease: its generation, written as a uuid.
local function ticket(generation)
  local digits = string.format('%032x', generation)
  return digits:sub(1, 8) .. '-' .. digits:sub(9, 12) .. '-' .. digits:sub(13, 16) .. '-' .. digits:sub(17, 20)
    .. '-' .. digits:sub(21)
end

local function acquire(circuit, token, lease)
  if circuit.override == 'forced_open' then
    return reply(circuit, false)
  elseif circuit.override or circuit.state == 'closed' then
    return reply(circuit, true, 0, ticket(circuit.generation))
  elseif circuit.state == 'open' and circuit.open_until and circuit.open_until > now then
    return reply(circuit, false, circuit.open_until - now)
  elseif circuit.probe_until and circuit.probe_until > now then
    -- somebody probes: how it ends is known within the lease, and mostly much sooner
    return reply(circuit, false, math.min(1000, circuit.probe_until - now))
  end
  local from = circuit.state
  if from == 'open' then
    circuit.state = 'half_open'
    circuit.generation = circuit.generation + 1
    circuit.success_count = 0
    circuit.open_until = nil
  end
  circuit.probe_token = token
  circuit.probe_until = now + lease
  save(circuit)
  return reply(circuit, true, 0, token, from == 'open' and 'transition' or '', from)
end

-- The state machine: the circuit after an outcome that counts.
local function step(circuit, outcome, failure_threshold, success_threshold, cooldown)
  local from = circuit.state
  circuit.probe_token = nil
  circuit.probe_until = nil
  if outcome == 'failure' then
    circuit.failure_count = circuit.failure_count + 1
    circuit.failed_at = now
    if from == 'half_open' or circuit.failure_count >= failure_threshold then
      circuit.state = 'open'
      circuit.open_until = now + cooldown
      circuit.success_count = 0
      if from == 'closed' then
        circuit.opened_at = now
        circuit.closed_at = nil
      end
    end
  elseif outcome == 'success' and from == 'closed' then
    circuit.failure_count = 0
  elseif outcome == 'success' then
    circuit.success_count = circuit.success_count + 1
    if circuit.success_count >= success_threshold then
      circuit.state = 'closed'
      circuit.failure_count = 0
      circuit.closed_at = now
    end
  end
  if circuit.state ~= from then
    circuit.generation = circuit.generation + 1
  end
end

local function record(circuit, token, outcome, failure_threshold, success_threshold, cooldown)
  local current = ticket(circuit.generation)
  if token == current and (
    circuit.override or outcome == 'ignored' or (outcome == 'success' and circuit.failure_count == 0)
  ) then
    return reply(circuit, true)
  end
  if token ~= (circuit.probe_token or current) or (token == current and circuit.state ~= 'closed') then
    return reply(circuit, true, 0, '', 'stale_result', circuit.override or circuit.state)
  end
  local from = circuit.state
  step(circuit, outcome, failure_threshold, success_threshold, cooldown)
  save(circuit)
  return reply(circuit, true, 0, '', circuit.state ~= from and 'transition' or '', from)
end

local function override(circuit, wanted, reason)
  local from = circuit.override or circuit.state
  if wanted == 'forced_open' then
    if circuit.state == 'closed' then circuit.opened_at = now end
    circuit.closed_at = nil
  elseif circuit.state ~= 'closed' then
    circuit.closed_at = now
  end
  circuit.state = wanted == 'forced_open' and 'open' or 'closed'
  circuit.override = wanted ~= 'none' and wanted or nil
  circuit.override_reason = wanted ~= 'none' and reason or nil
  circuit.override_revision = circuit.override_revision + 1
  circuit.generation = circuit.generation + 1
  circuit.failure_count = 0
  circuit.success_count = 0
  circuit.open_until = nil
  circuit.probe_token = nil
  circuit.probe_until = nil
  save(circuit)
  return reply(circuit, true, 0, '', 'override', from)
end

local function merge(circuit, encoded, released)
  local other = cjson.decode(encoded)
  for name, value in pairs(other) do
    if value == cjson.null then other[name] = nil end
  end
  local function at(seconds, sign) return seconds and now + sign * seconds * 1000 end
  if other.override_revision > circuit.override_revision
    or (other.override_revision == circuit.override_revision and other.generation > circuit.generation)
  then
    local own = circuit.generation
    circuit = {
      state = other.state,
      generation = math.max(other.generation, own + 1),
      failure_count = other.failure_count or 0,
      success_count = other.success_count or 0,
      open_until = at(other.open_for, 1),
      probe_token = other.probe_token,
      probe_until = other.probe_token and at(other.probe_for, 1),
      opened_at = at(other.opened_ago, -1),
      closed_at = at(other.closed_ago, -1),
      failed_at = at(other.failed_ago, -1),
      override = other.override,
      override_reason = other.override_reason,
      override_revision = other.override_revision,
    }
    save(circuit)
  elseif circuit.state == 'half_open' and other.override_revision == circuit.override_revision
    and other.generation == circuit.generation
  then
    if circuit.probe_token == released or (circuit.probe_until and circuit.probe_until <= now) then
      circuit.probe_token = nil
      circuit.probe_until = nil
    end
    circuit.success_count = math.max(circuit.success_count, other.success_count or 0)
    if not circuit.probe_token and other.probe_token then
      circuit.probe_token = other.probe_token
      circuit.probe_until = at(other.probe_for, 1)
    end
    save(circuit)
  end
  return reply(circuit, true)
end

local circuit = load()
local operation = ARGV[3]
if operation == 'acquire' then
  return acquire(circuit, ARGV[4], tonumber(ARGV[5]))
elseif operation == 'record' then
  return record(circuit, ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]))
elseif operation == 'override' then
  return override(circuit, ARGV[4], ARGV[5])
elseif operation == 'merge' then
  return merge(circuit, ARGV[4], ARGV[5])
end
return reply(circuit, true)
