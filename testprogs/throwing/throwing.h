// What the program and its patches share.
#include <exception>

struct Parcel { long words[5]; };
struct Failure {
    long version;
    int deep, passed;
    virtual ~Failure() = default;
};
extern thread_local long alive;
struct Counted {
    Counted() { alive++; }
    ~Counted() { alive--; }
};
long version();
void inner(int deep);
void middle(int deep);
void again(int deep);
void outer(int deep, int b, int c, int d, int e, int f, int g, Parcel p);
