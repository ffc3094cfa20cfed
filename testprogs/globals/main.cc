// Objects with constructors and destructors, and <iostream>, which has some of its own: a new version of the whole file
// goes on with the objects that the program made, and none is made or destroyed again.
#include <iostream>
#include <pthread.h>
#include <unistd.h>
#include "counted.h"

static Counted first(100);
#ifdef ADDED
Counted third(300);
#endif
Counted second(200);

__attribute__((noipa)) int step()
{
    static Counted local(1000);
    first.value++;
    second.value++;
    local.value++;
#ifdef ADDED
    third.value++;
#endif
    std::cout << VERSION << " first " << first.value << " second " << second.value << " local " << local.value << " made "
              << made << std::endl;
    return 0;
}

int main()
{
    pthread_t t;
    pthread_create(&t, nullptr, [](void *p) -> void * { for (;;) usleep(100000); return p; }, nullptr);
    for (char c; std::cin.get(c);)
        step();
    std::cout << "end" << std::endl;
}
