-- The log of one namespace. All keys begin with `base`, and are in one slot:
--   meta       hash: id, g (generation), n (last number), t (time of the last append, ms),
--              total (bytes appended), shared (last number in `log`), lost (last number trimmed from
--              it), gone (bytes trimmed from it), replid (of the server that appended last), gens (the
--              last generations, and the number behind which each began), tears (proven losses), x<g>
--              (how far a torn generation is known to have gone)
--   log        stream, n-0: t, b (total before it), d (an entry)
--   sid:<sid>  hash: key (of its session), v (others in its room), total, shared, lost
--   own:<sid>  stream as `log`: what was sent to this socket alone
local DAY = 86400000

-- Return a whole number as text. Lua's numbers are fractions, and Redis takes half a microsecond to
-- write one in full.
local function int(number)
    return string.format('%d', number)
end

local function clock(skew)
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(skew)
end

-- Return the log, or a new one with this id if there is none. `m.fresh` says that it is new; `m.length`
-- is that of the stream, `m.was` the time of the last append.
local function open(base, id, age, t)
    local f = redis.call('HMGET', base .. 'meta', 'id', 'g', 'n', 't', 'total', 'shared', 'lost', 'replid',
        'tears', 'gens', 'gone')
    local m = {
        base = base,
        id = f[1],
        g = tonumber(f[2] or 0),
        n = tonumber(f[3] or 0),
        t = tonumber(f[4] or 0),
        total = tonumber(f[5] or 0),
        shared = tonumber(f[6] or 0),
        lost = tonumber(f[7] or 0),
        replid = f[8],
        tears = tonumber(f[9] or 0),
        gens = f[10] or '0:0',
        gone = tonumber(f[11] or 0),
        length = 0
    }
    if m.id and m.shared > m.lost then
        m.length = redis.call('XLEN', base .. 'log')
    end
    if m.id and m.shared > m.lost and m.length == 0 then
        if m.t + age < t then
            -- The stream has expired.
            m.lost = m.shared
        else
            -- Redis has evicted it, or somebody has deleted it: its cursors have lost their meaning.
            m.id = false
        end
    end
    if not m.id then
        m = {base = base, id = id, g = 0, n = 0, t = 0, total = 0, shared = 0, lost = 0, tears = 0,
            gens = '0:0', gone = 0, length = 0, fresh = true}
    end
    m.was = m.t
    -- Clocks of a server and of the one that takes over from it differ.
    m.t = math.max(m.t, t)
    return m
end

-- Remove what is left of an earlier log.
local function clear(m)
    if m.fresh then
        redis.call('DEL', m.base .. 'meta')
        -- Anything else is somebody else's.
        if redis.call('TYPE', m.base .. 'log').ok == 'stream' then
            redis.call('DEL', m.base .. 'log')
        end
    end
end

-- Who this server is: that changes whenever it may have lost something. Without the right to ask for
-- it, each new connection begins a generation.
local function identity()
    local info = redis.pcall('INFO', 'replication')
    return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or nil
end

-- Begin a log that has nothing yet. Who begins it is known: if another server goes on from here, there
-- may have been something.
local function create(m)
    clear(m)
    redis.call('HSET', m.base .. 'meta', 'id', m.id, 'g', 0, 'n', 0, 't', m.t, 'replid', identity() or '')
end

-- Trim a stream of so many entries exactly; return the last number and the bytes that it has lost.
local function trim(key, length, total, lost, size, limit, oldest)
    local excess = length - size
    local count = math.min(math.max(excess, 0) + 1, 64)
    while true do
        local found = redis.call('XRANGE', key, '-', '+', 'COUNT', count)
        local last, gone = nil, total
        for _, entry in ipairs(found) do
            local fields = entry[2]
            if excess > 0 or tonumber(fields[2]) < oldest or total - tonumber(fields[4]) > limit then
                last = tonumber(string.match(entry[1], '%d+'))
                excess = excess - 1
            else
                gone = tonumber(fields[4])
                break
            end
        end
        if not last then
            return lost, gone
        end
        lost = last
        redis.call('XTRIM', key, 'MINID', '=', (last + 1) .. '-0')
        if #found < count then
            return lost, gone
        end
        count = 16
    end
end

