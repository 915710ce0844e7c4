// What the parts of the stand-in driver know of each other.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../standin.h"

/// Values of CUresult that are used here.
enum Result : int {
    success = 0,
    invalid_value = 1,
    out_of_memory = 2,
    not_initialized = 3,
    no_device = 100,
    invalid_device = 101,
    invalid_image = 200,
    invalid_context = 201,
    invalid_handle = 400,
    not_found = 500,
    not_ready = 600,
    illegal_address = 700,
    launch_out_of_resources = 701,
    launch_failed = 719,
    not_supported = 801,
    capture_unsupported = 900,
    capture_invalidated = 901,
    capture_merge = 902,
    capture_unmatched = 903,
    capture_unjoined = 904,
    capture_isolation = 905,
    captured_event = 907,
    capture_wrong_thread = 908,
    unknown = 999,
};

using Address = uintptr_t;

/// Properties of the device that kernels are checked against.
constexpr int MULTIPROCESSORS = 4, THREADS_PER_BLOCK = 1024, THREADS_PER_MULTIPROCESSOR = 2048;
constexpr int SHARED_MEMORY = 48 << 10, SHARED_MEMORY_OPT_IN = 227 << 10, SHARED_MEMORY_OF_MULTIPROCESSOR = 228 << 10;

/// A device's primary context; it lives as long as the process.
struct Context {
    int device = 0;
    /// The first error of work on the device; like a real context's it stays.
    std::atomic<int> failure{success};
    /// Collectives that were queued and are not done.
    std::atomic<int> collectives{0};
};

Context* primary_context(int device);
int device_count();
size_t device_memory();

/// Sets `context` to the calling thread's context, or answers with the error that calls without one get. The context's
/// failure is such an error, too.
Result current_context(Context*& context);
#define WITH_CONTEXT(NAME)   \
    Context* NAME = nullptr; \
    if (Result without = current_context(NAME)) return without

std::string environment(const char* name, const char* otherwise);
bool environment_flag(const char* name);
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* error_name(int result);

// memory.cpp
struct Region {
    Address start;
    size_t bytes;
    Context* context;
    bool host;
};
/// Whether `at` lies in live memory of ours (device, or host memory that is pinned), and in which.
bool find_region(Address at, Region& found);
/// Reports, beginning with `what`, unless all bytes lie in one live device buffer (with `host_too`: or in pinned
/// memory).
bool check_range(Address at, size_t bytes, const char* what, bool host_too = false);
/// "12 bytes behind the end of a buffer of 4096 bytes", for reports. Is safe in a signal handler.
std::string describe_address(Address at);
/// Whether nobody wrote around the context's buffers; reports and repairs what was written.
bool check_red_zones(Context* context, const char* who);
/// All bytes of the context's buffers.
struct Snapshot {
    std::vector<Region> regions;
    std::vector<std::vector<unsigned char>> bytes;
};
void take_snapshot(Context* context, Snapshot& snapshot);
void restore_snapshot(const Snapshot& snapshot);

// streams.cpp
struct Stream;
/// Work of a stream; it answers with 0, an error, or not_ready to be called again. It may run more than once, in
/// graphs.
using Work = std::function<int()>;
Result enqueue(Stream* handle, Work work);
/// Runs everything that was enqueued in the context; its error.
Result finish_all(Context* context);
bool lazy_streams();
/// Whether a capture that forbids calls such as cuMemAlloc is in progress on this thread (or globally); reports it.
bool forbidden_by_capture(const char* call);
/// Whether this very stream is capturing.
bool is_capturing(Stream* handle);
/// Runs a stream to its end, or without `waiting` as far as it goes.
Result finish(Stream* handle, bool waiting = true);

// modules.cpp and engine.cpp
struct Launch {
    const char* kernel;
    void (*run)(void**);
    void** parameters;
    unsigned grid[3], block[3];
    unsigned dynamic_shared;
};
struct SharedVariable {
    unsigned char* at;
    size_t bytes;
};
/// Where a module keeps what threads see.
struct ModuleState {
    struct PhalanxPlace* place;
    const struct PhalanxHooks** hooks;
    std::vector<SharedVariable> shared;
};
/// The order in which threads of a block, and blocks, are run.
enum class Order { ascending, descending };
/// Runs all blocks on the calling thread.
Result run_launch(const Launch& launch, const ModuleState& module, Order order);
