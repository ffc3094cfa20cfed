/* A patch of memcached 1.6.18: incr and decr of a missing key are answered differently, and counted in a new variable.
 *
 * process_arithmetic_command and set_noreply_maybe are the program's own, from proto_text.c, where they are static; the
 * compiler inlined the second, so the program has no such function, and the patch brings its own. */
#include "memcached.h"
#include "proto_text.h"
#include <string.h>

typedef struct token_s {
    char *value;
    size_t length;
} token_t;

#define KEY_TOKEN 1

static unsigned long missing;

static inline void set_noreply_maybe(conn *c, token_t *tokens, size_t ntokens) {
    if (tokens[ntokens - 2].value && strcmp(tokens[ntokens - 2].value, "noreply") == 0)
        c->noreply = true;
}

static void __attribute__((used, noinline)) process_arithmetic_command(conn *c, token_t *tokens, const size_t ntokens,
                                                                       const bool incr) {
    char temp[INCR_MAX_STORAGE_LEN];
    uint64_t delta;

    set_noreply_maybe(c, tokens, ntokens);
    if (tokens[KEY_TOKEN].length > KEY_MAX_LENGTH) {
        out_string(c, "CLIENT_ERROR bad command line format");
        return;
    }
    if (!safe_strtoull(tokens[2].value, &delta)) {
        out_string(c, "CLIENT_ERROR invalid numeric delta argument");
        return;
    }

    switch (add_delta(c, tokens[KEY_TOKEN].value, tokens[KEY_TOKEN].length, incr, delta, temp, NULL)) {
    case OK:
        out_string(c, temp);
        break;
    case NON_NUMERIC:
        out_string(c, "CLIENT_ERROR cannot increment or decrement non-numeric value");
        break;
    case EOM:
        out_of_memory(c, "SERVER_ERROR out of memory");
        break;
    case DELTA_ITEM_NOT_FOUND:
        pthread_mutex_lock(&c->thread->stats.mutex);
        if (incr) {
            c->thread->stats.incr_misses++;
        } else {
            c->thread->stats.decr_misses++;
        }
        pthread_mutex_unlock(&c->thread->stats.mutex);
        __atomic_add_fetch(&missing, 1, __ATOMIC_RELAXED);
        out_string(c, "NOT_FOUND (patched)");
        break;
    case DELTA_ITEM_CAS_MISMATCH:
        break; /* Should never get here */
    }
}
