"""The scripts that run in Redis: every change of logs, routes and inboxes is one of them, so each is atomic and all are in
one order. `redis_backend` calls them; `redis_keys` says what the keys hold.

Rules: KEYS[1] is the shard's id key, and gives the prefix of all others. Each script begins with a look at a key that never
exists: in a Redis Cluster whose slot is just moving to another server, that fails on the old one and the call itself fails on
the new one, while nothing is changed. So no script runs against half of the keys. Repeating a call is harmless: by its
connection id, or by a nonce under which the first answer is kept for some seconds. Each change takes an id, which is noted as
the caller's last in the same step and answered: so with `PROBE` an instance can tell that a server lacks something that was
acknowledged to it.
"""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the digest by which Redis knows it."""

    name: str
    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


_PRELUDE = """
local P = string.sub(KEYS[1], 1, -3)
local ROUTES, USERS, NODES, OUTSIDE, ACKED = P..'routes', P..'users', P..'nodes', P..'outside', P..'acked'
local INBOX_MAX = 100000
local OVER_MS = 10000
local DAY_US = 86400000000

redis.call('EXISTS', P..'none')

local function text(id) return string.format('%.0f', id) end

local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Greater than every id before. `floor` is the greatest that the caller knows: one above the last given here means that a
-- failover or a flush took something along, so a new epoch begins, and whoever is behind it is told of a gap. No clock is
-- wrong by more than a day; what claims so must not use up the ids.
local function next_id(floor)
  local last, now = tonumber(redis.call('GET', P..'id') or '0'), now_us()
  local known = tonumber(floor)
  known = known <= now + DAY_US and math.max(last, known) or last
  local id = math.max(known + 1, now)
  redis.call('SET', P..'id', text(id))
  if last == 0 or known > last then redis.call('SET', P..'epoch', text(id)) end
  return id
end

local function current_id()
  local last = redis.call('GET', P..'id')
  return last and tonumber(last) or next_id(0)
end

-- A route: instance, connection, JSON of the device. One that the broker can not have written is nil, as if it were not there.
local function parse_route(route)
  local node, connection, json = string.match(route, '^(%S+) (%S+) (.*)$')
  local good, device = pcall(cjson.decode, json or '')
  if not good or type(device) ~= 'table' or type(device.uid) ~= 'string' or type(device.token_digest) ~= 'string' then
    return nil
  end
  device.token_expires_at = tonumber(device.token_expires_at) or 0
  return {node = node, connection = connection, device = device}
end

local function route_of(did)
  local route = redis.call('HGET', ROUTES, did)
  return route and parse_route(route)
end

-- The uid stands first in the JSON that instances write; so the rest need not be read.
local function uid_of(route)
  local uid = string.match(route, '^%S+ %S+ {"uid": "([^"\\\\]*)"')
  if uid then return uid end
  local parsed = parse_route(route)
  return parsed and parsed.device.uid
end

local function announce(channel, did, device, when, reason, payload)
  redis.call('PUBLISH', channel, cjson.encode({uid = device.uid, device_id = did, device_name = device.device_name,
    trigger_time = when, reason = reason, payload = payload}))
end

local function remove(did, route, when, reason, payload, expire_ms, keep_user)
  local uid = route.device.uid
  redis.call('HDEL', ROUTES, did)
  redis.call('SREM', P..'user:'..uid, did)
  redis.call('SREM', P..'held:'..route.node, did)
  redis.call('SET', P..'owner:'..did, uid, 'PX', expire_ms)
  local left = redis.call('HINCRBY', USERS, uid, -1)
  if left <= 0 then redis.call('HDEL', USERS, uid) end
  if reason == '' then return end
  announce('sse_topic_device_offline', did, route.device, when, reason, payload)
  if left <= 0 and not keep_user then
    announce('sse_topic_user_offline', did, route.device, when, reason, payload)
  end
end

