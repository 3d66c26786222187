-- Let the clients of a user leave that are cut. KEYS: see presence.py. Further ARGV: user
local p = here()
for _, sid in ipairs(redis.call('ZRANGE', p.key .. 'cut', 0, -1)) do
    local c = client(p, sid)
    if c and c.user == ARGV[12] then
        put(p, sid, c, nil)
    end
end
finish(p, false)
