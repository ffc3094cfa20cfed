"""Which threads are never borrowed to start the agent: those that may be inside an allocator, as its own code may be called then.

With less patience than users have: what is looked for is not there, however long one looks."""

import subprocess

import pytest
from conftest import GUARDED, psu_bin

from psu_bin.attach import borrow, target
from psu_bin.attach.process import Process
from psu_bin.errors import PsuError

# A handler that goes on for ever, on a stack right below the thread's descriptor, and has interrupted malloc or free.
INTERRUPTED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>
static __thread char stack[65536];
int answer(int x) { return x + 1; }
__attribute__((noipa)) static void spin(void) { for (volatile long n = 0;; n++) ; }
static void handler(int number, siginfo_t *info, void *context)
{
    ucontext_t *c = context;
#ifdef __x86_64__
    void *pc = (void *)c->uc_mcontext.gregs[REG_RIP];
#else
    void *pc = (void *)c->uc_mcontext.pc;
#endif
    Dl_info found;
    (void)number, (void)info;
    if (dladdr(pc, &found) && strstr(found.dli_fname, "/libc")) {
        (void)!write(1, "inside\n", 7);
        spin();
    }
}
int main(void)
{
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, 0);
    sigaction(SIGALRM, &(struct sigaction){.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART}, 0);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 1000}, {0, 1000}}, 0);
    for (;;) {
        void *p[50];
        for (int i = 0; i < 50; i++)
            p[i] = malloc(2000 + i * answer(3));
        for (int i = 0; i < 50; i++)
            free(p[i]);
    }
}
"""
# A program with an allocator of its own, in which it is most of the time, with its lock.
ALLOCATOR = r"""
#include <stddef.h>
#include <string.h>
#include <unistd.h>
static char pool[1 << 24];
static size_t used;
static int lock, slow;
int answer(int x) { return x + 1; }
void *malloc(size_t size)
{
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
        ;
    for (volatile long n = 0; slow && n < 100000000; n++)
        ;
    size = (size + 31) & ~15ul;
    if (used + size > sizeof pool)
        used = 0;
    char *p = pool + used;
    used += size;
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    return p;
}
void free(void *p) { (void)p; }
void *calloc(size_t n, size_t size) { return memset(malloc(n * size), 0, n * size); }
void *realloc(void *old, size_t size) { return old ? memcpy(malloc(size), old, size) : malloc(size); }
int main(void)
{
    (void)!write(1, "inside\n", 7);
    for (slow = 1;;)
        *(volatile char *)malloc(100) = (char)answer(1);
}
"""
# A function of the program that the C library called, which may hold a lock.  What leads back there is signed on AArch64.
CALLED_BACK = r"""
#include <search.h>
#include <unistd.h>
static volatile int end;
int answer(int x) { return x + 1; }
static int compare(const void *a, const void *b)
{
    (void)!write(1, "inside\n", 7);
    for (volatile int n = 0; !end;)
        n = answer(n) & 1;
    return *(const int *)a - *(const int *)b;
}
int main(void)
{
    int numbers[2000] = {1};       /* so far from the frames in which a thread begins that it is none of them */
    size_t many = 2000;
    return lfind(numbers, numbers, &many, sizeof *numbers, compare) != 0;
}
"""


@pytest.mark.parametrize("source", [INTERRUPTED, ALLOCATOR, CALLED_BACK],
                         ids=["in a handler", "in its own allocator", "called by a library"])
def test_nobody_is_borrowed_who_may_be_inside_an_allocator(lab, source, monkeypatch):
    (lab.folder / "main.c").write_text(source)
    subprocess.run(["gcc", "-O2", GUARDED, "-fno-builtin", "main.c", "-o", "main", "-ldl"], cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "main", "--json").json["output"])
    running.expect("^inside$")
    monkeypatch.setattr(borrow, "PATIENCE", 3 * borrow.PATIENCE_WAITING)
    with pytest.raises(PsuError, match="no thread could be borrowed"):
        borrow.start_agent(target.read(Process(running.pid)))
    assert running.alive()


def test_a_program_that_is_not_instrumented_may_be_in_between(lab):
    """It calls a function of an instrumented library, which goes on for ever: nothing else of the C library is on the stack."""
    (lab.folder / "host.c").write_text("""
        #include <dlfcn.h>
        #include <unistd.h>
        int main(int argc, char **argv)
        {
            void (*spin)(void) = (void (*)(void))dlsym(dlopen(argv[1], RTLD_NOW), "spin");
            (void)!write(1, "ready\\n", 6);
            spin();
        }""")
    (lab.folder / "plugin.c").write_text("""
        __attribute__((noipa)) int answer(int x) { return x + 1; }
        void spin(void) { for (volatile int n = 0;;) n = answer(n) & 1; }""")
    subprocess.run(["gcc", "-O2", "host.c", "-o", "host", "-ldl"], cwd=lab.folder, check=True)
    subprocess.run(["gcc", "-O2", "-fPIC", "-shared", "plugin.c", "-o", "plugin.so"], cwd=lab.folder, check=True)
    running = lab.start(lab.folder / "host", psu_bin("instrument", lab.folder / "plugin.so", "--json").json["output"])
    running.expect("^ready$")
    assert borrow.start_agent(target.read(Process(running.pid))) > 0
    assert psu_bin("status", running.pid, "--json").json["agent"] is not None and running.alive()
