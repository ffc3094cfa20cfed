/* pause.c: how long a spinning thread and a request are held up, and what happens to blocked system calls.
 *
 * One thread spins, calls an updatable function and keeps the longest gap between two readings of the clock.  One asks
 * another one over a socket and keeps the longest answer.  All others are blocked in one of 20 system calls each, which
 * nothing ends; one that returns all the same is counted, with EINTR or otherwise.
 *
 * Argument: threads.  Input: "reset" or "report"; the answer to a report is one line: longest gap and longest answer in
 * microseconds, EINTRs, other returns, spins, answers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t longest_gap, longest_answer, spins, answers;
static unsigned interrupted, returned;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((noipa)) unsigned step(unsigned x) { return x * 7 + 1; }

static void *spin(void *p)
{
    unsigned x = 1;
    for (uint64_t last = now(), t;; last = t, spins++) {
        x = step(x);
        t = now();
        if (t - last > longest_gap)
            longest_gap = t - last;
    }
    return p;
}

static int pair[2];

static void *answer(void *p)
{
    char c;
    while (read(pair[1], &c, 1) == 1 && write(pair[1], &c, 1) == 1)
        ;
    return p;
}

static void *ask(void *p)
{
    char c = (char)step(1);
    for (struct timespec pause = {0, 200000};; nanosleep(&pause, 0), answers++) {
        uint64_t began = now();
        if (write(pair[0], &c, 1) != 1 || read(pair[0], &c, 1) != 1)
            abort();
        if (now() - began > longest_answer)
            longest_answer = now() - began;
    }
    return p;
}

/* ---- system calls that block for good; each returns as the system call does ---- */
static int sockets[2], pipes[2], listener, locked, epoll, semaphores, messages, queue;
static struct timespec forever = {100000, 0};
static aio_context_t aio;

static long b_poll(void) { struct pollfd p = {pipes[0], POLLIN, 0}; return poll(&p, 1, -1); }
static long b_ppoll(void) { struct pollfd p = {pipes[0], POLLIN, 0}; return ppoll(&p, 1, &forever, 0); }
static long b_select(void)
{
    fd_set s;
    FD_ZERO(&s);
    FD_SET(pipes[0], &s);
    return select(pipes[0] + 1, &s, 0, 0, 0);
}
static long b_pselect(void)
{
    fd_set s;
    FD_ZERO(&s);
    FD_SET(pipes[0], &s);
    return pselect(pipes[0] + 1, &s, 0, 0, &forever, 0);
}
static long b_epoll_wait(void) { struct epoll_event e; return epoll_wait(epoll, &e, 1, -1); }
static long b_epoll_pwait(void)
{
    struct epoll_event e;
    sigset_t s;
    sigemptyset(&s);
    return epoll_pwait(epoll, &e, 1, -1, &s);
}
static long b_nanosleep(void) { return nanosleep(&forever, 0); }
static long b_clock_nanosleep(void)
{
    int e = clock_nanosleep(CLOCK_MONOTONIC, 0, &forever, 0);
    errno = e;
    return e ? -1 : 0;
}
static long b_futex(void)
{
    unsigned word = 0;
    return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &forever, 0, 0);
}
static long b_sem(void) { sem_t s; sem_init(&s, 0, 0); return sem_wait(&s); }
static long b_sigtimedwait(void)
{
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGUSR2);
    return sigtimedwait(&s, 0, &forever);
}
static long b_semop(void) { struct sembuf b = {0, -1, 0}; return semop(semaphores, &b, 1); }
static long b_msgrcv(void) { struct { long type; char c; } m; return msgrcv(messages, &m, 1, 0, 0); }
static long b_recv(void) { char c; return recv(sockets[0], &c, 1, 0); }         /* with SO_RCVTIMEO */
static long b_accept(void) { return accept(listener, 0, 0); }                    /* with SO_RCVTIMEO */
static long b_read(void) { char c; return read(pipes[0], &c, 1); }
static long b_flock(void)
{
    char name[64]; /* another opening of the locked file, which has no name */
    snprintf(name, sizeof name, "/proc/self/fd/%d", locked);
    int f = open(name, O_RDWR | O_CLOEXEC);
    long r = flock(f, LOCK_EX);
    close(f);
    return r;
}
static long b_io_getevents(void)
{
    struct io_event e;
    return syscall(SYS_io_getevents, aio, 1L, 1L, &e, &forever);
}
static long b_mq(void) { char c[64]; return mq_receive(queue, c, sizeof c, 0); }
static long b_pause(void) { return pause(); }

static long (*const kinds[])(void) = {
    b_poll, b_ppoll, b_select, b_pselect, b_epoll_wait, b_epoll_pwait, b_nanosleep, b_clock_nanosleep, b_futex, b_sem,
    b_sigtimedwait, b_semop, b_msgrcv, b_recv, b_accept, b_read, b_flock, b_io_getevents, b_mq, b_pause};
#define KINDS (sizeof kinds / sizeof *kinds)

static void *block(void *kind)
{
    for (;;) {
        long r = kinds[(size_t)kind]();
        __atomic_add_fetch(r < 0 && errno == EINTR ? &interrupted : &returned, 1, __ATOMIC_SEQ_CST);
        usleep(1000);
    }
    return kind;
}

static void prepare(void)
{
    struct timeval limit = {100000, 0};
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 64};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || pipe(pipes))
        abort();
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    listen(listener, 1);
    epoll = epoll_create1(0);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    messages = msgget(IPC_PRIVATE, 0600);
    locked = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    syscall(SYS_io_setup, 8, &aio);
    char name[64];
    snprintf(name, sizeof name, "/psu-bench-%d", getpid());
    queue = mq_open(name, O_RDWR | O_CREAT, 0600, &attributes);
    mq_unlink(name);
    if (listener < 0 || epoll < 0 || semaphores < 0 || messages < 0 || locked < 0 || queue < 0
        || flock(locked, LOCK_EX)) {
        perror("pause");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    pthread_attr_t small;
    pthread_t t;
    prepare();
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    void *(*const own[])(void *) = {spin, ask, answer};
    for (int i = 0; i < threads || i < 3; i++)
        if (pthread_create(&t, &small, i < 3 ? own[i] : block, (void *)((size_t)(i + 17) % KINDS)))
            abort();
    sleep(1);
    returned = 0; /* a call that cannot be made here at all shows as returns, again and again */
    puts("ready");
    for (char line[64]; fflush(stdout), fgets(line, sizeof line, stdin);) {
        if (strcmp(line, "reset\n") == 0) {
            longest_gap = longest_answer = spins = answers = 0;
            interrupted = returned = 0;
            puts("reset");
        } else {
            printf("%.1f %.1f %u %u %llu %llu\n", (double)longest_gap / 1e3, (double)longest_answer / 1e3, interrupted,
                   returned, (unsigned long long)spins, (unsigned long long)answers);
        }
    }
    semctl(semaphores, 0, IPC_RMID);
    msgctl(messages, IPC_RMID, 0);
    return 0;
}
