/* What the program and its patch share. */
enum { REGISTERS, STACK, ORDINARY, FUNCTIONS };
struct parcel { long words[5]; };
#ifdef __clang__
#define KEPT noinline
#else
#define KEPT noipa
#endif
extern volatile int seen[FUNCTIONS];      /* the version of each that ran last */
