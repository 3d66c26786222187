-- Keep sessions of an owner for some time. KEYS: session:<key> of each
-- ARGV: base, skew (ms), owner, for how long (ms); the keys and take numbers. Returns
-- those that the owner has no more: the key, and 1 if another has it
local t, life, gone = clock(ARGV[2]), tonumber(ARGV[4]), {}
for i = 5, #ARGV, 2 do
    local f = redis.call('HMGET', KEYS[(i - 3) / 2], 'o', 's', 'k', 'v')
    local take = tonumber(ARGV[i + 1])
    local later = f[1] and tonumber(f[3]) >= take
    if later and f[1] == ARGV[3] then
        live(ARGV[1], ARGV[i], f[2], f[4], t, life)
    else
        gone[#gone + 1] = {ARGV[i], later and 1 or 0}
    end
end
return gone
