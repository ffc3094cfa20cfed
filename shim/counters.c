/* SPDX-License-Identifier: MIT
 *
 * counters.c: each thread's block of counters, and the side-frame entries that live in it.
 *
 * A thread gets its block on its first counted call (the gates' slow path) and keeps it until it dies; the agent then
 * folds the counts into the totals and puts the block on a stack from which new threads take theirs.  Blocks are never
 * unmapped: an agent that sums, and a thread that pops the stack, may read a block that was just recycled.
 *
 * Everything but the recycling runs on application threads, inside any function, also in signal handlers: lock-free, no
 * heap, and correct when a handler interrupts it anywhere and does the same.
 *
 * A handler need not leave a thread's lists (side entries, save areas) as it found them: it may leave its own calls by longjmp,
 * catch an exception, or go on with another context (a scheduler that preempts).  So a list is a hint only, and its links
 * are never anything but entries; what says whose an entry is, is a word in it, which one instruction changes from
 * free to taken.  A list may lead to entries in use, and miss free ones: both are put right when it is found empty.
 *
 * Two things are lost for good, and may be: save areas that a list misses (a handler that leaves by longjmp, or goes on with
 * another context, between the two instructions that take one; 1 to 6 KiB each), and a block that is taken from the stack of
 * free ones but not yet a thread's (such a handler in some ten instructions of a thread's first counted call: once a thread at
 * most).  To find them again would take a list of all of them, or a lock; neither grows with the number of updates or calls.
 *
 * Without memory for a block, counts go to one shared table with locked instructions: slow but right.  So it is, too, for
 * threads without a block while psu_runtime.silent says that a system call may be the end of one of them.
 */
#include "internal.h"

__thread uint64_t psu_self __attribute__((tls_model("initial-exec")));
struct psu_counter psu_totals[PSU_INDICES], psu_shared[PSU_INDICES];

/* Stack of free blocks: page number of the top block in the low 40 bits, above it a tag that every change increments.
 * The tag makes a pop fail when the top was popped and pushed back meanwhile (ABA). */
static uint64_t free_blocks;
#define PAGE_BITS 40
#define PAGE_MASK ((1ull << PAGE_BITS) - 1)

/* The agent looks for dead threads' blocks when `taken` (blocks given to threads since it last looked) reaches
 * `enough`: half of those that were free then, so that it is done before they run out, and a quarter of those in use,
 * so that its looking costs each thread a constant amount, however many there are. */
static uint32_t blocks_made, taken, enough = 16, epoch, recycling_wanted;
#define ENOUGH_MIN 16u

#define SIDES_IN_CHUNK 64u /* the first is not one: it leads to the next chunk and has their number */
#define SAVES_IN_CHUNK 16u

/* Who owns the calling thread's block, as the agent can ask the kernel about.  A child of vfork runs on its parent's
 * thread-local memory, so what it calls its block is the parent's from then on; a process made with CLONE_VM alone is
 * nobody the agent knows.  Such owners never count as dead.  (A fork child's main thread is put right by
 * psu_blocks_adopt when it makes a thread, or starts the agent.) */
#define UNKNOWN_OWNER 0xffffffffu
static uint32_t owner(void)
{
    return psu_getpid() == __atomic_load_n(&psu_runtime.agent_pid, __ATOMIC_RELAXED) ? psu_gettid() : UNKNOWN_OWNER;
}

static struct psu_block *block_of(uint64_t word) { return (struct psu_block *)((word & PAGE_MASK) * PSU_PAGE); }

