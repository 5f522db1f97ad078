"""The scripts of frames and presence: every change of logs, routes and inboxes is one of them or of `redis_member_scripts`, so
each is atomic and all are in one order. `redis_backend` calls them; `redis_keys` says what the keys hold, `redis_script` what
rules they keep.
"""

from sse_broker import redis_member_scripts
from sse_broker.redis_script import script

# ARGV: nonce, keep_ms, highest id known, max frames, expire_ms, instance, count; for each: event, data, users, devices.
# Returns "id count" for each, joined by spaces.
PUBLISH = script(
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
JOIN = script(
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
  local is_older = ARGV[11] ~= '' and tonumber(ARGV[11]) < tonumber(redis.call('GET', P..'epoch') or '0')
  local first = add(did, node..' '..connection..' '..json, uid, node, is_older and expire_ms)
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
REPLAY = script(
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
LEAVE = script(
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
KICK = script(
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

# ARGV: users, devices. Returns the routes of those online.
ROUTES = script(
    "routes",
    """
local users, at = take(1)
local devices = take(at)
local routes, answer = {}, {}
for i, did in ipairs(online(users, devices, routes)) do answer[i] = routes[did] end
return answer
""",
)

ALL = (PUBLISH, JOIN, REPLAY, LEAVE, KICK, ROUTES, *redis_member_scripts.ALL)
