/* What the key-value server and its patches share. */
#include <pthread.h>
#include <stdint.h>
#define KEPT __attribute__((noinline))
enum { SHARDS = 16, CHAINS = 256, WORD = 32, REPLY = 128 };
struct entry { struct entry *next; char key[WORD], value[WORD]; };
struct shard { pthread_mutex_t lock; struct entry *chains[CHAINS]; };
struct request { const char *key, *value; };
extern struct shard shards[SHARDS];
KEPT uint32_t hash(const char *key);
KEPT struct entry *find(struct shard *shard, uint32_t h, const char *key);
KEPT struct entry *insert(struct shard *shard, uint32_t h, const char *key);
/* The commands: each takes its shard's lock, writes one line to `reply` (REPLY bytes) and says how long it is. */
KEPT int do_set(struct request r, char *reply);
KEPT int do_get(struct request r, char *reply);
KEPT int do_add(struct request r, char *reply);
