-- Note that a generation had gone further than the log has it, and tell all nodes.
-- KEYS: meta, log. ARGV: base, skew (ms), age (ms), id, generation, a number that it had reached, PUBLISH or
-- SPUBLISH, channel
local m = open(ARGV[1], '', tonumber(ARGV[3]), clock(ARGV[2]))
local g, reached = tonumber(ARGV[5]), tonumber(ARGV[6])
if m.id ~= ARGV[4] or redis.call('HEXISTS', KEYS[1], 'x' .. g) == 1 then
    return
end
if m.g == g and reached > m.n then
    -- Nothing was appended since: what comes next is another generation.
    begin(m)
    redis.call('HSET', KEYS[1], 'g', m.g, 'gens', m.gens, 'replid', identity() or '')
elseif m.g == g then
    return
end
redis.call('HSET', KEYS[1], 'x' .. g, reached)
local tears = redis.call('HINCRBY', KEYS[1], 'tears', 1)
redis.call(ARGV[7], ARGV[8], '\152' .. cmsgpack.pack(m.id) .. cmsgpack.pack(m.g) .. cmsgpack.pack(0)
    .. cmsgpack.pack(0) .. cmsgpack.pack('') .. cmsgpack.pack(tears) .. '\144\144')
