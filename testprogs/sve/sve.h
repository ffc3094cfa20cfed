/* What the program and its patch share. */
enum { REGISTERS, STACK, ORDINARY, FUNCTIONS };
struct parcel { long words[5]; };
extern volatile int seen[FUNCTIONS];      /* the version of each that ran last */
