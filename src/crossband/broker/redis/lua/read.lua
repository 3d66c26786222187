-- Read a log after a place in it.
-- KEYS: meta, log. ARGV: base, skew (ms), age (ms), id, generation, number, most entries; socket ids
-- Returns {verdict, id, generation, top, lost, tears, begins, entries, own entries, ids with losses, end}:
--   verdict  ok · unknown · expired · torn (it was in a generation that is lost from there on)
--   begins   the generations after the one asked for, or all if that is unknown, and the numbers
--            behind which they began
--   entries  number and bytes, in turns
--   end      the number up to which all is here
local MOST_BYTES = 1048576
local base, age, id = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local g, n, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local t = clock(ARGV[2])
local m = open(base, '', age, t)
local begins = {}
local function answer(verdict, entries, own, short, upto)
    return {verdict, m.id, m.g, m.n, m.lost, m.tears, begins, entries or {}, own or {}, short or {}, upto or 0}
end
if m.id ~= id then
    return answer('unknown')
end
local found, torn = false, false
for gen, begin in string.gmatch(m.gens, '(%d+):(%d+)') do
    if found then
        begins[#begins + 1] = tonumber(gen)
        begins[#begins + 1] = tonumber(begin)
    end
    found = found or tonumber(gen) == g
    torn = torn or (found and redis.call('HEXISTS', base .. 'meta', 'x' .. gen) == 1)
end
if not found then
    for gen, begin in string.gmatch(m.gens, '(%d+):(%d+)') do
        begins[#begins + 1] = tonumber(gen)
        begins[#begins + 1] = tonumber(begin)
    end
    return answer('unknown')
end
if torn or n > (begins[2] or m.n) then
    return answer('torn')
end

-- Return what follows in a stream, and the last number up to which that is all. Nil if some of it is lost
-- or too old, with the last such number.
local function after(key, lost)
    if lost > n then
        return nil, lost
    end
    local entries, from, count, size = {}, n, 1, 0
    while true do
        local found = redis.call('XRANGE', key, '(' .. from .. '-0', '+', 'COUNT', count)
        for _, entry in ipairs(found) do
            from = tonumber(string.match(entry[1], '%d+'))
            if tonumber(entry[2][2]) < t - age then
                lost = from
            else
                entries[#entries + 1] = from
                entries[#entries + 1] = entry[2][6]
                size = size + #entry[2][6]
            end
        end
        if #found < count then
            from = m.n
            break
        elseif #entries >= 2 * most or size > MOST_BYTES then
            break
        end
        -- Few at first: they may be large.
        count = math.min(4 * count, most)
    end
    if lost > n then
        return nil, lost
    end
    return entries, from
end

local entries, upto = after(base .. 'log', m.lost)
if not entries then
    m.lost = upto
    return answer('expired')
end
local own, short = {}, {}
for i = 8, #ARGV do
    local f = redis.call('HMGET', base .. 'sid:' .. ARGV[i], 'lost', 'shared')
    if tonumber(f[2] or 0) > n then
        local found, last = after(base .. 'own:' .. ARGV[i], tonumber(f[1]))
        if found and found[1] then
            own[#own + 1] = found
            upto = math.min(upto, last)
        else
            -- Trimmed, or expired.
            short[#short + 1] = ARGV[i]
        end
    end
end
return answer('ok', entries, own, short, upto)
