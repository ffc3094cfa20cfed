"""The mistakes that mutants.py makes in the shim and in how psu_bin drives it: what, why it is wrong, what must notice."""

from __future__ import annotations

from mutant import Mutant
from mutants_inside import BARRIERS, CALLS_INSIDE, SETTLE_LOOP
from mutants_poor import POOR

BASIC = "tests/unit/test_shim.py::test_patch_repatch_revert_and_refuse"
CONVENTIONS = "tests/unit/test_shim.py::test_gates_keep_registers_flags_and_stack_arguments"
UNWIND = "tests/unit/test_shim.py::test_exceptions_cancellation_and_longjmp_through_gates"
SUMS = "tests/unit/test_shim_order.py::test_each_step_is_where_the_argument_wants_it[sums]"
LIFE = "tests/unit/test_shim_life.py::test_threads_and_processes[{}-gcc]"
STRESS = "tests/stress/test_shim_stress.py"
TORTURE = "tests/stress/test_torture.py::test_everything_at_once[unmapped]"
STACKS = "tests/live/test_unwinding.py"


G = "arch/x86_64/gates.S"
COUNT_IN_PLAIN = """        incl    BLOCK_ENTER(%r11)
MARK plain_counted
        notrack call *psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_CODE(%rip)
"""
COUNT_OUT_PLAIN = """MARK plain_left
        incl    BLOCK_LEAVE(%r11)
"""
BARRIER_4 = "    psu_membarrier(); /* 4 */\n"
COMMIT = "    __atomic_store_n(&psu_runtime.commit_seq, under_way.txn, __ATOMIC_SEQ_CST);\n"

SUM = """\
    for (int i = 0; i < 2; i++)
        s.{0} += __atomic_load_n(&tables[i]->{0}, __ATOMIC_ACQUIRE);
    for (b = (struct psu_block *)__atomic_load_n(&psu_runtime.blocks, __ATOMIC_ACQUIRE); b; b = b->all)
        s.{0} += __atomic_load_n(&b->count[index].{0}, __ATOMIC_ACQUIRE);
"""
LEAVES, ENTERS, FENCE = SUM.format("leave"), SUM.format("enter"), "    __atomic_thread_fence(__ATOMIC_SEQ_CST);\n"
SLOW_COUNT = """static inline void psu_count(uint32_t *word)
{
    uint32_t was = *(volatile uint32_t *)word;
    for (int i = 0; i < 300; i++)
        __asm__ volatile("pause");
    *(volatile uint32_t *)word = was + 1;
}
"""

