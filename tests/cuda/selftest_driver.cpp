// Tests of the stand-ins for NVRTC and the driver. A name that ends in `_is_found` plants a fault; the script expects a
// report of it, and the test that the call failed.
#include <chrono>
#include <thread>

#include "selftest.h"

namespace {

void vector_add(const Fixture& f) {
    const Handle add = f.compile(
        R"(#define KERNEL(NAME) extern "C" __global__ void __launch_bounds__(256) NAME
KERNEL(add)(const float* __restrict__ a, const float* b, float* c, long long n) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) c[i] = a[i] + b[i];
})",
        "add");
    const size_t n = 1 << 20;
    std::vector<float> a(n), b(n);
    for (size_t i = 0; i < n; i++) a[i] = (float)i, b[i] = 0.5f * (float)i;
    const Device da = f.upload(a), db = f.upload(b), dc = f.buffer(4 * n);
    REQUIRE(f.launch(add, n / 256, 256, 0, da, db, dc, (long long)n) == 0);
    const auto begin = std::chrono::steady_clock::now();
    REQUIRE(f.launch(add, n / 256, 256, 0, da, db, dc, (long long)n) == 0);
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    printf("a million sums, one a thread: %.1f ms\n", ms);
    const auto c = f.download<float>(dc, n);
    for (size_t i = 0; i < n; i++) REQUIRE(c[i] == a[i] + b[i]);
}

const char* REDUCTION = R"(
template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
extern "C" __global__ void reduce(const float* x, float* sums, int n) {
    extern __shared__ __align__(16) float partial[];
    __shared__ float total;
    float v = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    BARRIER
    if (threadIdx.x < 32) {
        v = warp_sum(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) total = v;
    }
    __syncthreads();
    if (threadIdx.x == blockDim.x - 1) sums[blockIdx.x] = total;
}
)";

int reduce(const Fixture& f, const char* barrier, std::vector<float>& sums) {
    const std::string source = std::string("#define BARRIER ") + barrier + REDUCTION;
    const Handle kernel = f.compile(source.c_str(), "reduce");
    const Device x = f.upload(std::vector<float>(10000, 1.0f)), out = f.buffer(4 * sums.size());
    const int result = f.launch(kernel, (unsigned)sums.size(), 256, 8 * 4, x, out, 10000);
    if (result == 0) sums = f.download<float>(out, sums.size());
    return result;
}

void block_reduction(const Fixture& f) {
    std::vector<float> sums(7);
    REQUIRE(reduce(f, "__syncthreads();", sums) == 0);
    float total = 0;
    for (float s : sums) total += s;
    REQUIRE(total == 10000.0f);
}

void warp_operations(const Fixture& f) {
    const Handle kernel = f.compile(
        R"(extern "C" __global__ void warps(int* out) {
    const int lane = threadIdx.x % 32;
    out[threadIdx.x] = __shfl_up_sync(~0u, lane, 3) + 100 * __shfl_down_sync(~0u, lane, 1, 8);
    out[threadIdx.x] += 10000 * __shfl_sync(~0u, lane, 5);
    const unsigned upper = 0xffff0000u;
    if (lane < 16) out[threadIdx.x] += 1000000 * (__ballot_sync(0xffffu, lane % 2) == 0xaaaau);
    else out[threadIdx.x] += 2000000 * (__activemask() == ~0u && __any_sync(upper, lane == 31) && !__all_sync(upper, lane == 31));
    __syncwarp();
    out[threadIdx.x] += 10000000 * (__reduce_add_sync(~0u, -1) == -32) + 20000000 * (__syncthreads_count(lane == 0) == 2);
})",
        "warps");
    const Device out = f.buffer(4 * 64);
    REQUIRE(f.launch(kernel, 1, 64, 0, out) == 0);
    const auto got = f.download<int>(out, 64);
    for (int t = 0; t < 64; t++) {
        const int lane = t % 32, up = lane < 3 ? lane : lane - 3, down = lane % 8 == 7 ? lane : lane + 1;
        REQUIRE(got[(size_t)t] == up + 100 * down + 50000 + (lane < 16 ? 1000000 : 2000000) + 30000000);
    }
}

