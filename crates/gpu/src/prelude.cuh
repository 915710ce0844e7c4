// What stands before every kernel source: types, conversions, walks over strided operands, reductions in a fixed order,
// random numbers. Compiled by NVRTC without any header; the tests compile it as C++ too, with PHALANX_EMULATION defined,
// against a header that plays a GPU on the CPU. Kernels compute in f32 whatever they read and write.

#define KERNEL extern "C" __global__ void
#define DEV __device__ __forceinline__
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };

// DType's codes, as the host numbers them (`ops/cuda.rs`).
enum { F32 = 0, F64 = 1, U8 = 2, I64 = 3, F16 = 4, BF16 = 5 };

DEV float to_f32(float x) { return x; }
DEV float to_f32(double x) { return (float)x; }
DEV float to_f32(u8 x) { return (float)x; }
DEV float to_f32(i64 x) { return (float)x; }
DEV float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEV float to_f32(f16 x) {
#ifdef PHALANX_EMULATION
    _Float16 h;
    __builtin_memcpy(&h, &x.bits, 2);
    return (float)h;
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// Rounded to the nearest, ties to even.
template <class T> DEV T from_f32(float x);
template <> DEV float from_f32<float>(float x) { return x; }
template <> DEV double from_f32<double>(float x) { return x; }
template <> DEV bf16 from_f32<bf16>(float x) {
    bf16 y;
#ifdef PHALANX_EMULATION
    u32 b = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (u16)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}
template <> DEV f16 from_f32<f16>(float x) {
    f16 y;
#ifdef PHALANX_EMULATION
    _Float16 h = (_Float16)x;
    __builtin_memcpy(&y.bits, &h, 2);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}

template <class T> DEV float load(const T* p, i64 i) { return to_f32(p[i]); }
template <class T> DEV void store(T* p, i64 i, float x) { p[i] = from_f32<T>(x); }

// An operand whose float type is known when the kernel runs: the branch is the same for all threads.
DEV float load_any(const void* p, int dtype, i64 i) {
    switch (dtype) {
    case BF16: return load((const bf16*)p, i);
    case F16: return load((const f16*)p, i);
    case F64: return load((const double*)p, i);
    default: return load((const float*)p, i);
    }
}
DEV void store_any(void* p, int dtype, i64 i, float x) {
    switch (dtype) {
    case BF16: store((bf16*)p, i, x); break;
    case F16: store((f16*)p, i, x); break;
    case F64: store((double*)p, i, x); break;
    default: store((float*)p, i, x);
    }
}

// N elements read and written at once; 16 bytes are the widest access. Halves stay two to a register: split into elements
// of their own they would take twice as many.
template <class T, int N, bool PAIRS> struct alignas(sizeof(T) * N) Elements {
    T v[N];
    DEV float at(int i) const { return to_f32(v[i]); }
    DEV void set(int i, float x) { v[i] = from_f32<T>(x); }
};
DEV float half_word(bf16, u32 word, bool upper) { return __uint_as_float(upper ? word & 0xffff0000u : word << 16); }
DEV float half_word(f16, u32 word, bool upper) { return to_f32(f16{(u16)(upper ? word >> 16 : word)}); }
template <class T, int N> struct alignas(sizeof(T) * N) Elements<T, N, true> {
    u32 w[N / 2];
    DEV float at(int i) const { return half_word(T{}, w[i / 2], i % 2); }
    DEV void set(int i, float x) {
        u32 bits = from_f32<T>(x).bits;
        w[i / 2] = i % 2 ? (w[i / 2] & 0xffffu) | bits << 16 : (w[i / 2] & 0xffff0000u) | bits;
    }
};
template <class T, int N> struct Pack : Elements<T, N, sizeof(T) == 2 && N % 2 == 0> {};
template <class T> constexpr int WIDE = 16 / (int)sizeof(T);
template <int N, class T> DEV Pack<T, N> load_pack(const T* p) { return *(const Pack<T, N>*)p; }
// load_pack, which where `more` is set begins to bring what lies `ahead` elements further into the L2 cache, without a register for it.
template <int N, class T> DEV Pack<T, N> load_pack_ahead(const T* p, bool more, i64 ahead) {
#ifndef PHALANX_EMULATION
    if (more) asm volatile("prefetch.global.L2 [%0];" ::"l"(p + ahead));
#endif
    return load_pack<N>(p);
}
// To global memory. In PTX, as the compiler takes a store of 16 bytes apart when it has made the words one by one.
template <int N, class T> DEV void store_pack(T* p, const Pack<T, N>& v) {
#ifndef PHALANX_EMULATION
    if constexpr (sizeof(v) == 16) {
        u32 w[4];
        memcpy(w, &v, 16);
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                     :: "l"(__cvta_generic_to_global(p)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
        return;
    }
#endif
    *(Pack<T, N>*)p = v;
}

// The first element of a thread and the step to its next one, over a grid that may be smaller than the work.
#define EACH(i, n) u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (u64)(n); i += (u64)gridDim.x * blockDim.x

// Division by a number that is known on the host (`cuda::divisor`): `under` of numbers below 2^31, `of` of all.
struct Divisor {
    u32 d, factor, shift;
    DEV u32 under(u32 n) const { return d == 1 ? n : (u32)(((u64)n * factor) >> 32) >> shift; }
    DEV u64 of(u64 n) const { return n >> 31 ? n / d : under((u32)n); }
};

// Where item i of channels-last images of up to three axes lies: its pack of channels, of `packs` a pixel, its places along the
// axes, and its sample. Fewer than 2^31 items.
struct Item {
    u32 pack, at[3], sample;
    DEV Item(u32 i, const Divisor& packs, const Divisor& a, const Divisor& b, const Divisor& c) {
        u32 pixel = packs.under(i), line = c.under(pixel), plane = b.under(line);
        sample = a.under(plane);
        pack = i - pixel * packs.d;
        at[2] = pixel - line * c.d;
        at[1] = line - plane * b.d;
        at[0] = plane - sample * a.d;
    }
};

// Several operands of one shape walked together: `v` holds the number of axes, the number of elements, the axes' sizes
// (outermost first) and each operand's strides. Made by `Walk::cuda` on the host, which merges axes.
struct Walk {
    i64 v[64];
    DEV u64 total() const { return (u64)v[1]; }
    template <int N> DEV void places(u64 index, i64 (&at)[N]) const {
        for (int k = 0; k < N; k++) at[k] = 0;
        int rank = (int)v[0];
        if (v[1] <= 0xffffffffll) {
            u32 rest = (u32)index;
            for (int axis = rank - 1; axis > 0; axis--) {
                u32 size = (u32)v[2 + axis], next = rest / size, mine = rest - next * size;
                for (int k = 0; k < N; k++) at[k] += (i64)mine * v[10 + 8 * k + axis];
                rest = next;
            }
            for (int k = 0; k < N; k++) at[k] += (i64)rest * v[10 + 8 * k];
        } else {
            for (int axis = rank - 1; axis > 0; axis--) {
                u64 size = (u64)v[2 + axis], next = index / size, mine = index - next * size;
                for (int k = 0; k < N; k++) at[k] += (i64)mine * v[10 + 8 * k + axis];
                index = next;
            }
            for (int k = 0; k < N; k++) at[k] += (i64)index * v[10 + 8 * k];
        }
    }
};

DEV float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Times { template <class T> DEV T operator()(T a, T b) const { return a * b; } };
struct Sum { template <class T> DEV T operator()(T a, T b) const { return a + b; } };
struct Larger { DEV float operator()(float a, float b) const { return a != a || a > b ? a : b; } };

// Over the lanes of a warp; every lane gets the result. The order of the operands depends on nothing but the lane.
template <class T, class F> DEV T warp_fold(T x, F f) {
    for (int step = 16; step > 0; step /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
// Over all threads of a block, whose size is a multiple of 32; every thread gets the result. `none` is the
// operation's neutral element. `shared` has room for 32 elements and is free again when all have come out.
template <class T, class F> DEV T block_fold(T x, T none, F f, T* shared) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_fold(x, f);
    if (lane == 0) shared[warp] = x;
    __syncthreads();
    x = warp_fold(lane < warps ? shared[lane] : none, f);
    __syncthreads();
    return x;
}

// What the threads before this one of a block of 256 have together, joined in their order, and in `all` what the whole block
// has. `shared` has room for all of them twice, and is free again when they have come out.
template <class T, class F> DEV T block_before(T mine, T none, F f, T (*shared)[256], T& all) {
    int me = threadIdx.x, side = 0;
    shared[side][me] = mine;
    __syncthreads();
    for (int step = 1; step < 256; step *= 2, side ^= 1) {
        T sum = shared[side][me];
        if (me >= step) sum = f(shared[side][me - step], sum);
        shared[side ^ 1][me] = sum;
        __syncthreads();
    }
    T before = me > 0 ? shared[side][me - 1] : none;
    all = shared[side][255];
    __syncthreads();
    return before;
}

// The larger one; a number rather than none.
struct Most { DEV float operator()(float a, float b) const { return fmaxf(a, b); } };

// Element `unit * N` and the ones behind it of a row of `k`, `none` past its end. Units count from the row's start whatever
// its address is, so that a sum over a row has one order wherever the row lies.
template <int N, class T> DEV Pack<T, N> read_unit(const T* row, int k, int unit, float none) {
    int i = unit * N;
    if ((u64)row % sizeof(Pack<T, N>) == 0 && i + N <= k) return load_pack<N>(row + i);
    Pack<T, N> v = {};
    for (int e = 0; e < N; e++) v.set(e, i + e < k ? load(row, i + e) : none);
    return v;
}
template <int N, class T> DEV void write_unit(T* row, int k, int unit, const Pack<T, N>& v) {
    int i = unit * N;
    if ((u64)row % sizeof(Pack<T, N>) == 0 && i + N <= k) return store_pack(row + i, v);
    for (int e = 0; e < N; e++)
        if (i + e < k) store(row, i + e, v.at(e));
}
// `size` threads that share a row: lanes of a warp, a power of two, or the whole block. `cuda::Rows` chooses.
struct Team {
    int size, thread;
    i64 row;
    DEV Team(int size)
        : size(size), thread(threadIdx.x % size), row((i64)blockIdx.x * (blockDim.x / size) + threadIdx.x / size) {}
    // All threads of the block take part, whether or not they have a row; `shared` is as for `block_fold`.
    template <class F> DEV float fold(float x, float none, F f, float* shared) const {
        if (size > 32) return block_fold(x, none, f, shared);
        for (int step = size / 2; step > 0; step /= 2) x = f(x, __shfl_xor_sync(0xffffffffu, x, step));
        return x;
    }
};
// A thread's units of a row of `k` elements (0 for none): the first ones stay in registers, the others are read each time.
constexpr int HELD = 4;
template <class T, int N> struct Held {
    const T* row;
    int k, first, step;
    float none;
    Pack<T, N> v[HELD];
    DEV int units() const { return (k + N - 1) / N; }
    DEV Held(const T* row, int k, const Team& team, float none)
        : row(row), k(k), first(team.thread), step(team.size), none(none) {
#pragma unroll
        for (int j = 0; j < HELD; j++)
            if (first + j * step < units()) v[j] = read_unit<N>(row, k, first + j * step, none);
    }
    // Calls `f(unit, elements)`.
    template <class F> DEV void each(F f) const {
#pragma unroll
        for (int j = 0; j < HELD; j++)
            if (first + j * step < units()) f(first + j * step, v[j]);
#pragma unroll 1
        for (int u = first + HELD * step; u < units(); u += step) f(u, read_unit<N>(row, k, u, none));
    }
};

// N neighbouring elements of an operand whose float type is known when the kernel runs; `have` of them are there.
template <int N> struct Floats { float v[N]; };
template <int N> DEV Floats<N> load_floats(const void* p, int dtype, i64 i, int have) {
    Floats<N> x;
#define WHOLE(T) \
    { \
        const T* from = (const T*)p + i; \
        constexpr int M = N < WIDE<T> ? N : WIDE<T>; \
        if (have == N && (u64)from % sizeof(Pack<T, M>) == 0) { \
            for (int k = 0; k < N; k += M) { \
                auto part = load_pack<M>(from + k); \
                for (int e = 0; e < M; e++) x.v[k + e] = part.at(e); \
            } \
        } else { \
            for (int k = 0; k < N; k++) x.v[k] = k < have ? load(from, k) : 0.0f; \
        } \
    }
    if (dtype == BF16) WHOLE(bf16) else if (dtype == F16) WHOLE(f16) else WHOLE(float)
#undef WHOLE
    return x;
}

// What a kernel found wrong, in memory of the host (`Context::faults`): the first one stays, and where several threads find
// one at a time it is one of theirs. An index outside its axis gives results that are not numbers, and this.
struct alignas(16) Fault { i64 op, limit, position, index; };
DEV void report(Fault* to, int op, i64 position, i64 index, i64 limit) {
    struct alignas(16) Two { i64 a, b; };
    if (*(volatile i64*)&to->op) return;
    *(Two*)&to->position = {position, index};
    *(Two*)&to->op = {op, limit};
}

// Philox4x32-10 (Salmon et al., SC 2011): the same words as `phalanx_host::rng`.
struct Words { u32 w[4]; };
DEV Words philox(u64 key, u64 block) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
    Words c = {{(u32)block, (u32)(block >> 32), 0, 0}};
    for (int round = 0; round < 10; round++) {
        u64 p0 = (u64)0xD2511F53u * c.w[0], p1 = (u64)0xCD9E8D57u * c.w[2];
        c = {{(u32)(p1 >> 32) ^ c.w[1] ^ k0, (u32)p1, (u32)(p0 >> 32) ^ c.w[3] ^ k1, (u32)p0}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}
// In [0, 1) with 24 bits.
DEV float unit(u32 word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }

// The kernels NAME_f32, NAME_bf16 and NAME_f16 of one template; ARGS in parentheses are its parameters and NAMES their names.
#define FOR_FLOATS(ONE) ONE(f32, float) ONE(bf16, bf16) ONE(f16, f16)
