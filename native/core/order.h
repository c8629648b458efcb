/*
 * Memory ordering, spelled here and nowhere else: what the ring code says about words that another domain shares, and
 * the counters that threads of this process share.
 *
 * A shared word may change between any two looks at it: read it once into a local, judge and use the local.
 * Which order is needed where (ring.h of the Xen tree; docs/explanation/rings.md):
 *   producer  bytes, store_release(prod), full_barrier, load(event)      tell when event was passed
 *   consumer  load_acquire(prod), bytes, store_release(cons), full_barrier, load(event)
 *   sleeper   store(event), full_barrier, load_acquire(the other's index) sleep only when it has not moved
 *
 * XS_ORDER_HOOKS names a header that puts a scheduler behind the same names (tests/native/explore.h).
 */
#ifndef XS_ORDER_H
#define XS_ORDER_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XS_PAGE 4096u

/* A word in memory shared with another domain. Its type keeps plain reads and writes out. */
typedef _Atomic uint32_t xs_word;

_Static_assert(sizeof(xs_word) == 4 && _Alignof(xs_word) == 4, "a shared word is a u32");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "a lock in private memory would not reach the other domain");

#ifdef XS_ORDER_HOOKS
#include XS_ORDER_HOOKS
#else

/* What comes later is not done before it. */
static inline uint32_t xs_load_acquire(const xs_word *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

static inline uint32_t xs_load_relaxed(const xs_word *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

/* What came earlier, reads included, is done before it. */
static inline void xs_store_release(xs_word *word, uint32_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

static inline void xs_store_relaxed(xs_word *word, uint32_t value)
{
	atomic_store_explicit(word, value, memory_order_relaxed);
}

/* Stores before it are seen by others before any load after it: the one order that release and acquire do not give. */
static inline void xs_full_barrier(void)
{
#if defined(__SANITIZE_THREAD__) && defined(__GNUC__) && !defined(__clang__)
/* It is executed; TSan only does not learn from it, and no byte of ours depends on it alone. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
	atomic_thread_fence(memory_order_seq_cst);
#pragma GCC diagnostic pop
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Copies of shared bytes. The compiler may not look at the source again instead of at the copy (XSA-155). */
static inline void xs_copy_from_shared(void *copy, const void *shared, size_t length)
{
	memcpy(copy, shared, length);
	atomic_signal_fence(memory_order_seq_cst);
}

static inline void xs_copy_to_shared(void *shared, const void *bytes, size_t length)
{
	memcpy(shared, bytes, length);
}

#endif

/* A position that the kernel shares with this process, and only grows. */
typedef _Atomic uint64_t xs_position;

static inline uint64_t xs_position_acquire(const xs_position *position)
{
	return atomic_load_explicit(position, memory_order_acquire);
}

static inline void xs_position_release(xs_position *position, uint64_t value)
{
	atomic_store_explicit(position, value, memory_order_release);
}

/* A counter that threads of this process add to; it orders nothing. */
typedef _Atomic uint64_t xs_count;

static inline void xs_count_add(xs_count *count, uint64_t n)
{
	atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

static inline void xs_count_sub(xs_count *count, uint64_t n)
{
	atomic_fetch_sub_explicit(count, n, memory_order_relaxed);
}

static inline uint64_t xs_count_get(const xs_count *count)
{
	return atomic_load_explicit(count, memory_order_relaxed);
}

/* Something that happened, for other threads of this process: who sees it sees what was done before it. */
typedef _Atomic uint32_t xs_flag;

static inline void xs_flag_set(xs_flag *flag)
{
	atomic_store_explicit(flag, 1, memory_order_release);
}

static inline void xs_flag_clear(xs_flag *flag)
{
	atomic_store_explicit(flag, 0, memory_order_release);
}

static inline uint32_t xs_flag_get(const xs_flag *flag)
{
	return atomic_load_explicit(flag, memory_order_acquire);
}

#endif
