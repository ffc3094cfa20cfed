/* Preloaded into instrumented programs: psu_test_change(NAME) stores another address into NAME's slot.
 *
 * Environment: PSU_TEST_MODULE, the module's file name ("" for the program); PSU_TEST_CHANGES, lines of
 * "NAME SLOT VALUE COUNT AT FIELD AT FIELD ...": hexadecimal, the addresses relative to the module; AT is where one of COUNT direct
 * calls has its field, and FIELD what those four bytes become.  PSU_TEST_GUARDED: code whose branches must meet marks stays so. */
#define _GNU_SOURCE
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int found(struct dl_phdr_info *info, size_t size, void *base)
{
    const char *wanted = getenv("PSU_TEST_MODULE"), *slash = strrchr(info->dlpi_name, '/');
    int program = !*(unsigned long *)base;      /* the program comes first; musl gives it a name */
    (void)size;
    *(unsigned long *)base = 1;
    if (*wanted ? strcmp(slash ? slash + 1 : info->dlpi_name, wanted) : !program)
        return 0;
    *(unsigned long *)base = info->dlpi_addr;
    return 1;
}

static unsigned long hexadecimal(const char **at)
{
    unsigned long value = 0;
    for (++*at; **at > ' '; ++*at)
        value = value * 16 + (**at <= '9' ? **at - '0' : **at - 'a' + 10);
    return value;
}

/* No DT_NEEDED, so that it fits programs of any libc: only functions that all have under the same name. */
void psu_test_change(const char *name)
{
    unsigned long base = 0, slot, value, count, field;
    int prot = PROT_READ | PROT_WRITE | PROT_EXEC;
    const char *at = getenv("PSU_TEST_CHANGES");
    size_t length = strlen(name);
    if (!at || !getenv("PSU_TEST_MODULE") || !dl_iterate_phdr(found, &base)) {
        puts("psu_test_change: no such module");
        return;
    }
#ifdef __aarch64__
    prot |= getenv("PSU_TEST_GUARDED") ? 0x10 : 0;      /* PROT_BTI */
#endif
    while (*at) {
        int mine = !strncmp(at, name, length) && at[length] == ' ';
        at = strchr(at, ' ');
        slot = hexadecimal(&at);
        value = hexadecimal(&at);
        for (count = hexadecimal(&at); count > 0; count--) {
            char *code = (char *)(base + hexadecimal(&at)), *page = (char *)((unsigned long)code & ~4095ul);
            field = hexadecimal(&at);
            if (!mine)
                continue;
            if (mprotect(page, 8192, prot) && mprotect(page, 4096, prot))
                puts("psu_test_change: the code cannot be changed");
            memcpy(code, &field, 4);
#ifdef __aarch64__
            __asm__ volatile("dc cvau, %0\n dsb ish\n ic ivau, %0\n dsb ish\n isb" : : "r"(code) : "memory");
#endif
        }
        at += *at != 0;
        if (mine)
            __atomic_store_n((unsigned long *)(base + slot), base + value, __ATOMIC_SEQ_CST);
    }
}
