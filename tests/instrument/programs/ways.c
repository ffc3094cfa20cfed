/* Every way in which C code reaches a function, before and after its slot was changed.
 *
 * Prints "before WAY VALUE" lines, has the slots of target, s_target, compare, start, handler, deep and bye changed to
 * their _other (or other) by a preloaded library, and prints "after WAY VALUE" lines.  Without that library nothing is
 * changed.  Compiled as a program, or with -DLIBRARY as a shared library with ways_main. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ways.h"

static KEPT int s_target(int x) { OPAQUE(x); return 3 * x ^ 0x12340; }
static KEPT int s_other(int x) { OPAQUE(x); return 2000 + x; }

fn *pointer = target;
fn *const constant[] = {s_target, target, aliased};
struct { char name[8]; fn *f; } rows[] = {{"a", s_target}, {"b", target}};
static volatile int one = 1;

KEPT int direct(int x) { return target(x) + one - 1; }
KEPT int s_direct(int x) { return s_target(x) + one - 1; }
KEPT int tail(int x) { return target(x); }
KEPT int s_tail(int x) { return s_target(x); }
KEPT int conditional(int x) { if (x > 100) return -1; return target(x); }
KEPT int s_conditional(int x) { if (x <= 100) return s_target(x); return -1; }
KEPT int twice(int x) { if (x & 1) return s_target(x); return target(x); }
KEPT int taken(int x) { fn *volatile f = target; return f(x); }
KEPT int s_taken(int x) { fn *volatile f = s_target; return f(x); }
KEPT int through(fn *f, int x) { return f(x); }
KEPT int seventh(int a, int b, int c, int d, int e, int f, int g) { return target(a + b + c + d + e + f + g); }
KEPT int jumps(int x)
{
    switch (x) {
    case 0: return target(5);
    case 1: return s_target(6);
    case 2: return target(7);
    case 3: return s_target(8);
    case 4: return target(9);
    default: return target(x);
    }
}

KEPT int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
KEPT int compare_other(const void *a, const void *b) { return *(const int *)b - *(const int *)a; }
KEPT void *start(void *x) { return (char *)x + 1; }
KEPT void *start_other(void *x) { return (char *)x + 100; }
static volatile int handled;
KEPT void handler(int n) { (void)n; handled = 1; }
KEPT void handler_other(int n) { (void)n; handled = 2; }
KEPT void bye(void) { puts("bye"); fflush(stdout); }
KEPT void bye_other(void) { puts("bye, other"); fflush(stdout); }
static __attribute__((constructor, used)) void prepare(void) { atexit(bye); }

/* chosen: an indirect function whose resolver calls an instrumented function before main */
int choose(void);
static KEPT int first(int x) { OPAQUE(x); return x + 10; }
static KEPT int second(int x) { OPAQUE(x); return x + 20; }
#ifndef NO_IFUNC
static fn *resolve_chosen(void) { return choose() ? second : first; }
int chosen(int x) __attribute__((ifunc("resolve_chosen")));
#else
int chosen(int x) { return choose() ? second(x) : first(x); }
#endif

void patch(const char *name)
{
    void (*change)(const char *) = (void (*)(const char *))dlsym(RTLD_DEFAULT, "psu_test_change");
    if (change)
        change(name);
}

static void all(const char *when)
{
#define WAY(name, value) printf("%s %s %d\n", when, name, value)
    int v[3] = {2, 3, 1};
    void *joined = 0;
    pthread_t thread;
    struct { fn *f; } *heap = malloc(sizeof *heap);
    heap->f = target;
    fn *named = (fn *)dlsym(RTLD_DEFAULT, "target");
    WAY("direct", direct(1));
    WAY("static direct", s_direct(1));
    WAY("tail", tail(2));
    WAY("static tail", s_tail(2));
    WAY("conditional tail", conditional(3));
    WAY("static conditional tail", s_conditional(3));
    WAY("one of two", twice(4));
    WAY("other of two", twice(5));
    WAY("taken", taken(6));
    WAY("static taken", s_taken(6));
    WAY("passed", through(target, 7));
    WAY("static passed", through(s_target, 7));
    WAY("data", pointer(8));
    WAY("constant data", constant[0](9));
    WAY("constant data, global", constant[1](9));
    WAY("alias in data", constant[2](9));
    WAY("structure", rows[0].f(10));
    WAY("structure, global", rows[1].f(10));
    WAY("heap", heap->f(11));
    WAY("alias", aliased(12));
    WAY("seventh", seventh(1, 2, 3, 4, 5, 6, 7));
    for (int i = 0; i < 6; i++)
        printf("%s jump table %d %d\n", when, i, jumps(i + one - 1));
    qsort(v, 3, sizeof v[0], compare);
    WAY("library callback", v[0]);
    pthread_create(&thread, 0, start, &v[0]);
    pthread_join(thread, &joined);
    WAY("thread", (int)((char *)joined - (char *)&v[0]));
    raise(SIGUSR1);
    WAY("signal", handled);
    if (named)
        WAY("by name", named(13));
    printf("same address: %d %d %d\n", pointer == constant[1] && constant[1] == constant[2] && heap->f == pointer,
           rows[0].f == constant[0] && rows[0].f == s_target, !named || named == target);
    free(heap);
}

#ifdef LIBRARY
int ways_main(void)
#else
int main(void)
#endif
{
    setvbuf(stdout, 0, _IOLBF, 0);
    signal(SIGUSR1, handler);
    printf("chosen %d\n", chosen(1));
    printf("deep %d\n", deep(5));
    all("before");
    patch("target");
    patch("s_target");
    patch("compare");
    patch("start");
    patch("handler");
    patch("bye");
    all("after");
    if (one == 2)
        printf("%d", other(0) + s_other(0) + deep_other(0) + compare_other(0, 0) + (start_other(0) != 0));
    return 0;
}