-- The sessions that alone may get an entry; nil if it belongs into the log of all.
local function owners(base, sids)
    local known = {}
    for sid in string.gmatch(sids, '%S+') do
        local f = redis.call('HMGET', base .. 'sid:' .. sid, 'v', 'key')
        if tonumber(f[1] or 0) > 0 then
            return nil
        end
        if f[2] then
            known[#known + 1] = sid
        end
    end
    return known
end

local function append_own(m, sid, size, data, bounds)
    local key, own = m.base .. 'own:' .. sid, m.base .. 'sid:' .. sid
    local f = redis.call('HMGET', own, 'total', 'lost')
    local total, lost = tonumber(f[1] or 0), tonumber(f[2] or 0)
    redis.call('XADD', key, m.n .. '-0', 't', m.t, 'b', total, 'd', data)
    total = total + size
    lost = trim(key, redis.call('XLEN', key), total, lost, bounds.size, bounds.own, m.t - bounds.age)
    redis.call('HSET', own, 'total', total, 'lost', lost, 'shared', m.n)
    redis.call('PEXPIRE', key, bounds.age)
end

-- Begin a generation behind the last number.
local function begin(m)
    -- By the clock: two servers that both go on from here begin different generations.
    m.g = math.max(m.g + 1, m.t)
    local gens = {}
    for gen in string.gmatch(m.gens, '%S+') do
        gens[#gens + 1] = gen
    end
    gens[#gens + 1] = m.g .. ':' .. m.n
    if #gens > 64 then
        redis.call('HDEL', m.base .. 'meta', 'x' .. string.match(gens[1], '%d+'))
        table.remove(gens, 1)
    end
    m.gens = table.concat(gens, ' ')
end

-- Append entries and publish them, in one frame. Each is three values from given[first] on: the size of
-- its data in bytes (-1: it is not recorded), the socket ids it is for alone, and its bytes.
-- bounds: size, limit, own (bytes), age (ms). Returns {id, generation, number before the first}.
local function append(m, bounds, to, given, first, node, batch, anew)
    local base, before = m.base, m.n
    local meta, log, t = base .. 'meta', base .. 'log', int(m.t)
    -- What is old is trimmed once in a second, and so is renewed how long the keys live.
    local renew = m.length == 0 or math.floor(m.t / 1000) > math.floor(m.was / 1000)
    clear(m)
    local replid = identity()
    if (replid and replid ~= m.replid) or (anew and not replid) then
        if not m.fresh then
            begin(m)
        end
        m.replid = replid
    end
    local entries, private = {}, {}
    for i = first, #given, 3 do
        local size, sids, data = tonumber(given[i]), given[i + 1], given[i + 2]
        entries[#entries + 1] = data
        if size >= 0 then
            m.n = m.n + 1
            local known = sids ~= '' and owners(base, sids)
            if known then
                private[#private + 1] = 2 * (#entries - 1) + (known[1] and 0 or 1)
                for _, sid in ipairs(known) do
                    append_own(m, sid, size, data, bounds)
                end
            else
                redis.call('XADD', log, int(m.n) .. '-0', 't', t, 'b', int(m.total), 'd', data)
                m.total = m.total + size
                m.shared = m.n
                m.length = m.length + 1
            end
        end
    end
    if renew or m.length > bounds.size or m.total - m.gone > bounds.limit then
        m.lost, m.gone = trim(log, m.length, m.total, m.lost, bounds.size, bounds.limit, m.t - bounds.age)
    end
    redis.call('HSET', meta, 'id', m.id, 'g', int(m.g), 'n', int(m.n), 't', t, 'total', int(m.total), 'shared',
        int(m.shared), 'lost', int(m.lost), 'gone', int(m.gone), 'replid', m.replid or '', 'gens', m.gens)
    if renew then
        redis.call('PEXPIRE', meta, math.max(DAY, 2 * bounds.age))
        -- Longer than an entry is young enough to be read.
        redis.call('PEXPIRE', log, bounds.age + 2000)
    end
    redis.call(to.verb, to.channel, '\152' .. cmsgpack.pack(m.id, m.g, before, m.t, node, batch, private)
        .. '\221' .. struct.pack('>I4', #entries) .. table.concat(entries))
    return {m.id, tostring(m.g), tostring(before)}
end
