"""What Redis does in one step, in its own Lua. Keys found in an index are made here, so a Redis Cluster will not do."""

# KEYS: lease, index of leases.
# ARGV: token, digest, content, milliseconds, endpoint, prefix of leases, index of services, service.
# A lease is given to the owner of its token only, and only while nobody else in the service serves another model.
TAKE = """
local owner = redis.call('HGET', KEYS[1], 'token')
if owner and owner ~= ARGV[1] then return {'taken', ''} end
for _, endpoint in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if endpoint ~= ARGV[5] then
    local digest = redis.call('HGET', ARGV[6] .. endpoint, 'digest')
    if digest and digest ~= ARGV[2] then return {'other', endpoint} end
  end
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'digest', ARGV[2], 'content', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[5])
redis.call('SADD', ARGV[7], ARGV[8])
return {'', ''}
"""

# KEYS: lease, index of leases. ARGV: token, endpoint.
DROP = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[2])
return 1
"""

# KEYS: index of leases, index of reports, shares, index of services.
# ARGV: service, prefix of leases, prefix of reports, milliseconds, number of reports, then name and content of each, then
# names of students that left.
# Returns leases, reports, shares and the time in milliseconds, all of one moment; forgets names whose entry has run out.
VISIT = """
local reports = tonumber(ARGV[5])
for i = 6, 4 + 2 * reports, 2 do
  redis.call('SET', ARGV[3] .. ARGV[i], ARGV[i + 1], 'PX', ARGV[4])
  redis.call('SADD', KEYS[2], ARGV[i])
end
for i = 6 + 2 * reports, #ARGV do redis.call('DEL', ARGV[3] .. ARGV[i]) end
local function living(index, prefix, read)
  local found = {}
  for _, name in ipairs(redis.call('SMEMBERS', index)) do
    local content = read(prefix .. name)
    if content then found[#found + 1] = content else redis.call('SREM', index, name) end
  end
  return found
end
local teachers = living(KEYS[1], ARGV[2], function(key) return redis.call('HGET', key, 'content') end)
local students = living(KEYS[2], ARGV[3], function(key) return redis.call('GET', key) end)
if #teachers + #students > 0 then
  redis.call('SADD', KEYS[4], ARGV[1])
else
  redis.call('SREM', KEYS[4], ARGV[1])
end
if reports > 0 then redis.call('PEXPIRE', KEYS[3], ARGV[4]) end
local time = redis.call('TIME')
return {teachers, students, redis.call('GET', KEYS[3]) or '', time[1] * 1000 + math.floor(time[2] / 1000)}
"""

# KEYS: shares. ARGV: what is expected there, what is to be there, milliseconds.
SHARE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
