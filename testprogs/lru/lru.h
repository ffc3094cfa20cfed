/* What the cache and its patch share. */
#define KEPT __attribute__((noinline))
enum { ENTRIES = 32 };
struct entry { unsigned key, value; unsigned long used, born; };
struct cache { struct entry entries[ENTRIES]; unsigned long clock; };
KEPT int evicted(const struct cache *cache);      /* the index of the entry that goes */
KEPT const char *policy(void);
