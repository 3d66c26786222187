-- Take a session. A call that is sent again is answered as before.
-- KEYS: session:<key>. ARGV: base, skew (ms), key, socket id, attempt, new owner, call, for how long (ms)
-- Returns {its bytes, owner before, take, attempt, born}, or nil
local base, t = ARGV[1], clock(ARGV[2])
local attempt = tonumber(ARGV[5])
local s = session(base, ARGV[3], t)
if not s or s.expired or s.s ~= ARGV[4] or attempt < s.l then
    return nil
end
if s.c ~= ARGV[7] then
    s.k = s.k + 1
    s.p = s.o
    redis.call('HSET', KEYS[1], 'o', ARGV[6], 'k', s.k, 'l', attempt, 'c', ARGV[7], 'p', s.p)
end
live(base, ARGV[3], s.s, s.v, t, tonumber(ARGV[8]))
return {s.d, s.p, s.k, attempt, s.born}
