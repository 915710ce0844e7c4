// Elements of matrices and images in the types that the libraries are asked for: f32, bf16 and f16, computed on as
// floats.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum class Type { f32, bf16, f16 };

inline size_t bytes_of(Type type) { return type == Type::f32 ? 4 : 2; }

inline const char* name_of(Type type) { return type == Type::f32 ? "f32" : type == Type::bf16 ? "bf16" : "f16"; }

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float load(Type type, const void* from, size_t index) {
    if (type == Type::f32) return ((const float*)from)[index];
    const uint16_t half = ((const uint16_t*)from)[index];
    if (type == Type::bf16) return float_of_bits((uint32_t)half << 16);
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent > 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float tiny = (float)fraction * (1.0f / (1 << 24));
    return sign ? -tiny : tiny;
}

/// Clears the lowest `count` bits, rounding to the nearest, ties to even.
inline uint32_t round_bits(uint32_t bits, unsigned count) {
    const uint32_t half = 1u << (count - 1), odd = bits >> count & 1;
    return (bits + half - 1 + odd) >> count << count;
}

inline void store(Type type, void* to, size_t index, float value) {
    if (type == Type::f32) {
        ((float*)to)[index] = value;
        return;
    }
    uint16_t& half = ((uint16_t*)to)[index];
    const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000;
    if (value != value) {
        half = 0x7fff;
    } else if (type == Type::bf16) {
        half = (uint16_t)(round_bits(bits, 16) >> 16);
    } else if ((bits & 0x7fffffffu) >= 0x477ff000u) {
        half = (uint16_t)(sign | 0x7c00);
    } else if ((bits & 0x7fffffffu) < 0x38800000u) {
        // Below the smallest normal number: units of 2^-24. Adding 2^23 of them rounds to a whole one.
        const float magnitude = float_of_bits(bits & 0x7fffffffu) * (float)(1 << 24);
        half = (uint16_t)(sign | (bits_of_float(magnitude + 8388608.0f) & 0x7ff));
    } else {
        half = (uint16_t)(sign | ((round_bits(bits & 0x7fffffffu, 13) - 0x38000000u) >> 13));
    }
}

/// What TF32 keeps of an operand.
inline float as_tf32(float value) {
    return value != value ? value : float_of_bits(round_bits(bits_of_float(value), 13));
}
