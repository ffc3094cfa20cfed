/* What the readers and writers and their patches share. */
#include <pthread.h>
#include <stdint.h>
#define KEPT __attribute__((noinline))
enum { CELLS = 64 };
struct table { pthread_rwlock_t lock; uint64_t generation, cells[CELLS]; int writer; };
struct seen { int reader, writer; };     /* versions; reader 0: the table was found half written */
extern struct table table;
KEPT void pause_inside(void);
KEPT void wrote(uint64_t seed);
KEPT struct seen looked(void);
