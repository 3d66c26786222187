-- Append a batch to a log and publish it. A batch that is sent again is answered as before.
-- KEYS: meta, log, sent:<node>. ARGV: base, skew (ms), new id, age (ms), most entries, most bytes, most
-- bytes for one socket, PUBLISH or SPUBLISH, channel, node, batch, 1 on a new connection, for
-- how long the batch is remembered (ms); entries
local number = tonumber(ARGV[11])
local sent = redis.call('GET', KEYS[3])
if sent then
    local earlier, id, g, before = string.match(sent, '^(%d+) (%S+) (%d+) (%d+)$')
    if tonumber(earlier) >= number then
        return {id, g, before}
    end
end
local age = tonumber(ARGV[4])
local bounds = {age = age, size = tonumber(ARGV[5]), limit = tonumber(ARGV[6]), own = tonumber(ARGV[7])}
local m = open(ARGV[1], ARGV[3], age, clock(ARGV[2]))
local answer = append(m, bounds, {verb = ARGV[8], channel = ARGV[9]}, ARGV, 14, ARGV[10], number,
    ARGV[12] == '1')
redis.call('SET', KEYS[3], table.concat({number, answer[1], answer[2], answer[3]}, ' '), 'PX', ARGV[13])
return answer
