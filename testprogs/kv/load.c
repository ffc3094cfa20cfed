/* The load of the key-value server: connections that send without a break and check each answer.
 *
 * Each has keys of its own, so it knows the value that must be answered; of the form of an answer it accepts what any
 * version of the server says, and counts which one it was.
 * Usage: load PORT CONNECTIONS FILE: goes on until FILE exists; then status 0 if no request failed and every version was met.
 * Prints the number of requests, those that failed, and the longest time that one took. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { GOT_1, GOT_2, ADDED, HELD, ANSWERS };
static const char *const names[ANSWERS] = {"get 1", "get 2", "add 1", "add 2"};
static int port, stopping;
static long requests, failed, met[ANSWERS];
static double longest;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct connection { pthread_t thread; int number, socket; FILE *in; long counter, value; double longest; };

static void failure(struct connection *c, const char *request, const char *reply)
{
    __atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED);
    printf("FAILED: connection %d: %.*s: %.*s\n", c->number, (int)strcspn(request, "\n"), request,
           (int)strcspn(reply, "\n"), reply);
}

static void count(int answer) { __atomic_add_fetch(&met[answer], 1, __ATOMIC_RELAXED); }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Sends one line and reads the one that comes back into `reply`; 0 when none does. */
__attribute__((format(printf, 4, 5)))
static int ask(struct connection *c, char *request, char *reply, const char *form, ...)
{
    va_list arguments;
    va_start(arguments, form);
    int n = vsnprintf(request, 128, form, arguments);
    va_end(arguments);
    double began = now();
    __atomic_add_fetch(&requests, 1, __ATOMIC_RELAXED);
    if (write(c->socket, request, (size_t)n) != n || !fgets(reply, 128, c->in)) {
        failure(c, request, "no answer");
        return 0;
    }
    double took = now() - began;
    if (took > c->longest)
        c->longest = took;
    return 1;
}

static void expect_value(struct connection *c, const char *request, const char *reply, long value)
{
    char first[64], second[64];
    int n = snprintf(first, sizeof first, "value %ld\n", value);
    snprintf(second, sizeof second, "value %ld (%d)\n", value, n - 7);
    if (!strcmp(reply, first))
        count(GOT_1);
    else if (!strcmp(reply, second))
        count(GOT_2);
    else
        failure(c, request, reply);
}

static int round_of(struct connection *c)
{
    char request[128], reply[128], plain[64], held[64];
    if (!ask(c, request, reply, "set v%d %ld\n", c->number, ++c->value))
        return 0;
    if (strcmp(reply, "stored\n"))
        failure(c, request, reply);
    if (!ask(c, request, reply, "get v%d\n", c->number))
        return 0;
    expect_value(c, request, reply, c->value);
    if (!ask(c, request, reply, "add n%d 1\n", c->number))
        return 0;
    snprintf(plain, sizeof plain, "%ld\n", c->counter + 1);
    int size = snprintf(held, sizeof held, "held at %ld (", c->counter);
    if (!strcmp(reply, plain)) {
        c->counter++;
        count(ADDED);
    } else if (c->counter >= 999 && !strncmp(reply, held, (size_t)size))
        count(HELD);
    else
        failure(c, request, reply);
    if (!ask(c, request, reply, "get n%d\n", c->number))
        return 0;
    expect_value(c, request, reply, c->counter);
    return 1;
}

static void *go_on(void *p)
{
    struct connection *c = p;
    char request[128], reply[128];
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->socket, (struct sockaddr *)&a, sizeof a) || !(c->in = fdopen(c->socket, "r"))) {
        failure(c, "connect", "no connection");
        return 0;
    }
    c->counter = 990;
    if (ask(c, request, reply, "set n%d %ld\n", c->number, c->counter))
        while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED) && round_of(c))
            ;
    pthread_mutex_lock(&lock);
    if (c->longest > longest)
        longest = c->longest;
    pthread_mutex_unlock(&lock);
    fclose(c->in);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        puts("usage: load PORT CONNECTIONS FILE");
        return 2;
    }
    port = atoi(argv[1]);
    int n = atoi(argv[2]), status = 0;
    struct connection *all = calloc((size_t)n, sizeof *all);
    for (int i = 0; i < n; i++) {
        all[i].number = i;
        if (pthread_create(&all[i].thread, 0, go_on, &all[i])) {
            puts("FAILED: no thread");
            return 1;
        }
    }
    while (access(argv[3], F_OK))
        usleep(10000);
    __atomic_store_n(&stopping, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < n; i++)
        pthread_join(all[i].thread, 0);
    printf("%ld requests, %ld failed, the longest %.3f ms\n", requests, failed, longest * 1e3);
    for (int i = 0; i < ANSWERS; i++) {
        printf("%s: %ld\n", names[i], met[i]);
        status |= !met[i];
    }
    return status || failed;
}
