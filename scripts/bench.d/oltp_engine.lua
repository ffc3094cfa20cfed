-- sysbench's oltp_read_write for engines without transactions: it deletes a row and inserts it again, and here no two
-- threads do so with the same row.  All else is as in the original.
require("oltp_common")

function prepare_statements()
   prepare_point_selects()
   prepare_simple_ranges()
   prepare_sum_ranges()
   prepare_order_ranges()
   prepare_distinct_ranges()
   prepare_index_updates()
   prepare_non_index_updates()
   prepare_delete_inserts()
end

local any = sysbench.rand.default

local function own(from, to)
   local n = any(from, to)
   local threads = sysbench.opt.threads
   n = n - n % threads + sysbench.tid % threads
   return n >= from and n <= to and n or threads + sysbench.tid % threads
end

function event()
   execute_point_selects()
   execute_simple_ranges()
   execute_sum_ranges()
   execute_order_ranges()
   execute_distinct_ranges()
   execute_index_updates()
   execute_non_index_updates()
   sysbench.rand.default = own
   execute_delete_inserts()
   sysbench.rand.default = any
end
