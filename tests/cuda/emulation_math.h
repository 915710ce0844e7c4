// CUDA's mathematical and bit functions that the C library lacks, or has under other names. The fast ones (`__expf` …)
// are as exact as the others here: a test that needs their error must run on a device.
#pragma once

// `min` and `max` of mixed integers follow C's conversions, of floats they ignore a NaN, as on the device.
template <class A, class B>
constexpr auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value)
        return (T)fmin((T)a, (T)b);
    else
        return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value)
        return (T)fmax((T)a, (T)b);
    else
        return (T)a < (T)b ? (T)b : (T)a;
}

inline float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline float sinpif(float x) { return (float)sin(M_PI * (double)x); }
inline float cospif(float x) { return (float)cos(M_PI * (double)x); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline float normcdff(float x) { return (float)(0.5 * erfc(-(double)x * M_SQRT1_2)); }
inline float fdividef(float a, float b) { return a / b; }

// The C library declares these names for itself, so they cannot be defined as functions.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)

inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// Conversions saturate, and a NaN becomes 0, as on the device; C++ leaves both undefined.
inline int phalanx_to_int(double x) {
    if (!(x == x)) return 0;
    return x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : (int)x;
}
inline unsigned phalanx_to_unsigned(double x) {
    if (!(x > 0.0)) return 0;
    return x >= 4294967295.0 ? 4294967295u : (unsigned)x;
}
inline int __float2int_rn(float x) { return phalanx_to_int(nearbyint((double)x)); }
inline int __float2int_rz(float x) { return phalanx_to_int((double)x); }
inline int __float2int_rd(float x) { return phalanx_to_int(floor((double)x)); }
inline int __float2int_ru(float x) { return phalanx_to_int(ceil((double)x)); }
inline unsigned __float2uint_rn(float x) { return phalanx_to_unsigned(nearbyint((double)x)); }
inline unsigned __float2uint_rz(float x) { return phalanx_to_unsigned((double)x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }
inline float __ull2float_rn(unsigned long long x) { return (float)x; }
inline float __double2float_rn(double x) { return (float)x; }
inline double __int2double_rn(int x) { return (double)x; }

template <class To, class From>
To phalanx_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "both types have the same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return phalanx_bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return phalanx_bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return phalanx_bit_cast<float>(x); }
inline float __int_as_float(int x) { return phalanx_bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return phalanx_bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return phalanx_bit_cast<double>(x); }
inline int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return (int)__double_as_longlong(x); }
inline double __hiloint2double(int hi, int lo) {
    return __longlong_as_double((long long)(((unsigned long long)(unsigned)hi << 32) | (unsigned)lo));
}

// Integers.
inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
inline long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __mul24(int a, int b) { return ((a << 8) >> 8) * ((b << 8) >> 8); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline unsigned __sad(int a, int b, unsigned c) {
    return (a < b ? (unsigned)b - (unsigned)a : (unsigned)a - (unsigned)b) + c;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned long long __brevll(unsigned long long x) {
    unsigned long long turned = 0;
    for (int i = 0; i < 64; i++) turned |= ((x >> i) & 1ull) << (63 - i);
    return turned;
}
inline unsigned __brev(unsigned x) { return (unsigned)(__brevll(x) >> 32); }
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)(((((unsigned long long)hi << 32) | lo) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)((((unsigned long long)hi << 32) | lo) >> (shift & 31));
}
/// Picks four of the eight bytes of `y:x`; bit 3 of a selector spreads the picked byte's sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selectors) {
    const unsigned long long bytes = ((unsigned long long)y << 32) | x;
    unsigned picked = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned selector = (selectors >> (4 * i)) & 15;
        unsigned byte = (unsigned)(bytes >> (8 * (selector & 7))) & 255;
        if (selector & 8) byte = byte & 128 ? 255 : 0;
        picked |= byte << (8 * i);
    }
    return picked;
}
