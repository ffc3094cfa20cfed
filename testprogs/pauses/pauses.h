/* What the program and its patch share. */
struct step { unsigned long count, version; };
__attribute__((noinline)) struct step step(unsigned long count);
