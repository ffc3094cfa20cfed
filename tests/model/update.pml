/* The protocol by which versions are called, replaced and freed, as a model for spin: what it is about, and its memory.
 * The threads that call are in threads.pml, the agent is in agent.pml.
 *
 * It explores every interleaving of some threads that call, signal handlers that interrupt them anywhere, threads that
 * end and begin, and the agent that commits and reclaims.  It asserts that
 *   - what is executed is mapped, from the first instruction to the last (no use after free);
 *   - it is a version of the function that was called, current at some moment of the call (newest-version rule; since
 *     the moment at which all functions of a transaction become current is one store, this is also all or nothing);
 *   - in the end every enter has its leave, and all retired objects are freed (no lost activation, no leak).
 *
 * What stands for what (shim/):
 *   call()              stub and gate: arch/x86_64/gates.S; pending and redirect: pending(), redirected(), psu_route()
 *                       in routes.c
 *   barrier()           psu_membarrier()
 *   commit()            psu_commit(): bind(), arm(), store_slot(), commit_seq, settle(), redirect(), the states of
 *                       finish()
 *   reclaim()           psu_reclaim(), sum(), release() in reclaim.c
 *   turn(), word[]      where calls of function 1 from inside object o lead: 0: to a stub, else to the body
 *                       (psu_bin/attach/inner.py; that instructions are changed is in turning.pml).  With -DLOCAL each
 *                       version of function 0 calls function 1: so where its object has both, else
 *                       through the slot; perhaps also by a pointer, which is the stub
 *   base[]              psu_gate.base: the version whose own calls the gate lets pass without a count; 0: none.  Which of
 *                       its entries a call comes to is not kept: any call may come to either
 *   new_block(), recycle()  psu_block_get(), psu_blocks_recycle(), fold() in counters.c
 *   slot, before        0: the original; 1 + g: gate g.  Gate 2 f + o belongs to function f and object (index) o.
 *   a version           has the number of the transaction that made it; 0 is the original
 *
 * Memory, as x86-64 orders it (TSO): a count stays in the store buffer of the thread's processor (buffered[]) and may
 * become visible later than the thread's next loads.  Only the agent reads counts, so it is decided when it reads
 * whether they were visible.  The agent's own stores need no buffer: late ones are the same as an agent that is
 * late, because it loads nothing that matters before a barrier.
 *
 * Memory, as AArch64 orders it (-DWEAK): besides, a leave may become visible before its enter unless it is a
 * store-release; and each load of a slot, of a gate's code and, for an inner call, base and body, of word[] and of commit_seq may have been made as early
 * as the last barrier: it gives the value before the agent's last store, unless that was stored before a barrier, or the
 * thread loaded the later one before (coherence), or an acquire stands between.  Between two barriers the agent stores each
 * such word once at most, so one older value of each, the one before the barrier, is enough.  The other words of a gate
 * are loaded behind the acquire in psu_route().  Here a call "begins" with what its thread can know: the newest
 * version that it has run.
 *
 * Sizes, by -D: THREADS callers, CALLS calls each, UPDATES transactions, FUNCTIONS 1 or 2; LIVES: each caller is so
 * many threads one after the other; HANDLER: a signal handler interrupts caller 0; LOCAL: calls inside one object.
 * Mutants, each of which must be found wrong, are the #ifdefs in capital letters; test_model.py lists them. */

#ifndef THREADS
#define THREADS 2
#endif
#ifndef CALLS
#define CALLS 1
#endif
#ifndef UPDATES
#define UPDATES 3
#endif
#ifndef FUNCTIONS
#define FUNCTIONS 1
#endif
#ifndef LIVES
#define LIVES 1
#endif
#ifdef HANDLER
#define INTERRUPTS 1
#define UNLESS_INTERRUPTED provided (interrupted != _pid)
#else
#define INTERRUPTS 0
#define UNLESS_INTERRUPTED
#endif

#define OBJECTS 2
#define BLOCKS (THREADS * LIVES + INTERRUPTS)
#define NONE 15
#define VERSIONS (UPDATES + 1)

/* psu_gate.code; other values are versions */
#define UNUSED 0
#define PENDING 14
#define REDIRECT 15

byte slot[FUNCTIONS];
byte code[FUNCTIONS * OBJECTS], body[FUNCTIONS * OBJECTS], before[FUNCTIONS * OBJECTS];
byte enter_txn[FUNCTIONS * OBJECTS], exit_txn[FUNCTIONS * OBJECTS];
byte commit_seq;
#ifdef LOCAL
byte word[OBJECTS], base[FUNCTIONS * OBJECTS];
#endif

/* objects */
#define FREE 0
#define CURRENT 1
#define RETIRED 2
byte state[OBJECTS], version[OBJECTS], live_gates[OBJECTS];

