-- Find a session, and number the attempt. KEYS: session:<key>. ARGV: base, skew (ms), key
-- Returns {its bytes, owner, take, attempt, born}, or nil
local s = session(ARGV[1], ARGV[3], clock(ARGV[2]))
if not s or s.expired then
    return nil
end
return {s.d, s.o, s.k, redis.call('HINCRBY', KEYS[1], 'f', 1), s.born}
