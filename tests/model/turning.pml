/* Direct calls that are turned, as a model for spin: one instruction that leads to a version (open) or to a stub (closed: the
 * slot decides), and is changed under threads that execute it.
 *
 * That of version 0, the original, is in the program.  That of version n is in its patch object, made by
 * the object's own code only, and whose caller is counted (pinned).  Counting itself is in update.pml; here it is exact.
 * It is asserted that
 *   - a call runs a version that was current at some moment of the call;
 *   - what is executed is mapped, and so is the call.
 *
 * What stands for what:
 *   close()             turning.close(): OP_TURN before the commit, in the current version's object and in the program
 *   reopen()            turning.reopen() after it, in the program; perhaps never, because psu-bin was killed
 *   sync()              psu_membarrier_code() at the end of psu_turn()
 *   view[]              what a thread's processor has fetched of the instruction: a store since the last sync() may not
 *                       be seen yet, and may at any moment.  An object's code is fresh memory: never fetched before
 *   commit()            psu_commit() with its barriers, as one step
 * Mutants, each of which must be found wrong, are the #ifdefs in capital letters. */

#ifndef UPDATES
#define UPDATES 3
#endif
#ifndef THREADS
#define THREADS 2
#endif
#ifndef CALLS
#define CALLS 2
#endif
#define VERSIONS (UPDATES + 1)
#define NEVER 255

bool open[VERSIONS];                 /* the instruction in memory */
bool view[THREADS * VERSIONS];
byte slot, commit_seq, died[VERSIONS] = NEVER;
byte pinned[VERSIONS];
bool mapped[VERSIONS], retired[VERSIONS];

/* begun: what commit_seq was at the call's first instruction. */
#define RUN(v) atomic { assert(mapped[v]); assert(died[v] > begun) }

inline enter_through_slot(v) { atomic { v = slot; pinned[v]++; assert(mapped[v]); assert(died[v] > begun) } }

/* Whether nobody is in version v.  A call inside an object is not counted: its caller's count is what keeps both. */
#ifdef FREED_AT_ONCE
#define QUIET(v) true
#else
#define QUIET(v) !pinned[v]
#endif
#ifdef CALLER_FORGOTTEN
#define FORGET(v) atomic { assert(mapped[v]); pinned[v]-- }
#define LEAVE(v) skip
#else
#define FORGET(v) skip
#define LEAVE(v) atomic { assert(mapped[v]); pinned[v]-- }
#endif

/* The function calls itself, or the program calls it: `from` is the version whose code makes the call. */
inline direct(from) {
    assert(mapped[from]);
    begun = commit_seq;
    if
    :: view[t * VERSIONS + from] = open[from]
    :: true                                      /* fetched earlier */
    fi;
    if
    :: view[t * VERSIONS + from] -> RUN(from); assert(mapped[from])
    :: else -> enter_through_slot(inner); atomic { assert(mapped[inner]); pinned[inner]--; inner = 0 }
    fi
}

proctype caller(byte t) {
    byte n, outer, inner, begun;
    do
    :: n < CALLS ->
        n++;
        if
        :: direct(0)                             /* by the program */
        :: begun = commit_seq; enter_through_slot(outer);
            if
            :: outer -> FORGET(outer); direct(outer); LEAVE(outer)   /* by a patch object's own code */
            :: else -> LEAVE(outer)
            fi;
            outer = 0
        fi;
        begun = 0
    :: else -> break
    od
}

inline sync() {
#ifndef NO_SYNC
    d_step {
        i = 0;
        do :: i < THREADS * VERSIONS -> view[i] = open[i % VERSIONS]; i++ :: else -> i = 0; break od
    }
#endif
    skip
}

inline close() {
#ifndef PROGRAM_LEFT_OPEN
    open[0] = false;
#endif
#ifndef OBJECT_LEFT_OPEN
    if :: old -> open[old] = false :: else fi;
#endif
    sync()
}

inline reopen() {
    if
    :: new                                       /* an object's calls were open from the beginning */
    :: !new -> open[0] = true; sync()
    :: !new -> open[0] = true                    /* the barrier failed: a warning */
    :: !new                                      /* killed */
    fi
}

active proctype agent() {
    byte n = 1, new, old, i;
    bool refused;
    mapped[0] = true; open[0] = true;
    do :: i < THREADS * VERSIONS -> view[i] = (i % VERSIONS == 0); i++ :: else -> i = 0; break od;
    do :: i < THREADS -> run caller(i); i++ :: else -> i = 0; break od;
    do
    :: n <= UPDATES ->
        old = slot;
        if
        :: new = n; mapped[n] = true; open[n] = true
        :: old -> new = 0
        fi;
#ifndef CLOSED_LATE
        close();
#endif
#ifdef OPENED_EARLY
        reopen();
#endif
        if
        :: refused = true                        /* the calls stay closed */
        :: atomic {                              /* the commit */
            died[old] = n; died[new] = NEVER; slot = new; commit_seq = n; retired[old] = (old != 0) }
        fi;
#ifdef CLOSED_LATE
        close();
#endif
        if
        :: refused && new -> mapped[new] = false
        :: refused && !new
        :: else ->
#ifndef OPENED_EARLY
            reopen();
#endif
            skip
        fi;
        atomic { refused = false; new = 0; old = 0; n++ }
    :: atomic { retired[1] && QUIET(1) -> mapped[1] = false; retired[1] = false }
    :: atomic { retired[2] && QUIET(2) -> mapped[2] = false; retired[2] = false }
    :: n > UPDATES && !retired[1] && !retired[2] -> break
    od
}
