// CUDA's execution model on the CPU, included before every kernel source by the stand-in NVRTC.
//
// A kernel is compiled as an ordinary function. Its threads are run by the driver (driver/engine.cpp) one after the
// other, each until it waits at a barrier or in a warp operation, on one thread of the system. So variables in shared
// memory are static variables and atomics are plain arithmetic. The identifiers `__global__`, `__shared__` and
// `__launch_bounds__` are no macros here: nvrtc.cpp finds and replaces them after preprocessing.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>

#include "kernel_abi.h"

#define PHALANX_EMULATION 1

// What a module shares with the driver.
static PhalanxPlace phalanx_place;
static const PhalanxHooks* phalanx_hooks;

#include "emulation_types.h"
// Types come first: the functions below use them.
#include "emulation_math.h"

#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __CUDACC_RTC__ 1

#define threadIdx (phalanx_place.thread)
#define blockIdx (phalanx_place.block)
#define blockDim (dim3(phalanx_place.block_size))
#define gridDim (dim3(phalanx_place.grid_size))
constexpr int warpSize = 32;

#undef assert
#define assert(condition) ((condition) ? (void)0 : phalanx_hooks->trap("assertion `" #condition "` does not hold"))
inline void __trap() { phalanx_hooks->trap("__trap() was called"); }

// Barriers and fences.
inline void __syncthreads() { phalanx_hooks->block_barrier(PhalanxVote::none, 0); }
inline int __syncthreads_count(int p) { return phalanx_hooks->block_barrier(PhalanxVote::count, p != 0); }
inline int __syncthreads_and(int p) { return phalanx_hooks->block_barrier(PhalanxVote::all, p != 0); }
inline int __syncthreads_or(int p) { return phalanx_hooks->block_barrier(PhalanxVote::any, p != 0); }
// Threads of a launch take turns on one thread of the system, so every write is seen at once.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// Operations of a warp.
constexpr unsigned phalanx_full_warp = 0xffffffffu;

inline unsigned phalanx_lane() {
    const uint3 t = phalanx_place.thread, b = phalanx_place.block_size;
    return (t.x + b.x * (t.y + b.y * t.z)) % 32;
}
inline void __syncwarp(unsigned mask = phalanx_full_warp) {
    phalanx_hooks->warp_exchange(PhalanxWarp::sync, mask, 0, 0);
}
inline unsigned __activemask() { return phalanx_hooks->active_mask(); }
inline unsigned __ballot_sync(unsigned mask, int p) {
    return (unsigned)phalanx_hooks->warp_exchange(PhalanxWarp::ballot, mask, p != 0, 0);
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }

template <class T>
uint64_t phalanx_to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a warp operation moves at most eight bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T>
T phalanx_from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
T phalanx_shuffle(unsigned mask, T value, unsigned source) {
    return phalanx_from_bits<T>(
        phalanx_hooks->warp_exchange(PhalanxWarp::shuffle, mask, phalanx_to_bits(value), source));
}

