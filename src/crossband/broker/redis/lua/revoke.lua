-- Note a revocation. KEYS: revoked (hash), revoked:order (zset). ARGV: user, time (s), most users
-- Returns its number. Numbers grow with the clock, so that they never fall back.
local now_ = redis.call('TIME')
local number = now_[1] * 1000000 + now_[2]
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if last[2] and tonumber(last[2]) >= number then
    number = tonumber(last[2]) + 1
end
local text = string.format('%.0f', number)
redis.call('HSET', KEYS[1], ARGV[1], text .. ' ' .. ARGV[2] .. ' ' .. now_[1] * 1000 + math.floor(now_[2] / 1000))
redis.call('ZADD', KEYS[2], text, ARGV[1])
local excess = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[3])
if excess > 0 then
    local forgotten = redis.call('ZPOPMIN', KEYS[2], excess)
    for i = 1, #forgotten, 2 do
        redis.call('HDEL', KEYS[1], forgotten[i])
    end
end
return text
