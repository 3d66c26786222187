-- Set the rooms of a client. KEYS: see presence.py
-- Further ARGV: number of this call, 1 if it is connected, socket id, owner, take, user, grace (ms),
-- lease (ms); the rooms, each with the member and its JSON
local p, sid, owner, take = here(), ARGV[14], ARGV[15], tonumber(ARGV[16])
local lease = tonumber(redis.call('ZSCORE', p.key .. 'nodes', owner) or 0)
local number = tonumber(ARGV[12])
if tonumber(redis.call('HGET', p.key .. 'calls', owner) or 0) == number - 1 then
    redis.call('HSET', p.key .. 'calls', owner, number)
end
local before = client(p, sid)
if before and before.take > take then
    return 0
end
local now_ = {owner = owner, take = take, user = ARGV[17], grace = tonumber(ARGV[18]), rooms = {}}
for i = 20, #ARGV do
    now_.rooms[#now_.rooms + 1] = ARGV[i]
end
put(p, sid, before, now_)
if #now_.rooms > 0 then
    if ARGV[13] ~= '1' then
        redis.call('ZADD', p.key .. 'cut', p.t + now_.grace, sid)
    elseif lease > p.t then
        redis.call('ZADD', p.key .. 'at', 0, owner .. '\0' .. sid)
    else
        -- As if its node had lost its lease just now.
        redis.call('ZADD', p.key .. 'cut', p.t + tonumber(ARGV[19]) + now_.grace, sid)
    end
end
if #now_.rooms == 0 and before then
    -- Known for a while, so that a late call of an earlier owner is known as such.
    redis.call('HSET', p.key .. 'clients', sid, cmsgpack.pack({owner, take, now_.user, now_.grace, {}}))
    redis.call('ZADD', p.key .. 'cut', p.t + tonumber(ARGV[19]), sid)
end
finish(p, lease <= p.t)
return 1
