/* SPDX-License-Identifier: MIT
 *
 * psu.h: marks for people who write programs that psu-bin will patch.  Nothing here is needed: psu-bin takes programs as they
 * are compiled.  It is a header alone; it needs no library.
 *
 * PSU_UPDATABLE in front of a function keeps it a function of its own, which a patch can replace alone:
 *
 *     PSU_UPDATABLE int price(int amount) { return amount * 3; }
 *
 * Without it an optimising compiler may inline the function into its callers, make a specialised copy of it, or use what it
 * knows of the body (a constant result, registers left alone); a patch must then bring the callers, too.  clang has no such
 * attribute; there the mark is for functions that are not static, and does not hold with -flto. */
#ifndef PSU_H
#define PSU_H

#if defined(__has_attribute) && __has_attribute(noipa)
#define PSU_UPDATABLE __attribute__((noipa))           /* gcc 8 and later; implies noinline and noclone */
#else
#define PSU_UPDATABLE __attribute__((noinline, weak))  /* only `weak` keeps clang from using the body */
#endif

#endif
