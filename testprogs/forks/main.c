/* Processes that come from one another: fork, vfork, daemons, workers.
 *
 * Each process that stays prints "ROLE VERSION" about fifty times a second; a role is a name and, but for the first process, a
 * number.  "pid ROLE N" tells its process number first.  "ERROR ..." when something is wrong.
 * Usage: main family     a parent with a second thread, and two children made by it; the children have one thread
 *        main daemon     forks twice as daemons do, closes what it inherited, then forks two workers with two threads each
 *        main stream     forks children without end while its threads call; each child calls, starts a thread, checks, and ends
 *        main vfork      two threads start programs with vfork and exec without end; the children call patched functions */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noipa)) int first(void) { return 0; }
__attribute__((noipa)) int second(void) { return 0; }

static void say(const char *role, int number, int what)
{
    char text[100];
    int n = number < 0 ? snprintf(text, sizeof text, "%s %d\n", role, what) : snprintf(text, sizeof text, "%s%d %d\n", role, number, what);
    if (write(1, text, (size_t)n) != n)
        _exit(3);
}

static int check(int *newest)
{
    int a = first(), b = second();
    if (a < *newest || b < a)
        say("ERROR", -1, a);
    *newest = b;
    return b;
}

static void *work(void *unused)
{
    int newest = 0;
    for (;; usleep(200))
        for (int i = 0; i < 100; i++)
            check(&newest);
    return unused;
}

static void start(void *(*f)(void *), void *argument)
{
    pthread_t t;
    if (pthread_create(&t, 0, f, argument))
        say("ERROR thread", -1, 0);
}

static void stay(const char *role, int number)
{
    char name[50];
    int newest = 0;
    snprintf(name, sizeof name, "pid %s", role);
    say(name, number, getpid());
    for (;; usleep(20000))
        say(role, number, check(&newest));
}

static void workers(const char *role, int threads)
{
    for (int i = 0; i < 2; i++)
        if (!fork()) {
            for (int t = 0; t < threads; t++)
                start(work, 0);
            stay(role, i);
        }
}

static void daemonise(void)
{
    int end = open("/dev/null", O_RDWR);
    if (fork())
        _exit(0);
    setsid();
    if (fork())
        _exit(0);
    if (chdir("/"))
        say("ERROR chdir", -1, errno);
    umask(0);
    dup2(end, 0);
    for (int fd = 3; fd < 100; fd++)
        close(fd);
}

static void *one_check(void *unused)
{
    int newest = 0;
    for (int i = 0; i < 100; i++)
        check(&newest);
    return unused;
}

static void child_of_stream(int newest)
{
    for (int i = 0; i < 100; i++)
        check(&newest);
    pthread_t t;
    if (newest % 2 && (pthread_create(&t, 0, one_check, 0) || pthread_join(t, 0)))
        _exit(4);
    _exit(newest >= 0 ? 7 : 5);
}

static void stream(void)
{
    int newest = 0;
    for (int n = 0;; n++) {
        check(&newest);
        pid_t child = fork();
        if (!child)
            child_of_stream(newest);
        int status = 0;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
            say("ERROR child", -1, status);
        if (n % 10 == 9)
            say("children", -1, newest);
    }
}

static void *vforker(void *unused)
{
    static int programs;
    int newest = 0;
    for (;;) {
        volatile int result = 0;
        pid_t child = vfork();
        if (!child) {
            result = first();
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        int status = 0;
        while (waitpid(child, &status, 0) < 0)
            if (errno != EINTR)
                say("ERROR waitpid", -1, errno);
        if (!WIFEXITED(status) || WEXITSTATUS(status) || result < newest)
            say("ERROR child", -1, status);
        check(&newest);
        if (__atomic_add_fetch(&programs, 1, __ATOMIC_RELAXED) % 20 == 0)
            say("programs", -1, newest);
    }
    return unused;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "family";
    if (!strcmp(how, "daemon")) {
        daemonise();
        workers("worker", 2);
        stay("daemon", -1);
    }
    start(work, 0);
    if (!strcmp(how, "stream"))
        stream();
    if (!strcmp(how, "vfork")) {
        start(vforker, 0);
        vforker(0);
    }
    workers("child", 0);
    stay("parent", -1);
}
