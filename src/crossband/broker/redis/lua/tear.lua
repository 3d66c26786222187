-- Note that a generation had gone further than to where the next one began, and tell all nodes.
-- KEYS: meta. ARGV: id, generation, a number that it had reached, PUBLISH or SPUBLISH, channel
local f = redis.call('HMGET', KEYS[1], 'id', 'g', 'x' .. ARGV[2])
if f[1] ~= ARGV[1] or tonumber(f[2]) <= tonumber(ARGV[2]) or f[3] then
    return 0
end
redis.call('HSET', KEYS[1], 'x' .. ARGV[2], ARGV[3])
local tears = redis.call('HINCRBY', KEYS[1], 'tears', 1)
redis.call(ARGV[4], ARGV[5], '\152' .. cmsgpack.pack(f[1]) .. cmsgpack.pack(tonumber(f[2])) .. cmsgpack.pack(0)
    .. cmsgpack.pack(0) .. cmsgpack.pack('') .. cmsgpack.pack(tears) .. '\144\144')
return tears
