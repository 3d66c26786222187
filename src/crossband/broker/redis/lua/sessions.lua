-- The sessions of one namespace. Beside the keys of its log:
--   session:<key>  hash: d (its bytes), o (owner), k (take), s (socket id), u (user, or ''), v (ids of
--                  others whose rooms it is in), until (ms), born (ms), f (attempts that found it), l (the
--                  one that took it), c (the call that took it), p (the owner before that)

-- Return the session, or nil if there is none or it has expired.
local function session(base, key, t)
    local f = redis.call('HMGET', base .. 'session:' .. key, 'd', 'o', 'k', 's', 'u', 'v', 'until', 'born', 'f',
        'l', 'c', 'p')
    if not f[1] then
        return nil
    end
    local s = {
        d = f[1], o = f[2], k = tonumber(f[3]), s = f[4], u = f[5], v = f[6], born = f[8],
        f = tonumber(f[9]), l = tonumber(f[10]), c = f[11], p = f[12]
    }
    s.expired = tonumber(f[7]) <= t
    return s
end

-- Return whether a call of an owner counts. One that knows of a later take than the store counts, too: what
-- followed was lost, in a failover.
local function may(s, owner, take)
    return take > s.k or (take == s.k and owner == s.o)
end

-- Note into which sockets' rooms a session has come, and which it has left.
local function visit(base, before, now_)
    if before == now_ then
        return
    end
    local change = {}
    for sid in string.gmatch(before, '%S+') do
        change[sid] = -1
    end
    for sid in string.gmatch(now_, '%S+') do
        change[sid] = (change[sid] or 0) + 1
    end
    for sid, by in pairs(change) do
        local key = base .. 'sid:' .. sid
        if by ~= 0 and (by > 0 or redis.call('EXISTS', key) == 1) then
            redis.call('HINCRBY', key, 'v', by)
        end
    end
end

-- Forget what was kept for a socket: nobody can come back as it. Others may still be in its room.
local function lose(base, s)
    visit(base, s.v, '')
    local key = base .. 'sid:' .. s.s
    redis.call('DEL', base .. 'own:' .. s.s)
    if tonumber(redis.call('HGET', key, 'v') or 0) > 0 then
        redis.call('HDEL', key, 'key', 'total', 'shared', 'lost')
    else
        redis.call('DEL', key)
    end
end

-- Keep a session for some time, and for as long that it is in its own room and in those of others.
local function live(base, key, sid, visits, t, life)
    redis.call('HSET', base .. 'session:' .. key, 'until', t + life)
    redis.call('PEXPIRE', base .. 'session:' .. key, life + 1000)
    for each in string.gmatch(sid .. ' ' .. visits, '%S+') do
        if redis.call('PTTL', base .. 'sid:' .. each) < life + 1000 then
            redis.call('PEXPIRE', base .. 'sid:' .. each, life + 1000)
        end
    end
end
