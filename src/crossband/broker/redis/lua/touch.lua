-- Keep sessions of an owner for some time. KEYS: session:<key> of each
-- ARGV: base, skew (ms), owner, for how long (ms); the keys. Returns
-- those that the owner has no more: the key, and 1 if another has it
local t, life, gone = clock(ARGV[2]), tonumber(ARGV[4]), {}
for i = 5, #ARGV do
    local f = redis.call('HMGET', KEYS[i - 4], 'o', 's')
    if f[1] == ARGV[3] then
        live(ARGV[1], ARGV[i], f[2], t, life)
    else
        gone[#gone + 1] = {ARGV[i], f[1] and 1 or 0}
    end
end
return gone
