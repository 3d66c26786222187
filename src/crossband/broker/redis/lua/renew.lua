-- Renew a node's lease, and let clients leave whose time is up. KEYS: see presence.py
-- Further ARGV: node, or '' to renew none; the number of its last call, lease (ms)
-- Returns {1 if the node had a lease and no call of it is missing, 1 if more clients are due}
local p, node, known = here(), ARGV[12], 1
if node ~= '' then
    local lease = tonumber(redis.call('ZSCORE', p.key .. 'nodes', node) or 0)
    local calls = redis.call('HGET', p.key .. 'calls', node) or '0'
    if lease <= p.t or tonumber(calls) ~= tonumber(ARGV[13]) then
        known = 0
        -- All of them: it is about to save again those that are connected.
        local since = lease == 0 and p.t or math.min(lease, p.t + tonumber(ARGV[14]))
        cut_all(p, node, math.max(since, lease), -1)
        redis.call('HSET', p.key .. 'calls', node, ARGV[13])
    end
    redis.call('ZADD', p.key .. 'nodes', p.t + tonumber(ARGV[14]), node)
end
reap(p)
finish(p, true)
return {known, p.left <= 0 and 1 or 0}
