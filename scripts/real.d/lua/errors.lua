-- What an interpreter's work.lua leaves out: errors through many C frames, closing, finalisers, coroutines inside of calls
-- from C, string formatting of numbers, loading of source and of compiled code.  Prints what came out, then "done".
local function deep(n) if n == 0 then error({code = 7}) end return (string.gsub("x", "x", function() return deep(n - 1) end)) end
for _, n in ipairs {1, 10, 150} do
   local ok, e = pcall(deep, n)
   print(n, ok, type(e) == "table" and e.code or e)
end
print(xpcall(function() local t = nil; return t.x end, function(m) return "handled: " .. m:gsub("^.*: ", "") end))
local log = {}
do
   local a <close> = setmetatable({}, {__close = function(_, e) log[#log + 1] = "closed " .. tostring(e) end})
   log[#log + 1] = "open"
end
print(table.concat(log, " "))
local co = coroutine.wrap(function(...)
   local t = {...}
   table.sort(t, function(a, b) return a > b end)
   for _, v in ipairs(t) do print(pcall(coroutine.yield, v)) end
   error("out of the coroutine", 0)
end)
print(co(3, 1, 2), co("a"), co("b"))
print(pcall(co, "c"))
local gone = 0
for i = 1, 1000 do setmetatable({}, {__gc = function() gone = gone + 1 end}) end
collectgarbage(); collectgarbage()
print(gone)
for _, f in ipairs {"%d", "%5.2f", "%g", "%a", "%x", "%q", "%10s|", "%e"} do
   print(f, pcall(string.format, f, 255), pcall(string.format, f, 0.1))
end
print(math.tointeger(2^53), 7 // 2, -7 // 2, -7 % 3, 7.5 % -2, 1 << 62, 3 | 4.0, pcall(function() return 1 | 1.5 end))
local made = load(string.dump(load("local a, b = ... ; return a * b, a // b, select('#', ...)")))
print(made(12, 5))
print(load("return +", "=broken"))
print(string.pack("<i4z", 77, "psu"):byte(1, -1))
print(utf8.char(228, 8364, 128512), utf8.len("äöü"), ("x"):rep(3, ","))
print(pcall(string.rep, "x", 1 << 40))
print(os.time({year = 2020, month = 9, day = 8, hour = 12}) > 0, #arg, select("#", table.unpack({}, 1, 200)))
print("done")
