// Tests of the stand-ins for NVRTC and the driver. A name that ends in `_is_found` plants a fault; the script expects a report of
// it, and the test that the call failed.
#include <chrono>

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

}  // namespace

const std::vector<Entry> driver_tests = {
    {"vector_add", vector_add},
    {"block_reduction", block_reduction},
};
const std::vector<Entry> blas_tests, dnn_tests, nccl_tests;
