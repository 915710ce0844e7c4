// What the stand-ins for the other libraries ask of the stand-in driver. They link against libcuda.so.1, so that all
// agree on one table of allocations and on the streams.
#pragma once
#include <stddef.h>
#include <stdlib.h>

#include <atomic>
#include <functional>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

/// Prints `cuda stand-in: TEXT` on standard error. Tests look for it.
extern "C" void phalanx_standin_report(const char* text);

/// 1 when `bytes` bytes from `at` lie within one live buffer; else 0, after a report that begins with `what`.
extern "C" int phalanx_standin_check(const void* at, size_t bytes, const char* what);

/// Appends work to a stream (a CUstream); during a capture it becomes a node, and `run` is called at each launch of the
/// graph. `run` answers with 0 or a CUresult; `release` is called once, when nobody can run the work any more. The
/// answer is 0 or a CUresult.
extern "C" int phalanx_standin_enqueue(void* stream, int (*run)(void*), void* argument, void (*release)(void*));

/// To be called before a library's work: its kernels of the name `code` come to the device at their first use. 0, or after a
/// report 1 where collectives are on their way, which a device may wait for then, without an end if another rank does not come.
extern "C" int phalanx_standin_load(const char* code);

/// The number of collectives that are queued in the current context and not done; null without one.
extern "C" std::atomic<int>* phalanx_standin_collectives();

/// The version that a library says it is: of PHALANX_STANDIN_<library>_VERSION, else its own.
inline long standin_version(const char* library, long own) {
    const char* said = getenv(("PHALANX_STANDIN_" + std::string(library) + "_VERSION").c_str());
    return said && *said ? atol(said) : own;
}

namespace standin {

inline void report(const std::string& text) { phalanx_standin_report(text.c_str()); }

inline int enqueue(void* stream, std::function<int()> work) {
    return phalanx_standin_enqueue(
        stream, [](void* f) { return (*static_cast<std::function<int()>*>(f))(); },
        new std::function<int()>(std::move(work)), [](void* f) { delete static_cast<std::function<int()>*>(f); });
}

}  // namespace standin
