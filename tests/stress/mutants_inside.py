"""Mistakes about calls inside one patch object, which are not counted, and about turning calls: for mutant_list.py."""

from __future__ import annotations

from mutant import Mutant

INSIDE = "tests/live/test_inside.py"
BARRIERS = "tests/unit/test_shim_order.py::test_each_step_is_where_the_argument_wants_it[barriers]"
WITHIN = "tests/stress/test_within.py::test_calls_inside_objects[unmapped-{}]"
DIRECT, SHORT = WITHIN.format("direct"), WITHIN.format("short")
INNER = "tests/unit/test_shim.py::test_calls_by_pointer_inside_an_object_are_not_counted_and_right"
OPEN_AND_CLOSED = "tests/live/test_turning.py"

SETTLE_LOOP = """        settle(&r->switches[i]);
"""

CALLS_INSIDE = (
    Mutant(
        "calls-left-direct-in-object",
        "psu_bin/attach/turning.py",
        "    return [_in_object(x, row, mine[row[0]]) for row in x.notes.calls if row[0] in mine]\n",
        "    return []\n",
        "an old version calls old versions after the commit",
        (DIRECT, INSIDE),
    ),
    Mutant(
        "body-not-noted",
        "psu_bin/attach/commit.py",
        "            s.function.current, s.function.body = [s.kind, gate, s.index], s.body\n",
        "            s.function.current, s.function.body = [s.kind, gate, s.index], s.function.body or s.body\n",
        "the notes name the body of a version before, whose calls are not those of the object",
        (DIRECT, INSIDE),
    ),
    Mutant(
        "stubs-not-made",
        "psu_bin/attach/turning.py",
        "    make_stubs(x, inside)\n",
        "",
        "calls inside an object are turned to where nothing is",
        (DIRECT, INSIDE),
    ),
    Mutant(
        "stubs-on-each-other",
        "psu_bin/attach/rooms.py",
        "        near = {a for a, b in zip(entries, entries[1:]) if b - a < apart}\n",
        "        near = set()\n",
        "the stub of a very short function has lost its end to the next one",
        (SHORT,),
    ),
    Mutant(
        "stubs-of-all-in-object",
        "psu_bin/attach/turning.py",
        "             if f.current and f.current[2] == index and f.body in called]\n",
        "             if f.current and f.current[2] == index and f.body]\n",
        "a stub of a function that the object does not call lies on the end of one of a function that it calls",
        (INSIDE,),
    ),
    Mutant(
        "direct-from-other-stacks",
        "psu_bin/attach/linker.py",
        "    if inner.stays_on_stack(layout.patch, layout.binder.views, link):\n",
        "    if True:\n",
        "the object that a suspended coroutine will go on in is freed",
        ("tests/live/test_stacks.py",),
    ),
    Mutant(
        "program-does-not-move-stacks",
        "psu_bin/attach/inner.py",
        "not any(v.descriptor.flags & MODULE_MOVES_STACK for v in views) and not moves_stack",
        "not moves_stack",
        "the object that a coroutine, begun by the program's own code, will go on in is freed",
        ("tests/live/test_stacks.py",),
    ),
    Mutant(
        "calls-left-direct-in-program",
        "psu_bin/attach/turning.py",
        "    _turn(x, [s for i in inside for s in i.spots] + _in_program(x, switches), True)\n",
        "    _turn(x, [s for i in inside for s in i.spots], True)\n",
        "the program's direct calls run the original",
        (DIRECT,),
    ),
    Mutant(
        "calls-turned-late",
        "psu_bin/attach/transaction.py",
        """        turning.close(self, placed.switches, inside)
        seconds = commit(self.session, record)
""",
        """        seconds = commit(self.session, record)
        turning.close(self, placed.switches, inside)
""",
        "for a moment after the commit some calls take the new version, others the old one",
        (DIRECT,),
    ),
    Mutant(
        "calls-turned-back-early",
        "psu_bin/attach/transaction.py",
        """        turning.close(self, placed.switches, inside)
""",
        """        turning.close(self, placed.switches, inside)
        turning._turn(self, turning._in_program(self, [s for s in placed.switches if not s.body]), False)
""",
        "for a moment before the commit of a revert direct calls take the original already",
        (DIRECT,),
    ),
    Mutant(
        "turned-in-part",
        "turn.c",
        "    for (uint32_t i = 0; i < count && r == 0; i++) {\n        store(",
        "    for (uint32_t i = 0; i < (count + 1) / 2 && r == 0; i++) {\n        store(",
        "some functions' calls run the old version after the commit",
        (DIRECT, OPEN_AND_CLOSED),
    ),
    Mutant(
        "turned-unseen",
        "turn.c",
        "    return r == 0 ? psu_membarrier_code() : r;",
        "    return r;",
        "a thread may run an instruction that it fetched before the change: seldom, and not on every processor",
        model="NO_SYNC",
    ),
    Mutant(
        "turned-half",
        "turn.c",
        "        __atomic_store_n((uint64_t *)at, value, __ATOMIC_SEQ_CST);",
        """        for (int i = 0; i < 8; i++) {
            ((volatile char *)at)[i] = (char)(value >> 8 * i);
            for (int j = 0; j < 20000; j++)
                __asm__ volatile("pause");
        }""",
        "a thread meets an instruction that is neither (made wide enough to be met)",
        (DIRECT,),
    ),
    Mutant(
        "left-writable",
        "turn.c",
        "    long r = psu_syscall(NR_mprotect, opened.address, opened.size, opened.prot);\n    if (r < 0) /* it cannot",
        "    long r = 0;\n    if (r < 0) /* it cannot",
        "code stays writable, and cannot be turned again",
        (OPEN_AND_CLOSED,),
    ),
    Mutant(
        "inner-calls-do-not-ask",
        "commit.c",
        "        __atomic_store_n(&old->base, PSU_NOWHERE, __ATOMIC_RELAXED); /* who comes from inside has to ask, too */\n",
        "",
        "for a moment after the commit of a revert calls from inside take the old version, others the original",
        (BARRIERS,),
    ),
    Mutant(
        "base-of-the-first-object",
        "commit.c",
        "    __atomic_store_n(&new->base, looks ? start + 1 : PSU_NOWHERE, __ATOMIC_RELAXED);\n",
        "    if (!new->base)\n        __atomic_store_n(&new->base, looks ? start + 1 : PSU_NOWHERE, __ATOMIC_RELAXED);\n",
        "who returns to where another object was is taken for one inside, and is not counted",
        (BARRIERS, INNER),
    ),
    Mutant(
        "inner-calls-of-other-stacks",
        "commit.c",
        "    __atomic_store_n(&new->base, looks ? start + 1 : PSU_NOWHERE, __ATOMIC_RELAXED);\n",
        "    __atomic_store_n(&new->base, start + 1, __ATOMIC_RELAXED);\n",
        "who comes late to the entry that looks, from inside on another stack, is not counted, and the object is freed under the call",
        (INNER,),
    ),
    Mutant(
        "looks-on-other-stacks",
        "psu_bin/attach/linker.py",
        "        room.looks = inner.looks(",
        "    room.looks = inner.looks(",
        "who called from inside on another stack has returned, and the object is freed under the call",
        ("tests/live/test_stacks.py",),
    ),
    Mutant(
        "entry-of-the-first-object",
        "commit.c",
        "    new->entry = looks ? psu_kinds[s->kind].look : 0;\n",
        "    if (!new->enter_txn)\n        new->entry = looks ? psu_kinds[s->kind].look : 0;\n",
        "every call of a small patch pays for a look that finds nothing, as one of the whole program came before it",
        (INNER,),
    ),
    Mutant(
        "second-entry-is-inside",
        "psu_bin/attach/stacks.py",
        "offset not in (0, pool.look)",
        "offset",
        "where a slot leads is taken for a return address: a call that longjmp left keeps its object for ever",
        ("tests/unit/test_inner.py",),
    ),
    Mutant(
        "span-of-the-first-object",
        "commit.c",
        "s->looks && new->span <= size",
        "s->looks",
        "who returns to what lies behind a smaller object is taken for one inside, and is not counted",
        (INNER,),
    ),
)
