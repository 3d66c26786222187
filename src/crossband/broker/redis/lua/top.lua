-- Return where a log is, and keep it for another day; begin one if there is none.
-- KEYS: meta, log. ARGV: base, skew (ms), new id, age (ms). Returns {id, generation, top, tears}
local m = open(ARGV[1], ARGV[3], tonumber(ARGV[4]), clock(ARGV[2]))
if m.fresh then
    create(m)
end
redis.call('PEXPIRE', KEYS[1], math.max(DAY, 2 * tonumber(ARGV[4])))
return {m.id, m.g, m.n, m.tears}
