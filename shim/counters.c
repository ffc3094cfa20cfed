/* SPDX-License-Identifier: MIT
 *
 * counters.c: each thread's block of counters (and of what entries.c keeps in it).
 *
 * A thread gets its block on its first counted call (the gates' slow path) and keeps it until it dies; the agent then
 * folds the counts into the totals and puts the block on a stack from which new threads take theirs.  Blocks are never
 * unmapped: an agent that sums, and a thread that pops the stack, may read a block that was just recycled.
 *
 * Everything but the recycling runs on application threads, inside any function, also in signal handlers: lock-free, no
 * heap, and correct when a handler interrupts it anywhere and does the same.
 *
 * One thing is lost for good, and may be: a block that is taken from the stack of free ones but not yet a thread's (when a handler
 * leaves by longjmp, or goes on with another context, in some ten instructions of a thread's first counted call: once a thread
 * at most).  To find it again would take a lock; it does not grow with the number of updates or calls.
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

void *psu_more(size_t size) { return silent() ? 0 : psu_map_anonymous(size); }

static struct psu_block *make_block(void)
{
    struct psu_block *b = psu_more(PSU_PAGES(sizeof *b));
    if (!b)
        return 0;
    b->number = __atomic_add_fetch(&blocks_made, 1, __ATOMIC_RELAXED);
    b->free = psu_side_chain(b, b->sides, PSU_SIDES_IN_BLOCK);
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
    s->start_sp = call->sp | PSU_IN_USE;
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
