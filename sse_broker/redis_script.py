"""What a script that runs in Redis is, and what all of them share: names of keys, ids, routes, logs. It knows none of them.

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


# Entries of an inbox at most: one that is as long may have lost its oldest.
INBOX_MAX = 100_000

_PRELUDE = (
    f"local INBOX_MAX = {INBOX_MAX}\n"
    + """
local P = string.sub(KEYS[1], 1, -3)
local ROUTES, USERS, NODES, OUTSIDE, ACKED = P..'routes', P..'users', P..'nodes', P..'outside', P..'acked'
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

local function strayed(did, uid) return P..'strayed:'..did..':'..uid end

-- `doubt_ms` is set where this may come behind a loss of data. Then frames for the device may lie with a user whom it had before,
-- as that it had changed its user was lost too; up to which id, is kept so long.
local function add(did, value, uid, node, doubt_ms)
  local owner = doubt_ms and redis.call('GET', P..'owner:'..did)
  if owner and owner ~= uid then redis.call('SET', strayed(did, uid), text(current_id()), 'PX', doubt_ms) end
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
  if after < epoch then
    gap = math.max(epoch - 1, tonumber(redis.call('GET', strayed(did, uid)) or '0'))
  end
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
)


def script(name: str, body: str) -> Script:
    """Return a script; `body` is Lua that may use all of the above, and ARGV."""
    return Script(name, _PRELUDE + body)
