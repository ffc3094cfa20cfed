/* The threads that call, and a signal handler; part of update.pml. */

inline flush(b) {
    o_ = 0;
    do
    :: o_ < OBJECTS -> enter[(b) * OBJECTS + o_] = enter[(b) * OBJECTS + o_] + buffered[(b) * OBJECTS + o_];
        buffered[(b) * OBJECTS + o_] = 0; o_++
    :: else -> o_ = 0; break
    od
}

/* A block for thread t, which has none.  A handler may interrupt at each step and do the same. */
inline new_block(t) {
    d_step { b = 0; do :: taken[b] -> b++ :: else -> break od; taken[b] = true }
    owner[b] = 1 + t;
    if
    :: atomic { self[t] == 0 -> self[t] = 1 + b }
    :: else -> atomic { owner[b] = 0; taken[b] = false } /* the handler was quicker */
    fi
}

inline count_enter(t, o) {
#if LIVES > 1 || INTERRUPTS
    if
    :: self[t] == 0 -> new_block(t)
    :: else
    fi;
#endif
#ifdef PLAIN_INCREMENT
    b = self[t] - 1;
    x = buffered[b * OBJECTS + o];
    atomic { buffered[b * OBJECTS + o] = x + 1; x = 0 }
#else
    atomic { b = self[t] - 1; buffered[b * OBJECTS + o]++ }
#endif
}

/* Older stores of the same processor are visible before this one: always (TSO), or because it is a store-release. */
#ifdef LEAVE_NOT_RELEASE
inline count_leave(t, o) { leave[b * OBJECTS + o]++ }
#else
inline count_leave(t, o) { d_step { flush(b); leave[b * OBJECTS + o]++ } }
#endif

inline execute(t, f, v) {
    d_step {
        assert(v == 0 || mapped[v]);
        assert(v == 0 || has[(v) * FUNCTIONS + f]);
        assert(VALID(f, v, begun));
#ifdef WEAK
        if :: v > known[t] -> known[t] = v :: else fi
#endif
    }
    if
    :: v -> assert(mapped[v]) /* its last instruction */
    :: else
    fi
}

/* The acquire in psu_route(): what is loaded from here on is no older than what was loaded before. */
inline fence(t) {
#if defined(WEAK) && !defined(NO_FENCE)
    if :: seen[t] & AFTER_SEQ -> seen[t] = seen[t] | SEQ :: else fi
#endif
    skip
}

/* The stub's load. */
inline load_slot(t, f) {
#ifdef WEAK
    atomic {
        begun = known[t];
        if
        :: s = slot[f]; SEE(t, SLOT(f)); if :: s == 0 && since[f] > known[t] -> known[t] = since[f] :: else fi
        :: EARLY(t, SLOT(f)) -> s = old_slot[f]
        fi
    }
#else
    d_step { begun = commit_seq; s = slot[f] }
#endif
}

/* Registers that nobody needs any more, so that states are the same. */
inline forget() { s = 0; o = 0; b = 0; c = 0; x = 0; begun = 0 }

#ifdef LOCAL
/* The load of the object's stub; the word is in the object, which the caller's count keeps. */
inline load_word(t) {
    assert(mapped[outer]);
#ifdef WEAK
    atomic {
        begun = known[t];
        if
        :: c = word[outer_o]; SEE(t, WORD(outer_o))
        :: EARLY(t, WORD(outer_o)) -> c = old_word[outer_o]
        fi
    }
#else
    d_step { begun = commit_seq; c = word[outer_o] }
#endif
}

/* A call has ended.  If function 0 (`outer`, of object outer_o) made it, that goes on. */
inline finish_call(t) {
    if
    :: outer && by_pointer -> atomic { forget(); by_pointer = false; f = 0 }
    :: outer && !by_pointer ->
        assert(mapped[outer]);
        atomic { b = self[t] - 1; count_leave(t, outer_o); outer = 0; outer_o = 0; f = 0; forget(); break }
    :: else -> atomic { forget(); break }
    fi
}

/* The call is counted for object o and in version c of f.  Function 0 calls function 1, perhaps by a pointer first. */
inline inside(t) {
    if
    :: f == 0 ->
        atomic { outer = c; outer_o = o; forget() }
        if
        :: by_pointer = true; f = 1; load_slot(t, f)
        :: true
        fi
    :: else -> count_leave(t, o); finish_call(t)
    fi
}

