// What the self-tests of the stand-ins share: the calls that they make, declared here because no header of NVIDIA's is
// needed to build them, and a small fixture.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "numbers.h"

using Device = uintptr_t;
using Handle = void*;

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(Handle*, int);
int cuCtxSetCurrent(Handle);
int cuMemAlloc_v2(Device*, size_t);
int cuMemFree_v2(Device);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemcpyHtoDAsync_v2(Device, const void*, size_t, Handle);
int cuMemcpyDtoHAsync_v2(void*, Device, size_t, Handle);
int cuMemcpyDtoDAsync_v2(Device, Device, size_t, Handle);
int cuMemsetD32Async(Device, unsigned, size_t, Handle);
int cuStreamCreateWithPriority(Handle*, unsigned, int);
int cuStreamSynchronize(Handle);
int cuStreamWaitEvent(Handle, Handle, unsigned);
int cuEventCreate(Handle*, unsigned);
int cuEventRecord(Handle, Handle);
int cuEventElapsedTime_v2(float*, Handle, Handle);
int cuModuleLoadData(Handle*, const void*);
int cuModuleGetFunction(Handle*, Handle, const char*);
int cuModuleUnload(Handle);
int cuModuleGetFunctionCount(unsigned*, Handle);
int cuModuleEnumerateFunctions(Handle*, unsigned, Handle);
int cuFuncLoad(Handle);
int cuLaunchKernel(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**,
                   void**);
int cuStreamBeginCapture_v2(Handle, int);
int cuStreamEndCapture(Handle, Handle*);
int cuGraphInstantiateWithFlags(Handle*, Handle, unsigned long long);
int cuGraphLaunch(Handle, Handle);
int nvrtcCreateProgram(Handle*, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(Handle, int, const char* const*);
int nvrtcGetCUBINSize(Handle, size_t*);
int nvrtcGetCUBIN(Handle, char*);
int nvrtcGetProgramLogSize(Handle, size_t*);
int nvrtcGetProgramLog(Handle, char*);
int nvrtcDestroyProgram(Handle*);
}

/// Ends the test with the place unless a condition holds.
#define REQUIRE(condition)                                                                  \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: `%s` does not hold\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/// A device with two streams.
struct Fixture {
    Handle context = nullptr, stream = nullptr, other = nullptr;
    explicit Fixture(int device = 0) {
        REQUIRE(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, device) == 0 && cuCtxSetCurrent(context) == 0);
        REQUIRE(cuStreamCreateWithPriority(&stream, 1, 0) == 0 && cuStreamCreateWithPriority(&other, 1, 0) == 0);
    }
    /// With the module, where somebody asks for it.
    Handle compile(const char* source, const char* kernel, Handle* loaded = nullptr) const;
    Device buffer(size_t bytes) const {
        Device at = 0;
        REQUIRE(cuMemAlloc_v2(&at, bytes) == 0 && at % 512 == 0);
        return at;
    }
    template <class T>
    Device upload(const std::vector<T>& values) const {
        const Device at = buffer(values.size() * sizeof(T));
        REQUIRE(cuMemcpyHtoDAsync_v2(at, values.data(), values.size() * sizeof(T), stream) == 0);
        return at;
    }
    /// Values that all types hold exactly.
    Device upload(Type type, const std::vector<float>& values) const {
        std::vector<unsigned char> bytes(values.size() * bytes_of(type));
        for (size_t i = 0; i < values.size(); i++) store(type, bytes.data(), i, values[i]);
        return upload(bytes);
    }
    template <class T>
    std::vector<T> download(Device at, size_t count) const {
        std::vector<T> values(count);
        REQUIRE(cuMemcpyDtoHAsync_v2(values.data(), at, count * sizeof(T), stream) == 0);
        return values;
    }
    /// Launches on `stream` and answers with the error of the launch or of what it did.
    template <class... P>
    int launch(Handle function, unsigned blocks, unsigned threads, unsigned shared, P... parameters) const {
        void* pointers[] = {&parameters..., nullptr};
        const int result = cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, pointers, nullptr);
        return result ? result : cuStreamSynchronize(stream);
    }
};

/// Small whole numbers, positive and negative.
inline std::vector<float> numbers(size_t count, int from) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; i++) values[i] = (float)((int)(i * 7 + (size_t)from) % 11 - 5);
    return values;
}

/// A test by its name; selftest.cpp goes through the tables.
using Test = void (*)(const Fixture&);
struct Entry {
    const char* name;
    Test run;
};
#define TEST(NAME) {#NAME, NAME}
extern const std::vector<Entry> driver_tests, blas_tests, dnn_tests, nccl_tests;