-- Frames for a device are kept for the user under whom it is here or was last; before the first, for whoever comes.
local function device_log(did, uid) return P..'log:d:'..did..':'..uid end

local function add(did, value, uid, node)
  local unclaimed = device_log(did, '')
  if redis.call('EXISTS', unclaimed) == 1 then redis.call('RENAMENX', unclaimed, device_log(did, uid)) end
  redis.call('HSET', ROUTES, did, value)
  redis.call('SADD', P..'user:'..uid, did)
  redis.call('SADD', P..'held:'..node, did)
  redis.call('DEL', P..'owner:'..did)
  return redis.call('HINCRBY', USERS, uid, 1) == 1
end

-- A connection that is over: a join of it that was sent before and arrives now, or is repeated, adds nothing.
local function bury(connection)
  redis.call('SET', P..'done:'..connection, 'over', 'PX', OVER_MS)
end

local known_nodes = {}
local function is_known(node)
  if known_nodes[node] == nil then
    known_nodes[node] = redis.call('HEXISTS', NODES, node) == 1 or redis.call('HEXISTS', OUTSIDE, node) == 1
  end
  return known_nodes[node]
end

-- Notes an id that is about to be acknowledged to an instance. Ids only rise.
local function acknowledge(node, id)
  if is_known(node) then redis.call('HSET', ACKED, node, id) end
  return id
end

local function post_end(did, route, reason, payload)
  if not is_known(route.node) then return end
  redis.call('XADD', P..'inbox:'..route.node, 'MAXLEN', '~', INBOX_MAX, text(next_id(0))..'-0',
    'k', 'end', 'i', did, 'c', route.connection, 'r', reason, 'p', payload)
end