MUTANTS = (
    # barriers
    Mutant(
        "membarrier-nothing",
        "membarrier.c",
        """    long r = psu_syscall(NR_membarrier, PRIVATE_EXPEDITED, 0, 0);
    if (r == -PSU_EPERM) { /* not reg""",
        """    long r = 0;
    if (r == -PSU_EPERM) { /* not reg""",
        "a thread's count may still be invisible when its object is freed",
        (BARRIERS,),
    ),
    Mutant(
        "no-barrier-1",
        "commit.c",
        "    error = psu_membarrier(); /* it must work now",
        "    error = 0; /* it must work now",
        "a barrier that fails must refuse the transaction, and AArch64 needs it before arming",
        (BARRIERS,),
    ),
    Mutant(
        "no-barrier-4",
        "commit.c",
        BARRIER_4,
        "",
        "a late thread could run the old version after the commit",
        (BARRIERS,),
    ),
    Mutant(
        "no-barrier-8",
        "commit.c",
        "    psu_membarrier(); /* 8 */\n",
        "",
        "freed while a thread enters (I4)",
        (BARRIERS,),
    ),
    Mutant(
        "commit-before-barrier",
        "commit.c",
        BARRIER_4 + COMMIT,
        COMMIT + BARRIER_4,
        "the newest version must be what every call takes from the commit on",
        (BARRIERS,),
    ),
    # the transaction
    Mutant(
        "pending-ignores-commit",
        "routes.c",
        "    if (now < __atomic_load_n(&g->enter_txn, __ATOMIC_ACQUIRE))",
        "    if (0 && now)",
        "calls run a version that is not committed",
        (BARRIERS,),
    ),
    Mutant(
        "pending-exit-ignored",
        "routes.c",
        "    if (exit && now >= exit)",
        "    if (0 && exit)",
        "a function that went back to its original still runs the old version",
        (STRESS,),
    ),
    Mutant(
        "pending-exit-early",
        "routes.c",
        "    if (exit && now >= exit)",
        "    if (exit)",
        "a function goes back to its original before the commit",
        (STRESS,),
    ),
    Mutant(
        "not-pending",
        "commit.c",
        "    __atomic_store_n(&new->code, (uint64_t)psu_kinds[s->kind].pending, __ATOMIC_RELEASE);\n",
        "    __atomic_store_n(&new->code, s->body, __ATOMIC_RELEASE);\n",
        "functions of one patch switch one after the other",
        (BARRIERS,),
    ),
    Mutant(
        "settle-early",
        "commit.c",
        BARRIER_4,
        "    settle(&r.switches[0]);\n" + BARRIER_4,
        "one function is switched before the commit",
        (BARRIERS,),
    ),
    Mutant(
        "settle-before-commit",
        "commit.c",
        BARRIER_4,
        BARRIER_4 + "    settle(&r.switches[0]);\n",
        "one function is switched a moment before the others",
        model="SETTLE_BEFORE_COMMIT",
    ),
    Mutant(
        "no-redirect",
        "commit.c",
        """        psu_live_gates[g->counter / 8]--;
        __atomic_store_n(&g->code, (uint64_t)psu_kinds[kind].redirect, __ATOMIC_RELEASE);
""",
        "        psu_live_gates[g->counter / 8]--;\n",
        "a late thread enters what is freed",
        (BARRIERS,),
    ),
    Mutant(
        "not-settled", "commit.c", SETTLE_LOOP, "        ;\n", "all calls take the slow way for ever", (BASIC, STRESS)
    ),
    Mutant(
        "retired-at-once",
        "commit.c",
        "    psu_membarrier(); /* 8 */\n",
        """    for (uint32_t i = 0; i < r->head->retires; i++)
        psu_objects[r->retires[i]].state = PSU_RETIRED;
    psu_membarrier(); /* 8 */
""",
        "an object is retired before the barrier",
        (BARRIERS,),
    ),
    Mutant(
        "arm-code-first",
        "commit.c",
        "    struct psu_gate *new = new_gate(s);\n    new->preserve",
        """\
    struct psu_gate *new = new_gate(s);
    __atomic_store_n(&new->code, (uint64_t)psu_kinds[s->kind].pending, __ATOMIC_RELEASE);
    new->preserve""",
        "a late thread finds the words of the gate's earlier life behind `pending`",
        model="CODE_FIRST",
    ),
    Mutant(
        "not-bound",
        "commit.c",
        "        __atomic_store_n(&new->code, (uint64_t)psu_kinds[s->kind].redirect, __ATOMIC_RELEASE);\n    }\n    int looks",
        "    }\n    int looks",
        "AArch64: a thread finds a gate without code",
        model="NOT_BOUND",
    ),
    Mutant(
        "sequence-read-last",
        "routes.c",
        """    if (now < __atomic_load_n(&g->enter_txn, __ATOMIC_ACQUIRE))
""",
        """    uint64_t enter = __atomic_load_n(&g->enter_txn, __ATOMIC_ACQUIRE);
    now = __atomic_load_n(&psu_runtime.commit_seq, __ATOMIC_ACQUIRE);
    if (now < enter)
""",
        "a thread that waits in between takes the answer to an older question",
        model="SEQ_READ_LAST",
    ),
    Mutant(
        "route-without-acquire",
        "routes.c",
        "    __atomic_thread_fence(__ATOMIC_ACQUIRE);\n    uint32_t kind",
        "    uint32_t kind",
        "AArch64: an older commit_seq at the next function; x86-64 loads in order",
        model="NO_FENCE",
    ),
    *CALLS_INSIDE,
    # counts
    Mutant(
        "enters-first",
        "reclaim.c",
        LEAVES + FENCE + ENTERS,
        ENTERS + FENCE + LEAVES,
        "a call that comes in between the sums hides one that is inside",
        (SUMS,),
    ),
    Mutant(
        "freed-at-once",
        "reclaim.c",
        "            if (s.enter == s.leave) {",
        "            if (1 || s.enter == s.leave) {",
        "freed while calls are inside",
        (SUMS, STRESS),
    ),
    Mutant(
        "never-freed",
        "reclaim.c",
        "            if (s.enter == s.leave) {",
        "            if (s.enter + 1 == s.leave) {",
        "nothing is ever freed",
        (BASIC,),
    ),
    Mutant(
        "totals-forgotten",
        "reclaim.c",
        "        s.enter += __atomic_load_n(&tables[i]->enter, __ATOMIC_ACQUIRE);\n",
        "        ;\n",
        "counts of dead threads and of those without a block",
        (LIFE.format("short-threads"), LIFE.format("poor")),
    ),
    Mutant(
        "plain-counted-late",
        G,
        COUNT_IN_PLAIN,
        COUNT_IN_PLAIN.replace("        incl    BLOCK_ENTER(%r11)\n", "")
        + "        mov     psu_gate_area + AREA_SELF(%rip), %r11\n        mov     %fs:(%r11), %r11\n"
        "        add     psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_COUNTER(%rip), %r11\n"
        "        incl    BLOCK_ENTER(%r11)\n",
        "a call is counted when it is over",
        (SUMS, STRESS),
    ),
    Mutant("plain-not-counted-out", G, COUNT_OUT_PLAIN, "MARK plain_left\n", "objects are never freed", (BASIC,)),
    Mutant(
        "plain-loads-before-count",
        G,
        COUNT_IN_PLAIN,
        """\
        mov     psu_gate_area + AREA_PLAIN + GATE_SIZE * gate + GATE_CODE(%rip), %r10
        incl    BLOCK_ENTER(%r11)
MARK plain_counted
        notrack call *%r10
""",
        "the code that was loaded may be freed before the count: one instruction wide",
        model="COUNT_AFTER_LOAD",
    ),
    Mutant(
        "count-load-add-store",
        "arch/x86_64/arch.h",
        'static inline void psu_count(uint32_t *word) { __asm__ volatile("incl %0" : "+m"(*word)); }\n',
        SLOW_COUNT,
        "a signal handler's counts in between are lost (made wide enough to be met)",
        (STRESS,),
    ),
    Mutant(
        "fold-loses",
        "counters.c",
        "            __atomic_store_n(&psu_totals[i].enter, psu_totals[i].enter + c->enter, __ATOMIC_SEQ_CST);\n",
        "",
        "enters of dead threads are lost",
        (LIFE.format("short-threads"),),
    ),
    Mutant(
        "live-block-folded",
        "counters.c",
        "(tid && psu_thread_alive(tid))",
        "(tid > 0xfffffff0u)",
        "a block that a living thread counts in is given to another, too",
        (TORTURE,),
    ),
    Mutant(
        "never-recycled",
        "counters.c",
        "        push_free(b);\n    }\n    uint32_t n",
        "    }\n    uint32_t n",
        "each thread that ever was keeps a block",
        (LIFE.format("short-threads"),),
    ),
    Mutant(
        "unwinding-not-counted",
        "unwind.c",
        "    if (state.counted)",
        "    if (0 && state.counted)",
        "exceptions and cancellation leave counts behind",
        (UNWIND,),
    ),
    Mutant(
        "inner-jump-not-unwound",
        G,
        "PLAIN(UP, look_down), PLAIN(DOWN, look_up), ",
        "PLAIN(UP, look_down), PLAIN(DOWN, look_down), ",
        "who looks at a thread that is about to jump to the version takes something else for its return address",
        ("tests/unit/test_shim.py::test_backtrace_is_right_at_every_instruction_of_every_gate",),
    ),
    Mutant(
        "unwound-too-far",
        G,
        "OP_lit1, PLAIN(UP, down), PLAIN(DOWN, up), PLAIN(UP, slow), \\\n",
        "OP_lit1, PLAIN(UP, down), PLAIN(DOWN, counted), PLAIN(UP, slow), \\\n",
        "backtraces from functions behind plain gates are wrong",
        (STACKS,),
    ),
    # routes
    Mutant(
        "pending-stays-counted",
        "routes.c",
        "    if (!undo)\n",
        "    if (!undo || !(how & 256))\n",
        "a call of the old version is counted at the new one, which is one gate too many on the stack",
        (BARRIERS,),
    ),
    Mutant(
        "redirect-stays-counted",
        "routes.c",
        "    if (!undo)\n",
        "    if (!undo || how & 256)\n",
        "a late thread holds the old object for as long as the new version runs",
        (BARRIERS,),
    ),
    Mutant(
        "undo-not-counted-out",
        "routes.c",
        "    psu_count_leave(g->counter / 8);\n    return PSU_UNDONE;",
        "    return PSU_UNDONE;",
        "objects that late threads passed are never freed",
        (BARRIERS,),
    ),
    Mutant(
        "full-not-counted-out",
        "routes.c",
        "    psu_count_leave(g->counter / 8);\n    return PSU_RETURN;",
        "    return PSU_RETURN;",
        "objects with full gates are never freed",
        (STRESS,),
    ),
    Mutant(
        "redirect-to-body",
        "routes.c",
        "how & 256 ? redirected(g) :",
        "how & 256 ? g->body :",
        "a late thread runs the old version",
        (BARRIERS,),
    ),
    Mutant(
        "preserve-nothing",
        "routes.c",
        "        copy_general(f, save, g->preserve, 1);\n",
        "",
        "callers that rely on volatile registers",
        (CONVENTIONS,),
    ),
    # checks and bookkeeping
    Mutant(
        "gate-of-another",
        "commit.c",
        "    if (new->slot && (new->slot != s->slot || new->counter != 8 * s->index)) /* I3 */",
        "    if (0)",
        "a gate is given to another function or object (I3)",
        (BASIC,),
    ),
    Mutant(
        "stale-notes",
        "commit.c",
        "        if (now != psu_gate_entry(s->old_kind, old))\n            return -PSU_EBUSY;\n",
        "",
        "a record that was made from stale notes is run",
        (BASIC,),
    ),
    Mutant(
        "retire-current",
        "commit.c",
        "psu_live_gates[index] + (uint32_t)object_mark[index].delta != 0)",
        "0)",
        "an object with a current function is retired",
        (BASIC,),
    ),
    Mutant(
        "never-unmapped", "reclaim.c", "        if (size)\n", "        if (0)\n", "memory grows", (BASIC,)
    ),
    Mutant(
        "no-repair-after-fork",
        "agent.c",
        "    psu_commit_repair();\n",
        "",
        "a fork child inherits a half-made commit",
        (BARRIERS,),
    ),
    Mutant(
        "handlers-not-looked-for",
        "psu_bin/attach/surplus.py",
        " and not self._in_handlers(own)",
        "",
        "a call that a handler on a part of the same stack has interrupted is taken for over, and its object freed",
        ("tests/live/test_leaving.py::test_a_call_below_the_stack_pointer",),
    ),
    Mutant(
        "revert-without-gate",
        "psu_bin/attach/originals.py",
        "    if not registers:\n",
        "    if registers:\n",
        "a caller in a patch loses values in registers that the original changes",
        ("tests/live/test_goback.py",),
    ),
    *POOR,
)

# Of every kind, half a minute in all: tests/stress/test_mutants.py.
SHORT = (
    "membarrier-nothing",
    "pending-ignores-commit",
    "enters-first",
    "no-redirect",
    "calls-left-direct-in-object",
    "redirect-stays-counted",
)
