/* The demo server: a key-value store over TCP, epoll, several worker threads.
 *
 * Commands, one a line: "set KEY VALUE", "get KEY", "del KEY", "stats", "quit".  Usage: main [THREADS]; listens on a free port of
 * 127.0.0.1 and prints it.  What it lacks is brought by the patches while it
 * runs: it does not say which key is missing, and it cannot count. */
#define _GNU_SOURCE
#include "server.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct entry *table[TABLE];
pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
unsigned long requests;
static int listener;

unsigned hash(const char *key)
{
    unsigned h = 5381;
    while (*key)
        h = h * 33 + (unsigned char)*key++;
    return h % TABLE;
}

static struct entry *find(const char *key)
{
    struct entry *e = table[hash(key)];
    while (e && strcmp(e->key, key))
        e = e->next;
    return e;
}

int do_get(const char *key, char *reply, int room)
{
    int n;
    pthread_mutex_lock(&table_lock);
    struct entry *e = find(key);
    n = e ? snprintf(reply, room, "value %s\n", e->value) : snprintf(reply, room, "none\n");
    pthread_mutex_unlock(&table_lock);
    return n;
}

int do_set(const char *key, const char *value, char *reply, int room)
{
    pthread_mutex_lock(&table_lock);
    struct entry *e = find(key);
    if (!e) {
        e = calloc(1, sizeof *e);
        snprintf(e->key, sizeof e->key, "%s", key);
        e->next = table[hash(key)];
        table[hash(key)] = e;
    }
    snprintf(e->value, sizeof e->value, "%s", value);
    pthread_mutex_unlock(&table_lock);
    return snprintf(reply, room, "stored\n");
}

int do_stats(char *reply, int room)
{
    return snprintf(reply, room, "version 1 requests %lu\n", requests);
}

int execute(char *line, char *reply, int room)
{
    char *save, *word = strtok_r(line, " \r\n", &save), *key = strtok_r(0, " \r\n", &save), *value = strtok_r(0, "\r\n", &save);
    __atomic_fetch_add(&requests, 1, __ATOMIC_RELAXED);
    if (word && !strcmp(word, "stats"))
        return do_stats(reply, room);
    if (word && key && !strcmp(word, "get"))
        return do_get(key, reply, room);
    if (word && key && value && !strcmp(word, "set"))
        return do_set(key, value, reply, room);
    return snprintf(reply, room, "error\n");
}

static int serve(struct client *c)
{
    ssize_t n = read(c->fd, c->input + c->used, sizeof c->input - 1 - c->used);
    if (n <= 0)
        return 0;
    c->used += n;
    c->input[c->used] = 0;
    char *line = c->input, *end;
    while ((end = strchr(line, '\n'))) {
        char reply[512];
        *end = 0;
        int length = execute(line, reply, sizeof reply);
        if (write(c->fd, reply, length) != length)
            return 0;
        line = end + 1;
    }
    c->used -= line - c->input;
    memmove(c->input, line, c->used);
    return c->used < (int)sizeof c->input - 1;
}

static void *work(void *unused)
{
    int events = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = 0};
    epoll_ctl(events, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(events, &e, 1, -1);
        if (n < 0) {
            fprintf(stderr, "epoll_wait: %s\n", strerror(errno));
            continue;
        }
        if (!e.data.ptr) {
            int one = 1, fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
            if (fd < 0)
                continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            struct client *c = calloc(1, sizeof *c);
            c->fd = fd;
            e = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
            epoll_ctl(events, EPOLL_CTL_ADD, fd, &e);
            continue;
        }
        struct client *c = e.data.ptr;
        if (!serve(c)) {
            close(c->fd);
            free(c);
        }
    }
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&a, size) || listen(listener, 128) || getsockname(listener, (struct sockaddr *)&a, &size)) {
        perror("listen");
        return 1;
    }
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        pthread_create(&t, 0, work, 0);
    }
    printf("port %d\n", ntohs(a.sin_port));
    fflush(stdout);
    pause();
    return 0;
}