-- The ids of the online devices among these users and devices, each once; fills `routes` by device id. Not parsed yet, but
-- for the instance, which must be one: an inbox of another would stay for ever.
local function online(users, devices, routes)
  local found = {}
  local function look_up(did)
    if routes[did] then return end
    local route = redis.call('HGET', ROUTES, did)
    local node = route and string.match(route, '^%S+')
    if node and is_known(node) then
      routes[did] = route
      found[#found + 1] = did
    end
  end
  for _, uid in ipairs(users) do
    for _, did in ipairs(redis.call('SMEMBERS', P..'user:'..uid)) do look_up(did) end
  end
  for _, did in ipairs(devices) do look_up(did) end
  return found
end

-- A count and as many values, from ARGV[at]; returns them and where the next stands.
local function take(at)
  local count, values = tonumber(ARGV[at]), {}
  for i = 1, count do values[i] = ARGV[at + i] end
  return values, at + count + 1
end

-- Entries after an id, a page for each of a device's logs, and up to which id entries may be missing (0: none are). The newest
-- entry of a log names the last that was dropped.
local function read_logs(uid, did, after, count, expire_ms)
  local from = text(after + 1)
  local gap, epoch, horizon = 0, tonumber(redis.call('GET', P..'epoch') or '0'), now_us() - expire_ms * 1000
  if after < epoch then gap = epoch - 1 end
  if after < horizon then gap = math.max(gap, horizon) end
  local pages = {}
  for i, key in ipairs({P..'log:all', P..'log:u:'..uid, device_log(did, uid)}) do
    local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    pages[i] = {}
    if newest and tonumber(string.match(newest[1], '^%d+')) > after then
      local fields = newest[2]
      local dropped = fields[5] == 't' and tonumber(fields[6]) or 0
      if dropped > after then gap = math.max(gap, dropped) end
      pages[i] = redis.call('XRANGE', key, from, '+', 'COUNT', count)
    end
  end
  return text(gap), pages
end
"""


def _script(name: str, body: str) -> Script:
    return Script(name, _PRELUDE + body)


# ARGV: nonce, keep_ms, highest id known, max frames, expire_ms, instance, count; for each: event, data, users, devices.
# Returns "id count" for each, joined by spaces.
PUBLISH = _script(
    "publish",
    """
local done_key = P..'done:'..ARGV[1]
local done = redis.call('GET', done_key)
if done then return done end
local floor, max_frames, expire_ms = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local nodes
local members = {}
-- Only a member has a whole inbox; another, just cleared or coming back, reads what it missed from the logs.
local function is_member(node)
  if members[node] == nil then members[node] = redis.call('HEXISTS', NODES, node) == 1 end
  return members[node]
end
local plans = {}
local at = 8
for i = 1, tonumber(ARGV[7]) do
  local plan = {event = ARGV[at], data = ARGV[at + 1], logs = {}, owners = {}, nodes = {}}
  local users, devices
  users, at = take(at + 2)
  devices, at = take(at)
  if #users == 0 and #devices == 0 then
    plan.logs[1] = P..'log:all'
    plan.count = redis.call('HLEN', ROUTES)
    nodes = nodes or redis.call('HKEYS', NODES)
    for _, node in ipairs(nodes) do plan.nodes[node] = {} end
  else
    for _, uid in ipairs(users) do plan.logs[#plan.logs + 1] = P..'log:u:'..uid end
    local routes = {}
    local found = online(users, devices, routes)
    for _, did in ipairs(devices) do
      local uid = routes[did] and uid_of(routes[did])
      if not uid then
        uid = redis.call('GET', P..'owner:'..did)
        if uid then plan.owners[#plan.owners + 1] = P..'owner:'..did end
      end
      plan.logs[#plan.logs + 1] = device_log(did, uid or '')
    end
    plan.count = #found
    for _, did in ipairs(found) do
      local node = string.match(routes[did], '^%S+')
      if is_member(node) then
        local list = plan.nodes[node]
        if not list then list = {}; plan.nodes[node] = list end
        list[#list + 1] = did
      end
    end
  end
  plans[i] = plan
end
local answer = {}
local first = next_id(floor)
-- All ids at once: three calls for the group instead of three for each.
if #plans > 1 then redis.call('SET', P..'id', text(first + #plans - 1)) end
for i, plan in ipairs(plans) do
  local id = text(first + i - 1)
  local entry = id..'-0'
  for _, key in ipairs(plan.logs) do
    local excess = redis.call('XLEN', key) - max_frames + 1
    if excess > 0 then
      local dropped = redis.call('XRANGE', key, '-', '+', 'COUNT', excess)
      local last = string.match(dropped[#dropped][1], '^%d+')
      redis.call('XADD', key, 'MAXLEN', '=', max_frames, entry, 'e', plan.event, 'd', plan.data, 't', last)
    else
      redis.call('XADD', key, entry, 'e', plan.event, 'd', plan.data)
    end
    redis.call('PEXPIRE', key, expire_ms)
  end
  for _, key in ipairs(plan.owners) do redis.call('PEXPIRE', key, expire_ms) end
  for node, dids in pairs(plan.nodes) do
    redis.call('XADD', P..'inbox:'..node, 'MAXLEN', '~', INBOX_MAX, entry,
      'e', plan.event, 'd', plan.data, 't', table.concat(dids, ' '))
  end
  answer[#answer + 1] = id..' '..plan.count
end
acknowledge(ARGV[6], text(first + #plans - 1))
answer = table.concat(answer, ' ')
redis.call('SET', done_key, answer, 'PX', ARGV[2])
return answer
""",
)

# ARGV: device id, uid, connection, instance, JSON of the device, its address, its instance's address, token digest,
# local time, expire_ms, last id or '', page, keep_ms. Returns what happened, then id, gap and pages. A call that comes again
# after its device was taken by another connection only reads: that one is newer, and the end of this one is on the bus.
JOIN = _script(
    "join",
    """
local did, uid, connection, node, json = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local address, instance_address, digest, when, expire_ms = ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
if redis.call('EXISTS', P..'revoked:'..digest) == 1 then return {'revoked'} end
if redis.call('HEXISTS', NODES, node) == 0 then return {'unregistered'} end
local former, done_key = route_of(did), P..'done:'..connection
if (not former or former.connection ~= connection) and redis.call('EXISTS', done_key) == 0 then
  local same_user = former and former.device.uid == uid
  if former then
    remove(did, former, when, 'extrude_offline', address, expire_ms, same_user)
    bury(former.connection)
    post_end(did, former, 'extrude_offline', address)
  end
  local first = add(did, node..' '..connection..' '..json, uid, node)
  local device = cjson.decode(json)
  announce('sse_topic_device_online', did, device, when, 'connected', instance_address)
  if first and not same_user then
    announce('sse_topic_user_online', did, device, when, 'device_online', instance_address)
  end
  redis.call('SET', done_key, '1', 'PX', ARGV[13])
  next_id(0)
end
local id = acknowledge(node, text(current_id()))
if ARGV[11] == '' then return {'joined', id, 0, {}} end
local gap, pages = read_logs(uid, did, tonumber(ARGV[11]), ARGV[12], expire_ms)
return {'joined', id, gap, pages}
""",
)

# ARGV: device id, uid, after id, page, expire_ms. Returns id, gap and pages.
REPLAY = _script(
    "replay",
    """
local id = current_id()
local gap, pages = read_logs(ARGV[2], ARGV[1], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]))
return {text(id), gap, pages}
""",
)

# ARGV: local time, expire_ms, instance, device id, connection, reason, payload. Returns an id, or 0 when the cluster has
# forgotten the instance, and so what the device was: its going can not be announced before others have put their presence
# right. A reason that is empty: its going was announced already, by a server that has forgotten it.
LEAVE = _script(
    "leave",
    """
local node, did, connection = ARGV[3], ARGV[4], ARGV[5]
local route = route_of(did)
if route and route.connection == connection then
  remove(did, route, ARGV[1], ARGV[6], ARGV[7], ARGV[2])
elseif redis.call('HEXISTS', NODES, node) == 0 and redis.call('EXISTS', P..'cleared:'..node) == 0 then
  return 0
end
bury(connection)
return acknowledge(node, text(next_id(0)))
""",
)

# ARGV: nonce, keep_ms, instance, local time, expire_ms, data, users, devices. Returns "id count": how many devices.
KICK = _script(
    "kick",
    """
local done_key = P..'done:'..ARGV[1]
local done = redis.call('GET', done_key)
if done then return done end
local routes, users, devices, at = {}, nil, nil, nil
users, at = take(7)
devices = take(at)
local kicked = 0
for _, did in ipairs(online(users, devices, routes)) do
  local route = parse_route(routes[did])
  if route then
    kicked = kicked + 1
    local digest, expires_ms = route.device.token_digest, route.device.token_expires_at * 1000
    if digest ~= '' and expires_ms > now_us() / 1000 then
      redis.call('SET', P..'revoked:'..digest, '1', 'PXAT', text(expires_ms))
    end
    remove(did, route, ARGV[4], 'kick_offline', ARGV[6], ARGV[5])
    bury(route.connection)
    post_end(did, route, 'kick_offline', ARGV[6])
  else
    redis.call('HDEL', ROUTES, did)
  end
end
local answer = acknowledge(ARGV[3], text(next_id(0)))..' '..kicked
redis.call('SET', done_key, answer, 'PX', ARGV[2])
return answer
""",
)

# ARGV: instance, address, version, start time, ttl_ms, greatest id known. Keeps the instance's heartbeat, but makes it no
# member: repeating it must tell the same. Returns whether it is a member, whether it was cleared, the epoch, how many devices
# it holds, and the instances whose heartbeat is missing.
BEAT = _script(
    "beat",
    """
local node = ARGV[1]
if current_id() < tonumber(ARGV[6]) then next_id(ARGV[6]) end
redis.call('HSET', P..'node:'..node, 'address', ARGV[2], 'version', ARGV[3], 'start_time', ARGV[4])
redis.call('PEXPIRE', P..'node:'..node, ARGV[5])
local dead = {}
for _, hash in ipairs({NODES, OUTSIDE}) do
  for _, other in ipairs(redis.call('HKEYS', hash)) do
    if redis.call('EXISTS', P..'node:'..other) == 0 then dead[#dead + 1] = other end
  end
end
return {redis.call('HEXISTS', NODES, node), redis.call('EXISTS', P..'cleared:'..node), redis.call('GET', P..'epoch'),
  redis.call('SCARD', P..'held:'..node), dead}
""",
)

# ARGV: the dead instance, how many devices at most, local time, expire_ms, who clears it, reason (empty: it was announced already,
# by a server that has forgotten it). Returns how many were removed and are left, and an id. The first call ends its membership,
# so that its inbox has no holes but one at the end.
CLEAR = _script(
    "clear",
    """
local node = ARGV[1]
if redis.call('EXISTS', P..'node:'..node) == 1 then return {0, 0, '0'} end
local address = redis.call('HGET', NODES, node)
if address then
  redis.call('HDEL', NODES, node)
  redis.call('HSET', OUTSIDE, node, address)
else
  address = redis.call('HGET', OUTSIDE, node)
  if not address then return {0, 0, '0'} end
end
redis.call('SET', P..'cleared:'..node, '1', 'EX', 86400)
local removed = 0
for _, did in ipairs(redis.call('SRANDMEMBER', P..'held:'..node, ARGV[2])) do
  local route = route_of(did)
  if route and route.node == node then
    remove(did, route, ARGV[3], ARGV[6], address, ARGV[4])
    removed = removed + 1
  else
    if not route then redis.call('HDEL', ROUTES, did) end
    redis.call('SREM', P..'held:'..node, did)
  end
end
local left = redis.call('SCARD', P..'held:'..node)
if left == 0 then
  redis.call('HDEL', OUTSIDE, node)
  redis.call('HDEL', ACKED, node)
  redis.call('DEL', P..'inbox:'..node)
end
return {removed, left, acknowledge(ARGV[5], text(next_id(0)))}
""",
)

# ARGV: instance, its address, announce, local time, expire_ms, then device id, uid, connection, JSON for each. For devices
# whose routes were lost. Returns those that may not come back, because they were kicked or have a newer stream elsewhere:
# device id, connection, reason, payload for each. An older stream elsewhere was extruded, which a server has forgotten.
REJOIN = _script(
    "rejoin",
    """
local node, gone = ARGV[1], {}
-- Should the instance die before it is a member again, others find here what it holds.
if redis.call('HEXISTS', NODES, node) == 0 then redis.call('HSET', OUTSIDE, node, ARGV[2]) end
local aloud = ARGV[3] == '1'
for at = 6, #ARGV, 4 do
  local did, uid, connection, json = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local device, former = cjson.decode(json), route_of(did)
  local moved = former and former.connection ~= connection
  local function refuse(reason, payload)
    for _, value in ipairs({did, connection, reason, payload}) do gone[#gone + 1] = value end
  end
  if redis.call('EXISTS', P..'revoked:'..device.token_digest) == 1 then
    refuse('kick_offline', '')
  elseif moved and (tonumber(former.device.login_time) or 0) >= device.login_time then
    refuse('extrude_offline', tostring(former.device.device_address))
  elseif (moved or not former) and redis.call('GET', P..'done:'..connection) == 'over' then
    -- The word that it is over went with the inbox of an instance that was cleared; a member's is on its way.
    if redis.call('HEXISTS', NODES, node) == 0 then refuse('extrude_offline', '') end
  elseif moved or not former then
    local same_user = moved and former.device.uid == uid
    if moved then
      local reason = aloud and 'extrude_offline' or ''
      remove(did, former, ARGV[4], reason, device.device_address, ARGV[5], same_user)
      bury(former.connection)
      post_end(did, former, 'extrude_offline', device.device_address)
    end
    local first = add(did, node..' '..connection..' '..json, uid, node)
    if aloud then
      announce('sse_topic_device_online', did, device, ARGV[4], 'connected', device.instance_address)
      if first and not same_user then
        announce('sse_topic_user_online', did, device, ARGV[4], 'device_online', device.instance_address)
      end
    end
  end
end
return gone
""",
)

# ARGV: instance, its address. Makes it a member, now that its routes are there. Returns an id.
REGISTER = _script(
    "register",
    """
redis.call('HSET', NODES, ARGV[1], ARGV[2])
redis.call('HDEL', OUTSIDE, ARGV[1])
redis.call('DEL', P..'cleared:'..ARGV[1])
return acknowledge(ARGV[1], text(next_id(0)))
""",
)

# ARGV: instance. Takes it out of the cluster; what it still holds is left to be cleared by the others.
RETIRE = _script(
    "retire",
    """
redis.call('DEL', P..'node:'..ARGV[1])
if redis.call('SCARD', P..'held:'..ARGV[1]) == 0 then
  for _, hash in ipairs({NODES, OUTSIDE, ACKED}) do redis.call('HDEL', hash, ARGV[1]) end
  redis.call('DEL', P..'inbox:'..ARGV[1])
end
return 1
""",
)

# ARGV: instance. Returns the routes that it holds, device id and route in turn; forgets what is damaged or another's.
HELD = _script(
    "held",
    """
local found = {}
for _, did in ipairs(redis.call('SMEMBERS', P..'held:'..ARGV[1])) do
  local route = redis.call('HGET', ROUTES, did)
  local parsed = route and parse_route(route)
  if parsed and parsed.node == ARGV[1] then
    found[#found + 1] = did
    found[#found + 1] = route
  else
    if not parsed then redis.call('HDEL', ROUTES, did) end
    redis.call('SREM', P..'held:'..ARGV[1], did)
  end
end
return found
""",
)

# ARGV: users, devices. Returns the routes of those online.
ROUTES = _script(
    "routes",
    """
local users, at = take(1)
local devices = take(at)
local routes, answer = {}, {}
for i, did in ipairs(online(users, devices, routes)) do answer[i] = routes[did] end
return answer
""",
)

# Returns the numbers of users and of devices online, and for each live instance: id, address, version, start time, devices.
OVERVIEW = _script(
    "overview",
    """
local instances = {}
for _, node in ipairs(redis.call('HKEYS', NODES)) do
  local fields = redis.call('HMGET', P..'node:'..node, 'address', 'version', 'start_time')
  if fields[1] then
    local count = redis.call('SCARD', P..'held:'..node)
    instances[#instances + 1] = {node, fields[1], fields[2], fields[3], count}
  end
end
return {redis.call('HLEN', USERS), redis.call('HLEN', ROUTES), instances}
""",
)

# ARGV: instance, the greatest id that was acknowledged to it. The first call on every connection. It fails on a server that takes
# no writes or lacks keys of the slot. Where something is missing that was acknowledged, a new epoch begins: ids alone would not
# tell, once another instance that misses nothing has taken greater ones. An instance that was cleared knows of it otherwise.
PROBE = _script(
    "probe",
    """
redis.call('DEL', P..'none')
local node, known = ARGV[1], tonumber(ARGV[2])
local acked = tonumber(redis.call('HGET', ACKED, node) or '0')
if known <= acked or redis.call('EXISTS', P..'cleared:'..node) == 1 then return 0 end
local id = text(next_id(known))
redis.call('SET', P..'epoch', id)
acknowledge(node, id)
return 1
""",
)

ALL = (PUBLISH, JOIN, REPLAY, LEAVE, KICK, BEAT, CLEAR, REJOIN, REGISTER, RETIRE, HELD, ROUTES, OVERVIEW, PROBE)
