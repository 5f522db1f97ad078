"""The scripts of membership: heartbeats, clearing, joining again, and who is a member of the cluster. `redis_membership`
calls most of them; `redis_script` says what rules they keep.
"""

from sse_broker.redis_script import script

# ARGV: instance, address, version, start time, ttl_ms, greatest id known. Keeps the instance's heartbeat, but makes it no
# member: repeating it must tell the same. Returns whether it is a member, whether it was cleared, the epoch, how many devices
# it holds, and the instances whose heartbeat is missing.
BEAT = script(
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
CLEAR = script(
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
REJOIN = script(
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
    local first = add(did, node..' '..connection..' '..json, uid, node, ARGV[5])
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
REGISTER = script(
    "register",
    """
redis.call('HSET', NODES, ARGV[1], ARGV[2])
redis.call('HDEL', OUTSIDE, ARGV[1])
redis.call('DEL', P..'cleared:'..ARGV[1])
return acknowledge(ARGV[1], text(next_id(0)))
""",
)

# ARGV: instance. Takes it out of the cluster; what it still holds is left to be cleared by the others.
RETIRE = script(
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
HELD = script(
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

# Returns the numbers of users and of devices online, and for each live instance: id, address, version, start time, devices.
OVERVIEW = script(
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
PROBE = script(
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

ALL = (BEAT, CLEAR, REJOIN, REGISTER, RETIRE, HELD, OVERVIEW, PROBE)
