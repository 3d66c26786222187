-- Keep what is left of a log only as long as clients may come back, if no node listens any more.
-- KEYS: meta. ARGV: NUMSUB or SHARDNUMSUB, channel, for how long (ms)
if redis.call('PUBSUB', ARGV[1], ARGV[2])[2] == 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
