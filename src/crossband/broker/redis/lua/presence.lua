-- Who is in the rooms of one namespace. Beside the keys of its log:
--   here:clients  hash: socket id -> {owner, take, user, grace (ms), rooms}; rooms are room, member
--                 and the member's JSON, in turns
--   here:members  hash: room \0 member -> its clients, the number where it joined, its JSON
--   here:order    zset: room \0 number where it joined, 16 digits \0 member
--   here:cut      zset: socket id -> when the client leaves, or is forgotten if it is in no room (ms)
--   here:at       zset: node \0 socket id, of connected clients
--   here:nodes    zset: node -> when its lease ends (ms)
--   here:calls    hash: node -> the last of its calls before which none is missing
-- Every script has these ARGV first: base, skew (ms), id of a new log, age (ms), most entries, most bytes,
-- most bytes for one socket, PUBLISH or SPUBLISH, channel, node, 1 on a new connection

-- Clients that are looked at in one step, of nodes that are gone or of those that are due.
local BATCH = 200

-- Return what a script works on: the keys, the time, the log, and the entries that it will append.
local function here()
    local p = {key = ARGV[1] .. 'here:', age = tonumber(ARGV[4]), list = {}, left = BATCH}
    p.t = clock(ARGV[2])
    p.m = open(ARGV[1], ARGV[3], p.age, p.t)
    return p
end

-- Append what was said, and keep what is known as long as the log, or a minute where nobody is. A renewal
-- does so as well, so `keep` is false if one is sure to follow.
local function finish(p, keep)
    if #p.list > 0 then
        local bounds = {age = p.age, size = tonumber(ARGV[5]), limit = tonumber(ARGV[6]), own = tonumber(ARGV[7])}
        append(p.m, bounds, {verb = ARGV[8], channel = ARGV[9]}, p.list, 1, ARGV[10], 0, ARGV[11] == '1')
    end
    local somebody = redis.call('EXISTS', p.key .. 'clients') == 1
    local life = somebody and math.max(DAY, 2 * p.age) or 60000
    for _, name in ipairs({'clients', 'members', 'order', 'cut', 'at', 'nodes', 'calls'}) do
        -- -1 if it is new: its node may end before it renews anything.
        local left = redis.call('PTTL', p.key .. name)
        if left == -1 or left > life or (keep and left < life - 60000) then
            redis.call('PEXPIRE', p.key .. name, life)
        end
    end
end

