/* What the program and its patch share: functions of three lengths, which do the same in every version. */
#include <stdint.h>
#define KEPT __attribute__((noinline))
struct mixed { uint64_t x, version; };
typedef struct mixed mix(uint64_t x);
KEPT mix mix_0, mix_4, mix_40;
#define STEP x ^= x << 13; x ^= x >> 7; x ^= x << 17;
#define STEPS_4 STEP STEP STEP STEP
#define STEPS_40 STEPS_4 STEPS_4 STEPS_4 STEPS_4 STEPS_4 STEPS_4 STEPS_4 STEPS_4 STEPS_4 STEPS_4
/* A number that compilers do not know, found by code that they must not leave out: clang would put what the program's own
 * functions return into their callers, or call them once instead of in each round; noinline forbids neither. */
static inline uint64_t number(uint64_t version)
{
    __asm__ volatile("" : "+r"(version));
    return version;
}
#define MIXES(VERSION) \
    struct mixed mix_0(uint64_t x) { return (struct mixed){x, number(VERSION)}; } \
    struct mixed mix_4(uint64_t x) { STEPS_4 return (struct mixed){x, number(VERSION)}; } \
    struct mixed mix_40(uint64_t x) { STEPS_40 return (struct mixed){x, number(VERSION)}; }
