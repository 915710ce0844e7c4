// What a compiled kernel module and the stand-in driver know of each other. Both sides include this file: the modules
// that libnvrtc makes (through emulation.h) and driver/.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};

/// Where the thread that runs now stands. The driver writes it before it starts or resumes a thread.
struct PhalanxPlace {
    uint3 thread, block, block_size, grid_size;
    unsigned char* dynamic_shared;
};

enum class PhalanxVote : int { none, count, all, any };

enum class PhalanxWarp : int {
    sync,
    shuffle,
    ballot,
    match,
    add,
    min,
    max,
    min_signed,
    max_signed,
    bit_and,
    bit_or,
    bit_xor
};

/// What a kernel calls in the driver.
struct PhalanxHooks {
    /// Waits for every thread of the block; the answer is the vote over `predicate`.
    int (*block_barrier)(PhalanxVote vote, int predicate);
    /// Waits for the lanes in `mask`. A shuffle answers with the value of lane `source`; the others combine the values.
    uint64_t (*warp_exchange)(PhalanxWarp what, unsigned mask, uint64_t value, unsigned source);
    /// The lanes of the warp that have not ended.
    unsigned (*active_mask)();
    /// Ends the launch with an error.
    void (*trap)(const char* why);
};

struct PhalanxParameter {
    size_t bytes, alignment;
};

struct PhalanxKernel {
    const char* name;
    /// Calls the kernel with parameters of its own types, read through pointers as cuLaunchKernel gets them.
    void (*run)(void** parameters);
    unsigned parameter_count;
    const PhalanxParameter* parameters;
    /// The first argument of __launch_bounds__, 0 without one.
    unsigned thread_limit;
};

/// The symbol `phalanx_module` of every module.
struct PhalanxModule {
    unsigned version;
    unsigned kernel_count;
    const PhalanxKernel* kernels;
    PhalanxPlace* place;
    const PhalanxHooks** hooks;
};

constexpr unsigned PHALANX_MODULE_VERSION = 1;
