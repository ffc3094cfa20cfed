// What the program and its patches share.
#include <exception>

struct Parcel { long words[5]; };
struct Failure {
    long version;
    int deep, passed;
    virtual ~Failure() = default;
};
#ifdef PLUGIN // a patch cannot use thread-local variables of what was loaded with dlopen
long &alive_here();
#else
extern thread_local long alive;
static inline long &alive_here() { return alive; }
#endif
struct Counted {
    Counted() { alive_here()++; }
    ~Counted() { alive_here()--; }
};
long version();
void inner(int deep);
void middle(int deep);
void again(int deep);
void outer(int deep, int b, int c, int d, int e, int f, int g, Parcel p);
