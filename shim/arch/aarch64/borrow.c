/* SPDX-License-Identifier: MIT
 *
 * borrow.c: the page from which a borrowed thread goes back to where it was (borrow.S): it loads the last two
 * registers and branches.  The page stays: nobody can know when the thread has left it.  One is made in the life of a
 * process.
 */
#include "internal.h"

enum { MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MAP_FIXED_NOREPLACE = 0x100000 };
#define REACH ((128ull << 20) - 65536) /* of a branch, less a page of the largest size */
#define STEP 65536ull                  /* the largest page */

/* What borrow.S has on the stack, as far as it matters here. */
struct borrowed { uint64_t x[98]; uint64_t pc; };
_Static_assert(sizeof(uint64_t[98]) == 784, "SIZE in borrow.S");

uint64_t psu_borrow_back(const struct borrowed *b);

static uint32_t *page_at(uint64_t address)
{
    long at = psu_syscall(NR_mmap, address, PSU_PAGE, PSU_PROT_READ | PSU_PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at < 0 && at > -4096)
        return 0;
    if ((uint64_t)at != address) { /* Linux before 4.17 takes the address for a wish */
        psu_syscall(NR_munmap, at, PSU_PAGE);
        return 0;
    }
    return (uint32_t *)at;
}

uint64_t psu_borrow_back(const struct borrowed *b)
{
    uint32_t *code = 0;
    uint64_t near = b->pc & -STEP, from = near > REACH ? near - REACH : STEP;
    for (uint64_t distance = STEP; !code && distance < REACH; distance += STEP) {
        code = page_at(near + distance);
        if (!code && near - distance >= from && near > distance)
            code = page_at(near - distance);
    }
    if (!code)
        return 0;
    code[0] = 0x58000090; /* ldr x16, .+16 */
    code[1] = 0x580000b1; /* ldr x17, .+20 */
    code[2] = 0x14000000 | ((uint32_t)(((int64_t)b->pc - (int64_t)&code[2]) / 4) & 0x3ffffff); /* b pc */
    code[3] = 0xd4200000; /* brk #0 */
    __builtin_memcpy(&code[4], &b->x[16], 16);
    psu_syscall(NR_mprotect, code, PSU_PAGE, PSU_PROT_READ);
    psu_code_written((uint64_t)code, PSU_PAGE);
    if (psu_syscall(NR_mprotect, code, PSU_PAGE, PSU_PROT_READ | PSU_PROT_EXEC) < 0)
        return 0;
    return (uint64_t)code;
}
