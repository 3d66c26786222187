-- Send a message to all nodes. KEYS: their channel. ARGV: PUBLISH or SPUBLISH, the message
return redis.call(ARGV[1], KEYS[1], ARGV[2])
