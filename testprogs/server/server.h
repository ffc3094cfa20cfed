/* What the server and its patches share. */
#include <pthread.h>
#define TABLE 4096
struct entry {
    struct entry *next;
    char key[64], value[192];
};
struct client {
    int fd, used;
    char input[1024];
};
extern struct entry *table[TABLE];
extern pthread_mutex_t table_lock;
extern unsigned long requests;
unsigned hash(const char *key);
/* Kept as functions of their own: what gcc inlines, a patch must replace through the caller (psu-bin warns of it). */
#define KEPT __attribute__((noinline, noclone))
KEPT int do_get(const char *key, char *reply, int room);
KEPT int do_set(const char *key, const char *value, char *reply, int room);
KEPT int do_stats(char *reply, int room);
KEPT int execute(char *line, char *reply, int room);