void parameters_by_value(const Fixture& f) {
    struct Shape {
        long long strides[3];
        float scale;
        char axis;
    };
    const Handle kernel = f.compile(
        R"(struct Shape { long long strides[3]; float scale; char axis; };
template <class T> __device__ void fill(T* out, const Shape& s) {
    __shared__ T kept[4];
    kept[threadIdx.x] = (T)(s.strides[threadIdx.x % 3] * s.scale) + s.axis;
    __syncthreads();
    out[threadIdx.x] = kept[threadIdx.x];
}
extern "C" __global__ void shape(double* out, const __grid_constant__ Shape s, char more) {
    fill(out, s);
    out[threadIdx.x] += more;
})",
        "shape");
    const Device out = f.buffer(8 * 4);
    REQUIRE(f.launch(kernel, 1, 4, 0, out, Shape{{10, 20, 30}, 0.5f, 7}, (char)1) == 0);
    REQUIRE(f.download<double>(out, 4) == (std::vector<double>{13, 18, 23, 13}));
}

void new_memory_is_poisoned(const Fixture& f) {
    const Device at = f.buffer(100);
    for (float v : f.download<float>(at, 25)) REQUIRE(isnan(v));
    const Handle kernel = f.compile(
        "extern \"C\" __global__ void keep(float* out) { __shared__ float x[32]; if (threadIdx.x > 3) x[threadIdx.x] = "
        "1; out[threadIdx.x] = x[threadIdx.x]; }",
        "keep");
    const Device out = f.buffer(128);
    REQUIRE(cuMemsetD32Async(out, 0, 32, f.stream) == 0 && f.launch(kernel, 2, 32, 0, out) == 0);
    const auto kept = f.download<float>(out, 32);
    for (size_t i = 0; i < 32; i++) REQUIRE(isnan(kept[i]) == (i <= 3));
}

/// y = 2 x on `stream`, as a graph, whose nodes stand on two streams.
void graph_replays(const Fixture& f) {
    const Handle twice = f.compile(
        "extern \"C\" __global__ void twice(const float* x, float* y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }",
        "twice");
    const Device x = f.upload(std::vector<float>(8, 1.0f)), y = f.buffer(32), z = f.buffer(32);
    REQUIRE(cuStreamSynchronize(f.stream) == 0);
    Handle forked = nullptr, joined = nullptr, graph = nullptr, executable = nullptr;
    REQUIRE(cuEventCreate(&forked, 2) == 0 && cuEventCreate(&joined, 2) == 0);
    REQUIRE(cuStreamBeginCapture_v2(f.stream, 1) == 0);
    void* first[] = {(void*)&x, (void*)&y};
    REQUIRE(cuLaunchKernel(twice, 1, 1, 1, 8, 1, 1, 0, f.stream, first, nullptr) == 0);
    REQUIRE(cuEventRecord(forked, f.stream) == 0 && cuStreamWaitEvent(f.other, forked, 0) == 0);
    void* second[] = {(void*)&y, (void*)&z};
    REQUIRE(cuLaunchKernel(twice, 1, 1, 1, 8, 1, 1, 0, f.other, second, nullptr) == 0);
    REQUIRE(cuEventRecord(joined, f.other) == 0 && cuStreamWaitEvent(f.stream, joined, 0) == 0);
    REQUIRE(cuMemcpyDtoDAsync_v2(x, z, 32, f.stream) == 0);
    REQUIRE(cuStreamEndCapture(f.stream, &graph) == 0 && cuGraphInstantiateWithFlags(&executable, graph, 0) == 0);
    // Nothing has run yet; each launch multiplies by four.
    REQUIRE(f.download<float>(x, 8)[7] == 1.0f);
    for (int i = 0; i < 3; i++) REQUIRE(cuGraphLaunch(executable, f.stream) == 0);
    REQUIRE(f.download<float>(x, 8)[7] == 64.0f);
}

