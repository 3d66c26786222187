-- Return members of a room. KEYS: see presence.py
-- Further ARGV: room, number after which they joined, most
-- Returns {id, generation, number, how many there are, number of the last one, 1 if there are more; JSON of each}
local p, room = here(), ARGV[12]
reap(p)
finish(p, false)
local m = p.m
if m.fresh and #p.list == 0 then
    create(m)
    redis.call('PEXPIRE', KEYS[1], 2 * p.age)
end
local from, to = '[' .. room .. '\0' .. string.format('%016d', tonumber(ARGV[13]) + 1), '(' .. room .. '\1'
local count = redis.call('ZLEXCOUNT', p.key .. 'order', '[' .. room .. '\0', to)
local found = redis.call('ZRANGEBYLEX', p.key .. 'order', from, to, 'LIMIT', 0, tonumber(ARGV[14]) + 1)
local more = #found > tonumber(ARGV[14]) and 1 or 0
local answer, last = {}, 0
for i = 1, #found - more do
    local number, id = string.match(string.sub(found[i], #room + 2), '^(%d+)%z(.*)$')
    last = tonumber(number)
    answer[i] = member(p, room, id).json
end
return {m.id, m.g, m.n, count, last, more, answer}
