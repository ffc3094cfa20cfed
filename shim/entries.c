/* SPDX-License-Identifier: MIT
 *
 * entries.c: what a thread's block (counters.c) has for SIDE and FULL gates: side-frame entries, and areas for the registers
 * that FULL gates restore.
 *
 * All of it runs on application threads, inside any function, also in signal handlers: lock-free, no heap, and correct when a
 * handler interrupts it anywhere and does the same.
 *
 * A handler need not leave a thread's lists as it found them: it may leave its own calls by longjmp, catch an exception, or
 * go on with another context (a scheduler that preempts).  So a list is a hint only, and its links are never anything but
 * entries (or the marks below); what says whose an entry is, is a word in it, which one instruction changes from free to
 * taken.  A list may lead to entries in use, and miss free ones: both are put right when it is found empty.
 *
 * The end of the stack may be met at any call in here, and a handler on another stack may leave from there, the same one each
 * time: so between taking and keeping, and between taking away and giving back, there is no call.
 *
 * Lost for good, and may be, when a handler leaves by longjmp, or goes on with another context, in between: save areas that
 * were taken off their list and not yet taken (1 to 6 KiB each), and entries that are being given back for a call that is gone
 * (some ten instructions).  To find them again would take a list of all of them, or a lock; it does not grow with the number
 * of updates or calls.
 */
#include "internal.h"

#define SIDES_IN_CHUNK 64u /* the first is not one: it leads to the next chunk and has their number */
#define SAVES_IN_CHUNK 16u

#define HINTS 64u   /* a list that leads to so many entries in use is given up: it may be a circle */

/* ---- entries of calls that never returned -----------------------------------------------------------
 *
 * longjmp leaves side-frame entries behind.  Nobody tells us, and a stack that is merely switched away must keep its own.
 * But two calls cannot stand at the same place of a stack: of the entries with the same `sp`, all but the newest belong to
 * calls that are gone.  The only others that may share it are those that the newest was reached from by tail calls: its return
 * address is in the gate of the one before it, whose entry its frame pointer still names, and so on.
 *
 * A thread looks when its free list is empty, so that what it finds is at most what one more chunk would have brought: first
 * for what was left at the place of the very call that wants an entry, which is the newest there.  That does not find all:
 * where the call that finds the list empty is always the same (a handler's, on a stack of its own), the places of others are
 * never asked about.  So, before it takes more memory, for all places where an entry is known to be older than another (find_older).
 *
 * Up to SEARCHED entries it always looks: whoever leaves hundreds of calls at once, from deep in a recursion, again and again,
 * finds them all, for some microseconds each.  Where there are more, to look is worth it when the entries that came since the
 * last time are 1/64 of all, which is constant work for each call; then it looks for both. */
#define SEARCHED 8192u
static int in_side_gate(uint64_t address) { return psu_gate_at(PSU_SIDE, address) || psu_gate_at(PSU_FULL, address); }

