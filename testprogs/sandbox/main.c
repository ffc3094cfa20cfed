/* A program in a seccomp sandbox of its own.
 *
 * Usage: main WHEN ACTION LIST CALL...
 *   WHEN    early: before its first thread is made; late: afterwards, for all threads; alone: early, and it makes no thread
 *   ACTION  kill | errno (EPERM)
 *   LIST    deny: the calls (numbers) get ACTION; allow: all calls but those get ACTION
 *   a call number above 10000 means mprotect with PROT_EXEC
 * Prints "version N" when it first sees N, and each time when it reads a line. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXEC_MPROTECT 10000
static struct sock_filter code[200];
static unsigned short size;

static void add(unsigned op, unsigned k, unsigned jt, unsigned jf)
{
    code[size++] = (struct sock_filter){(unsigned short)op, (unsigned char)jt, (unsigned char)jf, k};
}

static void install(char **argv, int all)
{
    unsigned hit = !strcmp(argv[0], "kill") ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM;
    int deny = !strcmp(argv[1], "deny");
    unsigned found = deny ? hit : SECCOMP_RET_ALLOW;
    for (char **call = argv + 2; *call; call++) {
        unsigned number = (unsigned)atoi(*call);
        add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
        if (number > EXEC_MPROTECT) {
            add(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 3);
            add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2]), 0, 0);
            add(BPF_JMP | BPF_JSET | BPF_K, 4, 0, 1);
        } else {
            add(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
        }
        add(BPF_RET | BPF_K, found, 0, 0);
    }
    add(BPF_RET | BPF_K, deny ? SECCOMP_RET_ALLOW : hit, 0, 0);
    struct sock_fprog program = {size, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, all ? SECCOMP_FILTER_FLAG_TSYNC : 0, &program)) {
        perror("ERROR seccomp");
        exit(1);
    }
}

__attribute__((noipa)) int first(void) { return 0; }

static void *work(void *unused)
{
    for (int last = -1;; usleep(1000)) {
        int now = first();
        if (now != last)
            printf("version %d\n", now);
        last = now;
    }
    return unused;
}

int main(int argc, char **argv)
{
    char line[10];
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (argc < 4)
        return 2;
    if (strcmp(argv[1], "late"))
        install(argv + 2, 0);
    if (strcmp(argv[1], "alone") && pthread_create(&t, 0, work, 0))
        puts("ERROR thread");
    if (!strcmp(argv[1], "late"))
        install(argv + 2, 1);
    puts("ready");
    while (read(0, line, 1) == 1)
        printf("version %d\n", first());
    return 0;
}
