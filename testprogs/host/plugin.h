/* What a host and its plugins agree on. */
#include <stdint.h>
struct answer { uint64_t value; uint64_t version; };
struct plugin {
    const char *name;
    struct answer (*square_root)(uint64_t n);     /* rounded down */
    uint64_t (*calls)(void);                      /* how many there were since the plugin was loaded */
};
extern const struct plugin plugin;
