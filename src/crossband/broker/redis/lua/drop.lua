-- Drop a session, unless another owner took it; with '' for the owner, whoever has it.
-- KEYS: session:<key>. ARGV: base, skew (ms), key, owner, take
local s = session(ARGV[1], ARGV[3], clock(ARGV[2]))
if s and (ARGV[4] == '' or may(s, ARGV[4], tonumber(ARGV[5]))) then
    lose(ARGV[1], s)
    redis.call('DEL', KEYS[1])
    return 1
end
return 0
