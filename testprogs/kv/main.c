/* A key-value server over TCP: workers share one epoll instance, a connection belongs to one worker at a time
 * (EPOLLONESHOT), and the table is cut into shards with a lock each.
 *
 * Proves that clients which send without a break (load.c) get the right answer to every request while the commands that
 * they use are replaced and brought back: none is lost, none fails, none is answered by half of each version.
 * Usage: main [THREADS]; listens on a free port of 127.0.0.1 and prints it.
 * Commands, one a line: "set KEY VALUE", "get KEY", "add KEY NUMBER"; several may come at once. */
#define _GNU_SOURCE
#include "kv.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct client { int fd; size_t used; char input[4096]; };
struct shard shards[SHARDS];
static int listener, events;

uint32_t hash(const char *key)
{
    uint32_t h = 2166136261;
    while (*key)
        h = (h ^ (unsigned char)*key++) * 16777619;
    return h;
}

struct entry *find(struct shard *shard, uint32_t h, const char *key)
{
    struct entry *e = shard->chains[h / SHARDS % CHAINS];
    while (e && strcmp(e->key, key))
        e = e->next;
    return e;
}

/* A new entry, empty, for a key that is not there. */
struct entry *insert(struct shard *shard, uint32_t h, const char *key)
{
    struct entry *e = calloc(1, sizeof *e), **chain = &shard->chains[h / SHARDS % CHAINS];
    snprintf(e->key, sizeof e->key, "%s", key);
    e->next = *chain;
    return *chain = e;
}

int do_set(struct request r, char *reply)
{
    uint32_t h = hash(r.key);
    struct shard *s = &shards[h % SHARDS];
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, h, r.key);
    if (!e)
        e = insert(s, h, r.key);
    snprintf(e->value, sizeof e->value, "%s", r.value);
    pthread_mutex_unlock(&s->lock);
    return snprintf(reply, REPLY, "stored\n");
}

int do_get(struct request r, char *reply)
{
    uint32_t h = hash(r.key);
    struct shard *s = &shards[h % SHARDS];
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, h, r.key);
    int n = e ? snprintf(reply, REPLY, "value %s\n", e->value) : snprintf(reply, REPLY, "none\n");
    pthread_mutex_unlock(&s->lock);
    return n;
}

int do_add(struct request r, char *reply)
{
    uint32_t h = hash(r.key);
    struct shard *s = &shards[h % SHARDS];
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, h, r.key);
    if (!e)
        e = insert(s, h, r.key);
    int n = snprintf(e->value, sizeof e->value, "%ld", atol(e->value) + atol(r.value));
    memcpy(reply, e->value, n);
    pthread_mutex_unlock(&s->lock);
    reply[n] = '\n';
    return n + 1;
}

/* The answer to one line, which is cut into words. */
static int execute(char *line, char *reply)
{
    char *save, *word = strtok_r(line, " \r", &save);
    struct request r = {.key = strtok_r(0, " \r", &save), .value = strtok_r(0, " \r", &save)};
    if (r.key && !strcmp(word, "get"))
        return do_get(r, reply);
    if (r.value && !strcmp(word, "set"))
        return do_set(r, reply);
    if (r.value && !strcmp(word, "add"))
        return do_add(r, reply);
    return snprintf(reply, REPLY, "error\n");
}

static int send_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n <= 0)
            return 0;
        data += n;
        size -= (size_t)n;
    }
    return 1;
}

/* Answers what is complete; 0 when the connection is to be closed. */
static int serve(struct client *c)
{
    ssize_t got = recv(c->fd, c->input + c->used, sizeof c->input - c->used, 0);
    if (got <= 0)
        return 0;
    c->used += (size_t)got;
    char *line = c->input, *end;
    while ((end = memchr(line, '\n', c->used - (size_t)(line - c->input)))) {
        char reply[REPLY];
        *end = 0;
        if (!send_all(c->fd, reply, (size_t)execute(line, reply)))
            return 0;
        line = end + 1;
    }
    c->used -= (size_t)(line - c->input);
    memmove(c->input, line, c->used);
    return c->used < sizeof c->input;
}

static int watch(int how, int fd, struct client *c)
{
    return epoll_ctl(events, how, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.ptr = c});
}

static void welcome(void)
{
    int one = 1, fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
    struct client *c = fd >= 0 ? calloc(1, sizeof *c) : 0;
    if (c) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        watch(EPOLL_CTL_ADD, fd, c);
    } else if (fd >= 0)
        close(fd);
    watch(EPOLL_CTL_MOD, listener, 0);
}

static void *work(void *unused)
{
    struct epoll_event e;
    for (;;) {
        if (epoll_wait(events, &e, 1, -1) != 1) {
            puts("ERROR: epoll_wait was interrupted");
            exit(1);
        }
        struct client *c = e.data.ptr;
        if (!c)
            welcome();
        else if (serve(c))
            watch(EPOLL_CTL_MOD, c->fd, c);
        else {
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
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < SHARDS; i++)
        pthread_mutex_init(&shards[i].lock, 0);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    events = epoll_create1(EPOLL_CLOEXEC);
    if (bind(listener, (struct sockaddr *)&a, size) || listen(listener, 128) ||
        getsockname(listener, (struct sockaddr *)&a, &size) || watch(EPOLL_CTL_ADD, listener, 0)) {
        perror("ERROR: listen");
        return 1;
    }
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, work, 0)) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    printf("port %d\n", ntohs(a.sin_port));
    pause();
    return 0;
}
