/* The agent: transactions and reclaiming; part of update.pml. */

inline barrier() {
    d_step {
        b = 0;
        do :: b < BLOCKS -> flush(b); b++ :: else -> b = 0; break od;
#ifdef WEAK
        do :: b < THREADS -> seen[b] = 0; b++ :: else -> b = 0; break od;
        do :: b < FUNCTIONS -> old_slot[b] = 0; b++ :: else -> b = 0; break od;
#ifdef LOCAL
        do :: b < OBJECTS -> old_word[b] = 0; b++ :: else -> b = 0; break od;
        do :: b < FUNCTIONS * OBJECTS -> old_base[b] = 0; old_body[b] = 0; b++ :: else -> b = 0; break od;
#endif
        do :: b < FUNCTIONS * OBJECTS -> old_code[b] = 0; b++ :: else -> b = 0; break od;
        stale = 0
#endif
    }
}

/* Blocks of dead threads: their counts join the totals, others may have them. */
inline recycle() {
    b = 0;
    do
    :: b < BLOCKS ->
        if
#ifdef LIVE_BLOCK_FOLDED
        :: owner[b] ->
#else
        :: owner[b] && dead[owner[b] - 1] ->
#endif
            d_step {
                o = 0;
                do
                :: o < OBJECTS ->
                    enter[BLOCKS * OBJECTS + o] = enter[BLOCKS * OBJECTS + o] + enter[b * OBJECTS + o];
                    leave[BLOCKS * OBJECTS + o] = leave[BLOCKS * OBJECTS + o] + leave[b * OBJECTS + o]; o++
                :: else -> o = 0; break
                od
            };
            d_step {
                do
                :: o < OBJECTS -> enter[b * OBJECTS + o] = 0; leave[b * OBJECTS + o] = 0; o++
                :: else -> o = 0; break
                od
            };
            owner[b] = 0;
            taken[b] = false
        :: else
        fi;
        b++
    :: else -> b = 0; break
    od
}

inline sum_leaves(o) {
    do
    :: b <= BLOCKS -> atomic { le = le + leave[b * OBJECTS + o]; b++ }
    :: else -> atomic { b = 0; break }
    od
}

inline sum_enters(o) {
    do
    :: b <= BLOCKS -> atomic {
        if
        :: b < BLOCKS && buffered[b * OBJECTS + o] -> flush(b) /* just visible */
        :: true
        fi;
        en = en + enter[b * OBJECTS + o]; b++ }
    :: else -> atomic { b = 0; break }
    od
}

inline reclaim(o) {
    if
    :: state[o] == RETIRED ->
#ifdef ENTERS_FIRST
        sum_enters(o);
        sum_leaves(o);
#else
        sum_leaves(o);
        sum_enters(o);
#endif
        atomic {
            if
#ifdef FREED_AT_ONCE
            :: true ->
#else
            :: le != en
            :: le == en ->
#endif
                mapped[version[o]] = false; version[o] = 0; state[o] = FREE
            fi;
            le = 0; en = 0
        }
    :: else
    fi
}

/* One turn of the agent when something is retired. */
inline look() {
    recycle();
    o = 0; reclaim(o);
    o = 1; reclaim(o);
    o = 0
}

#ifdef GATE_SHARED
#define GATE(f, o) (o)
#else
#define GATE(f, o) ((f) * OBJECTS + (o))
#endif
#define IN(f) (set >> (f) & 1)
#ifdef LOCAL
#define NEW_LOCAL(o) word[o] = (IN(1) -> n : 0)
#define WILL_TURN turned = (slot[1] -> (slot[1] - 1) % OBJECTS : NONE)
#else
#define NEW_LOCAL(o) skip
#define WILL_TURN skip
#endif

/* The commit: one store. */
inline flip() {
    skip;
    d_step {
        do
        :: f < FUNCTIONS && IN(f) ->
            died[current[f] * FUNCTIONS + f] = n;
            current[f] = (o == NONE -> 0 : n); f++
        :: f < FUNCTIONS && !IN(f) -> f++
        :: else -> f = 0; break
        od;
        commit_seq = n;
#ifdef WEAK
        CHANGE(SEQ)
#endif
    }
}

/* Calls of function 1 from inside the object that its slot leads to now go through the slot from here on. */
inline turn() {
#ifdef LOCAL
    atomic {
        if
        :: IN(1) && turned != NONE -> STORE_LOCAL(turned, 0); turned = NONE
        :: else
        fi
    }
#endif
    skip
}

