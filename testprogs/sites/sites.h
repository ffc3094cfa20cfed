/* Types and callees of three call sites of real programs; each part says from where.  FIRST: in the program itself. */
#include <stddef.h>
#include <stdint.h>

/* The version of each callee that ran last. */
enum { SQLITE, REDIS, MEMCACHED, CALLEES };
extern volatile int seen[CALLEES];
/* A version changes every register that the psABI lets it change and that is not its result; the program's own changes
 * only what the compiler made of its source. */
#ifdef SPOIL
#define RAN(which) do { seen[which] = V; __asm__ volatile("mov $-1, %%rcx\n mov %%rcx, %%rdx\n mov %%rcx, %%rsi\n" \
    "mov %%rcx, %%rdi\n mov %%rcx, %%r8\n mov %%rcx, %%r9\n mov %%rcx, %%r10\n mov %%rcx, %%r11" \
    : : : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"); } while (0)
#else
#define RAN(which) do { } while (0)
#endif

/* ---- sqlite 3.40.1, src/rowset.c.  "The author disclaims copyright to this source code." ------------- */
struct RowSetEntry {
  int64_t v;                    /* ROWID value for this entry */
  struct RowSetEntry *pRight;   /* Right subtree (larger entries) or list */
  struct RowSetEntry *pLeft;    /* Left subtree (smaller entries) */
};

#define ROW_SET_N_DEEP_TREE \
static struct RowSetEntry *rowSetNDeepTree( \
  struct RowSetEntry **ppList, \
  int iDepth \
){ \
  struct RowSetEntry *p;         /* Root of the new tree */ \
  struct RowSetEntry *pLeft;     /* Left subtree */ \
  if( *ppList==0 ){ /*OPTIMIZATION-IF-TRUE*/ \
    RAN(SQLITE); \
    return 0; \
  } \
  if( iDepth>1 ){   /*OPTIMIZATION-IF-TRUE*/ \
    pLeft = rowSetNDeepTree(ppList, iDepth-1); \
    p = *ppList; \
    if( p==0 ){     /*OPTIMIZATION-IF-FALSE*/ \
      RAN(SQLITE); \
      return pLeft; \
    } \
    p->pLeft = pLeft; \
    *ppList = p->pRight; \
    p->pRight = rowSetNDeepTree(ppList, iDepth-1); \
  }else{ \
    p = *ppList; \
    *ppList = p->pRight; \
    p->pLeft = p->pRight = 0; \
  } \
  RAN(SQLITE); \
  return p; \
}

/* ---- redis 7.0.15, src/util.c ------------------------------------------------------------------------
 * Copyright (c) 2009-2012, Salvatore Sanfilippo <antirez at gmail dot com>
 * All rights reserved.
 * Redistribution and use in source and binary forms, with or without modification, are permitted under the three clauses
 * of the BSD licence, which is in LICENSE.redis next to this file. */
#define DIGITS10(linkage) \
linkage uint32_t digits10(uint64_t v) { \
    RAN(REDIS); \
    if (v < 10) return 1; \
    if (v < 100) return 2; \
    if (v < 1000) return 3; \
    if (v < 1000000000000UL) { \
        if (v < 100000000UL) { \
            if (v < 1000000) { \
                if (v < 10000) return 4; \
                return 5 + (v >= 100000); \
            } \
            return 7 + (v >= 10000000UL); \
        } \
        if (v < 10000000000UL) { \
            return 9 + (v >= 1000000000UL); \
        } \
        return 11 + (v >= 100000000000UL); \
    } \
    return 12 + digits10(v / 1000000000000UL); \
}

/* ---- memcached 1.6.18, slabs.c and memcached.h -------------------------------------------------------
 * Copyright (c) 2003, Danga Interactive, Inc.
 * All rights reserved.
 * Under the three clauses of the BSD licence, in LICENSE.memcached next to this file. */
#define ITEM_CAS 2
#define ITEM_SLABBED 4
#define ITEM_CHUNKED 32
#define ITEM_CHUNK 64
#define ITEM_CFLAGS 256
#define POWER_SMALLEST 1
typedef unsigned int rel_time_t;

typedef struct {
    unsigned int size;      /* sizes of items */
    unsigned int perslab;   /* how many items per slab */
    void *slots;           /* list of item ptrs */
    unsigned int sl_curr;   /* total free items in list */
    unsigned int slabs;     /* how many slabs were allocated for this class */
    void **slab_list;       /* array of slab pointers */
    unsigned int list_size; /* size of prev array */
} slabclass_t;

typedef struct _stritem {
    struct _stritem *next;
    struct _stritem *prev;
    struct _stritem *h_next;    /* hash chain next */
    rel_time_t      time;       /* least recent access */
    rel_time_t      exptime;    /* expire time */
    int             nbytes;     /* size of data */
    unsigned short  refcount;
    uint16_t        it_flags;   /* ITEM_* above */
    uint8_t         slabs_clsid;/* which slab class we're in */
    uint8_t         nkey;       /* key length, w/terminating null and padding */
    union {
        uint64_t cas;
        char end;
    } data[];
} item;

typedef struct _strchunk {
    struct _strchunk *next;     /* points within its own chain. */
    struct _strchunk *prev;     /* can potentially point to the head. */
    struct _stritem  *head;     /* always points to the owner chunk */
    int              size;      /* available chunk space in bytes */
    int              used;      /* chunk space used */
    int              nbytes;    /* used. */
    unsigned short   refcount;  /* used? */
    uint16_t         it_flags;  /* ITEM_* above. */
    uint8_t          slabs_clsid; /* Same as above. */
    uint8_t          orig_clsid; /* For obj hdr chunks slabs_clsid is fake. */
    char data[];
} item_chunk;

#define ITEM_schunk(item) ((char*) &((item)->data) + (item)->nkey + 1 \
         + (((item)->it_flags & ITEM_CFLAGS) ? sizeof(uint32_t) : 0) \
         + (((item)->it_flags & ITEM_CAS) ? sizeof(uint64_t) : 0))

#define DO_SLABS_FREE_CHUNKED \
static void __attribute__((used)) do_slabs_free_chunked(item *it) { \
    item_chunk *chunk = (item_chunk *) ITEM_schunk(it); \
    slabclass_t *p; \
    it->it_flags = ITEM_SLABBED; \
    it->prev = 0; \
    p = &slabclass[chunk->orig_clsid]; \
    it->slabs_clsid = chunk->orig_clsid; \
    if (chunk->next) { \
        chunk = chunk->next; \
        chunk->prev = 0; \
    } else { \
        chunk = NULL; \
    } \
    it->prev = 0; \
    it->next = p->slots; \
    if (it->next) it->next->prev = it; \
    p->slots = it; \
    p->sl_curr++; \
    item_chunk *next_chunk; \
    while (chunk) { \
        chunk->it_flags = ITEM_SLABBED; \
        p = &slabclass[chunk->slabs_clsid]; \
        next_chunk = chunk->next; \
        chunk->prev = 0; \
        chunk->next = p->slots; \
        if (chunk->next) chunk->next->prev = chunk; \
        p->slots = chunk; \
        p->sl_curr++; \
        chunk = next_chunk; \
    } \
    RAN(MEMCACHED); \
    return; \
}