void unjoined_capture_is_found(const Fixture& f) {
    const Device x = f.buffer(32);
    Handle forked = nullptr, graph = nullptr;
    REQUIRE(cuEventCreate(&forked, 2) == 0 && cuStreamBeginCapture_v2(f.stream, 1) == 0);
    REQUIRE(cuEventRecord(forked, f.stream) == 0 && cuStreamWaitEvent(f.other, forked, 0) == 0);
    REQUIRE(cuMemsetD32Async(x, 1, 8, f.other) == 0);
    REQUIRE(cuStreamEndCapture(f.stream, &graph) == 904);
}

/// One float behind the end lies in the slack; the pattern there tells.
void write_behind_the_end_is_found(const Fixture& f) {
    const Handle kernel = f.compile(
        "extern \"C\" __global__ void fill(float* x, int n) { for (int i = threadIdx.x; i <= n; i += 32) x[i] = 1; }",
        "fill");
    REQUIRE(f.launch(kernel, 1, 32, 0, f.buffer(4 * 100), 100) == 700);
}

/// A full buffer ends at a page without access.
void read_behind_the_end_is_found(const Fixture& f) {
    const Handle kernel = f.compile(
        "extern \"C\" __global__ void look(float* x, int n) { float s = 0; for (int i = 0; i <= n; i++) s += x[i]; "
        "x[threadIdx.x] = s; }",
        "look");
    REQUIRE(f.launch(kernel, 1, 32, 0, f.buffer(4 * 128), 128) == 700);
}

void write_before_the_start_is_found(const Fixture& f) {
    const Handle kernel =
        f.compile("extern \"C\" __global__ void fill(float* x) { x[(int)threadIdx.x - 1] = 1; }", "fill");
    REQUIRE(f.launch(kernel, 1, 32, 0, f.buffer(4 * 32)) == 700);
}

void use_after_free_is_found(const Fixture& f) {
    const Handle kernel = f.compile("extern \"C\" __global__ void fill(float* x) { x[threadIdx.x] = 1; }", "fill");
    const Device x = f.buffer(4 * 32);
    REQUIRE(cuMemFree_v2(x) == 0);
    REQUIRE(f.launch(kernel, 1, 32, 0, x) == 700);
}

void index_outside_shared_array_is_found(const Fixture& f) {
    const Handle kernel = f.compile(
        "extern \"C\" __global__ void fill(float* x) { __shared__ float t[32]; t[threadIdx.x + 1] = 1; "
        "__syncthreads(); x[threadIdx.x] = t[threadIdx.x]; }",
        "fill");
    REQUIRE(f.launch(kernel, 1, 32, 0, f.buffer(4 * 32)) == 700);
}

void write_behind_dynamic_shared_is_found(const Fixture& f) {
    const Handle kernel = f.compile(
        "extern \"C\" __global__ void fill(float* x) { extern __shared__ float t[]; t[threadIdx.x + 1] = 1; "
        "__syncthreads(); x[threadIdx.x] = t[threadIdx.x]; }",
        "fill");
    REQUIRE(f.launch(kernel, 1, 32, 128, f.buffer(4 * 32)) == 719);
}

void misaligned_vector_is_found(const Fixture& f) {
    const Handle kernel =
        f.compile("extern \"C\" __global__ void fill(float* x) { *(float2*)(x + 1) = make_float2(1, 2); }", "fill");
    REQUIRE(f.launch(kernel, 1, 1, 0, f.buffer(4 * 32)) == 700);
}

void division_by_zero_is_found(const Fixture& f) {
    const Handle kernel =
        f.compile("extern \"C\" __global__ void divide(int* x, int d) { x[threadIdx.x] = 7 / d; }", "divide");
    REQUIRE(f.launch(kernel, 1, 32, 0, f.buffer(4 * 32), 0) == 700);
}

