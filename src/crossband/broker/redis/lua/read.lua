-- Read a log after a place in it.
-- KEYS: meta, log. ARGV: base, skew (ms), age (ms), id, generation, number, most entries; socket ids
-- Returns {verdict, id, generation, top, lost, tears, begins, entries, own entries, ids with losses}:
--   verdict  ok · unknown · expired · torn (it was in a generation that is lost from there on)
--   begins   the generations after the one asked for, or all if that is unknown, and the numbers
--            behind which they began
--   entries  number and bytes, in turns
local base, age, id = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local g, n, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local t = clock(ARGV[2])
local m = open(base, '', age, t)
local begins = {}
local function answer(verdict, entries, own, short)
    return {verdict, m.id, m.g, m.n, m.lost, m.tears, begins, entries or {}, own or {}, short or {}}
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

-- Return what follows in a stream; nil if some of it is lost or too old, with the last such number.
local function after(key, lost)
    if lost > n then
        return nil, lost
    end
    local found, entries = redis.call('XRANGE', key, '(' .. n .. '-0', '+', 'COUNT', most), {}
    while found[1] and tonumber(found[1][2][2]) < t - age do
        for _, entry in ipairs(found) do
            if tonumber(entry[2][2]) < t - age then
                lost = tonumber(string.match(entry[1], '%d+'))
            end
        end
        found = redis.call('XRANGE', key, '(' .. lost .. '-0', '+', 'COUNT', most)
    end
    if lost > n then
        return nil, lost
    end
    for _, entry in ipairs(found) do
        entries[#entries + 1] = tonumber(string.match(entry[1], '%d+'))
        entries[#entries + 1] = entry[2][6]
    end
    return entries
end

local entries, lost = after(base .. 'log', m.lost)
if not entries then
    m.lost = lost
    return answer('expired')
end
local own, short = {}, {}
for i = 8, #ARGV do
    local f = redis.call('HMGET', base .. 'sid:' .. ARGV[i], 'lost', 'shared')
    if tonumber(f[2] or 0) > n then
        local found = after(base .. 'own:' .. ARGV[i], tonumber(f[1]))
        if found and found[1] then
            own[#own + 1] = found
        else
            -- Trimmed, or expired.
            short[#short + 1] = ARGV[i]
        end
    end
end
return answer('ok', entries, own, short)