-- Say something about a member: an event of the room, as msgpack has it.
local function say(p, event, room, json)
    local count = redis.call('ZLEXCOUNT', p.key .. 'order', '[' .. room .. '\0', '(' .. room .. '\1')
    local data = '[{"room":' .. cjson.encode(room) .. ',"member":' .. json .. ',"count":' .. count .. '}]'
    local list = p.list
    list[#list + 1] = #data
    list[#list + 1] = ''
    list[#list + 1] = '\152\195\145' .. cmsgpack.pack(room) .. '\144' .. cmsgpack.pack('presence:' .. event)
        .. '\198' .. struct.pack('>I4', #data) .. data .. '\144\192\192'
end

local function member(p, room, id)
    local value = redis.call('HGET', p.key .. 'members', room .. '\0' .. id)
    if not value then
        return nil
    end
    local clients, number, json = string.match(value, '^(%d+) (%d+) (.*)$')
    return {clients = tonumber(clients), number = number, json = json}
end

local function keep(p, room, id, found)
    local value = found.clients .. ' ' .. found.number .. ' ' .. found.json
    redis.call('HSET', p.key .. 'members', room .. '\0' .. id, value)
end

local function place(room, id, number)
    return room .. '\0' .. string.format('%016d', number) .. '\0' .. id
end

local function enter(p, room, id, json)
    local found = member(p, room, id)
    if not found then
        local number = p.m.n + #p.list / 3 + 1
        keep(p, room, id, {clients = 1, number = number, json = json})
        redis.call('ZADD', p.key .. 'order', 0, place(room, id, number))
        say(p, 'join', room, json)
    else
        local changed = found.json ~= json
        found.clients, found.json = found.clients + 1, json
        keep(p, room, id, found)
        if changed then
            say(p, 'update', room, json)
        end
    end
end

local function update(p, room, id, json)
    local found = member(p, room, id)
    if found and found.json ~= json then
        found.json = json
        keep(p, room, id, found)
        say(p, 'update', room, json)
    end
end

local function leave(p, room, id)
    local found = member(p, room, id)
    if found and found.clients > 1 then
        found.clients = found.clients - 1
        keep(p, room, id, found)
    elseif found then
        redis.call('HDEL', p.key .. 'members', room .. '\0' .. id)
        redis.call('ZREM', p.key .. 'order', place(room, id, tonumber(found.number)))
        say(p, 'leave', room, found.json)
    end
end

local function client(p, sid)
    local packed = redis.call('HGET', p.key .. 'clients', sid)
    if not packed then
        return nil
    end
    local c = cmsgpack.unpack(packed)
    return {owner = c[1], take = c[2], user = c[3], grace = c[4], rooms = c[5]}
end

-- Replace what is known of a client, nil for nothing, and say what changes.
local function put(p, sid, before, now_)
    redis.call('ZREM', p.key .. 'cut', sid)
    if before then
        redis.call('ZREM', p.key .. 'at', before.owner .. '\0' .. sid)
    end
    local old, new = before and before.rooms or {}, now_ and now_.rooms or {}
    local had, has = {}, {}
    for i = 1, #old, 3 do
        had[old[i]] = i
    end
    for i = 1, #new, 3 do
        has[new[i]] = i
    end
    for i = 1, #old, 3 do
        local j = has[old[i]]
        if not j or new[j + 1] ~= old[i + 1] then
            leave(p, old[i], old[i + 1])
        end
    end
    for i = 1, #new, 3 do
        local j = had[new[i]]
        if not j or new[i + 1] ~= old[j + 1] then
            enter(p, new[i], new[i + 1], new[i + 2])
        elseif new[i + 2] ~= old[j + 2] then
            update(p, new[i], new[i + 1], new[i + 2])
        end
    end
    if #new > 0 then
        local packed = cmsgpack.pack({now_.owner, now_.take, now_.user, now_.grace, new})
        redis.call('HSET', p.key .. 'clients', sid, packed)
    else
        redis.call('HDEL', p.key .. 'clients', sid)
    end
end

-- Count connected clients of a node as cut; return whether that is done with.
local function cut_all(p, node, since, most)
    local from, to = '[' .. node .. '\0', '(' .. node .. '\1'
    local found = redis.call('ZRANGEBYLEX', p.key .. 'at', from, to, 'LIMIT', 0, most)
    for _, at in ipairs(found) do
        local sid = string.sub(at, #node + 2)
        local c = client(p, sid)
        redis.call('ZREM', p.key .. 'at', at)
        if c then
            redis.call('ZADD', p.key .. 'cut', since + c.grace, sid)
        end
    end
    return #found < most or most < 0, #found
end

-- End the leases that were not renewed.
local function lapse(p)
    local ended = redis.call('ZRANGEBYSCORE', p.key .. 'nodes', '-inf', p.t, 'WITHSCORES')
    for i = 1, #ended, 2 do
        if p.left <= 0 then
            return
        end
        local done, count = cut_all(p, ended[i], tonumber(ended[i + 1]), p.left)
        p.left = p.left - count
        if done then
            redis.call('ZREM', p.key .. 'nodes', ended[i])
            redis.call('HDEL', p.key .. 'calls', ended[i])
        end
    end
end

-- Let clients leave whose time is up.
local function reap(p)
    lapse(p)
    if p.left > 0 then
        local due = redis.call('ZRANGEBYSCORE', p.key .. 'cut', '-inf', p.t, 'LIMIT', 0, p.left)
        for _, sid in ipairs(due) do
            put(p, sid, client(p, sid), nil)
        end
        p.left = p.left - #due
    end
end