/* Function 0 calls function 1 as the assembler made it: its own object's or, where that has none, through the slot. */
inline call_inside(t) {
    if
    :: has[outer * FUNCTIONS + 1] -> load_word(t)
    :: else
    fi;
    if
    :: c -> execute(t, 1, c); finish_call(t) /* not counted */
    :: else -> f = 1; load_slot(t, f)
    fi
}
#define OVER finish_call(t)
#else
inline inside(t) { atomic { count_leave(t, o); forget(); break } }
#define OVER atomic { forget(); break }
#endif

/* The gate s of object o, for a call that it counts. */
inline counted(t) {
#ifdef COUNT_AFTER_LOAD
    LOAD_CODE(c, t, s);
    count_enter(t, o);
#else
    count_enter(t, o);
    LOAD_CODE(c, t, s);
#endif
    if
    :: c == REDIRECT ->
#ifdef GATE_SHARED
        c = slot[f];
#else
        c = slot[s / OBJECTS];
#endif
#ifdef WEAK
        atomic { if :: c -> SEE(t, CODE(c - 1)) :: else fi; SEE(t, SLOT(f)) }
#endif
        atomic { count_leave(t, o); s = c; c = 0 }
    :: c == PENDING ->
        fence(t);
#ifdef SEQ_READ_LAST
        c = enter_txn[s];
        if
        :: commit_seq < c -> c = 0
        :: else -> c = 1
        fi;
        if
        :: c == 0 ->
#else
        LOAD_SEQ(c, t);
        if
        :: c < enter_txn[s] ->
#endif
            c = before[s]; atomic { count_leave(t, o); s = c; c = 0 }
        :: else ->
            x = exit_txn[s];
            if
            :: x && c >= x ->
#ifdef WEAK
                if :: x > known[t] -> known[t] = x :: else fi;
#endif
                atomic { count_leave(t, o); s = 0; c = 0; x = 0 }
            :: else -> c = body[s]; execute(t, f, c); inside(t)
            fi
        fi
    :: else -> assert(c != UNUSED); execute(t, f, c); inside(t)
    fi
}

/* One call of function f by thread t. */
inline call(t, f) {
    load_slot(t, f);
    do
#ifdef LOCAL
    :: outer && f == 0 -> call_inside(t)
    :: !(outer && f == 0) && s == 0 -> execute(t, f, 0); OVER
#else
    :: s == 0 -> execute(t, f, 0); OVER
#endif
    :: else ->
        s--; /* the gate */
        o = s % OBJECTS;
#ifdef LOCAL
        if
        :: outer -> LOAD_BASE(x, t, s)
        :: true /* by the other entry, which does not look: where the slot leads there, or once did */
        fi;
        if
        :: outer && x == outer -> /* the call comes from the object of the gate's body: not counted */
            x = 0; LOAD_BODY(c, t, s); execute(t, f, c); finish_call(t)
        :: else -> x = 0; counted(t)
        fi
#else
        counted(t)
#endif
    od
}

proctype caller(byte t) UNLESS_INTERRUPTED {
    byte calls, life, s, o, b, c, x, f, begun, o_;
#ifdef LOCAL
    byte outer, outer_o;
    bool by_pointer;
#endif
    do
    :: life < LIVES ->
        do
        :: calls < CALLS ->
            calls++;
            if
            :: f = 0
#if FUNCTIONS == 2
            :: f = 1
#endif
            fi;
            call(t, f);
            f = 0
        :: else -> calls = 0; break
        od;
        life++;
        /* The thread ends: all that it stored is visible to who learns that from the kernel.  Then another begins; with
         * its thread-local memory, that of the old one is gone. */
        atomic {
            b = self[t];
            if
            :: b -> b--; flush(b)
            :: else
            fi;
            self[t] = 0;
            dead[t] = true
        }
        if
        :: life < LIVES -> dead[t] = false
        :: else -> break
        fi
    :: else -> break
    od;
    skip; d_step { callers--; finished++ }
}

proctype handler(byte t) {
    byte s, o, b, c, x, f, begun, o_;
#ifdef LOCAL
    byte outer, outer_o;
    bool by_pointer;
#endif
    if
    :: atomic { !dead[t] && callers == THREADS -> interrupted = 2 + t }; call(t, f); interrupted = NONE
    :: callers < THREADS
    fi;
    finished++
}
