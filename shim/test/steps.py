# SPDX-License-Identifier: MIT
#
# steps.py: run by gdb (gdb -batch -x steps.py --args steps).  Single-steps from start_steps() to end_steps() and asks
# for a backtrace after each instruction: it must end with caller(), main().  Prints "steps N" and "wrong W", and the
# wrong ones.
import gdb

gdb.execute("set pagination off")
gdb.execute("set confirm off")
gdb.execute("set debuginfod enabled off")
gdb.execute("break start_steps")
gdb.execute("run")
gdb.execute("set scheduler-locking step")
steps, wrong, seen = 0, 0, {}
while True:
    try:
        what = gdb.parse_and_eval("(char *)$rdi").string()
    except gdb.error:
        break
    end = int(gdb.parse_and_eval("(long)&end_steps"))
    saved = {r: int(gdb.parse_and_eval("(long)$" + r)) for r in ("rbx", "r12", "r13", "r14", "r15", "rbp")}
    gdb.execute("up", to_string=True)
    outside = {r: int(gdb.parse_and_eval("(long)$" + r)) for r in (*saved, "rsp")}
    gdb.execute("down", to_string=True)
    while True:
        instruction = gdb.execute("x/i $pc", to_string=True)
        gdb.execute("stepi", to_string=True)
        # The processor's trap flag, set for the step, must not get into what the program pushes and pops.
        if "pushf" in instruction:
            gdb.execute("set {long}$rsp = {long}$rsp & ~0x100")
        if "TF" in str(gdb.parse_and_eval("$eflags")):
            gdb.execute("set $eflags = $eflags & ~0x100")
        frame = gdb.newest_frame()
        pc = frame.pc()
        if pc == end:
            break
        steps += 1
        names, pcs = [], []
        walk = frame
        while walk is not None and len(names) < 30:
            names.append(walk.name())
            if walk.name() == "caller" and len(names) > 1:
                # What gdb restores for the caller: its own registers, at whatever instruction we are.
                now = {r: int(walk.read_register(r)) & (2**64 - 1) for r in saved}
                if now != {r: v & (2**64 - 1) for r, v in outside.items() if r != "rsp"}:
                    names.append("registers " + str(now))
            walk = walk.older()
        seen[names[0]] = seen.get(names[0], 0) + 1
        # psu_route, in a function inlined in it, takes a gate's frame away with two stores, to the return address and to
        # rbp: in between it is neither.
        if (names[-2:] != ["caller", "main"] or None in names) and names[0] not in ("psu_route", "psu_frame_return_to"):
            wrong += 1
            where = gdb.execute("x/i $pc", to_string=True).strip()
            if wrong < 40:
                print("WRONG", what, names, where)
    try:
        gdb.execute("continue", to_string=True)
        if gdb.newest_frame().name() != "start_steps":
            break
    except gdb.error:
        break
print("seen", seen)
print("steps", steps)
print("wrong", wrong)
