/* Pairs of functions, outerN and innerN, N from 10 to 89. */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define PAIRS_OF_TEN(t) \
    PAIR(t##0) PAIR(t##1) PAIR(t##2) PAIR(t##3) PAIR(t##4) PAIR(t##5) PAIR(t##6) PAIR(t##7) PAIR(t##8) PAIR(t##9)
#define PAIRS PAIRS_OF_TEN(1) PAIRS_OF_TEN(2) PAIRS_OF_TEN(3) PAIRS_OF_TEN(4) PAIRS_OF_TEN(5) PAIRS_OF_TEN(6) \
    PAIRS_OF_TEN(7) PAIRS_OF_TEN(8)