// A segment of `width` lanes shuffles within itself; a lane whose source lies outside keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = phalanx_lane(), first = lane & ~(unsigned)(width - 1);
    return phalanx_shuffle(mask, value, first + ((unsigned)source & (unsigned)(width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = phalanx_lane(), inside = lane & (unsigned)(width - 1);
    return phalanx_shuffle(mask, value, inside >= delta ? lane - delta : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = phalanx_lane(), inside = lane & (unsigned)(width - 1);
    return phalanx_shuffle(mask, value, inside + delta < (unsigned)width ? lane + delta : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const unsigned lane = phalanx_lane(), source = lane ^ (unsigned)lanes;
    const unsigned end = (lane & ~(unsigned)(width - 1)) + (unsigned)width;
    return phalanx_shuffle(mask, value, source < end ? source : lane);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
    return (unsigned)phalanx_hooks->warp_exchange(PhalanxWarp::match, mask, phalanx_to_bits(value), 0);
}

#define PHALANX_REDUCE(NAME, TYPE, WHAT)                                                                 \
    inline TYPE NAME(unsigned mask, TYPE value) {                                                        \
        return (TYPE)phalanx_hooks->warp_exchange(PhalanxWarp::WHAT, mask, (uint64_t)(int64_t)value, 0); \
    }
PHALANX_REDUCE(__reduce_add_sync, int, add)
PHALANX_REDUCE(__reduce_add_sync, unsigned, add)
PHALANX_REDUCE(__reduce_min_sync, int, min_signed)
PHALANX_REDUCE(__reduce_min_sync, unsigned, min)
PHALANX_REDUCE(__reduce_max_sync, int, max_signed)
PHALANX_REDUCE(__reduce_max_sync, unsigned, max)
PHALANX_REDUCE(__reduce_and_sync, unsigned, bit_and)
PHALANX_REDUCE(__reduce_or_sync, unsigned, bit_or)
PHALANX_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef PHALANX_REDUCE

// Atomics; each answers with the value before. Types as CUDA has them, so that a wrong one does not compile here
// either.
#define PHALANX_ATOMIC(NAME, TYPE, NEXT)     \
    inline TYPE NAME(TYPE* at, TYPE value) { \
        const TYPE old = *at;                \
        *at = (NEXT);                        \
        return old;                          \
    }
#define PHALANX_ATOMIC_INTEGERS(NAME, NEXT) \
    PHALANX_ATOMIC(NAME, int, NEXT)         \
    PHALANX_ATOMIC(NAME, unsigned, NEXT)    \
    PHALANX_ATOMIC(NAME, unsigned long long, NEXT)
PHALANX_ATOMIC_INTEGERS(atomicAdd, old + value)
PHALANX_ATOMIC(atomicAdd, float, old + value)
PHALANX_ATOMIC(atomicAdd, double, old + value)
PHALANX_ATOMIC(atomicSub, int, old - value)
PHALANX_ATOMIC(atomicSub, unsigned, old - value)
PHALANX_ATOMIC_INTEGERS(atomicExch, value)
PHALANX_ATOMIC(atomicExch, float, value)
PHALANX_ATOMIC_INTEGERS(atomicMin, old < value ? old : value)
PHALANX_ATOMIC(atomicMin, long long, old < value ? old : value)
PHALANX_ATOMIC_INTEGERS(atomicMax, old < value ? value : old)
PHALANX_ATOMIC(atomicMax, long long, old < value ? value : old)
PHALANX_ATOMIC_INTEGERS(atomicAnd, old& value)
PHALANX_ATOMIC_INTEGERS(atomicOr, old | value)
PHALANX_ATOMIC_INTEGERS(atomicXor, old ^ value)
PHALANX_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
PHALANX_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)
#undef PHALANX_ATOMIC_INTEGERS
#undef PHALANX_ATOMIC

#define PHALANX_ATOMIC_CAS(TYPE)                                 \
    inline TYPE atomicCAS(TYPE* at, TYPE expected, TYPE value) { \
        const TYPE old = *at;                                    \
        if (old == expected) *at = value;                        \
        return old;                                              \
    }
PHALANX_ATOMIC_CAS(int)
PHALANX_ATOMIC_CAS(unsigned)
PHALANX_ATOMIC_CAS(unsigned short)
PHALANX_ATOMIC_CAS(unsigned long long)
#undef PHALANX_ATOMIC_CAS

// Loads and stores with a cache's hint.
template <class T>
T __ldg(const T* at) {
    return *at;
}
template <class T>
T __ldca(const T* at) {
    return *at;
}
template <class T>
T __ldcg(const T* at) {
    return *at;
}
template <class T>
T __ldcs(const T* at) {
    return *at;
}
template <class T>
T __ldcv(const T* at) {
    return *at;
}
template <class T>
T __ldlu(const T* at) {
    return *at;
}
template <class T>
void __stwb(T* at, T value) {
    *at = value;
}
template <class T>
void __stcg(T* at, T value) {
    *at = value;
}
template <class T>
void __stcs(T* at, T value) {
    *at = value;
}
template <class T>
void __stwt(T* at, T value) {
    *at = value;
}

/// Time passes by calls: only that it grows can be relied on. (Local static variables are taken for shared memory.)
static long long phalanx_clock = 0;
inline long long clock64() { return ++phalanx_clock; }
inline int clock() { return (int)clock64(); }
inline void __nanosleep(unsigned) {}

// The table of kernels that nvrtc.cpp appends is made of these.
template <class Function, Function* kernel>
struct PhalanxDescribe;

template <class... Parameters, void (*kernel)(Parameters...)>
struct PhalanxDescribe<void(Parameters...), kernel> {
    // One element more than parameters: an array of none is no C++.
    static constexpr PhalanxParameter sizes[sizeof...(Parameters) + 1] = {{sizeof(Parameters), alignof(Parameters)}...,
                                                                          {0, 1}};

    template <size_t... I>
    struct Indices {};
    template <size_t N, size_t... I>
    struct Count : Count<N - 1, N - 1, I...> {};
    template <size_t... I>
    struct Count<0, I...> {
        using type = Indices<I...>;
    };
    template <size_t... I>
    static void call(void** parameters, Indices<I...>) {
        kernel(*static_cast<std::remove_reference_t<Parameters>*>(parameters[I])...);
    }
    static void run(void** parameters) { call(parameters, typename Count<sizeof...(Parameters)>::type{}); }
    static constexpr PhalanxKernel entry(const char* name, unsigned thread_limit) {
        return {name, run, sizeof...(Parameters), sizes, thread_limit};
    }
};