/* A transaction: the functions in `set` get version n of object o, or, o == NONE, go back to the original. */
inline commit() {
    n = commit_seq + 1;
#ifdef COMMIT_FIRST
    flip();
#endif
    if
    :: o != NONE -> d_step { mapped[n] = true; version[o] = n; NEW_LOCAL(o) }
    :: else
    fi;
    WILL_TURN;
    /* check: a gate that was never used gets what is its own for ever */
#ifndef NOT_BOUND
    atomic {
        do
        :: f < FUNCTIONS && IN(f) && o != NONE && code[GATE(f, o)] == UNUSED -> STORE_CODE(GATE(f, o), REDIRECT); f++
        :: f < FUNCTIONS && !(IN(f) && o != NONE && code[GATE(f, o)] == UNUSED) -> f++
        :: else -> f = 0; break
        od
    }
#endif
    atomic {
        do
        :: f < FUNCTIONS && IN(f) && o != NONE -> STORE_BASE(GATE(f, o), n); f++
#ifdef LOCAL
        :: f < FUNCTIONS && IN(f) && o != NONE -> STORE_BASE(GATE(f, o), 0); f++ /* calls are to be counted */
#endif
        :: f < FUNCTIONS && !(IN(f) && o != NONE) -> f++
        :: else -> f = 0; break
        od
    }
#ifndef NO_BARRIER_BEFORE_ARM
    barrier();
#endif
#if !defined(LOCAL_NOT_TURNED) && !defined(LOCAL_TURNED_LATE) && !defined(LOCAL_TURNED_BEHIND)
    turn();
#endif
    /* arm */
    do
    :: f < FUNCTIONS && IN(f) && o != NONE ->
        atomic {
            g = GATE(f, o);
            has[n * FUNCTIONS + f] = true;
#ifdef CODE_FIRST
            STORE_CODE(g, PENDING)
        }
        atomic {
#endif
            STORE_BODY(g, n);
            exit_txn[g] = 0;
            before[g] = slot[f];
            live_gates[o]++
        }
        enter_txn[g] = n;
        atomic {
#ifndef CODE_FIRST
            STORE_CODE(g, PENDING);
#endif
            f++; g = 0
        }
    :: f < FUNCTIONS && IN(f) && o == NONE ->
#ifdef BASE_KEPT
        atomic { g = slot[f] - 1; exit_txn[g] = n }
#else
        atomic { g = slot[f] - 1; STORE_BASE(g, 0); exit_txn[g] = n }
#endif
        atomic { STORE_CODE(g, PENDING); f++; g = 0 }
    :: f < FUNCTIONS && !IN(f) -> f++
    :: else -> atomic { f = 0; left = 0; break }
    od;
    /* point; remember what was left */
    do
    :: f < FUNCTIONS && IN(f) ->
        atomic {
            if :: slot[f] -> left = left | 1 << (slot[f] - 1) :: else fi;
            if :: o != NONE -> STORE_SLOT(f, GATE(f, o) + 1) :: else fi;
            f++
        }
    :: f < FUNCTIONS && !IN(f) -> f++
    :: else -> atomic { f = 0; break }
    od;
#ifndef NO_BARRIER_BEFORE_COMMIT
    barrier();
#endif
#ifdef SETTLE_BEFORE_COMMIT
    settle();
#endif
#ifdef LOCAL_TURNED_BEHIND
    turn();
#endif
#ifndef COMMIT_FIRST
    flip();
#endif
#ifdef LOCAL_TURNED_LATE
    turn();
#endif
#ifndef SETTLE_BEFORE_COMMIT
    settle();
#endif
    /* redirect */
    do
    :: g < FUNCTIONS * OBJECTS && left >> g & 1 ->
        atomic {
            live_gates[g % OBJECTS]--;
#ifndef NO_REDIRECT
            STORE_CODE(g, REDIRECT);
#endif
            g++
        }
    :: g < FUNCTIONS * OBJECTS && !(left >> g & 1) -> g++
    :: else -> atomic { g = 0; break }
    od;
#ifndef NO_BARRIER
    barrier();
#endif
    skip;
    d_step {
        if :: o != NONE -> state[o] = CURRENT :: else fi;
        g = 0;
        do
        :: g < OBJECTS -> if :: state[g] == CURRENT && !live_gates[g] -> state[g] = RETIRED :: else fi; g++
        :: else -> break
        od;
        g = 0; f = 0; n = 0; left = 0
#ifdef LOCAL
        ; turned = NONE
#endif
    }
}

inline settle() {
    do
    :: f < FUNCTIONS && IN(f) -> atomic {
        if
        :: o != NONE -> STORE_CODE(GATE(f, o), n)
        :: else -> STORE_SLOT(f, 0)
#ifdef WEAK
            ; since[f] = n
#endif
        fi;
        f++ }
    :: f < FUNCTIONS && !IN(f) -> f++
    :: else -> atomic { f = 0; break }
    od
}

#if FUNCTIONS == 2
#define PATCHED (slot[0] && slot[1])
#else
#define PATCHED slot[0]
#endif

#ifdef INDEX_REUSED
#define REUSE true
#else
#define REUSE false
#endif
#define ALL ((1 << FUNCTIONS) - 1)

proctype agent() {
    byte o, b, f, g, n, le, en, o_, set, left;
#ifdef LOCAL
    byte turned = NONE; /* the object that function 1's slot led to */
#endif
    do
    :: commit_seq < UPDATES && (PATCHED || state[0] == FREE || state[1] == FREE || REUSE) ->
        if
        :: PATCHED -> o = NONE; set = ALL
#ifdef INDEX_REUSED
        :: o = 0; set = ALL
#else
        :: state[0] == FREE -> o = 0; set = ALL
#endif
        :: state[0] != FREE && state[1] == FREE -> o = 1; set = ALL
#if FUNCTIONS == 2
        :: state[0] == FREE -> o = 0; set = 1
        :: state[0] == FREE -> o = 0; set = 2
        :: state[0] != FREE && state[1] == FREE -> o = 1; set = 1
#endif
        fi;
        commit();
        atomic { o = 0; set = 0 }
    :: state[0] == RETIRED || state[1] == RETIRED -> look()
    :: commit_seq == UPDATES && finished == THREADS + INTERRUPTS -> break
    od;
    /* All that is retired must be freed once nobody calls: a count that was lost shows here. */
    look();
    assert(state[0] != RETIRED && state[1] != RETIRED)
}
