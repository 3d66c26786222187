-- Keep a session for some time, unless another owner took it.
-- KEYS: session:<key>, sid:<sid>. ARGV: base, skew (ms), key, its bytes, owner, take, socket id, user, ids of
-- others whose rooms it is in, for how long (ms). Returns 1 if it is kept, 0 if it was
-- taken anew, -1 if another node took it
local base, t, key, life = ARGV[1], clock(ARGV[2]), ARGV[3], tonumber(ARGV[10])
local s = session(base, key, t)
if s and not s.expired and not may(s, ARGV[5], tonumber(ARGV[6])) then
    return s.o == ARGV[5] and 0 or -1
end
if s and (s.expired or s.s ~= ARGV[7]) then
    lose(base, s)
    s.v = ''
end
if not s or s.expired then
    redis.call('HSET', KEYS[1], 'f', 0, 'l', 0, 'born', t, 'c', '', 'p', '')
end
redis.call('HSET', KEYS[1], 'd', ARGV[4], 'o', ARGV[5], 'k', ARGV[6], 's', ARGV[7], 'u', ARGV[8], 'v', ARGV[9])
redis.call('HSET', KEYS[2], 'key', key)
visit(base, s and s.v or '', ARGV[9])
live(base, key, ARGV[7], ARGV[9], t, life)
return 1
