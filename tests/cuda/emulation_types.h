// CUDA's small vectors for kernels on the CPU, with CUDA's alignments: a misaligned access traps here as it does there.
#pragma once

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

#define PHALANX_VECTOR(NAME, TYPE)                                                              \
    struct alignas(1 * sizeof(TYPE)) NAME##1 { TYPE x; };                                       \
    struct alignas(2 * sizeof(TYPE)) NAME##2 { TYPE x, y; };                                    \
    struct alignas(4 * sizeof(TYPE) < 16 ? 4 * sizeof(TYPE) : 16) NAME##4 { TYPE x, y, z, w; }; \
    inline NAME##1 make_##NAME##1(TYPE x) { return {x}; }                                       \
    inline NAME##2 make_##NAME##2(TYPE x, TYPE y) { return {x, y}; }                            \
    inline NAME##4 make_##NAME##4(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }
PHALANX_VECTOR(char, signed char)
PHALANX_VECTOR(uchar, unsigned char)
PHALANX_VECTOR(short, short)
PHALANX_VECTOR(ushort, unsigned short)
PHALANX_VECTOR(int, int)
PHALANX_VECTOR(uint, unsigned)
PHALANX_VECTOR(longlong, long long)
PHALANX_VECTOR(ulonglong, unsigned long long)
PHALANX_VECTOR(float, float)
PHALANX_VECTOR(double, double)
#undef PHALANX_VECTOR

#define PHALANX_VECTOR3(NAME, TYPE)   \
    struct NAME##3 { TYPE x, y, z; }; \
    inline NAME##3 make_##NAME##3(TYPE x, TYPE y, TYPE z) { return {x, y, z}; }
PHALANX_VECTOR3(char, signed char)
PHALANX_VECTOR3(uchar, unsigned char)
PHALANX_VECTOR3(short, short)
PHALANX_VECTOR3(ushort, unsigned short)
PHALANX_VECTOR3(int, int)
PHALANX_VECTOR3(float, float)
PHALANX_VECTOR3(double, double)
#undef PHALANX_VECTOR3
