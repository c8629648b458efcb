/*
 * Explores every execution of small programs that share memory through native/core/order.h: the real ring code is
 * compiled with XS_ORDER_HOOKS="explore.h", and each access to shared memory becomes a step of a scheduler here.
 *
 * Explored are all interleavings *and* all weak-memory outcomes: the memory keeps the history of each location, and a
 * load may return any value that C11 allows it to see (release/acquire views, seq_cst fences, as the operational forms of
 * RC11 have it). That includes stores that are delayed until a barrier, as on x86, and reads that are served early, as on
 * Arm. Not included: loads that see stores which depend on them (load buffering), which no RC11 execution has.
 *
 * A state (memory, events, both stacks and registers) that was seen before is not explored again, so the search ends.
 * A failure is printed with the steps that lead to it; exit status 1.
 */
#ifndef EXPLORE_H
#define EXPLORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint32_t ex_load(const void *word, bool acquire);
void ex_store(void *word, uint32_t value, bool release);
void ex_fence(void);
void ex_copy_from(void *copy, const void *shared, size_t length);
void ex_copy_to(void *shared, const void *bytes, size_t length);

static inline uint32_t xs_load_acquire(const void *word) { return ex_load(word, true); }
static inline uint32_t xs_load_relaxed(const void *word) { return ex_load(word, false); }
static inline void xs_store_release(void *word, uint32_t value) { ex_store(word, value, true); }
static inline void xs_store_relaxed(void *word, uint32_t value) { ex_store(word, value, false); }
static inline void xs_full_barrier(void) { ex_fence(); }
static inline void xs_copy_from_shared(void *copy, const void *shared, size_t n) { ex_copy_from(copy, shared, n); }
static inline void xs_copy_to_shared(void *shared, const void *bytes, size_t n) { ex_copy_to(shared, bytes, n); }

/* Building a program, before ex_run(). Shared memory starts with what is in it then. */
void ex_begin(const char *title);
/* Bytes that may be copied; those registered by ex_bytes() and ex_word() carry values, others are padding. */
void ex_region(const void *start, size_t length);
void ex_word(const void *word, const char *name);
void ex_bytes(const void *start, size_t length, const char *name);
/* All state of a program is in the locals of its functions, or it would not be restored. */
void ex_thread(void (*run)(void), const char *name);
/* Explores; prints how much there was; exits with 1 on a failure. */
void ex_run(void);

/* Within a thread. An event stays set until a wait clears it, like an eventfd; it orders what was done before it was set
 * before what is done after the wait, and nothing else. */
void ex_notify(int event);
void ex_wait(int event);
/* The two halves of a wait, for programs that clear first, look, and then poll. */
void ex_clear(int event);
void ex_poll(int event);
/* Every number below n. */
uint32_t ex_choose(uint32_t n);
void ex_check(bool holds, const char *what);
/* Counts executions that come by here; ex_run() fails when one of the labels below `EX_LABELS` that were announced is
 * never reached, since then nothing was shown. */
#define EX_LABELS 8
void ex_expect(int label, const char *what);
void ex_reach(int label);
/* How often, in the last ex_run(). */
uint64_t ex_reached(int label);

#endif