void endless_recursion_is_found(const Fixture& f) {
    const Handle kernel = f.compile(
        "__device__ __noinline__ int deep(int* x, int n) { volatile int a[64]; a[n % 64] = n; x[0] = a[n % 64]; return "
        "n < 0 ? 0 : deep(x, n + 1) + a[3]; }\n"
        "extern \"C\" __global__ void f(int* x) { x[1] = deep(x, 0); }",
        "f");
    REQUIRE(f.launch(kernel, 1, 1, 0, f.buffer(4 * 32)) == 700);
}

/// As with a real device everything fails after a fault; other processes are not concerned.
void context_is_lost_after_a_fault_that_is_found(const Fixture& f) {
    const Handle kernel = f.compile("extern \"C\" __global__ void fill(float* x) { x[threadIdx.x] = 1; }", "fill");
    const Device x = f.buffer(128);
    REQUIRE(f.launch(kernel, 1, 32, 0, Device(8)) == 700);
    Device more = 0;
    REQUIRE(f.launch(kernel, 1, 32, 0, x) == 700 && cuMemAlloc_v2(&more, 8) == 700 &&
            cuStreamSynchronize(f.stream) == 700);
}

void memory_ends(const Fixture& f) {
    Device first = 0, second = 0;
    const size_t three = (size_t)3 << 30;
    REQUIRE(f.context && cuMemAlloc_v2(&first, three) == 0 && cuMemAlloc_v2(&second, three) == 2);
    REQUIRE(cuMemFree_v2(first) == 0 && cuMemAlloc_v2(&second, three) == 0);
}

/// A kernel that several threads of the process launch on devices of their own: each has its own shared memory.
void devices_work_side_by_side(const Fixture&) {
    std::vector<std::thread> threads;
    for (int device = 0; device < 2; device++)
        threads.emplace_back([device] {
            const Fixture f(device);
            for (int i = 0; i < 20; i++) {
                std::vector<float> sums(3);
                REQUIRE(reduce(f, "__syncthreads();", sums) == 0);
                REQUIRE(sums[0] + sums[1] + sums[2] == 10000.0f);
            }
        });
    for (auto& t : threads) t.join();
}

/// Found with PHALANX_STANDIN_RACES=1, which the script sets.
void missing_barrier_is_found(const Fixture& f) {
    std::vector<float> sums(2);
    REQUIRE(reduce(f, "", sums) == 719);
}

void barrier_of_half_a_block_is_found(const Fixture& f) {
    std::vector<float> sums(2);
    REQUIRE(reduce(f, "if (threadIdx.x >= 128) return; __syncthreads();", sums) == 719);
}

void shuffle_with_an_ended_lane_is_found(const Fixture& f) {
    const Handle kernel = f.compile(
        "extern \"C\" __global__ void f(int* x) { if (threadIdx.x == 9) return; x[threadIdx.x] = __shfl_xor_sync(~0u, "
        "(int)threadIdx.x, 1); }",
        "f");
    REQUIRE(f.launch(kernel, 1, 32, 0, f.buffer(4 * 32)) == 719);
}

void too_many_threads_are_found(const Fixture& f) {
    const Handle kernel = f.compile("extern \"C\" __global__ void __launch_bounds__(2 * 32, 4) f() {}", "f");
    REQUIRE(f.launch(kernel, 1, 64, 0) == 0);
    REQUIRE(f.launch(kernel, 1, 65, 0) == 701);
}