static void push_free(struct psu_block *b)
{
    uint64_t old = __atomic_load_n(&free_blocks, __ATOMIC_RELAXED), new;
    do {
        b->free_next = block_of(old);
        new = ((old & ~PAGE_MASK) + PAGE_MASK + 1) | (uint64_t)b / PSU_PAGE;
    } while (!__atomic_compare_exchange_n(&free_blocks, &old, new, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
}

static struct psu_block *pop_free(void)
{
    uint64_t old = __atomic_load_n(&free_blocks, __ATOMIC_ACQUIRE), new;
    struct psu_block *b;
    do {
        b = block_of(old);
        if (!b)
            return 0;
        new = ((old & ~PAGE_MASK) + PAGE_MASK + 1) | (uint64_t)b->free_next / PSU_PAGE;
    } while (!__atomic_compare_exchange_n(&free_blocks, &old, new, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return b;
}

static int silent(void) { return __atomic_load_n(&psu_runtime.silent, __ATOMIC_RELAXED) != 0; }

static void *more(size_t size) { return silent() ? 0 : psu_map_anonymous(size); }

#define IN_USE 1ull /* psu_side.sp, psu_save.in_use */
#define HINTS 64u   /* a list that leads to so many entries in use is given up: it may be a circle */

/* ---- entries of calls that never returned -----------------------------------------------------------
 *
 * longjmp leaves side-frame entries behind.  Nobody tells us, and a stack that is merely switched away must keep its own.
 * But two calls cannot stand at the same place of a stack: an entry in use whose `sp` is that of the call which wants one
 * now belongs to a call that is gone.  The only others that may share it are those that this call was reached from by tail
 * calls: its return address is in the gate of the one before it, whose entry its frame pointer still names, and so on.
 *
 * A thread looks when its free list is empty, so that what it finds is at most what one more chunk would have brought.  One
 * place of the stack is looked for at a time; as the looking happens at whatever call finds the list empty, each place has its
 * turn.  Up to SEARCHED entries it always looks: whoever leaves hundreds of calls at once, from deep in a recursion, again and
 * again, finds them all on the next way down, for some microseconds each.  Where there are more, to look is worth it when the
 * entries that came since the last time are 1/64 of all, which is constant work for each call; but then such a thread finds one
 * of 64, and its memory grows by the rest. */
#define SEARCHED 8192u
int psu_tail_callers(const struct psu_call *call, const struct psu_side *entries[PSU_TAIL_CALLS])
{
    int length = 0;
    uint64_t back = call->return_address, fp = call->fp;
    while (psu_gate_at(PSU_SIDE, back) || psu_gate_at(PSU_FULL, back)) {
        if (length == PSU_TAIL_CALLS)
            return -1;
        entries[length++] = (const struct psu_side *)fp;
        back = entries[length - 1]->return_address;
        fp = entries[length - 1]->saved_fp;
    }
    return length;
}

static int in_chain(const struct psu_side *s, const struct psu_side *const *chain, uint32_t length)
{
    while (length-- > 0)
        if (chain[length] == s)
            return 1;
    return 0;
}

static uint32_t give_back(struct psu_block *b, struct psu_side *s, uint32_t count, uint64_t sp,
                          const struct psu_side *const *live, uint32_t length)
{
    uint32_t found = 0;
    for (; count-- > 0; s++) {
        uint64_t now = __atomic_load_n(&s->sp, __ATOMIC_ACQUIRE); /* before `home`: see psu_side_release */
        /* One instruction decides between us and a signal handler that looks for the same place. */
        int ours = now == (sp | IN_USE) && !in_chain(s, live, length) && psu_take_word(&s->sp, sp | IN_USE);
        /* Or nobody's, and not in the list.  In that of another thread, if that one gave it back. */
        if ((ours || (!now && s->home == PSU_SELF(b))) && !psu_claim_word(&s->sp, IN_USE)) {
            psu_side_give_save(b, s);
            psu_side_release(b, s);
            found++;
        }
    }
    return found;
}

/* lost: the list was given up while it still led somewhere, so there may be any number that are free. */
static int find_abandoned(struct psu_block *b, const struct psu_call *call, int lost)
{
    const struct psu_side *live[PSU_TAIL_CALLS];
    int tail_callers = psu_tail_callers(call, live);
    if (tail_callers < 0
        || (!lost && b->chunks && b->chunks->gate > SEARCHED && b->fresh < b->chunks->gate / 64))
        return 0;
    uint32_t length = (uint32_t)tail_callers, found;
    found = give_back(b, b->sides, PSU_SIDES_IN_BLOCK, call->sp, live, length);
    for (struct psu_side *c = b->chunks; c; c = c->next)
        found += give_back(b, c + 1, SIDES_IN_CHUNK - 1, call->sp, live, length);
    b->fresh = found;
    return found != 0;
}

static struct psu_side *chain(struct psu_block *b, struct psu_side *sides, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        sides[i].next = i + 1 < count ? &sides[i + 1] : 0;
        sides[i].home = PSU_SELF(b);
    }
    return sides;
}

static struct psu_block *make_block(void)
{
    struct psu_block *b = more(PSU_PAGES(sizeof *b));
    if (!b)
        return 0;
    b->number = __atomic_add_fetch(&blocks_made, 1, __ATOMIC_RELAXED);
    b->free = chain(b, b->sides, PSU_SIDES_IN_BLOCK);
    b->tid = owner(); /* before anybody sees it, so that it is never taken for a dead thread's */
    uint64_t head = __atomic_load_n(&psu_runtime.blocks, __ATOMIC_RELAXED);
    do
        b->all = (struct psu_block *)head;
    while (!__atomic_compare_exchange_n(&psu_runtime.blocks, &head, (uint64_t)b, 0, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED));
    return b;
}

struct psu_block *psu_block_get(void)
{
    struct psu_block *b = psu_own_block();
    if (b || silent())
        return b;
    b = pop_free();
    if (!b)
        b = make_block();
    if (!b)
        return 0;
    b->epoch = __atomic_add_fetch(&epoch, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&b->tid, owner(), __ATOMIC_RELEASE);
    uint64_t other = psu_claim_word(&psu_self, PSU_SELF(b));
    if (other) { /* a signal handler was quicker */
        __atomic_store_n(&b->tid, 0, __ATOMIC_RELEASE);
        push_free(b);
        return psu_own_block();
    }
    if (__atomic_add_fetch(&taken, 1, __ATOMIC_RELAXED) >= __atomic_load_n(&enough, __ATOMIC_RELAXED)
        && !__atomic_exchange_n(&recycling_wanted, 1, __ATOMIC_ACQ_REL))
        psu_agent_wake();
    return b;
}

void psu_count_leave(uint32_t index)
{
    struct psu_block *b = psu_block_get();
    if (b)
        psu_count(&b->count[index].leave);
    else
        __atomic_add_fetch(&psu_shared[index].leave, 1, __ATOMIC_RELEASE);
}

void psu_blocks_adopt(void)
{
    struct psu_block *b = psu_own_block();
    if (b && b->tid != psu_gettid())
        __atomic_store_n(&b->tid, psu_gettid(), __ATOMIC_RELEASE);
}

/* In a fork child, by the first thread that comes here.  The thread that forked is the child's main thread, the others are not
 * there.  Where another one comes first, which of the blocks the main thread brought along is not known: none counts as dead
 * (of a process that forks and is patched in turn, this keeps as many blocks as there were threads). */
void psu_blocks_inherit(void)
{
    psu_blocks_adopt();
    if (psu_gettid() == psu_getpid())
        return;
    struct psu_block *own = psu_own_block();
    struct psu_block *b = (struct psu_block *)__atomic_load_n(&psu_runtime.blocks, __ATOMIC_ACQUIRE);
    for (; b; b = b->all)
        if (b != own && __atomic_load_n(&b->tid, __ATOMIC_RELAXED))
            __atomic_store_n(&b->tid, UNKNOWN_OWNER, __ATOMIC_RELEASE);
}

/* ---- lists of one thread ---------------------------------------------------------------------------- */

struct psu_side *psu_side_claim(struct psu_block *b, const struct psu_call *call)
{
    struct psu_side *volatile *head = &b->free;
    struct psu_side *s;
    for (uint32_t hints = 0;;) {
        if ((s = *head) && hints++ < HINTS) {
            *head = s->next;
            if (s->home == PSU_SELF(b) && !psu_claim_word(&s->sp, call->sp | IN_USE)) {
                s->save = 0;
                return s;
            }
            continue;
        }
        hints = 0;
        *head = 0;
        if (find_abandoned(b, call, s != 0))
            continue;
        struct psu_side *chunk = more(SIDES_IN_CHUNK * sizeof *chunk);
        if (!chunk)
            return 0;
        chunk->gate = (b->chunks ? b->chunks->gate : 0) + SIDES_IN_CHUNK - 1; /* entries in all chunks */
        chunk->next = b->chunks; /* a handler may have added one since: that one is not searched, no more */
        b->chunks = chunk;
        b->fresh += SIDES_IN_CHUNK - 1;
        chain(b, chunk + 1, SIDES_IN_CHUNK - 1);
        chunk[SIDES_IN_CHUNK - 1].next = *head;
        *head = chunk + 1;
    }
}

void psu_side_release(struct psu_block *b, struct psu_side *s)
{
    struct psu_side *volatile *head = &b->free;
    s->next = *head;
    *head = s;
    /* A call may end on another thread than it began on: the entry changes hands, and is in one list only.  Nobody but this
     * thread takes it from here on, so that taking needs no lock; whoever finds it free finds this home, too. */
    s->home = PSU_SELF(b);
    __atomic_store_n(&s->sp, 0, __ATOMIC_RELEASE); /* last */
}

/* Inline: where the stack is used up, a call is where a handler leaves, often the same one each time. */
static inline __attribute__((always_inline)) void release_save(struct psu_block *b, struct psu_save *s)
{
    struct psu_save *volatile *head = &b->saves;
    s->next = *head;
    *head = s;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *(volatile uint64_t *)&s->in_use = 0;
}

/* A free entry has no save: first it is taken out, so that a handler that leaves by longjmp in between leaves no second
 * owner behind. */
void psu_side_give_save(struct psu_block *b, struct psu_side *s)
{
    struct psu_save *save = s->save;
    if (save) {
        s->save = 0;
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        release_save(b, save);
    }
}

struct psu_save *psu_save_claim(struct psu_block *b)
{
    struct psu_save *volatile *head = &b->saves;
    struct psu_save *s;
    for (uint32_t hints = 0;;) {
        if ((s = *head) && hints++ < HINTS) {
            *head = s->next;
            if (!psu_claim_word(&s->in_use, IN_USE))
                return s;
            continue;
        }
        hints = 0;
        struct psu_save *chunk = more(PSU_PAGES(SAVES_IN_CHUNK * sizeof *chunk));
        if (!chunk)
            return 0;
        for (uint32_t i = 0; i + 1 < SAVES_IN_CHUNK; i++)
            chunk[i].next = &chunk[i + 1];
        chunk[SAVES_IN_CHUNK - 1].next = 0; /* what was there led to nothing that was free */
        *head = chunk;
    }
}

void psu_save_release(struct psu_block *b, struct psu_save *s) { release_save(b, s); }

/* ---- recycling: the agent only ---------------------------------------------------------------------- */

int psu_blocks_want_recycling(void) { return (int)__atomic_load_n(&recycling_wanted, __ATOMIC_ACQUIRE); }

_Static_assert(offsetof(struct psu_block, count) % 8 == 0, "both words of a counter in one store");

/* pthread_exit and cancellation in a start routine behind a SIDE or FULL gate: these leave the stack pointer where it was, so
 * the C library takes the gate's frame for its own and ends the thread without a look at the gate's personality routine; and
 * the stack, which keeps the gate's address, may wait long for the next thread.  But whoever was called by the C library's
 * first frame of a thread is over with it.  Its entry is still as the gate left it: not free, not an unwinder's, and no other
 * call's, which would stand at another place of the stack. */
uint64_t psu_thread_return;

void psu_note_start_routine(struct psu_block *b, struct psu_side *s, const struct psu_call *call, const struct psu_gate *g)
{
    if (call->return_address != psu_thread_return)
        return;
    s->gate = (uint64_t)g;
    s->start_sp = call->sp | IN_USE;
    b->start = s;
}

/* The call went on to another gate, with the same entry perhaps. */
void psu_start_routine_over(struct psu_block *b, const struct psu_side *s)
{
    if (b && b->start == s)
        b->start = 0;
}

static void count_out_start_routine(struct psu_block *b)
{
    struct psu_side *s = b->start;
    if (!s)
        return;
    __atomic_store_n(&b->start, 0, __ATOMIC_SEQ_CST); /* first: in a child forked in between the count is too high */
    if (s->sp != s->start_sp || s->return_address != psu_thread_return)
        return;
    b->count[((struct psu_gate *)s->gate)->counter / 8].leave++;
    psu_side_give_save(b, s);
    psu_side_release(b, s);
}

/* A dead thread's stores are visible to whoever learns from the kernel that it is dead. */
static void fold(struct psu_block *b)
{
    for (uint32_t i = 0; i < psu_runtime.object_limit; i++) {
        struct psu_counter *c = &b->count[i];
        if (c->enter || c->leave) {
            /* Enters first, and both words of the block at once: in a child forked in between counts are too high. */
            __atomic_store_n(&psu_totals[i].enter, psu_totals[i].enter + c->enter, __ATOMIC_SEQ_CST);
            __atomic_store_n(&psu_totals[i].leave, psu_totals[i].leave + c->leave, __ATOMIC_SEQ_CST);
            __atomic_store_n((uint64_t *)c, 0, __ATOMIC_SEQ_CST);
        }
    }
}

void psu_blocks_recycle(void)
{
    uint32_t in_use = 0, unused = 0;
    __atomic_store_n(&taken, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&recycling_wanted, 0, __ATOMIC_RELEASE);
    struct psu_block *b = (struct psu_block *)__atomic_load_n(&psu_runtime.blocks, __ATOMIC_ACQUIRE);
    for (; b; b = b->all) {
        uint32_t tid = __atomic_load_n(&b->tid, __ATOMIC_ACQUIRE);
        if (tid == UNKNOWN_OWNER || (tid && psu_thread_alive(tid))) {
            in_use++;
            continue;
        }
        unused++;
        if (!tid)
            continue;
        __atomic_thread_fence(__ATOMIC_ACQUIRE); /* what the kernel answered, then the counts */
        count_out_start_routine(b);
        fold(b);
        __atomic_store_n(&b->tid, 0, __ATOMIC_RELEASE);
        push_free(b);
    }
    uint32_t n = unused / 2 > in_use / 4 ? unused / 2 : in_use / 4;
    __atomic_store_n(&enough, n > ENOUGH_MIN ? n : ENOUGH_MIN, __ATOMIC_RELAXED);
}