int psu_tail_callers(const struct psu_call *call, const struct psu_side *entries[PSU_TAIL_CALLS])
{
    int length = 0;
    uint64_t back = call->return_address, fp = call->fp;
    while (in_side_gate(back)) {
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

#define INLINE static inline __attribute__((always_inline)) /* no call: see above */

INLINE void release(struct psu_block *b, struct psu_side *s)
{
    struct psu_side *volatile *head = &b->free;
    s->next = *head;
    *head = s;
    /* A call may end on another thread than it began on: the entry changes hands, and is in one list only.  Nobody but this
     * thread takes it from here on, so that taking needs no lock; whoever finds it free finds this home, too. */
    s->home = PSU_SELF(b);
    __atomic_store_n(&s->sp, 0, __ATOMIC_RELEASE); /* last */
}

INLINE void release_save(struct psu_block *b, struct psu_save *s)
{
    struct psu_save *volatile *head = &b->saves;
    s->next = *head;
    *head = s;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *(volatile uint64_t *)&s->in_use = 0;
}

/* A free entry has no save: first it is taken out, so that a handler that leaves by longjmp in between leaves no second
 * owner behind. */
INLINE void give_save(struct psu_block *b, struct psu_side *s)
{
    struct psu_save *save = s->save;
    if (save) {
        s->save = 0;
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        release_save(b, save);
    }
}

INLINE void give(struct psu_block *b, struct psu_side *s)
{
    give_save(b, s);
    release(b, s);
}

static uint32_t give_back(struct psu_block *b, struct psu_side *s, uint32_t count, uint64_t sp,
                          const struct psu_side *const *live, uint32_t length)
{
    uint32_t found = 0;
    for (; count-- > 0; s++) {
        uint64_t now = __atomic_load_n(&s->sp, __ATOMIC_ACQUIRE); /* before `home`: see psu_side_release */
        /* One instruction decides between us and a signal handler that looks for the same place. */
        int ours = now == (sp | PSU_IN_USE) && !in_chain(s, live, length) && psu_take_word(&s->sp, sp | PSU_IN_USE);
        /* Or nobody's, and not in the list.  In that of another thread, if that one gave it back. */
        if ((ours || (!now && s->home == PSU_SELF(b))) && !psu_claim_word(&s->sp, PSU_IN_USE)) {
            give(b, s);
            found++;
        }
    }
    return found;
}

/* Which of two calls at one place is the newer, nobody wrote down: a gate has better things to do.  But the gates write `next`
 * when they give an entry back, and never while it is in use; so what we write there as long as it is in use tells us, later,
 * that it was not given back since.  We write the number of the search that sees the entry first, as the address of a mark: to
 * a gate that was interrupted with it in its hands, an entry in use which ends the list.
 *
 * An entry with number k was taken before search k was over.  One with number k + 2 was not in use, not by the same call, when
 * search k + 1 came by, which is later: it is the newer.  Only complete searches count: what was not seen by one that was left
 * half-way (longjmp) is seen by the next with the same number.
 *
 * With two newer entries at its place that were not reached by a tail call, as far as they tell, an entry is of a call that is
 * gone.  Why two: if its call were not gone, all newer ones at the place were reached from it by tail calls.  The newest may
 * not tell, as its gate is interrupted before it wrote the return address.  But the others were through with that when they
 * made theirs, and tell.
 *
 * Numbers are kept modulo NUMBERS: what is half as many searches old becomes LONG_AGO.  A search does not begin while another is
 * under way (`searching`), unless that was found so PATIENCE times: then it was left half-way, or a scheduler that preempts went
 * on with another context.  The latter may go on with it, when its number is long past and what it would write or conclude
 * is wrong: so whatever it does is taken back if another one was complete meanwhile (is_current, asked afterwards). */
#define NUMBERS 64u
#define LONG_AGO NUMBERS
#define NO_NUMBER (NUMBERS + 1)
#define PATIENCE 64u
#define PLACES 512u /* at least; a quarter of the entries */
static const struct psu_side marks[NUMBERS + 1] = {[0 ... NUMBERS] = {.sp = PSU_IN_USE}};

struct psu_places { uint64_t count; struct psu_side *newest[][2]; };   /* a power of two */

static struct psu_side *mark(uint32_t number) { return (struct psu_side *)&marks[number]; }

static uint32_t number_in(const struct psu_side *next)
{
    uint64_t offset = (uint64_t)next - (uint64_t)marks;
    return offset < sizeof marks ? (uint32_t)(offset / sizeof marks[0]) : NO_NUMBER;
}

static uint32_t number_of(const struct psu_side *s) { return number_in(__atomic_load_n(&s->next, __ATOMIC_ACQUIRE)); }

/* How many searches before `search` the entry was seen first; never more than it was. */
static uint32_t age(uint32_t number, uint32_t search)
{
    return number == LONG_AGO ? NUMBERS / 2 : (search - number) % NUMBERS;
}

static struct psu_side **newest_at(struct psu_block *b, uint64_t sp, uint32_t search)
{
    struct psu_places *p = __atomic_load_n(&b->places, __ATOMIC_ACQUIRE);
    return p->newest[((sp >> 3) * 0x9e3779b97f4a7c15ull + search) >> 16 & (p->count - 1)];
}

static uint64_t place_of(const struct psu_side *s)
{
    uint64_t sp = __atomic_load_n(&s->sp, __ATOMIC_ACQUIRE);
    return sp == PSU_IN_USE ? 0 : sp;
}

/* As far as the entry tells: the gate may not have come so far. */
static int tail_called(const struct psu_side *s) { return in_side_gate(s->return_address); }

static int is_current(struct psu_block *b, uint32_t search)
{
    return __atomic_load_n(&b->searches, __ATOMIC_SEQ_CST) == search - 1;
}

static uint32_t give_number(struct psu_block *b, struct psu_side *s, uint32_t search)
{
    uint64_t sp = place_of(s);
    struct psu_side *next = __atomic_load_n(&s->next, __ATOMIC_ACQUIRE), *seen = mark(search % NUMBERS);
    uint32_t number = number_in(next);
    if (!sp)
        return 0;
    if (number == NO_NUMBER) {
        if (!__atomic_compare_exchange_n(&s->next, &next, seen, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            return 0;
        /* Given back in between, elsewhere, that numbers a free one. */
        if (__atomic_load_n(&s->sp, __ATOMIC_SEQ_CST) != sp || !is_current(b, search)) {
            __atomic_compare_exchange_n(&s->next, &seen, next, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
            return 0;
        }
        number = search % NUMBERS;
    } else if (age(number, search) >= NUMBERS / 2) {
        struct psu_side *old = mark(LONG_AGO), *before = next;
        if (next != old && __atomic_compare_exchange_n(&s->next, &next, old, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)
            && !is_current(b, search))
            __atomic_compare_exchange_n(&s->next, &old, before, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        return 0;
    }
    struct psu_side **newest = newest_at(b, sp, search);
    if (tail_called(s) || (newest[0] && place_of(newest[0]) != sp))
        return 0;
    if (!newest[0] || age(number, search) < age(number_of(newest[0]), search)) {
        newest[1] = newest[0];
        newest[0] = s;
    } else if (!newest[1] || age(number, search) < age(number_of(newest[1]), search)) {
        newest[1] = s;
    }
    return 0;
}

static int is_newer(const struct psu_side *s, uint64_t sp, uint32_t than, uint32_t search)
{
    if (!s || place_of(s) != sp || tail_called(s))
        return 0;
    uint32_t number = number_of(s);
    return number < NUMBERS && age(number, search) + 2 <= than;
}

static uint32_t take_older(struct psu_block *b, struct psu_side *s, uint32_t search)
{
    uint64_t sp = place_of(s), taken = sp;
    uint32_t number = number_of(s);
    if (!sp || number == NO_NUMBER || s->home != PSU_SELF(b))
        return 0;
    struct psu_side **newest = newest_at(b, sp, search);
    uint32_t seen = age(number, search);
    if (!is_newer(newest[0], sp, seen, search) || !is_newer(newest[1], sp, seen, search)
        || !__atomic_compare_exchange_n(&s->sp, &taken, PSU_IN_USE, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        return 0;
    /* Given back and taken again since we looked; or we looked with a number that is past. */
    if (number_of(s) != number || s->home != PSU_SELF(b) || !is_current(b, search)) {
        taken = PSU_IN_USE;
        __atomic_compare_exchange_n(&s->sp, &taken, sp, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        return 0;
    }
    give(b, s);
    return 1;
}

static uint32_t each(struct psu_block *b, uint32_t search,
                     uint32_t (*visit)(struct psu_block *b, struct psu_side *s, uint32_t search))
{
    uint32_t found = 0;
    for (struct psu_side *s = b->sides; s < b->sides + PSU_SIDES_IN_BLOCK; s++)
        found += visit(b, s, search);
    for (struct psu_side *c = b->chunks; c; c = c->next)
        for (struct psu_side *s = c + 1; s < c + SIDES_IN_CHUNK; s++)
            found += visit(b, s, search);
    return found;
}

/* One that became too small stays mapped (all of them together take less than the last): a handler may have interrupted its
 * user. */
static int make_places(struct psu_block *b)
{
    uint64_t count = PLACES;
    while (4 * count < b->chunks->gate)
        count *= 2;
    if (b->places && b->places->count >= count)
        return 1;
    struct psu_places *p = psu_more(PSU_PAGES(sizeof *p + count * sizeof p->newest[0]));
    if (p) {
        p->count = count;
        __atomic_store_n(&b->places, p, __ATOMIC_RELEASE);
    }
    return b->places != 0;
}

static uint32_t find_older(struct psu_block *b)
{
    if (b->searching && ++b->searching < PATIENCE)
        return 0;
    if (!make_places(b))
        return 0;
    b->searching = 1;
    const uint32_t search = b->searches + 1;
    struct psu_places *p = b->places;
    for (uint64_t i = 0; i < p->count; i++)
        p->newest[i][0] = p->newest[i][1] = 0;
    each(b, search, give_number);
    uint32_t found = each(b, search, take_older);
    uint32_t before = search - 1;
    __atomic_compare_exchange_n(&b->searches, &before, search, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    b->searching = 0;
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
    if (b->chunks && (!found || b->chunks->gate > SEARCHED))
        found += find_older(b);
    b->fresh = found;
    return found != 0;
}

struct psu_side *psu_side_chain(struct psu_block *b, struct psu_side *sides, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        sides[i].next = i + 1 < count ? &sides[i + 1] : 0;
        sides[i].home = PSU_SELF(b);
    }
    return sides;
}

/* ---- lists of one thread ---------------------------------------------------------------------------- */

struct psu_side *psu_side_claim(struct psu_block *b, const struct psu_call *call)
{
    struct psu_side *volatile *head = &b->free;
    struct psu_side *s;
    for (uint32_t hints = 0;;) {
        if ((s = *head) && hints++ < HINTS) {
            *head = s->next;
            if (s->home == PSU_SELF(b) && !psu_claim_word(&s->sp, call->sp | PSU_IN_USE)) {
                s->save = 0;
                return s;
            }
            continue;
        }
        hints = 0;
        *head = 0;
        if (find_abandoned(b, call, s != 0))
            continue;
        struct psu_side *chunk = psu_more(SIDES_IN_CHUNK * sizeof *chunk);
        if (!chunk)
            return 0;
        chunk->gate = (b->chunks ? b->chunks->gate : 0) + SIDES_IN_CHUNK - 1; /* entries in all chunks */
        chunk->next = b->chunks; /* a handler may have added one since: that one is not searched, no more */
        b->chunks = chunk;
        b->fresh += SIDES_IN_CHUNK - 1;
        psu_side_chain(b, chunk + 1, SIDES_IN_CHUNK - 1);
        chunk[SIDES_IN_CHUNK - 1].next = *head;
        *head = chunk + 1;
    }
}

void psu_side_release(struct psu_block *b, struct psu_side *s) { release(b, s); }

void psu_side_give_save(struct psu_block *b, struct psu_side *s) { give_save(b, s); }

struct psu_save *psu_save_claim(struct psu_block *b)
{
    struct psu_save *volatile *head = &b->saves;
    struct psu_save *s;
    for (uint32_t hints = 0;;) {
        if ((s = *head) && hints++ < HINTS) {
            *head = s->next;
            if (!psu_claim_word(&s->in_use, PSU_IN_USE))
                return s;
            continue;
        }
        hints = 0;
        struct psu_save *chunk = psu_more(PSU_PAGES(SAVES_IN_CHUNK * sizeof *chunk));
        if (!chunk)
            return 0;
        for (uint32_t i = 0; i + 1 < SAVES_IN_CHUNK; i++)
            chunk[i].next = &chunk[i + 1];
        chunk[SAVES_IN_CHUNK - 1].next = 0; /* what was there led to nothing that was free */
        *head = chunk;
    }
}

void psu_save_release(struct psu_block *b, struct psu_save *s) { release_save(b, s); }