/* counters: of block b and object o at b * OBJECTS + o; the last block is the totals */
byte enter[(BLOCKS + 1) * OBJECTS], leave[(BLOCKS + 1) * OBJECTS], buffered[BLOCKS * OBJECTS];
byte owner[BLOCKS];      /* 1 + thread; 0: none */
bool taken[BLOCKS];      /* not in the stack of free blocks */
byte self[THREADS];      /* the thread-local pointer: 1 + block, 0: none */
bool dead[THREADS];      /* as the kernel says */

/* What only the assertions read. */
bool mapped[VERSIONS], has[VERSIONS * FUNCTIONS];
byte current[FUNCTIONS], died[VERSIONS * FUNCTIONS];
byte interrupted = NONE, callers = THREADS, finished;

#ifdef WEAK
#ifdef LOCAL
#define BITS int
#define ALL_BITS 262143
#define WORD(o) (256 << (o))
#define BASE(g) (1024 << (g))
#define BODY(g) (16384 << (g))
byte old_word[OBJECTS], old_base[FUNCTIONS * OBJECTS], old_body[FUNCTIONS * OBJECTS];
#else
#define BITS byte
#define ALL_BITS 255
#endif
/* Words stored since the last barrier, and which of them a thread has loaded since: bits as in CODE, SLOT, SEQ, WORD, BASE
 * and BODY. */
BITS stale, seen[THREADS];
byte old_slot[FUNCTIONS], old_code[FUNCTIONS * OBJECTS];
byte known[THREADS];     /* the newest version that the thread has run */
byte since[FUNCTIONS];   /* the transaction that brought the original back */
#define CODE(g) (1 << (g))
#define SLOT(f) (16 << (f))
#define SEQ 64
#define AFTER_SEQ 128    /* in seen: the thread loaded something that was stored after commit_seq */
#define SEE(t, what) if :: stale & (what) -> seen[t] = seen[t] | (what) | (stale & SEQ -> AFTER_SEQ : 0) :: else fi
#define EARLY(t, what) ((stale & (what)) && !(seen[t] & (what)))
#define LOAD(to, t, what, new, old) atomic { if :: to = new; SEE(t, what) :: EARLY(t, what) -> to = old fi }
#define LOAD_CODE(to, t, g) LOAD(to, t, CODE(g), code[g], old_code[g])
#define LOAD_SEQ(to, t) LOAD(to, t, SEQ, commit_seq, commit_seq - 1)
#define CHANGE(what) stale = stale | (what); unsee(what)
#define STORE_CODE(g, value) old_code[g] = (stale & CODE(g) -> old_code[g] : code[g]); code[g] = value; CHANGE(CODE(g))
#define STORE_SLOT(f, value) old_slot[f] = slot[f]; slot[f] = value; CHANGE(SLOT(f))
#define STORE_LOCAL(o, value) old_word[o] = word[o]; word[o] = value; CHANGE(WORD(o))
#define LOAD_BASE(to, t, g) LOAD(to, t, BASE(g), base[g], old_base[g])
#define LOAD_BODY(to, t, g) LOAD(to, t, BODY(g), body[g], old_body[g])
#ifdef LOCAL
#define STORE_BASE(g, value) old_base[g] = base[g]; base[g] = value; CHANGE(BASE(g))
#define STORE_BODY(g, value) old_body[g] = body[g]; body[g] = value; CHANGE(BODY(g))
#else
#define STORE_BASE(g, value) skip
#define STORE_BODY(g, value) body[g] = value
#endif
inline unsee(what) {
    do :: o_ < THREADS -> seen[o_] = seen[o_] & (ALL_BITS - (what)); o_++ :: else -> o_ = 0; break od
}
#else
#define LOAD_CODE(to, t, g) to = code[g]
#define LOAD_SEQ(to, t) to = commit_seq
#define STORE_CODE(g, value) code[g] = value
#define STORE_SLOT(f, value) slot[f] = value
#define STORE_LOCAL(o, value) word[o] = value
#define LOAD_BASE(to, t, g) to = base[g]
#define LOAD_BODY(to, t, g) to = body[g]
#define STORE_BODY(g, value) body[g] = value
#ifdef LOCAL
#define STORE_BASE(g, value) base[g] = value
#else
#define STORE_BASE(g, value) skip
#endif
#endif

#define VALID(f, v, begun) (current[f] == v || died[(v) * FUNCTIONS + f] > begun)

#include "threads.pml"
#include "agent.pml"

init {
    byte t;
    atomic {
        run agent(); /* process 1 */
        do
        :: t < THREADS ->
#if LIVES == 1 && !INTERRUPTS
            self[t] = 1 + t; owner[t] = 1 + t; taken[t] = true; /* it called before */
#endif
            run caller(t); t++ /* process 2 + t */
        :: else -> break
        od;
#ifdef HANDLER
        run handler(0)
#endif
    }
}
