"""Mistakes about calls inside one patch object, which are not counted, and about near stubs: for mutant_list.py."""

from __future__ import annotations

from mutant import Mutant

BARRIERS = "tests/unit/test_shim_order.py::test_each_step_is_where_the_argument_wants_it[barriers]"
INSIDE = "tests/live/test_inside.py"
WITHIN = "tests/stress/test_within.py::test_calls_inside_objects[unmapped-{}]"
NEAR, OWN = WITHIN.format("near stubs"), WITHIN.format("own stubs")
OPEN_AND_CLOSED = "tests/live/test_near.py"

SETTLE_LOOP = """        settle(&r->switches[i]);
"""
STEP_9 = """        if (r->switches[i].local)
            __atomic_store_n("""
TURN = """    for (uint32_t i = 0; i < head->switches; i++)
        turn(r.switches[i].old_local);
"""

CALLS_INSIDE = (
    # the words of an object's own stubs
    Mutant(
        "local-not-turned",
        "commit.c",
        TURN,
        "",
        "an old version calls old versions after the commit",
        (BARRIERS, OWN, INSIDE),
    ),
    Mutant(
        "local-turned-late",
        "commit.c",
        TURN,
        "",
        "an old version calls old versions for a moment after the commit",
        model="LOCAL_TURNED_LATE",
    ),
    Mutant(
        "local-before-barrier",
        "commit.c",
        SETTLE_LOOP,
        SETTLE_LOOP
        + """\
    for (uint32_t i = 0; i < r->head->switches; i++)
        if (r->switches[i].local)
            ((struct psu_local *)r->switches[i].local)->target = r->switches[i].body;
""",
        "the order that commit.c promises (the model says that this is a margin: LOCAL_NOT_BEHIND)",
        (BARRIERS,),
    ),
    Mutant(
        "local-never",
        "commit.c",
        STEP_9,
        "        if (0)\n            __atomic_store_n(",
        "calls inside an object never take the short way",
        (BARRIERS,),
    ),
    Mutant(
        "local-forgotten",
        "psu_bin/attach/commit.py",
        "s.local, s.function.local if old else 0, _otherwise(s))",
        "s.local, 0, _otherwise(s))",
        "an old version calls old versions after the commit, because psu-bin does not say which",
        (OWN,),
    ),
    Mutant(
        "local-not-kept",
        "psu_bin/attach/commit.py",
        "s.function.current, s.function.local, s.function.near = [s.kind, gate, s.index], s.local, s.near",
        "s.function.current, s.function.near = [s.kind, gate, s.index], s.near",
        "the notes name the own stub of a version before, or none",
        (OWN,),
    ),
    # near stubs
    Mutant(
        "near-left-open-in-object",
        "psu_bin/attach/near.py",
        """    return [_in_object(x, s, s.function.near) for s in switches if s.function.near]
""",
        """    return []
""",
        "an old version calls old versions after the commit",
        (NEAR,),
    ),
    Mutant(
        "calls-left-direct-in-program",
        "psu_bin/attach/near.py",
        """    _turn(x, before + _in_program(x, switches), True)
""",
        """    _turn(x, before, True)
""",
        "the program's direct calls run the original",
        (NEAR,),
    ),
    Mutant(
        "near-closed-late",
        "psu_bin/attach/transaction.py",
        """        near.close(self, placed.switches, before)
        seconds = commit(self.session, record)
""",
        """        seconds = commit(self.session, record)
        near.close(self, placed.switches, before)
""",
        "for a moment after the commit some calls take the new version, others the old one",
        (NEAR,),
    ),
    Mutant(
        "near-opened-early",
        "psu_bin/attach/transaction.py",
        """        near.close(self, placed.switches, before)
""",
        """        near.close(self, placed.switches, before)
        near._turn(self, near._in_program(self, [s for s in placed.switches if not s.body]), False)
""",
        "for a moment before the commit of a revert direct calls take the original already",
        (NEAR,),
    ),
    Mutant(
        "turned-in-part",
        "turn.c",
        "    for (uint32_t i = 0; i < count && r == 0; i++) {\n        store(",
        "    for (uint32_t i = 0; i < (count + 1) / 2 && r == 0; i++) {\n        store(",
        "some functions' calls run the old version after the commit",
        (NEAR, OPEN_AND_CLOSED),
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
        (NEAR,),
    ),
    Mutant(
        "left-writable",
        "turn.c",
        "    long r = psu_syscall(NR_mprotect, opened.address, opened.size, opened.prot);\n    if (r < 0) /* it cannot",
        "    long r = 0;\n    if (r < 0) /* it cannot",
        "code stays writable, and cannot be turned again",
        (OPEN_AND_CLOSED,),
    ),
)
