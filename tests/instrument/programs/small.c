/* A program that takes little time to build: calls, a pointer, output that tells whether all is well. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined __clang__
#define KEPT __attribute__((noinline, used))
#else
#define KEPT __attribute__((noipa, used))
#endif

KEPT int leaf(int x) { return 5 * x + 100000; }
KEPT int middle(int x) { return leaf(x) + 1; }
KEPT int unused(int x) { return x - 123456; }
int (*pointer)(int) = leaf;

#ifdef UNWIND
struct dwarf_eh_bases { void *tbase, *dbase, *func; };
extern const void *_Unwind_Find_FDE(void *pc, struct dwarf_eh_bases *bases);
#endif
#ifdef OWN_PATH
#include <link.h>
#endif

int main(int argc, char **argv)
{
    printf("%d %d %s\n", middle(argc), pointer(2), argc > 1 ? argv[1] : "-");
#ifdef UNWIND
    struct dwarf_eh_bases bases = {0};
    const void *fde = _Unwind_Find_FDE((char *)pointer + 1, &bases);
    printf("row %d, %ld bytes before the pointer\n", fde != 0, (long)((char *)pointer - (char *)bases.func));
#endif
#ifdef OWN_PATH
    int debug = 0;
    for (const ElfW(Dyn) *d = _DYNAMIC; d->d_tag; d++)
        if (d->d_tag == DT_DEBUG)
            debug = d->d_un.d_ptr != 0;
    printf("debug %d\n", debug);
#endif
    return 0;
}
