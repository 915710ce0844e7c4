// Half types are rounded after every operand, as NCCL's hops do.
#include "reduce.h"

#include <algorithm>
#include <type_traits>

#include "../numbers.h"

namespace {

enum : int { SUM, PRODUCT, MAXIMUM, MINIMUM, AVERAGE };
enum : int { INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16 };

template <class T>
T combine(int operation, T a, T b) {
    switch (operation) {
        case PRODUCT: return (T)(a * b);
        case MAXIMUM: return std::max(a, b);
        case MINIMUM: return std::min(a, b);
        default: return (T)(a + b);
    }
}

/// Calls `with` a null pointer of the type, so that it can be named; halves are done by themselves.
template <class F>
bool with_type(int type, F with) {
    switch (type) {
        case INT8: with((int8_t*)nullptr); return true;
        case UINT8: with((uint8_t*)nullptr); return true;
        case INT32: with((int32_t*)nullptr); return true;
        case UINT32: with((uint32_t*)nullptr); return true;
        case INT64: with((int64_t*)nullptr); return true;
        case UINT64: with((uint64_t*)nullptr); return true;
        case FLOAT32: with((float*)nullptr); return true;
        case FLOAT64: with((double*)nullptr); return true;
    }
    return false;
}

}  // namespace

size_t bytes_of_type(int type) {
    size_t bytes = type == FLOAT16 || type == BFLOAT16 ? 2 : 0;
    with_type(type, [&](auto* t) { bytes = sizeof *t; });
    return bytes;
}

const char* name_of_type(int type) {
    static const char* const names[] = {"i8", "u8", "i32", "u32", "i64", "u64", "f16", "f32", "f64", "bf16"};
    return type >= 0 && type < 10 ? names[type] : "?";
}

bool is_operation(int operation) { return operation >= SUM && operation <= AVERAGE; }

void reduce(int type, int operation, void* total, const void* other, size_t count) {
    if (with_type(type, [&](auto* t) {
            auto* to = (decltype(t))total;
            auto* from = (const std::remove_pointer_t<decltype(t)>*)other;
            for (size_t i = 0; i < count; i++) to[i] = combine(operation, to[i], from[i]);
        }))
        return;
    const Type half = type == FLOAT16 ? Type::f16 : Type::bf16;
    for (size_t i = 0; i < count; i++)
        store(half, total, i, combine(operation, load(half, total, i), load(half, other, i)));
}

void divide(int type, void* total, size_t count, int ranks) {
    if (with_type(type, [&](auto* t) {
            auto* to = (decltype(t))total;
            for (size_t i = 0; i < count; i++) to[i] = (std::remove_pointer_t<decltype(t)>)(to[i] / ranks);
        }))
        return;
    const Type half = type == FLOAT16 ? Type::f16 : Type::bf16;
    for (size_t i = 0; i < count; i++) store(half, total, i, load(half, total, i) / (float)ranks);
}