/// A fill on one stream, a copy on the other. Lazy streams (the script sets PHALANX_STANDIN_STREAMS=1) tell whether the
/// copy waits.
bool copies_what_was_filled(const Fixture& f, bool wait) {
    const Device x = f.buffer(32), y = f.buffer(32);
    Handle filled = nullptr;
    REQUIRE(cuEventCreate(&filled, 2) == 0);
    REQUIRE(cuMemsetD32Async(x, 5, 8, f.other) == 0 && cuEventRecord(filled, f.other) == 0);
    if (wait) REQUIRE(cuStreamWaitEvent(f.stream, filled, 0) == 0);
    REQUIRE(cuMemcpyDtoDAsync_v2(y, x, 32, f.stream) == 0);
    return f.download<int>(y, 8)[7] == 5;
}
void lazy_streams_honour_events(const Fixture& f) { REQUIRE(copies_what_was_filled(f, true)); }
void lazy_streams_show_a_missing_wait(const Fixture& f) { REQUIRE(!copies_what_was_filled(f, false)); }

const char* FILL = "extern \"C\" __global__ void f(int* x, int y) { *x = y; }";

/// A kernel whose module is gone before it runs.
void lazy_launch_of_an_unloaded_module_is_found(const Fixture& f) {
    Handle module = nullptr;
    const Handle kernel = f.compile(FILL, "f", &module);
    Device x = f.buffer(4);
    int y = 5;
    void* parameters[] = {&x, &y};
    REQUIRE(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, f.stream, parameters, nullptr) == 0);
    REQUIRE(cuModuleUnload(module) == 0 && cuStreamSynchronize(f.stream) == 719);
}

/// What a first launch does to another stream's work, unless the kernel was loaded before.
void lazy_first_launch_waits_unless_loaded(const Fixture& f) {
    for (bool before : {false, true}) {
        Handle module = nullptr;
        const Handle kernel = f.compile(FILL, "f", &module);
        unsigned count = 0;
        Handle listed = nullptr;
        REQUIRE(cuModuleGetFunctionCount(&count, module) == 0 && count == 1);
        REQUIRE(cuModuleEnumerateFunctions(&listed, 1, module) == 0 && listed == kernel);
        if (before) REQUIRE(cuFuncLoad(listed) == 0);
        int* seen = nullptr;
        REQUIRE(cuMemHostAlloc((void**)&seen, 4, 1) == 0);
        *seen = 0;
        Device x = f.upload(std::vector<int>{7}), y = f.buffer(4);
        REQUIRE(cuStreamSynchronize(f.stream) == 0 && cuMemcpyDtoHAsync_v2(seen, x, 4, f.other) == 0);
        int value = 5;
        void* parameters[] = {&y, &value};
        REQUIRE(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, f.stream, parameters, nullptr) == 0);
        REQUIRE(*seen == (before ? 0 : 7));
        REQUIRE(cuStreamSynchronize(f.other) == 0 && *seen == 7);
    }
}

}  // namespace

const std::vector<Entry> driver_tests = {
    TEST(vector_add),
    TEST(block_reduction),
    TEST(warp_operations),
    TEST(parameters_by_value),
    TEST(new_memory_is_poisoned),
    TEST(graph_replays),
    TEST(unjoined_capture_is_found),
    TEST(write_behind_the_end_is_found),
    TEST(read_behind_the_end_is_found),
    TEST(write_before_the_start_is_found),
    TEST(use_after_free_is_found),
    TEST(index_outside_shared_array_is_found),
    TEST(write_behind_dynamic_shared_is_found),
    TEST(misaligned_vector_is_found),
    TEST(division_by_zero_is_found),
    TEST(endless_recursion_is_found),
    TEST(context_is_lost_after_a_fault_that_is_found),
    TEST(memory_ends),
    TEST(devices_work_side_by_side),
    TEST(missing_barrier_is_found),
    TEST(barrier_of_half_a_block_is_found),
    TEST(shuffle_with_an_ended_lane_is_found),
    TEST(too_many_threads_are_found),
    TEST(lazy_streams_honour_events),
    TEST(lazy_streams_show_a_missing_wait),
    TEST(lazy_launch_of_an_unloaded_module_is_found),
    TEST(lazy_first_launch_waits_unless_loaded),
};
