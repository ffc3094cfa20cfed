/* A host whose threads call a plugin through its table of functions, and which loads the plugin again when it is told to.
 *
 * Proves that a library is patched like a program; that one without patches is unloaded by dlclose, and that one which is
 * patched stays with its patch and its data, so that no thread ever calls what is gone: every answer is checked, and
 * the plugin must have counted as many calls as the host.
 * Usage: main THREADS PLUGIN.  A line on standard input loads it again ("loaded again" with a count of 0 if it was gone, with
 * "still there" if not); prints the version of the last answer; "ERROR" when an answer or the count is wrong. */
#include "plugin.h"
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *path;
static void *library;
static const struct plugin *loaded;
static pthread_rwlock_t lock;
static uint64_t calls, last;

static void fail(const char *what)
{
    printf("ERROR: %s\n", what);
    exit(1);
}

static void load(void)
{
    if (!(library = dlopen(path, RTLD_NOW)) || !(loaded = dlsym(library, "plugin")))
        fail(dlerror());
}

static void check_count(void)
{
    if (loaded->calls() != calls)
        fail("the plugin has lost count");
}

static void load_again(void)
{
    pthread_rwlock_wrlock(&lock);
    check_count();
    dlclose(library);
    load();
    if (loaded->calls()) {
        check_count();
        puts("loaded again, still there");
    } else {
        calls = 0;
        puts("loaded again, new");
    }
    pthread_rwlock_unlock(&lock);
}

static void *work(void *unused)
{
    for (uint64_t n = 0;; n = (n * 5 + 1) % (UINT64_C(1) << 50)) {
        pthread_rwlock_rdlock(&lock);
        struct answer a = loaded->square_root(n);
        __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
        pthread_rwlock_unlock(&lock);
        if (a.value * a.value > n || (a.value + 1) * (a.value + 1) <= n)
            fail("a wrong root");
        __atomic_store_n(&last, a.version, __ATOMIC_RELAXED);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_rwlockattr_t fair;
    char line[100];
    struct pollfd input = {.fd = 0, .events = POLLIN};
    if (argc != 3)
        fail("usage: main THREADS PLUGIN");
    path = argv[2];
    setvbuf(stdout, 0, _IOLBF, 0);
    setvbuf(stdin, 0, _IONBF, 0);
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&lock, &fair);
    load();
    for (int i = 0; i < atoi(argv[1]); i++) {
        pthread_t t;
        if (pthread_create(&t, 0, work, 0))
            fail("no thread");
    }
    for (;;) {
        if (poll(&input, 1, 2) > 0) {
            if (!fgets(line, sizeof line, stdin))
                return 0;
            load_again();
        }
        uint64_t version = __atomic_load_n(&last, __ATOMIC_RELAXED);
        if (version)
            printf("answered by %lu\n", (unsigned long)version);
    }
}
