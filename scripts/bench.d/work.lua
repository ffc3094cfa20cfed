-- A bit of everything that interpreters are measured with; argument: how often.  Waits for a line before it begins.
print("ready")
io.stdout:flush()
io.read()

local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end

local function sort(n)
   local t, x = {}, 42
   for i = 1, n do
      x = (x * 1103515245 + 12345) % 2147483648
      t[i] = x
   end
   table.sort(t)
   return t[1] + t[n // 2]
end

local function words(n)
   local t = {}
   for i = 1, n do t[#t + 1] = string.format("%d:%s", i, ("abc"):rep(i % 7)) end
   local s, count = table.concat(t, " "), {}
   for w in s:gmatch("%a+") do count[w] = (count[w] or 0) + 1 end
   return #s:gsub("b", "xy") + (count.abc or 0)
end

local Account = {}
Account.__index = Account
function Account.new(n) return setmetatable({sum = n}, Account) end
function Account:add(n) self.sum = self.sum + n; return self end

local function objects(n)
   local a = Account.new(0)
   for i = 1, n do a = Account.new(a:add(i).sum) end
   return a.sum
end

local function coroutines(n)
   local co = coroutine.wrap(function() for i = 1, n do coroutine.yield(i) end return 0 end)
   local sum = 0
   for _ = 1, n do sum = sum + co() end
   return sum
end

local function work()
   print(fib(25), sort(40000), words(20000), objects(200000), coroutines(50000), select(2, pcall(error, "x", 0)))
end

-- A call from C: the interpreter's main function is entered anew, in the newest version.  Called from here, the work would be
-- done by the one that has been running since the start.
for _ = 1, tonumber(arg[1]) do assert(pcall(work)) end
