/* Three call sites of real programs where GCC keeps values in volatile registers over the call, because it knows the callee:
 * sqlite's rowSetListToTree (of rowSetNDeepTree), redis' ull2string (of digits10), memcached's split_slab_page_into_freelist
 * (of do_slabs_free_chunked).
 *
 * Proves: what these callers compute stays right while the callees are replaced by versions that change these registers.
 * The functions are those of the packages (sites.h); what is around them is ours.  memcached frees pages into its lists
 * only after it has cleared them, so that no run of it comes to the third site; here pages hold chunked items.
 * Usage: main [poor].  poor: the threads that call have a sandbox of their own in which mmap fails, so that the gates get
 * no memory.
 * Prints "version N" when all callees have run in version N or a later one; "ERROR name" for a wrong result. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sites.h"

volatile int seen[CALLEES];

/* ---- sqlite ---- */
ROW_SET_N_DEEP_TREE

static struct RowSetEntry *rowSetListToTree(struct RowSetEntry *pList){
  int iDepth;           /* Depth of the tree so far */
  struct RowSetEntry *p;       /* Current tree root */
  struct RowSetEntry *pLeft;   /* Left subtree */

  p = pList;
  pList = p->pRight;
  p->pLeft = p->pRight = 0;
  for(iDepth=1; pList; iDepth++){
    pLeft = p;
    p = pList;
    pList = p->pRight;
    p->pLeft = pLeft;
    p->pRight = rowSetNDeepTree(&pList, iDepth);
  }
  return p;
}

static int64_t walk(const struct RowSetEntry *p, int64_t next)
{
    if (!p || next < 0)
        return next;
    next = walk(p->pLeft, next);
    return next == p->v ? walk(p->pRight, next + 1) : -1;
}

#define ROWS 200
static __attribute__((noinline)) int sqlite_site(void)
{
    struct RowSetEntry rows[ROWS];
    for (int i = 0; i < ROWS; i++)
        rows[i] = (struct RowSetEntry){i, i + 1 < ROWS ? &rows[i + 1] : 0, 0};
    return walk(rowSetListToTree(rows), 0) == ROWS;
}

/* ---- redis ---- */
DIGITS10(__attribute__((noinline)))  /* in another file's place: util.c is compiled whole, and too large to inline it */

__attribute__((noinline)) int ull2string(char *dst, size_t dstlen, unsigned long long value) {
    static const char digits[201] =
        "0001020304050607080910111213141516171819"
        "2021222324252627282930313233343536373839"
        "4041424344454647484950515253545556575859"
        "6061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";

    /* Check length. */
    uint32_t length = digits10(value);
    if (length >= dstlen) return 0;

    /* Null term. */
    uint32_t next = length - 1;
    dst[next + 1] = '\0';
    while (value >= 100) {
        int const i = (value % 100) * 2;
        value /= 100;
        dst[next] = digits[i + 1];
        dst[next - 1] = digits[i];
        next -= 2;
    }

    /* Handle last 1-2 digits. */
    if (value < 10) {
        dst[next] = '0' + (uint32_t) value;
    } else {
        int i = (uint32_t) value * 2;
        dst[next] = digits[i + 1];
        dst[next - 1] = digits[i];
    }

    return length;
}

static int redis_site(unsigned long long value)
{
    char text[32], other[32];
    int n = ull2string(text, sizeof text, value);
    return n == snprintf(other, sizeof other, "%llu", value) && !strcmp(text, other);
}

/* ---- memcached ---- */
slabclass_t slabclass[64];
static int power_largest = 63;

__attribute__((noinline)) DO_SLABS_FREE_CHUNKED

static void do_slabs_free(void *ptr, const size_t size, unsigned int id) {
    slabclass_t *p;
    item *it;
    (void)size;

    if (id < POWER_SMALLEST || id > (unsigned)power_largest)
        return;

    p = &slabclass[id];

    it = (item *)ptr;
    if ((it->it_flags & ITEM_CHUNKED) == 0) {
        it->it_flags = ITEM_SLABBED;
        it->slabs_clsid = id;
        it->prev = 0;
        it->next = p->slots;
        if (it->next) it->next->prev = it;
        p->slots = it;

        p->sl_curr++;
    } else {
        do_slabs_free_chunked(it);
    }
    return;
}

static __attribute__((noinline)) void split_slab_page_into_freelist(char *ptr, const unsigned int id) {
    slabclass_t *p = &slabclass[id];
    int x;
    for (x = 0; x < (int)p->perslab; x++) {
        do_slabs_free(ptr, 0, id);
        ptr += p->size;
    }
}

#define ITEMS 40
static int memcached_site(unsigned id)
{
    static __thread char page[ITEMS * 256] __attribute__((aligned(16)));
    slabclass[id] = (slabclass_t){.size = 256, .perslab = ITEMS};
    memset(page, 0, sizeof page);
    for (int i = 0; i < ITEMS; i++) {
        item *it = (item *)(page + i * 256);
        it->it_flags = i % 3 ? ITEM_CHUNKED : 0;
        it->nkey = 7;
        ((item_chunk *)ITEM_schunk(it))->orig_clsid = (uint8_t)id;
    }
    split_slab_page_into_freelist(page, id);
    int n = ITEMS;
    for (item *it = slabclass[id].slots; it && n >= 0; it = it->next)
        if ((char *)it != page + --n * 256 || it->it_flags != ITEM_SLABBED)
            return 0;
    return n == 0 && slabclass[id].sl_curr == ITEMS;
}

static int poor;
static void forbid_mmap(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        puts("ERROR no sandbox");
}

static void *work(void *number)
{
    if (poor)
        forbid_mmap();
    unsigned long long seed = (uintptr_t)number;
    for (;;) {
        seed = seed * 6364136223846793005 + 1442695040888963407;
        if (!sqlite_site())
            puts("ERROR sqlite");
        if (!redis_site(seed >> (seed >> 58)))
            puts("ERROR redis");
        if (!memcached_site(1 + (unsigned)(uintptr_t)number))
            puts("ERROR memcached");
    }
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t t[2];
    poor = argc > 1 && !strcmp(argv[1], "poor");
    setvbuf(stdout, 0, _IOLBF, 0);
    for (long i = 0; i < 2; i++)
        pthread_create(&t[i], 0, work, (void *)(i + 1));
    for (int last = -1;; usleep(1000)) {
        int least = seen[0];
        for (int i = 1; i < CALLEES; i++)
            if (seen[i] < least)
                least = seen[i];
        if (least != last)
            printf("version %d\n", last = least);
    }
}
