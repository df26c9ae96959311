-- For wrk: offers requests at a rate that does not wait for answers, and prints what became of each kind of
-- them as one line of JSON. Arguments: a file of requests, each of which ends with a NUL; requests a second of
-- all connections; the number of connections; the deadline and the time to refuse in, milliseconds.
--
-- wrk's connections wait for their answers. There are many, and each pauses after an answer for a random time,
-- on average such that all together offer the rate; the time that an answer took is taken off the pause.
-- A request says in X-Request-ID when it was sent, which the server sends back: that is how long it took.

local ffi = require("ffi")
ffi.cdef [[
   typedef struct { long seconds; long nanoseconds; } instant;
   int clock_gettime(int clock, instant *now);
]]
local MONOTONIC, ID = 1, "X-Request-ID: 0\r\n"
local instant = ffi.new("instant")

local function now_us()
   ffi.C.clock_gettime(MONOTONIC, instant)
   return tonumber(instant.seconds) * 1e6 + tonumber(instant.nanoseconds) / 1e3
end

local heads, tails, at = {}, {}, 0
local pause_ms, deadline_us, refuse_us = 0, 0, 0
-- What answers took that no pause was shortened by yet; which connection pauses, wrk does not say.
local taken, first_taken, last_taken = {}, 1, 0

-- A thread's globals are what `done` can ask for: how many of each kind, and of two how many took so many
-- whole milliseconds.
good, late, refused, refused_late, other, worst_refused_us = 0, 0, 0, 0, 0, 0
answered_ms, refused_ms = {}, {}
local threads = {}

function setup(thread) threads[#threads + 1] = thread end

function init(args)
   local file = assert(io.open(args[1], "rb"))
   for request in file:read("*a"):gmatch("([^%z]+)%z") do
      local first, last = request:find(ID, 1, true)
      heads[#heads + 1] = request:sub(1, first + #"X-Request-ID: " - 1)
      tails[#tails + 1] = request:sub(last - 1)
   end
   file:close()
   pause_ms = 1e3 * tonumber(args[3]) / tonumber(args[2])
   deadline_us, refuse_us = tonumber(args[4]) * 1e3, tonumber(args[5]) * 1e3
   math.randomseed(7)
end

function request()
   at = at % #heads + 1
   return heads[at] .. string.format("%.0f", now_us()) .. tails[at]
end

-- wrk waits whole milliseconds.
function delay()
   local took_ms = 0
   if first_taken <= last_taken then
      took_ms, taken[first_taken] = taken[first_taken] / 1e3, nil
      first_taken = first_taken + 1
   end
   return math.max(0, math.floor(-pause_ms * math.log(1 - math.random()) - took_ms + 0.5))
end

local function count(histogram, took_us)
   local ms = math.floor(took_us / 1e3)
   histogram[ms] = (histogram[ms] or 0) + 1
end

function response(status, headers)
   local took_us = 0
   for name, value in pairs(headers) do
      if name:lower() == "x-request-id" then took_us = now_us() - tonumber(value) end
   end
   last_taken = last_taken + 1
   taken[last_taken] = took_us
   if status == 200 then
      if took_us <= deadline_us then good = good + 1 else late = late + 1 end
      count(answered_ms, took_us)
   elseif status == 429 then
      if took_us <= refuse_us then refused = refused + 1 else refused_late = refused_late + 1 end
      count(refused_ms, took_us)
      worst_refused_us = math.max(worst_refused_us, took_us)
   else
      other = other + 1
   end
end

-- The first whole millisecond within which 99 of 100 came; 0 of none.
local function p99(histogram)
   local places, all, sum = {}, 0, 0
   for ms, n in pairs(histogram) do
      places[#places + 1] = ms
      all = all + n
   end
   table.sort(places)
   for _, ms in ipairs(places) do
      sum = sum + histogram[ms]
      if sum >= 0.99 * all then return ms + 1 end
   end
   return 0
end

function done(summary)
   local thread, errors = threads[1], summary.errors
   local fields = {
      string.format('"requests": %d, "seconds": %.6f', summary.requests, summary.duration / 1e6),
      string.format('"broken": %d', errors.connect + errors.read + errors.write + errors.timeout),
      string.format('"answered_p99_ms": %d', p99(thread:get("answered_ms"))),
      string.format('"refused_p99_ms": %d', p99(thread:get("refused_ms"))),
      string.format('"worst_refused_ms": %.1f', thread:get("worst_refused_us") / 1e3),
   }
   for _, kind in ipairs({"good", "late", "refused", "refused_late", "other"}) do
      fields[#fields + 1] = string.format('"%s": %d', kind, thread:get(kind))
   end
   print("{" .. table.concat(fields, ", ") .. "}")
end
