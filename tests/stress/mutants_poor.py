"""Mistakes in what full gates do without memory (shim/poor.c), in the search for side entries (shim/entries.c), and in what
threads see of lists that the agent changes."""

from __future__ import annotations

from mutant import Mutant

CONVENTIONS = "tests/unit/test_shim.py::test_gates_keep_registers_flags_and_stack_arguments"
UNWOUND = "tests/unit/test_shim.py::test_exceptions_cancellation_and_longjmp_through_gates[flags0-poor]"
SIGNALS = "tests/unit/test_shim.py::test_a_signal_at_any_instruction_of_a_call_without_memory[spare-{}]"
LEFT = "tests/unit/test_shim.py::test_entries_that_others_than_their_place_must_find_are_found_and_those_in_use_kept"
STARTING = "tests/unit/test_shim.py::test_start_routines_that_end_their_threads_are_counted_out_once"

POOR = (
    Mutant(
        "poor-nothing-restored",
        "poor.c",
        "            *register_now = *psu_frame_register(f, n);\n",
        "            (void)*psu_frame_register(f, n);\n",
        "callers lose general registers",
        (CONVENTIONS,),
    ),
    Mutant(
        "poor-no-vectors",
        "poor.c",
        "        psu_vectors_restore(vectors(f), g->preserve >> 16);\n",
        "        (void)0;\n",
        "callers lose vector registers",
        (CONVENTIONS,),
    ),
    Mutant(
        "poor-not-counted-out",
        "poor.c",
        "    psu_count_leave(g->counter / 8);\n}\n",
        "}\n",
        "the object is kept for ever",
        (CONVENTIONS,),
    ),
    Mutant(
        "poor-unwound-not-counted",
        "unwind.c",
        """    if (g)
        psu_count_leave(g->counter / 8);
""",
        """    if (0)
        psu_count_leave(g->counter / 8);
""",
        "exceptions through such a gate keep the object",
        (UNWOUND,),
    ),
    Mutant(
        "poor-unwound-anywhere",
        "unwind.c",
        " || get_ip(context) != (uint64_t)psu_stacked_back)\n",
        ")\n",
        "a call that was counted out, or not in, is counted out once more: a version is unmapped under a thread",
        ("tests/unit/test_shim.py::test_a_call_cancelled_at_any_instruction_is_counted_out_at_most_once[2]",),
    ),
    Mutant(
        "poor-two-owners",
        "poor.c",
        "        uint64_t free = 0;\n",
        "        uint64_t free = __atomic_load_n(&spares[i].side.sp, __ATOMIC_ACQUIRE);\n",
        "a handler's call takes the area of the call that it interrupted",
        (SIGNALS.format("call"),),
    ),
    Mutant(
        "poor-abandoned-are-lost",
        "poor.c",
        "            if (!tail_caller)\n",
        "            if (!tail_caller && 0)\n",
        "after some longjmps there are none left",
        (SIGNALS.format("out"),),
    ),
    Mutant(
        "poor-spare-in-a-list",
        "routes.c",
        "    if (psu_spare(s)) {\n",
        "    if (0 && psu_spare(s)) {\n",
        "areas are never given back",
        (CONVENTIONS, SIGNALS.format("call")),
    ),
    Mutant(
        "poor-never-on-the-stack",
        "poor.c",
        "    if (otherwise == PSU_ON_STACK) {\n",
        "    if (0) {\n",
        "deep recursion without memory runs out of areas, and jumps to address 1",
        (CONVENTIONS,),
    ),
    Mutant(
        "found-while-it-changes",
        "frames.c",
        "    return turn & 1 && __atomic_load_n(&e->turn, __ATOMIC_RELAXED) == turn;\n",
        "    return 1;\n",
        "an unwinder gets the rules of another object",
        ("tests/unit/test_shim.py::test_unwind_rules_are_not_those_of_an_object_that_is_changing",),
    ),
    Mutant(
        "own-place-only",
        "entries.c",
        "(!found || b->chunks->gate > SEARCHED)",
        "0",
        "entries of calls that were left pile up where another call always finds the list empty",
        (LEFT,),
    ),
    Mutant(
        "tail-callers-are-gone",
        "entries.c",
        "return in_side_gate(s->return_address); }",
        "return (void)s, 0; }",
        "an entry is given back under a call in progress, which tail-called the newer ones at its place",
        (LEFT,),
    ),
    Mutant(
        "distant-stubs-registered",
        "frames.c",
        "i < 2 && o->region[1].size",
        "i < 0 && o->region[1].size",
        "libgcc takes all that lies between an object and its distant stubs for the object's",
        ("tests/live/test_leaving.py::test_exceptions_in_a_plugin_of_a_host_that_is_not_instrumented",),
    ),
    Mutant(
        "start-routine-kept",
        "counters.c",
        "    b->count[((struct psu_gate *)s->gate)->counter / 8].leave++;\n",
        "",
        "a start routine that ends its thread keeps its version until another thread uses the stack",
        (STARTING,),
    ),
    Mutant(
        "start-routine-of-the-gate-before",
        "routes.c",
        "        psu_start_routine_over(b, s);\n",
        "",
        "a call is counted out in a gate that it left: a version is unmapped under a thread",
        (STARTING,),
    ),
    Mutant(
        "start-routine-over-twice",
        "counters.c",
        "    if (s->sp != s->start_sp || s->return_address != psu_thread_return)\n",
        "    if (0)\n",
        "a start routine that returned is counted out once more",
        (STARTING,),
    ),
    Mutant(
        "poor-version-instead-of-original",
        "poor.c",
        "    if (otherwise) {\n",
        "    if (0 && otherwise) {\n",
        "the version changes what its callers rely on",
        (CONVENTIONS,),
    ),
)
